"""Each kind of database that a sandbox knows, with an app in front of it and a second connection beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from contract.engines.mariadb import MariaDB
from contract.engines.postgres import Postgres
from contract.engines.sqlite import SQLiteFile, SQLiteMemory
from contract.families.alchemy_async import AlchemyAsync
from contract.families.alchemy_sync import AlchemySync
from contract.families.raw_asyncpg import RawAsyncpg
from contract.families.raw_sqlite3 import RawSqlite3
from servers.found import needed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from transept._bridge import run_now
from transept.extensions.starlette import Transept

ENGINES: dict[str, Any] = {
    "sqlite": lambda config: SQLiteFile(),
    "memory": lambda config: SQLiteMemory(),
    "postgres": lambda config: Postgres(needed(config, "postgres")),
    "mariadb": lambda config: MariaDB(needed(config, "mariadb")),
}
CELLS = {
    f"{family.name}-{engine}-{driver}": (family, engine, driver)
    for family in (AlchemyAsync, AlchemySync, RawAsyncpg, RawSqlite3)
    for engine, drivers in family.drivers.items()
    for driver in drivers
}

Handler = Callable[["Use"], Awaitable[int | None]]


class Use:
    """What a handler has: its request's session, and the family's way to talk to it."""

    def __init__(self, cell: Cell, session: Any, request: Request | None = None) -> None:
        self.cell = cell
        self.session = session
        self.request = request

    async def run(self, sql: str) -> None:
        await self.cell.family.run(self.session, sql)

    async def insert(self, v: int) -> None:
        await self.run(f"INSERT INTO held VALUES ({v})")

    async def count(self) -> int:
        return int(await self.cell.family.value(self.session, "SELECT count(*) FROM held"))

    async def commit(self) -> None:
        await self.cell.family.commit(self.session)

    async def rollback(self) -> None:
        await self.cell.family.rollback(self.session)

    async def violate(self) -> None:
        """From here on COMMIT is bound to fail, and nothing before it."""
        for statement in self.cell.engine.violation():
            await self.run(statement)


class Cell:
    """One family of databases on one engine, through one driver."""

    def __init__(self, family: Any, engine: Any, driver: str) -> None:
        self.family = family
        self.engine = engine
        self.driver = driver
        self.made: list[Any] = []

    @property
    def blocking(self) -> bool:
        return bool(self.family.blocking)

    def database(self, **settings: Any) -> Any:
        database = self.family.database(self.engine, self.driver, None, **{"commit_mode": "autocommit", **settings})
        self.made.append(database)
        return database

    def app(self, database: Any, handlers: dict[str, Handler], **settings: Any) -> Starlette:
        """An app with these endpoints; each answers with the status that its handler returns, or 200."""

        def endpoint(handler: Handler) -> Any:
            async def awaiting(request: Request) -> PlainTextResponse:
                status = await handler(Use(self, transept.get_session(request, database.key), request))
                return PlainTextResponse(status_code=status or 200)

            def blocking(request: Request) -> PlainTextResponse:
                return run_now(awaiting(request))

            return blocking if self.blocking else awaiting

        routes = [Route(f"/{name}", endpoint(handler), methods=["POST"]) for name, handler in handlers.items()]
        app = Starlette(routes=routes, **settings)
        transept = Transept(database, app)
        return app

    def post(self, app: Starlette, *names: str) -> list[int]:
        """The answers to these requests, one after the other, each on an event loop of its own."""
        client = TestClient(app, raise_server_exceptions=False)
        return [client.post(f"/{name}").status_code for name in names]

    async def stop(self) -> None:
        for database in self.made:
            await database.stop()


def cells(*, engine: str | None = None, family: type[Any] | None = None) -> list[str]:
    """The names of the cells of this engine, or family; for `pytest.mark.parametrize`."""
    return [
        name
        for name, (one, server, _) in CELLS.items()
        if (engine is None or server in (engine, "memory" if engine == "sqlite" else engine))
        and (family is None or one is family)
    ]


@pytest.fixture(scope="session")
def engines(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = ENGINES[name](request.config)
        return made[name]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(params=list(CELLS))
def cell(request: pytest.FixtureRequest, engines: Callable[[str], Any]) -> Iterator[Cell]:
    family, engine, driver = CELLS[request.param]
    world = Cell(family(), engines(engine), driver)
    world.engine.reset()
    yield world
    world.engine.reset()
    asyncio.run(world.stop())


@pytest.fixture
def postgres_cell(engines: Callable[[str], Any]) -> Iterator[Cell]:
    """`AsyncSession` over asyncpg."""
    engine = engines("postgres")
    engine.reset()
    yield Cell(AlchemyAsync(), engine, "asyncpg")
    engine.reset()
