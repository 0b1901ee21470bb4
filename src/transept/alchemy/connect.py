"""A SQLAlchemy database whose engine the app makes, for a host that may change while the app runs."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import finalize

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from transept._loops import PerLoop, started
from transept.alchemy.handle import AsyncHandle
from transept.alchemy.session import Seat
from transept.config import DatabaseSettings, strict
from transept.errors import ImproperConfigurationError
from transept.policy import CommitMode
from transept.turn import TaskTurn
from transept.unit import Hooks

__all__ = ["DBConnect"]

EngineCreator = Callable[[str], AsyncEngine]
SessionMaker = async_sessionmaker[AsyncSession]
SessionMakerCreator = Callable[[AsyncEngine], SessionMaker]


class DBConnect(DatabaseSettings):
    """A database reached through an `AsyncSession`, with an engine and a session maker of your own making.

    Args:
        engine_creator: called with the host, returns a new engine. Called once for each event loop.
        session_maker_creator: called with the engine, returns an `async_sessionmaker`.
        host: where to connect; or leave it out, and call `connect` or `change_host` later.
        before_create_session_handler: awaited with this object before each new session, for instance to find out who
            the master is, and to call `change_host`.
        commit_mode: which responses commit; ``"autocommit_include_redirect"`` (2xx and 3xx) if not given.
        bind_key, session_key, extra_commit_statuses, extra_rollback_statuses, keep_transaction_for_body: as on every
            database.

    Engines are made at first use, and disposed by `close`, by a change of host, or with their event loop.

    Raises:
        ImproperConfigurationError: something that must be callable is not, or a setting is wrong.
    """

    blocking: ClassVar[bool] = False

    @strict
    def __init__(  # noqa: PLR0913 - the settings of a database
        self,
        engine_creator: EngineCreator,
        session_maker_creator: SessionMakerCreator,
        host: str | None = None,
        before_create_session_handler: Callable[[DBConnect], Awaitable[Any]] | None = None,
        commit_mode: CommitMode | None = None,
        *,
        bind_key: str = "default",
        session_key: str = "",
        extra_commit_statuses: Collection[int] | None = None,
        extra_rollback_statuses: Collection[int] | None = None,
        keep_transaction_for_body: bool = False,
    ) -> None:
        super().__init__(
            bind_key=bind_key,
            session_key=session_key,
            commit_mode="autocommit_include_redirect" if commit_mode is None else commit_mode,
            extra_commit_statuses=extra_commit_statuses,
            extra_rollback_statuses=extra_rollback_statuses,
            keep_transaction_for_body=keep_transaction_for_body,
        )
        _callable("engine_creator", engine_creator)
        _callable("session_maker_creator", session_maker_creator)
        if before_create_session_handler is not None:
            _callable("before_create_session_handler", before_create_session_handler)
        self._engine_creator = engine_creator
        self._session_maker_creator = session_maker_creator
        self._handler = before_create_session_handler
        self._lock = threading.Lock()
        self._disposing: set[asyncio.Future[None]] = set()
        self._at: Host | None = None
        if host is not None:
            self._at = self._host(host)

    @property
    def host(self) -> str | None:
        """Where new sessions connect to; None before the first `connect`."""
        return None if self._at is None else self._at.name

    async def connect(self, host: str) -> None:
        """Use this host from now on, with a new engine. Sessions in use finish on the old engine, which is disposed
        when the last of them is done. That holds for each event loop, on which its own engine is disposed."""
        new = self._host(host)
        new.made.get()
        with self._lock:
            old, self._at = self._at, new
        if old is not None:
            await old.retire()

    async def change_host(self, host: str) -> None:
        """`connect`, unless this is the host already."""
        if host != self.host:
            await self.connect(host)

    async def session_maker(self) -> SessionMaker:
        """The session maker of the present host. What it makes is your own: nothing commits or closes it for you."""
        await self.prepare()
        return self._present().made.get().maker

    async def create_session(self) -> AsyncSession:
        """A new session of your own: nothing commits or closes it for you. Its engine lives as long as it does."""
        await self.prepare()
        at = self._present()
        made = at.made.get()
        session = made.maker()
        _when_collected(session, at.entered(made))
        return session

    def get_engine(self) -> AsyncEngine:
        """The running event loop's engine of the present host."""
        return self._present().made.get().engine

    async def close(self) -> None:
        """Dispose the engine, and wait for those left behind by a change of host. What comes later gets a new one.

        An engine with sessions in use is disposed when the last of them is done, and that of another event loop by
        that loop, as soon as it can: `close` does not wait for these.
        """
        with self._lock:
            old = self._at
            if old is not None:
                self._at = self._host(old.name)
        if old is not None:
            await old.retire()
        here = asyncio.get_running_loop()
        while disposing := [one for one in tuple(self._disposing) if one.get_loop() is here]:
            await asyncio.gather(*map(asyncio.shield, disposing))

    # A database like every other.

    @property
    def prepares(self) -> bool:
        return self._handler is not None

    async def prepare(self) -> None:
        if self._handler is not None:
            await self._handler(self)

    def open(self, hooks: Hooks, reads_only: bool) -> AsyncHandle:
        at = self._present()
        made = at.made.get()
        handle = self._handle(made.maker(), hooks, reads_only)
        handle.when_over = at.entered(made)
        return handle

    def adopt(self, session: AsyncSession, hooks: Hooks, reads_only: bool) -> AsyncHandle:
        return self._handle(session, hooks, reads_only)

    def give_up(self, handle: AsyncHandle) -> AsyncSession:
        leave, handle.when_over = handle.when_over, None
        session = handle.give_up()
        if leave is not None:
            _when_collected(session, leave)
        return session

    async def start(self) -> None:
        """Engines are made at first use, so an app starts while its database is down."""

    async def stop(self) -> None:
        await self.close()

    def _handle(self, session: AsyncSession, hooks: Hooks, reads_only: bool) -> AsyncHandle:
        seat = Seat(self.key, TaskTurn(), hooks, route=self._route(hooks))
        return AsyncHandle(session, seat)

    def _host(self, name: str) -> Host:
        if not isinstance(name, str) or not name:
            raise ImproperConfigurationError(f"DBConnect: host={name!r}: the name or address of a server is needed.")
        return Host(name, self._make, self._disposing)

    def _make(self, host: str) -> Made:
        engine = self._engine_creator(host)
        if not isinstance(engine, AsyncEngine):
            raise _not_made("engine_creator", engine, "an AsyncEngine is needed (create_async_engine)")
        maker = self._session_maker_creator(engine)
        if not callable(maker):
            raise _not_made("session_maker_creator", maker, "an async_sessionmaker is needed")
        return Made(engine, maker)

    def _present(self) -> Host:
        if self._at is None:
            raise ImproperConfigurationError(
                f"DBConnect (database {self.key!r}) has no host: pass host=..., or await connect(host) at start-up, or "
                "in before_create_session_handler."
            )
        return self._at


@dataclass(eq=False)
class Made:
    """An engine for one event loop, and how many sessions use it."""

    engine: AsyncEngine
    maker: SessionMaker
    users: int = 0

    def in_use(self) -> bool:
        return self.users > 0

    async def dispose(self) -> None:
        await self.engine.dispose()


class Host:
    """The engines for one host, one for each event loop. Their users are counted on their own loop only."""

    def __init__(self, name: str, make: Callable[[str], Made], disposing: set[asyncio.Future[None]]) -> None:
        self.name = name
        self.made = PerLoop(lambda: make(name), Made.dispose)
        self._retired = False
        self._disposing = disposing

    def entered(self, made: Made) -> Callable[[], None]:
        """A session begins to use it; what is to be called, on the same loop, when it is done."""
        made.users += 1

        def leave() -> None:
            made.users -= 1
            if self._retired and not made.users:
                self._dispose_soon()

        return leave

    async def retire(self) -> None:
        """Nothing new will use it: each loop disposes its own, now, or when the last user has left."""
        self._retired = True
        here = asyncio.get_running_loop()
        for loop in self.made.loops():
            if loop is not here:
                _on_loop(loop, self._dispose_soon)
        await self._dispose()

    async def _dispose(self) -> None:
        await self.made.close(unless=Made.in_use)

    def _dispose_soon(self) -> None:
        closing = started(self._dispose())
        self._disposing.add(closing)
        closing.add_done_callback(self._disposing.discard)


def _when_collected(session: AsyncSession, leave: Callable[[], None]) -> None:
    """A session of the app's own uses its engine as long as it lives. It may be collected in any thread."""
    finalize(session, _on_loop, asyncio.get_running_loop(), leave)


def _on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed, and so is its engine
        loop.call_soon_threadsafe(function)


def _not_made(setting: str, result: object, needed: str) -> ImproperConfigurationError:
    if inspect.iscoroutine(result):
        result.close()
        needed += ", not a coroutine"
    return ImproperConfigurationError(f"DBConnect: {setting} returned {result!r}: {needed}.")


def _callable(setting: str, value: object) -> None:
    if not callable(value):
        raise ImproperConfigurationError(f"DBConnect: {setting}={value!r}: a function is needed.")
