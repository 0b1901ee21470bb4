"""Litestar: sessions injected; plain handlers in threads for blocking databases."""

from __future__ import annotations

import inspect
from typing import Any

from litestar import Litestar, Request, Response, WebSocket, route, websocket
from litestar.background_tasks import BackgroundTask
from litestar.config.compression import CompressionConfig
from litestar.enums import HttpMethod
from litestar.exceptions import LitestarException
from litestar.response import Stream

from contract.frameworks import Answer, Told, Work
from contract.frameworks.starlette import StarletteFramework, blocking_chunks
from transept._bridge import run_now
from transept.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept


class LitestarFramework(StarletteFramework):
    name = "litestar"
    configs = {"alchemy-async": SQLAlchemyAsyncConfig, "alchemy-sync": SQLAlchemySyncConfig}
    settings: dict[str, Any] = {}

    def takes(self, family: Any) -> bool:
        return True

    def app(self, databases: list[Any], work: Work, blocking: bool, handlers: dict[type[Exception], int]) -> Any:
        self.extension: Any = Transept(databases)
        self.errors: list[Exception] = []

        async def on_the_loop(request: Request[Any, Any, Any], **sessions: Any) -> Response[Any]:
            return respond(await self.working(work, request, sessions), blocking=False)

        def in_a_thread(request: Request[Any, Any, Any], **sessions: Any) -> Response[Any]:
            return respond(run_now(self.working(work, request, sessions)), blocking=True)

        async def socket(socket: WebSocket[Any, Any, Any], **sessions: Any) -> None:
            await self.working(work, socket, sessions)

        async def note(error: Exception, scope: Any) -> None:
            self.errors.append(error)

        endpoint = asking(in_a_thread if blocking else on_the_loop, databases)
        methods = [HttpMethod.GET, HttpMethod.POST]
        return Litestar(
            [
                route("/work", http_method=methods, status_code=200, sync_to_thread=True if blocking else None)(
                    endpoint
                ),
                websocket("/socket")(asking(socket, databases)),
            ],
            plugins=[self.extension],
            exception_handlers={kind: handler(status) for kind, status in handlers.items()},
            after_exception=[note],
            openapi_config=None,
            logging_config=None,
            **self.settings,
        )

    async def working(self, work: Work, connection: Any, sessions: dict[str, Any]) -> Any:
        """While the handler runs, its sessions are those that it was given."""
        connection.scope["given"] = sessions
        try:
            return await work(connection)
        finally:
            del connection.scope["given"]

    def session(self, connection: Any, key: str | None) -> Any:
        given = connection.scope.get("given", {})
        database = self.extension.get_config(key)
        return given.get(database.session_key) or self.extension.get_session(connection, key)

    async def has_left(self, request: Any) -> bool:
        return bool((await request.receive())["type"] == "http.disconnect")

    async def call(self, app: Any, look: Any, control: Any) -> Told:
        """Litestar answers every error itself; it is looked for where Litestar tells of it."""
        told = await super().call(app, look, control)
        if told.error is None and told.status == 500 and self.errors:
            told.error = self.errors[-1]
        told.error = original(told.error)
        return told


class CoveredLitestarFramework(LitestarFramework):
    """The same behind middleware, which must not see a start that failed."""

    name = "litestar-covered"
    settings = {"compression_config": CompressionConfig("gzip"), "middleware": [lambda app: app]}

    def takes(self, family: Any) -> bool:
        return family.name in ("alchemy-async", "alchemy-sync")


def original(error: BaseException | None) -> BaseException | None:
    """Without what Litestar puts around an error after the start, and anyio around one in a stream."""
    if isinstance(error, LitestarException) and error.__cause__ is not None:
        return original(error.__cause__)
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return original(error.exceptions[0])
    return error


def asking(endpoint: Any, databases: list[Any]) -> Any:
    """The endpoint with a parameter for the session of each database."""
    signature = inspect.signature(endpoint)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    annotations = {name: kind for name, kind in endpoint.__annotations__.items() if name != "sessions"}
    asked = [
        inspect.Parameter(one.session_key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Any)
        for one in databases
        if not getattr(one, "prepares", False)
    ]
    endpoint.__signature__ = signature.replace(parameters=[*own, *asked])
    endpoint.__annotations__ = {**annotations, **{one.name: Any for one in asked}}
    return endpoint


def respond(answer: Answer, blocking: bool) -> Response[Any]:
    background = None
    if answer.background is not None:
        after = answer.background
        background = BackgroundTask((lambda: run_now(after())) if blocking else after)  # type: ignore[arg-type]
    if answer.messages is not None:
        return Messages(answer)
    if answer.stream is None:
        return Response(answer.body, status_code=answer.status, media_type="text/plain", background=background)
    headers = {} if answer.length is None else {"content-length": str(answer.length)}
    chunks: Any = blocking_chunks(answer.stream()) if blocking else answer.stream()
    return Stream(chunks, status_code=answer.status, headers=headers, background=background)


class Messages(Response[Any]):
    """A response that is sent message by message, as a server with extensions allows."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(None)
        self._answer = answer

    def to_asgi_response(self, *arguments: Any, **settings: Any) -> Any:
        async def send_all(scope: Any, receive: Any, send: Any) -> None:
            assert self._answer.messages is not None
            async for message in self._answer.messages():
                await send(message)

        return send_all


def handler(status: int) -> Any:
    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        return Response({"handled": type(error).__name__}, status_code=status)

    return handle
