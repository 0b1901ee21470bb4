"""Statements of SQLAlchemy Core in place of SQL text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from transept.errors import ParameterError, UsageError
from transept.sql.statement import Notation
from transept.sql.values import Json

__all__ = ["checked", "compiled", "compiled_many"]

PARAMSTYLES = {"qmark": "qmark", "numeric": "numeric_dollar", "format": "format"}


def compiled(statement: Any, arguments: Any, notation: Notation) -> tuple[str, Sequence[Any]]:
    """The driver's text and values of a statement such as ``select(users)``; `arguments` are its bind parameters.

    Values pass through the types of their columns; rows come as the driver gives them.

    Raises:
        UsageError: it is no statement, or its parameters were not given by name.
        ParameterError: one of them has no value, or a value is for none of them.
    """
    checked(statement, arguments)
    made, processors = _compile(statement, notation, list(arguments) if arguments else None)
    return _expanded(made, processors, arguments)


def compiled_many(statement: Any, sets: Sequence[Any], notation: Notation) -> tuple[str, list[Sequence[Any]]]:
    """As `compiled`, for one execution with each set of parameters."""
    for one in sets:
        checked(statement, one)
    made, processors = _compile(statement, notation, list(sets[0]))
    rendered = [_expanded(made, processors, one) for one in sets]
    if any(text != rendered[0][0] for text, _ in rendered):
        raise UsageError("the sets of parameters have lists of several lengths: run the statement once for each set.")
    return rendered[0][0], [values for _, values in rendered]


def checked(statement: Any, arguments: Any) -> None:
    """Refuse what is no statement of SQLAlchemy, and parameters that it cannot take.

    Raises:
        UsageError: as said.
    """
    if not (hasattr(statement, "compile") and hasattr(statement, "compare")):
        raise UsageError(
            f"a statement is a text, or one of SQLAlchemy Core such as select(...); {statement!r} is neither."
        )
    if arguments and not isinstance(arguments, Mapping):
        raise UsageError(
            f"the parameters of a SQLAlchemy statement go by name: pass a mapping or keywords, not {arguments!r}."
        )


def _compile(statement: Any, notation: Notation, names: list[str] | None) -> tuple[Any, dict[str, Any]]:
    from sqlalchemy import JSON

    dialect = _dialect(notation)
    made = statement.compile(dialect=dialect, column_keys=names)
    processors = {}
    for bind, name in made.bind_names.items():
        if notation.dialect == "postgresql" and isinstance(bind.type, JSON):
            processors[name] = _document  # the drivers encode documents themselves
            continue
        processor = bind.type.dialect_impl(dialect).bind_processor(dialect)
        if processor is not None:
            processors[name] = processor
    return made, processors


def _expanded(made: Any, processors: dict[str, Any], arguments: Any) -> tuple[str, Sequence[Any]]:
    """The text with a placeholder for each item of a list, and the values."""
    from sqlalchemy.exc import InvalidRequestError

    if arguments and (left := [name for name in arguments if name not in made.binds]):
        raise ParameterError(f"the statement does not use {', '.join(map(repr, left))}.", made.string)
    try:
        state = made.construct_expanded_state(dict(arguments) if arguments else None)
    except InvalidRequestError as error:
        raise ParameterError(f"{error.args[0]}.", made.string) from error
    origin = {item: name for name, items in state.parameter_expansion.items() for item in items}
    values = []
    for name in state.positiontup or ():
        processor = processors.get(origin.get(name, name))
        value = state.parameters[name]
        values.append(value if processor is None else processor(value))
    return state.statement, values


def _document(value: Any) -> Any:
    return None if value is None else Json(value)


@cache
def _dialect(notation: Notation) -> Any:
    """A dialect that renders for this driver; it has no driver itself."""
    from sqlalchemy.dialects import mysql, postgresql, sqlite

    kinds = {"postgresql": postgresql, "mysql": mysql, "sqlite": sqlite}
    made: Any = kinds[notation.dialect].dialect(paramstyle=PARAMSTYLES[notation.out])
    return made
