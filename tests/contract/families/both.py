"""An async database in an app whose code is plain, or is so in some places: its sessions are of either colour."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from contract.families.alchemy_async import AlchemyAsync
from contract.families.alchemy_sync import AlchemySync
from contract.families.raw import BlockingSQL
from transept._portal import PORTAL
from transept.sql.session import SQLSession

OPERATIONS = ("run", "value", "commit", "rollback", "close", "failing_in_savepoint", "cursor")
SECONDS = 20.0


class _InPlainCode:
    """Whether the code that asks is plain. Of the class itself: no, the database is async."""

    def __get__(self, family: Any, owner: Any) -> bool:
        return family is not None and not PORTAL.is_here()


def plain(family: Any) -> Any:
    """This family as plain code sees it."""
    return family if family.blocking else _of(family, True, "Plain")


def both(family: Any) -> Any:
    """This family as code of both colours sees it: an `async def` view, and what plain code does with its response."""
    return _of(family, _InPlainCode(), "Both")


def _of(family: Any, blocking: Any, prefix: str) -> Any:
    here = AlchemySync if issubclass(family, AlchemyAsync) else BlockingSQL
    operations = {name: _by_session(getattr(family, name), getattr(here, name)) for name in OPERATIONS}

    async def stop(self: Any, database: Any) -> None:
        PORTAL.run(family.stop(self, database), SECONDS)

    return type(f"{prefix}{family.__name__}", (family,), {**operations, "blocking": blocking, "stop": stop})


def _by_session(there: Any, here: Any) -> Any:
    """The operation of the session's colour; plain code that still has an async session lets the loop do it."""

    async def operation(self: Any, session: Any, *arguments: Any) -> Any:
        if not isinstance(session, (AsyncSession, SQLSession)):
            return await here(self, session, *arguments)
        if PORTAL.is_here():
            return await there(self, session, *arguments)
        return PORTAL.run(there(self, session, *arguments), SECONDS)

    return operation
