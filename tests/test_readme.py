"""The README, run as it is written: its files in an empty folder, its commands' environment, its answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()

WALK = """
import hashlib, hmac, json
from starlette.testclient import TestClient
from app import app

ann = {"authorization": "Bearer token-of-ann"}
with TestClient(app) as client:
    assert client.post("/convert").status_code == 401
    answers = [client.post("/convert", headers=ann) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 402], answers
    assert answers[0].json() == {"converted": True, "limit": 3}
    print(answers[3].text)
    page = client.post("/convert", headers={**ann, "accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/pricing")
    assert client.get("/export", headers=ann).status_code == 402
    assert client.get("/export").status_code == 401

    paid = json.dumps({"type": "subscription.paid", "org": "org:acme", "plan": "plan:pro@1"}).encode()
    signature = hmac.new(b"secret", paid, hashlib.sha256).hexdigest()
    assert client.post("/webhooks/payments", content=paid).status_code == 400
    assert client.get("/export", headers=ann).status_code == 402
    for _ in range(2):
        assert client.post("/webhooks/payments", content=paid, headers={"x-signature": signature}).status_code == 200
    assert client.get("/export", headers=ann).status_code == 200
    assert client.post("/batch", headers=ann, json=["a", "b"]).json() == {"converted": 2}
    assert client.post("/summarize", headers=ann).status_code == 200

    assert client.post("/render", headers=ann).json() == {"accepted": True}

    with client.websocket_connect("/chat", headers=ann) as socket:
        for word in ("one", "two"):
            socket.send_text(word)
            assert socket.receive_text() == word.upper()

    from tier_middleware import sync_tier
    assert sync_tier.lookup_limit("org:acme", "feature:convert").used == 6, sync_tier.lookup_limits("org:acme")
    assert sync_tier.counts == {}
"""


def blocks(marker: str) -> list[str]:
    """The code blocks behind a marker comment."""
    return re.findall(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", README, re.DOTALL)


def run(code: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIER_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder, env={**kept, **environ}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the README's files in it."""
    for name in ("pricing.json", "app.py"):
        (tmp_path / name).write_text("\n".join(blocks(f"file: {name}") + blocks(f"more: {name}")))
    return tmp_path


def test_the_app_answers_what_the_readme_says(folder: Path) -> None:
    environ = {"TIER_PRICING": "pricing.json", "TIER_DEFAULT_PLAN": "plan:free@1", "WEBHOOK_SECRET": "secret"}
    assert all(f"{name}={value}" in README for name, value in environ.items() if name != "WEBHOOK_SECRET")
    done = run(WALK, folder, **environ)
    assert done.returncode == 0, done.stderr
    answered, shown = json.loads(done.stdout), json.loads(blocks("answer")[0])
    assert {**answered, "resets_at": shown["resets_at"]} == shown
    assert (folder / "tier.db").exists()


def test_the_script_runs_as_written(folder: Path) -> None:
    (script,) = blocks("script")
    done = run(script, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 of 3 used, until ")


POOL = """
import multiprocessing
sync_tier.subscribe("org:acme", "plan:free@1")  # opened before the fork, as by a module that a worker imports first
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.starmap(convert, [("org:acme", ["ann"]), ("org:acme", ["bob"])], chunksize=1))
    try:
        pool.starmap(convert, [("org:acme", ["cy", "di"])])
    except Exception as no:
        print(type(no).__name__, no.used, no.limit)
    pool.close()
    pool.join()
"""


def test_tasks_of_forked_workers_count(folder: Path) -> None:
    (tasks,) = blocks("tasks")
    done = run(tasks + POOL, folder, TIER_PRICING="pricing.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[['Ann'], ['Bob']]", "LimitReached 2 3"]


def test_the_subscriptions_are_what_the_readme_says(folder: Path) -> None:
    (script,) = blocks("script: subscriptions")
    done = run(script, folder)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"plan:pro@1 on trial until \d\d \w+\nplan:pro@1 subscribed until \d\d \w+\n"
        r"plan:pro@1 subscribed until \d\d \w+\nplan:free@1 subscribed for good\nann@globex\.example\n",
        done.stdout,
    ), done.stdout


def test_the_rehearsal_runs_as_written(folder: Path) -> None:
    (rehearsal,) = blocks("rehearsal")
    done = run(rehearsal, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["limit_reached", "3 left", "rehearsal 29 February 2024"]


def test_the_history_is_what_the_readme_says(folder: Path) -> None:
    (script,) = blocks("ledger")
    done = run(script, folder)
    assert done.returncode == 0, done.stderr
    *entries, days = done.stdout.splitlines()
    assert all(f"`{entry}`" in README for entry in entries), entries
    assert len(entries) == 2
    assert json.loads(days) == [0, 0, 0, 0, 0, 0, 0, 2]


def test_the_way_to_another_engine(folder: Path) -> None:
    (script,) = blocks("ledger")
    assert run(script, folder).returncode == 0
    (commands,) = blocks("move")
    here = f'tier-middleware() {{ {sys.executable} -m tier_middleware.cli "$@"; }}\n'
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIER_")}
    subprocess.run(["bash", "-euc", here + commands], cwd=folder, env=kept, capture_output=True, timeout=60, check=True)
    limit = f"{sys.executable} -m tier_middleware.cli --base-url sqlite:///new.db limits org:ledger --json"
    shown = subprocess.run(limit.split(), cwd=folder, env=kept, capture_output=True, timeout=60, check=True)
    assert json.loads(shown.stdout)["usage"][0]["used"] == 2


def test_a_server_is_two_variables() -> None:
    (command,) = blocks("remote")
    made = "from tier_middleware import Tier; tier = Tier(); print(tier, type(tier.core.engine).__name__)"
    given = dict(part.split("=") for part in command.split()[1:])
    done = run(made, Path(__file__).parent, **given)
    assert done.stdout == f"Tier({given['TIER_BASE_URL']!r}) HttpEngine\n", done.stderr


SHOP = """
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.test.utils import setup_test_environment

setup_test_environment()
call_command("check", fail_level="WARNING")
call_command("migrate", verbosity=0)
client = Client(headers={"accept": "application/json"})
assert client.get("/convert/").status_code == 401
client.force_login(User.objects.create_superuser("ann"))
assert client.get("/convert/").json() == {"converted": True, "limit": 3}
assert client.get("/scan/3/").json()["code"] == "limit_reached"
assert client.get("/scan/2/").json() == {"pages": 2}
answer = client.get("/convert/")
assert (answer.status_code, answer.json()["upgrade"]) == (402, {"url": "/pricing/", "plans": ["plan:pro@1"]})
answer = client.get("/convert/", headers={"accept": "text/html"}, follow=True)
assert (answer.redirect_chain, answer.content) == ([("/pricing/", 303)], b"Pro is 10 a month")
from tier_middleware import sync_tier
sync_tier.subscribe("org:user-1", "plan:pro@1")
assert client.get("/convert/").status_code == 200

import base64
User.objects.create_user("eve", password="pw")
eve = Client(headers={"authorization": "Basic " + base64.b64encode(b"eve:pw").decode()})
assert eve.get("/export/").status_code == 402
assert client.get("/export/").status_code == 401
assert eve.post("/batch/", {"a": 1}, "application/json").status_code == 400
assert eve.post("/batch/", [1, 2], "application/json").json() == {"converted": 2}
assert eve.post("/batch/", [1, 2], "application/json").json()["remaining"] == 1
assert eve.post("/conversions/", {}, "application/json").status_code == 201
from django.db import connection
connection.close()
"""


TRANSACTIONS = """
import django
django.setup()
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.test import Client
from django.test.utils import setup_test_environment

setup_test_environment()
call_command("check", fail_level="WARNING")
call_command("migrate", verbosity=0)
client = Client(headers={"accept": "application/json"}, raise_request_exception=False)
client.force_login(User.objects.create_superuser("ann"))
from tier_middleware import sync_tier


def counted():
    return Group.objects.count(), sync_tier.lookup_limit("org:user-1", "feature:convert").used


assert client.get("/fails/").status_code == 500
sync_tier.subscribe("org:user-1", "plan:free@1")
assert counted() == (0, 0)
assert client.get("/settled/?name=a").status_code == 200
assert counted() == (1, 1)
assert client.get("/settled/?name=a").status_code == 500
assert counted() == (1, 1)
from django.db import connection
connection.close()
"""
TRANSACTION_URLS = """
from django.db import transaction


@requires_feature("feature:convert")
def fails(request):
    request.user.groups.create(name="never")
    raise ZeroDivisionError

SETTLE

urlpatterns += [path("fails/", fails), path("settled/", convert)]
"""


def test_usage_commits_with_the_work(folder: Path) -> None:
    site = shop(folder)
    with (site / "shop" / "settings.py").open("a") as settings:
        settings.write("".join(blocks("django: transaction")))
    with (site / "shop" / "urls.py").open("a") as urls:
        urls.write(TRANSACTION_URLS.replace("SETTLE", "".join(blocks("django: settle"))))
    done = run(TRANSACTIONS, site, DJANGO_SETTINGS_MODULE="shop.settings")
    assert done.returncode == 0, done.stderr
    assert not (site / "tier.db").exists()


def test_the_django_project_works_from_nothing(folder: Path) -> None:
    site = shop(folder)
    done = run(SHOP, site, DJANGO_SETTINGS_MODULE="shop.settings")
    assert done.returncode == 0, done.stderr
    assert (site / "tier.db").exists()


def shop(folder: Path) -> Path:
    """The README's Django project, in a folder of its own."""
    made = subprocess.run(
        [sys.executable, "-m", "django", "startproject", "shop"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    site = folder / "shop"
    (folder / "pricing.json").rename(site / "pricing.json")
    with (site / "shop" / "settings.py").open("a") as settings:
        settings.write("".join(blocks("django: shop/settings.py")))
    for name in ("shop/org.py", "shop/urls.py", "shop/api.py"):
        (site / name).write_text("".join(blocks(f"django: {name}")))
    return site


def test_both_commands_install_with_the_pinned_versions() -> None:
    for marker, extra in (("demo", "demo"), ("test", "test")):
        (command,) = blocks(marker)
        assert "\n" not in command.strip()
        assert f"-c constraints.txt -e '.[{extra}]'" in command
