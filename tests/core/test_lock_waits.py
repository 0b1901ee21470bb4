"""A lock wait that timed out ends its statement on one MariaDB, and the whole transaction on another: who swallows it
is told the truth at the commit, whatever came after.
"""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress

import pytest
from servers import started
from servers.found import own_database
from servers.server import NoServerError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from transept import CommitFailed, unit_of_work
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

pytestmark = pytest.mark.anyio

BEFORE, AFTER = text("INSERT INTO held VALUES (3)"), text("INSERT INTO held VALUES (4)")
WAIT = text("UPDATE held SET v = 20 WHERE v = 2")
DUPLICATE = text("INSERT INTO held VALUES (1)")


@pytest.fixture(scope="session")
def ending():
    """Where the setting is on, which no session can switch: a server of our own, ready within a second."""
    try:
        with started.mariadb({"innodb-rollback-on-timeout": "ON"}) as server, own_database(server) as own:
            yield own
    except NoServerError as error:
        pytest.skip(f"needs MariaDB: {error}")


@pytest.fixture
def going_on(mariadb):
    """Where the setting is off, as by default."""
    return mariadb


@pytest.fixture
def fresh():
    def fresh(server):
        server.execute(
            "DROP TABLE IF EXISTS held", "CREATE TABLE held (v INT PRIMARY KEY)", "INSERT INTO held VALUES (1), (2)"
        )
        return server

    return fresh


def held(server):
    return sorted(v for (v,) in server.execute("SELECT v FROM held"))


def fails(session, statement):
    with pytest.raises(DBAPIError):
        session.execute(statement)


def alone(session):
    fails(session, WAIT)


def then_another_error(session):
    fails(session, WAIT)
    fails(session, DUPLICATE)


def after_another_error(session):
    fails(session, DUPLICATE)
    fails(session, WAIT)


def in_a_savepoint(session):
    with suppress(DBAPIError), session.begin_nested():
        session.execute(WAIT)


def swallowed_in_a_savepoint(session):
    with suppress(DBAPIError), session.begin_nested():
        fails(session, WAIT)


def before_a_savepoint_that_is_undone(session):
    fails(session, WAIT)
    with suppress(DBAPIError), session.begin_nested():
        session.execute(DUPLICATE)


WAYS = pytest.mark.parametrize(
    "swallow",
    [
        alone,
        then_another_error,
        after_another_error,
        in_a_savepoint,
        swallowed_in_a_savepoint,
        before_a_savepoint_that_is_undone,
    ],
)


def work(session, swallow):
    session.execute(text("SET innodb_lock_wait_timeout = 0"))
    session.execute(BEFORE)
    swallow(session)
    session.execute(AFTER)


async def async_unit(server, swallow):
    config = SQLAlchemyAsyncConfig(connection_string=server.url("asyncmy"))
    try:
        async with unit_of_work() as unit:
            await unit.session(config).run_sync(work, swallow)
    finally:
        await config.stop()


async def blocking_unit(server, swallow):
    config = SQLAlchemySyncConfig(connection_string=server.url("pymysql"))

    def in_thread():
        with unit_of_work() as unit:
            work(unit.session(config), swallow)

    try:
        await asyncio.to_thread(in_thread)
    finally:
        config.get_engine().dispose()


COLOURS = pytest.mark.parametrize("in_unit", [async_unit, blocking_unit])


@pytest.fixture
def locked():
    """Another transaction has the row."""

    def lock(server):
        other = server.connect()
        other.begin()
        other.cursor().execute("UPDATE held SET v = 2 WHERE v = 2")
        other.cursor().execute("SELECT v FROM held WHERE v = 2 FOR UPDATE")
        return closing(other)

    return lock


@COLOURS
@WAYS
async def test_where_it_ends_the_transaction_the_commit_fails(ending, fresh, locked, swallow, in_unit):
    with locked(fresh(ending)), pytest.raises(CommitFailed, match=r"Lock wait timeout|SAVEPOINT"):
        await in_unit(ending, swallow)
    assert held(ending) == [1, 2]


@COLOURS
@WAYS
async def test_where_it_ends_its_statement_the_rest_is_kept(going_on, fresh, locked, swallow, in_unit):
    with locked(fresh(going_on)):
        await in_unit(going_on, swallow)
    assert held(going_on) == [1, 2, 3, 4]


def undone(session):
    with suppress(DBAPIError), session.begin_nested():
        session.execute(text("ROLLBACK"))
        session.execute(DUPLICATE)


def released(session):
    with suppress(DBAPIError), session.begin_nested():
        session.execute(text("ROLLBACK"))


@COLOURS
@pytest.mark.parametrize("swallow", [undone, released])
async def test_a_savepoint_that_is_gone_tells_that_its_transaction_is(going_on, fresh, swallow, in_unit):
    """As after a procedure that handles a deadlock, and tells nobody."""
    fresh(going_on)
    with pytest.raises(CommitFailed, match="SAVEPOINT"):
        await in_unit(going_on, swallow)
    assert held(going_on) == [1, 2]


@COLOURS
async def test_a_savepoint_that_the_app_misspells_tells_nothing(going_on, fresh, in_unit):
    def misspelt(session):
        fails(session, text("ROLLBACK TO SAVEPOINT mine"))

    fresh(going_on)
    await in_unit(going_on, misspelt)
    assert held(going_on) == [1, 2, 3, 4]
