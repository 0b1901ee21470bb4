"""Where the measurement happens: tables of its own in a PostgreSQL, and a connection of its own to look at them."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["READ", "ROWS", "Place", "PlaceError", "prepared"]

READ = "what is read"

# So many rows of five columns, made while they are read.
ROWS = {
    "sqlite3": """
        WITH RECURSIVE numbers (id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM numbers LIMIT ?)
        SELECT id, 'name ' || id AS name, id * 1.5 AS price, id % 100 AS stock,
               CASE WHEN id % 3 > 0 THEN 'a note' END AS note
        FROM numbers""",
    "asyncpg": """
        SELECT id, 'name ' || id AS name, id * 1.5::float8 AS price, id % 100 AS stock,
               CASE WHEN id % 3 > 0 THEN 'a note' END AS note
        FROM (SELECT generate_series(1, $1::int) AS id) AS numbers""",
}


class PlaceError(Exception):
    """The database cannot be used; the text says why."""


@dataclass(frozen=True)
class Place:
    """`url` as asyncpg takes it; `pool`: how many connections each contender may have."""

    url: str
    schema: str
    pool: int
    witness: Any  # an asyncpg connection that belongs to no contender

    @property
    def sqlalchemy_url(self) -> str:
        return make_url(self.url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)

    @property
    def psycopg_url(self) -> str:
        return make_url(self.url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    @property
    def select(self) -> str:
        return f"SELECT name FROM {self.schema}.source WHERE id = :id"

    @property
    def insert(self) -> str:
        return f"INSERT INTO {self.schema}.written (name) VALUES (:name)"

    @property
    def insert_orphan(self) -> str:
        """A row that breaks a deferred constraint: the statement succeeds, COMMIT fails."""
        return f"INSERT INTO {self.schema}.orphan (name, source) VALUES (:name, 99)"

    async def rows(self, name: str) -> int:
        """How many rows of this contender are kept."""
        query = f"SELECT count(*) FROM {self.schema}.written WHERE name = $1"
        found: int = await self.witness.fetchval(query, name)
        return found

    async def server(self) -> str:
        return str(await self.witness.fetchval("SHOW server_version")).split()[0]


@asynccontextmanager
async def prepared(url: str, pool: int) -> AsyncIterator[Place]:
    """The tables, in a schema that is dropped in the end.

    Unlogged tables, so that a COMMIT does not wait for the disk: what is measured is the library.

    Raises:
        PlaceError: no PostgreSQL lets us in.
    """
    try:
        shown = make_url(url).set(password=None).render_as_string()
        witness = await asyncpg.connect(url, timeout=5)
    except (ArgumentError, ValueError) as error:
        raise PlaceError(f"not a PostgreSQL URL: {error}") from error
    except (OSError, asyncpg.PostgresError) as error:
        raise PlaceError(f"no PostgreSQL at {shown}: {error or type(error).__name__}") from error
    schema = f"transept_bench_{os.getpid()}_{secrets.token_hex(4)}"
    try:
        await witness.execute(
            f"""
            CREATE SCHEMA {schema};
            CREATE UNLOGGED TABLE {schema}.source (id int PRIMARY KEY, name text);
            INSERT INTO {schema}.source VALUES (1, '{READ}');
            CREATE UNLOGGED TABLE {schema}.written (name text NOT NULL);
            CREATE UNLOGGED TABLE {schema}.orphan (
                name text, source int REFERENCES {schema}.source DEFERRABLE INITIALLY DEFERRED
            );
            """
        )
        try:
            yield Place(url, schema, pool, witness)
        finally:
            await witness.execute(f"SET lock_timeout = '10s'; DROP SCHEMA {schema} CASCADE")
    finally:
        await witness.close()
