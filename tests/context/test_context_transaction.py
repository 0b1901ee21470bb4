"""`transaction(scope)`: what a block is inside an open unit and outside of one, as a block and as a decorator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from held import COUNT, File, Postgres, insert, post, served
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from transept import (
    CommitFailed,
    ImproperConfigurationError,
    OutsideScope,
    Unit,
    UsageError,
    after_commit,
    commit_db_session,
    current_unit,
    db_session,
    is_context_initiated,
    rollback_db_session,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.extensions.starlette import add_starlette_http_db_session_middleware

pytestmark = pytest.mark.anyio

OPENING: list[Any] = ["required", "requires_new", "nested"]
ALL: list[Any] = [*OPENING, "mandatory"]


class Boom(Exception):
    pass


async def write(database: Any, v: int) -> None:
    await (await db_session(database)).execute(insert(v))


# Where there is no unit, the block is one


@pytest.mark.parametrize("scope", OPENING)
async def test_alone_it_commits_at_a_clean_end_whatever_the_mode(pg: Postgres, scope: Any) -> None:
    database = pg.dbconnect(commit_mode="manual")
    async with transaction(scope) as unit:
        assert isinstance(unit, Unit)
        assert unit is current_unit()
        await write(database, 1)
        assert pg.held() == []
    assert (pg.held(), pg.out_of_pools(), is_context_initiated()) == ([1], 0, False)


@pytest.mark.parametrize("scope", OPENING)
async def test_alone_it_rolls_back_on_an_error(pg: Postgres, scope: Any) -> None:
    database = pg.dbconnect()
    with pytest.raises(Boom):
        async with transaction(scope):
            await write(database, 1)
            raise Boom
    assert (pg.held(), pg.out_of_pools(), is_context_initiated()) == ([], 0, False)


@pytest.mark.parametrize("scope", OPENING)
def test_alone_and_blocking(file: File, scope: Any) -> None:
    database = file.sync_config()
    with transaction(scope) as unit:
        sync_db_session(database).execute(insert(1))
        assert unit is current_unit()
    with suppress(Boom), transaction(scope):
        sync_db_session(database).execute(insert(2))
        raise Boom
    assert (file.held(), is_context_initiated()) == ([1], False)


@pytest.mark.parametrize("scope", OPENING)
async def test_alone_as_a_decorator(pg: Postgres, scope: Any) -> None:
    database = pg.dbconnect()

    @transaction(scope)
    async def keep(v: int, *, fail: bool = False) -> int:
        """Docs."""
        await write(database, v)
        if fail:
            raise Boom
        return v

    assert await keep(1) == 1
    with pytest.raises(Boom):
        await keep(2, fail=True)
    assert await asyncio.gather(keep(3), keep(4)) == [3, 4]
    assert pg.held() == [1, 3, 4]
    assert (keep.__name__, keep.__doc__) == ("keep", "Docs.")


@pytest.mark.parametrize("scope", OPENING)
def test_alone_as_a_decorator_of_a_plain_function(file: File, scope: Any) -> None:
    database = file.sync_config()

    @transaction(scope)
    def keep(v: int, *, fail: bool = False) -> int:
        sync_db_session(database).execute(insert(v))
        if fail:
            raise Boom
        return v

    assert keep(1) == 1
    with pytest.raises(Boom):
        keep(2, fail=True)
    assert (keep(3), file.held()) == (3, [1, 3])


async def test_mandatory_needs_a_unit(file: File) -> None:
    @transaction("mandatory")
    async def work() -> None:
        raise AssertionError("not reached")

    @transaction("mandatory")
    def plain() -> None:
        raise AssertionError("not reached")

    for call in (work, plain):
        with pytest.raises(OutsideScope, match="needs an open unit"):
            await call()
    with pytest.raises(OutsideScope, match="'mandatory'"):
        async with transaction("mandatory"):
            pass
    with pytest.raises(OutsideScope, match="'mandatory'"), transaction("mandatory"):
        pass


async def test_inner_blocks_of_a_block_behave_as_in_a_request(pg: Postgres) -> None:
    database = pg.dbconnect()
    async with transaction() as outer:
        await write(database, 1)
        async with transaction() as part:
            assert part is outer
            await write(database, 2)
        with suppress(Boom):
            async with transaction("nested") as savepoint:
                assert savepoint is outer
                await write(database, 3)
                raise Boom
        async with transaction("requires_new") as other:
            assert other is not outer
            await write(database, 4)
        assert pg.held() == [4]
    assert pg.held() == [1, 2, 4]
    with pytest.raises(CommitFailed, match="Boom"):
        async with transaction():
            await write(database, 5)
            with suppress(Boom):
                async with transaction("mandatory"):
                    raise Boom
    assert pg.held() == [1, 2, 4]


# Inside a request


@pytest.mark.parametrize("scope", ["required", "nested", "mandatory"])
async def test_in_a_request_it_is_a_part_of_its_unit(pg: Postgres, scope: Any) -> None:
    database = pg.dbconnect()

    @transaction(scope)
    async def decorated() -> None:
        await write(database, 2)

    async def work() -> Response:
        outer = current_unit()
        await write(database, 1)
        async with transaction(scope) as unit:
            assert unit is outer
            await decorated()
        assert pg.held() == []
        return Response(status_code=status)

    for status, kept in ((400, []), (201, [1, 2])):
        assert (await post(served(work))).status_code == status
        assert pg.held() == kept


@pytest.mark.parametrize("scope", ["required", "mandatory"])
async def test_an_error_that_is_swallowed_further_out_fails_the_commit(pg: Postgres, scope: Any) -> None:
    database = pg.dbconnect()
    ran: list[int] = []

    async def background() -> None:
        ran.append(1)

    async def work() -> Response:
        await write(database, 1)
        after_commit(lambda: ran.append(2))
        with suppress(Boom):
            async with transaction(scope):
                raise Boom("the card was declined")
        return Response(status_code=201, background=BackgroundTask(background))

    assert (await post(served(work))).status_code == 500
    assert (pg.held(), ran, pg.out_of_pools()) == ([], [], 0)

    async def conflict(request: Any, error: Exception) -> Response:
        return JSONResponse(str(error), 409)

    response = await post(served(work, handlers={CommitFailed: conflict}))
    assert (response.status_code, pg.held(), ran) == (409, [], [])
    assert "Boom: the card was declined" in response.json()


@pytest.mark.parametrize("commit", ["session", "context"])
async def test_it_fails_the_apps_own_commit_as_well(pg: Postgres, commit: str) -> None:
    database = pg.dbconnect(commit_mode="manual")

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        with suppress(Boom):
            async with transaction():
                raise Boom
        if commit == "session":
            await session.commit()
        else:
            await commit_db_session(database)

    assert (await post(served(work))).status_code == 500
    assert (pg.held(), pg.out_of_pools()) == ([], 0)


async def test_after_a_rollback_there_is_nothing_left_to_fail(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        with suppress(Boom):
            async with transaction():
                raise Boom
        await rollback_db_session(database)
        await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


async def test_an_error_that_reaches_the_client_is_its_own(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def boom(request: Any, error: Exception) -> Response:
        return Response(status_code=status)

    async def work() -> None:
        await write(database, 1)
        async with transaction():
            raise Boom

    status = 422
    assert (await post(served(work, handlers={Boom: boom}))).status_code == 422
    status = 200
    assert (await post(served(work, handlers={Boom: boom}))).status_code == 500
    assert pg.held() == []


async def test_a_nested_block_that_fails_is_undone_alone(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        with suppress(Boom):
            async with transaction("nested"):
                await write(database, 2)
                async with transaction():
                    raise Boom
        async with transaction("nested"):
            await write(database, 3)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 3]


async def test_a_swallowed_error_in_a_nested_block_undoes_that_block(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        with pytest.raises(CommitFailed, match="Boom"):
            async with transaction("nested"):
                await write(database, 2)
                with suppress(Boom):
                    async with transaction():
                        raise Boom
        await write(database, 3)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 3]


async def test_a_unit_of_its_own_is_kept_when_the_outer_one_rolls_back(pg: Postgres) -> None:
    database = pg.dbconnect()

    @transaction("requires_new")
    async def audit(v: int) -> None:
        await write(database, v)

    async def work() -> None:
        outer = await db_session(database)
        await outer.execute(insert(1))
        async with transaction("requires_new"):
            assert await db_session(database) is not outer
            await write(database, 2)
        await audit(3)
        assert await db_session(database) is outer
        assert pg.held() == [2, 3]
        raise Boom

    assert (await post(served(work))).status_code == 500
    assert pg.held() == [2, 3]


async def test_a_unit_of_its_own_that_fails_leaves_the_outer_one_alone(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        with suppress(Boom):
            async with transaction("requires_new"):
                await write(database, 2)
                raise Boom

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]


async def test_a_unit_of_its_own_knows_the_databases_by_name(pg: Postgres) -> None:
    async def work() -> Response:
        async with transaction("requires_new"):
            await write(None, 1)
        return Response(status_code=400)

    assert (await post(served(work, databases=pg.dbconnect()))).status_code == 400
    assert pg.held() == [1]


async def test_never_refuses_an_open_transaction(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        async with transaction("never") as unit:
            assert unit is None
            with pytest.raises(OutsideScope):
                await db_session(database)
        await session.execute(insert(1))
        with pytest.raises(UsageError, match="has a transaction open"):
            async with transaction("never"):
                raise AssertionError("not reached")
        await commit_db_session(database)
        async with transaction("never"):
            pass
        assert await db_session(database) is session

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]


async def test_never_in_all_its_forms() -> None:
    @transaction("never")
    async def awaited() -> bool:
        return is_context_initiated()

    @transaction("never")
    def called() -> bool:
        return is_context_initiated()

    async with unit_of_work():
        assert (await awaited(), called(), is_context_initiated()) == (False, False, True)
        with transaction("never"):
            assert not is_context_initiated()
        assert is_context_initiated()
    assert (await awaited(), called()) == (False, False)


# Plain endpoints


@pytest.mark.parametrize("scope", ALL)
async def test_in_a_plain_endpoint(file: File, scope: Any) -> None:
    database = file.sync_config()

    @transaction(scope)
    def decorated(v: int) -> None:
        sync_db_session(database).execute(insert(v))

    def endpoint(request: Request) -> Response:
        status = int(request.query_params["status"])
        with transaction(scope):
            decorated(status)
        return Response(status_code=status)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    add_starlette_http_db_session_middleware(app)
    for status in (201, 400):
        assert (await post(app, f"/?status={status}")).status_code == status
    assert file.held() == ([201, 400] if scope == "requires_new" else [201])


async def test_in_a_plain_endpoint_a_swallowed_error_fails_the_commit_and_a_nested_one_does_not(file: File) -> None:
    database = file.sync_config()

    def endpoint(request: Request) -> Response:
        scope: Any = request.query_params["scope"]
        sync_db_session(database).execute(insert(1))
        with suppress(Boom), transaction(scope):
            sync_db_session(database).execute(insert(2))
            raise Boom
        return Response(status_code=201)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    add_starlette_http_db_session_middleware(app)
    assert (await post(app, "/?scope=required")).status_code == 500
    assert file.held() == []
    assert (await post(app, "/?scope=nested")).status_code == 201
    assert file.held() == [1]


async def test_a_blocking_block_is_no_savepoint_of_async_databases(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        with pytest.raises(UsageError, match="async with"), transaction("nested"):
            raise AssertionError("not reached")
        await write(database, 2)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2]


@pytest.mark.parametrize("scope", ["required", "mandatory"])
async def test_a_blocking_block_may_be_a_part_of_a_unit_with_async_databases(pg: Postgres, scope: Any) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        with transaction(scope):
            pass
        if fails:
            with suppress(Boom), transaction(scope):
                raise Boom

    fails = True
    assert ((await post(served(work))).status_code, pg.held()) == (500, [])
    fails = False
    assert ((await post(served(work))).status_code, pg.held()) == (201, [1])


# What is refused


def test_a_wrong_scope_names_the_nearest() -> None:
    with pytest.raises(ImproperConfigurationError, match=r"'require_new' is not known.*'requires_new'"):
        transaction("require_new")  # type: ignore[call-overload]
    with pytest.raises(ImproperConfigurationError, match=r"mandatory.*never.*required"):
        transaction("xyz")  # type: ignore[call-overload]


def test_a_decorator_without_parentheses_says_so() -> None:
    with pytest.raises(ImproperConfigurationError, match=r"@transaction\(\)"):

        @transaction  # type: ignore[arg-type]
        async def work() -> None:
            pass


def test_generators_are_refused() -> None:
    def plain() -> Iterator[int]:
        yield 1

    async def awaiting() -> AsyncIterator[int]:
        yield 1

    for function in (plain, awaiting):
        with pytest.raises(ImproperConfigurationError, match="is a generator"):
            transaction()(function)


async def test_one_object_serves_one_block() -> None:
    block = transaction()
    async with block:
        pass
    with pytest.raises(RuntimeError, match="one for each"):
        async with block:
            pass
    with pytest.raises(RuntimeError, match="one for each"), block:
        pass


async def test_a_decorated_method_and_a_callable_object(pg: Postgres) -> None:
    database = pg.dbconnect()

    class Service:
        @transaction()
        async def keep(self, v: int) -> None:
            await write(database, v)

        async def __call__(self, v: int) -> None:
            await write(database, v)

    await Service().keep(1)
    called: Any = transaction()(Service())
    await called(2)
    assert pg.held() == [1, 2]


async def test_reads_only_takes_no_write_lock(file: File) -> None:
    database = file.config()
    async with transaction(reads_only=True):
        await (await db_session(database)).execute(COUNT)
        async with transaction("requires_new"):
            await write(database, 1)
    assert file.held() == [1]


# Cancelled


async def test_a_cancelled_block_is_rolled_back_and_gives_everything_back(pg: Postgres) -> None:
    database = pg.dbconnect()
    for scope in OPENING:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1), transaction(scope):
                await write(database, 1)
                await asyncio.sleep(5)
        assert (pg.held(), pg.out_of_pools(), is_context_initiated()) == ([], 0, False)
