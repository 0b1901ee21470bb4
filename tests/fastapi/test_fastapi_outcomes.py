"""What FastAPI makes of errors, validation and `yield` dependencies, and what the database holds then."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from held import COUNT, VIOLATION, File, Postgres, calling, insert, out_of_pool, post
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from transept import CommitFailed, OutsideScope, after_commit, doom, unit_of_work
from transept.extensions.fastapi import Transept

pytestmark = pytest.mark.anyio

When = Literal["function", "request"]
both_scopes = pytest.mark.parametrize("scope", ["function", "request"])


def app_with(config: Any, **options: Any) -> tuple[FastAPI, Transept, Any]:
    """An app, its databases, and the annotation of its session."""
    app = FastAPI(**options)
    db = Transept(config, app)
    return app, db, Annotated[Any, Depends(db.provide_session())]


# Errors and validation


@pytest.mark.parametrize("status", [303, 400, 404, 409, 422, 500, 503])
async def test_an_http_exception_decides_by_its_status(file: File, status: int) -> None:
    app, _, injected = app_with(file.config())

    @app.post("/")
    async def write(session: injected) -> None:
        await session.execute(insert(1))
        raise HTTPException(status, "no")

    assert (await post(app)).status_code == status
    assert file.held() == []


async def test_an_http_exception_with_a_status_that_commits_commits(file: File) -> None:
    app, _, injected = app_with(file.config(extra_commit_statuses={404}))

    @app.post("/")
    async def write(session: injected) -> None:
        await session.execute(insert(1))
        raise HTTPException(404)

    assert (await post(app)).status_code == 404
    assert file.held() == [1]


async def test_an_http_exception_in_a_dependency_undoes_what_those_before_it_wrote(file: File) -> None:
    app, _, injected = app_with(file.config())

    async def audit(session: injected) -> None:
        await session.execute(insert(1))

    async def refuse(audited: Annotated[None, Depends(audit)]) -> None:
        raise HTTPException(403)

    @app.post("/", dependencies=[Depends(refuse)])
    async def write() -> None: ...

    assert (await post(app)).status_code == 403
    assert file.held() == []


async def test_an_error_goes_to_the_framework_and_keeps_nothing(file: File) -> None:
    app, _, injected = app_with(file.config())

    @app.post("/", status_code=201)
    async def write(session: injected) -> None:
        await session.execute(insert(1))
        raise ValueError

    assert (await post(app)).status_code == 500
    assert file.held() == []


async def test_a_request_that_does_not_validate_keeps_nothing_of_its_dependencies(file: File) -> None:
    app, _, injected = app_with(file.config())

    async def audit(session: injected) -> None:
        await session.execute(insert(1))

    @app.post("/", dependencies=[Depends(audit)])
    async def write(number: int) -> None: ...

    assert (await post(app, "/?number=x")).status_code == 422
    assert file.held() == []
    assert (await post(app, "/?number=1")).status_code == 200
    assert file.held() == [1]


async def test_a_validation_handler_of_the_apps_own_decides_by_its_status(file: File) -> None:
    app, db, injected = app_with(file.config())

    async def audit(session: injected) -> None:
        await session.execute(insert(1))

    @app.exception_handler(RequestValidationError)
    async def accept(request: Request, error: Exception) -> JSONResponse:
        await db.get_session(request).execute(insert(2))
        return JSONResponse("all the same", 202)

    @app.post("/", dependencies=[Depends(audit)])
    async def write(number: int) -> None: ...

    assert (await post(app, "/?number=x")).status_code == 202
    assert file.held() == [1, 2]


class Item(BaseModel):
    v: int


async def test_an_answer_that_does_not_fit_its_model_keeps_nothing(file: File) -> None:
    app, _, injected = app_with(file.config())

    @app.post("/", status_code=201, response_model=Item)
    async def write(session: injected) -> Any:
        await session.execute(insert(1))
        return {"v": "not a number"}

    async with calling(app, raises=True) as client:
        with pytest.raises(ResponseValidationError):
            await client.post("/")
    assert (await post(app)).status_code == 500
    assert file.held() == []


@pytest.mark.parametrize("status", [201, 409])
async def test_the_status_that_an_endpoint_sets_on_the_response_decides(file: File, status: int) -> None:
    app, _, injected = app_with(file.config())

    @app.post("/", status_code=201 if status == 409 else 409)
    async def write(session: injected, response: Response) -> None:
        await session.execute(insert(1))
        response.status_code = status

    assert (await post(app)).status_code == status
    assert file.held() == ([1] if status == 201 else [])


@pytest.mark.parametrize("mode", ["autocommit", "autocommit_include_redirect"])
async def test_a_redirect_is_kept_only_in_its_mode(file: File, mode: Any) -> None:
    app, _, injected = app_with(file.config(commit_mode=mode))

    @app.post("/", response_class=RedirectResponse, status_code=303)
    async def write(session: injected) -> str:
        await session.execute(insert(1))
        return "/elsewhere"

    assert (await post(app)).status_code == 303
    assert file.held() == ([] if mode == "autocommit" else [1])


async def test_a_doomed_unit_keeps_nothing_of_a_success(file: File, caplog: pytest.LogCaptureFixture) -> None:
    app, _, injected = app_with(file.config())

    @app.post("/", status_code=201)
    async def write(session: injected) -> None:
        await session.execute(insert(1))
        doom("second thoughts")

    assert (await post(app)).status_code == 201
    assert file.held() == []
    assert "second thoughts" in caplog.text


# A COMMIT that fails


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_the_apps_handler_answers_for_an_error_that_shows_only_at_commit(pg: Postgres, colour: str) -> None:
    app, _, injected = app_with(pg.config() if colour == "async" else pg.sync_config())
    ran: list[int] = []

    @app.exception_handler(IntegrityError)
    async def conflict(request: Request, error: IntegrityError) -> JSONResponse:
        return JSONResponse({"late": error.orig is not None}, 409)

    if colour == "async":

        @app.post("/", status_code=201)
        async def write(session: injected) -> int:
            await session.execute(insert(1))
            await session.execute(VIOLATION)
            after_commit(lambda: ran.append(1))
            return 1

    else:

        @app.post("/", status_code=201)
        def write_in_a_thread(session: injected) -> int:
            session.execute(insert(1))
            session.execute(VIOLATION)
            after_commit(lambda: ran.append(1))
            return 1

    response = await post(app)
    assert (response.status_code, response.json()) == (409, {"late": True})
    assert (pg.held(), ran, pg.in_transaction()) == ([], [], 0)


async def test_without_a_handler_it_is_a_500_and_the_original_error(pg: Postgres) -> None:
    app, _, injected = app_with(pg.config())

    @app.post("/", status_code=201)
    async def write(session: injected) -> None:
        await session.execute(VIOLATION)

    assert (await post(app)).status_code == 500
    async with calling(app, raises=True) as client:
        with pytest.raises(IntegrityError, match="child_p_fkey"):
            await client.post("/")


async def test_a_swallowed_error_is_a_failed_commit(pg: Postgres) -> None:
    app, _, injected = app_with(pg.config())

    @app.exception_handler(CommitFailed)
    async def failed(request: Request, error: CommitFailed) -> JSONResponse:
        return JSONResponse("not kept", 503)

    @app.post("/", status_code=201)
    async def write(session: injected) -> None:
        await session.execute(insert(1))
        with pytest.raises(Exception, match="nonsense"):
            await session.execute(text("SELECT nonsense"))

    assert (await post(app)).status_code == 503
    assert pg.held() == []


# Dependencies with `yield`


@both_scopes
async def test_a_commit_never_waits_for_a_users_yield_dependency(file: File, scope: When) -> None:
    app, _, injected = app_with(file.config())
    seen: list[Any] = []

    async def around(session: injected) -> AsyncIterator[None]:
        seen.append(("before", file.held()))
        yield
        seen.append(("after", file.held()))

    @app.post("/", status_code=201)
    async def write(session: injected, around: Annotated[None, Depends(around, scope=scope)]) -> None:
        await session.execute(insert(1))

    assert (await post(app)).status_code == 201
    assert file.held() == [1]
    assert seen == [("before", []), ("after", [] if scope == "function" else [1])]


async def test_what_a_function_scoped_teardown_writes_is_kept_with_the_response(file: File) -> None:
    app, _, injected = app_with(file.config())

    async def audited(session: injected) -> AsyncIterator[None]:
        yield
        await session.execute(insert(2))

    @app.post("/")
    async def write(session: injected, status: int, response: Response, _: given(audited, "function")) -> None:
        await session.execute(insert(1))
        response.status_code = status

    async with calling(app, raises=True) as client:
        assert (await client.post("/?status=409")).status_code == 409
        assert file.held() == []
        assert (await client.post("/?status=201")).status_code == 201
    assert file.held() == [1, 2]


async def test_an_error_in_a_function_scoped_teardown_undoes_the_request(file: File) -> None:
    app, _, injected = app_with(file.config())

    async def audited(session: injected) -> AsyncIterator[None]:
        yield
        raise ValueError

    @app.post("/", status_code=201)
    async def write(session: injected, _: given(audited, "function")) -> None:
        await session.execute(insert(1))

    assert (await post(app)).status_code == 500
    assert file.held() == []


async def test_a_request_scoped_teardown_writes_in_a_fresh_unit(file: File) -> None:
    app, db, injected = app_with(file.config())

    async def audited(request: Request, session: injected) -> AsyncIterator[None]:
        yield
        fresh = db.get_session(request)
        assert fresh is not session
        assert fresh is request.state.db_session
        await fresh.execute(insert(2))

    @app.post("/")
    async def write(session: injected, status: int, response: Response, _: given(audited, "request")) -> None:
        await session.execute(insert(1))
        response.status_code = status

    async with calling(app, raises=True) as client:
        assert (await client.post("/?status=409")).status_code == 409
        assert file.held() == [2]
        assert (await client.post("/?status=201")).status_code == 201
    assert file.held() == [1, 2, 2]


async def test_a_request_scoped_teardown_with_the_requests_session_is_told_what_to_do(file: File) -> None:
    app, _, injected = app_with(file.config())

    async def audited(session: injected) -> AsyncIterator[None]:
        yield
        await session.execute(insert(2))

    @app.post("/", status_code=201)
    async def write(session: injected, _: given(audited, "request")) -> None:
        await session.execute(insert(1))

    async with calling(app, raises=True) as client:
        with pytest.raises(OutsideScope, match="is over"):
            await client.post("/")
    assert file.held() == [1]


async def test_what_a_failing_request_scoped_teardown_wrote_is_rolled_back_and_the_answer_stands(file: File) -> None:
    app, db, injected = app_with(file.config())

    async def audited(request: Request) -> AsyncIterator[None]:
        yield
        await db.get_session(request).execute(insert(2))
        raise ValueError

    @app.post("/", status_code=201)
    async def write(session: injected, _: given(audited, "request")) -> None:
        await session.execute(insert(1))

    assert (await post(app)).status_code == 201
    assert file.held() == [1]


@both_scopes
async def test_a_plain_generator_dependency_closes_with_a_blocking_session(file: File, scope: When) -> None:
    config = file.sync_config()
    app, db, _ = app_with(config)

    def audited(request: Request) -> Iterator[Session]:
        yield db.get_sync_session(request)
        db.get_sync_session(request).execute(insert(2))

    @app.post("/", status_code=201)
    def write(session: given(audited, scope)) -> None:
        session.execute(insert(1))

    assert (await post(app)).status_code == 201
    assert file.held() == [1, 2]
    assert out_of_pool(config) == 0


@both_scopes
async def test_a_dependency_that_begins_its_own_transaction_goes_on_working(file: File, scope: When) -> None:
    """The usual recipe, put over our session."""
    config = file.config()
    app, _, injected = app_with(config)

    async def begun(session: injected) -> AsyncIterator[AsyncSession]:
        async with session.begin():
            yield session

    @app.post("/", status_code=201)
    async def write(session: given(begun, scope), fails: bool = False) -> None:
        await session.execute(insert(1))
        if fails:
            raise HTTPException(409)

    async with calling(app, raises=True) as client:
        assert (await client.post("/?fails=1")).status_code == 409
        assert file.held() == []
        assert (await client.post("/")).status_code == 201
    assert file.held() == [1]
    assert out_of_pool(config) == 0


@both_scopes
async def test_a_dependency_that_is_a_block_is_undone_by_an_error_that_the_app_answers(file: File, scope: When) -> None:
    app, _, injected = app_with(file.config(extra_commit_statuses={409}))

    async def block() -> AsyncIterator[None]:
        async with unit_of_work():
            yield

    @app.post("/", status_code=201)
    async def write(session: injected, _: given(block, scope), fails: bool = False) -> None:
        await session.execute(insert(1))
        if fails:
            raise HTTPException(409)

    async with calling(app, raises=True) as client:
        assert (await client.post("/?fails=1")).status_code == 409
        assert file.held() == []
        assert (await client.post("/")).status_code == 201
    assert file.held() == [1]


@both_scopes
async def test_a_block_around_the_endpoint_ends_quietly_when_its_work_was_kept_before(file: File, scope: When) -> None:
    app, _, injected = app_with(file.config())

    async def first(session: injected) -> None:
        await session.execute(insert(1))

    async def block(first: Annotated[None, Depends(first)]) -> AsyncIterator[None]:
        async with unit_of_work():
            yield

    @app.post("/", status_code=201)
    async def write(session: injected, _: given(block, scope)) -> None:
        await session.execute(insert(2))

    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert file.held() == [1, 2]


async def test_a_dependency_that_turns_an_error_into_an_answer_is_asked_for_a_failed_commit_too(pg: Postgres) -> None:
    app, _, injected = app_with(pg.config())

    async def conflicts() -> AsyncIterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise HTTPException(409, "no such parent") from error

    @app.post("/", status_code=201, dependencies=[Depends(conflicts)])
    async def write(session: injected, early: bool) -> None:
        await session.execute(VIOLATION)
        if early:
            await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))

    async with calling(app, raises=True) as client:
        for early in (True, False):
            response = await client.post(f"/?early={early}")
            assert (response.status_code, response.json()) == (409, {"detail": "no such parent"})
    assert pg.in_transaction() == 0


async def test_a_dependency_that_swallows_a_failed_commit_does_not_make_it_a_success(
    pg: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    app, _, injected = app_with(pg.config())

    async def careless() -> AsyncIterator[None]:
        try:
            yield
        except IntegrityError:
            logging.info("never mind")

    @app.post("/", status_code=201, dependencies=[Depends(careless)])
    async def write(session: injected) -> None:
        await session.execute(VIOLATION)

    assert (await post(app)).status_code == 500
    async with calling(app, raises=True) as client:
        with pytest.raises(IntegrityError):
            await client.post("/")


async def test_a_dependency_sees_the_error_of_the_endpoint_and_may_log_it(file: File, other_file: File) -> None:
    app, db, _ = app_with([file.config(), other_file.config(bind_key="log")])

    async def logged() -> AsyncIterator[None]:
        try:
            yield
        except ValueError:
            async with db.with_async_session("log") as session:
                await session.execute(insert(7))
            raise

    @app.post("/", status_code=201, dependencies=[Depends(logged)])
    async def write(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> None:
        await session.execute(insert(1))
        raise ValueError

    assert (await post(app)).status_code == 500
    assert (file.held(), other_file.held()) == ([], [7])


async def test_reading_back_in_the_same_request_sees_its_own_work(file: File) -> None:
    app, _, injected = app_with(file.config())

    @app.post("/", status_code=201)
    async def write(session: injected) -> int:
        await session.execute(insert(1))
        return int(await session.scalar(COUNT))

    assert (await post(app)).json() == 1


def given(dependency: Any, scope: When) -> Any:
    return Annotated[Any, Depends(dependency, scope=scope)]
