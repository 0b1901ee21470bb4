"""FastAPI: endpoints whose sessions come by `Depends`, plain ones in the thread pool for blocking databases."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from starlette.responses import Response

from contract.frameworks import Work
from contract.frameworks.starlette import StarletteFramework, handler, respond
from transept._bridge import run_now
from transept.extensions.fastapi import Transept


class FastAPIFramework(StarletteFramework):
    name = "fastapi"

    def takes(self, family: Any) -> bool:
        """The raw families add nothing that Starlette's cells do not have."""
        return family.name in ("alchemy-async", "alchemy-sync")

    def app(self, databases: list[Any], work: Work, blocking: bool, handlers: dict[type[Exception], int]) -> Any:
        app = FastAPI()
        self.extension: Any = Transept(databases, app)
        given = Annotated[dict[Any, Any], Depends(self.sessions_of(databases))]

        async def on_the_loop(request: Request, sessions: given, tasks: BackgroundTasks) -> Response:
            with self.given(request, sessions):
                answer = await work(request)
            if answer.background is not None:
                tasks.add_task(answer.background)
            return respond(replace(answer, background=None), blocking=False)

        def in_a_thread(request: Request, sessions: given, tasks: BackgroundTasks) -> Response:
            with self.given(request, sessions):
                answer = run_now(work(request))  # type: ignore[arg-type]
            if answer.background is not None:
                after = answer.background
                tasks.add_task(lambda: run_now(after()))  # type: ignore[arg-type]
            return respond(replace(answer, background=None), blocking=True)

        app.add_api_route("/work", in_a_thread if blocking else on_the_loop, methods=["GET", "POST"])

        @app.websocket("/socket")
        async def socket(websocket: WebSocket, sessions: given) -> None:
            with self.given(websocket, sessions):
                await work(websocket)

        for kind, status in handlers.items():
            app.add_exception_handler(kind, handler(status))
        return app

    def sessions_of(self, databases: list[Any]) -> Any:
        """A dependency that depends on the session of each database."""

        async def sessions(**sessions: Any) -> dict[Any, Any]:
            return sessions

        sessions.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    database.key,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=Annotated[Any, Depends(self.extension.provide_session(database))],
                )
                for database in databases
            ]
        )
        return sessions

    @contextmanager
    def given(self, connection: Any, sessions: dict[Any, Any]) -> Iterator[None]:
        """While the endpoint runs, its sessions are those that it was given."""
        connection.scope["given"] = sessions
        try:
            yield
        finally:
            del connection.scope["given"]

    def session(self, connection: Any, key: str | None) -> Any:
        given = connection.scope.get("given", {})
        return given.get(key or "default") or self.extension.get_session(connection, key)
