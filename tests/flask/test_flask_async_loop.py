"""The background loop under Flask apps: when it is there, for whom, how long it is waited for, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from time import monotonic, sleep

import click
import pytest
from flask import Flask
from flask_site import Held, Site, site_of
from held import out_of_pool
from sqlalchemy import text

from transept import BlockingCallWarning, CommitInDoubt, ConcurrentUseError, LoopTimeout, UsageError, db_session
from transept._portal import PORTAL
from transept.extensions.flask import Transept


def loops():
    return [thread for thread in threading.enumerate() if thread.name == "transept-loop"]


def until(holds, seconds=5.0):
    """Whether this becomes true in time."""
    end = monotonic() + seconds
    while not (held := holds()) and monotonic() < end:
        sleep(0.01)
    return held


def sleeping(tables):
    """Whether a pg_sleep of this test is under way."""
    sleepers = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'"
    return until(lambda: tables.look.execute(sleepers, [tables.name]).fetchone() is not None)


@pytest.fixture(autouse=True)
def no_loop_is_left() -> Iterator[None]:
    """Neither for the test that failed nor for the next one."""
    yield
    left = loops()
    PORTAL.stop()
    assert left == []


@pytest.fixture
def hasty(pg) -> Iterator[Site]:
    """Half a second is all that it waits."""
    with site_of(pg, pg.config(), timeout=0.5) as made:
        yield made


@pytest.fixture
def site(pg) -> Iterator[Site]:
    with site_of(pg, pg.config()) as made:
        yield made


# When it is there.


def test_there_is_none_until_a_session_is_asked_for(site):
    site.view(lambda: "nothing", "/nothing", endpoint="nothing")

    def view():
        site.add(1)
        return "", 201

    site.view(view)
    with site.app.app_context():
        pass
    assert site.get("/nothing").status_code == 200
    assert site.get("/nowhere").status_code == 404
    assert loops() == []
    assert site.post().status_code == 201
    assert len(loops()) == 1


def test_there_is_none_for_sync_databases(file):
    with site_of(file, file.sync_config()) as site:

        def view():
            site.add(1)
            return "", 201

        site.view(view)
        assert site.post().status_code == 201
        assert (loops(), PORTAL.loop) == ([], None)


def test_asking_for_a_session_connects_to_nothing(site):
    def view():
        site.db.get_session()
        assert site.tables.backends() == 0
        site.add(1)
        assert site.tables.backends() == 1
        return "", 201

    site.view(view)
    assert site.post().status_code == 201


def test_one_for_several_apps_and_databases(pg, file):
    with site_of(pg, pg.config()) as one, site_of(file, file.config()) as other:
        for site in (one, other):

            def view(site=site):
                site.add(1)
                return "", 201

            site.view(view)
            assert site.post().status_code == 201
        assert len(loops()) == 1
        one.db.close()
        assert len(loops()) == 1
        assert other.post().status_code == 201
        other.db.close()
        assert loops() == []
        assert pg.backends() == 0


def test_requests_of_many_threads_overlap(site):
    together = threading.Barrier(4)

    def plain(v):
        session = site.db.get_session()
        site.add(v)
        together.wait(10)
        session.execute(text("SELECT pg_sleep(0.01)"))
        return "", 201 if v % 2 else 409

    async def native(v):
        session = await db_session()
        session.add(Held(v=v))
        await session.flush()
        await asyncio.to_thread(together.wait, 10)
        return "", 201 if v % 2 else 409

    site.view(plain, "/plain/<int:v>")
    site.view(native, "/native/<int:v>")
    answers: dict[int, int] = {}

    def call(v):
        answers[v] = site.post(f"/{'plain' if v % 3 else 'native'}/{v}").status_code

    for first in range(0, 16, 4):
        threads = [threading.Thread(target=call, args=[first + n]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {v: 201 if v % 2 else 409 for v in range(16)}
    assert site.held() == list(range(1, 16, 2))
    assert len(loops()) == 1


def test_it_comes_again_after_a_close(site):
    def view():
        site.tables.look.execute("DELETE FROM held")
        site.add(1)
        return "", 201

    site.view(view)
    for _ in range(3):
        assert site.post().status_code == 201
        assert len(loops()) == 1
        site.db.close()
        assert (loops(), site.tables.backends()) == ([], 0)


# One user at a time.


def test_two_threads_in_one_session(site):
    told = []

    def view():
        session = site.db.get_session()
        session.connection()
        busy = threading.Thread(target=lambda: session.execute(text("SELECT pg_sleep(0.3)")), name="the busy one")
        busy.start()
        assert sleeping(site.tables)
        with pytest.raises(ConcurrentUseError) as caught:
            session.execute(text("SELECT 1"))
        told.append(str(caught.value))
        busy.join()
        site.add(1)
        return "", 201

    site.view(view)
    assert site.post().status_code == 201
    assert site.held() == [1]
    assert "the busy one" in told[0]
    assert threading.current_thread().name in told[0]


# Waiting ends.


def test_a_statement_that_takes_too_long_in_a_plain_view(hasty):
    def view():
        hasty.add(1)
        hasty.db.get_session().execute(text("SELECT pg_sleep(30)"))
        return "", 201

    hasty.view(view)
    response = hasty.post()
    assert (response.status_code, "too long" in response.text) == (503, True)
    assert hasty.held() == []
    assert until(lambda: hasty.tables.backends("active") == 0)


def test_a_view_may_go_on_after_a_statement_took_too_long(hasty):
    def view():
        session = hasty.db.get_session()
        with pytest.raises(LoopTimeout, match=r"no answer from database 'default' within 0\.5 s"):
            session.execute(text("SELECT pg_sleep(30)"))
        session.rollback()
        hasty.add(1)
        return "", 201

    hasty.view(view)
    assert hasty.post().status_code == 201
    assert hasty.held() == [1]


def test_a_view_that_swallows_it_commits_nothing(hasty):
    def view():
        hasty.add(1)
        with pytest.raises(LoopTimeout):
            hasty.db.get_session().execute(text("SELECT pg_sleep(30)"))
        return "", 201

    hasty.view(view)
    assert hasty.post().status_code == 500
    assert hasty.held() == []


def test_an_async_view_that_takes_too_long(hasty):
    ended = []

    async def view():
        session = await db_session()
        session.add(Held(v=1))
        try:
            await session.execute(text("SELECT pg_sleep(30)"))
        finally:
            ended.append(True)
        return "", 201

    hasty.view(view)
    assert hasty.post().status_code == 503
    assert (ended, hasty.held()) == ([True], [])


def test_the_apps_handler_answers_a_timeout(hasty):
    told = []

    @hasty.app.errorhandler(LoopTimeout)
    def handler(error):
        told.append(str(error))
        return "try later", 429

    async def view():
        await asyncio.sleep(30)

    hasty.view(view)
    assert hasty.post().status_code == 429
    assert "the async function test_flask_async_loop." in told[0]
    assert "view within 0.5 s. It was cancelled." in told[0]


def test_a_lock_that_somebody_holds(hasty):
    def view():
        hasty.db.get_session().execute(text("UPDATE held SET v = v + 1"))
        return "", 201

    hasty.view(view)
    hasty.tables.look.execute("INSERT INTO held VALUES (1)")
    with hasty.tables.server.connect() as other:
        other.autocommit = False
        other.execute("UPDATE held SET v = 7")
        assert hasty.post().status_code == 503
        other.rollback()
    assert hasty.post().status_code == 201
    assert hasty.held() == [2]


def test_a_lock_in_sqlite(file):
    with site_of(file, file.config(), timeout=0.5) as site:

        def view():
            site.add(1)
            return "", 201

        site.view(view)
        with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert site.post().status_code == 503
            other.execute("ROLLBACK")
        assert site.post().status_code == 201
        assert site.held() == [1]


@pytest.mark.parametrize("colour", ["plain", "native"])
def test_a_commit_that_does_not_answer_is_in_doubt(hasty, colour, monkeypatch):
    monkeypatch.setattr("transept._portal.CANCEL_SECONDS", 0.2)
    hasty.tables.slow_commit(1.5)

    def plain():
        hasty.add(1)
        return "", 201

    async def native():
        (await db_session()).add(Held(v=1))
        return "", 201

    hasty.view({"plain": plain, "native": native}[colour])
    response = hasty.post()
    assert response.status_code == 503
    assert "doubt" in response.text or "not known" in response.text
    assert until(lambda: hasty.held() == [1])
    assert until(lambda: hasty.tables.in_transaction() == 0)
    assert until(lambda: out_of_pool(hasty.config) == 0)
    assert hasty.get("/nowhere").status_code == 404


def test_a_commit_in_doubt_reaches_the_apps_handler(hasty, monkeypatch):
    monkeypatch.setattr("transept._portal.CANCEL_SECONDS", 0.2)
    hasty.tables.slow_commit(1)
    told = []

    @hasty.app.errorhandler(CommitInDoubt)
    def handler(error):
        told.append(error)
        hasty.add(2)  # in a transaction of its own
        return "", 503

    def view():
        hasty.add(1)
        return "", 201

    hasty.view(view)
    assert hasty.post().status_code == 503
    assert len(told) == 1
    assert until(lambda: hasty.held() == [1])
    assert until(lambda: out_of_pool(hasty.config) == 0)


def test_a_rollback_is_not_in_doubt(hasty):
    hasty.tables.slow_commit(30)

    def view():
        hasty.add(1)
        return "", 404

    hasty.view(view)
    assert hasty.post().status_code == 404


@pytest.mark.parametrize("used", [True, False], ids=["used before", "first use"])
def test_no_request_hangs_while_the_loop_is_held(hasty, monkeypatch, used):
    monkeypatch.setattr("transept._portal.CANCEL_SECONDS", 0.1)
    monkeypatch.setattr("transept._portal._warned", set())
    entered, leave = threading.Event(), threading.Event()
    told = []

    async def holder():
        entered.set()
        leave.wait(20)
        return "", 200

    @hasty.app.errorhandler(LoopTimeout)
    def handler(error):
        told.append(error.held_at)
        return "", 503

    def plain():
        hasty.add(1)
        return "", 201

    hasty.view(holder, "/holder")
    hasty.view(plain)
    if used:
        assert hasty.post().status_code == 201
    holding = threading.Thread(target=lambda: hasty.get("/holder"))

    def meanwhile():
        holding.start()
        entered.wait()
        began = monotonic()
        assert hasty.post().status_code == 503
        assert monotonic() - began < 5
        leave.set()
        holding.join()
        assert hasty.post().status_code == 201

    with pytest.warns(BlockingCallWarning, match="holder held the background loop"):
        meanwhile()
    line = f"{__file__}:{holder.__code__.co_firstlineno + 2} in "
    assert told
    assert all(held_at.startswith(line) and held_at.endswith("holder") for held_at in told)
    assert hasty.held() == [1] * (1 + used)


def test_it_does_not_wait_for_itself(site):
    async def outer():
        with pytest.raises(UsageError, match="wait for itself"):
            site.db._bridge().run(asyncio.sleep(0))
        return "", 200

    site.view(outer)
    assert site.get().status_code == 200


def test_ctrl_c_in_a_plain_view(site):
    def view():
        site.add(1)
        threading.Thread(target=strike).start()
        site.db.get_session().execute(text("SELECT pg_sleep(30)"))
        return "", 201

    def strike():
        assert sleeping(site.tables)
        os.kill(os.getpid(), signal.SIGINT)

    site.view(view)
    with pytest.raises(KeyboardInterrupt):
        site.post()
    assert site.held() == []
    assert until(lambda: site.tables.in_transaction() == 0)


# Closing.


def test_closing_one_while_another_is_in_a_request(site, pg):
    other = Transept(pg.config(), Flask("other"))
    entered, go_on = threading.Event(), threading.Event()

    async def view():
        entered.set()
        await asyncio.to_thread(go_on.wait, 10)
        session = await db_session()
        session.add(Held(v=1))
        return "", 201

    site.view(view)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(site.post().status_code))
    thread.start()
    entered.wait()
    other.close()
    go_on.set()
    thread.join()
    assert answers == [201]
    assert site.held() == [1]


def test_closing_while_a_request_of_its_own_is_under_way_lets_it_end(site):
    entered, go_on = threading.Event(), threading.Event()

    def view():
        site.add(1)
        entered.set()
        go_on.wait(10)
        site.add(2)
        return "", 201

    site.view(view)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(site.post()))
    thread.start()
    entered.wait()
    site.db.close()
    go_on.set()
    thread.join()
    assert answers[0].status_code == 201
    assert site.held() == [1, 2]
    site.db.close()
    assert until(lambda: site.tables.backends() == 0)


def test_closing_in_the_middle_of_a_statement_lets_it_end(site):
    def view():
        site.add(1)
        site.db.get_session().execute(text("SELECT pg_sleep(1)"))
        return "", 201

    site.view(view)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(site.post()))
    thread.start()
    assert sleeping(site.tables)
    site.db.close()
    thread.join()
    assert answers[0].status_code == 201
    assert site.held() == [1]
    site.db.close()
    assert until(lambda: site.tables.backends() == 0)


@pytest.mark.parametrize("colour", ["plain", "native"])
def test_the_end_of_the_loop_in_the_middle_of_a_request(site, colour, caplog):
    """As at the end of the process: an error that says so, and nothing kept."""

    def plain():
        site.add(1)
        site.db.get_session().execute(text("SELECT pg_sleep(30)"))
        return "", 201

    async def native():
        session = await db_session()
        session.add(Held(v=1))
        await session.flush()
        await session.execute(text("SELECT pg_sleep(30)"))
        return "", 201

    site.view({"plain": plain, "native": native}[colour])
    answers = []
    thread = threading.Thread(target=lambda: answers.append(site.post().status_code))
    thread.start()
    assert sleeping(site.tables)
    PORTAL.stop()
    thread.join()
    assert answers == [500]
    assert "was cancelled on the background loop" in caplog.text
    assert site.held() == []
    site.db.close()
    assert until(lambda: site.tables.backends() == 0)


def test_close_from_an_async_view_is_refused(site):
    async def view():
        with pytest.raises(UsageError, match="wait for itself"):
            site.db.close()
        return "", 200

    site.view(view)
    assert site.get().status_code == 200


# Outside of requests.


def test_commands(site):
    @site.app.cli.command("add")
    @click.argument("v", type=int)
    @click.option("--fail", is_flag=True)
    def add(v, fail):
        site.add(v)
        if fail:
            raise click.ClickException("no")

    runner = site.app.test_cli_runner()
    assert runner.invoke(args=["add", "1"]).exit_code == 0
    assert runner.invoke(args=["add", "2", "--fail"]).exit_code == 1
    assert site.held() == [1]


def program(pg, body, **options):
    """What a program with an app over an async database prints, which must end by itself and without a warning."""
    code = f"""
import sys, threading
from flask import Flask
from sqlalchemy import text
from transept import *
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig
from transept.extensions.flask import Transept
app = Flask("program")
named = {{"server_settings": {{"application_name": {pg.name!r}}}}}
config = SQLAlchemyAsyncConfig(
    connection_string={pg.server.url("asyncpg")!r}, engine_config=EngineConfig(connect_args=named),
    commit_mode="autocommit",
)
db = Transept(config, app)
{body}
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, env=environment, **options)
    return done.returncode, done.stdout, done.stderr


def test_a_program_that_ends_without_closing(pg):
    body = """
@app.post("/")
def view():
    db.get_session().execute(text("INSERT INTO held VALUES (1)"))
    after_commit(lambda: print("hook", flush=True))
    return "", 201
print(app.test_client().post("/").status_code, threading.active_count())
with app.app_context():
    db.get_session().execute(text("INSERT INTO held VALUES (2)"))
"""
    code, out, err = program(pg, body)
    assert (code, err) == (0, "")
    assert out.startswith("hook\n201 ")
    assert pg.held() == [1, 2]
    assert until(lambda: pg.backends() == 0)


def test_a_program_that_ends_inside_of_an_app_context(pg):
    body = """
with app.app_context():
    db.get_session().execute(text("INSERT INTO held VALUES (1)"))
    sys.exit(3)
"""
    assert program(pg, body) == (3, "", "")
    assert pg.held() == []
    assert until(lambda: pg.backends() == 0)


def test_a_program_with_sqlite_ends(file):
    code = f"""
from flask import Flask
from sqlalchemy import text
from transept.alchemy import SQLAlchemyAsyncConfig
from transept.extensions.flask import Transept
app = Flask("program")
db = Transept(SQLAlchemyAsyncConfig(connection_string={file.url()!r}), app)
with app.app_context():
    db.get_session().execute(text("INSERT INTO held VALUES (1)"))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.held() == [1]


def test_a_program_that_is_interrupted_in_a_statement(pg):
    body = """
import os, signal
def strike():
    import time
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=strike).start()
try:
    with app.app_context():
        db.get_session().execute(text("INSERT INTO held VALUES (1)"))
        db.get_session().execute(text("SELECT pg_sleep(30)"))
except KeyboardInterrupt:
    print("interrupted")
"""
    assert program(pg, body) == (0, "interrupted\n", "")
    assert pg.held() == []
    assert until(lambda: pg.backends() == 0)
