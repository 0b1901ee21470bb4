"""PostgreSQL."""

from __future__ import annotations

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

    def kill(self, session: int) -> None:
        self._look.execute("SELECT pg_terminate_backend(%s, 5000)", [session])


def on_port(url: str, port: int | None) -> str:
    """The same URL at another port."""
    if port is None:
        return url
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
