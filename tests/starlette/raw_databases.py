"""A small database for each async driver, for tests that run on all of them; and a second connection that looks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
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
}
DRIVERS = tuple(CLASSES)
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
    """`pool_config` reaches it; `sees(sql)` gives the rows that another connection sees now."""

    driver: str
    pool_config: Mapping[str, Any]
    sees: Callable[[str], list[tuple[Any, ...]]]

    @property
    def config_class(self) -> Any:
        return getattr(import_module(f"transept.adapters.{self.driver}"), CLASSES[self.driver])

    def config(self, **settings: Any) -> Any:
        return self.config_class(pool_config=self.pool_config, **{"commit_mode": "autocommit", **settings})

    def emails(self) -> list[str]:
        return [email for (email,) in self.sees("SELECT email FROM users ORDER BY id")]

    def held(self) -> list[int]:
        return [v for (v,) in self.sees("SELECT v FROM held ORDER BY v")]


def raw_database(driver: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[RawDatabase]:
    """The driver's database with the tables of this module, which are empty."""
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

    for table, columns in TABLES.items():
        sees(f"DROP TABLE IF EXISTS {table}")
        sees(f"CREATE TABLE {table} ({columns.format(id=IDS[kind])})")
    yield RawDatabase(driver, pool_config, sees)
    for table in TABLES:
        sees(f"DROP TABLE {table}")
