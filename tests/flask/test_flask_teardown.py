"""Teardown functions come after the answer: they see what is settled, what they write is kept, they change nothing."""

from __future__ import annotations

from typing import Any

import flask
import pytest
from flask import Flask, Response, appcontext_tearing_down, request_tearing_down, stream_with_context
from flask_site import Held, Site, site_of
from held import VIOLATION, File, Postgres
from sqlalchemy import text
from werkzeug.exceptions import Conflict


def of_request(app: Flask, function: Any) -> None:
    app.teardown_request(function)


def of_app_context(app: Flask, function: Any) -> None:
    app.teardown_appcontext(function)


def of_blueprint(app: Flask, function: Any) -> None:
    for blueprint in app.blueprints.values():
        blueprint.teardown_request(function)


def at_end_of_request(app: Flask, function: Any) -> None:
    def receive(sender: Any, exc: Any = None, **_: Any) -> None:
        function(exc)

    app.extensions["receiver"] = receive  # signals hold their receivers weakly
    request_tearing_down.connect(receive, app)


def at_end_of_app_context(app: Flask, function: Any) -> None:
    def receive(sender: Any, exc: Any = None, **_: Any) -> None:
        function(exc)

    app.extensions["receiver"] = receive
    appcontext_tearing_down.connect(receive, app)


PLACES = (of_request, of_app_context, at_end_of_request, at_end_of_app_context)
places = pytest.mark.parametrize("place", PLACES)


def made(site: Site) -> Any:
    site.add(1)
    return "made", 201


def made_by_stream(site: Site) -> Any:
    site.add(1)
    return Response(iter(["ma", "de"]), 201)


def answering(site: Site, answer: Any) -> None:
    site.view(lambda: answer(site), endpoint="view")


def refused(site: Site) -> Any:
    site.add(1)
    return "no", 409


def failed(site: Site) -> Any:
    site.add(1)
    raise KeyError("in the view")


def raised_as_http(site: Site) -> Any:
    site.add(1)
    raise Conflict


def nothing_done(site: Site) -> Any:
    return "nothing"


ANSWERS = {
    made: (201, [1]),
    made_by_stream: (201, [1]),
    refused: (409, []),
    failed: (500, []),
    raised_as_http: (409, []),
    nothing_done: (200, []),
}


@places
@pytest.mark.parametrize("answer", ANSWERS)
def test_they_see_what_is_settled(site: Site, place: Any, answer: Any):
    seen: list[Any] = []

    def look(error: Any) -> None:
        seen.append((site.held(), site.db.get_session().query(Held).count()))

    answering(site, answer)
    place(site.app, look)
    status, kept = ANSWERS[answer]
    assert site.post().status_code == status
    assert seen == [(kept, len(kept))]


@places
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_they_write_is_kept(site: Site, place: Any, answer: Any):
    answering(site, answer)
    place(site.app, lambda error: site.add(2))
    status, kept = ANSWERS[answer]
    assert (site.post().status_code, site.held()) == (status, [*kept, 2])


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_each_of_them_writes_is_kept(site: Site, answer: Any):
    answering(site, answer)
    for number, place in enumerate((of_request, of_app_context, of_request, of_app_context), 2):
        place(site.app, lambda error, number=number: site.add(number))
    status, kept = ANSWERS[answer]
    assert (site.post().status_code, site.held()) == (status, [*kept, 2, 3, 4, 5])


@places
@pytest.mark.parametrize("answer", [answer for answer, (_, kept) in ANSWERS.items() if kept])
def test_what_they_write_and_cannot_keep_is_logged(
    site: Site, place: Any, answer: Any, caplog: pytest.LogCaptureFixture
):
    answering(site, answer)
    place(site.app, lambda error: site.violate())
    response = site.post()
    assert (response.status_code, response.text, site.held()) == (201, "made", [1])
    assert "IntegrityError" in caplog.text


@places
def test_one_that_raises_after_kept_work_is_logged_and_changes_nothing(
    site: Site, place: Any, caplog: pytest.LogCaptureFixture
):
    def fail(error: Any) -> None:
        site.add(2)
        raise ValueError("in the teardown")

    answering(site, made)
    place(site.app, fail)
    response = site.post()
    assert (response.status_code, response.text, site.held()) == (201, "made", [1])
    assert "POST / was answered, and its work settled; its teardown failed" in caplog.text
    assert "in the teardown" in caplog.text


@places
def test_one_that_raises_after_kept_work_does_not_cut_a_stream_off(site: Site, place: Any):
    @site.view
    def view():
        site.add(1)
        session = site.db.get_session()

        def rows():
            yield "m"
            session.add(Held(v=2))
            yield "ade"

        return Response(rows(), 201)

    place(site.app, lambda error: {}["nothing"])
    response = site.post()
    assert (response.status_code, response.text, site.held()) == (201, "made", [1, 2])


@places
@pytest.mark.parametrize("answer", [refused, failed, raised_as_http])
def test_one_that_raises_after_work_was_rolled_back_changes_nothing_either(site: Site, place: Any, answer: Any):
    def fail(error: Any) -> None:
        raise ValueError("in the teardown")

    answering(site, answer)
    place(site.app, fail)
    assert (site.post().status_code, site.held()) == ANSWERS[answer]


@places
def test_one_that_raises_where_no_session_was_asked_for_is_left_to_the_server(site: Site, place: Any):
    def fail(error: Any) -> None:
        raise ValueError("in the teardown")

    answering(site, nothing_done)
    place(site.app, fail)
    with pytest.raises(ValueError, match="in the teardown"):
        site.post()


@places
@pytest.mark.parametrize("status", [201, 409])
def test_one_that_raises_after_the_app_has_committed_itself_changes_nothing(site: Site, place: Any, status: int):
    """Whatever the mode says of the status."""

    def fail(error: Any) -> None:
        raise ValueError("in the teardown")

    def commits(site: Site) -> Any:
        site.add(1)
        site.db.get_session().commit()
        return "done", status

    answering(site, commits)
    place(site.app, fail)
    assert (site.post().status_code, site.held()) == (status, [1])


@places
@pytest.mark.parametrize("setting", ["TESTING", "DEBUG", "PROPAGATE_EXCEPTIONS"])
def test_one_that_raises_raises_where_errors_are_the_developers_to_see(site: Site, place: Any, setting: str):
    def fail(error: Any) -> None:
        raise ValueError("in the teardown")

    site.app.config[setting] = True
    answering(site, made)
    place(site.app, fail)
    with pytest.raises(ValueError, match="in the teardown"):
        site.post()
    assert site.held() == [1]


def test_one_that_raises_leaves_the_next_request_alone(site: Site):
    calls: list[int] = []

    def fail(error: Any) -> None:
        calls.append(1)
        raise ValueError("in the teardown")

    answering(site, made)
    site.view(lambda: site.add(2) or ("", 201), "/two", endpoint="two")
    site.app.teardown_request(fail)
    assert [site.post().status_code, site.post("/two").status_code] == [201, 201]
    assert (len(calls), site.held()) == (2, [1, 2])


@pytest.mark.parametrize("end", ["rollback", "close", "commit", "reset", "expunge_all"])
@places
def test_sessions_may_be_cleaned_up_by_hand(site: Site, place: Any, end: str):
    answering(site, made)
    place(site.app, lambda error: getattr(site.db.get_session(), end)())
    assert (site.post().status_code, site.held()) == (201, [1])


@places
def test_a_session_of_the_views_may_be_closed(site: Site, place: Any):
    @site.view
    def view():
        flask.g.session = site.db.get_session()
        site.add(1)
        return "", 201

    place(site.app, lambda error: flask.g.session.close())
    assert (site.post().status_code, site.held()) == (201, [1])


def test_a_failed_statement_of_one_is_logged(pg_site: Site, caplog: pytest.LogCaptureFixture):
    def swallow(error: Any) -> None:
        pg_site.add(2)
        with pytest.raises(Exception, match="nonsense"):
            pg_site.db.get_session().execute(text("SELECT nonsense"))

    answering(pg_site, made)
    pg_site.app.teardown_request(swallow)
    assert (pg_site.post().status_code, pg_site.held()) == (201, [1])
    assert "CommitFailed" in caplog.text


@places
def test_they_are_told_of_an_error_of_the_view(site: Site, place: Any):
    told: list[Any] = []
    answering(site, failed)
    place(site.app, lambda error: told.append(type(error)))
    assert site.post().status_code == 500
    assert told == [KeyError]


def test_what_is_written_with_a_database_of_its_own_session_is_kept(site: Site):
    def write(error: Any) -> None:
        with site.db.with_session() as session:
            session.add(Held(v=2))

    answering(site, refused)
    site.app.teardown_request(write)
    assert (site.post().status_code, site.held()) == (409, [2])


def test_one_of_a_blueprint_is_kept_too(site: Site):
    blueprint = flask.Blueprint("some", __name__)
    blueprint.post("/")(lambda: made(site))
    blueprint.teardown_request(lambda error: site.add(2))
    blueprint.teardown_app_request(lambda error: site.add(3))
    site.app.register_blueprint(blueprint)
    assert (site.post().status_code, site.held()) == (201, [1, 2, 3])


def test_they_leave_nothing_open_where_the_view_used_no_database(tables: File | Postgres, site: Site):
    def read(error: Any) -> None:
        assert site.db.get_session().query(Held).count() == 0

    answering(site, nothing_done)
    for place in PLACES[:3]:
        place(site.app, read)
    assert site.post().status_code == 200
    assert site.clean()


@places
def test_what_they_write_when_a_stream_in_its_context_has_ended_is_kept(site: Site, place: Any):
    """Flask runs them twice then: when the response starts, and at the end of the body."""
    ran: list[str] = []

    @site.view
    def view():
        def rows():
            yield "a"
            ran.append("body")
            site.add(1)

        return Response(stream_with_context(rows()))

    def write(error: Any) -> None:
        ran.append("teardown")
        site.add(len(ran) + 1)

    place(site.app, write)
    assert (site.get().text, ran[-1]) == ("a", "teardown")
    assert site.held() == sorted([1, *(number + 2 for number, what in enumerate(ran) if what == "teardown")])


@places
def test_what_they_roll_back_themselves_is_not_missed(site: Site, place: Any):
    def write_and_undo(error: Any) -> None:
        site.add(2)
        site.db.get_session().execute(VIOLATION)
        site.db.get_session().rollback()

    answering(site, made)
    place(site.app, write_and_undo)
    assert (site.post().status_code, site.held()) == (201, [1])


@places
def test_what_they_write_is_kept_in_manual_mode_too(tables: File | Postgres, place: Any):
    """What comes after the answer has no status that could decide."""
    with site_of(tables, tables.sync_config(commit_mode="manual")) as site:
        answering(site, made)
        place(site.app, lambda error: site.add(2))
        assert (site.post().status_code, site.held()) == (201, [2])
