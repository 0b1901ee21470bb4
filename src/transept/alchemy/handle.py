"""How a unit of work settles a SQLAlchemy session: plain blocking code, with one greenlet hop a call if it is async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import greenlet_spawn

from transept._portal import Bridge
from transept.alchemy.plain import for_plain_code
from transept.alchemy.session import Seat, guard, is_clean, unguard
from transept.alchemy.truth import in_doubt
from transept.errors import CommitInDoubt, PartlyCommitted, UsageError

__all__ = ["AsyncHandle", "BlockingHandle"]

T = TypeVar("T")


class AlchemyHandle:
    """A `Session` in a unit of work, given out as it is or inside an `AsyncSession`."""

    def __init__(self, session: Session, seat: Seat) -> None:
        self._session = session
        self._seat = seat
        self.when_over: Callable[[], None] | None = None
        guard(session, seat)

    def in_transaction(self) -> bool:
        return self._session.in_transaction()

    def reading(self) -> bool:
        return bool(self._seat.cursors)

    def wrote(self) -> bool:
        session = self._session
        return self._seat.wrote or bool(session.new or session.dirty or session.deleted)

    def app_ended(self) -> bool | None:
        return self._seat.app_ended

    def hold_now(self) -> bool:
        return self._seat.turn.hold_now()

    async def hold(self) -> None:
        await self._seat.turn.hold()

    def release(self) -> None:
        self._seat.turn.release()

    async def check(self) -> None:
        """Nothing is done where there is nothing to flush, to close, or to ask the server."""
        if not (is_clean(self._session) and self._seat.sure()):
            await self._run(self._check)

    async def commit(self) -> None:
        try:
            await self._run(self._commit)
        except BaseException as error:
            if any(in_doubt(connection) for connection in self._seat.connections):
                raise CommitInDoubt(self._seat.key) from error
            self._raise_if_partly(error)
            raise

    async def rollback(self) -> None:
        await self._run(self._rollback)
        self._seat.app_ended = None

    async def invalidate(self) -> None:
        await self._run(self._session.invalidate)

    async def savepoint(self) -> SessionTransaction:
        made = await self._run(self._session.begin_nested)
        self._seat.savepoints.add(made)
        return made

    async def rollback_to(self, savepoint: SessionTransaction) -> None:
        await self._run(savepoint.rollback)

    async def release_savepoint(self, savepoint: SessionTransaction) -> None:
        await self._run(lambda: self._release(savepoint))

    def end(self, owner: str) -> None:
        self._seat.turn.ended = owner

    def forget(self) -> None:
        session = self._session
        if len(session.identity_map) or not is_clean(session):
            session.expunge_all()
        if self._seat.turn.ended is not None and self.when_over is not None:
            when_over, self.when_over = self.when_over, None
            when_over()

    async def _run(self, work: Callable[[], T]) -> T:
        turn = self._seat.turn
        if not turn.settling:
            return await self._hop(work)
        turn.adopt()
        try:
            return await self._hop(work)
        finally:
            turn.park()

    def _hop(self, work: Callable[[], T]) -> Awaitable[T]:
        return _done(work)

    def _commit(self) -> None:
        """Objects keep what they have read: a body that streams them, a hook or a background task may still need it."""
        session = self._session
        expires, session.expire_on_commit = session.expire_on_commit, False
        plain: Any = getattr(session, "transept_plain", Session)  # the turn is held, and no block is open
        try:
            plain.commit(session)
        finally:
            session.expire_on_commit = expires

    def _raise_if_partly(self, error: BaseException) -> None:
        """A session over several engines (`binds`) commits one after the other."""
        committed: list[str] = []
        failed: list[str] = []
        others: list[str] = []
        for connection in self._seat.connections:
            transaction = connection.get_transaction()
            ended = committed if transaction is None else others if transaction.is_active else failed
            ended.append(f"{self._seat.key} at {connection.engine.url.render_as_string()}")
        if committed and failed:
            raise PartlyCommitted(committed, failed[0], others) from error

    def _rollback(self) -> None:
        self._seat.close_cursors()
        self._seat.savepoints.clear()
        transactions = [connection.get_transaction() for connection in self._seat.connections]
        if None not in transactions:
            self._session.rollback()
            return
        # Some have committed, which `Session.rollback()` would warn of.
        for transaction in transactions:
            if transaction is not None:
                transaction.rollback()
        self._session.reset()
        self._seat.wrote = False

    def _release(self, savepoint: SessionTransaction) -> None:
        """A savepoint whose RELEASE has failed could not be rolled back to any more."""
        self._session.flush()
        self._seat.check_transactions()
        savepoint.commit()

    def _check(self) -> None:
        self._seat.close_cursors()
        self._session.flush()
        self._seat.check()


class BlockingHandle(AlchemyHandle):
    """A `Session` in a unit of work."""

    def __init__(self, session: Session, seat: Seat) -> None:
        if not isinstance(session, Session):
            raise _other_kind(seat, "sync sessions (SQLAlchemy's Session)", session)
        super().__init__(session, seat)

    @property
    def session(self) -> Session:
        return self._session

    def give_up(self) -> Session:
        """The session as it was before; the handle is of no use any more."""
        unguard(self._session)
        return self._session


class AsyncHandle(AlchemyHandle):
    """An `AsyncSession` in a unit of work: the same code over the `Session` inside it."""

    def __init__(self, session: AsyncSession, seat: Seat) -> None:
        if not isinstance(session, AsyncSession):
            raise _other_kind(seat, "async sessions (SQLAlchemy's AsyncSession)", session)
        super().__init__(session.sync_session, seat)
        self._async_session = session

    @property
    def session(self) -> AsyncSession:
        return self._async_session

    def for_plain_code(self, bridge: Bridge) -> PlainHandle:
        """The session inside, made one that plain code can use; all else of it is the same."""
        for_plain_code(self._session, self._seat, bridge)
        return PlainHandle(self._session)

    def give_up(self) -> AsyncSession:
        """The session as it was before; the handle is of no use any more."""
        unguard(self._session)
        return self._async_session

    def _hop(self, work: Callable[[], T]) -> Awaitable[T]:
        return greenlet_spawn(work)


class PlainHandle(NamedTuple):
    """What plain code gets of an async handle."""

    session: Session


def _other_kind(seat: Seat, expected: str, given: object) -> UsageError:
    return UsageError(f"database {seat.key!r} has {expected}, and this is none: {given!r}.")


async def _done(work: Callable[[], T]) -> T:
    return work()
