"""Litestar: sessions injected; plain handlers in threads for blocking databases."""

from __future__ import annotations

import inspect
import threading
from typing import Any

from litestar import Litestar, Request, Response, WebSocket, asgi, route, websocket
from litestar.background_tasks import BackgroundTask
from litestar.enums import HttpMethod
from litestar.exceptions import LitestarException
from litestar.response import Stream

from contract.frameworks import Answer, Told, Work
from contract.frameworks.starlette import StarletteFramework, blocking_chunks
from transept._bridge import run_now
from transept.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept


class LitestarFramework(StarletteFramework):
    name = "litestar"
    can = StarletteFramework.can | {"answers", "before_send"}
    configs = {"alchemy-async": SQLAlchemyAsyncConfig, "alchemy-sync": SQLAlchemySyncConfig}
    settings: dict[str, Any] = {}

    def __init__(self) -> None:
        self.made: dict[Any, tuple[Transept, Litestar]] = {}

    def takes(self, family: Any) -> bool:
        return True

    def app(self, databases: list[Any], work: Work, blocking: bool, handlers: dict[type[Exception], int]) -> Any:
        """One app for all requests to the same databases: to make one takes longer than a request."""
        key = (*map(id, databases), blocking, *handlers.items())
        if key not in self.made:
            extension = Transept(databases)
            self.made[key] = extension, self.litestar(extension, databases, blocking, handlers)
        self.extension, app = self.made[key]
        return Asked(app, work)

    def litestar(self, extension: Transept, databases: list[Any], blocking: bool, handlers: Any) -> Litestar:
        async def on_the_loop(request: Request[Any, Any, Any], **sessions: Any) -> Response[Any]:
            return respond(await working(request, sessions), blocking=False)

        def in_a_thread(request: Request[Any, Any, Any], **sessions: Any) -> Response[Any]:
            assert threading.current_thread() is not threading.main_thread(), "on the loop"
            return respond(run_now(working(request, sessions)), blocking=True)

        async def socket(socket: WebSocket[Any, Any, Any], **sessions: Any) -> None:
            await working(socket, sessions)

        in_thread = True if blocking else None
        methods = [HttpMethod.GET, HttpMethod.POST]
        endpoint = asking(in_a_thread if blocking else on_the_loop, databases)
        return self.serving(
            route("/work", http_method=methods, status_code=200, sync_to_thread=in_thread)(endpoint),
            websocket("/socket")(asking(socket, databases)),
            extension=extension,
            handlers=handlers,
        )

    def serving(self, *routes: Any, extension: Transept, handlers: dict[type[Exception], int]) -> Litestar:
        async def note(error: Exception, scope: Any) -> None:
            scope["asked"].errors.append(error)

        return Litestar(
            routes,
            plugins=[extension],
            exception_handlers={kind: handler(status) for kind, status in handlers.items()},
            after_exception=[note],
            openapi_config=None,
            logging_config=None,
            **self.settings,
        )

    def session(self, connection: Any, key: str | None) -> Any:
        given = connection.scope.get("given")
        if given is None:
            return self.extension.get_session(connection, key)
        return given[self.extension.get_config(key).session_key]

    async def has_left(self, request: Any) -> bool:
        return bool((await request.receive())["type"] == "http.disconnect")

    async def call(self, app: Any, look: Any, control: Any) -> Told:
        """Litestar answers every error itself; it is looked for where Litestar tells of it."""
        told = await super().call(app, look, control)
        if told.error is None and told.status == 500 and app.errors:
            told.error = app.errors[-1]
        told.error = original(told.error)
        return told


class Asked:
    """One request to an app: what it works, and the errors that Litestar tells of."""

    def __init__(self, app: Litestar, work: Work) -> None:
        self.app = app
        self.work = work
        self.errors: list[Exception] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["asked"] = self
        await self.app(scope, receive, send)


async def working(connection: Any, sessions: dict[str, Any]) -> Any:
    """While the handler runs, its sessions are those that it was given; then those of the unit of the moment."""
    connection.scope["given"] = sessions
    try:
        return await connection.scope["asked"].work(connection)
    finally:
        del connection.scope["given"]


def holding_the_start(app: Any) -> Any:
    """Middleware that passes the start of a response on with its body, as compression does, and knows of one start."""

    async def around(scope: Any, receive: Any, send: Any) -> None:
        held: list[Any] = []
        starts = 0

        async def later(message: Any) -> None:
            nonlocal starts
            if message["type"] == "http.response.start":
                starts += 1
                assert starts == 1, "a start that was taken back"
                held.append(message)
                return
            while held:
                await send(held.pop())
            await send(message)

        await app(scope, receive, later)

    return around


class CoveredLitestarFramework(LitestarFramework):
    """The same behind middleware, which must not see a start that failed."""

    name = "litestar-covered"
    can = LitestarFramework.can | {"ahead"}
    settings = {"middleware": [holding_the_start]}

    def takes(self, family: Any) -> bool:
        return family.name in ("alchemy-async", "alchemy-sync")


class MountedLitestarFramework(LitestarFramework):
    """A Starlette app mounted in a Litestar app, whose exception handlers are the same."""

    name = "litestar-mounted"
    can = StarletteFramework.can | {"answers", "ahead"}

    def takes(self, family: Any) -> bool:
        return family.name in ("alchemy-async", "alchemy-sync")

    def litestar(self, extension: Transept, databases: list[Any], blocking: bool, handlers: Any) -> Litestar:
        async def work(connection: Any) -> Any:
            return await connection.scope["asked"].work(connection)

        app = StarletteFramework.app(self, databases, work, blocking, handlers)

        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            scope["path"] = scope["raw_path"].decode()  # below a mount at "/", Litestar makes it "work/"
            await app(scope, receive, send)

        return self.serving(asgi("/", is_mount=True, copy_scope=True)(mounted), extension=extension, handlers=handlers)

    def gate(self, app: Any, databases: list[Any]) -> None:
        """That of the app around it."""

    async def has_left(self, request: Any) -> bool:
        return await StarletteFramework.has_left(self, request)


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
        inspect.Parameter(one.session_key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Any) for one in databases
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
