"""Who is told of what went wrong, where several tasks, hooks and cancellations meet in one unit of work."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from held import Postgres, insert, post, served
from sqlalchemy import text

from transept import (
    ASGIHTTPDBSessionMiddleware,
    CommitFailed,
    ImproperConfigurationError,
    after_commit,
    atomic_db_session,
    commit_db_session,
    db_session,
    doom,
    new_non_ctx_atomic_session,
    pop_db_session_from_context,
    transaction,
    unit_of_work,
)

pytestmark = pytest.mark.anyio


class Boom(Exception):
    pass


async def write(database: Any, v: int) -> None:
    await (await db_session(database)).execute(insert(v))


def http(path: str = "/") -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": []}


async def test_an_error_in_one_task_fails_the_request_and_not_another_tasks_block(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")
    inside, failed = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        await inside.wait()
        try:
            async with transaction():
                await write(first, 1)
                raise Boom
        finally:
            failed.set()

    async def goes_well() -> None:
        async with transaction("nested"):
            await write(second, 2)
            inside.set()
            await failed.wait()

    async def work() -> None:
        await asyncio.gather(fails(), goes_well(), return_exceptions=True)

    assert (await post(served(work))).status_code == 500
    assert pg.held() == []


async def test_an_error_in_a_nested_atomic_block_that_is_undone_fails_nothing_else(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        async with atomic_db_session(database):
            await write(database, 1)
            with suppress(Boom):
                async with atomic_db_session(database), transaction():
                    await write(database, 2)
                    raise Boom

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]


async def test_hooks_of_a_failed_block_do_not_run_even_if_nothing_was_written(pg: Postgres) -> None:
    ran: list[str] = []

    async def work() -> None:
        with suppress(Boom):
            async with transaction():
                after_commit(lambda: ran.append("mail"))
                raise Boom

    assert (await post(served(work))).status_code == 500
    assert ran == []
    with pytest.raises(CommitFailed, match=r"^nothing was committed: an error left a block .* transaction\('nested'\)"):
        async with unit_of_work():
            await work()
    assert ran == []


async def test_a_hook_that_is_cancelled_is_logged_and_the_others_run(
    pg: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    database, ran = pg.dbconnect(), list[str]()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def work() -> None:
        await write(database, 1)
        after_commit(cancelled)
        after_commit(lambda: ran.append("second"))

    assert (await post(served(work))).status_code == 201
    assert (pg.held(), ran) == ([1], ["second"])
    assert "a hook failed" in caplog.text


async def test_a_nested_block_that_is_cancelled_at_its_end_is_never_kept(pg: Postgres) -> None:
    database = pg.dbconnect()
    cut: list[int] = []

    async def one(turns: int) -> None:
        me = asyncio.current_task()
        assert me is not None

        def soon(left: int) -> None:
            asyncio.get_running_loop().call_soon(soon, left - 1) if left else me.cancel()

        with suppress(CommitFailed):
            async with unit_of_work():
                await write(database, turns)
                try:
                    async with unit_of_work():
                        await write(database, 100 + turns)
                        soon(turns)
                except asyncio.CancelledError:
                    cut.append(turns)
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)

    for turns in range(12):
        await asyncio.create_task(one(turns))
    held = pg.held()
    assert 0 in cut
    assert [turns for turns in cut if 100 + turns in held] == []
    assert [turns for turns in range(12) if turns not in cut and 100 + turns not in held] == []


async def test_a_settling_that_is_cancelled_before_it_began_hangs_nothing(pg: Postgres) -> None:
    """As at the end of an event loop, which cancels all its tasks at once."""
    database = pg.dbconnect()
    others = asyncio.all_tasks()

    def cancel_all() -> None:
        for task in asyncio.all_tasks() - others:
            task.cancel()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, 1)
        asyncio.get_running_loop().call_soon(cancel_all)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    request = asyncio.create_task(ASGIHTTPDBSessionMiddleware(app)(http(), send, send))
    done, pending = await asyncio.wait([request], timeout=5)
    assert not pending
    assert request in done
    assert request.cancelled()
    assert (sent, pg.held(), pg.out_of_pools()) == ([], [], 0)


async def test_a_cancellation_while_a_unit_parts_from_its_client_leaves_no_connection_out(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        session = await db_session(database)
        await session.execute(insert(1))
        slow = asyncio.ensure_future(session.execute(text("SELECT pg_sleep(0.4)")))
        await asyncio.sleep(0.1)
        await receive()  # the client has left: that unit ends, after its statement
        await write(database, 2)
        await asyncio.wait([slow])

    async def left() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ASGIHTTPDBSessionMiddleware(app)(http(), left, send)
    assert (pg.held(), pg.out_of_pools()) == ([], 0)


@pytest.mark.parametrize("opened_by", ["atomic", "non_ctx", "new_unit"])
async def test_a_before_commit_may_commit_elsewhere_and_is_not_asked_about_that(pg: Postgres, opened_by: str) -> None:
    database, audit = pg.dbconnect(), pg.dbconnect(bind_key="audit")
    asked: list[Any] = []

    async def before_commit(session: Any) -> None:
        asked.append(session)
        if opened_by == "atomic":
            async with atomic_db_session(audit):
                await write(audit, 2)
        elif opened_by == "non_ctx":
            async with new_non_ctx_atomic_session(audit) as own:
                await own.execute(insert(2))
        else:
            async with transaction("requires_new"):
                await write(audit, 2)

    async def work() -> None:
        await write(database, 1)

    app = served(work, before_commit)
    assert (await post(app)).status_code == 201
    assert (pg.held(), len(asked)) == ([1, 2], 1)


async def test_a_commit_by_hand_in_a_doomed_unit_rolls_back_and_says_why(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        doom("not today")
        with pytest.raises(CommitFailed, match=r"^nothing was committed on database 'default': not today\.$"):
            await commit_db_session(database)
        assert pg.out_of_pools() == 0

    assert (await post(served(work))).status_code == 201
    assert pg.held() == []


async def test_a_session_is_taken_out_by_its_key_and_an_unknown_key_is_said(pg: Postgres) -> None:
    database = pg.dbconnect(bind_key="orders")

    async def work() -> None:
        session = await db_session("orders")
        with pytest.raises(ImproperConfigurationError, match="Did you mean 'orders'"):
            pop_db_session_from_context("order")
        assert pop_db_session_from_context("orders") is session
        await session.close()

    assert (await post(served(work, databases=[database]))).status_code == 201


def test_a_gate_names_the_setting_that_has_no_database() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    with pytest.raises(ImproperConfigurationError, match=r"^registry=\[\]"):
        ASGIHTTPDBSessionMiddleware(app, registry=[])
