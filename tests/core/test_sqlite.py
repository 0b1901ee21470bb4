"""SQLite as a web app needs it: who begins how, and what a file is given at its first connections."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from inspect import isawaitable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from transept import SQLError, current_unit, unit_of_work
from transept.adapters.sqlite import SqliteConfig
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.gate.asgi import ASGIGate

pytestmark = pytest.mark.anyio

INSERT = text("INSERT INTO held VALUES (1)")
COUNT = text("SELECT count(*) FROM held")
HASTY = EngineConfig(connect_args={"timeout": 0.2})


async def test_an_apps_own_session_can_read_while_the_unit_has_written(tmp_path):
    config = SQLAlchemyAsyncConfig(connection_string=f"sqlite+aiosqlite:///{tmp_path}/held.db", engine_config=HASTY)
    own = config.create_session_maker()
    async with own.begin() as session:
        await session.execute(text("CREATE TABLE held (v INTEGER)"))
    async with unit_of_work() as unit:
        await unit.session(config).execute(INSERT)
        async with own() as session:
            assert await session.scalar(COUNT) == 0


def test_an_apps_own_session_can_read_while_a_blocking_unit_has_written(tmp_path):
    config = SQLAlchemySyncConfig(connection_string=f"sqlite:///{tmp_path}/held.db", engine_config=HASTY)
    own = config.create_session_maker()
    with own.begin() as session:
        session.execute(text("CREATE TABLE held (v INTEGER)"))
    with unit_of_work() as unit:
        unit.session(config).execute(INSERT)
        with own() as session:
            assert session.scalar(COUNT) == 0
    config.get_engine().dispose()


@pytest.fixture
def path(tmp_path):
    """A file that is not in WAL mode yet."""
    with closing(sqlite3.connect(tmp_path / "held.db")) as connection:
        connection.executescript("CREATE TABLE held (v INTEGER); INSERT INTO held VALUES (7)")
    return tmp_path / "held.db"


@pytest.fixture
def configured():
    made = []

    def configure(family, where):
        if family == "raw":
            return SqliteConfig(pool_config={"database": f"file:{where}", "uri": True, "timeout": 0.2})
        config, driver = (
            (SQLAlchemySyncConfig, "pysqlite") if family == "blocking" else (SQLAlchemyAsyncConfig, "aiosqlite")
        )
        sign = "&" if "?" in str(where) else "?"
        url = f"sqlite+{driver}:///file:{where}{sign}uri=true"
        made.append(config(connection_string=url, engine_config=HASTY))
        return made[-1]

    yield configure
    for config in made:
        if isinstance(config, SQLAlchemySyncConfig):
            config.get_engine().dispose()


async def value(config, sql, method="POST"):
    """What a request's statement gives."""
    given = []

    async def app(scope, receive, send):
        result = current_unit().session(config).execute(sql if isinstance(config, SqliteConfig) else text(sql))
        given.append((await result if isawaitable(result) else result).scalar())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        pass

    await ASGIGate(app, config)({"type": "http", "method": method, "path": "/"}, None, send)
    return given[0]


FAMILIES = pytest.mark.parametrize("family", ["raw", "blocking", "awaiting"])
CALLED_ON_THE_LOOP = pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")


@FAMILIES
@CALLED_ON_THE_LOOP
async def test_a_read_only_file_can_be_read(configured, family, path):
    config = configured(family, f"{path}?mode=ro")
    with pytest.raises((SQLError, DatabaseError), match="readonly"):
        await value(config, "INSERT INTO held VALUES (8) RETURNING v")
    assert await value(config, "SELECT v FROM held") == 7


@FAMILIES
@CALLED_ON_THE_LOOP
async def test_a_file_that_another_is_reading_is_put_in_wal_mode_by_a_later_connection(configured, family, path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT v FROM held").fetchall()
        assert await value(configured(family, path), "SELECT v FROM held", "GET") == 7
        other.execute("COMMIT")
    assert await value(configured(family, path), "PRAGMA journal_mode") == "wal"


@FAMILIES
@CALLED_ON_THE_LOOP
async def test_other_errors_of_a_first_connection_are_heard(configured, family, tmp_path):
    (tmp_path / "text.db").write_text("this is not a database, but a text of some length" * 99)
    with pytest.raises((SQLError, DatabaseError), match="not a database"):
        await value(configured(family, tmp_path / "text.db"), "SELECT 1")


@FAMILIES
@CALLED_ON_THE_LOOP
async def test_foreign_keys_are_enforced_on_each_connection(configured, family, path):
    assert await value(configured(family, path), "PRAGMA foreign_keys") == 1
