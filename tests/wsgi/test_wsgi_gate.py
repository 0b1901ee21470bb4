"""What is particular to WSGI."""

from __future__ import annotations

import http.client
import sqlite3
import threading
from contextlib import closing
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from transept import (
    ImproperConfigurationError,
    OutsideScope,
    UsageError,
    after_commit,
    current_unit,
    unit_of_work,
)
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.gate.wsgi import WSGIGate


@pytest.fixture
def database(tmp_path):
    database = SQLAlchemySyncConfig(connection_string=f"sqlite:///{tmp_path}/wsgi.db", commit_mode="autocommit")
    with database.get_engine().begin() as connection:
        connection.execute(text("CREATE TABLE held (v INTEGER)"))
        connection.execute(text("CREATE TABLE child (p REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"))
        connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
    yield database
    assert database.get_engine().pool.checkedout() == 0
    database.get_engine().dispose()


@pytest.fixture
def held(tmp_path, database):
    def look():
        with closing(sqlite3.connect(f"{tmp_path}/wsgi.db")) as connection:
            return [v for (v,) in connection.execute("SELECT v FROM held ORDER BY v")]

    return look


def insert(v):
    session = current_unit().session()
    session.execute(text("INSERT INTO held VALUES (:v)"), {"v": v})
    return session


def violate():
    current_unit().session().execute(text("INSERT INTO child VALUES (99)"))


def environ(method="POST"):
    made = {"REQUEST_METHOD": method, "QUERY_STRING": ""}
    setup_testing_defaults(made)
    return made


def call(app, said, method="POST"):
    return app(environ(method), lambda *start: said.append(start[0]) or (lambda data: said.append(data)))


def test_a_generator_app_starts_its_response_after_the_commit(database, held):
    def app(environ, start_response):
        insert(1)
        start_response("201 Created", [])
        yield b"made"

    said = []
    body = call(WSGIGate(app, database), said)
    assert (said, held()) == (["201 Created"], [1])
    assert b"".join(body) == b"made"
    body.close()


def test_a_generator_app_that_fails_at_commit_never_starts(database, held):
    def app(environ, start_response):
        insert(1)
        violate()
        start_response("201 Created", [])
        yield b"made"

    said = []
    with pytest.raises(IntegrityError):
        call(WSGIGate(app, database), said)
    assert (said, held()) == ([], [])


def test_a_second_start_response_replaces_the_first_while_nothing_was_passed_on(database, held):
    def app(environ, start_response):
        insert(1)
        start_response("201 Created", [])
        try:
            raise ValueError
        except ValueError as error:
            start_response("400 Bad Request", [], (ValueError, error, None))
        return [b"no"]

    said = []
    body = call(WSGIGate(app, database), said)
    assert (b"".join(body), said, held()) == (b"no", ["400 Bad Request"], [])
    body.close()


def test_an_error_after_the_start_cannot_be_replaced(database, held):
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"a"
        insert(1)
        start_response("500 No", [], (ValueError, ValueError("late"), None))

    body = call(WSGIGate(app, database), [])
    with pytest.raises(ValueError, match="late"):
        list(body)
    body.close()
    assert held() == []


def test_what_is_written_the_old_way_is_settled_first(database, held):
    seen = []

    def app(environ, start_response):
        insert(1)
        write = start_response("200 OK", [])
        write(b"a")
        seen.append(held())
        return [b"b"]

    said = []
    body = call(WSGIGate(app, database), said)
    assert (said, seen, list(body)) == (["200 OK", b"a"], [[1]], [b"b"])
    body.close()


def test_what_is_written_the_old_way_completes_no_body_before_the_last_commit(database, held):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])(b"ab")
        insert(1)
        violate()
        return []

    said = []
    body = call(WSGIGate(app, database), said)
    with pytest.raises(IntegrityError):
        list(body)
    body.close()
    assert (said, held()) == (["200 OK"], [])


def test_an_app_that_returns_no_body_leaves_nothing(database, held):
    def app(environ, start_response):
        insert(1)
        start_response("200 OK", [])

    with pytest.raises(TypeError):
        call(WSGIGate(app, database), [])
    assert held() == []


def test_a_client_that_leaves_half_way_leaves_nothing_open(database, held):
    def app(environ, start_response):
        start_response("200 OK", [])
        insert(1)
        yield b"a"
        insert(2)
        yield b"b"

    body = call(WSGIGate(app, database), [])
    assert next(iter(body)) == b"a"
    body.close()
    assert held() == [1]


def test_a_body_that_the_server_never_closes_holds_no_connection(database, held):
    def app(environ, start_response):
        insert(1)
        start_response("200 OK", [])
        return [b"a"]

    list(call(WSGIGate(app, database), []))
    assert database.get_engine().pool.checkedout() == 0


def test_the_apps_own_answer_to_a_failed_commit_may_use_sessions(database, held):
    def app(environ, start_response):
        insert(1)
        violate()
        start_response("201 Created", [])
        return [b"made"]

    def conflict(environ, start_response):
        count = current_unit().session().scalar(text("SELECT count(*) FROM held"))
        start_response("409 Conflict", [])
        return [b"%d held" % count]

    said = []
    body = call(WSGIGate(app, database, answer=lambda environ, failure: conflict), said)
    assert (b"".join(body), said, held()) == (b"0 held", ["409 Conflict"], [])
    body.close()


def test_an_answer_that_itself_fails_is_an_error_and_leaves_nothing_open(database, held):
    def app(environ, start_response):
        insert(1)
        violate()
        start_response("201 Created", [])
        return [b"made"]

    def worse(environ, start_response):
        insert(2)
        raise RuntimeError("worse")

    with pytest.raises(RuntimeError, match="worse"):
        call(WSGIGate(app, database, answer=lambda environ, failure: worse), [])
    assert held() == []


def test_gates_inside_each_other_are_one(database, held):
    def app(environ, start_response):
        insert(1)
        start_response("201 Created", [])
        return [b"made"]

    said = []
    body = call(WSGIGate(WSGIGate(app, database), database), said)
    assert (b"".join(body), said, held()) == (b"made", ["201 Created"], [1])
    body.close()


def test_get_session_outside_of_a_gate_says_so(database):
    gate = WSGIGate(lambda environ, start_response: [], database)
    with pytest.raises(OutsideScope, match="WSGIGate"):
        gate.get_session(environ())


@pytest.mark.parametrize("keeps", [True, False])
def test_an_async_database_gives_blocking_sessions(tmp_path, keeps):
    url = f"sqlite+aiosqlite:///{tmp_path}/async.db"
    gate = WSGIGate(None, SQLAlchemyAsyncConfig(connection_string=url, commit_mode="autocommit"))

    def app(environ, start_response):
        session = gate.get_session(environ)
        session.execute(text("CREATE TABLE held (v INTEGER)"))
        session.execute(text("INSERT INTO held VALUES (1)"))
        start_response("201 Created" if keeps else "409 Conflict", [])
        return [b"made"]

    gate.app = app
    try:
        assert list(call(gate, [])) == [b"made"]
        with closing(sqlite3.connect(f"{tmp_path}/async.db")) as other:
            assert len(other.execute("SELECT name FROM sqlite_master").fetchall()) == keeps
    finally:
        gate.close()
    assert "transept-loop" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("timeout", [0, -1, True, "60", None, float("inf"), float("nan")])
def test_a_timeout_that_is_none_is_refused(database, timeout):
    with pytest.raises(ImproperConfigurationError, match=r"timeout=.*seconds are needed"):
        WSGIGate(None, database, timeout=timeout)


def test_an_async_hook_is_refused(database, held):
    async def hook():
        raise AssertionError

    def app(environ, start_response):
        insert(1)
        with pytest.raises(UsageError, match="async"):
            after_commit(hook)
        with unit_of_work():
            insert(2)
        start_response("200 OK", [])
        return []

    body = call(WSGIGate(app, database), [])
    list(body)
    body.close()
    assert held() == [1, 2]


def test_the_gate_keeps_to_the_letter_of_wsgi(database, held):
    def app(environ, start_response):
        insert(1)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        return [b"ab", b"cd"]

    body = call(validator(WSGIGate(validator(app), database)), [])
    assert b"".join(body) == b"abcd"
    body.close()
    assert held() == [1]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(app):
        server = make_server("127.0.0.1", 0, app, WSGIServer, Quiet)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return http.client.HTTPConnection(*server.server_address, timeout=10)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_over_a_real_server_a_failed_commit_is_a_500_and_a_good_one_is_held_when_it_is_told(
    database, held, serve, capsys
):
    def app(environ, start_response):
        insert(1)
        if environ["PATH_INFO"] == "/fails":
            violate()
        start_response("201 Created", [("Content-Length", "4")])
        return [b"made"]

    client = serve(WSGIGate(app, database))
    client.request("POST", "/fails")
    assert client.getresponse().read() != b"made"
    client.close()
    client.request("POST", "/good")
    response = client.getresponse()
    assert (response.status, response.read(), held()) == (201, b"made", [1])
    client.close()


def test_over_a_real_server_a_body_whose_last_commit_fails_is_cut_off(database, held, serve, capsys):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "6")])
        insert(1)
        yield b"abc"
        insert(2)
        violate()
        yield b"def"

    client = serve(WSGIGate(app, database))
    client.request("GET", "/")
    with pytest.raises(http.client.IncompleteRead):
        client.getresponse().read()
    client.close()
    assert held() == [1]
