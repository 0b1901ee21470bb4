"""Databases are started once and stopped once, however many apps and lifespans ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from transept.database import Database
from transept.unit import Host

__all__ = ["running", "stop_all"]

_users: WeakKeyDictionary[Database, int] = WeakKeyDictionary()


@asynccontextmanager
async def running(databases: Sequence[Database], host: Host) -> AsyncIterator[None]:
    """Start these databases, and stop them at the end of the block, the last one first.

    If one fails to start, those already started are stopped. Those that another such block holds are left running.
    """
    claimed: list[Database] = []
    try:
        for database in databases:
            claimed.append(database)
            _users[database] = _users.get(database, 0) + 1
            if _users[database] == 1:
                await host.leaf(database.blocking, database.start())
        yield
    except BaseException as error:
        await host.shielded(_let_go(claimed, host, error))
        raise
    await host.shielded(_let_go(claimed, host))


async def stop_all(databases: Sequence[Database], host: Host, error: BaseException | None = None) -> None:
    """Stop all of them, also when one fails.

    Raises:
        Exception: the first failure, with the others as notes; none if `error` is given, which then gets the notes.
    """
    first = error
    for database in databases:
        try:
            await host.leaf(database.blocking, database.stop())
        except Exception as failure:
            if first is None:
                first = failure
            else:
                first.add_note(f"transept: database {database.key!r} could not be closed, either: {failure!r}")
    if first is not None and error is None:
        raise first


async def _let_go(claimed: list[Database], host: Host, error: BaseException | None = None) -> None:
    unused = []
    for database in reversed(claimed):
        _users[database] -= 1
        if not _users[database]:
            unused.append(database)
    await stop_all(unused, host, error)
