"""What a sandbox cannot do raises at once and says why; what a test leaves open fails it and names the line."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from contextvars import Context

import httpx
import pytest
from contract.families.alchemy_async import AlchemyAsync
from contract.families.alchemy_sync import AlchemySync
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.testclient import TestClient
from testing_kit.conftest import Cell, Use, cells

from transept import OutsideScope, UsageError, new_non_ctx_session, run_in_new_ctx, transaction, unit_of_work
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, SyncSessionConfig
from transept.testing import NestedInSandbox, Sandbox, SandboxBusy, SandboxError, SandboxLeak, SandboxLost
from transept.transaction import new_unit_of_work

pytestmark = pytest.mark.anyio

COUNT = text("SELECT count(*) FROM held")
INSERT = text("INSERT INTO held VALUES (1)")
AWAITING = [name for name in cells() if name.startswith(("alchemy-async", "asyncpg"))]
BLOCKING = [name for name in cells() if name not in AWAITING]


def here(offset: int = 0) -> str:
    """This file and the line of the caller, as errors name it."""
    frame = inspect.currentframe().f_back
    return f"{__file__}:{frame.f_lineno + offset} in {frame.f_code.co_name}"


# A unit of its own inside one that has the connection.


@pytest.mark.parametrize("cell", AWAITING, indirect=True)
async def test_a_new_unit_inside_an_open_one_raises_and_names_its_line(cell):
    database = cell.database()
    async with Sandbox(database, patience=60) as sandbox:
        async with unit_of_work() as unit:
            use = Use(cell, unit.session(database))
            line = here(1)
            await use.insert(1)
            async with transaction("requires_new") as inner:
                with pytest.raises(NestedInSandbox, match="in production its commit stands alone") as raised:
                    await Use(cell, inner.session(database)).insert(2)
        assert raised.value.database == "default"
        assert line.split(" in ")[0].rsplit(":", 1)[0] in raised.value.holder
        async with sandbox.session(database) as session:
            assert await Use(cell, session).count() == 1


@pytest.mark.parametrize("cell", BLOCKING, indirect=True)
def test_a_blocking_new_unit_inside_an_open_one_raises(cell):
    database = cell.database()
    insert = INSERT if cell.family.name == "alchemy-sync" else str(INSERT)
    with Sandbox(database, patience=60), unit_of_work() as unit:
        unit.session(database).execute(insert)
        with new_unit_of_work() as inner, pytest.raises(NestedInSandbox):
            inner.session(database).execute(insert)


async def test_sessions_outside_of_the_context_and_new_contexts_raise_too(postgres_cell):
    database = postgres_cell.database()

    async def alone() -> None:
        async with unit_of_work() as unit:
            await unit.session(database).execute(INSERT)

    async with Sandbox(database, patience=60), unit_of_work() as unit:
        await unit.session(database).execute(INSERT)
        with pytest.raises(NestedInSandbox):
            await asyncio.create_task(run_in_new_ctx(alone))
        with pytest.raises(NestedInSandbox):
            async with new_non_ctx_session(database) as session:
                await session.execute(INSERT)


async def test_siblings_are_no_parents(postgres_cell):
    """New contexts under an idle unit wait for each other."""
    database = postgres_cell.database()

    async def alone() -> None:
        async with unit_of_work() as unit:
            await unit.session(database).execute(INSERT)
            await asyncio.sleep(0.01)

    async def without_context() -> None:
        async with new_non_ctx_session(database) as session:
            await session.execute(INSERT)
            await asyncio.sleep(0.01)
            await session.commit()

    async with Sandbox(database) as sandbox:
        async with unit_of_work():
            await asyncio.gather(*[run_in_new_ctx(alone) for _ in range(3)], *[without_context() for _ in range(3)])
        async with sandbox.session(database) as session:
            assert await session.scalar(COUNT) == 6


@pytest.mark.parametrize("client", ["TestClient", "ASGITransport"])
async def test_the_app_called_inside_the_tests_own_block_raises(postgres_cell, client):
    database = postgres_cell.database()
    raised = []

    async def write(use: Use) -> None:
        try:
            await use.insert(1)
        except NestedInSandbox as error:
            raised.append(error)

    app = postgres_cell.app(database, {"write": write})
    async with Sandbox(database, patience=60) as sandbox, sandbox.session(database) as session:
        await session.execute(INSERT)
        if client == "TestClient":
            await asyncio.to_thread(TestClient(app).post, "/write")
        else:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as caller:
                await caller.post("/write")
    assert len(raised) == 1


# Waiting.


@pytest.mark.parametrize("cell", AWAITING, indirect=True)
async def test_who_waits_too_long_is_told_who_has_it(cell):
    database = cell.database()
    begun, done = asyncio.Event(), asyncio.Event()

    async def holds() -> None:
        async with unit_of_work() as unit:
            await Use(cell, unit.session(database)).insert(1)
            begun.set()
            await done.wait()

    async def waits() -> None:
        async with unit_of_work() as unit:
            await Use(cell, unit.session(database)).insert(2)

    async with Sandbox(database, patience=0.1) as sandbox:
        holder = asyncio.create_task(holds())
        await begun.wait()
        with pytest.raises(SandboxBusy, match=r"did not end within 0\.1 s") as raised:
            await asyncio.create_task(waits())
        assert __file__ in raised.value.holder
        assert "holds" in raised.value.holder or "insert" in raised.value.holder
        done.set()
        await holder
        await waits()
        async with sandbox.session(database) as session:
            assert await Use(cell, session).count() == 2


@pytest.mark.parametrize("cell", cells(family=AlchemySync), indirect=True)
def test_a_thread_that_waits_too_long_is_told_who_has_it(cell):
    database = cell.database()
    begun, done = threading.Event(), threading.Event()

    def holds() -> None:
        with unit_of_work() as unit:
            unit.session(database).execute(INSERT)
            begun.set()
            done.wait()

    with Sandbox(database, patience=0.1):
        holder = threading.Thread(target=holds)
        holder.start()
        begun.wait()
        with pytest.raises(SandboxBusy, match="in holds"), unit_of_work() as unit:
            unit.session(database).execute(INSERT)
        done.set()
        holder.join()


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
async def test_a_blocking_session_on_the_loop_never_waits_there(engines):
    database = AlchemySync().database(engines("postgres"), "psycopg", None)
    begun, done = threading.Event(), threading.Event()

    def holds() -> None:
        with unit_of_work() as unit:
            unit.session(database).execute(INSERT)
            begun.set()
            done.wait()

    async with Sandbox(database, patience=60):
        holder = asyncio.create_task(asyncio.to_thread(holds))
        await asyncio.to_thread(begun.wait)
        async with unit_of_work() as unit:
            with pytest.raises(SandboxBusy, match="on the event loop's thread"):
                unit.session(database).execute(INSERT)
        done.set()
        await holder
    await database.stop()


async def test_who_is_cancelled_while_waiting_waits_no_more(postgres_cell):
    database = postgres_cell.database()

    async def waits() -> None:
        async with new_unit_of_work() as unit:
            await unit.session(database).execute(INSERT)

    async with Sandbox(database) as sandbox:
        async with unit_of_work() as unit:
            await unit.session(database).execute(INSERT)
            waiter = asyncio.get_running_loop().create_task(waits(), context=Context())
            await asyncio.sleep(0.05)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        async with sandbox.session(database) as session:
            assert await session.scalar(COUNT) == 1


# Cancelled, killed, dropped.


@pytest.mark.parametrize("cell", [name for name in AWAITING if "postgres" in name], indirect=True)
async def test_a_unit_that_is_cancelled_in_a_statement_is_undone_alone(cell):
    database = cell.database()

    async def slow() -> None:
        async with unit_of_work() as unit:
            use = Use(cell, unit.session(database))
            await use.insert(2)
            await use.run("SELECT pg_sleep(0.3)")

    async with Sandbox(database) as sandbox:
        async with sandbox.session(database) as session:
            await Use(cell, session).insert(1)
        task = asyncio.create_task(slow())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with sandbox.session(database) as session:
            assert await Use(cell, session).count() == 1
    assert cell.engine.held() == []


@pytest.mark.parametrize("cell", [name for name in cells() if "postgres" in name or "mariadb" in name], indirect=True)
def test_a_lost_connection_fails_the_test_and_the_next_one_gets_another(cell):
    database = cell.database()

    async def kill(use: Use) -> None:
        cell.engine.kill(await cell.family.value(use.session, cell.engine.own_session()))
        await use.insert(1)

    async def write(use: Use) -> None:
        await use.insert(1)

    app = cell.app(database, {"kill": kill, "write": write})
    with pytest.raises(SandboxLost), Sandbox(database):
        killed, next_one = cell.post(app, "kill", "write")
        assert (killed, next_one) == (503 if cell.family.name == "asyncpg" else 500, 500)
    with Sandbox(database):
        assert cell.post(app, "write") == [200]


@pytest.mark.parametrize("cell", cells(engine="mariadb"), indirect=True)
def test_a_table_made_in_mariadb_commits_and_fails_the_test(cell):
    async def write(use: Use) -> None:
        await use.insert(1)

    async def make(use: Use) -> None:
        await use.run("CREATE TABLE IF NOT EXISTS made_in_a_sandbox (v integer)")

    database = cell.database()
    app = cell.app(database, {"write": write, "make": make})
    with pytest.raises(SandboxLost, match="commit at every CREATE"), Sandbox(database):
        assert cell.post(app, "write", "make", "write") == [200, 500, 500]


@pytest.mark.parametrize("cell", cells(engine="mariadb"), indirect=True)
def test_a_deadlock_in_mariadb_fails_the_test(cell):
    async def deadlock(use: Use) -> None:
        statements = cell.engine.ending()
        try:
            for statement in statements:
                await use.run(statement)
        except cell.family.statement_error:
            return
        finally:
            statements.close()

    async def write(use: Use) -> None:
        await use.insert(1)

    database = cell.database()
    app = cell.app(database, {"write": write, "deadlock": deadlock})
    with pytest.raises(SandboxLost), Sandbox(database):
        assert cell.post(app, "write", "deadlock") == [200, 500]
    assert cell.engine.held() == []


@pytest.mark.parametrize("cell", cells(engine="sqlite"), indirect=True)
def test_an_error_that_ends_sqlites_transaction_fails_the_test(cell):
    async def end(use: Use) -> None:
        try:
            for statement in cell.engine.ending():
                await use.run(statement)
        except cell.family.statement_error:
            await use.insert(2)

    async def write(use: Use) -> None:
        await use.insert(1)

    database = cell.database()
    app = cell.app(database, {"write": write, "end": end})
    with pytest.raises(SandboxLost), Sandbox(database):
        assert cell.post(app, "write", "end", "write") == [200, 500, 500]
    assert cell.engine.held() == []


def test_statements_that_are_kept_at_once_are_refused(postgres_cell):
    database = postgres_cell.database()

    async def autocommit(use: Use) -> None:
        await use.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await use.insert(1)

    async def serializable(use: Use) -> None:
        await use.session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        await use.insert(1)

    async def two_phase(use: Use) -> None:
        await use.run("PREPARE TRANSACTION 'x'")

    handlers = {"autocommit": autocommit, "serializable": serializable, "two_phase": two_phase}
    app = postgres_cell.app(database, handlers)
    with Sandbox(database) as sandbox:
        client = TestClient(app)
        with pytest.raises(SandboxError, match="AUTOCOMMIT"):
            client.post("/autocommit")
        with pytest.raises(SandboxError, match="two-phase"):
            client.post("/two_phase")
        assert client.post("/serializable").status_code == 200
        assert asyncio.run(counted(sandbox, database)) == 1
    assert postgres_cell.engine.held() == []


@pytest.mark.parametrize("cell", ["alchemy-sync-postgres-psycopg", "alchemy-sync-mariadb-pymysql"], indirect=True)
def test_two_phase_sessions_are_refused(cell):
    database = SQLAlchemySyncConfig(
        connection_string=cell.engine.url(cell.driver), session_config=SyncSessionConfig(twophase=True)
    )
    with Sandbox(database), unit_of_work() as unit, pytest.raises(SandboxError, match="two-phase"):
        unit.session(database).execute(INSERT)


async def counted(sandbox: Sandbox, database) -> int:
    async with sandbox.session(database) as session:
        return await session.scalar(COUNT)


# What is left open.


@pytest.mark.parametrize("cell", AWAITING, indirect=True)
async def test_a_transaction_left_open_fails_the_test_and_names_the_line(cell):
    database = cell.database()
    unit = await (block := unit_of_work()).__aenter__()
    with pytest.raises(SandboxLeak, match="End it: leave its block") as raised:
        async with Sandbox(database, leak_after=0.05):
            session = unit.session(database)
            if cell.family.name == "asyncpg":
                line = here(1)
                await session.execute(str(INSERT))
            else:
                line = here(1)
                await session.execute(INSERT)
    [leak] = raised.value.leaks
    assert line in leak
    assert "'default'" in leak
    with pytest.raises(OutsideScope, match="sandbox"):
        await Use(cell, session).insert(2)
    with pytest.raises(OutsideScope, match="sandbox"):
        await block.__aexit__(None, None, None)
    assert cell.engine.held() == []
    assert cell.engine.open_transactions() == 0


@pytest.mark.parametrize("cell", BLOCKING, indirect=True)
def test_a_blocking_transaction_left_open_fails_the_test_and_names_the_line(cell):
    database = cell.database()
    unit = (block := unit_of_work()).__enter__()
    insert = INSERT if cell.family.name == "alchemy-sync" else str(INSERT)
    with pytest.raises(SandboxLeak) as raised, Sandbox(database, leak_after=0.05):
        line = here(1)
        unit.session(database).execute(insert)
    assert line in raised.value.leaks[0]
    with pytest.raises(OutsideScope, match="sandbox"):
        block.__exit__(None, None, None)
    assert cell.engine.held() == []
    assert cell.engine.open_transactions() == 0


async def test_a_leak_is_a_note_on_the_tests_own_error(postgres_cell):
    database = postgres_cell.database()
    block = unit_of_work()
    with pytest.raises(ZeroDivisionError) as raised:
        async with Sandbox(database, leak_after=0.05):
            unit = await block.__aenter__()
            await unit.session(database).execute(INSERT)
            raise ZeroDivisionError
    assert "still has a transaction open" in raised.value.__notes__[0]
    with pytest.raises(OutsideScope, match="sandbox"):
        await block.__aexit__(None, None, None)


async def test_a_task_that_ends_in_time_is_no_leak(postgres_cell):
    database = postgres_cell.database()
    begun = asyncio.Event()

    async def late() -> None:
        async with new_unit_of_work() as unit:
            await unit.session(database).execute(INSERT)
            begun.set()
            await asyncio.sleep(0.1)

    async with Sandbox(database, leak_after=2):
        task = asyncio.create_task(late())
        await begun.wait()
    await task
    assert postgres_cell.engine.held() == []


async def test_a_session_that_is_forgotten_gives_its_part_back(postgres_cell):
    """As SQLAlchemy does with a pooled connection whose session became garbage: with a warning."""
    database = postgres_cell.database()

    async def begin() -> None:
        unit = await unit_of_work().__aenter__()
        await unit.session(database).execute(INSERT)

    async def forget() -> None:
        await asyncio.create_task(begin())
        await asyncio.sleep(0)
        gc.collect()

    async with Sandbox(database) as sandbox:
        with pytest.warns(Warning, match="non-checked-in connection"):
            await forget()
        async with sandbox.session(database) as session:
            assert await session.scalar(COUNT) == 0


def test_a_session_of_a_sandbox_that_is_over(postgres_cell):
    database = postgres_cell.database()

    async def work() -> None:
        async with unit_of_work() as unit:
            async with Sandbox(database):
                session = unit.session(database)
            with pytest.raises(OutsideScope, match="is over"):
                await session.execute(INSERT)

    asyncio.run(work())


def test_one_sandbox_at_a_time(postgres_cell):
    database = postgres_cell.database()
    with Sandbox(database), pytest.raises(UsageError, match="already"), Sandbox(database):
        pass
    with Sandbox(database):
        pass
    with pytest.raises(UsageError, match="needs the databases"):
        Sandbox()
    with pytest.raises(UsageError, match="not in this sandbox"), Sandbox(database) as sandbox:
        sandbox.session(AlchemyAsync().database(postgres_cell.engine, "asyncpg", None, bind_key="other"))


# Constraint modes, and what a pool has.


async def test_constraints_begin_each_unit_with_the_mode_they_were_made_with(postgres_cell):
    engine = postgres_cell.engine
    engine._look.execute(
        "DROP TABLE IF EXISTS modes; CREATE TABLE modes ("
        "d integer CONSTRAINT modes_d UNIQUE DEFERRABLE INITIALLY DEFERRED, "
        "i integer CONSTRAINT modes_i UNIQUE DEFERRABLE INITIALLY IMMEDIATE)"
    )
    database = postgres_cell.database()
    outcomes = []

    async def unit(*statements: str) -> None:
        try:
            async with new_unit_of_work() as one:
                session = one.session(database)
                for statement in statements:
                    outcomes.append("begun")
                    await session.execute(text(statement))
                outcomes.append("at commit")
            outcomes.append("kept")
        except Exception as error:
            outcomes.append(type(error).__name__)

    both = ("INSERT INTO modes VALUES ({0}, NULL)", "INSERT INTO modes VALUES ({0}, NULL)")
    async with Sandbox(database):
        for n in range(2):
            await unit(*[one.format(n) for one in both])
            assert outcomes[-2:] == ["at commit", "IntegrityError"]
        await unit("SET CONSTRAINTS modes_i DEFERRED", *["INSERT INTO modes VALUES (NULL, 1)"] * 2)
        assert outcomes[-2:] == ["at commit", "IntegrityError"]
        await unit("INSERT INTO modes VALUES (NULL, 2)", "INSERT INTO modes VALUES (NULL, 2)")
        assert outcomes[-2:] == ["begun", "IntegrityError"]
        await unit("SET CONSTRAINTS ALL DEFERRED", "INSERT INTO modes VALUES (5, 5)", "INSERT INTO modes VALUES (6, 6)")
        assert outcomes[-1] == "kept"
        await unit(*[one.format(9) for one in both])
        assert outcomes[-2:] == ["at commit", "IntegrityError"]
        await unit("TRUNCATE modes")
        assert outcomes[-1] == "kept"
    engine._look.execute("DROP TABLE modes")


def test_rows_that_dangled_before_are_not_the_tests_fault(cell_sqlite_file):
    cell = cell_sqlite_file
    cell.engine._look.executescript("PRAGMA foreign_keys = OFF; INSERT INTO child VALUES (42)")

    async def write(use: Use) -> None:
        await use.insert(1)

    database = cell.database()
    app = cell.app(database, {"write": write})
    with Sandbox(database):
        assert cell.post(app, "write") == [200]


@pytest.fixture
def cell_sqlite_file(engines):
    engine = engines("sqlite")
    engine.reset()
    yield Cell(AlchemySync(), engine, "pysqlite")
    engine.reset()


def test_a_small_pool_and_a_full_one(postgres_cell):
    """The sandbox's connection is not one of the pool's."""
    url = postgres_cell.engine.url("asyncpg")
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    database = SQLAlchemyAsyncConfig(engine_instance=engine, commit_mode="autocommit")

    async def work() -> None:
        async with Sandbox(database), engine.connect() as own:
            await own.execute(text("SELECT 1"))
            async with unit_of_work() as unit:
                await unit.session(database).execute(INSERT)
        assert engine.pool.checkedout() == 0
        await engine.dispose()

    asyncio.run(work())
    config = EngineConfig(pool_size=1)
    assert SQLAlchemyAsyncConfig(connection_string=url, engine_config=config)._source is None


async def test_a_connection_out_of_the_engines_own_pool_is_a_leak(postgres_cell):
    """The app's own `engine.connect()` goes past the sandbox; but it must come back."""
    engine = create_async_engine(postgres_cell.engine.url("asyncpg"))
    database = SQLAlchemyAsyncConfig(engine_instance=engine, commit_mode="autocommit")
    left = []
    with pytest.raises(SandboxLeak) as raised:
        async with Sandbox(database):
            async with unit_of_work() as unit:
                await unit.session(database).execute(INSERT)
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            line = here(1)
            left.append(await engine.connect())
    [leak] = raised.value.leaks
    assert line in leak
    await left[0].close()
    assert not engine.pool.dispatch.checkout
    await engine.dispose()


@pytest.mark.parametrize("cell", [name for name in AWAITING if "memory" not in name], indirect=True)
@pytest.mark.parametrize("connected", [False, True])
async def test_who_is_cancelled_at_any_moment_leaves_nothing(cell, connected):
    """Also where SAVEPOINT or the statement itself still runs, and ends after the task."""
    database = cell.database()

    async def work() -> None:
        async with new_unit_of_work() as unit:
            await Use(cell, unit.session(database)).insert(1)
            await asyncio.sleep(1)

    for delay in range(0, 40, 2) if connected else range(0, 40000, 4000):
        async with Sandbox(database) as sandbox:
            if connected:
                async with sandbox.session(database) as session:
                    await Use(cell, session).count()
            task = asyncio.create_task(work())
            if connected:
                for _ in range(delay):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(delay / 1e6)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            async with sandbox.session(database) as session:
                assert await Use(cell, session).count() == 0
    assert cell.engine.open_transactions() == 0


def test_two_databases_of_one_sqlite_file_say_what_is_wrong(engines):
    engine = engines("sqlite")
    one = AlchemySync().database(engine, "pysqlite", None)
    settings = EngineConfig(connect_args={"timeout": 0.1})
    two = SQLAlchemySyncConfig(connection_string=engine.url("pysqlite"), bind_key="two", engine_config=settings)
    with Sandbox(one, two) as sandbox:
        with sandbox.session(one) as session:
            session.execute(INSERT)
        with pytest.raises(SandboxError, match="on the same file"), sandbox.session(two) as session:
            session.execute(INSERT)
        with sandbox.session(one) as session:
            assert session.scalar(COUNT) == 1
    assert engine.held() == []
