"""sqlite3, for blocking code; and what both adapters of SQLite understand of their settings."""

from __future__ import annotations

import importlib
import re
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from transept import Registry
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.adapters.sqlite import SqliteConfig
from transept.errors import (
    CommitFailed,
    ImproperConfigurationError,
    LockTimeoutError,
    PoolTimeout,
    ProgrammingError,
    SQLError,
    UniqueViolationError,
)

EACH_CONFIG = pytest.mark.parametrize("kind", [SqliteConfig, AiosqliteConfig])


class Place:
    """A file with a table, and a registry."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.registry = Registry()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE numbers (id INTEGER PRIMARY KEY, v TEXT)")
            connection.commit()

    def opened(self, pool: dict[str, Any] | None = None, **settings: Any) -> SqliteConfig:
        config = SqliteConfig(pool_config=pool or {"database": self.path}, **settings)
        self.registry.add_config(config)
        return config

    def numbers(self) -> list[int]:
        with closing(sqlite3.connect(self.path)) as connection:
            return [number for (number,) in connection.execute("SELECT id FROM numbers ORDER BY id")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "app.db")
    yield made
    for config in made.registry:
        config.close_pool()


class Colour(Enum):
    RED = "red"


@dataclass
class Everything:
    uuid: UUID
    moment: datetime
    day: date
    clock: time
    lasts: timedelta
    price: Decimal
    raw: bytes
    facts: dict[str, Any]
    tags: list[str]
    colour: Colour
    active: bool


def test_values_of_every_type_come_back(place: Place) -> None:
    row = Everything(
        uuid=UUID(int=7),
        moment=datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
        day=date(2024, 2, 29),
        clock=time(1, 2, 3, 400000),
        lasts=timedelta(hours=30, microseconds=5),
        price=Decimal("12.3400"),
        raw=b"\x00'\xff",
        facts={"a": [1, None]},
        tags=["x"],
        colour=Colour.RED,
        active=True,
    )
    columns = list(vars(row))
    with place.registry.provide_session(place.opened()) as session:
        session.execute(f"CREATE TABLE everything ({', '.join(f'{name} BLOB' for name in columns)})")
        marks = ", ".join(f":{name}" for name in columns)
        session.execute(f"INSERT INTO everything VALUES ({marks})", vars(row))
        assert session.select_one("SELECT * FROM everything", schema_type=Everything) == row


def test_a_value_of_a_type_that_sqlite_does_not_know_is_an_error(place: Place) -> None:
    with (
        place.registry.provide_session(place.opened()) as session,
        pytest.raises(ProgrammingError, match="type 'object'"),
    ):
        session.execute("INSERT INTO numbers VALUES (1, ?)", object())


def test_a_stream_has_all_rows_and_other_statements_may_run_amid_it(place: Place) -> None:
    with place.registry.provide_session(place.opened()) as session:
        session.execute_many("INSERT INTO numbers VALUES (?, ?)", [(n, str(n)) for n in range(1000)])
        seen = []
        for row in session.stream("SELECT id FROM numbers ORDER BY id", chunk_size=10):
            seen.append(row["id"])
            if len(seen) == 5:
                assert session.select_value("SELECT count(*) FROM numbers") == 1000
        assert seen == list(range(1000))


def test_a_stream_that_is_left_half_read_does_not_keep_the_transaction_from_its_end(place: Place) -> None:
    config = place.opened({"database": place.path, "max_size": 1})
    with place.registry.provide_session(config) as session:
        session.execute_many("INSERT INTO numbers VALUES (?, 'a')", [(n,) for n in range(100)])
        stream = session.stream("SELECT id FROM numbers", chunk_size=10)
        next(iter(stream))
        session.commit()
    with place.registry.provide_session(config) as session:
        assert session.select_value("SELECT count(*) FROM numbers") == 100


def test_a_block_is_kept_or_undone_alone(place: Place) -> None:
    with place.registry.provide_session(place.opened()) as session:
        with session.transaction():
            session.execute("INSERT INTO numbers VALUES (1, 'a')")
        with pytest.raises(RuntimeError), session.transaction():
            session.execute("INSERT INTO numbers VALUES (2, 'a')")
            with session.transaction():
                session.execute("INSERT INTO numbers VALUES (3, 'a')")
            raise RuntimeError
        session.execute("INSERT INTO numbers VALUES (4, 'a')")
        with pytest.raises(UniqueViolationError), session.transaction():
            session.execute("INSERT INTO numbers VALUES (4, 'b')")
    assert place.numbers() == [1, 4]


def test_what_follows_an_error_that_dropped_the_transaction_is_not_kept(place: Place) -> None:
    with (
        pytest.raises(CommitFailed, match="ended the transaction"),
        place.registry.provide_session(place.opened()) as session,
    ):
        session.execute("INSERT INTO numbers VALUES (1, 'a')")
        with pytest.raises(UniqueViolationError):
            session.execute("INSERT OR ROLLBACK INTO numbers VALUES (1, 'a')")
        session.execute("INSERT INTO numbers VALUES (2, 'a')")
    assert place.numbers() == []


def test_a_script_runs_whole_in_the_transaction(place: Place) -> None:
    with place.registry.provide_session(place.opened()) as session:
        session.execute_script("INSERT INTO numbers VALUES (1, 'a;b'); INSERT INTO numbers VALUES (2, 'c')")
        session.rollback()
        session.execute_script("INSERT INTO numbers VALUES (3, 'a;b')")
    assert place.numbers() == [3]


def test_the_connection_has_cursors_and_the_drivers_methods_in_one_transaction(place: Place) -> None:
    with place.registry.provide_connection(place.opened()) as connection:
        cursor = connection.execute("INSERT INTO numbers VALUES (?, ?)", 1, "a")
        assert (cursor.rowcount, cursor.lastrowid, cursor.description) == (1, 1, None)
        connection.create_function("twice", 1, lambda n: 2 * n)
        with connection.cursor() as cursor:
            cursor.execute("SELECT id, twice(id) AS two FROM numbers")
            assert [column[0] for column in cursor.description] == ["id", "two"]
            assert list(cursor) == [(1, 2)]
        assert connection.in_transaction
        connection.commit()
        connection.execute("INSERT INTO numbers VALUES (2, 'a')")
        connection.rollback()
        with pytest.raises(AttributeError, match="has 'nothing'"):
            connection.nothing()
    assert place.numbers() == [1]


def test_a_database_in_memory_is_one_for_all_and_gone_when_it_is_closed(place: Place) -> None:
    config = place.opened({"database": ":memory:"})
    with place.registry.provide_session(config) as session:
        session.execute("CREATE TABLE numbers (id INTEGER)")

    def read() -> Any:
        with place.registry.provide_session(config) as session:
            return session.select("SELECT * FROM numbers")

    with ThreadPoolExecutor() as threads:
        assert threads.submit(read).result() == read() == []
    config.close_pool()
    with place.registry.provide_session(config) as session, pytest.raises(ProgrammingError, match="no such table"):
        session.select("SELECT * FROM numbers")


def test_an_exhausted_pool_names_who_has_its_connections(place: Place) -> None:
    config = place.opened({"database": place.path, "max_size": 1}, pool_timeout=0.1)
    with place.registry.provide_session(config) as session:
        session.select_value("SELECT 1")
        with (
            pytest.raises(PoolTimeout, match=r"for 0\.\d s"),
            place.registry.provide_session(config) as second,
        ):
            second.select_value("SELECT 1")


def test_who_waits_too_long_for_the_lock_is_told_what_helps(place: Place) -> None:
    config = place.opened({"database": place.path, "timeout": 0.1})
    with closing(sqlite3.connect(place.path, isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        with (
            pytest.raises(LockTimeoutError) as refused,
            place.registry.provide_session(config) as session,
        ):
            session.execute("INSERT INTO numbers VALUES (1, 'a')")
    notes = getattr(refused.value.__cause__, "__notes__", [])
    assert notes == ["another transaction is writing: keep units that write short, or raise 'timeout' in pool_config."]


@EACH_CONFIG
def test_a_statement_waits_five_seconds_for_a_lock_unless_told_otherwise(kind: Any) -> None:
    for pool, wanted in (({}, 5000), ({"timeout": 1.5}, 1500)):
        config = kind(pool_config={"database": ":memory:", **pool})
        with closing(config._connected()) as connection:
            assert connection.execute("PRAGMA busy_timeout").fetchall() == [(wanted,)]
        config._forget_memory()


# Settings


def test_a_dsn_may_ask_for_a_database_that_is_only_read(place: Place) -> None:
    with place.registry.provide_session(place.opened()) as session:
        session.execute("INSERT INTO numbers VALUES (1, 'a')")
    config = place.opened({"dsn": f"sqlite:///{place.path}?mode=ro"}, bind_key="readers")
    with place.registry.provide_session(config) as session:
        assert session.select("SELECT id FROM numbers") == [{"id": 1}]
    with pytest.raises(SQLError, match="readonly"), place.registry.provide_session(config) as session:
        session.execute("INSERT INTO numbers VALUES (2, 'a')")
    assert place.numbers() == [1]


def test_a_file_that_is_only_read_is_not_made(place: Place, tmp_path: Path) -> None:
    config = place.opened({"dsn": f"sqlite:///{tmp_path}/none.db?mode=ro"})
    with pytest.raises(SQLError, match="unable to open"), place.registry.provide_session(config) as session:
        session.select_value("SELECT 1")
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("query", ["", "?mode=rwc"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_dsn_names_a_file_whatever_characters_its_path_has(
    query: str, absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"{tmp_path if absolute else '.'}/50% of #1 what? ü&=.db"
    written = path.replace("%", "%25").replace("#", "%23").replace("?", "%3F")
    config = SqliteConfig(pool_config={"dsn": f"sqlite:///{written}{query}"})
    with Registry([config]).provide_session(config) as session:
        session.execute("CREATE TABLE here (id INTEGER)")
    config.close_pool()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("here",)]


@EACH_CONFIG
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dsn": "sqlite://app.db"}, "dsn='sqlite://app.db': a file follows three slashes"),
        ({"dsn": "sqlite:///a#b.db"}, "write %23"),
        ({"dsn": "sqlite:///a.db?mod=ro"}, "no option 'mod'. Did you mean 'mode'?"),
        ({"dsn": "sqlite:///a.db?timeout=3"}, "no option 'timeout'"),
        ({"dsn": "sqlite:///a.db?mode=memory"}, "write 'sqlite:///:memory:'"),
        ({"dsn": "sqlite://?cache=shared"}, "a database in memory has no options"),
        ({"dsn": "mysql://localhost/a"}, "dsn='mysql://localhost/a': a SQLite URL is needed"),
        ({"dsn": 3}, "dsn=3"),
        ({"dsn": "sqlite:///a.db", "database": "b.db"}, "give one of them"),
        ({}, "'database' is needed"),
        ({"database": "a.db", "timout": 3}, "Did you mean 'timeout'?"),
        ({"database": "a.db", 3: 4}, "pool_config key=3: a str is needed"),
        ({"database": "a.db", "max_size": "3"}, "pool_config: max_size='3': a pool has at least 1 connection"),
        ({"database": "a.db", "min_size": "2"}, "pool_config: min_size='2': give a whole number"),
        ({"database": "a.db", "min_size": 3, "max_size": 2}, "min_size=3: give a whole number, at least 0 and at most"),
        ({"database": "a.db", "max_idle": "x"}, "pool_config: max_idle='x': seconds are needed"),
    ],
)
def test_a_wrong_setting_is_refused(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=f"^{kind.__name__}: .*{re.escape(said)}"):
        kind(pool_config=settings)


@pytest.mark.parametrize("driver", ["aiosqlite", "asyncmy", "pymysql"])
def test_an_adapter_whose_driver_is_not_installed_says_how_to_get_it(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.delitem(sys.modules, f"transept.adapters.{driver}", raising=False)
    with pytest.raises(ImportError, match=rf"adapters.{driver} needs {driver}: pip install 'transept\[{driver}\]'$"):
        importlib.import_module(f"transept.adapters.{driver}")
