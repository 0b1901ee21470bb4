"""Statements of SQLAlchemy Core in place of SQL text, on each driver."""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import secrets
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from servers.server import Server
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Date,
    DateTime,
    Enum,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Uuid,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.schema import CreateTable

from transept import ParameterError, UsageError, unit_of_work
from transept._bridge import run_now
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.psycopg import PsycopgAsyncConfig, PsycopgSyncConfig
from transept.adapters.pymysql import PyMysqlConfig
from transept.adapters.sqlite import SqliteConfig


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


things = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", String(50)),
    Column("key", Uuid),
    Column("colour", Enum(Colour, native_enum=False)),
    Column("document", JSON),
    Column("at", DateTime(timezone=True)),
    Column("day", Date),
    Column("price", Numeric(10, 2)),
    Column("sold", Boolean),
)
DIALECTS = {"sqlite": sqlite_dialect, "postgres": postgresql, "mariadb": mysql}
DRIVERS: dict[str, tuple[Any, str]] = {
    "sqlite3": (SqliteConfig, "sqlite"),
    "aiosqlite": (AiosqliteConfig, "sqlite"),
    "asyncpg": (AsyncpgConfig, "postgres"),
    "psycopg": (PsycopgSyncConfig, "postgres"),
    "psycopg-async": (PsycopgAsyncConfig, "postgres"),
    "pymysql": (PyMysqlConfig, "mariadb"),
    "asyncmy": (AsyncmyConfig, "mariadb"),
}
AT = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
KEY = uuid.UUID("12345678-1234-5678-1234-567812345678")
ONE = {
    "id": 1,
    "name": "one",
    "key": KEY,
    "colour": Colour.RED,
    "document": {"a": [1, None]},
    "at": AT,
    "day": date(2024, 2, 29),
    "price": Decimal("1.50"),
    "sold": True,
}


@dataclass
class Thing:
    id: int
    name: str | None
    key: uuid.UUID | None
    colour: str | None
    document: dict[str, Any] | None
    at: datetime | None
    day: date | None
    price: Decimal | None
    sold: bool | None


@pytest.fixture(params=DRIVERS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A database of the test's own, with the table."""
    config, kind = DRIVERS[request.param]
    table = str(CreateTable(things).compile(dialect=DIALECTS[kind].dialect()))
    if kind == "sqlite":
        with closing(sqlite3.connect(tmp_path / "things.db")) as connection:
            connection.execute(table)
        yield config(pool_config={"database": str(tmp_path / "things.db")})
        return
    server: Server = request.getfixturevalue(kind)
    name = f"core_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name}")
    try:
        own = replace(server, database=name)
        own.execute(table)
        yield config(pool_config={"dsn": own.dsn})
    finally:
        server.execute(f"DROP DATABASE {name}" + (" WITH (FORCE)" if kind == "postgres" else ""))


def of_each_colour(body: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """A test whose body runs on an event loop, or without one if the database is a blocking one."""

    @functools.wraps(body)
    def test(database: Any) -> None:
        async def whole() -> None:
            try:
                await body(database)
            finally:
                await database.stop()

        if database.blocking:
            run_now(whole())
        else:
            asyncio.run(whole())

    return test


async def done(given: Any) -> Any:
    """What a call of either colour returns."""
    return await given if inspect.isawaitable(given) else given


@asynccontextmanager
async def session_of(database: Any) -> AsyncIterator[Any]:
    if database.blocking:
        with unit_of_work() as unit:
            yield unit.session(database)
    else:
        async with unit_of_work() as unit:
            yield unit.session(database)


@of_each_colour
async def test_values_go_in_through_the_types_of_their_columns(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute(insert(things).values(ONE)))
        (found,) = await done(session.select(select(things), schema_type=Thing))
        at = found.at if found.at.tzinfo else found.at.replace(tzinfo=UTC)
        assert at == AT
        assert (found.id, found.name, found.key, found.colour) == (1, "one", KEY, "RED")
        assert found.document == {"a": [1, None]}
        assert (found.day, found.price, found.sold) == (date(2024, 2, 29), Decimal("1.50"), True)


@of_each_colour
async def test_values_are_compared_through_the_types_of_their_columns(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute(insert(things).values(ONE)))
        for condition in (
            things.c.key == KEY,
            things.c.colour == Colour.RED,
            things.c.day == date(2024, 2, 29),
            things.c.sold.is_(True),
            things.c.price == Decimal("1.50"),
            things.c.at == AT,
        ):
            assert await done(session.select_value(select(things.c.id).where(condition))) == 1


@of_each_colour
async def test_an_insert_takes_its_values_by_keyword(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute(insert(things), id=1, name="one", key=KEY))
        await done(session.execute(insert(things), {"id": 2, "colour": Colour.BLUE}))
        assert await done(session.select(select(things.c.id, things.c.name).order_by(things.c.id))) == [
            {"id": 1, "name": "one"},
            {"id": 2, "name": None},
        ]


@of_each_colour
async def test_many_sets_of_values_go_in_at_once(database: Any) -> None:
    async with session_of(database) as session:
        sets = [{**ONE, "id": i, "name": f"{i}%"} for i in range(1, 4)]
        await done(session.execute_many(insert(things), sets))
        assert await done(session.select_value(select(func.count()).select_from(things))) == 3
        named = select(things.c.name).where(things.c.key == KEY, things.c.id == 2)
        assert await done(session.select_value(named)) == "2%"


@of_each_colour
async def test_in_takes_lists_of_any_length(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute_many(insert(things), [{"id": i, "name": str(i)} for i in range(1, 6)]))
        for wanted in ([1, 3], [2], []):
            found = select(things.c.id).where(things.c.id.in_(wanted)).order_by(things.c.id)
            assert [row["id"] for row in await done(session.select(found))] == wanted
        late = select(things.c.id).where(things.c.id.in_(bindparam("ids", expanding=True))).order_by(things.c.id)
        for wanted in ([4, 5], [1, 2, 3], []):
            assert [row["id"] for row in await done(session.select(late, ids=wanted))] == wanted


@of_each_colour
async def test_bind_parameters_are_given_by_name(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute(insert(things).values(ONE)))
        wanted = select(things.c.name).where(things.c.key == bindparam("key"), things.c.id < bindparam("top"))
        assert await done(session.select_value(wanted, key=KEY, top=2)) == "one"
        assert await done(session.select_value_or_none(wanted, {"key": KEY, "top": 1})) is None
        with pytest.raises(UsageError, match="by name"):
            await done(session.execute(wanted, KEY, 2))


@of_each_colour
async def test_update_and_delete_tell_how_many_rows_they_touched(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute_many(insert(things), [{"id": i, "name": str(i)} for i in range(1, 6)]))
        changed = update(things).where(things.c.id > 2).values(name="%s :name", document={"x": 1})
        assert (await done(session.execute(changed))).rows_affected == 3
        assert (await done(session.execute(delete(things).where(things.c.name == "%s :name")))).rows_affected == 3
        assert await done(session.select_value(select(func.count()).select_from(things))) == 2


@of_each_colour
async def test_an_update_takes_new_values_and_conditions_by_name(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute(insert(things).values(ONE)))
        changed = update(things).where(things.c.id == bindparam("wanted"))
        await done(session.execute(changed, wanted=1, name="new", document=[1]))
        assert await done(session.select_value(select(things.c.name))) == "new"


@of_each_colour
async def test_text_takes_its_values_by_name(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute(text("INSERT INTO things (id, name) VALUES (:id, :name)"), id=1, name="100%"))
        found = text("SELECT name FROM things WHERE name LIKE '1%' AND id IN :ids").bindparams(
            bindparam("ids", expanding=True)
        )
        assert await done(session.select(found, ids=[1, 2])) == [{"name": "100%"}]


@of_each_colour
async def test_rows_are_streamed(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute_many(insert(things), [{"id": i} for i in range(1, 26)]))
        rows = session.stream(select(things.c.id).where(things.c.id > 1).order_by(things.c.id), chunk_size=10)
        found = [row["id"] async for row in rows] if hasattr(rows, "__aiter__") else [row["id"] for row in rows]
        assert found == list(range(2, 26))


@of_each_colour
async def test_a_page_comes_with_the_total(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute_many(insert(things), [{"id": i} for i in range(1, 26)]))
        page = select(things.c.id).where(things.c.id > bindparam("low")).order_by(things.c.id).limit(2).offset(3)
        rows, total = await done(session.select_with_total(page, low=5))
        assert (rows, total) == ([{"id": 9}, {"id": 10}], 20)
        both = select(things.c.id).union_all(select(things.c.id)).limit(1)
        assert (await done(session.select_with_total(both)))[1] == 50


@of_each_colour
async def test_a_page_of_sql_text_comes_with_the_total(database: Any) -> None:
    async with session_of(database) as session:
        await done(session.execute_many(insert(things), [{"id": i} for i in range(1, 26)]))
        sql = "SELECT id FROM things WHERE id IN (:ids) OR id > :low ORDER BY id LIMIT :size OFFSET :skip"
        rows, total = await done(session.select_with_total(sql, ids=[1, 2], low=20, size=2, skip=1))
        assert (rows, total) == ([{"id": 2}, {"id": 21}], 7)
        rows, total = await done(session.select_with_total("SELECT id FROM things"))
        assert len(rows) == total == 25


@of_each_colour
async def test_a_bind_parameter_without_a_value_and_a_value_for_none_are_refused(database: Any) -> None:
    wanted = select(things).where(things.c.id == bindparam("wanted"))
    async with session_of(database) as session:
        with pytest.raises(ParameterError, match=r"A value is required for bind parameter 'wanted'\.\n"):
            await done(session.select(wanted))
        with pytest.raises(ParameterError, match="does not use 'wantd'"):
            await done(session.select(wanted, wanted=1, wantd=1))
        with pytest.raises(ParameterError, match="does not use 'nmae'"):
            await done(session.execute(insert(things), id=1, nmae="one"))


@of_each_colour
async def test_a_text_without_a_statement_is_refused(database: Any) -> None:
    async with session_of(database) as session:
        for empty in ("", " -- nothing\n", "/* nothing */;;", text("")):
            with pytest.raises(UsageError, match="there is no statement in"):
                await done(session.execute(empty))
            with pytest.raises(UsageError, match="there is no statement in"):
                await done(session.select(empty))
        assert await done(session.select_value("SELECT 1")) == 1


@of_each_colour
async def test_what_is_no_statement_is_refused(database: Any) -> None:
    async with session_of(database) as session:
        with pytest.raises(UsageError, match="neither"):
            await done(session.execute(object()))
