"""Only a COMMIT that was sent may be in doubt; whatever fails before it failed, and says so."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from transept import unit_of_work
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, SyncSessionConfig

pytestmark = pytest.mark.anyio

INSERT = text("INSERT INTO held VALUES (1)")


class Refused(OSError):
    """What a listener of the app raises: it cannot write its audit file."""


def refuse(*_):
    raise Refused


class OwnSession(Session):
    """The app's class, with a listener that refuses every commit."""


event.listen(OwnSession, "before_commit", refuse)


@pytest.fixture
def url(tmp_path):
    with closing(sqlite3.connect(tmp_path / "held.db")) as connection:
        connection.execute("CREATE TABLE held (v INTEGER)")
    return f"sqlite:///{tmp_path}/held.db"


def held(url):
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return [v for (v,) in connection.execute("SELECT v FROM held")]


def of_own_class(url):
    return SQLAlchemySyncConfig(connection_string=url, session_config=SyncSessionConfig(class_=OwnSession))


def with_an_engine_listener(url):
    config = SQLAlchemySyncConfig(connection_string=url)
    event.listen(config.get_engine(), "commit", refuse)
    return config


@pytest.mark.parametrize("configured", [of_own_class, with_an_engine_listener])
def test_a_listener_that_refuses_the_commit_is_not_in_doubt(url, configured):
    config = configured(url)
    with pytest.raises(Refused) as raised, unit_of_work() as unit:
        unit.session(config).execute(INSERT)
    assert "all was rolled back" in raised.value.__notes__[0]
    assert held(url) == []
    config.get_engine().dispose()


async def test_neither_is_a_listener_that_refuses_an_async_sessions_commit(postgres):
    postgres.execute("DROP TABLE IF EXISTS held", "CREATE TABLE held (v integer)")
    config = SQLAlchemyAsyncConfig(connection_string=postgres.url("asyncpg"))
    with pytest.raises(Refused):
        async with unit_of_work() as unit:
            session = unit.session(config)
            event.listen(session.sync_session, "before_commit", refuse)
            await session.execute(INSERT)
    assert list(postgres.execute("SELECT v FROM held")) == []


async def test_a_connection_lost_before_the_commit_is_not_in_doubt(postgres):
    """The check found it alive; a listener of the app uses it once more, and loses it."""
    config = SQLAlchemyAsyncConfig(connection_string=postgres.url("asyncpg"))

    def lose(session):
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DBAPIError) as raised:
        async with unit_of_work() as unit:
            session = unit.session(config)
            event.listen(session.sync_session, "before_commit", lose)
            await session.execute(text("SELECT 1"))
    assert "all was rolled back" in raised.value.__notes__[0]
