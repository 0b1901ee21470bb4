"""What holds everywhere, row by row: each case is a request (or a few), what its client is told, and what is held.

A case is a coroutine over a world. In a blocking world it never suspends. `needs` names what a cell must offer; in a
cell that lacks it the case does not apply, which the matrix shows.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from contract.frameworks import Answer
from contract.world import Context, World
from transept import (
    BlockingCallWarning,
    CommitFailed,
    CommitInDoubt,
    ConcurrentUseError,
    ImproperConfigurationError,
    OpenCursorError,
    OutsideScope,
    PartlyCommitted,
    PoolBusyOnLoop,
    after_commit,
    after_rollback,
    doom,
    unit_of_work,
)
from transept._bridge import run_now


@dataclass(frozen=True)
class Case:
    law: str
    name: str
    run: Callable[[World], Awaitable[None]]
    needs: frozenset[str]
    lacks: frozenset[str]


CASES: list[Case] = []


def case(law: str, *needs: str, lacks: tuple[str, ...] = ()) -> Callable[[Callable[[World], Awaitable[None]]], Any]:
    def register(run: Callable[[World], Awaitable[None]]) -> Callable[[World], Awaitable[None]]:
        CASES.append(Case(law, run.__name__, run, frozenset(needs), frozenset(lacks)))
        return run

    return register


class Boom(Exception):
    pass


# L1: acknowledge after commit


@case("L1")
async def a_2xx_is_told_after_its_commit(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        assert world.held() == [] or "peek" not in world.can
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, told.body, told.complete) == (201, b"ok", True)
    assert told.held_at_start() == [1]


@case("L1")
async def an_error_at_commit_is_answered_by_the_apps_handler(world: World) -> None:
    ran: list[int] = []
    context: list[Context] = []

    async def background() -> None:
        ran.append(1)
        await context[0].insert(5)

    async def handler(ctx: Context) -> Answer:
        context.append(ctx)
        await ctx.insert(1)
        await ctx.violate()
        return Answer(201, background=background)

    told = await world.request(handler, handlers={world.family.late_error: 409})
    assert (told.status, told.complete, told.error) == (409, True, None)
    assert b"ok" not in told.body
    assert world.held() == []
    assert ran == [] or "background" not in world.can


@case("L1", "handlers")
async def what_a_refused_response_does_at_its_end_is_not_kept(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def background() -> None:
            await ctx.insert(5)

        await ctx.insert(1)
        await ctx.violate()
        return Answer(201, background=background)

    told = await world.request(handler, handlers={world.family.late_error: 202})
    assert (told.status, told.complete) == (202, True)
    assert world.held() == []


@case("L1")
async def an_error_at_commit_without_a_handler_is_a_500(world: World) -> None:
    ran: list[int] = []
    context: list[Context] = []

    async def background() -> None:
        ran.append(1)
        await context[0].insert(5)

    async def handler(ctx: Context) -> Answer:
        context.append(ctx)
        await ctx.insert(1)
        await ctx.violate()
        return Answer(201, background=background)

    told = await world.request(handler)
    assert told.status == 500
    assert isinstance(told.error, world.family.late_error)
    assert any("did not commit" in note for note in told.error.__notes__)
    assert world.held() == []
    assert ran == [] or "background" not in world.can


@case("L1")
async def hooks_run_after_the_commit_and_before_the_answer(world: World) -> None:
    seen: list[Any] = []

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        after_commit(lambda: seen.append(("first", world.held())))
        after_commit(lambda: seen.append(("second", world.held())))
        after_rollback(lambda: seen.append("never"))
        return Answer(201)

    told = await world.request(handler)
    assert seen == [("first", [1]), ("second", [1])]
    assert told.status == 201


@case("L1")
async def what_a_hook_writes_is_kept_before_the_answer(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def hook() -> None:
            await world.pause(0.1)
            await ctx.insert(2)

        await ctx.insert(1)
        after_commit((lambda: run_now(ctx.insert(2))) if world.family.blocking else hook)
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, told.held_at_start()) == (201, [1, 2])


@case("L1", "before_send", "create_all")
async def a_before_send_handler_is_told_once_and_before_anything_is_settled(world: World) -> None:
    starts: list[int] = []

    async def told_of(message: Any, scope: Any) -> None:
        if message["type"] == "http.response.start":
            starts.append(message["status"])
            if (session := scope["state"].get("_sqlalchemy_db_session")) is not None:
                await world.family.run(session, f"INSERT INTO held VALUES ({len(starts)})")
            if len(starts) in raises:
                raise Boom

    def in_a_thread(message: Any, scope: Any) -> None:
        run_now(told_of(message, scope))

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(0)
        return Answer(201)

    raises: set[int] = set()
    world.database(before_send_handler=in_a_thread if world.family.blocking else told_of)
    told = await world.request(handler)
    assert (told.status, told.held_at_start(), starts) == (201, [0, 1], [201])
    world.engine.reset()
    raises.add(2)
    told = await world.request(handler, handlers={Boom: 202})
    assert (told.status, starts) == (202, [201, 201, 202])
    assert world.held() == [3], "what was written before the handler raised was kept"


@case("L1")
async def the_next_request_is_not_harmed_by_a_failed_commit(world: World) -> None:
    async def failing(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.violate()
        return Answer(201)

    async def good(ctx: Context) -> Answer:
        await ctx.insert(2)
        return Answer(201)

    assert (await world.request(failing)).status == 500
    world.engine.reset() if world.engine.name == "mariadb" else None
    assert (await world.request(good)).status == 201
    assert world.held() == [2]


# L2: a transaction that is gone cannot be committed


@case("L2", "aborts")
async def a_swallowed_error_fails_the_commit_where_it_aborts_the_transaction(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.swallow()
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, world.held()) == (500, [])
    assert isinstance(told.error, CommitFailed)
    assert "nonsense" in str(told.error)
    assert (await world.request(handler, handlers={CommitFailed: 409})).status == 409


@case("L2", lacks=("aborts",))
async def a_swallowed_error_that_the_engine_shrugs_off_is_no_failure(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.swallow()
        return Answer(201)

    assert (await world.request(handler)).status == 201
    assert world.held() == [1]


@case("L2", "nested")
async def an_error_undone_by_its_savepoint_is_no_failure(world: World) -> None:
    ran: list[int] = []

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        after_commit(lambda: ran.append(1))
        await world.family.failing_in_savepoint(ctx.session(), lambda: after_commit(lambda: ran.append(2)))
        await ctx.insert(2)
        return Answer(201)

    assert (await world.request(handler)).status == 201
    assert (world.held(), ran) == ([1, 2], [1])


@case("L2", "nested", "wire")
async def an_error_undone_by_its_savepoint_costs_no_extra_round_trip(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await world.family.failing_in_savepoint(ctx.session())
        proxy.on(b"", "count")
        return Answer(201)

    with world.proxy() as proxy:
        world.through(proxy)
        assert (await world.request(handler)).status == 201
        assert 1 <= proxy.hits <= 2, "a COMMIT, and what resets the connection in the pool"
    assert world.held() == [1]


@case("L2", "ends")
async def a_transaction_that_an_error_ended_cannot_be_committed(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        with suppress(world.family.statement_error):
            await ctx.end_transaction()
        await ctx.insert(2)
        if commits:
            await world.family.commit(ctx.session())
        return Answer(201)

    for commits in (False, True):
        told = await world.request(handler)
        assert (told.status, world.held()) == (500, [])
        assert isinstance(told.error, CommitFailed)
        assert (await world.request(handler, handlers={CommitFailed: 409})).status == 409
    assert world.held() == []


@case("L2")
async def a_nested_block_is_undone_alone(world: World) -> None:
    ran: list[int] = []

    async def fails(ctx: Context) -> None:
        await ctx.insert(2)
        after_commit(lambda: ran.append(2))
        await ctx.run("SELECT nonsense")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        after_commit(lambda: ran.append(1))
        with suppress(world.family.statement_error):
            if world.family.blocking:
                with unit_of_work():
                    await fails(ctx)
            else:
                async with unit_of_work():
                    await fails(ctx)
        await ctx.insert(3)
        return Answer(201)

    assert (await world.request(handler)).status == 201
    assert (world.held(), ran) == ([1, 3], [1])


@case("L2", "kill")
async def a_session_killed_before_the_commit_is_an_error(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.kill()
        return Answer(201)

    async def good(ctx: Context) -> Answer:
        await ctx.insert(2)
        return Answer(201)

    told = await world.request(handler)
    assert told.status in (500, 503)
    assert world.held() == []
    assert (await world.request(good)).status == 201
    assert world.held() == [2]


# L3: what is not acknowledged leaves nothing


@case("L3")
async def other_statuses_keep_nothing(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(status)
        return Answer(status)

    for status in (300, 302, 404, 409, 500):
        assert (await world.request(handler)).status == status
        assert world.held() == []


@case("L3")
async def a_redirect_keeps_in_its_mode(world: World) -> None:
    world.database(commit_mode="autocommit_include_redirect", extra_rollback_statuses={307})

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(status)
        return Answer(status)

    for status in (200, 300, 303, 307, 308, 400, 404):
        assert (await world.request(handler)).status == status
    assert world.held() == [200, 300, 303, 308]


@case("L3")
async def extra_statuses_win_over_the_range(world: World) -> None:
    world.database(extra_commit_statuses={404}, extra_rollback_statuses={202})

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(status)
        return Answer(status)

    for status in (201, 202, 404, 409):
        assert (await world.request(handler)).status == status
    assert world.held() == [201, 404]


@case("L3", "handlers")
async def an_exception_that_is_answered_inside_counts_by_its_status(world: World) -> None:
    world.database(commit_mode="autocommit_include_redirect")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        raise Boom

    assert (await world.request(handler, handlers={Boom: 409})).status == 409
    assert world.held() == []
    assert (await world.request(handler, handlers={Boom: 303})).status == 303
    assert world.held() == [1]


@case("L3")
async def an_exception_that_reaches_the_gate_rolls_back(world: World) -> None:
    ran: list[int] = []

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        after_rollback(lambda: ran.append(1))
        raise Boom

    told = await world.request(handler)
    assert (told.status, world.held(), ran) == (500, [], [1])
    assert isinstance(told.error, Boom)


@case("L3", "wire")
async def a_connection_lost_after_commit_was_sent_is_in_doubt(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        proxy.on(b"COMMIT", "cut_after")
        return Answer(201)

    with world.proxy() as proxy:
        world.through(proxy)
        told = await world.request(handler)
        assert told.status == 503
        assert b"in doubt" in told.body
        assert world.held() == [1]
        proxy.clear()
        told = await world.request(handler, handlers={CommitInDoubt: 502})
        assert told.status == 502


@case("L3")
async def a_doomed_unit_keeps_nothing_and_says_so_once(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        doom("the books do not balance")
        return Answer(200)

    with warnings_logged() as logged:
        assert (await world.request(handler)).status == 200
    assert world.held() == []
    assert len(logged) == 1, logged
    assert "POST /work" in logged[0]
    assert "the books do not balance" in logged[0]


@case("L3")
async def hooks_run_and_doom_is_said_where_the_end_of_a_body_has_nothing_to_settle(world: World) -> None:
    seen: list[str] = []

    async def handler(ctx: Context) -> Answer:
        async def stream() -> AsyncIterator[bytes]:
            ctx.session()
            yield b"1"
            if dooms:
                doom("the last line is wrong")
            else:
                after_commit(lambda: seen.append("committed"))
                after_rollback(lambda: seen.append("rolled back"))

        return Answer(200, stream=stream)

    for dooms, said in ((False, 0), (True, 1)):
        with warnings_logged() as logged:
            assert (await world.request(handler)).complete
        assert len(logged) == said, logged
    assert "the last line is wrong" in logged[0]
    assert seen == ["committed"]


@case("L3")
async def a_manual_commit_forgotten_keeps_nothing_and_says_so_once(world: World) -> None:
    world.database(commit_mode="manual")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        return Answer(201)

    async def reader(ctx: Context) -> Answer:
        await ctx.value("SELECT count(*) FROM held")
        return Answer(200)

    with warnings_logged() as logged:
        assert (await world.request(handler)).status == 201
        assert (await world.request(reader, method="GET")).status == 200
    assert world.held() == []
    assert len(logged) == 1, logged
    assert "POST /work" in logged[0]


@case("L3")
async def a_manual_commit_is_kept_whatever_the_status(world: World) -> None:
    world.database(commit_mode="manual")
    ran: list[int] = []

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        after_commit(lambda: ran.append(1))
        await world.family.commit(ctx.session())
        return Answer(404)

    assert (await world.request(handler)).status == 404
    assert (world.held(), ran) == ([1], [1])


@case("L3", "cancel", "awaiting")
async def a_request_cancelled_in_its_handler_keeps_nothing(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        ctx.control.task.cancel()
        await asyncio.sleep(5)
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, world.held()) == (None, [])
    assert isinstance(told.error, asyncio.CancelledError)


@case("L3", "cancel", "slow", "awaiting")
async def a_request_cancelled_while_a_statement_runs_keeps_nothing(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        asyncio.get_running_loop().call_later(0.1, ctx.control.task.cancel)
        await ctx.run(world.engine.slow())
        return Answer(201)

    async def good(ctx: Context) -> Answer:
        await ctx.insert(2)
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, world.held()) == (None, [])
    assert isinstance(told.error, asyncio.CancelledError)
    await world.pause(0.6)  # some servers notice only after the statement
    assert world.engine.open_transactions() == 0
    assert (await world.request(good)).status == 201
    assert world.held() == [2]


@case("L3", "cancel", "slow", "blocking")
async def a_thread_that_outlives_its_cancelled_request_keeps_nothing(world: World) -> None:
    done = threading.Event()
    caught: list[BaseException] = []

    async def handler(ctx: Context) -> Answer:
        session = ctx.session()
        await ctx.insert(1)
        threading.Timer(0.1, loop.call_soon_threadsafe, (ctx.control.task.cancel,)).start()
        await ctx.run(world.engine.slow())
        time.sleep(0.1)  # noqa: ASYNC251 - it runs in a thread
        try:
            await world.family.run(session, "INSERT INTO held VALUES (2)")
        except OutsideScope as error:
            caught.append(error)
        finally:
            done.set()
        return Answer(201)

    loop = asyncio.get_running_loop()
    told = await world.request(handler)
    assert await asyncio.to_thread(done.wait, 5)
    assert (told.status, world.held(), len(caught)) == (None, [], 1)


@case("L3", "cancel", "wire")
async def a_request_cancelled_while_commit_runs_is_kept_and_not_acknowledged(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        proxy.on(b"COMMIT", "hold")
        asyncio.get_running_loop().call_later(0.2, ctx.control.task.cancel) if not world.family.blocking else (
            threading.Timer(0.2, loop.call_soon_threadsafe, (ctx.control.task.cancel,)).start()
        )
        threading.Timer(0.5, proxy.release).start()
        return Answer(201)

    loop = asyncio.get_running_loop()
    with world.proxy() as proxy:
        world.through(proxy)
        told = await world.request(handler)
        proxy.clear()
        assert (told.status, world.held()) == (None, [1])
        assert isinstance(told.error, asyncio.CancelledError)


@case("L3", "cancel", "slow")
async def a_request_cancelled_while_the_gate_waits_for_a_statement_keeps_nothing(world: World) -> None:
    under_way: list[asyncio.Task[None]] = []

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        slow = off_the_loop(world, world.family.run(ctx.session(), world.engine.slow()))
        loop.call_soon_threadsafe(lambda: under_way.append(loop.create_task(slow)))
        await world.pause(0.1)
        loop.call_soon_threadsafe(loop.call_later, 0.05, ctx.control.task.cancel)
        return Answer(201)

    loop = asyncio.get_running_loop()
    told = await world.request(handler)
    await asyncio.gather(*under_way)
    assert (told.status, world.held()) == (None, [])
    assert isinstance(told.error, asyncio.CancelledError)


@case("L3", "disconnect", "async", "awaiting")
async def a_client_that_left_before_the_start_leaves_nothing_if_the_app_was_told(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.connection.body()
        ctx.control.gone.set()
        assert await world.framework.has_left(ctx.connection)
        return Answer(201)

    with warnings_logged() as logged:
        assert (await world.request(handler)).status == 201
    assert (world.held(), logged) == ([], [])


@case("L3", "disconnect", "async", "awaiting")
async def a_client_that_left_unnoticed_has_its_work_kept(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        ctx.control.gone.set()
        return Answer(201)

    assert (await world.request(handler)).status == 201
    assert world.held() == [1]


@case("L3", "disconnect")
async def a_client_that_leaves_half_way_has_what_was_settled_kept(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def stream() -> AsyncIterator[bytes]:
            await ctx.insert(1)
            await world.family.commit(ctx.session())
            await ctx.insert(2)
            yield b"abc"
            await ctx.insert(3)
            yield b"def"

        return Answer(200, stream=stream)

    world.database()
    told = await world.request(handler, leaves_after=3)
    assert (told.body, told.complete, world.held()) == (b"abc", False, [1, 2])
    await world.stop()
    world.databases.clear()
    world.engine.reset()
    world.database(commit_mode="manual")
    told = await world.request(handler, leaves_after=3)
    assert (told.body, told.complete, world.held()) == (b"abc", False, [1])


# L4: the connection belongs to the transaction


@case("L4")
async def a_request_that_asks_for_no_statement_takes_no_connection(world: World) -> None:
    world.database()

    async def handler(ctx: Context) -> Answer:
        ctx.session()
        assert world.family.checked_out(world.databases[0]) == 0
        assert world.engine.open_transactions() == 0
        return Answer(200)

    assert (await world.request(handler)).status == 200


@case("L4", "async", "awaiting")
async def an_exhausted_pool_does_not_stop_requests_without_a_database(world: World) -> None:
    world.database()
    release = asyncio.Event()

    async def holder(ctx: Context) -> Answer:
        await ctx.value("SELECT count(*) FROM held" if "saves" not in world.can else "SELECT 1 FOR UPDATE")
        await release.wait()
        return Answer(200)

    async def free(ctx: Context) -> Answer:
        ctx.session()
        return Answer(200)

    holders = [asyncio.ensure_future(world.request(holder, method="GET")) for _ in range(5)]
    while world.family.checked_out(world.databases[0]) < 5:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(2):
        told = [await world.request(free) for _ in range(100)]
    release.set()
    assert {one.status for one in told} == {200}
    assert {(await one).status for one in holders} == {200}


@case("L4")
async def nothing_is_held_between_the_chunks_of_a_body(world: World) -> None:
    open_between: list[int] = []

    async def handler(ctx: Context) -> Answer:
        async def stream() -> AsyncIterator[bytes]:
            for v in (1, 2):
                await ctx.insert(v)
                yield b"%d" % v
                open_between.append(world.engine.open_transactions() + world.family.checked_out(world.databases[0]))

        return Answer(200, stream=stream)

    told = await world.request(handler)
    assert (told.body, told.complete, world.held()) == (b"12", True, [1, 2])
    assert open_between == [0, 0]
    assert [held for kind, held in told.seen if kind == "body"][:2] == [[1], [1, 2]]


@case("L4", "cursor")
async def a_cursor_opened_in_the_body_has_one_transaction_until_it_is_exhausted(world: World) -> None:
    reading: list[bool] = []
    rows = "SELECT 1 AS v UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5"

    async def handler(ctx: Context) -> Answer:
        async def stream() -> AsyncIterator[bytes]:
            async for v in await world.family.cursor(ctx.session(), rows):
                yield b"%d" % v
                reading.append(world.family.checked_out(world.databases[0]) == 1)
            yield b"."
            reading.append(world.family.checked_out(world.databases[0]) == 0)

        return Answer(200, stream=stream)

    told = await world.request(handler, method="GET")
    assert (told.body, told.complete) == (b"12345.", True)
    assert reading[0]
    assert reading[-1]


@case("L4", "cursor")
async def a_cursor_still_open_at_the_start_is_an_error_before_the_first_byte(world: World) -> None:
    rows = "SELECT 1 AS v UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5"

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        cursor = await world.family.cursor(ctx.session(), rows)

        async def stream() -> AsyncIterator[bytes]:
            async for v in cursor:
                yield b"%d" % v

        return Answer(200, stream=stream)

    told = await world.request(handler)
    assert (told.status, world.held()) == (500, [])
    assert isinstance(told.error, OpenCursorError)


@case("L4", "cursor")
async def a_database_told_to_keep_its_transaction_lets_a_cursor_live_on(world: World) -> None:
    world.database(keep_transaction_for_body=True)
    rows = "SELECT 1 AS v UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5"

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        cursor = await world.family.cursor(ctx.session(), rows)

        async def stream() -> AsyncIterator[bytes]:
            async for v in cursor:
                yield b"%d" % v

        return Answer(200, stream=stream)

    told = await world.request(handler)
    assert (told.status, told.body, told.complete, world.held()) == (200, b"12345", True, [1])


# Bodies and what comes after


@case("L1")
async def a_body_whose_last_commit_fails_is_never_complete(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def stream() -> AsyncIterator[bytes]:
            await ctx.insert(1)
            yield b"abc"
            await ctx.insert(2)
            await ctx.violate()
            yield b"def"

        async def late() -> AsyncIterator[bytes]:
            await ctx.insert(1)
            yield b"abc"
            yield b"def"
            await ctx.insert(2)
            await ctx.violate()

        return Answer(200, stream=stream if violate_early else late, length=length)

    for violate_early in (True, False):
        for length in (None, 6):
            told = await world.request(handler)
            assert told.status == 200
            assert not told.complete
            assert length is None or len(told.body) < length
            assert world.held() == [1]
            world.engine.reset()
            await world.stop()


@case("L1", "messages")
async def whatever_completes_a_response_waits_for_the_last_commit(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def messages() -> AsyncIterator[dict[str, Any]]:
            trailers = last == "trailers"
            yield {"type": "http.response.start", "status": 200, "headers": [], "trailers": trailers}
            if trailers:
                yield {"type": "http.response.body", "body": b"abc", "more_body": False}
            await off_the_loop(world, ctx.insert(1))
            yield {"type": f"http.response.{last}"}
            await off_the_loop(world, ctx.insert(2))

        return Answer(200, messages=messages)

    for last in ("pathsend", "zerocopysend", "trailers"):
        told = await world.request(handler)
        assert (told.error, told.seen[-1], world.held()) == (None, (last, [1]), [1, 2])
        world.engine.reset()


@case("L3")
async def a_body_that_raises_keeps_what_was_settled_and_no_more(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def stream() -> AsyncIterator[bytes]:
            await ctx.insert(1)
            yield b"abc"
            await ctx.insert(2)
            raise Boom

        return Answer(200, stream=stream)

    told = await world.request(handler)
    assert (told.status, told.complete, world.held()) == (200, False, [1])


@case("L3")
async def a_block_in_a_body_is_kept_as_a_whole_or_not_at_all(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def in_two_chunks(v: int) -> AsyncIterator[bytes]:
            await ctx.insert(v)
            yield b"abc"
            await ctx.insert(v + 1)
            if v == 3:
                raise Boom

        async def stream() -> AsyncIterator[bytes]:
            for v in (1, 3):
                if world.family.blocking:
                    with unit_of_work():
                        async for chunk in in_two_chunks(v):
                            yield chunk
                else:
                    async with unit_of_work():
                        async for chunk in in_two_chunks(v):
                            yield chunk
                yield b"def"

        return Answer(200, stream=stream)

    told = await world.request(handler)
    assert (told.status, told.complete, world.held()) == (200, False, [1, 2])


@case("L3")
async def a_manual_body_keeps_what_the_app_committed(world: World) -> None:
    world.database(commit_mode="manual")

    async def handler(ctx: Context) -> Answer:
        async def stream() -> AsyncIterator[bytes]:
            await ctx.insert(1)
            yield b"abc"
            await world.family.commit(ctx.session())
            yield b"def"
            await ctx.insert(2)
            yield b"ghi"

        return Answer(200, stream=stream)

    with warnings_logged() as logged:
        told = await world.request(handler)
    assert (told.body, told.complete, world.held()) == (b"abcdefghi", True, [1])
    assert len(logged) == 1, logged


@case("L4")
async def what_comes_after_the_response_has_a_unit_of_its_own(world: World) -> None:
    """Where the start has settled all, and where the end of the body has something to settle."""
    sessions: list[Any] = []
    between: list[int] = []

    async def handler(ctx: Context) -> Answer:
        sessions.append(ctx.session())

        async def stream() -> AsyncIterator[bytes]:
            yield b"1"
            await ctx.insert(3)

        async def background() -> None:
            between.append(world.engine.open_transactions() + world.family.checked_out(world.databases[0]))
            await ctx.insert(4 if in_body else 2)
            sessions.append(ctx.session())

        if not in_body:
            await ctx.insert(1)
        return Answer(201, stream=stream if in_body else None, background=background)

    for in_body, at_end, after in ((False, [1], [1, 2]), (True, [1, 2, 3], [1, 2, 3, 4])):
        told = await world.request(handler)
        assert (told.status, told.held_at_end(), world.held()) == (201, at_end, after)
        first, second = sessions[-2:]
        assert first is not second
    assert between == [0, 0]


@case("L3")
async def a_background_task_that_raises_keeps_nothing_of_its_own(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)

        async def background() -> None:
            await ctx.insert(2)
            raise Boom

        return Answer(201, background=background)

    told = await world.request(handler)
    assert (told.status, told.complete, world.held()) == (201, True, [1])
    assert isinstance(told.error, Boom)


@case("L1", "teardown")
async def what_a_teardown_writes_is_kept_and_changes_no_answer(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def teardown() -> None:
            await ctx.insert(status + 1)

        await ctx.insert(status)
        return Answer(status, teardown=teardown)

    for status, held in ((201, [201, 202]), (409, [201, 202, 410])):
        told = await world.request(handler)
        assert (told.status, told.body, told.complete, told.error) == (status, b"ok", True, None)
        assert world.held() == held


@case("L8", "teardown")
async def a_teardown_that_fails_takes_nothing_back_and_keeps_nothing(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        async def teardown() -> None:
            await ctx.insert(2)
            raise Boom

        await ctx.insert(1)
        return Answer(201, teardown=teardown)

    told = await world.request(handler)
    assert (told.status, told.body, told.complete, told.error) == (201, b"ok", True, None)
    assert world.held() == [1]


@case("L4")
async def a_requests_session_is_over_with_its_request(world: World) -> None:
    """Where the start has settled all, and where the end of the body has something to settle."""
    outcome: list[Any] = []

    async def handler(ctx: Context) -> Answer:
        session = ctx.session()

        async def stream() -> AsyncIterator[bytes]:
            yield b"1"
            await ctx.insert(2)

        async def background() -> None:
            await world.family.rollback(session)
            await world.family.close(session)
            try:
                await world.family.run(session, "INSERT INTO held VALUES (3)")
            except OutsideScope as error:
                outcome.append(str(error))

        if not in_body:
            await ctx.insert(1)
        return Answer(201, stream=stream if in_body else None, background=background)

    for in_body, held in ((False, [1]), (True, [1, 2])):
        assert (await world.request(handler)).status == 201
        assert world.held() == held
        assert "POST /work" in outcome.pop()


@case("L4", "outlive", "awaiting")
async def a_task_that_outlives_its_request_is_told_so(world: World) -> None:
    started: list[asyncio.Task[Any]] = []
    done = asyncio.Event()

    async def handler(ctx: Context) -> Answer:
        async def outlives() -> str:
            await done.wait()
            try:
                ctx.session()
            except OutsideScope:
                async with unit_of_work() as unit:
                    await world.family.run(unit.session(world.databases[0]), "INSERT INTO held VALUES (7)")
                return "told"
            return "not told"

        started.append(asyncio.create_task(outlives()))
        return Answer(201)

    assert (await world.request(handler)).status == 201
    done.set()
    assert await started[0] == "told"
    assert world.held() == [7]


# L5: a session has one user at a time


@case("L5", "slow", "async", "awaiting")
async def two_tasks_in_one_session_at_once_is_an_error_in_the_second(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        slow, second = await asyncio.gather(ctx.run(world.engine.slow()), ctx.insert(1), return_exceptions=True)
        assert slow is None
        assert isinstance(second, ConcurrentUseError)
        assert second.user != second.holder
        await ctx.insert(2)
        return Answer(201)

    assert (await world.request(handler)).status == 201
    assert world.held() == [2]


@case("L5", "slow", "blocking")
async def two_threads_in_one_session_at_once_is_an_error_in_the_second(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        session = ctx.session()
        await ctx.insert(1)
        caught: list[BaseException] = []

        def other() -> None:
            try:
                run_now(world.family.run(session, "INSERT INTO held VALUES (9)"))
            except ConcurrentUseError as error:
                caught.append(error)

        late = threading.Timer(0.1, other)
        late.start()
        await ctx.run(world.engine.slow())
        late.join()
        assert len(caught) == 1
        return Answer(201)

    assert (await world.request(handler)).status == 201
    assert world.held() == [1]


@case("L5", "wire", "async", "awaiting")
async def a_statement_waits_while_the_gate_settles(world: World) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def handler(ctx: Context) -> Answer:
        session = ctx.session()
        await ctx.insert(1)
        proxy.on(b"COMMIT", "hold")
        threading.Timer(0.4, lambda: (proxy.clear(), proxy.release())).start()

        async def other() -> None:
            await asyncio.sleep(0.1)
            assert proxy.hits == 1
            await world.family.run(session, "INSERT INTO held VALUES (2)")

        tasks.append(asyncio.create_task(other()))
        return Answer(201)

    with world.proxy() as proxy:
        world.through(proxy)
        told = await world.request(handler)
        (late,) = await asyncio.gather(*tasks, return_exceptions=True)
        assert late is None or isinstance(late, OutsideScope)
        held = [1, 2] if late is None else [1]
        # where the start is settled twice, the second time finds what waited for the first
        assert (told.status, told.held_at_start()) == (201, held if "ahead" in world.can else [1])
        assert world.held() == held


@case("L5", "wire", "async")
async def a_statement_that_waits_for_the_last_settling_comes_too_late(world: World) -> None:
    late: list[asyncio.Task[Any]] = []

    async def handler(ctx: Context) -> Answer:
        session = ctx.session()
        await ctx.insert(1)
        proxy.on(b"ROLLBACK", "hold")
        threading.Timer(0.4, lambda: (proxy.clear(), proxy.release())).start()

        async def statement() -> None:
            while not proxy.hits:
                await world.pause(0.01)
            await world.family.run(session, "INSERT INTO held VALUES (2)")

        async def other() -> None:
            await off_the_loop(world, statement())

        loop.call_soon_threadsafe(lambda: late.append(loop.create_task(other())))
        raise Boom

    loop = asyncio.get_running_loop()
    with world.proxy() as proxy:
        world.through(proxy)
        assert (await world.request(handler)).status == 500
        (error,) = await asyncio.gather(*late, return_exceptions=True)
        # where the framework answers every error inside the gate, this settling is not the last, but that of a start
        assert isinstance(error, OutsideScope) or ("answers" in world.can and error is None)
    assert world.held() == []


@case("L5", "wire", "async")
async def a_statement_that_waits_for_the_last_commit_comes_too_late(world: World) -> None:
    late: list[asyncio.Task[None]] = []

    async def handler(ctx: Context) -> Answer:
        session = ctx.session()

        async def statement() -> None:
            while not proxy.hits:
                await world.pause(0.01)
            await world.family.run(session, "INSERT INTO held VALUES (2)")

        async def stream() -> AsyncIterator[bytes]:
            yield b"abc"
            await ctx.insert(1)
            proxy.on(b"COMMIT", "hold")
            threading.Timer(0.4, lambda: (proxy.clear(), proxy.release())).start()
            loop.call_soon_threadsafe(lambda: late.append(loop.create_task(off_the_loop(world, statement()))))

        return Answer(200, stream=stream)

    loop = asyncio.get_running_loop()
    with world.proxy() as proxy:
        world.through(proxy)
        told = await world.request(handler)
        (error,) = await asyncio.gather(*late, return_exceptions=True)
        assert isinstance(error, OutsideScope)
        assert (told.status, told.complete) == (200, True)
    assert world.held() == [1]


# L6: Transept never blocks the loop


@case("L6", "async", "blocking", "wire")
async def settling_a_blocking_session_leaves_the_loop_free(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        proxy.on(word, "hold")
        threading.Timer(0.5, lambda: (proxy.clear(), proxy.release())).start()
        return Answer(status)

    with world.proxy() as proxy:
        world.through(proxy)
        for status, word in ((201, b"COMMIT"), (409, b"ROLLBACK")):
            async with beating() as longest:
                assert (await world.request(handler)).status == status
            assert proxy.hits
            assert longest() < 0.3
            proxy.hits = 0


@case("L6", "async", "blocking")
async def a_blocking_session_in_a_coroutine_works_and_warns_once(world: World) -> None:
    call = "session.connection()" if "flush" in world.can else "session.execute('SELECT 1')"
    site = compile(call, f"site {next(numbers)}", "eval")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        for _ in range(2):
            eval(site, {"session": ctx.session()})
        return Answer(201)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (await world.request(handler, on_the_loop=True)).status == 201
    assert world.held() == [1]
    assert [one.category for one in caught if one.filename == site.co_filename] == [BlockingCallWarning]


@case("L6", "async", "blocking", lacks=("saves",))
async def a_blocking_session_never_waits_for_the_pool_on_the_loop(world: World) -> None:
    database = world.database()
    release = threading.Event()

    async def reader(ctx: Context) -> Answer:
        await ctx.value("SELECT 1")
        release.wait(5)
        return Answer(200)

    holders = [asyncio.ensure_future(world.request(reader, method="GET")) for _ in range(5)]
    while world.family.checked_out(database) < 5:
        await asyncio.sleep(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlockingCallWarning)
        async with beating() as longest:
            told = await world.request(reader, method="GET", on_the_loop=True)
    release.set()
    assert isinstance(told.error, PoolBusyOnLoop)
    assert longest() < 0.3
    assert {(await one).status for one in holders} == {200}


# L7: several databases end together


@case("L7", "aborts", "flush")
async def what_a_flush_refuses_is_known_before_the_first_commit(world: World) -> None:
    world.database()
    world.database(bind_key="second")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.run("INSERT INTO parent VALUES (7)", "second")
        ctx.session("second").add(Parent(id=7))
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, world.held()) == (500, [])
    assert isinstance(told.error, world.family.late_error)


@case("L7")
async def a_second_database_that_fails_before_its_commit_takes_the_first_with_it(world: World) -> None:
    world.database()
    world.database(bind_key="second")

    one_writer = world.engine.name in ("sqlite", "memory")

    async def handler(ctx: Context) -> Answer:
        if one_writer:
            await ctx.value("SELECT count(*) FROM held", "second")
        else:
            await ctx.insert(2, "second")
        await ctx.insert(1)
        raise Boom

    told = await world.request(handler, method="GET" if one_writer else "POST")
    assert (told.status, type(told.error)) == (500, Boom)
    assert world.held() == []


@case("L7", "aborts")
async def all_are_checked_before_the_first_commits(world: World) -> None:
    world.database()
    world.database(bind_key="second")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.insert(2, "second")
        with suppress(world.family.statement_error):
            await ctx.run("SELECT nonsense", "second")
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, world.held()) == (500, [])
    assert isinstance(told.error, CommitFailed)
    assert told.error.database == "second"


@case("L7", "late", "aborts")
async def a_later_commit_that_fails_says_what_was_kept(world: World) -> None:
    world.database()
    world.database(bind_key="second")
    world.database(bind_key="third")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.insert(2, "second")
        await ctx.insert(3, "third")
        await ctx.violate("second")
        return Answer(201)

    told = await world.request(handler)
    assert (told.status, world.held()) == (500, [1])
    assert isinstance(told.error, PartlyCommitted)
    assert (told.error.committed, told.error.failed) == (("default",), "second")
    assert told.error.rolled_back == ("third",)


@case("L7", "aborts")
async def each_database_decides_by_its_own_mode(world: World) -> None:
    world.database()
    world.database(bind_key="second", commit_mode="manual")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.insert(2, "second")
        return Answer(201)

    with warnings_logged() as logged:
        assert (await world.request(handler)).status == 201
    assert world.held() == [1]
    assert "'second'" in logged[0]


# L8: cleanup never lies and never leaks


@case("L8")
async def a_failing_hook_is_logged_and_changes_nothing(world: World) -> None:
    ran: list[int] = []

    def fails() -> None:
        raise Boom

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        after_commit(fails)
        after_commit(lambda: ran.append(1))
        return Answer(201)

    with warnings_logged() as logged:
        assert (await world.request(handler)).status == 201
    assert (world.held(), ran) == ([1], [1])
    assert any("a hook failed" in line for line in logged)


@case("L8", "kill")
async def a_cleanup_that_fails_hides_no_error_and_stops_no_other(world: World) -> None:
    world.database()
    world.database(bind_key="second")

    async def handler(ctx: Context) -> Answer:
        await ctx.insert(1)
        await ctx.insert(2, "second")
        await ctx.kill()
        raise Boom

    told = await world.request(handler)
    assert (told.status, world.held()) == (500, [])
    assert isinstance(told.error, Boom), told.error


@case("L8", "async", "create_all")
async def first_requests_that_race_each_other_prepare_the_database_once(world: World) -> None:
    metadata = MetaData()
    table = Table(f"first_{next(numbers)}", metadata, Column("v", Integer))
    world.database(create_all=True, metadata=metadata)

    async def handler(ctx: Context) -> Answer:
        await ctx.run(f"INSERT INTO {table.name} VALUES (1)")
        return Answer(201)

    told = await asyncio.gather(*(world.request(handler) for _ in range(5)))
    assert [one.status for one in told] == [201] * 5


@case("L8", "async", lacks=("app_engine",))
async def requests_that_read_and_then_write_do_not_fail_each_other(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        count = await ctx.value("SELECT count(*) FROM held")
        assert count >= 0
        await ctx.insert(1)
        return Answer(201)

    world.database()
    told = await asyncio.gather(*(world.request(handler) for _ in range(5)))
    assert [one.status for one in told] == [201] * 5
    assert world.held() == [1] * 5


# Outside of requests


@case("L3")
async def a_wrong_setting_is_an_error_at_construction(world: World) -> None:
    wrong: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"commit_mode": "autocomit"}, ("commit_mode", "'autocomit'", "'autocommit'")),
        ({"extra_commit_statuses": {409}, "extra_rollback_statuses": {409}}, ("extra_commit_statuses", "409")),
        ({"extra_rollback_statuses": {20}}, ("extra_rollback_statuses", "20")),
        ({"comit_mode": "manual"}, ("comit_mode", "commit_mode")),
    ]
    for settings, words in wrong:
        with pytest.raises(ImproperConfigurationError) as caught:
            world.database(**settings)
        assert all(word in str(caught.value) for word in words), str(caught.value)


@case("L3")
async def a_block_commits_on_a_clean_exit_and_rolls_back_on_an_error(world: World) -> None:
    database = world.database(commit_mode="manual")

    async def write(v: int, *, fail: bool) -> None:
        if world.family.blocking:
            with world.outside(), unit_of_work() as unit:
                await world.family.run(unit.session(database), f"INSERT INTO held VALUES ({v})")
                if fail:
                    raise Boom
        else:
            async with unit_of_work() as unit:
                await world.family.run(unit.session(database), f"INSERT INTO held VALUES ({v})")
                if fail:
                    raise Boom

    await off_the_loop(world, write(1, fail=False))
    with suppress(Boom):
        await off_the_loop(world, write(2, fail=True))
    assert world.held() == [1]


@case("L3", "contexts")
async def an_app_context_keeps_its_work_at_a_clean_end_alone(world: World) -> None:
    world.database()

    def insert(v: int, *, fail: bool) -> None:
        with world.outside():
            run_now(world.family.run(world.framework.own_session(), f"INSERT INTO held VALUES ({v})"))
            if fail:
                raise Boom

    insert(1, fail=False)
    with suppress(Boom):
        insert(2, fail=True)
    assert world.held() == [1]


# Saved round trips: what a lone read must not do, and what must not reach the next request

NOTE = """
CREATE FUNCTION contract_note() RETURNS integer LANGUAGE plpgsql AS 'BEGIN INSERT INTO held VALUES (9); RETURN 9; END';
CREATE VIEW contract_view AS SELECT contract_note() AS v;
"""
TENANT = """
CREATE FUNCTION contract_tenant() RETURNS text LANGUAGE sql AS $$ SELECT set_config('contract.tenant', 'one', false) $$;
CREATE VIEW contract_view AS SELECT contract_tenant() AS v;
"""
NEWS = """
CREATE FUNCTION contract_news() RETURNS text LANGUAGE sql AS $$ SELECT pg_notify('contract', 'news')::text $$;
CREATE VIEW contract_view AS SELECT contract_news() AS v;
"""
LOCK = """
CREATE FUNCTION contract_lock() RETURNS text LANGUAGE sql AS $$ SELECT pg_advisory_lock(42)::text $$;
CREATE VIEW contract_view AS SELECT contract_lock() AS v;
"""
GONE = """
DROP VIEW IF EXISTS contract_view;
DROP FUNCTION IF EXISTS contract_note, contract_tenant, contract_news, contract_lock;
"""


@case("L4", "saves")
async def a_lone_read_takes_no_transaction_and_holds_no_connection(world: World) -> None:
    alone: list[Any] = []

    async def handler(ctx: Context) -> Answer:
        alone.append(await ctx.value("SELECT now()") == await ctx.value("SELECT now()"))
        alone.append(world.family.checked_out(world.databases[0]))
        return Answer(200)

    assert (await world.request(handler, method="GET")).status == 200
    assert alone == [False, 0], "both were one transaction"


@case("L3", "saves")
async def each_saving_can_be_switched_off(world: World) -> None:
    world.database(bare_reads=False, skip_reset=False)
    alone: list[Any] = []

    async def handler(ctx: Context) -> Answer:
        alone.append(await ctx.value("SELECT now()") == await ctx.value("SELECT now()"))
        alone.append(world.family.checked_out(world.databases[0]))
        return Answer(200)

    assert (await world.request(handler, method="GET")).status == 200
    assert alone == [True, 1]


@case("L3", "saves")
async def a_view_that_writes_is_kept_or_not_by_the_status(world: World) -> None:
    async def ask(status: int) -> None:
        async def handler(ctx: Context) -> Answer:
            assert await ctx.value("SELECT v FROM contract_view") == 9
            return Answer(status)

        assert (await world.request(handler, method="GET")).status == status

    with world.engine.code(NOTE, GONE):
        await ask(400)
        assert world.held() == []
        await ask(200)
        assert world.held() == [9]


@case("L3", "saves")
async def what_a_function_sets_does_not_reach_the_next_request(world: World) -> None:
    seen: list[Any] = []

    async def sets(ctx: Context) -> Answer:
        seen.append(await ctx.value("SELECT v FROM contract_view"))
        return Answer(200)

    async def looks(ctx: Context) -> Answer:
        seen.append(await ctx.value("SELECT coalesce(current_setting('contract.tenant', true), '')"))
        return Answer(200)

    with world.engine.code(TENANT, GONE):
        for handler in (sets, looks, sets, looks):
            assert (await world.request(handler, method="GET")).status == 200
    assert seen == ["one", "", "one", ""]


@case("L3", "saves")
async def a_refused_request_notifies_nobody(world: World) -> None:
    async def ask(status: int) -> None:
        async def handler(ctx: Context) -> Answer:
            await ctx.value("SELECT v FROM contract_view")
            await ctx.run("NOTIFY contract, 'by name'")
            return Answer(status)

        assert (await world.request(handler, method="GET")).status == status

    with world.engine.code(NEWS, GONE), world.engine.listening("contract") as heard:
        await ask(400)
        assert heard() == []
        await ask(200)
        assert heard() == ["news", "by name"]


@case("L4", "saves")
async def no_lock_is_held_after_the_request_that_took_it(world: World) -> None:
    async def ask(sql: str) -> None:
        async def handler(ctx: Context) -> Answer:
            await ctx.value(sql)
            assert world.engine.advisory_locks() == 1
            return Answer(200)

        assert (await world.request(handler, method="GET")).status == 200
        assert world.engine.advisory_locks() == 0

    with world.engine.code(LOCK, GONE):
        await ask("SELECT v FROM contract_view")
        await ask("SELECT pg_advisory_lock(43)")


@case("L3", "saves")
async def rows_that_are_read_for_update_stay_locked_until_the_end(world: World) -> None:
    async def handler(ctx: Context) -> Answer:
        assert await ctx.value("SELECT v FROM held FOR UPDATE") == 1
        assert not world.engine.can_lock("held")
        await ctx.run("UPDATE held SET v = v + 1")
        return Answer(200)

    async def fill(ctx: Context) -> Answer:
        await ctx.insert(1)
        return Answer(201)

    await world.request(fill)
    assert (await world.request(handler)).status == 200
    assert world.engine.can_lock("held")
    assert world.held() == [2]


@case("L4", "websocket", "awaiting")
async def a_websocket_has_a_unit_for_each_message(world: World) -> None:
    world.database()
    told: list[tuple[str, list[int]]] = []
    held_while_waiting: list[int] = []
    texts = ("1", "3 doomed", "2", "x")
    incoming = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": text} for text in texts)]

    async def work(websocket: Any) -> None:
        await websocket.accept()
        session = world.framework.session(websocket, None)
        while True:
            text, *doomed = (await websocket.receive_text()).split()
            if doomed:
                doom(doomed[0])
            await world.family.run(session, f"INSERT INTO held VALUES ({text if text != 'x' else 99})")
            if text == "x":
                raise Boom
            if not doomed:
                await websocket.send_text(text)

    async def receive() -> Any:
        held_while_waiting.append(world.engine.open_transactions() + world.family.checked_out(world.databases[0]))
        return incoming.pop(0)

    async def send(message: Any) -> None:
        told.append((message["type"], world.held()))

    app = world.framework.app(world.databases, work, world.family.blocking, {})
    scope = {"type": "websocket", "path": "/socket", "raw_path": b"/socket", "query_string": b"", "headers": []}
    with suppress(Boom):
        await app({**scope, "subprotocols": [], "root_path": "", "scheme": "ws"}, receive, send)
    assert [held for kind, held in told if kind == "websocket.send"] == [[1], [1, 2]]
    assert world.held() == [1, 2]
    assert held_while_waiting == [0] * len(held_while_waiting)


async def off_the_loop(world: World, work: Any) -> None:
    """Do this where a blocking session may be used."""
    if world.family.blocking and "async" in world.can:
        await asyncio.to_thread(run_now, work)
    else:
        await work


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)


numbers = itertools.count(1)


@asynccontextmanager
async def beating() -> AsyncIterator[Callable[[], float]]:
    """A heart on the loop; gives a callable that returns the longest time between two beats, in seconds."""
    beats = [time.monotonic()]

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.01)
            beats.append(time.monotonic())

    heart = asyncio.create_task(beat())
    try:
        yield lambda: max(later - earlier for earlier, later in pairwise([*beats, time.monotonic()]))
    finally:
        heart.cancel()


class warnings_logged(logging.Handler):  # noqa: N801 - reads as the function that it is used as
    """What Transept's logger says, at WARNING and above."""

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        self.logger = logging.getLogger("transept")
        self.logger.addHandler(self)
        return self.lines

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
