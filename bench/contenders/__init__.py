"""Who is measured: each contender is the same small app, with its sessions made in another way.

Each has three paths that are timed, `/nodb`, `/read` and `/write`, and two that show whether it keeps the promise:
`/refused` writes and answers 400, `/broken` writes what fails only at COMMIT and answers 201. Those over Litestar have
two paths, and ask no database: `/litestar-session` has a session injected and does not use it. Those over Flask have
the same paths as the first, with `/flask-` before their names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from database import Place
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

__all__ = [
    "ASYNCPG",
    "BY_HAND",
    "CONTENDERS",
    "LIBRARIES",
    "OVER_FLASK",
    "OVER_LITESTAR",
    "SQL_FIRST",
    "Contender",
    "Library",
    "MissingError",
    "awaited",
    "imported",
    "nodb",
    "on_request",
    "routes",
]

App = Callable[..., Awaitable[None]]
Make = Callable[[Place, str], AbstractAsyncContextManager[App]]
Endpoint = Callable[[Request], Awaitable[Response]]


class MissingError(Exception):
    """This contender cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Contender:
    """`package`: what must be installed; `made_by`: the module of this folder and the function in it."""

    name: str
    title: str
    package: str
    made_by: str
    paths: Sequence[str] = ("/nodb", "/read", "/write")

    @property
    def writes(self) -> str | None:
        """The path that writes; None if there is none."""
        return next((path for path in self.paths if path.endswith("write")), None)

    def app(self, place: Place) -> AbstractAsyncContextManager[App]:
        """Its app, started, with a pool of the size that the place says.

        Raises:
            MissingError: what it needs is not installed.
        """
        module, _, function = self.made_by.partition(":")
        make: Make = getattr(imported(self.package, module), function)
        return make(place, self.name)


def imported(package: str, module: str) -> Any:
    """A module of this folder.

    Raises:
        MissingError: the package that it is about is not installed.
    """
    try:
        version(package)
    except PackageNotFoundError:
        raise MissingError("not installed") from None
    return import_module(f"contenders.{module}")


OVER_FLASK = ["/flask-nodb", "/flask-read", "/flask-write"]
OVER_LITESTAR = ["/litestar-nodb", "/litestar-session"]

BY_HAND = Contender("by-hand", "SQLAlchemy by hand", "sqlalchemy", "by_hand:by_hand")

CONTENDERS = [
    Contender("bare", "bare Starlette", "starlette", "by_hand:bare", paths=["/nodb"]),
    BY_HAND,
    Contender("transept", "Transept, get_session()", "transept", "transept:by_request"),
    Contender("transept-context", "Transept, db_session()", "transept", "transept:by_context"),
    Contender("advanced-alchemy", "Advanced Alchemy", "advanced-alchemy", "advanced_alchemy:extension"),
    Contender("context-async-asgi", "context-async-sqlalchemy, ASGI", "context-async-sqlalchemy", "context_async:asgi"),
    Contender(
        "context-async-starlette",
        "context-async-sqlalchemy, Starlette",
        "context-async-sqlalchemy",
        "context_async:ready_made",
    ),
    Contender("sqlspec", "SQLSpec, asyncpg", "sqlspec", "sqlspec:plugin"),
    Contender("litestar", "bare Litestar", "litestar", "litestar:bare", paths=OVER_LITESTAR),
    Contender("litestar-transept", "Transept, Litestar", "litestar", "litestar:transept", paths=OVER_LITESTAR),
    Contender(
        "litestar-advanced-alchemy",
        "Advanced Alchemy, Litestar",
        "advanced-alchemy",
        "litestar:advanced_alchemy",
        paths=OVER_LITESTAR,
    ),
    Contender("flask", "bare Flask", "flask", "flask:bare", paths=["/flask-nodb"]),
    Contender("flask-by-hand", "SQLAlchemy by hand, Flask", "flask", "flask:by_hand", paths=OVER_FLASK),
    Contender("flask-transept", "Transept, Flask", "flask", "flask:transept", paths=OVER_FLASK),
    Contender("flask-sql-first", "Transept, SQL-first, Flask", "psycopg", "flask:sql_first", paths=OVER_FLASK),
    Contender(
        "flask-advanced-alchemy",
        "Advanced Alchemy, Flask",
        "advanced-alchemy",
        "flask:advanced_alchemy",
        paths=OVER_FLASK,
    ),
    Contender("flask-sqlalchemy", "Flask-SQLAlchemy", "flask-sqlalchemy", "flask:flask_sqlalchemy", paths=OVER_FLASK),
    Contender("flask-sqlspec", "SQLSpec, Flask", "sqlspec", "flask:sqlspec", paths=OVER_FLASK),
]

ASYNCPG = Contender("asyncpg", "asyncpg by hand", "asyncpg", "raw:by_hand", paths=["/read", "/write"])

SQL_FIRST = [
    ASYNCPG,
    Contender("transept", "Transept", "transept", "raw:through_transept", paths=["/read", "/write"]),
    Contender(
        "transept-nothing-saved",
        "Transept, nothing saved",
        "transept",
        "raw:saving_nothing",
        paths=["/read", "/write"],
    ),
    Contender("sqlspec", "SQLSpec", "sqlspec", "sqlspec:plugin", paths=["/read", "/write"]),
]


class Library(NamedTuple):
    """Whose sessions are compared; `module` of this folder has `blocking_session`, `async_session` and `stream`."""

    name: str
    title: str
    package: str
    module: str


LIBRARIES = [Library("transept", "Transept", "transept", "raw"), Library("sqlspec", "SQLSpec", "sqlspec", "sqlspec")]


async def nodb(request: Request) -> Response:
    return PlainTextResponse("nothing")


def routes(read: Endpoint, write: Endpoint, refused: Endpoint, broken: Endpoint) -> list[Route]:
    return [
        Route("/nodb", nodb),
        Route("/read", read),
        Route("/write", write, methods=["POST"]),
        Route("/refused", refused, methods=["POST"]),
        Route("/broken", broken, methods=["POST"]),
    ]


def on_request(session_of: Callable[[Request], Any], place: Place, name: str) -> list[Route]:
    """Endpoints that find their SQLAlchemy session by the request."""
    select, insert, insert_orphan = map(text, (place.select, place.insert, place.insert_orphan))

    async def read(request: Request) -> Response:
        session = session_of(request)
        return PlainTextResponse(await session.scalar(select, {"id": 1}))

    async def writing(statement: Any, status: int, request: Request) -> Response:
        session = session_of(request)
        await session.execute(statement, {"name": name})
        return PlainTextResponse("written", status)

    async def write(request: Request) -> Response:
        session = session_of(request)
        await session.execute(insert, {"name": name})
        return PlainTextResponse("written", 201)

    return routes(read, write, partial(writing, insert, 400), partial(writing, insert_orphan, 201))


def awaited(session: Callable[[], Awaitable[Any]], place: Place, name: str) -> list[Route]:
    """Endpoints that find their SQLAlchemy session by the context."""
    select, insert, insert_orphan = map(text, (place.select, place.insert, place.insert_orphan))

    async def read(request: Request) -> Response:
        found = await session()
        return PlainTextResponse(await found.scalar(select, {"id": 1}))

    async def writing(statement: Any, status: int, request: Request) -> Response:
        found = await session()
        await found.execute(statement, {"name": name})
        return PlainTextResponse("written", status)

    async def write(request: Request) -> Response:
        found = await session()
        await found.execute(insert, {"name": name})
        return PlainTextResponse("written", 201)

    return routes(read, write, partial(writing, insert, 400), partial(writing, insert_orphan, 201))
