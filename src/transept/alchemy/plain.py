"""A plain `Session` over an async database: each of its calls runs on the background loop, and the thread waits.

The session is the one inside the `AsyncSession` of the unit of work, so both colours see the same transaction and the
same objects. What runs there as a whole, and not await by await, needs one hop a call, and lazy loads, queries and
nested transactions need nothing of their own: they end in these methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Connection, RootTransaction
from sqlalchemy.orm import Session

from transept._portal import Bridge
from transept.alchemy.across import across
from transept.alchemy.session import GUARDED, HARMLESS_AFTER_THE_END, Seat, note_live, seat_of

__all__ = ["for_plain_code"]

OF_SESSIONS = frozenset({*GUARDED, *HARMLESS_AFTER_THE_END, "begin"})
OF_CONNECTIONS = (
    "begin",
    "begin_nested",
    "close",
    "commit",
    "exec_driver_sql",
    "execute",
    "get_isolation_level",
    "invalidate",
    "rollback",
    "scalar",
    "scalars",
)
OF_TRANSACTIONS = ("close", "commit", "rollback")


def for_plain_code(session: Session, seat: Seat, bridge: Bridge) -> None:
    """Make this session of an async database one that plain code can use, too."""
    if seat.bridge is None:
        seat.bridge = bridge
        made_as: Any = type(session)
        session.__class__ = _session_class(made_as)


@functools.cache
def _session_class(guarded: Any) -> Any:
    methods = {name: across(getattr(guarded, name)) for name in OF_SESSIONS}
    methods["connection"] = _giving_connection(methods["connection"])
    return type(guarded.__name__, (guarded,), {**methods, "__module__": guarded.__module__})


def _giving_connection(method: Callable[..., Any]) -> Callable[..., Any]:
    """The session's connection, whose own methods are run on the loop, too."""

    @functools.wraps(method)
    def connection(self: Any, *arguments: Any, **keywords: Any) -> Any:
        given: Any = method(self, *arguments, **keywords)
        if type(given) is Connection:
            setattr(given, "transept_seat", seat_of(self))  # noqa: B010 - it becomes a PlainConnection
            given.__class__ = PlainConnection
        return given

    return connection


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    """What it gives may still be read from the server, which has to happen on the loop."""

    @functools.wraps(method)
    def noting(self: Any, *arguments: Any, **keywords: Any) -> Any:
        result = method(self, *arguments, **keywords)
        note_live(result, self.transept_seat)
        return result

    return noting


def _get_transaction(connection: Connection) -> Any:
    """The transaction of the connection; those of its savepoints end by `execute`."""
    given: Any = Connection.get_transaction(connection)
    if type(given) is RootTransaction:
        given.__class__ = PlainTransaction
    return given


PLAIN_METHODS: dict[str, Any] = {name: getattr(Connection, name) for name in OF_CONNECTIONS}
for _name in ("exec_driver_sql", "execute", "scalars"):
    PLAIN_METHODS[_name] = _noting(PLAIN_METHODS[_name])
PlainConnection: Any = type(
    "Connection",
    (Connection,),
    {
        **{name: across(method) for name, method in PLAIN_METHODS.items()},
        "get_transaction": functools.wraps(Connection.get_transaction)(_get_transaction),
        "__module__": Connection.__module__,
    },
)
PlainTransaction: Any = type(
    "RootTransaction",
    (RootTransaction,),
    {
        **{name: across(getattr(RootTransaction, name)) for name in OF_TRANSACTIONS},
        "transept_seat": property(lambda transaction: transaction.connection.transept_seat),
        "__module__": RootTransaction.__module__,
        "__slots__": (),
    },
)
