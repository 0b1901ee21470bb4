"""A small database for each async driver, for tests that run on all of them; and a second connection that looks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from servers.server import Server

CLASSES = {
    "asyncpg": "AsyncpgConfig",
    "aiosqlite": "AiosqliteConfig",
    "psycopg": "PsycopgAsyncConfig",
    "asyncmy": "AsyncmyConfig",
    "sqlite": "SqliteConfig",
}
DRIVERS = ("asyncpg", "aiosqlite", "psycopg", "asyncmy")  # the async ones
SERVERS = {"asyncpg": "postgres", "psycopg": "postgres", "asyncmy": "mariadb"}
IDS = {
    "postgres": "serial PRIMARY KEY",
    "mariadb": "int AUTO_INCREMENT PRIMARY KEY",
    "sqlite": "INTEGER PRIMARY KEY",
}
TABLES = {
    "users": "id {id}, email varchar(100)",
    "email_log": "email varchar(100), sent_at timestamp",
    "messages": "id {id}, content varchar(100)",
    "page_views": "path varchar(100)",
    "events": "id {id}",
    "held": "v integer",
}


@dataclass(frozen=True)
class RawDatabase:
    """`pool_config` reaches it; `sees(sql)` gives the rows that another connection sees now; `make` makes tables."""

    driver: str
    kind: str
    pool_config: Mapping[str, Any]
    sees: Callable[[str], list[tuple[Any, ...]]]
    made: list[str] = field(default_factory=list)

    def make(self, *tables: str) -> None:
        for table in tables:
            self.made.append(table)
            self.sees(f"DROP TABLE IF EXISTS {table}")
            self.sees(f"CREATE TABLE {table} ({TABLES[table].format(id=IDS[self.kind])})")

    @property
    def config_class(self) -> Any:
        return config_class(self.driver)

    def config(self, **settings: Any) -> Any:
        return self.config_class(pool_config=self.pool_config, **{"commit_mode": "autocommit", **settings})

    def emails(self) -> list[str]:
        return [email for (email,) in self.sees("SELECT email FROM users ORDER BY id")]

    def held(self) -> list[int]:
        return [v for (v,) in self.sees("SELECT v FROM held ORDER BY v")]


def config_class(driver: str) -> Any:
    return getattr(import_module(f"transept.adapters.{driver}"), CLASSES[driver])


def raw_database(driver: str, request: pytest.FixtureRequest, folder: Path, *tables: str) -> Iterator[RawDatabase]:
    """The driver's database with these tables, which are empty."""
    if driver == "aiosqlite":
        path = folder / f"{driver}.db"
        kind, pool_config = "sqlite", {"database": str(path)}
        connect: Callable[[], Any] = lambda: sqlite3.connect(path, isolation_level=None)  # noqa: E731
    else:
        server: Server = request.getfixturevalue(SERVERS[driver])
        kind, pool_config, connect = server.kind, {"dsn": server.dsn}, server.connect

    def sees(sql: str) -> list[tuple[Any, ...]]:
        with closing(connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    database = RawDatabase(driver, kind, pool_config, sees)
    database.make(*tables)
    yield database
    for table in database.made:
        sees(f"DROP TABLE {table}")
