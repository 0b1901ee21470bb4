"""The status decides, after every `after_request` function has had its say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
import pytest
from flask import Blueprint, Flask, Response, abort, after_this_request, redirect, request_finished
from flask.sessions import SessionInterface, SessionMixin
from flask.views import MethodView, View
from flask_site import Held, Site, site_of
from held import File, Postgres
from sqlalchemy.orm import Session
from werkzeug.exceptions import Conflict, HTTPException
from werkzeug.routing import RequestRedirect

from transept import after_commit, after_rollback, doom, unit_of_work

MODES = {
    "manual": (),
    "autocommit": (200, 201, 204),
    "autocommit_include_redirect": (200, 201, 204, 302, 303, 304),
}
STATUSES = (200, 201, 204, 302, 303, 304, 400, 404, 409, 500, 503)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_keeps_its_statuses(tables: File | Postgres, mode: str):
    with site_of(tables, tables.sync_config(commit_mode=mode)) as site:

        @site.view
        def view():
            status = int(flask.request.args["status"])
            site.add(status)
            return "", status

        for status in STATUSES:
            assert site.post(query_string={"status": status}).status_code == status
        assert site.held() == list(MODES[mode])


def test_extra_statuses_win_over_the_range(tables: File | Postgres):
    extra = {"extra_commit_statuses": {409}, "extra_rollback_statuses": {202}}
    with site_of(tables, tables.sync_config(**extra)) as site:

        @site.view
        def view():
            status = int(flask.request.args["status"])
            site.add(status)
            return "", status

        assert [site.post(query_string={"status": status}).status_code for status in (201, 202, 409)] == [201, 202, 409]
        assert site.held() == [201, 409]


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_what_is_committed_by_hand_in_manual_mode_is_kept_whatever_is_answered(tables: File | Postgres, status: int):
    with site_of(tables, tables.sync_config(commit_mode="manual")) as site:

        @site.view
        def view():
            site.add(1)
            site.db.get_session().commit()
            return "", status

        assert (site.post().status_code, site.held()) == (status, [1])


def test_a_commit_that_was_forgotten_in_manual_mode_is_warned_of(
    tables: File | Postgres, caplog: pytest.LogCaptureFixture
):
    with site_of(tables, tables.sync_config(commit_mode="manual")) as site:

        @site.view
        def view():
            site.add(1)
            return "", 201

        assert (site.post().status_code, site.held()) == (201, [])
        assert "POST / answers 201, but its work on 'default' was rolled back" in caplog.text


def raise_conflict() -> Any:
    raise Conflict


def abort_404() -> Any:
    abort(404)


def abort_with_a_response() -> Any:
    abort(Response("no", 418))


def abort_303() -> Any:
    abort(redirect("/", 303))


def raise_request_redirect() -> Any:
    raise RequestRedirect("/elsewhere")


def raise_value_error() -> Any:
    raise ValueError("in the view")


def return_none() -> Any:
    return None


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (raise_conflict, 409),
        (abort_404, 404),
        (abort_with_a_response, 418),
        (abort_303, 303),
        (raise_request_redirect, 308),
        (raise_value_error, 500),
        (return_none, 500),
        (lambda: redirect("/"), 302),
        (lambda: Response("no", 400), 400),
        (lambda: ("no", "409 CONFLICT"), 409),
        (lambda: (Response("yes", 201), 422), 422),
        (lambda: ({"no": 1}, 402, {"X-Why": "so"}), 402),
        (lambda: Response("no", status="499 Custom"), 499),
    ],
)
def test_a_view_that_ends_otherwise_than_with_success_leaves_nothing(site: Site, end: Callable[[], Any], status: int):
    @site.view
    def view():
        site.add(1)
        return end()

    assert (site.post().status_code, site.held()) == (status, [])


def a_wsgi_app(environ: Any, start_response: Any) -> Any:
    start_response("203 Non-Authoritative Information", [])
    return [b"made"]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda: "made", 200),
        (lambda: {"made": 1}, 200),
        (lambda: [1], 200),
        (lambda: ("", 204), 204),
        (lambda: (Response("no", 500), 201), 201),
        (lambda: ("made", {"X-Why": "so"}), 200),
        (lambda: iter([b"ma", b"de"]), 200),
        (lambda: a_wsgi_app, 203),
    ],
)
def test_each_way_to_answer_with_success_keeps(site: Site, end: Callable[[], Any], status: int):
    @site.view
    def view():
        site.add(1)
        return end()

    assert (site.post().status_code, site.held()) == (status, [1])


@pytest.mark.parametrize(("raised", "kept"), [(302, [1]), (303, [1]), (409, [])])
def test_an_http_exception_is_its_status_when_redirects_commit(tables: File | Postgres, raised: int, kept: list[int]):
    with site_of(tables, tables.sync_config(commit_mode="autocommit_include_redirect")) as site:

        @site.view
        def view():
            site.add(1)
            error = HTTPException("see there")
            error.code = raised
            raise error

        assert (site.post().status_code, site.held()) == (raised, kept)


# What after_request functions make of it.


def on_app(app: Flask, blueprint: Blueprint, change: Any) -> None:
    app.after_request(change)


def on_blueprint(app: Flask, blueprint: Blueprint, change: Any) -> None:
    blueprint.after_request(change)


def on_all_by_blueprint(app: Flask, blueprint: Blueprint, change: Any) -> None:
    blueprint.after_app_request(change)


def in_before_request(app: Flask, blueprint: Blueprint, change: Any) -> None:
    app.before_request(lambda: after_this_request(change) and None)


PLACES = (on_app, on_blueprint, on_all_by_blueprint, in_before_request)
EARLY = ("before init_app", "after init_app")


def changing(site: Site, place: Any, when: str, change: Any, answered: int) -> Site:
    """Another app, whose response this function changes."""
    app, blueprint = Flask("changing"), Blueprint("some", __name__)
    if when == "after init_app":
        site.db.init_app(app)
    place(app, blueprint, change)

    @blueprint.post("/")
    def view():
        site.add(1)
        return "", answered

    app.register_blueprint(blueprint)
    if when == "before init_app":
        site.db.init_app(app)
    site.app = app
    return site


def status_as(status: int) -> Any:
    def change(response: Response) -> Response:
        response.status_code = status
        return response

    return change


@pytest.mark.parametrize("when", EARLY)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("answered", "changed", "kept"), [(201, 500, []), (201, 302, []), (500, 200, [1])])
def test_the_status_counts_that_after_request_functions_leave(
    site: Site, place: Any, when: str, answered: int, changed: int, kept: list[int]
):
    changing(site, place, when, status_as(changed), answered)
    assert (site.post().status_code, site.held()) == (changed, kept)


@pytest.mark.parametrize("when", EARLY)
@pytest.mark.parametrize("place", PLACES)
def test_what_after_request_functions_write_is_a_part_of_it(site: Site, place: Any, when: str):
    def change(response: Response) -> Response:
        site.add(2)
        return response

    changing(site, place, when, change, 201)
    assert (site.post().status_code, site.held()) == (201, [1, 2])


@pytest.mark.parametrize("when", EARLY)
@pytest.mark.parametrize("place", PLACES)
def test_an_after_request_function_that_raises_leaves_nothing(site: Site, place: Any, when: str):
    def change(response: Response) -> Response:
        raise ValueError("after")

    changing(site, place, when, change, 201)
    assert (site.post().status_code, site.held()) == (500, [])


@pytest.mark.parametrize("when", EARLY)
@pytest.mark.parametrize("place", PLACES)
def test_after_request_functions_see_what_is_not_settled(site: Site, place: Any, when: str):
    seen = []

    def change(response: Response) -> Response:
        seen.append((site.held(), site.db.get_session().in_transaction()))
        return response

    changing(site, place, when, change, 201)
    site.post()
    assert seen == [([], True)]


def test_an_after_request_function_may_answer_with_another_response(site: Site):
    @site.view
    def view():
        site.add(1)
        return "", 201

    site.app.after_request(lambda response: Response("no", 409))
    assert (site.post().status_code, site.held()) == (409, [])


def test_receivers_of_request_finished_have_their_say(site: Site):
    @site.view
    def view():
        site.add(1)
        return "", 201

    def change(sender: Flask, response: Response) -> None:
        site.add(2)
        response.status_code = int(flask.request.args["status"])

    with request_finished.connected_to(change, site.app):
        assert site.post(query_string={"status": 409}).status_code == 409
        assert site.held() == []
        assert site.post(query_string={"status": 202}).status_code == 202
        assert site.held() == [1, 2]


def test_a_receiver_of_request_finished_that_raises_leaves_nothing(site: Site):
    @site.view
    def view():
        site.add(1)
        return "", 201

    def refuse(sender: Flask, response: Response) -> None:
        raise ValueError("finished")

    with request_finished.connected_to(refuse, site.app):
        assert (site.post().status_code, site.held()) == (500, [])


def test_the_last_say_is_had_by_one_registered_first_and_on_the_500_it_made(site: Site):
    statuses = []

    @site.app.after_request
    def last(response: Response) -> Response:
        statuses.append(response.status_code)
        return response

    @site.app.after_request
    def first(response: Response) -> Response:
        if response.status_code == 201:
            raise ValueError("after")
        return response

    @site.view
    def view():
        site.add(1)
        return "", 201

    assert (site.post().status_code, statuses, site.held()) == (500, [500], [])


# Sessions of Flask's own.


class InTheDatabase(SessionInterface):
    """Flask's sessions kept in the request's transaction."""

    def __init__(self, site: Site, *, fails: bool = False) -> None:
        self.site, self.fails = site, fails
        self.seen: list[Session] = []

    def open_session(self, app: Flask, request: Any) -> Any:
        session = self.site.db.get_session()
        self.seen.append(session)
        return InMemory({"rows": session.query(Held).count()})

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        self.seen.append(self.site.db.get_session())
        if self.fails:
            raise ValueError("saving")
        self.site.add(int(session["save"]))


class InMemory(dict[str, Any], SessionMixin):
    pass


def saving(site: Site, status: int) -> Any:
    @site.view
    def view():
        assert flask.session["rows"] == 0
        flask.session["save"] = 7
        return "", status

    return view


@pytest.mark.parametrize(("status", "kept"), [(201, [7]), (409, [])])
def test_a_session_interface_may_use_the_requests_transaction(site: Site, status: int, kept: list[int]):
    site.app.session_interface = sessions = InTheDatabase(site)
    saving(site, status)
    assert (site.post().status_code, site.held()) == (status, kept)
    opened, saved = sessions.seen
    assert opened is saved


def test_a_session_interface_that_fails_to_save_leaves_nothing(site: Site):
    site.app.session_interface = InTheDatabase(site, fails=True)
    saving(site, 201)
    assert (site.post().status_code, site.held()) == (500, [])


def test_the_session_cookie_is_sent_with_what_is_kept(site: Site):
    @site.view
    def view():
        site.add(1)
        flask.session["who"] = "me"
        return "", 201

    @site.app.get("/who")
    def who():
        return str(flask.session.get("who"))

    client = site.app.test_client()
    assert client.post("/").status_code == 201
    assert (client.get("/who").text, site.held()) == ("me", [1])


# What stands before a view, and other kinds of view.


def test_one_session_is_used_before_in_and_after_the_view(site: Site):
    used: list[Any] = []

    def use(*_: Any) -> None:
        used.append(site.db.get_session())
        site.add(len(used))

    blueprint = Blueprint("some", __name__, url_prefix="/some")
    blueprint.before_request(use)
    site.app.url_value_preprocessor(use)
    site.app.before_request(use)

    @blueprint.post("/<int:n>")
    def view(n: int):
        use()
        return "", n

    site.app.register_blueprint(blueprint)
    assert (site.post("/some/201").status_code, site.held()) == (201, [1, 2, 3, 4])
    assert len(set(map(id, used))) == 1
    assert (site.post("/some/400").status_code, site.held()) == (400, [1, 2, 3, 4])


@pytest.mark.parametrize(("status", "kept"), [(202, [1]), (403, [])])
def test_a_before_request_function_that_answers_is_settled_by_its_status(site: Site, status: int, kept: list[int]):
    @site.app.before_request
    def answer():
        site.add(1)
        return "answered", status

    assert (site.post("/nowhere").status_code, site.held()) == (status, kept)


def test_class_based_views_are_views(site: Site):
    class Things(MethodView):
        def post(self):
            site.add(1)
            return "", 201

        def delete(self):
            site.add(2)
            return "", 409

    class One(View):
        methods = ("POST",)

        def dispatch_request(self):
            site.add(3)
            return "", 202

    site.app.add_url_rule("/things", view_func=Things.as_view("things"))
    site.app.add_url_rule("/one", view_func=One.as_view("one"))
    client = site.app.test_client()
    assert [client.post("/things").status_code, client.delete("/things").status_code] == [201, 409]
    assert (client.post("/one").status_code, site.held()) == (202, [1, 3])


def test_nested_blueprints_have_their_say_too(site: Site):
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    outer.after_request(status_as(409))

    @inner.post("/")
    def view():
        site.add(1)
        return "", 201

    outer.register_blueprint(inner)
    site.app.register_blueprint(outer)
    assert (site.post().status_code, site.held()) == (409, [])


# What needs no database.


def checkouts(site: Site) -> list[int]:
    """One item for each connection that is taken from now on."""
    from sqlalchemy import event

    taken: list[int] = []
    event.listen(site.config.get_engine(), "checkout", lambda *_: taken.append(1))
    return taken


def test_what_uses_no_database_takes_no_connection(site: Site, tmp_path: Any):
    (tmp_path / "some.txt").write_text("static")
    site.app.static_folder = str(tmp_path)
    site.app.add_url_rule("/static/<path:filename>", endpoint="files", view_func=site.app.send_static_file)
    taken = checkouts(site)

    @site.view
    def view():
        site.db.get_session()
        return "healthy"

    client = site.app.test_client()
    answers = [
        client.get("/"),
        client.head("/"),
        client.options("/"),
        client.get("/nowhere"),
        client.delete("/"),
        client.get("/static/some.txt"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 405, 200]
    assert answers[-1].text == "static"
    for answer in answers:
        answer.close()
    assert taken == []


def test_head_is_settled_as_get_is(site: Site):
    @site.view
    def view():
        site.add(1)
        return "made"

    answer = site.app.test_client().head("/")
    assert (answer.status_code, answer.data, site.held()) == (200, b"", [1])


def test_an_options_view_of_the_apps_own_is_settled(site: Site):
    @site.app.route("/", methods=["OPTIONS"], provide_automatic_options=False)
    def view():
        site.add(1)
        return "", 200

    assert (site.app.test_client().options("/").status_code, site.held()) == (200, [1])


# What a view may do in its unit of work.


def test_a_doomed_unit_keeps_nothing_and_says_so(site: Site, caplog: pytest.LogCaptureFixture):
    @site.view
    def view():
        site.add(1)
        doom("the till is closed")
        return "", 201

    assert (site.post().status_code, site.held()) == (201, [])
    assert "POST / answers 201, but its work was rolled back: the till is closed" in caplog.text


@pytest.mark.parametrize(("status", "told"), [(201, ["kept 5 of site /"]), (409, ["dropped 5 of site /"])])
def test_hooks_see_the_context_of_the_request(site: Site, status: int, told: list[str]):
    said = []

    def tell(what: str) -> None:
        said.append(f"{what} {flask.g.number} of {flask.current_app.name} {flask.request.path}")

    @site.view
    def view():
        flask.g.number = 5
        after_commit(lambda: tell("kept"))
        after_rollback(lambda: tell("dropped"))
        site.add(1)
        return "", status

    assert (site.post().status_code, said) == (status, told)


def test_a_hook_runs_after_the_commit_and_before_the_answer(site: Site):
    said: list[Any] = []

    @site.view
    def view():
        after_commit(lambda: said.append(site.held()))
        site.add(1)
        return "", 201

    def start(status: str, *_: Any) -> Any:
        said.append(status)

    from werkzeug.test import create_environ

    body = site.app(create_environ(method="POST"), start)
    assert said == [[1], "201 CREATED"]
    body.close()


def test_a_hook_that_fails_does_not_change_the_answer(site: Site, caplog: pytest.LogCaptureFixture):
    @site.view
    def view():
        after_commit(lambda: 1 / 0)
        site.add(1)
        return "", 201

    assert (site.post().status_code, site.held()) == (201, [1])
    assert "ZeroDivisionError" in caplog.text


def test_a_block_inside_a_view_undoes_itself_alone(site: Site):
    @site.view
    def view():
        site.add(1)
        with unit_of_work():
            site.add(2)
        with pytest.raises(ValueError, match="inside"), unit_of_work():
            site.add(3)
            raise ValueError("inside")
        return "", 201

    assert (site.post().status_code, site.held()) == (201, [1, 2])


def test_a_block_inside_a_view_is_rolled_back_with_it(site: Site):
    @site.view
    def view():
        with unit_of_work():
            site.add(1)
        return "", 409

    assert (site.post().status_code, site.held()) == (409, [])


def test_a_failing_statement_inside_a_savepoint_is_undone_by_it(pg_site: Site):
    @pg_site.view
    def view():
        session = pg_site.db.get_session()
        pg_site.add(1)
        with pytest.raises(Exception, match="does not exist"), session.begin_nested():
            session.connection().exec_driver_sql("SELECT * FROM nowhere")
        return "", 201

    assert (pg_site.post().status_code, pg_site.held()) == (201, [1])


def test_objects_of_the_session_can_be_returned_and_are_not_expired(site: Site):
    @site.view
    def view():
        made = Held(v=1)
        site.db.get_session().add(made)
        return flask.jsonify(made), 201

    answer = site.post()
    assert (answer.status_code, answer.json, site.held()) == (201, {"v": 1}, [1])


def test_the_next_request_has_another_session(site: Site):
    seen = []

    @site.view
    def view():
        seen.append(site.db.get_session())
        site.add(len(seen))
        return "", 201

    assert [site.post().status_code for _ in range(3)] == [201, 201, 201]
    assert (len({id(session) for session in seen}), site.held()) == (3, [1, 2, 3])
