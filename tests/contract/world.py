"""A cell of the matrix: one framework, one family of databases, one engine and driver; and what a case does in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

from servers.proxy import FaultProxy

from contract.frameworks import Answer, Told

Handler = Callable[["Context"], Awaitable[Answer]]


class Control:
    """What the client does besides asking."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.sent = False
        self.gone: Any = None
        self.task: Any = None
        self.leaves_after: int | None = None


class World:
    """Made for one case. `settings` are those of the databases that the case does not configure itself."""

    def __init__(self, framework: Any, family: Any, engine: Any, driver: str) -> None:
        self.framework = framework
        self.family = family
        if family.name in getattr(framework, "configs", {}):
            family.config = framework.configs[family.name]
        self.engine = engine
        self.driver = driver
        self.mode = "autocommit"
        self.port: int | None = None
        self.databases: list[Any] = []

    @property
    def can(self) -> frozenset[str]:
        colour = frozenset({"blocking"} if self.family.blocking else {"awaiting"})
        return frozenset(self.framework.can | self.family.can | self.engine.can | colour)

    def database(self, **settings: Any) -> Any:
        """Configure a database for this case; the first is the default."""
        settings = {"commit_mode": self.mode, **settings}
        database = self.family.database(self.engine, self.driver, self.port, **settings)
        self.databases.append(database)
        return database

    def through(self, proxy: FaultProxy) -> None:
        """The databases made from now on are reached through this proxy."""
        self.port = proxy.port

    def proxy(self) -> FaultProxy:
        return FaultProxy(self.engine.server.host, self.engine.server.port)

    async def request(
        self,
        handler: Handler,
        *,
        method: str = "POST",
        handlers: dict[type[Exception], int] | None = None,
        leaves_after: int | None = None,
        on_the_loop: bool = False,
    ) -> Told:
        """Send one request to an app with this one endpoint.

        `leaves_after`: the client goes when it has that many bytes. `on_the_loop`: the endpoint is a coroutine, also
        where the database is a blocking one.
        """
        if not self.databases:
            self.database()
        control = Control(method)
        control.leaves_after = leaves_after
        if "async" in self.framework.can:
            control.gone = asyncio.Event()

        async def work(connection: Any) -> Answer:
            return await handler(Context(self, connection, control))

        app = self.framework.app(self.databases, work, self.family.blocking and not on_the_loop, handlers or {})
        told: Told = await self.framework.call(app, self.engine.held, control)
        return told

    def held(self) -> list[int]:
        return list(self.engine.held())

    def outside(self) -> AbstractContextManager[Any]:
        """Where code runs that no request has."""
        outside: Any = getattr(self.framework, "outside", None)
        return nullcontext() if outside is None else outside(self.databases)

    async def pause(self, seconds: float) -> None:
        """Let time pass for others."""
        if self.family.blocking:
            time.sleep(seconds)  # noqa: ASYNC251 - in a thread, or where there is nobody else
        else:
            await asyncio.sleep(seconds)

    async def stop(self) -> None:
        """The books balance: no transaction is open, and no connection is out of a pool."""
        try:
            for database in self.databases:
                assert self.family.checked_out(database) == 0, "a connection is out of the pool"
            assert self.engine.open_transactions() == 0, "a transaction is open"
        finally:
            for database in self.databases:
                await self.family.stop(database)


class Context:
    """What a handler of a case has."""

    def __init__(self, world: World, connection: Any, control: Control) -> None:
        self.world = world
        self.connection = connection
        self.control = control

    def session(self, key: str | None = None) -> Any:
        return self.world.framework.session(self.connection, key)

    async def run(self, sql: str, key: str | None = None) -> None:
        await self.world.family.run(await self.world.framework.find(self.connection, key), sql)

    async def value(self, sql: str, key: str | None = None) -> Any:
        return await self.world.family.value(await self.world.framework.find(self.connection, key), sql)

    async def insert(self, v: int, key: str | None = None) -> None:
        await self.run(f"INSERT INTO held VALUES ({v})", key)

    async def violate(self, key: str | None = None) -> None:
        """From here on the transaction is bound to fail, at COMMIT and not before."""
        for statement in self.world.engine.violation():
            await self.run(statement, key)

    async def end_transaction(self) -> None:
        """A failing statement that ends its transaction, so that the next one begins another."""
        with closing(self.world.engine.ending()) as statements:
            for statement in statements:
                await self.run(statement)

    async def swallow(self) -> None:
        """A failing statement whose error nobody hears of."""
        try:
            await self.run("SELECT nonsense")
        except self.world.family.statement_error:
            return
        raise AssertionError("the statement did not fail")

    async def kill(self) -> None:
        """Somebody ends the database's session."""
        self.world.engine.kill(await self.value(self.world.engine.own_session()))
        await self.world.pause(0.1)
