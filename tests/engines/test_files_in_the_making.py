"""Several processes open one new file at once: the others meet it at any moment of its making."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tier_middleware.engines import schema
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.reporting.outbox import Outbox
from tier_middleware.reporting.schema import check_whose


class Interrupted(sqlite3.Connection):
    """Somebody else makes the file right before the statement of this number."""

    statement = 0
    make: Callable[[], None]

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        if self.statement == 0:
            self.make()
        self.statement -= 1
        return super().execute(*arguments)


def make_database(path: Path) -> None:
    with closing(SqliteEngine(path, lambda: 0)) as engine:
        engine.open()


def make_outbox(path: Path) -> None:
    with closing(Outbox(path, lambda: 0)) as outbox:
        outbox.open()


def open_database(connection: sqlite3.Connection, path: Path) -> None:
    schema.migrate(connection, str(path), 0)


FILES = {"a database": (make_database, open_database), "an outbox": (make_outbox, check_whose)}


@pytest.mark.parametrize("statement", range(3))
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_made_by_another_process_meanwhile_is_ours(name: str, statement: int, tmp_path: Path) -> None:
    make, look = FILES[name]
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, factory=Interrupted)) as connection:
        connection.statement, connection.make = statement, lambda: make(path)
        look(connection, path)
        assert connection.statement < 0, "it was made meanwhile"
