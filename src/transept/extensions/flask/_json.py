"""JSON of what apps return: models, structs and other records, beside what Flask knows."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from flask.json.provider import DefaultJSONProvider

from transept.errors import UsageError

__all__ = ["TranseptJSONProvider", "also_records"]

Default = Callable[[Any], Any]
UNKNOWN: Any = object()


def also_records(default: Default) -> Default:
    """As this function for values that JSON does not have, and for records: SQLAlchemy models, msgspec and pydantic."""
    first = _as_flask if default is DefaultJSONProvider.default else default

    def with_records(value: Any) -> Any:
        try:
            return first(value)
        except TypeError:
            found = UNKNOWN if isinstance(value, type) else record(value, with_records)
            if found is UNKNOWN:
                raise
            return found

    return with_records


def record(value: Any, default: Default) -> Any:
    """This record, whose own values may be records for `default`; `UNKNOWN` if it is none that is known here."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value, enc_hook=default)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.time, datetime.timedelta)):
        return msgspec.to_builtins(value)
    if callable(to_json := getattr(value, "model_dump", None)):  # pydantic
        return to_json(mode="json")
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_dict()
    if "sqlalchemy" in sys.modules and (found := _of_sqlalchemy(value)) is not UNKNOWN:
        return found
    if dataclasses.is_dataclass(value):  # one level at a time, since what is in it may be a record of another kind
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    attrs = getattr(type(value), "__attrs_attrs__", None)
    return UNKNOWN if attrs is None else {field.name: getattr(value, field.name) for field in attrs}


def _of_sqlalchemy(value: Any) -> Any:
    from sqlalchemy.engine import Row, RowMapping

    if isinstance(value, Row):
        return value._asdict()
    if isinstance(value, RowMapping):
        return dict(value)
    return columns_of(value) if hasattr(type(value), "__mapper__") else UNKNOWN


def columns_of(model: Any) -> dict[str, Any]:
    """The columns of a model that are loaded, by attribute name; None for those of a stored one that were never set.

    Nothing is read from the database, unless the app's own commit has expired what was loaded.

    Raises:
        UsageError: it has, and what it takes to read it again would have to be awaited here.
    """
    from sqlalchemy import inspect

    state = inspect(model)
    columns = state.mapper.column_attrs
    expired = [name for name in columns.keys() if name in state.expired_attributes and not columns[name].deferred]  # noqa: SIM118
    if expired:
        _refuse_where_it_must_be_awaited(state)
        getattr(model, expired[0])  # reads all of them
    loaded = {name: state.dict[name] for name in columns.keys() if name in state.dict}  # noqa: SIM118
    if not state.has_identity:
        return loaded
    left_out = {*state.callables, *(column.key for column in columns if column.deferred)}
    return {name: loaded.get(name) for name in columns.keys() if name in loaded or name not in left_out}  # noqa: SIM118


def _refuse_where_it_must_be_awaited(state: Any) -> None:
    """Raises UsageError: the model is of an `AsyncSession`, and this is async code."""
    from sqlalchemy.util.concurrency import in_greenlet

    if state.async_session is not None and asyncio._get_running_loop() is not None and not in_greenlet():
        raise UsageError(
            f"the commit has expired this {state.class_.__name__}, and to read it again has to be awaited: return it "
            "from the view, and it is read there; or `await session.refresh(...)` it, or configure the session with "
            "expire_on_commit=False."
        )


def _as_flask(value: Any) -> Any:
    """As Flask, which takes dataclasses apart as a whole: models among them would read all that they refer to."""
    if dataclasses.is_dataclass(value):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return DefaultJSONProvider.default(value)


def _iso(value: Any) -> Any:
    """Dates as ISO 8601; the rest as Flask has it."""
    return value.isoformat() if isinstance(value, datetime.date) else _as_flask(value)


class TranseptJSONProvider(DefaultJSONProvider):
    """Flask's JSON with dates and datetimes as ISO 8601: ``app.json = TranseptJSONProvider(app)``.

    An app with a `Transept` can return SQLAlchemy models and rows, msgspec structs, pydantic models, attrs classes,
    enums, times and timedeltas without it. Flask itself writes dates as in HTTP headers.
    """

    default: Default = staticmethod(also_records(_iso))
