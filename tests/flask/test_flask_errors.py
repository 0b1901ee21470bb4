"""A COMMIT that fails is an error like one of the view's; a database that is down, or an outcome in doubt, is a 503."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flask
import pytest
from flask import Blueprint, Response, abort, got_request_exception
from flask_site import Site, site_of
from held import COUNT, File, Postgres, out_of_pool
from servers import ports
from servers.proxy import FaultProxy
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from werkzeug.exceptions import HTTPException, InternalServerError, ServiceUnavailable

from transept import (
    CommitFailed,
    CommitInDoubt,
    DatabaseSaidNo,
    DatabaseUnavailable,
    PartlyCommitted,
    PoolTimeout,
    TranseptError,
    after_commit,
    after_rollback,
)
from transept.adapters.psycopg import PsycopgSyncConfig
from transept.extensions.flask import EngineConfig, SQLAlchemySyncConfig, Transept


def deferred_constraint(site: Site) -> None:
    site.add(1)
    site.violate()


def serialization_failure(site: Site) -> None:
    """Another transaction that read what this one writes, and wrote what this one read, commits first."""
    assert isinstance(site.tables, Postgres)
    session = site.db.get_session()
    session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
    with site.tables.server.connect() as other:
        other.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        session.execute(COUNT)
        other.execute("SELECT count(*) FROM held")
        site.add(1)
        other.execute("INSERT INTO held VALUES (100)")
        other.execute("COMMIT")
        other.execute("DELETE FROM held WHERE v = 100")


def swallowed_error(site: Site) -> None:
    site.add(1)
    with pytest.raises(DBAPIError, match="nonsense"):
        site.db.get_session().execute(text("SELECT nonsense"))


@dataclass
class Failure:
    """What fails at COMMIT and not before: how, the error, and its bases."""

    tables: str
    cause: Callable[[Site], None]
    kind: type[Exception]
    base: type[Exception]


FAILURES = {
    "sqlite, deferred constraint": Failure("file", deferred_constraint, IntegrityError, SQLAlchemyError),
    "postgres, deferred constraint": Failure("pg", deferred_constraint, IntegrityError, SQLAlchemyError),
    "postgres, serialization failure": Failure("pg", serialization_failure, OperationalError, DBAPIError),
    "postgres, swallowed error": Failure("pg", swallowed_error, CommitFailed, TranseptError),
}


@dataclass
class Failing:
    """A site whose view answers 201, and whose commit then fails."""

    site: Site
    failure: Failure
    by_commit: bool = True

    @property
    def kind(self) -> type[Exception]:
        return self.failure.kind

    def view(self) -> Any:
        flask.g.number = 5
        flask.session["seen"] = "view"
        if flask.request.method == "POST":
            self.failure.cause(self.site)
        return "made", 201


@pytest.fixture(params=FAILURES)
def failing(request: pytest.FixtureRequest) -> Iterator[Failing]:
    failure = FAILURES[request.param]
    tables = request.getfixturevalue(failure.tables)
    with site_of(tables, tables.sync_config()) as site:
        made = Failing(site, failure)
        site.view(made.view)
        yield made
        assert site.held() in ([], [2])


def conflict(error: Exception) -> Any:
    return f"handled {type(error).__name__}", 409


def original(error: Any) -> Any:
    return f"handled {type(error).__name__} of {type(error.original_exception).__name__}", 409


def raised_again(error: Exception) -> Any:
    raise error


def answered(site: Site, path: str) -> Any:
    """The answer to a POST; or the error that was left to the server."""
    try:
        answer = site.post(path)
    except Exception as error:
        return type(error)
    return answer.status_code, answer.text, answer.headers.get("X-Why")


# Who is asked.


def test_a_failed_commit_is_a_500(failing: Failing, caplog: pytest.LogCaptureFixture):
    answer = failing.site.post()
    assert (answer.status_code, failing.site.held()) == (500, [])
    assert "Internal Server Error" in answer.text
    assert "Exception on / [POST]" in caplog.text
    assert failing.kind.__name__ in caplog.text


def test_a_failed_commit_is_answered_by_the_apps_handler(failing: Failing):
    failing.site.app.errorhandler(failing.kind)(conflict)
    answer = failing.site.post()
    assert (answer.status_code, answer.text) == (409, f"handled {failing.kind.__name__}")
    assert failing.site.held() == []


def test_a_failed_commit_is_answered_by_a_handler_of_its_base_class(failing: Failing):
    failing.site.app.errorhandler(failing.failure.base)(conflict)
    assert failing.site.post().text == f"handled {failing.kind.__name__}"


def test_a_failed_commit_is_answered_by_a_handler_of_every_exception(failing: Failing):
    failing.site.app.errorhandler(Exception)(conflict)
    assert failing.site.post().text == f"handled {failing.kind.__name__}"


@pytest.mark.parametrize("registered", [500, InternalServerError, HTTPException])
def test_a_failed_commit_is_answered_by_a_handler_of_500(failing: Failing, registered: Any):
    failing.site.app.errorhandler(registered)(original)
    answer = failing.site.post()
    assert (answer.status_code, answer.text) == (409, f"handled InternalServerError of {failing.kind.__name__}")
    assert failing.site.held() == []


def test_a_handler_of_another_error_is_not_asked(failing: Failing):
    failing.site.app.errorhandler(KeyError)(conflict)
    failing.site.app.errorhandler(404)(conflict)
    assert failing.site.post().status_code == 500


def test_a_failed_commit_is_answered_by_the_blueprints_handler_first(failing: Failing):
    blueprint = Blueprint("some", __name__, url_prefix="/some")
    blueprint.errorhandler(failing.kind)(lambda error: ("of the blueprint", 409))
    failing.site.app.errorhandler(failing.kind)(lambda error: ("of the app", 410))
    blueprint.post("/")(failing.view)
    failing.site.app.register_blueprint(blueprint)
    assert [failing.site.post("/some/").text, failing.site.post().text] == ["of the blueprint", "of the app"]


HANDLERS: dict[str, Any] = {
    "gives the error on": lambda error: error,
    "aborts": lambda error: abort(404),
    "answers with a response": lambda error: Response("teapot", 418),
    "fails": lambda error: error.nonsense,
    "answers nothing": lambda error: None,
    "answers with an HTTP error": lambda error: ServiceUnavailable("later"),
    "answers with headers": lambda error: ({"error": 1}, 400, {"X-Why": "so"}),
    "raises the error again": raised_again,
}


@pytest.mark.parametrize("registered", ["kind", "base", Exception, HTTPException, 500])
@pytest.mark.parametrize("handler", HANDLERS)
def test_a_failed_commit_is_handled_as_an_error_of_the_view_is(failing: Failing, registered: Any, handler: str):
    caught: list[Exception] = []
    told: list[Any] = []

    def raising():
        raise caught[0]

    def note(sender: Any, exception: Exception) -> None:
        told.append((type(exception), flask.request.path))
        caught.append(exception)

    def handle(error: Exception) -> Any:
        caught.append(getattr(error, "original_exception", None) or error)
        return HANDLERS[handler](error)

    failing.site.view(raising, "/raises")
    kind = {"kind": failing.kind, "base": failing.failure.base}.get(registered, registered)
    failing.site.app.register_error_handler(kind, handle)
    with got_request_exception.connected_to(note, failing.site.app):
        by_commit, by_view = answered(failing.site, "/"), answered(failing.site, "/raises")
    assert by_commit == by_view
    assert [kind for kind, path in told if path == "/"] == [kind for kind, path in told if path == "/raises"]


@pytest.mark.parametrize("setting", ["PROPAGATE_EXCEPTIONS", "TESTING", "DEBUG"])
def test_an_app_that_propagates_errors_raises_a_failed_commit(failing: Failing, setting: str):
    failing.site.app.config[setting] = True
    with pytest.raises(failing.kind):
        failing.site.post()
    assert failing.site.clean()


@pytest.mark.parametrize("setting", ["PROPAGATE_EXCEPTIONS", "TESTING", "DEBUG"])
def test_a_handled_commit_failure_is_answered_by_an_app_that_propagates_errors(failing: Failing, setting: str):
    failing.site.app.config[setting] = True
    failing.site.app.errorhandler(failing.kind)(conflict)
    assert failing.site.post().status_code == 409


def test_an_app_that_tests_without_propagating_answers_500(failing: Failing):
    failing.site.app.config.update(TESTING=True, PROPAGATE_EXCEPTIONS=False)
    assert failing.site.post().status_code == 500


@pytest.mark.parametrize("handled", [True, False])
def test_the_signal_of_unhandled_errors_is_sent_once(failing: Failing, handled: bool):
    told: list[type[Exception]] = []

    def tell(sender: Any, exception: Exception) -> None:
        told.append(type(exception))

    if handled:
        failing.site.app.errorhandler(failing.kind)(conflict)
    with got_request_exception.connected_to(tell, failing.site.app):
        failing.site.post()
    assert told == ([] if handled else [failing.kind])


# What the handler sees and does.


def test_the_handler_has_the_requests_context(failing: Failing):
    seen: list[Any] = []

    @failing.site.app.errorhandler(failing.kind)
    def handler(error: Exception):
        seen.append((flask.g.number, flask.request.path, flask.session["seen"], flask.current_app.name))
        flask.session["seen"] = "handler"
        return "", 409

    client = failing.site.app.test_client()
    assert client.post("/").status_code == 409
    assert seen == [(5, "/", "view", "site")]
    with client.session_transaction() as session:
        assert session["seen"] == "handler"


def test_after_request_functions_see_both_responses(failing: Failing):
    seen = []

    @failing.site.app.after_request
    def note(response: Response) -> Response:
        seen.append(response.status_code)
        response.headers["X-Noted"] = str(len(seen))
        return response

    failing.site.app.errorhandler(failing.kind)(conflict)
    assert failing.site.post().headers["X-Noted"] == "2"
    assert seen == [201, 409]


def test_nothing_of_the_refused_response_is_sent(failing: Failing):
    @failing.site.view
    def other():
        response = flask.make_response(failing.view())
        response.headers["X-Refused"] = "yes"
        response.set_cookie("refused", "yes")
        return response

    failing.site.view(other, "/other")
    failing.site.app.errorhandler(failing.kind)(conflict)
    answer = failing.site.post("/other")
    assert (answer.text, "X-Refused" in answer.headers) == (f"handled {failing.kind.__name__}", False)
    assert not any("refused" in cookie for cookie in answer.headers.getlist("Set-Cookie"))


@pytest.mark.parametrize(("status", "kept"), [(200, [2]), (409, [])])
def test_what_the_handler_writes_is_settled_by_its_own_status(failing: Failing, status: int, kept: list[int]):
    @failing.site.app.errorhandler(failing.kind)
    def handler(error: Exception):
        failing.site.add(2)
        return "", status

    assert (failing.site.post().status_code, failing.site.held()) == (status, kept)


def test_the_handler_has_the_same_session_with_nothing_in_it(failing: Failing):
    sessions = []

    @failing.site.app.before_request
    def note():
        sessions.append(failing.site.db.get_session())

    @failing.site.app.errorhandler(failing.kind)
    def handler(error: Exception):
        sessions.append(failing.site.db.get_session())
        return str(sessions[-1].scalar(COUNT)), 409

    assert (failing.site.post().text, sessions[0] is sessions[1]) == ("0", True)


def test_a_handler_whose_own_commit_fails_is_a_500(failing: Failing):
    told: list[Any] = []

    @failing.site.app.errorhandler(failing.kind)
    def handler(error: Exception):
        told.append(error)
        failing.failure.cause(failing.site)
        return "kept, it says", 200

    @failing.site.app.errorhandler(500)
    def at_last(error: Any):
        told.append(error.original_exception)
        return "at last", 500

    assert (failing.site.post().text, failing.site.held()) == ("at last", [])
    assert [type(error) for error in told] == [failing.kind, failing.kind]
    assert told[0] is not told[1]


def test_a_500_handler_whose_own_commit_fails_is_no_success(failing: Failing):
    @failing.site.app.errorhandler(500)
    def handler(error: Exception):
        failing.failure.cause(failing.site)
        return "kept, it says", 200

    with pytest.raises(failing.kind):
        failing.site.post()
    assert failing.site.held() == []


def test_a_handler_that_raises_is_a_500(failing: Failing):
    @failing.site.app.errorhandler(failing.kind)
    def handler(error: Exception):
        failing.site.add(3)
        raise ValueError("in the handler")

    failing.site.app.errorhandler(500)(original)
    assert failing.site.post().text == "handled InternalServerError of ValueError"
    assert failing.site.held() == []


def test_hooks_are_told_of_what_became_of_the_work(failing: Failing):
    told: list[str] = []

    @failing.site.app.before_request
    def wait():
        after_commit(lambda: told.append("kept 1"))
        after_rollback(lambda: told.append("dropped 1"))

    @failing.site.app.errorhandler(failing.kind)
    def handler(error: Exception):
        told.append("handler")
        after_commit(lambda: told.append("kept 2"))
        failing.site.add(2)
        return "", 200

    failing.site.post()
    assert told == ["dropped 1", "handler", "kept 2"]


@pytest.mark.parametrize("handled", [True, False])
def test_teardown_functions_are_told_as_of_an_error_of_the_view(failing: Failing, handled: bool):
    told: list[Any] = []
    failing.site.app.teardown_request(lambda error: told.append(type(error)))
    failing.site.app.teardown_appcontext(lambda error: told.append(type(error)))
    if handled:
        failing.site.app.errorhandler(failing.kind)(conflict)
    failing.site.post()
    assert told == [type(None) if handled else failing.kind] * 2


def test_the_next_request_is_none_the_worse(failing: Failing):
    failing.site.view(lambda: failing.site.add(2) or ("", 201), "/good", endpoint="good")
    failing.site.post()
    assert (failing.site.post("/good").status_code, failing.site.held()) == (201, [2])


def test_a_get_that_needs_no_commit_does_not_fail(failing: Failing):
    assert failing.site.get().status_code == 201


# What does not fail.


def test_an_error_that_sqlite_shrugged_off_keeps_the_rest(file_site: Site):
    @file_site.view
    def view():
        swallowed_error(file_site)
        return "", 201

    assert (file_site.post().status_code, file_site.held()) == (201, [1])


def test_a_refused_status_does_not_try_the_commit_that_would_fail(failing: Failing):
    failing.site.view(lambda: failing.view() and ("no", 400), "/refused", endpoint="refused")
    failing.site.app.errorhandler(failing.kind)(conflict)
    answer = failing.site.post("/refused")
    assert (answer.status_code, answer.text) == (400, "no")


# Several databases.


@pytest.fixture
def two(file: File, other_file: File) -> Iterator[Site]:
    """An app over two databases; the second is the one that fails."""
    first, second = file.sync_config(), other_file.sync_config(bind_key="second")
    with site_of(file, [first, second]) as site:
        site.config, site.configs = first, [second]
        yield site


def test_one_database_that_cannot_commit_fails_the_other(two: Site, other_file: File):
    @two.view
    def view():
        two.add(1)
        second = two.db.get_session("second")
        second.execute(text("INSERT INTO held VALUES (2)"))
        second.execute(text("INSERT INTO nowhere VALUES (1)"))

    two.app.errorhandler(OperationalError)(conflict)
    assert (two.post().status_code, two.held(), other_file.held()) == (409, [], [])


def test_a_flush_that_fails_in_the_second_rolls_both_back(two: Site, other_file: File):
    from flask_site import Parent

    @two.view
    def view():
        two.add(1)
        second = two.db.get_session("second")
        second.execute(text("INSERT INTO parent VALUES (1)"))
        second.add(Parent(id=1))
        return "", 201

    two.app.errorhandler(IntegrityError)(conflict)
    assert (two.post().status_code, two.held(), other_file.held()) == (409, [], [])


def test_a_second_commit_that_fails_says_what_was_kept(two: Site, other_file: File):
    @two.view
    def view():
        two.add(1)
        two.db.get_session("second").execute(text("INSERT INTO child VALUES (99)"))
        return "", 201

    two.app.errorhandler(PartlyCommitted)(lambda error: (f"{error.committed} but not {error.failed}", 500))
    answer = two.post()
    assert (answer.status_code, two.held(), other_file.held()) == (500, [1], [])
    assert "default" in answer.text
    assert "second" in answer.text


# Lost connections.


@pytest.mark.parametrize("handled", [True, False])
def test_a_backend_killed_before_the_commit_is_an_error(pg_site: Site, pg: Postgres, handled: bool):
    @pg_site.view
    def view():
        pg_site.add(1)
        pid = pg_site.db.get_session().scalar(text("SELECT pg_backend_pid()"))
        pg.look.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        return "", 201

    pg_site.view(lambda: pg_site.add(2) or ("", 201), "/good", endpoint="good")
    if handled:
        pg_site.app.errorhandler(OperationalError)(conflict)
    assert (pg_site.post().status_code, pg_site.held()) == (409 if handled else 500, [])
    assert (pg_site.post("/good").status_code, pg_site.held()) == (201, [2])


@pytest.fixture
def doubtful(pg: Postgres) -> Iterator[Site]:
    """An app whose COMMIT reaches the server and is never answered."""
    with FaultProxy(pg.server.host, pg.server.port) as proxy:
        url = make_url(pg.server.url("psycopg")).set(host="127.0.0.1", port=proxy.port)
        options = EngineConfig(connect_args={"application_name": pg.name})
        shown = url.render_as_string(hide_password=False)
        config = SQLAlchemySyncConfig(connection_string=shown, engine_config=options, commit_mode="autocommit")
        with site_of(pg, config) as site:

            @site.view
            def view():
                site.add(1)
                proxy.on(b"COMMIT", flask.request.args.get("fault", "cut_after"))
                return "", 201

            yield site
            assert proxy.hits == 1
            assert out_of_pool(config) == 0
        config.get_engine().dispose()


@pytest.mark.parametrize(("fault", "kept"), [("cut_after", [1]), ("cut_before", [])])
def test_an_outcome_in_doubt_is_a_503_that_does_not_invite_to_repeat(
    doubtful: Site, fault: str, kept: list[int], caplog: pytest.LogCaptureFixture
):
    answer = doubtful.post(query_string={"fault": fault})
    assert answer.status_code == 503
    assert "in doubt" in answer.text
    assert "Retry-After" not in answer.headers
    assert doubtful.held() == kept
    assert "POST /" in caplog.text


@pytest.mark.parametrize("registered", [CommitInDoubt, DatabaseSaidNo, TranseptError, Exception])
def test_an_outcome_in_doubt_is_answered_by_its_handler(doubtful: Site, registered: Any):
    doubtful.app.errorhandler(registered)(conflict)
    assert doubtful.post().text == "handled CommitInDoubt"


@pytest.mark.parametrize("registered", [503, ServiceUnavailable, HTTPException])
def test_an_outcome_in_doubt_is_answered_by_the_handler_of_503(doubtful: Site, registered: Any):
    doubtful.app.errorhandler(registered)(lambda error: (f"{error.code}: {error.description}", error.code))
    answer = doubtful.post()
    assert answer.status_code == 503
    assert answer.text.startswith("503: The outcome is in doubt")


@pytest.mark.parametrize("setting", ["TESTING", "DEBUG", "PROPAGATE_EXCEPTIONS"])
def test_an_outcome_in_doubt_is_a_503_in_an_app_that_propagates_too(doubtful: Site, setting: str):
    doubtful.app.config[setting] = True
    assert doubtful.post().status_code == 503


# A database that cannot be reached.


@pytest.fixture
def down() -> Site:
    """An app over a database that nobody serves."""
    config = PsycopgSyncConfig(
        pool_config={"conninfo": f"postgresql://nobody@127.0.0.1:{ports.free()}/nothing"}, commit_mode="autocommit"
    )
    app = flask.Flask("down")
    app.secret_key = "not secret"
    site = Site(app, Transept(config, app), File.__new__(File), config)

    @app.get("/healthy")
    def healthy():
        return "healthy"

    return site


def ask(site: Site) -> None:
    site.db.get_session().execute("SELECT 1")


def in_view(site: Site) -> None:
    site.view(lambda: ask(site) or "", endpoint="view")


def in_before_request(site: Site) -> None:
    site.app.before_request(lambda: ask(site))
    site.view(lambda: "", endpoint="view")


def in_after_request(site: Site) -> None:
    site.app.after_request(lambda response: ask(site) or response)
    site.view(lambda: "", endpoint="view")


def in_open_session(site: Site) -> None:
    class Sessions(flask.sessions.SecureCookieSessionInterface):
        def open_session(self, app: Any, request: Any) -> Any:
            ask(site)
            return super().open_session(app, request)

    site.app.session_interface = Sessions()
    site.view(lambda: "", endpoint="view")


def in_save_session(site: Site) -> None:
    class Sessions(flask.sessions.SecureCookieSessionInterface):
        def save_session(self, app: Any, session: Any, response: Any) -> None:
            ask(site)

    site.app.session_interface = Sessions()
    site.view(lambda: "", endpoint="view")


def in_error_handler(site: Site) -> None:
    site.app.register_error_handler(KeyError, lambda error: ask(site) or "handled")
    site.view(lambda: {}["nothing"], endpoint="view")


ASKED = (in_view, in_before_request, in_after_request, in_open_session, in_save_session, in_error_handler)


@pytest.mark.parametrize("place", ASKED)
def test_a_database_that_is_down_is_a_503_that_says_when_to_come_back(
    down: Site, place: Any, caplog: pytest.LogCaptureFixture
):
    place(down)
    answer = down.post()
    assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1")
    assert "cannot be reached" in answer.text
    assert "DatabaseUnavailable" in caplog.text


@pytest.mark.parametrize("place", ASKED)
@pytest.mark.parametrize("registered", [503, ServiceUnavailable, HTTPException])
def test_a_database_that_is_down_is_answered_by_the_handler_of_503(down: Site, place: Any, registered: Any):
    place(down)
    down.app.errorhandler(registered)(lambda error: (f"handled {error.code}", error.code))
    answer = down.post()
    assert (answer.status_code, answer.text) == (503, "handled 503")


@pytest.mark.parametrize("place", [in_view, in_before_request])
@pytest.mark.parametrize("registered", [DatabaseUnavailable, DatabaseSaidNo, TranseptError, Exception])
def test_a_database_that_is_down_is_answered_by_its_handler(down: Site, place: Any, registered: Any):
    place(down)
    down.app.errorhandler(registered)(conflict)
    assert down.post().text == "handled DatabaseUnavailable"


def test_what_needs_no_database_is_served_while_it_is_down(down: Site):
    assert (down.get("/healthy").text, down.get("/nowhere").status_code) == ("healthy", 404)


@pytest.mark.parametrize("handled", [True, False])
def test_a_full_pool_is_a_503(pg: Postgres, handled: bool):
    pool = {"conninfo": pg.server.dsn, "min_size": 0, "max_size": 1}
    config = PsycopgSyncConfig(pool_config=pool, pool_timeout=0.1, commit_mode="autocommit")
    app = flask.Flask("full")
    site = Site(app, Transept(config, app), pg, config)
    in_view(site)
    if handled:
        app.errorhandler(PoolTimeout)(conflict)
    with site.db.with_session() as holder:
        holder.execute("INSERT INTO held VALUES (1)")
        answer = site.post()
    assert (answer.status_code, answer.headers.get("Retry-After")) == ((409, None) if handled else (503, "1"))
    assert site.post().status_code == 200
    site.db.close()
