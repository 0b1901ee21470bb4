"""Flask: plain views over every kind of database, and `async def` views over async ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from flask import Flask, Response, g, got_request_exception, jsonify

from contract.families.both import both, plain
from contract.frameworks import Answer, Told, Work
from contract.frameworks.starlette import blocking_chunks
from contract.frameworks.wsgi import WSGIFramework
from transept._bridge import run_now
from transept._portal import PORTAL
from transept.extensions.flask import Transept


class FlaskFramework(WSGIFramework):
    """Plain views, called as a server calls them. An async database gives them plain sessions."""

    name = "flask"
    can = frozenset({"handlers", "disconnect", "teardown", "contexts"})

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def takes(self, family: Any) -> bool:
        return True

    def seen(self, family: Any) -> Any:
        return plain(family)

    def run(self, case: Callable[[], Any], stop: Callable[[], Any]) -> None:
        try:
            super().run(case, stop)
        finally:
            PORTAL.stop()
        assert "transept-loop" not in {thread.name for thread in threading.enumerate()}

    def app(self, databases: list[Any], work: Work, blocking: bool, handlers: dict[type[Exception], int]) -> Any:
        app = Flask("contract")
        app.add_url_rule("/work", view_func=self.view(work), methods=["GET", "POST"])
        for kind, status in handlers.items():
            app.register_error_handler(kind, handler(status))
        app.teardown_request(torn_down)
        got_request_exception.connect(self.note, app)
        self.extension = Transept(databases, app)
        return app

    def view(self, work: Work) -> Callable[[], Any]:
        def view() -> Response:
            return respond(run_now(work(None)))  # type: ignore[arg-type]

        return view

    def note(self, app: Flask, exception: BaseException) -> None:
        self.errors.append(exception)

    def session(self, connection: Any, key: str | None) -> Any:
        return self.extension.get_session(key)

    async def call(self, app: Any, look: Callable[[], list[int]], control: Any) -> Told:
        """Flask answers every error itself; it is looked for where Flask tells of it."""
        self.errors.clear()
        told = await self.asked(app, look, control)
        if told.error is None and told.status == 500 and self.errors:
            told.error = self.errors[-1]
        return told

    async def asked(self, app: Any, look: Callable[[], list[int]], control: Any) -> Told:
        return await super().call(app, look, control)

    def outside(self, databases: list[Any]) -> AbstractContextManager[Any]:
        """Where code of the app runs that no request has."""
        app = Flask("contract")
        self.extension = Transept(databases, app)
        return app.app_context()

    def own_session(self) -> Any:
        """The session of such code."""
        return self.extension.get_session()


class AsyncFlaskFramework(FlaskFramework):
    """`async def` views; what makes their bodies, and what comes after, is plain code.

    A cursor that such a view has opened is not one that its body can read.
    """

    name = "flask-async"
    lacks = frozenset({"a_database_told_to_keep_its_transaction_lets_a_cursor_live_on"})

    def takes(self, family: Any) -> bool:
        return not family.blocking

    def seen(self, family: Any) -> Any:
        return both(family)

    def view(self, work: Work) -> Callable[[], Any]:
        async def view() -> Response:
            assert PORTAL.is_here()
            return respond(await work(None))

        return view


class FlaskClientFramework(FlaskFramework):
    """Flask's test client. It has read the first chunk of a body by the time it tells of the start."""

    name = "flask-client"
    columns = frozenset(
        {
            ("alchemy-async", "sqlite", "aiosqlite"),
            ("alchemy-async", "postgres", "asyncpg"),
            ("alchemy-sync", "sqlite", "pysqlite"),
            ("alchemy-sync", "postgres", "psycopg"),
        }
    )

    async def asked(self, app: Flask, look: Callable[[], list[int]], control: Any) -> Told:
        told = Told()
        response = None
        try:
            response = app.test_client().open("/work", method=control.method)
            told.status = response.status_code
            told.seen.append(("start", look()))
            for chunk in response.iter_encoded():
                told.body += chunk
                told.seen.append(("body", look()))
                if control.leaves_after is not None and len(told.body) >= control.leaves_after:
                    break
            else:
                told.complete = True
                told.seen.append(("end", look()))
        except Exception as error:
            told.error = error
        finally:
            try:
                if response is not None:
                    response.close()
            except Exception as error:
                told.error = error
        return told


def respond(answer: Answer) -> Response:
    chunks: bytes | Iterator[bytes] = answer.body if answer.stream is None else blocking_chunks(answer.stream())
    response = Response(chunks, answer.status)
    if answer.length is not None:
        response.content_length = answer.length
    if answer.background is not None:
        after = answer.background
        response.call_on_close(lambda: run_now(after()))  # type: ignore[arg-type]
    g.teardown = answer.teardown
    return response


def torn_down(error: BaseException | None) -> None:
    teardown = g.pop("teardown", None)
    if teardown is not None:
        run_now(teardown())


def handler(status: int) -> Callable[[Exception], Any]:
    def handle(error: Exception) -> Any:
        return jsonify(handled=type(error).__name__), status

    return handle
