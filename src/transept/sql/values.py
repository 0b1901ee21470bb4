"""What a Python value becomes for a driver that has no such type.

Rule 1: A table says which types change; everything else is left to the driver, or refused, if the table says which
    types the driver takes.
Rule 2: A subclass is treated as the nearest of its bases that the table has; an enum as its value.
Rule 3: If nothing changes, the same sequence comes back.
Rule 4: What is made of a value, `rows.maker` makes back where it finds the value's type in an annotation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from time import struct_time
from typing import Any
from uuid import UUID

import msgspec

from transept.errors import UsageError

__all__ = ["ASYNCPG_TYPES", "MYSQL_TYPES", "TEXT_TYPES", "Json", "Table", "adapt"]

Change = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Json:
    """This value is a JSON document, also where a list would be an array."""

    value: Any


class Table(dict[type, Change]):
    """The types that a driver does not have, and what becomes of their values.

    Made of such a mapping; remembers for every class it meets which entry is its own. Dataclasses and attrs classes go
    by the entry of ``msgspec.Struct``, enums always become their value, treated by this table in turn. With `takes`, a
    value that is neither of these types nor of one that changes is a `UsageError`.
    """

    __slots__ = ("_changes", "_takes", "plain")

    def __init__(self, changes: Mapping[type, Change], takes: Collection[type] | None = None) -> None:
        super().__init__(changes)
        self._changes = dict(changes)
        self._takes = None if takes is None else tuple(takes)
        self.plain: set[type] = set()
        for plain in (int, str, float, bytes, bool, type(None)):
            self[plain]

    def but(self, changes: Mapping[type, Change]) -> Table:
        """Such a table in which these types become something else."""
        return Table({**self._changes, **changes}, self._takes)

    def also(self, takes: Collection[type]) -> Table:
        """Such a table for a driver that takes these types as well."""
        more = [one for one in takes if one not in self._changes]
        return Table(self._changes, None if self._takes is None else (*self._takes, *more))

    def __missing__(self, cls: type) -> Change:
        change = self._change(cls)
        if change is None and self._takes is not None and not issubclass(cls, self._takes):
            change = self._refuse
        elif change is None:
            change = _unchanged
            self.plain.add(cls)
        self[cls] = change
        return change

    def _change(self, cls: type) -> Change | None:
        if issubclass(cls, Enum):
            return self._change_enum
        for base in cls.__mro__:
            if base in self._changes:
                return self._changes[base]
        if dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__"):
            return self._changes.get(msgspec.Struct)
        return None

    def _change_enum(self, member: Enum) -> Any:
        return self[type(member.value)](member.value)

    def _refuse(self, value: Any) -> Any:
        known = {*self._changes, *(self._takes or ())} - {type(None), msgspec.Struct, Json}
        cls = type(value)
        raise UsageError(
            f"a value of type {cls.__module__}.{cls.__qualname__} cannot be a parameter here: the driver would store "
            f"its repr(), or fail. Give {', '.join(sorted(one.__name__ for one in known))}, None, an enum, a "
            "dataclass, a Struct or Json(...)."
        )


def adapt(values: Sequence[Any], table: Table) -> Sequence[Any]:
    """The values as the driver takes them: the same sequence if nothing has to change, else a tuple.

    `UsageError` for a value that is to become JSON and cannot.
    """
    plain = table.plain
    for value in values:  # for the few that a statement has, faster than any operation on sets
        if type(value) not in plain:
            return tuple([table[type(value)](value) for value in values])
    return values


def _unchanged(value: Any) -> Any:
    return value


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"a value of type {type(value).__name__} cannot be written as JSON: {error}") from error


def _json_of_marked(marked: Json) -> str:
    return _json(marked.value)


def _bare(marked: Json) -> Any:
    return marked.value


def _iso(value: date | time) -> str:
    return value.isoformat()


def _iso_datetime(value: datetime) -> str:
    offset = value.utcoffset()
    # Offsets with seconds (local times of old) have no place in RFC 3339.
    return (value.astimezone(UTC) if offset and offset.total_seconds() % 60 else value).isoformat()


def _naive_utc(value: datetime) -> datetime:
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _finite(value: float | Decimal) -> Any:
    if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
        raise UsageError(
            f"{value!r} cannot be a parameter here: the database has no such number. Give None, or a text."
        )
    return value


def _exact_timedelta(value: timedelta) -> timedelta:
    # The drivers write one of a subclass as its str().
    return timedelta(value.days, value.seconds, value.microseconds)


TEXT_TYPES = Table(
    {
        UUID: str,
        Decimal: str,
        datetime: _iso_datetime,
        date: _iso,
        time: _iso,
        timedelta: msgspec.to_builtins,
        dict: _json,
        list: _json,
        tuple: _json,
        msgspec.Struct: _json,
        Json: _json_of_marked,
    }
)
"""For SQLite: what is no number, text or bytes becomes text. A Decimal keeps its digits in a TEXT column only."""

MYSQL_TYPES = Table(
    {
        UUID: str,
        bytearray: bytes,
        memoryview: bytes,
        float: _finite,
        Decimal: _finite,
        datetime: _naive_utc,
        timedelta: _exact_timedelta,
        struct_time: _unchanged,
        dict: _json,
        list: _json,
        tuple: _json,
        msgspec.Struct: _json,
        Json: _json_of_marked,
    },
    takes=(str, bytes, bool, int, type(None), date, time),
)
"""For MySQL and MariaDB, which keep no time zone: an aware datetime becomes a naive one in UTC. Their drivers would
store the repr() of what they do not know."""

ASYNCPG_TYPES = Table({Json: _bare})
"""For asyncpg, whose codecs do the rest."""
