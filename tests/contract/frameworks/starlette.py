"""Starlette: an endpoint for async databases, a plain one in the thread pool for blocking ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from contract.frameworks import Answer, Told, Work
from transept._bridge import run_now
from transept.extensions.starlette import Transept

logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class StarletteFramework:
    name = "starlette"
    can = frozenset({"async", "handlers", "cancel", "disconnect", "websocket", "outlive", "background", "messages"})

    def takes(self, family: Any) -> bool:
        return bool(family.name != "dbconnect")

    def run(self, case: Callable[[], Any], stop: Callable[[], Any]) -> None:
        async def main() -> None:
            try:
                await case()
            finally:
                await stop()

        asyncio.run(main())

    def app(self, databases: list[Any], work: Work, blocking: bool, handlers: dict[type[Exception], int]) -> Any:
        async def on_the_loop(request: Request) -> Response:
            return respond(await work(request), blocking=False)

        def in_a_thread(request: Request) -> Response:
            return respond(run_now(work(request)), blocking=True)  # type: ignore[arg-type]

        async def socket(websocket: Any) -> None:
            await work(websocket)

        app = Starlette(
            routes=[
                Route("/work", in_a_thread if blocking else on_the_loop, methods=["GET", "POST"]),
                WebSocketRoute("/socket", socket),
            ],
            exception_handlers={kind: handler(status) for kind, status in handlers.items()},
        )
        self.gate(app, databases)
        return app

    def gate(self, app: Starlette, databases: list[Any]) -> None:
        self.extension = Transept(databases, app)

    def session(self, request: Any, key: str | None) -> Any:
        return self.extension.get_session(request, key)

    async def find(self, request: Any, key: str | None) -> Any:
        return self.session(request, key)

    async def has_left(self, request: Any) -> bool:
        """Ask whether the client has."""
        return bool(await request.is_disconnected())

    async def call(self, app: Any, look: Callable[[], list[int]], control: Any) -> Told:
        told = Told()
        gone = control.gone

        async def receive() -> dict[str, Any]:
            if not control.sent:
                control.sent = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                told.status = message["status"]
                told.seen.append(("start", look()))
            elif message["type"] == "http.response.body":
                told.body += message.get("body", b"")
                told.complete = not message.get("more_body", False)
                if told.complete:
                    gone.set()  # as servers tell it to an app that still listens
                told.seen.append(("body", look()))
                if control.leaves_after is not None and len(told.body) >= control.leaves_after:
                    raise OSError("the client has left")
            else:
                told.seen.append((message["type"].removeprefix("http.response."), look()))

        scope = {
            "type": "http", "method": control.method, "path": "/work", "raw_path": b"/work", "query_string": b"",
            "headers": [], "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1),
            "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        task = asyncio.ensure_future(app(scope, receive, send))
        control.task = task
        try:
            await asyncio.wait({task}, timeout=20)
            told.error = asyncio.CancelledError() if task.cancelled() else task.exception()
        finally:
            task.cancel()
        return told


def respond(answer: Answer, blocking: bool) -> Response:
    background = None
    if answer.background is not None:
        after = answer.background
        background = BackgroundTask((lambda: run_now(after())) if blocking else after)  # type: ignore[arg-type]
    if answer.messages is not None:
        return Messages(answer.messages())
    if answer.stream is None:
        return Response(answer.body, answer.status, background=background)
    headers = {} if answer.length is None else {"content-length": str(answer.length)}
    chunks: Any = blocking_chunks(answer.stream()) if blocking else answer.stream()
    return StreamingResponse(chunks, answer.status, headers=headers, background=background)


class Messages(Response):
    """A response that is sent message by message, as a server with extensions allows."""

    def __init__(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__()
        self._messages = messages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async for message in self._messages:
            await send(message)


def blocking_chunks(stream: Any) -> Iterator[bytes]:
    """An async generator that never suspends, as a plain one."""
    try:
        while True:
            try:
                yield run_now(stream.__anext__())
            except StopAsyncIteration:
                return
    finally:
        run_now(stream.aclose())


def handler(status: int) -> Callable[..., Any]:
    async def handle(request: Request, error: Exception) -> Response:
        return JSONResponse({"handled": type(error).__name__}, status)

    return handle
