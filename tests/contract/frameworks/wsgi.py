"""A plain WSGI app behind the gate, called as a server calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any
from wsgiref.util import setup_testing_defaults

from contract.frameworks import Answer, Told, Work
from contract.frameworks.starlette import blocking_chunks
from transept._bridge import run_now
from transept.gate.wsgi import WSGIGate


class WSGIFramework:
    name = "wsgi"
    can = frozenset({"handlers", "disconnect"})

    def takes(self, family: Any) -> bool:
        return bool(family.blocking)

    def run(self, case: Callable[[], Any], stop: Callable[[], Any]) -> None:
        try:
            run_now(case())
        finally:
            run_now(stop())

    def app(self, databases: list[Any], work: Work, blocking: bool, handlers: dict[type[Exception], int]) -> Any:
        """`handlers` answer errors inside the app, and those that kept a response from starting."""

        def handled(error: Exception) -> Answer | None:
            status = next((status for kind, status in handlers.items() if isinstance(error, kind)), None)
            return None if status is None else Answer(status, b"handled")

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            try:
                answer: Answer = run_now(work(environ))  # type: ignore[arg-type]
            except Exception as error:
                if (found := handled(error)) is None:
                    raise
                answer = found
            return respond(answer, start_response)

        def answer(environ: Any, failure: Exception) -> Any:
            found = handled(failure)
            return None if found is None else lambda environ, start_response: respond(found, start_response)

        self.gate = WSGIGate(app, databases, answer=answer)
        return self.gate

    def session(self, environ: Any, key: str | None) -> Any:
        return self.gate.get_session(environ, key)

    async def find(self, environ: Any, key: str | None) -> Any:
        return self.session(environ, key)

    async def call(self, app: Any, look: Callable[[], list[int]], control: Any) -> Told:
        told = Told()
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ.update(REQUEST_METHOD=control.method, PATH_INFO="/work")

        def start_response(line: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
            told.status = int(line.split()[0])
            told.seen.append(("start", look()))
            return lambda data: None

        body = None
        try:
            body = app(environ, start_response)
            for chunk in body:
                told.body += chunk
                told.seen.append(("body", look()))
                if control.leaves_after is not None and len(told.body) >= control.leaves_after:
                    break
            else:
                told.complete = True
                told.seen.append(("end", look()))
        except Exception as error:
            told.error = error
            if told.status is None:
                told.status, told.complete = 500, True
        finally:
            try:
                if hasattr(body, "close"):
                    body.close()
            except Exception as error:
                told.error = error
        return told


class _WithAfter:
    """A body whose `close()` does what comes after the response."""

    def __init__(self, chunks: Iterator[bytes], after: Any) -> None:
        self._chunks = chunks
        self._after = after

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        run_now(self._after())


def respond(answer: Answer, start_response: Any) -> Iterable[bytes]:
    headers = []
    if answer.length is not None:
        headers.append(("Content-Length", str(answer.length)))
    start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers)
    chunks: Iterable[bytes] = [answer.body] if answer.stream is None else blocking_chunks(answer.stream())
    return chunks if answer.background is None else _WithAfter(iter(chunks), answer.background)
