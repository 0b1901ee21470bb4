"""What holds in a sandbox, for every kind of database."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from starlette.responses import PlainTextResponse
from testing_kit.conftest import Cell, Use, cells

from transept import CommitFailed, after_commit, after_rollback
from transept._bridge import run_now
from transept.testing import Sandbox

pytestmark = pytest.mark.anyio


async def write(use: Use) -> None:
    await use.insert(1)


async def refuse(use: Use) -> int:
    await use.insert(2)
    return 409


async def fail(use: Use) -> None:
    await use.insert(3)
    raise RuntimeError("the handler failed")


def seen(cell: Cell, sandbox: Sandbox, database) -> int:
    """How many rows the test itself sees."""
    if cell.blocking:
        with sandbox.session(database) as session:
            return run_now(Use(cell, session).count())

    async def look() -> int:
        async with sandbox.session(database) as session:
            return await Use(cell, session).count()

    return asyncio.run(look())


def test_what_the_app_commits_is_seen_inside_and_nowhere_else(cell):
    database = cell.database()
    app = cell.app(database, {"write": write})
    with Sandbox(database) as sandbox:
        assert cell.post(app, "write", "write") == [200, 200]
        assert seen(cell, sandbox, database) == 2
        if "peek" in cell.engine.can:
            assert cell.engine.held() == []
    assert cell.engine.held() == []
    assert cell.engine.open_transactions() == 0


def test_what_the_app_rolls_back_is_gone_inside_too(cell):
    database = cell.database()
    app = cell.app(database, {"write": write, "refuse": refuse, "fail": fail})
    with Sandbox(database) as sandbox:
        assert cell.post(app, "write", "refuse", "fail", "write") == [200, 409, 500, 200]
        assert seen(cell, sandbox, database) == 2
    assert cell.engine.held() == []


def test_the_next_sandbox_begins_empty(cell):
    database = cell.database()
    app = cell.app(database, {"write": write})
    for _ in range(2):
        with Sandbox(database) as sandbox:
            assert cell.post(app, "write") == [200]
            assert seen(cell, sandbox, database) == 1


def test_without_a_sandbox_the_app_commits(cell):
    database = cell.database()
    app = cell.app(database, {"write": write})
    with Sandbox(database):
        pass
    assert cell.post(app, "write") == [200]
    assert cell.engine.held() == [1]


def test_the_apps_own_commit_and_rollback_are_parts_of_it(cell):
    async def by_hand(use: Use) -> None:
        await use.insert(1)
        await use.commit()
        await use.insert(2)
        await use.rollback()
        await use.insert(3)

    database = cell.database(commit_mode="manual")
    app = cell.app(database, {"by_hand": by_hand})
    with Sandbox(database) as sandbox:
        assert cell.post(app, "by_hand") == [200]
        assert seen(cell, sandbox, database) == 1
    assert cell.engine.held() == []


def test_what_the_test_arranges_is_there_for_the_app(cell):
    counts = []

    async def look(use: Use) -> None:
        counts.append(await use.count())

    database = cell.database()
    app = cell.app(database, {"look": look})

    async def arrange() -> None:
        async with sandbox.session(database) as session:
            await Use(cell, session).insert(7)

    with Sandbox(database) as sandbox:
        if cell.blocking:
            with sandbox.session(database) as session:
                run_now(Use(cell, session).insert(7))
        else:
            asyncio.run(arrange())
        cell.post(app, "look")
    assert counts == [1]
    assert cell.engine.held() == []


def test_hooks_run_at_the_apps_commit_and_rollback(cell):
    heard = []

    async def hooked(use: Use) -> int:
        await use.insert(1)
        after_commit(lambda: heard.append("committed"))
        after_rollback(lambda: heard.append("rolled back"))
        return 200 if len(heard) == 0 else 400

    database = cell.database()
    app = cell.app(database, {"hooked": hooked})
    with Sandbox(database):
        cell.post(app, "hooked", "hooked")
        assert heard == ["committed", "rolled back"]


DEFERRED = [*cells(engine="postgres"), *cells(engine="sqlite")]


@pytest.mark.parametrize("cell", DEFERRED, indirect=True)
def test_deferred_constraints_are_checked_at_the_gates_commit(cell):
    async def violate(use: Use) -> None:
        await use.insert(1)
        await use.violate()

    async def conflict(request, error) -> PlainTextResponse:
        return PlainTextResponse(status_code=409)

    handlers = {cell.family.late_error: conflict}
    database = cell.database()
    app = cell.app(database, {"violate": violate, "write": write}, exception_handlers=handlers)
    with Sandbox(database) as sandbox:
        assert cell.post(app, "write", "violate", "write", "violate") == [200, 409, 200, 409]
        assert seen(cell, sandbox, database) == 2


@pytest.mark.parametrize("cell", DEFERRED, indirect=True)
def test_deferred_constraints_are_checked_at_the_apps_own_commit(cell):
    raised = []

    async def violate(use: Use) -> None:
        await use.violate()
        try:
            await use.commit()
        except cell.family.late_error as error:
            raised.append(type(error).__name__)
            await use.rollback()
        await use.insert(1)

    database = cell.database()
    app = cell.app(database, {"violate": violate})
    with Sandbox(database) as sandbox:
        assert cell.post(app, "violate") == [200]
        assert seen(cell, sandbox, database) == 1
    expected = "ForeignKeyViolationError" if cell.family.name in ("asyncpg", "sqlite3") else "IntegrityError"
    assert raised == [expected]


@pytest.mark.parametrize("cell", cells(engine="postgres"), indirect=True)
def test_an_error_that_was_swallowed_fails_the_commit(cell):
    async def swallow(use: Use) -> None:
        await use.insert(1)
        try:
            await use.run("SELECT nonsense")
        except cell.family.statement_error:
            return

    async def failed(request, error) -> PlainTextResponse:
        return PlainTextResponse(status_code=503)

    database = cell.database()
    app = cell.app(database, {"swallow": swallow, "write": write}, exception_handlers={CommitFailed: failed})
    with Sandbox(database) as sandbox:
        assert cell.post(app, "write", "swallow", "write") == [200, 503, 200]
        assert seen(cell, sandbox, database) == 2


NESTING = [name for name in cells() if name.startswith("alchemy")]


@pytest.mark.parametrize("cell", NESTING, indirect=True)
def test_a_failure_in_the_apps_own_savepoint_is_undone_alone(cell):
    async def nested(use: Use) -> None:
        await use.insert(1)
        await cell.family.failing_in_savepoint(use.session)
        await use.insert(2)

    database = cell.database()
    app = cell.app(database, {"nested": nested})
    with Sandbox(database) as sandbox:
        assert cell.post(app, "nested") == [200]
        assert seen(cell, sandbox, database) == 2
    assert cell.engine.held() == []


@pytest.mark.parametrize("cell", cells(), indirect=True)
def test_transaction_commands_in_sql_mean_the_apps_transaction(cell):
    async def by_sql(use: Use) -> None:
        await use.insert(1)
        await use.run("COMMIT")
        await use.insert(2)
        await use.run("ROLLBACK")

    database = cell.database()
    app = cell.app(database, {"by_sql": by_sql})
    with Sandbox(database) as sandbox:
        assert cell.post(app, "by_sql") == [200]
        assert seen(cell, sandbox, database) == 1
    assert cell.engine.held() == []


def test_a_second_violation_of_another_row_is_the_drivers_integrity_error(postgres_cell):
    """A unique constraint: one error for a row that an earlier unit of the same test has committed."""
    database = postgres_cell.database()
    caught = []

    async def twice(use: Use) -> None:
        try:
            await use.session.execute(text("INSERT INTO parent VALUES (1)"))
        except IntegrityError as error:
            caught.append(error)
            await use.rollback()

    app = postgres_cell.app(database, {"twice": twice})
    with Sandbox(database):
        assert postgres_cell.post(app, "twice", "twice") == [200, 200]
    assert len(caught) == 1
