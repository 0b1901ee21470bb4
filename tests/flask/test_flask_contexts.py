"""App and request contexts: which of them are units of work of their own, and what becomes of those."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import flask
import pytest
from flask import Flask, copy_current_request_context
from flask_site import Held, Site, site_of
from held import File, Postgres, insert
from sqlalchemy.exc import IntegrityError
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from transept import OutsideScope, after_commit, current_unit, doom, is_context_initiated, unit_of_work
from transept.extensions.flask import Transept

# App contexts without a request.


def test_an_app_context_commits_at_a_clean_end(site: Site):
    with site.app.app_context():
        site.add(1)
        assert site.held() == []
    assert site.held() == [1]


def test_an_app_context_commits_in_manual_mode_too(tables: File | Postgres):
    with site_of(tables, tables.sync_config(commit_mode="manual")) as site:
        with site.app.app_context():
            site.add(1)
        assert site.held() == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_app_context_that_an_error_leaves_rolls_back(site: Site, error: type[BaseException]):
    with pytest.raises(error), site.app.app_context():
        site.add(1)
        raise error
    assert site.held() == []


@pytest.mark.parametrize(("code", "kept"), [(None, [1]), (0, [1]), (1, []), ("no", [])])
def test_a_program_that_ends_in_an_app_context_keeps_by_its_exit_code(site: Site, code: Any, kept: list[int]):
    with pytest.raises(SystemExit), site.app.app_context():
        site.add(1)
        raise SystemExit(code)
    assert site.held() == kept


def test_an_app_context_whose_commit_fails_says_so(site: Site):
    with pytest.raises(IntegrityError), site.app.app_context():
        site.add(1)
        site.violate()
    assert site.held() == []


def test_an_app_context_that_is_doomed_keeps_nothing(site: Site):
    with site.app.app_context():
        site.add(1)
        doom("no")
    assert site.held() == []


def test_hooks_of_an_app_context_see_it(site: Site):
    told: list[Any] = []
    with site.app.app_context():
        flask.g.number = 5
        after_commit(lambda: told.append((flask.g.number, flask.current_app.name, site.held())))
        site.add(1)
    assert told == [(5, "site", [1])]


def test_an_app_context_has_one_session(site: Site):
    with site.app.app_context():
        one = site.db.get_session()
        assert site.db.get_session() is one
        assert current_unit().session() is one
    with site.app.app_context():
        assert site.db.get_session() is not one
    with pytest.raises(OutsideScope, match="app context"):
        one.execute(insert(1))


def test_outside_of_all_contexts_it_is_said_what_to_do(site: Site):
    with pytest.raises(OutsideScope, match=r"with app\.app_context\(\)"):
        site.db.get_session()
    assert not is_context_initiated()


def test_an_app_without_a_transept_says_so(site: Site):
    with Flask("other").app_context(), pytest.raises(OutsideScope, match="'other' has no Transept"):
        site.db.get_session()


def test_nested_app_contexts_are_units_of_their_own(pg_site: Site):
    with pg_site.app.app_context():
        outer = pg_site.db.get_session()
        pg_site.add(1)
        with pg_site.app.app_context():
            pg_site.add(2)
            assert pg_site.db.get_session() is not outer
        assert pg_site.held() == [2]
        with pytest.raises(ValueError, match="inner"), pg_site.app.app_context():
            pg_site.add(3)
            raise ValueError("inner")
        assert pg_site.db.get_session() is outer
    assert pg_site.held() == [1, 2]


def test_a_context_inside_an_except_block_commits_at_a_clean_end(site: Site):
    try:
        raise ValueError("handled")
    except ValueError:
        with site.app.app_context():
            site.add(1)
        assert site.held() == [1]
        with site.app.test_request_context():
            site.add(2)
    assert site.held() == [1, 2]


def test_a_context_inside_an_except_block_that_raises_on_rolls_back(site: Site):
    with pytest.raises(ValueError, match="raised on"):
        try:
            raise ValueError("raised on")
        except ValueError:
            with site.app.app_context():
                site.add(1)
                raise
    assert site.held() == []


def test_an_error_handled_inside_a_context_does_not_matter(site: Site):
    with site.app.app_context():
        try:
            raise ValueError("handled")
        except ValueError:
            site.add(1)
    assert site.held() == [1]


def test_a_context_pushed_and_popped_by_hand_commits(site: Site):
    context = site.app.app_context()
    context.push()
    site.add(1)
    context.pop()
    assert site.held() == [1]


def test_a_context_popped_by_hand_while_an_error_is_on_its_way_rolls_back(site: Site):
    context = site.app.app_context()
    context.push()
    with pytest.raises(ValueError, match="on its way"):
        try:
            site.add(1)
            raise ValueError("on its way")
        finally:
            context.pop()
    assert site.held() == []


def test_a_context_pushed_twice_is_one_unit_until_the_last_pop(site: Site):
    context = site.app.app_context()
    with context:
        one = site.db.get_session()
        site.add(1)
        with context:
            assert site.db.get_session() is one
            site.add(2)
        assert site.held() == []
        assert site.db.get_session() is one
    assert site.held() == [1, 2]


def test_a_context_pushed_again_later_is_another_unit(site: Site):
    context = site.app.app_context()
    with context:
        site.add(1)
    with pytest.raises(ValueError, match="second"), context:
        site.add(2)
        raise ValueError("second")
    with context:
        site.add(3)
    assert site.held() == [1, 3]


def test_a_context_pushed_before_init_app_is_a_unit(site: Site):
    app = Flask("early")
    with app.app_context():
        site.db.init_app(app)
        site.add(1)
    assert site.held() == [1]
    with pytest.raises(ValueError, match="late"), app.app_context():
        site.add(2)
        raise ValueError("late")
    assert site.held() == [1]


def test_a_context_made_before_init_app_and_pushed_after_is_a_unit(site: Site):
    app = Flask("early")
    context, requests = app.app_context(), app.test_request_context()
    site.db.init_app(app)
    with context:
        site.add(1)
    with requests:
        site.add(2)
    assert site.held() == [1, 2]


def test_an_app_made_in_a_context_of_its_own_serves_requests(site: Site):
    app = Flask("early")
    with app.app_context():
        site.db.init_app(app)
        site.app = app
        site.view(lambda: site.add(1) or ("", 409))
        assert (site.post().status_code, site.held()) == (409, [])
        site.add(2)
    assert site.held() == [2]


def in_thread(function: Any, *arguments: Any) -> Any:
    """What it returns, or raises, in a thread of its own."""
    told: list[Any] = []

    def run() -> None:
        try:
            told.append((function(*arguments), None))
        except BaseException as error:
            told.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = told[0]
    if error is not None:
        raise error
    return result


def test_a_context_popped_in_another_context_is_settled(site: Site):
    """Flask refuses that, but only after the teardown."""
    context = site.app.app_context()

    def popped_elsewhere() -> None:
        context.push()
        site.add(1)
        with pytest.raises(ValueError, match="different Context"):
            contextvars.copy_context().run(context.pop)

    contextvars.Context().run(popped_elsewhere)  # which keeps what could not be popped
    assert site.held() == [1]
    with site.app.app_context():
        site.add(2)
    assert site.held() == [1, 2]
    with pytest.raises(OutsideScope):
        site.db.get_session()


def test_a_context_of_one_thread_is_none_of_another(site: Site):
    with site.app.app_context():
        site.db.get_session()
        with pytest.raises(OutsideScope):
            in_thread(site.db.get_session)


def test_threads_with_contexts_of_their_own_are_units_of_their_own(site: Site):
    def work(v: int) -> None:
        with site.app.app_context():
            site.add(v)
            if v % 2:
                raise ValueError("odd")

    for v in range(6):
        if v % 2:
            with pytest.raises(ValueError, match="odd"):
                in_thread(work, v)
        else:
            in_thread(work, v)
    assert site.held() == [0, 2, 4]


def test_one_context_pushed_in_two_threads_is_one_unit(site: Site):
    context = site.app.app_context()
    with context:
        one = site.db.get_session()

        def same() -> bool:
            with context:
                return site.db.get_session() is one

        assert in_thread(same)
        site.add(1)
    assert site.held() == [1]


# Contexts and requests.


def written_by(site: Site, status: int = 201) -> None:
    site.view(lambda: site.add(1) or ("", status), endpoint="view")


def test_a_request_inside_an_app_context_is_decided_by_its_status(site: Site):
    written_by(site, 409)
    with site.app.app_context():
        assert site.post().status_code == 409
    assert site.held() == []


def test_a_request_inside_an_app_context_does_not_wait_for_it(site: Site):
    written_by(site)
    with pytest.raises(ValueError, match="around"), site.app.app_context():
        assert (site.post().status_code, site.held()) == (201, [1])
        raise ValueError("around")
    assert site.held() == [1]


def test_requests_do_not_touch_the_unit_of_the_context_around_them(pg_site: Site):
    seen: list[Any] = []
    pg_site.view(lambda: seen.append(pg_site.db.get_session()) or pg_site.add(1) or ("", 409), endpoint="view")
    with pg_site.app.app_context():
        outer = pg_site.db.get_session()
        pg_site.add(2)
        client = pg_site.app.test_client()
        assert [client.post("/").status_code, client.post("/").status_code] == [409, 409]
        assert pg_site.db.get_session() is outer
        pg_site.add(3)
    assert pg_site.held() == [2, 3]
    assert len({id(session) for session in (outer, *seen)}) == 3


def test_an_app_context_inside_a_view_is_a_unit_of_its_own(pg_site: Site):
    @pg_site.view
    def view():
        outer = pg_site.db.get_session()
        pg_site.add(1)
        with pg_site.app.app_context():
            pg_site.add(2)
            assert pg_site.db.get_session() is not outer
        assert pg_site.db.get_session() is outer
        return "", 409

    assert (pg_site.post().status_code, pg_site.held()) == (409, [2])


def test_a_test_request_context_inside_a_view_shares_its_unit(site: Site):
    """As it shares its app context."""
    site.view(lambda: "other", "/other", endpoint="other")

    @site.view
    def view():
        site.add(1)
        session = site.db.get_session()
        with site.app.test_request_context("/other"):
            assert site.db.get_session() is session
            site.add(2)
            assert site.app.full_dispatch_request().status_code == 200
        assert site.db.get_session() is session
        return "", 409

    assert (site.post().status_code, site.held()) == (409, [])


def test_a_test_request_context_inside_a_view_is_asked_first(site: Site):
    @site.view
    def view():
        with site.app.test_request_context("/other"):
            site.add(1)
        site.add(2)
        return "", int(flask.request.args["status"])

    assert (site.post(query_string={"status": 409}).status_code, site.held()) == (409, [])
    assert (site.post(query_string={"status": 201}).status_code, site.held()) == (201, [1, 2])


def test_a_test_request_context_commits_at_a_clean_end(site: Site):
    with site.app.test_request_context():
        site.add(1)
    with pytest.raises(ValueError, match="inside"), site.app.test_request_context():
        site.add(2)
        raise ValueError("inside")
    assert site.held() == [1]


@pytest.mark.parametrize(("status", "kept"), [(201, [1]), (409, [])])
def test_a_full_dispatch_in_a_test_request_context_is_decided_by_its_status(site: Site, status: int, kept: list[int]):
    written_by(site, status)
    with site.app.test_request_context(method="POST"):
        assert site.app.full_dispatch_request().status_code == status
        assert site.held() == kept
    assert site.held() == kept


def test_a_failed_commit_in_a_test_request_context_is_handled(site: Site):
    @site.view
    def view():
        site.add(1)
        site.violate()
        return "", 201

    site.app.errorhandler(IntegrityError)(lambda error: ("conflict", 409))
    with site.app.test_request_context(method="POST"):
        assert site.app.full_dispatch_request().status_code == 409
    assert site.held() == []


def test_preprocessing_in_a_test_request_context_is_a_part_of_its_unit(site: Site):
    site.app.before_request(lambda: site.add(1))
    with site.app.test_request_context():
        site.app.preprocess_request()
        site.add(2)
        site.app.process_response(site.app.make_response("no"))
    assert site.held() == [1, 2]


def test_a_client_that_keeps_the_context_has_a_new_unit_in_it(site: Site):
    @site.view
    def view():
        flask.g.session = site.db.get_session()
        site.add(1)
        return "", 201

    with site.app.test_client() as client:
        assert client.post("/").status_code == 201
        assert site.held() == [1]
        assert flask.request.path == "/"
        assert site.db.get_session() is not flask.g.session
        assert site.db.get_session().query(Held).count() == 1
        site.add(2)
        assert client.get("/").status_code == 201
    assert site.held() == [1, 1, 2]


def test_a_client_that_keeps_the_context_of_a_request_without_a_session(site: Site):
    site.view(lambda: "healthy", endpoint="view")
    with site.app.test_client() as client:
        assert client.get("/").text == "healthy"
        site.add(2)
    assert site.held() == [2]


def test_session_transaction_opens_a_context_of_its_own(site: Site):
    site.view(lambda: str(flask.session.get("who")), endpoint="view")
    client = site.app.test_client()
    with client.session_transaction() as session:
        session["who"] = "me"
    assert client.get("/").text == "me"
    with site.app.test_client() as other, other.session_transaction() as session:
        assert "who" not in session


def test_a_copied_request_context_in_a_thread_is_a_unit_of_its_own(pg_site: Site):
    @pg_site.view
    def view():
        outer = pg_site.db.get_session()
        pg_site.add(1)

        @copy_current_request_context
        def work():
            assert flask.request.path == "/"
            assert pg_site.db.get_session() is not outer
            pg_site.add(2)

        in_thread(work)
        return "", 409

    assert (pg_site.post().status_code, pg_site.held()) == (409, [2])


def test_a_copied_request_context_that_outlives_its_request_is_a_unit_of_its_own(site: Site):
    threads: list[threading.Thread] = []
    go = threading.Event()

    @site.view
    def view():
        site.add(1)

        @copy_current_request_context
        def work():
            go.wait(10)
            site.add(2)

        threads.append(threading.Thread(target=work))
        threads[0].start()
        return "", 201

    assert (site.post().status_code, site.held()) == (201, [1])
    go.set()
    threads[0].join()
    assert site.held() == [1, 2]


def test_a_copied_python_context_shares_the_request_and_ends_with_it(site: Site):
    copies: list[contextvars.Context] = []

    @site.view
    def view():
        outer = site.db.get_session()
        copies.append(contextvars.copy_context())
        assert in_thread(copies[0].run, site.db.get_session) is outer
        return "", 201

    assert site.post().status_code == 201
    with pytest.raises(OutsideScope, match="outlived"):
        in_thread(copies[0].run, site.db.get_session)


def test_a_background_thread_of_a_view_has_its_own_unit(site: Site):
    def work() -> None:
        with site.app.app_context():
            site.add(2)

    @site.view
    def view():
        in_thread(work)
        return "", 409

    assert (site.post().status_code, site.held()) == (409, [2])


def test_a_request_inside_a_request_is_a_unit_of_its_own(pg_site: Site):
    pg_site.view(lambda: pg_site.add(2) or ("", 201), "/inner", endpoint="inner")
    pg_site.view(lambda: pg_site.add(3) or ("", 409), "/refused", endpoint="refused")

    @pg_site.view
    def view():
        outer = pg_site.db.get_session()
        pg_site.add(1)
        client = pg_site.app.test_client()
        inner = [client.post("/inner").status_code, client.post("/refused").status_code]
        assert pg_site.db.get_session() is outer
        return {"inner": inner}, 409

    answer = pg_site.post()
    assert (answer.status_code, answer.json, pg_site.held()) == (409, {"inner": [201, 409]}, [2])


def test_unit_of_work_needs_no_context(site: Site):
    with unit_of_work() as unit:
        unit.session(site.config).execute(insert(1))
    assert site.held() == [1]


# Several apps.


@pytest.fixture
def other(site: Site) -> Site:
    """Another app over the same database, with a Transept of its own: each of its paths writes, and is its status."""
    app = Flask("other")
    made = Site(app, Transept(site.config, app), site.tables, site.config)

    @app.post("/<int:status>")
    def view(status: int):
        made.add(status)
        return "", status

    return made


def test_an_app_mounted_outside_of_the_gate_is_settled_alone(site: Site, other: Site):
    written_by(site)
    client = Client(DispatcherMiddleware(site.app, {"/other": other.app}))
    assert [client.post(path).status_code for path in ("/", "/other/202", "/other/409")] == [201, 202, 409]
    assert site.held() == [1, 202]


def test_an_app_mounted_inside_of_the_gate_is_settled_alone(site: Site, other: Site, caplog: pytest.LogCaptureFixture):
    app = Flask("around")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/other": other.app})
    site.db.init_app(app)
    site.app = app
    written_by(site)
    other.app.errorhandler(IntegrityError)(lambda error: ("conflict", 418))
    other.app.post("/fails")(lambda: other.add(5) or other.violate() or ("", 201))
    assert [site.post(path).status_code for path in ("/", "/other/202", "/other/409")] == [201, 202, 409]
    assert (site.post("/other/fails").status_code, site.held()) == (418, [1, 202])
    other.app.teardown_request_funcs.setdefault(None, []).append(lambda error: {}["nothing"])
    assert (site.post("/other/203").status_code, site.held()) == (203, [1, 202, 203])
    assert "its teardown failed" in caplog.text


def test_one_transept_serves_two_apps(site: Site):
    two = Flask("two")
    site.db.init_app(two)
    two.post("/", endpoint="refused")(lambda: site.add(2) or ("", 409))
    two.post("/kept", endpoint="kept")(lambda: site.add(3) or ("", 201))
    written_by(site)
    client = Client(DispatcherMiddleware(site.app, {"/two": two}))
    assert [client.post(path).status_code for path in ("/", "/two/", "/two/kept")] == [201, 409, 201]
    assert site.held() == [1, 3]


@pytest.mark.parametrize(("status", "inner", "kept"), [(201, 202, [1, 202]), (409, 202, [202]), (201, 409, [1])])
def test_a_view_may_answer_with_another_app(pg: Postgres, status: int, inner: int, kept: list[int]):
    with site_of(pg, pg.sync_config()) as site:
        app = Flask("inner")
        site.db.init_app(app)

        @app.post("/")
        def within():
            site.add(inner)
            return "inner", inner

        @site.view
        def view():
            outer = site.db.get_session()
            site.add(1)
            answer = flask.make_response(app)
            assert answer.status_code == inner
            assert site.db.get_session() is outer
            return answer.get_data(), status

        answer = site.post()
        assert (answer.status_code, answer.text, site.held()) == (status, "inner", kept)


def test_an_app_context_of_another_app_inside_a_view_is_a_unit_of_its_own(pg: Postgres):
    with site_of(pg, pg.sync_config()) as site:
        two = Flask("two")
        site.db.init_app(two)

        @site.view
        def view():
            site.add(1)
            with two.app_context():
                assert flask.current_app.name == "two"
                site.add(2)
            return "", 409

        assert (site.post().status_code, site.held()) == (409, [2])


def test_two_transepts_on_one_app_are_one_unit(file: File, other_file: File):
    with site_of(file, file.sync_config()) as site:
        second = Transept(other_file.sync_config(bind_key="second"), site.app)

        @site.view
        def view():
            site.add(1)
            second.get_session("second").execute(insert(2))
            return "", int(flask.request.args["status"])

        assert site.post(query_string={"status": 409}).status_code == 409
        assert (file.held(), other_file.held()) == ([], [])
        assert site.post(query_string={"status": 201}).status_code == 201
        assert (file.held(), other_file.held()) == ([1], [2])
        with site.app.app_context():
            site.add(3)
            second.get_session("second").execute(insert(4))
        assert (file.held(), other_file.held()) == ([1, 3], [2, 4])


# Middleware between the gate and Flask.


@pytest.mark.parametrize(("status", "kept"), [(201, [1, 2]), (409, [2])])
def test_middleware_may_copy_the_environ(site: Site, status: int, kept: list[int]):
    app = Flask("copied")
    inner = app.wsgi_app
    app.wsgi_app = lambda environ, start_response: inner(dict(environ), start_response)
    site.db.init_app(app)
    site.app = app
    app.teardown_request(lambda error: site.add(2))
    written_by(site, status)
    assert (site.post().status_code, site.held()) == (status, kept)


def test_middleware_may_push_an_app_context_around_the_app(site: Site):
    inner = site.app.wsgi_app

    def around(environ: Any, start_response: Any) -> Any:
        with site.app.app_context():
            body = inner(environ, start_response)
            site.add(2)
            return body

    site.app.wsgi_app = around
    written_by(site, 409)
    assert (site.post().status_code, site.held()) == (409, [2])


def test_middleware_that_answers_an_error_itself_keeps_nothing(site: Site):
    app = Flask("rescued")
    inner = app.wsgi_app

    def rescue(environ: Any, start_response: Any) -> Any:
        try:
            return inner(environ, start_response)
        except ValueError:
            start_response("200 OK", [])
            return [b"rescued"]

    app.wsgi_app = rescue
    app.config["PROPAGATE_EXCEPTIONS"] = True
    site.db.init_app(app)
    site.app = app

    @site.view
    def view():
        site.add(1)
        raise ValueError("rescued")

    assert (site.post().text, site.held()) == ("rescued", [])
