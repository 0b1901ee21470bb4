"""What goes on when a request is over, what ends programs on the background loop, and ends that nobody hears of."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from time import monotonic, sleep
from typing import Any

import pytest
from flask import Flask, Response, appcontext_pushed, g
from flask_site import Held, Site, site_of
from held import out_of_pool
from sqlalchemy import text
from werkzeug.test import Client

from transept import CommitInDoubt, LoopTimeout, OutsideScope, after_commit, sync_db_session, unit_of_work
from transept._portal import PORTAL
from transept.alchemy import SQLAlchemyAsyncConfig
from transept.extensions.flask import Transept


def loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "transept-loop"]


def until(holds: Any, seconds: float = 8.0) -> bool:
    end = monotonic() + seconds
    while not holds() and monotonic() < end:
        sleep(0.02)
    return bool(holds())


@pytest.fixture
def hasty(pg) -> Iterator[Site]:
    with site_of(pg, pg.config(), timeout=0.5) as made:
        yield made


# What goes on.


@pytest.mark.parametrize("status", [201, 400])
def test_what_a_left_task_goes_on_to_write_is_not_kept(async_site: Site, status: int):
    """Its statement waited while the response was settled, and finds the session over."""
    ends: list[Any] = []

    async def view() -> Any:
        session = async_site.db.get_session()
        began = asyncio.Event()

        async def write() -> None:
            try:
                for v in range(100, 1000):
                    await session.execute(text("INSERT INTO held VALUES (:v)"), {"v": v})
                    began.set()
            except Exception as error:
                ends.append(error)

        g.task = asyncio.create_task(write())
        await began.wait()
        return "", status

    async_site.view(view)
    assert async_site.post().status_code == status
    assert until(lambda: ends)
    assert isinstance(ends[0], OutsideScope)
    kept = async_site.held()
    assert kept == ([] if status == 400 else list(range(100, 100 + len(kept))))


def test_what_a_view_writes_after_middleware_has_answered_is_not_kept(file):
    """Middleware inside of the gate that gives up waiting."""
    app, told, may_go_on = Flask("slow"), [], threading.Event()

    def inside(environ: Any, start_response: Any) -> Any:
        threading.Thread(target=lambda: told.append(answered(environ))).start()
        start_response("504 Gateway Timeout", [])
        return [b"too late"]

    flask_itself = app.wsgi_app

    def answered(environ: Any) -> Any:
        try:
            return list(flask_itself(environ, lambda status, headers, exc_info=None: told.append(status)))
        finally:
            told.append("over")

    setattr(app, "wsgi_app", inside)  # noqa: B010
    db = Transept(file.sync_config(), app)

    @app.post("/")
    def view() -> Any:
        assert may_go_on.wait(5)
        db.get_session().add(Held(v=1))
        return "", 201

    answer = Client(app).post("/")
    may_go_on.set()
    assert answer.status_code == 504
    assert until(lambda: "over" in told)
    assert (told[0], file.held()) == ("500 INTERNAL SERVER ERROR", [])
    db.close()


def test_a_session_asked_for_while_the_context_is_pushed_is_the_requests(site: Site):
    def pushed(app: Flask, **_: Any) -> None:
        g.session = site.db.get_session()

    @site.view
    def view() -> Any:
        assert g.session is site.db.get_session()
        g.session.add(Held(v=1))
        return "", 400

    with appcontext_pushed.connected_to(pushed, site.app):
        assert (site.post().status_code, site.held()) == (400, [])


def test_a_response_class_that_writes_while_it_is_sent_is_settled_by_its_status(site: Site):
    class Late(Response):
        def __call__(self, environ: Any, start_response: Any) -> Any:
            site.add(self.status_code)
            return super().__call__(environ, start_response)

    site.view(lambda: Late("no", 400), endpoint="no")
    site.view(lambda: Late("yes", 201), "/yes", endpoint="yes")
    assert (site.post().status_code, site.held()) == (400, [])
    assert (site.post("/yes").status_code, site.held()) == (201, [201])


# What ends programs.


def test_a_hook_that_exits_does_not_end_the_loop(async_site: Site):
    @async_site.view
    def view() -> Any:
        async_site.add(1)
        after_commit(lambda: sys.exit(3))
        return "", 201

    @async_site.view
    def other() -> Any:
        async_site.add(2)
        return "", 201

    async_site.view(other, "/other", endpoint="again")
    with pytest.raises(SystemExit):
        async_site.post()
    assert (async_site.post("/other").status_code, async_site.held()) == (201, [1, 2])


def test_a_task_that_exits_does_not_end_the_loop(async_site: Site):
    async def exits() -> None:
        sys.exit(3)

    async def view() -> Any:
        await asyncio.wait_for(exits(), 1)
        return "", 201

    async def other() -> Any:
        async_site.db.get_session().add(Held(v=1))
        return "", 201

    async_site.view(view)
    async_site.view(other, "/other")
    with pytest.raises(SystemExit):
        async_site.post()
    assert (async_site.post("/other").status_code, async_site.held()) == (201, [1])


# Both kinds of databases.


def test_a_request_that_uses_sync_databases_alone_needs_no_loop(file, pg):
    """So it cannot wait for a view that blocks the loop, which may wait for its locks."""
    sync = file.sync_config(bind_key="sync")
    with site_of(pg, pg.config()) as site:
        other = Transept(sync, site.app)

        @site.view
        def view() -> Any:
            other.get_session().add(Held(v=1))
            return "", 201

        assert (site.post().status_code, file.held(), loops()) == (201, [1], [])
        other.close()


# Ends that nobody hears of.


@pytest.fixture
def slow_commit(hasty: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A COMMIT takes longer than anybody waits for it."""
    monkeypatch.setattr("transept._portal.CANCEL_SECONDS", 0.2)
    hasty.tables.slow_commit(1.5)
    return hasty


def test_a_commit_of_the_apps_own_that_is_not_heard_of_is_in_doubt(slow_commit: Site):
    @slow_commit.view
    def view() -> Any:
        slow_commit.add(1)
        slow_commit.db.get_session().commit()
        return "", 201

    answer = slow_commit.post()
    assert (answer.status_code, "in doubt" in answer.text, "Retry-After" in answer.headers) == (503, True, False)
    assert until(lambda: out_of_pool(slow_commit.config) == 0)


def test_a_block_whose_commit_is_not_heard_of_is_in_doubt(slow_commit: Site):
    with pytest.raises(CommitInDoubt), slow_commit.db.with_session() as session:
        session.add(Held(v=1))
    with pytest.raises(CommitInDoubt), slow_commit.app.app_context():
        slow_commit.add(2)
    assert until(lambda: out_of_pool(slow_commit.config) == 0)


@pytest.mark.parametrize("fails", [False, True])
def test_an_end_that_the_held_loop_cannot_begin_comes_when_it_can(hasty: Site, fails: bool):
    async def hold() -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - that is the point

    with pytest.raises((CommitInDoubt, KeyError)), hasty.db.with_session() as session:
        session.add(Held(v=1))
        session.flush()
        PORTAL.leave(hold(), "holding the loop")
        if fails:
            raise KeyError
    assert until(lambda: out_of_pool(hasty.config) == 0)
    assert hasty.held() in ([[]] if fails else [[], [1]])


@pytest.mark.parametrize("fails", [False, True])
def test_a_savepoint_that_the_held_loop_cannot_end_leaves_nothing(hasty: Site, fails: bool):
    """The error of the block comes first."""

    async def hold() -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - that is the point

    @hasty.view
    def view() -> Any:
        hasty.add(1)
        with pytest.raises(KeyError if fails else LoopTimeout), unit_of_work():
            hasty.add(2)
            PORTAL.leave(hold(), "holding the loop")
            if fails:
                raise KeyError
        return "", 201

    assert hasty.post().status_code >= 500
    assert until(lambda: out_of_pool(hasty.config) == 0)
    assert hasty.held() == []


def test_names_are_resolved_while_all_threads_of_the_loop_wait_for_it(pg):
    """Each of them runs plain code, which waits for the loop to connect."""
    config = pg.config()
    url = pg.server.url("asyncpg").replace("127.0.0.1", "localhost")
    named = SQLAlchemyAsyncConfig(connection_string=url, engine_config=config.engine_config)
    with site_of(pg, named, timeout=10) as site:

        async def view() -> Any:
            def plain() -> None:
                site.db.get_session().execute(text("SELECT 1"))

            await asyncio.to_thread(plain)
            return "", 201

        site.view(view)
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(site.post().status_code)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [201] * 12


# Plain code that an async view calls.


@pytest.fixture
def both(file, pg) -> Iterator[Site]:
    """A sync database, in an app that has an async one, too."""
    with site_of(pg, pg.config()) as site:
        sync = Transept(file.sync_config(bind_key="sync"), site.app)

        async def outer() -> Any:
            return str(Client(site.app).post("/inner").status_code), 201

        site.view(outer, "/outer")
        site.configs.append(sync.get_config())
        yield site
        sync.close()


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
@pytest.mark.parametrize("status", [201, 400])
def test_a_plain_view_that_an_async_one_calls_is_settled_where_it_runs(both: Site, file, status: int):
    """Over a sync database there is nothing that it would have to wait for on the loop."""

    def inner() -> Any:
        session = sync_db_session("sync")
        session.add(Held(v=1))
        session.flush()
        return "", status

    both.view(inner, "/inner")
    assert both.post("/outer").text == str(status)
    assert file.held() == ([1] if status == 201 else [])


def test_a_plain_view_over_an_async_database_that_an_async_one_calls_leaves_nothing(both: Site):
    """It would wait for the loop that it runs on."""
    session: list[Any] = []

    def inner() -> Any:
        session.append(both.db.get_session())
        return "", 201

    async def writes() -> Any:
        await both.db.get_session().execute(text("INSERT INTO held VALUES (1)"))
        return str(Client(both.app).post("/inner").status_code), 400

    both.view(inner, "/inner")
    both.view(writes, "/writes")
    assert both.post("/writes").status_code == 400
    assert both.held() == []
