"""PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from servers.server import Server

SCHEMA = """
DROP TABLE IF EXISTS held, child, parent;
CREATE TABLE held (v integer);
CREATE TABLE parent (id integer PRIMARY KEY);
CREATE TABLE child (p integer REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
"""


class Postgres:
    name = "postgres"
    can = frozenset({"late", "aborts", "kill", "wire", "slow", "peek"})

    def __init__(self, server: Server) -> None:
        self.server = server
        self._look: psycopg.Connection[Any] = psycopg.connect(server.dsn, autocommit=True)
        self._look.execute(SCHEMA)

    def reset(self) -> None:
        self._look.execute("TRUNCATE held, child, parent")

    def close(self) -> None:
        self._look.close()

    def url(self, driver: str, port: int | None = None) -> str:
        return on_port(self.server.url(driver), port)

    def dsn(self, port: int | None = None) -> str:
        return on_port(self.server.dsn, port)

    def held(self) -> list[int]:
        return [v for (v,) in self._look.execute("SELECT v FROM held ORDER BY v")]

    def open_transactions(self) -> int:
        row = self._look.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND xact_start IS NOT NULL AND backend_type = 'client backend'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def violation(self) -> list[str]:
        return ["INSERT INTO child VALUES (99)"]

    def slow(self) -> str:
        return "SELECT pg_sleep(0.3)"

    def own_session(self) -> str:
        return "SELECT pg_backend_pid()"

    @contextmanager
    def code(self, create: str, drop: str) -> Iterator[None]:
        """Functions and views of the database's own, for as long as this lasts."""
        self._look.execute(drop)
        self._look.execute(create)
        try:
            yield
        finally:
            self._look.execute(drop)

    @contextmanager
    def listening(self, channel: str) -> Iterator[Callable[[], list[str]]]:
        """What is heard on this channel since it was asked for last."""
        with psycopg.connect(self.server.dsn, autocommit=True) as listener:
            listener.execute(f"LISTEN {channel}")
            yield lambda: [notice.payload for notice in listener.notifies(timeout=0.2)]

    def advisory_locks(self) -> int:
        row = self._look.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        assert row is not None
        return int(row[0])

    def can_lock(self, table: str) -> bool:
        """Whether all its rows are free."""
        try:
            self._look.execute(f"SELECT 1 FROM {table} FOR UPDATE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            return False
        return True

    def kill(self, session: int) -> None:
        self._look.execute("SELECT pg_terminate_backend(%s, 5000)", [session])


def on_port(url: str, port: int | None) -> str:
    """The same URL at another port."""
    if port is None:
        return url
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
