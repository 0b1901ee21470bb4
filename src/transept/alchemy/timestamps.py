"""Rows that say when they were last changed: `updated_at` follows every update that a flush makes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session

__all__ = ["touching", "touching_class"]

COLUMN = "updated_at"


def touching(maker: Callable[[], Session]) -> Callable[[], Session]:
    """This maker (a `sessionmaker`), whose sessions touch what they change."""
    event.listen(maker, "before_flush", _touch)
    return maker


def touching_class(kind: type[Session]) -> type[Session]:
    """A subclass of this session class, whose sessions touch what they change."""
    made = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    event.listen(made, "before_flush", _touch)
    return made


def _touch(session: Session, context: Any, instances: Any) -> None:
    for instance in session.dirty:
        column = inspect(instance).mapper.columns.get(COLUMN)
        if (
            column is not None
            and column.onupdate is None
            and column.server_onupdate is None
            and session.is_modified(instance, include_collections=False)
            and not inspect(instance).attrs[COLUMN].history.has_changes()
            and _is_a_moment(column.type)
        ):
            now = datetime.now(UTC)
            setattr(instance, COLUMN, now if getattr(column.type, "timezone", False) else now.replace(tzinfo=None))


def _is_a_moment(kind: Any) -> bool:
    try:
        return bool(kind.python_type is datetime)
    except NotImplementedError:
        return False
