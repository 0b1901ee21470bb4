"""JSON of what apps return: models, structs and other records, beside what Flask knows."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from flask.json.provider import DefaultJSONProvider

__all__ = ["TranseptJSONProvider", "also_records"]

Default = Callable[[Any], Any]


def also_records(default: Default) -> Default:
    """As this function for values that JSON does not have, and for records: SQLAlchemy models, msgspec and pydantic."""

    def with_records(value: Any) -> Any:
        try:
            return default(value)
        except TypeError:
            found = record(value)
            if found is None:
                raise
            return found

    return with_records


def record(value: Any) -> Any:
    """This record as dicts and lists, or None if it is none that is known here."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if callable(to_json := getattr(value, "model_dump", None)):  # pydantic
        return to_json(mode="json")
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_dict()
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and hasattr(type(value), "__mapper__"):
        return columns_of(value)
    rows = sys.modules.get("sqlalchemy.engine")
    if rows is not None and isinstance(value, rows.RowMapping):
        return dict(value)
    attrs = getattr(type(value), "__attrs_attrs__", None)
    return None if attrs is None else {field.name: getattr(value, field.name) for field in attrs}


def columns_of(model: Any) -> dict[str, Any]:
    """The columns of a model that are loaded, by attribute name: nothing is read from the database."""
    from sqlalchemy import inspect

    state = inspect(model)
    return {name: state.dict[name] for name in state.mapper.column_attrs.keys() if name in state.dict}  # noqa: SIM118


def _iso(value: Any) -> Any:
    """Dates as ISO 8601; the rest as Flask has it."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return msgspec.to_builtins(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return DefaultJSONProvider.default(value)


class TranseptJSONProvider(DefaultJSONProvider):
    """Flask's JSON with dates, times and datetimes as ISO 8601: ``app.json = TranseptJSONProvider(app)``.

    An app with a `Transept` can return SQLAlchemy models, msgspec structs, pydantic models and attrs classes without
    it. Flask itself writes dates as in HTTP headers.
    """

    default: Default = staticmethod(also_records(_iso))
