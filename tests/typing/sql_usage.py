"""SQL-first sessions, as type checkers see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type
from uuid import UUID

from starlette.requests import Request

from transept import Registry
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.extensions.starlette import Transept
from transept.sql.connection import BlockingConnection, Connection
from transept.sql.result import Result
from transept.sql.session import BlockingSQLSession, SQLSession


@dataclass
class User:
    id: UUID
    name: str


registry = Registry()
shop = registry.add_config(AsyncpgConfig(pool_config={"dsn": "postgresql://localhost/shop"}), name="shop")
notes = registry.add_config(SqliteConfig(pool_config={"database": ":memory:"}), name="notes")
assert_type(shop, AsyncpgConfig)
db = Transept(registry)


async def awaited(request: Request) -> None:
    session = db.get_session(request, shop)
    assert_type(session, SQLSession)
    assert_type(db.get_connection(request, shop), Connection)
    assert_type(await session.execute("SELECT 1"), Result)
    assert_type(await session.select("SELECT * FROM users", schema_type=User), list[User])
    assert_type(await session.select_one_or_none("SELECT * FROM users WHERE id = ?", 1, schema_type=User), User | None)
    assert_type(await session.select_value("SELECT id FROM users", value_type=UUID), UUID)
    rows, total = await session.select_with_total("SELECT * FROM users LIMIT 3", schema_type=User)
    assert_type(rows, list[User])
    assert_type(total, int)
    async for row in session.stream("SELECT * FROM users", schema_type=User):
        assert_type(row, User)
    async with session.transaction():
        pass
    async with registry.provide_session(shop) as own:
        assert_type(own, SQLSession)


def blocking(request: Request) -> None:
    session = db.get_session(request, notes)
    assert_type(session, BlockingSQLSession)
    assert_type(db.get_connection(request, notes), BlockingConnection)
    assert_type(session.execute("SELECT 1").all(schema_type=User), list[User])
    with registry.provide_connection(notes) as connection:
        assert_type(connection, BlockingConnection)
