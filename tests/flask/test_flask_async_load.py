"""Many clients at once, half of whose requests fail: the books balance, and nothing is left."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from time import monotonic, sleep

import pytest
from flask import Flask
from flask_site import Held
from held import VIOLATION, Postgres
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from waitress import wasyncore
from waitress.server import create_server

from transept import after_commit, db_session, unit_of_work
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig
from transept.extensions.flask import Transept

pytestmark = pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")  # a busy machine holds the loop, too

CLIENTS = 64
REQUESTS = 8  # of each
FATES = ("ok", "conflict", "ok", "raises", "ok", "late", "ok", "swallows")
STATUS = {"ok": 201, "conflict": 409, "raises": 500, "late": 422, "swallows": 500}


def app_over(url: str, name: str) -> tuple[Flask, Transept]:
    """Each path says what becomes of its request, and in which colour."""
    named = {"server_settings": {"application_name": name}}
    options = EngineConfig(pool_size=4, max_overflow=0, pool_timeout=20, connect_args=named)
    app = Flask("load")
    db = Transept(SQLAlchemyAsyncConfig(connection_string=url, engine_config=options, commit_mode="autocommit"), app)

    @app.errorhandler(IntegrityError)
    def late(error):
        return "", 422

    @app.post("/plain/<fate>/<int:v>")
    def plain(fate, v):
        session = db.get_session()
        session.add(Held(v=v))
        session.flush()
        with unit_of_work():
            session.execute(text("SELECT 1"))
        if fate == "raises":
            raise LookupError
        if fate == "late":
            session.execute(VIOLATION)
        if fate == "swallows":
            try:
                session.execute(text("SELECT 1 / 0"))
            except Exception:
                return "", 201
        after_commit(lambda: None)
        return "", 409 if fate == "conflict" else 201

    @app.post("/native/<fate>/<int:v>")
    async def native(fate, v):
        session = await db_session()
        session.add(Held(v=v))
        await session.flush()
        await asyncio.sleep(0.001)
        if fate == "raises":
            raise LookupError
        if fate == "late":
            await session.execute(VIOLATION)
        if fate == "swallows":
            try:
                await session.execute(text("SELECT 1 / 0"))
            except Exception:
                return "", 201
        return "", 409 if fate == "conflict" else 201

    @app.get("/close")
    def close():
        """What is left afterwards, as this process sees it."""
        db.close()
        return " ".join(sorted(thread.name for thread in threading.enumerate() if "transept" in thread.name))

    return app, db


def asked(port: int, method: str, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()


def load(ask: Callable[[str, str], int], tables: Postgres) -> None:
    """All clients at once; what each was told is what the database holds."""
    told: dict[int, tuple[str, int]] = {}

    def client(number: int) -> None:
        for n in range(REQUESTS):
            v = number * REQUESTS + n
            fate = FATES[(number + n) % len(FATES)]
            colour = ("plain", "native")[(number // 2 + n) % 2]
            told[v] = fate, ask("POST", f"/{colour}/{fate}/{v}")

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))
    assert len(told) == CLIENTS * REQUESTS
    assert Counter(told.values()) == Counter((fate, STATUS[fate]) for fate, _ in told.values())
    assert tables.held() == sorted(v for v, (_, status) in told.items() if status == 201)
    assert tables.in_transaction() == 0
    assert tables.backends() <= 4 * 2


def until(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = monotonic() + seconds
    while not (held := holds()) and monotonic() < end:
        sleep(0.01)
    return held


@contextmanager
def waitress(app: Flask) -> Iterator[int]:
    """The port of a server with four threads in this process."""
    server = create_server(app, host="127.0.0.1", port=0, threads=4, connection_limit=200, backlog=200)
    thread = threading.Thread(target=server.run, name="waitress")
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))  # on its own thread, which then ends
        thread.join(10)
        server.task_dispatcher.shutdown()
        assert not thread.is_alive()


def test_threads_of_the_test_client(pg):
    app, db = app_over(pg.server.url("asyncpg"), pg.name)
    load(lambda method, path: app.test_client().open(path, method=method).status_code, pg)
    db.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "transept-loop"]
    assert until(lambda: pg.backends() == 0)


def test_waitress(pg):
    app, db = app_over(pg.server.url("asyncpg"), pg.name)
    with waitress(app) as port:
        load(lambda method, path: asked(port, method, path)[0], pg)
    db.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "transept-loop"]
    assert until(lambda: pg.backends() == 0)


def test_gunicorns_threads(pg, tmp_path):
    (tmp_path / "loaded.py").write_text(
        f"from test_flask_async_load import app_over\napp, db = app_over({pg.server.url('asyncpg')!r}, {pg.name!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    options = ["-k", "gthread", "-w", "1", "--threads", "4", "-b", "127.0.0.1:0", "--no-control-socket"]
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore::UserWarning",
        "-m",
        "gunicorn",
        "loaded:app",
        "--graceful-timeout",
        "5",
        *options,
    ]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        listening = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")
        assert until(lambda: listening.search(log.read_text()) is not None, 20)
        found = listening.search(log.read_text())
        assert found is not None
        port = int(found[1])
        load(lambda method, path: asked(port, method, path)[0], pg)
        assert asked(port, "GET", "/close") == (200, b"")
        assert until(lambda: pg.backends() == 0)
        assert asked(port, "POST", "/plain/ok/100000")[0] == 201
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert until(lambda: pg.backends() == 0)


@pytest.mark.parametrize("colour", ["plain", "native"])
def test_clients_that_find_every_connection_taken(pg, colour):
    """Those who wait for a connection wait for no thread, and those who hold one do not wait for them."""
    app, db = app_over(pg.server.url("asyncpg"), pg.name)
    with ThreadPoolExecutor(32) as clients:
        answers = clients.map(lambda v: app.test_client().post(f"/{colour}/ok/{v}").status_code, range(64))
        assert set(answers) == {201}
    assert pg.held() == list(range(64))
    db.close()
    assert until(lambda: pg.backends() == 0)
