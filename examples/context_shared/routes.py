"""What the three example apps do. None of these functions is handed a request or a session.

Each runs in the unit of work of its request: committed when it answers with a status below 400, else rolled back.
"""

from __future__ import annotations

import asyncio
from typing import Any

from context_shared.database import Example, connection
from sqlalchemy import insert, select
from starlette.responses import JSONResponse

from transept import (
    UsageError,
    atomic_db_session,
    close_db_session,
    commit_db_session,
    db_session,
    in_new_unit,
    new_non_ctx_atomic_session,
    new_non_ctx_session,
    rollback_db_session,
    run_in_new_ctx,
)


def row(text: str) -> Any:
    return insert(Example).values(text=text)


async def write(text: str) -> None:
    """With the session of the unit that the caller runs in, whichever that is."""
    session = await db_session(connection)
    await session.execute(row(text))


async def simple_usage() -> str:
    """No connection is taken before the first statement, and nobody commits."""
    session = await db_session(connection)
    await session.execute(row("simple"))
    assert await db_session(connection) is session
    await write("simple, same transaction")
    return "kept"


async def atomic_base_example() -> str:
    """The end of the block commits, whatever becomes of the request."""
    async with atomic_db_session(connection) as session:
        await session.execute(row("atomic"))
    return "kept, and was so before this answer was made"


async def atomic_and_previous_transaction() -> str:
    """A block after something was written: the four choices."""
    await write("before commit")
    async with atomic_db_session(connection) as session:  # current_transaction="commit"
        await session.execute(row("in commit"))

    await write("before rollback")  # will be gone
    async with atomic_db_session(connection, "rollback") as session:
        await session.execute(row("in rollback"))

    await write("before append")
    async with atomic_db_session(connection, "append") as session:
        await session.execute(row("in append"))

    await write("before raise")
    try:
        async with atomic_db_session(connection, "raise"):
            pass
    except UsageError:
        return "kept, except for what was rolled back; and the last block was refused"
    return "this is never reached"


async def early_commit() -> str:
    """What was committed early is kept; what follows is a new transaction, for the request to settle."""
    await write("committed early")
    await commit_db_session(connection)
    await write("committed with the request")
    return "kept"


async def early_rollback() -> str:
    await write("rolled back early")  # will be gone
    await rollback_db_session(connection)
    await write("after the rollback")
    return "the second is kept"


async def early_connection_close() -> str:
    """For an endpoint that has something slow to do: no connection is held meanwhile."""
    await write("before the slow part")
    await commit_db_session(connection)
    await close_db_session(connection)
    await asyncio.sleep(0.01)
    await write("after the slow part")
    return "kept"


async def concurrent_queries() -> str:
    """Every way to work on a database concurrently. A session has one user at a time, so each task has its own."""
    await asyncio.gather(
        in_the_requests_own_unit(),
        run_in_new_ctx(write, "run_in_new_ctx"),
        in_new_unit(write)("in_new_unit"),
        run_in_new_ctx(write_in_two_steps),
        without_a_unit(),
        atomically_without_a_unit(),
        all_by_hand(),
    )
    return "kept"


async def in_the_requests_own_unit() -> None:
    """One of the tasks may use it. It commits at once, because SQLite has one writer and the others wait for it."""
    await write("the request's own")
    await commit_db_session(connection)


async def write_in_two_steps() -> None:
    await write("run_in_new_ctx, first step")
    await commit_db_session(connection)
    await write("run_in_new_ctx, second step")


async def without_a_unit() -> None:
    async with new_non_ctx_session(connection) as session:
        await session.execute(row("new_non_ctx_session"))
        await session.commit()


async def atomically_without_a_unit() -> None:
    async with new_non_ctx_atomic_session(connection) as session:
        await session.execute(row("new_non_ctx_atomic_session"))


async def all_by_hand() -> None:
    async with await connection.create_session() as session:
        await session.execute(row("create_session"))
        await session.commit()


async def auto_rollback_by_exception() -> str:
    await write("lost by an exception")
    raise RuntimeError("the request is answered 500")


async def auto_rollback_by_status_code() -> JSONResponse:
    await write("lost by a status")
    return JSONResponse("rolled back", 409)


async def rows() -> list[str]:
    """What the table holds."""
    session = await db_session(connection)
    return list(await session.scalars(select(Example.text).order_by(Example.id)))


POST = (
    simple_usage,
    atomic_base_example,
    atomic_and_previous_transaction,
    early_commit,
    early_rollback,
    early_connection_close,
    concurrent_queries,
    auto_rollback_by_exception,
    auto_rollback_by_status_code,
)
GET = (rows,)
