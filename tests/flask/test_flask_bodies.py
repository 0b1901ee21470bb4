"""Bodies that are made while they are sent: their session lives until they are closed, and nothing stays open."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import Response, abort, send_file, stream_with_context
from flask_site import Held, Parent, Site, site_of
from held import COUNT, VIOLATION, File, Postgres, insert
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from werkzeug.test import create_environ
from werkzeug.wsgi import FileWrapper

from transept import OpenCursorError, OutsideScope, after_commit, current_unit


def plain(rows: Any) -> Any:
    return rows()


def in_context(rows: Any) -> Any:
    return stream_with_context(rows())


def decorated(rows: Any) -> Any:
    return stream_with_context(rows)()


kinds = pytest.mark.parametrize("kind", [plain, in_context, decorated])


class Served:
    """A response as a server sends it, chunk by chunk."""

    def __init__(self, site: Site, method: str = "GET", path: str = "/") -> None:
        self.status = ""
        self.headers: dict[str, str] = {}
        self.body: Any = site.app(create_environ(path, method=method), self.start)
        self.chunks: Iterator[bytes] = iter(self.body)

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        self.status, self.headers = status, dict(headers)

    def next(self) -> bytes:
        return next(self.chunks)

    def rest(self) -> bytes:
        """What is left, and the end."""
        said = b"".join(self.chunks)
        self.close()
        return said

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def streaming(site: Site, rows: Any, kind: Any, status: int = 200, **options: Any) -> None:
    """The view takes its session before the body begins."""

    def view():
        flask.g.session = site.db.get_session()
        return Response(kind(rows), status, **options)

    site.view(view, endpoint="view")


def some(site: Site, *values: int) -> None:
    with site.config.get_engine().begin() as connection:
        for v in values:
            connection.execute(insert(v))


# What is read and written while streaming.


@kinds
def test_a_body_reads_with_the_session_of_its_request(site: Site, kind: Any):
    some(site, 1, 2, 3)

    @site.view
    def view():
        session = site.db.get_session()

        def rows():
            assert site.db.get_session() is session
            for held in session.query(Held).order_by(Held.v):
                yield f"{held.v},"

        return Response(kind(rows))

    assert site.get().text == "1,2,3,"


@kinds
def test_objects_of_the_view_are_whole_in_the_body(site: Site, kind: Any):
    with site.config.get_engine().begin() as connection:
        connection.execute(text("INSERT INTO parent VALUES (1)"))
        connection.execute(text("INSERT INTO child VALUES (1)"))

    @site.view
    def view():
        parent = site.db.get_session().get_one(Parent, 1)
        return Response(kind(lambda: (f"{parent.id}: {child.p}" for child in parent.children)))

    assert site.get().text == "1: 1"


@kinds
def test_what_the_view_wrote_is_kept_before_the_first_chunk(site: Site, kind: Any):
    seen: list[Any] = []

    @site.view
    def view():
        site.add(1)

        def rows():
            seen.append(site.held())
            yield "made"

        return Response(kind(rows), 201)

    served = Served(site, "POST")
    assert (served.status, site.held()) == ("201 CREATED", [1])
    assert (served.rest(), seen) == (b"made", [[1]])


@kinds
@pytest.mark.parametrize(("status", "kept"), [(201, [1, 2]), (409, [])])
def test_what_a_body_writes_is_settled_by_the_status(site: Site, kind: Any, status: int, kept: list[int]):
    def rows():
        site.add(1)
        yield "a"
        site.add(2)

    streaming(site, rows, kind, status)
    answer = site.post()
    assert (answer.status_code, answer.text, site.held()) == (status, "a", kept)


@kinds
def test_a_body_is_settled_between_chunks(site: Site, kind: Any):
    def rows():
        site.add(1)
        yield "a"
        site.add(2)
        yield "b"

    streaming(site, rows, kind)
    served = Served(site)
    assert (served.next(), site.held(), site.clean()) == (b"a", [1], True)
    assert (served.next(), site.held(), site.clean()) == (b"b", [1, 2], True)
    assert served.rest() == b""


@kinds
def test_nothing_is_idle_in_a_transaction_between_chunks(pg_site: Site, kind: Any):
    some(pg_site, 1)

    def rows():
        for _ in range(3):
            yield (
                str(flask.g.session.scalar(COUNT)) if kind is not plain else str(pg_site.db.get_session().scalar(COUNT))
            )

    streaming(pg_site, rows, kind)
    served = Served(pg_site)
    for _ in range(3):
        assert (served.next(), pg_site.clean()) == (b"1", True)
    assert served.rest() == b""


@kinds
def test_a_cursor_opened_in_the_body_is_read_to_its_end(pg_site: Site, kind: Any):
    some(pg_site, *range(20))

    def rows():
        result = pg_site.db.get_session().execute(text("SELECT v FROM held ORDER BY v").execution_options(yield_per=5))
        for (v,) in result:
            yield f"{v},"

    streaming(pg_site, rows, kind)
    served = Served(pg_site)
    assert (served.next(), pg_site.clean()) == (b"0,", False)
    assert served.rest().count(b",") == 19
    assert pg_site.clean()


def test_a_cursor_opened_by_the_view_is_refused_before_the_first_byte(pg_site: Site):
    some(pg_site, *range(20))

    @pg_site.view
    def view():
        result = pg_site.db.get_session().execute(text("SELECT v FROM held").execution_options(yield_per=5))
        return Response(f"{v}," for (v,) in result)

    pg_site.app.errorhandler(OpenCursorError)(lambda error: (str(error), 500))
    answer = pg_site.get()
    assert (answer.status_code, "inside the generator" in answer.text) == (500, True)


def test_a_manual_body_keeps_what_it_commits(tables: File | Postgres, caplog: pytest.LogCaptureFixture):
    with site_of(tables, tables.sync_config(commit_mode="manual")) as site:

        def rows():
            site.add(1)
            yield "a"
            site.db.get_session().commit()
            yield "b"
            site.add(2)
            yield "c"

        streaming(site, rows, plain)
        assert (site.get().text, site.held()) == ("abc", [1])
        assert "commit_mode is 'manual'" in caplog.text


@kinds
def test_hooks_of_a_body_run_when_its_work_is_kept(site: Site, kind: Any):
    told: list[Any] = []

    def rows():
        site.add(1)
        after_commit(lambda: told.append(site.held()))
        yield "a"
        told.append("b")
        yield "b"

    streaming(site, rows, kind)
    assert (site.get().text, told) == ("ab", [[1], "b"])


# Bodies that fail.


@kinds
def test_a_body_that_raises_keeps_what_was_settled(site: Site, kind: Any):
    def rows():
        site.add(1)
        yield "a"
        site.add(2)
        raise ValueError("half way")

    streaming(site, rows, kind)
    served = Served(site)
    assert served.next() == b"a"
    with pytest.raises(ValueError, match="half way"):
        served.next()
    served.close()
    assert site.held() == [1]


@kinds
@pytest.mark.parametrize("length", [None, "1"])
def test_a_last_commit_that_fails_cuts_the_body_off(site: Site, kind: Any, length: str | None):
    def rows():
        yield "a"
        site.add(1)
        site.violate()

    headers = {} if length is None else {"Content-Length": length}
    streaming(site, rows, kind, headers=headers)
    served = Served(site)
    with pytest.raises(IntegrityError):
        assert served.next() == b"a"
        assert length is None
        served.next()
    served.close()
    assert site.held() == []


@kinds
def test_a_client_that_leaves_half_way_leaves_nothing_open(site: Site, kind: Any):
    ended: list[str] = []

    def rows():
        try:
            site.add(1)
            yield "a"
            site.add(2)
            yield "b"
            site.add(3)
            yield "c"
        finally:
            ended.append("closed")
            site.db.get_session().scalar(COUNT)

    streaming(site, rows, kind)
    served = Served(site)
    assert [served.next(), served.next()] == [b"a", b"b"]
    served.close()
    assert (ended, site.held(), site.clean()) == (["closed"], [1, 2], True)


@kinds
def test_a_client_that_leaves_at_once_leaves_nothing_open(site: Site, kind: Any):
    def rows():
        site.add(1)
        yield "a"

    streaming(site, rows, kind)
    Served(site).close()
    assert (site.held(), site.clean()) == ([], True)


@kinds
def test_a_client_that_leaves_while_a_cursor_is_open(pg_site: Site, kind: Any):
    some(pg_site, *range(20))
    in_parts = text("SELECT v FROM held").execution_options(yield_per=5)

    def rows():
        with pg_site.db.get_session().execute(in_parts) as result:
            for (v,) in result:
                yield f"{v},"

    streaming(pg_site, rows, kind)
    served = Served(pg_site)
    served.next()
    served.close()
    assert pg_site.clean()


@kinds
def test_a_session_of_a_body_is_over_with_it(site: Site, kind: Any):
    sessions: list[Any] = []

    def rows():
        sessions.append(site.db.get_session())
        yield "a"

    streaming(site, rows, kind)
    assert site.get().text == "a"
    with pytest.raises(OutsideScope):
        sessions[0].execute(COUNT)


# Responses that are refused, and those that have no body.


@kinds
def test_a_refused_response_is_closed(site: Site, kind: Any):
    closed: list[str] = []

    @site.view
    def view():
        site.add(1)
        site.violate()

        def rows():
            try:
                yield "never"
            finally:
                closed.append("rows")

        response = Response(kind(rows), 201)
        response.call_on_close(lambda: closed.append("response"))
        return response

    site.app.errorhandler(IntegrityError)(lambda error: ("conflict", 409))
    answer = site.post()
    assert (answer.status_code, answer.text, site.held()) == (409, "conflict", [])
    assert "response" in closed
    assert not flask.has_request_context()


@kinds
def test_a_refused_response_that_cannot_be_closed_is_answered_all_the_same(site: Site, kind: Any):
    @site.view
    def view():
        site.violate()
        response = Response(kind(lambda: iter("ab")), 201)
        response.call_on_close(lambda: {}["nothing"])
        return response

    site.app.errorhandler(IntegrityError)(lambda error: ("conflict", 409))
    assert site.post().status_code == 409


@kinds
def test_a_handler_may_answer_with_a_stream(site: Site, kind: Any):
    @site.view
    def view():
        site.add(1)
        site.violate()
        return "", 201

    @site.app.errorhandler(IntegrityError)
    def handler(error: Exception):
        def rows():
            yield str(site.db.get_session().scalar(COUNT))
            site.add(2)

        return Response(kind(rows), 200)

    assert (site.post().text, site.held()) == ("0", [2])


@kinds
def test_head_runs_no_body(site: Site, kind: Any):
    def rows():
        site.add(2)
        yield "never"

    @site.view
    def view():
        site.add(1)
        return Response(kind(rows))

    answer = site.app.test_client().head("/", buffered=True)
    assert (answer.status_code, answer.data, site.held()) == (200, b"", [1])
    del answer
    assert not flask.has_app_context()


# What is called at the end.


@pytest.mark.parametrize("streams", [True, False])
def test_what_is_called_on_close_is_kept(site: Site, streams: bool):
    @site.view
    def view():
        site.add(1)
        response = Response(iter(["made"]) if streams else "made", 201)
        response.call_on_close(lambda: site.add(2))
        return response

    served = Served(site, "POST")
    assert site.held() == [1]
    assert (served.rest(), site.held()) == (b"made", [1, 2])


@pytest.mark.parametrize("streams", [True, False])
def test_what_is_called_on_close_may_have_a_context_of_its_own(site: Site, streams: bool):
    def write() -> None:
        with site.app.app_context():
            site.add(2)

    @site.view
    def view():
        site.add(1)
        response = Response(iter(["no"]) if streams else "no", 409)
        response.call_on_close(write)
        return response

    assert (site.post().status_code, site.held()) == (409, [2])


@pytest.mark.parametrize("streams", [True, False])
def test_what_is_called_on_close_and_raises_keeps_nothing(site: Site, streams: bool):
    def fail() -> None:
        site.add(2)
        raise ValueError("at the end")

    @site.view
    def view():
        site.add(1)
        response = Response(iter(["made"]) if streams else "made", 201)
        response.call_on_close(fail)
        return response

    served = Served(site, "POST")
    with pytest.raises(ValueError, match="at the end"):
        served.rest()
    assert (site.held(), site.clean()) == ([1], True)


def test_what_is_called_on_close_and_cannot_be_kept_says_so(site: Site):
    @site.view
    def view():
        site.add(1)
        response = flask.make_response("made", 201)
        response.call_on_close(lambda: site.db.get_session().execute(VIOLATION))
        return response

    served = Served(site, "POST")
    with pytest.raises(IntegrityError):
        served.rest()
    assert (site.held(), site.clean()) == ([1], True)


# Files.


@pytest.mark.parametrize("source", ["path", "file", "bytes"])
def test_a_file_is_sent_with_what_is_kept(site: Site, tmp_path: Path, source: str):
    path = tmp_path / "some.txt"
    path.write_bytes(b"content")
    opened: list[Any] = []

    @site.view
    def view():
        site.add(1)
        if source == "path":
            return send_file(path)
        opened.append(path.open("rb") if source == "file" else io.BytesIO(b"content"))
        return send_file(opened[0], mimetype="text/plain")

    served = Served(site, "POST")
    assert (served.status, site.held()) == ("200 OK", [1])
    assert served.rest() == b"content"
    assert all(file.closed for file in opened)


def test_a_file_that_has_not_changed_is_a_304(tables: File | Postgres, tmp_path: Path):
    path = tmp_path / "some.txt"
    path.write_bytes(b"content")
    with site_of(tables, tables.sync_config()) as site:
        site.view(lambda: site.add(1) or send_file(path), endpoint="view")
        etag = site.get().headers["ETag"]
        assert (site.get(headers={"If-None-Match": etag}).status_code, site.held()) == (304, [1])


def test_the_servers_own_file_wrapper_is_used(site: Site, tmp_path: Path):
    path = tmp_path / "some.txt"
    path.write_bytes(b"content")
    made: list[Any] = []

    class Wrapper(FileWrapper):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    site.view(lambda: site.add(1) or send_file(path), endpoint="view")
    answer = site.get(environ_overrides={"wsgi.file_wrapper": Wrapper})
    assert (answer.data, len(made), site.held()) == (b"content", 1, [1])


def test_a_refused_file_is_closed(site: Site):
    file = io.BytesIO(b"content")

    @site.view
    def view():
        site.violate()
        return send_file(file, mimetype="text/plain")

    assert (site.post().status_code, file.closed) == (500, True)


def test_a_response_whose_headers_cannot_be_sent_is_no_failing_teardown(site: Site, caplog: pytest.LogCaptureFixture):
    """What was kept stays, for nobody could know; but the error is the server's to tell."""

    @site.view
    def view():
        site.add(1)
        return "made", 201, {"Location": "http://[bad"}

    with pytest.raises(ValueError, match="IPv6"):
        site.post()
    assert "its teardown failed" not in caplog.text
    assert site.clean()


@pytest.mark.parametrize("status", [409, 201])
def test_a_stream_that_takes_the_place_of_an_error_page_is_settled_as_one(site: Site, status: int):
    @site.view
    def view() -> Any:
        abort(409)

    @site.app.after_request
    def instead(response: Response) -> Response:
        session = site.db.get_session()

        def rows() -> Iterator[str]:
            yield "a"
            session.add(Held(v=1))
            session.flush()
            yield "b"

        return Response(rows(), status)

    answer = site.post()
    assert (answer.status_code, answer.text, site.held()) == (status, "ab", [1] if status == 201 else [])


def test_what_an_error_page_is_to_call_at_its_end_has_a_session(site: Site):
    @site.view
    def view() -> Any:
        abort(409)

    @site.app.after_request
    def then(response: Response) -> Response:
        def write() -> None:
            current_unit().session(site.config).add(Held(v=1))

        response.call_on_close(write)
        return response

    assert (site.post().status_code, site.held()) == (409, [1])
