"""A statement as it is run: the driver's text, its values, and its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from transept.errors import UsageError
from transept.sql.core import compiled
from transept.sql.kinds import Kind, kind_of
from transept.sql.statement import Notation, render
from transept.sql.tokens import split
from transept.sql.values import Table, adapt

__all__ = ["Arguments", "Known", "Prepared", "known_statements", "prepare"]

Arguments = Sequence[Any] | Mapping[str, Any]
Prepared = tuple[str, Sequence[Any], Kind]
Known = dict[Any, tuple[int, Kind]]

KEPT = 2048
IN_LIST = re.compile(r"\bin\s*[(?$%]", re.IGNORECASE)  # a list changes the text, or is refused


@cache
def known_statements(notation: Notation) -> Known:
    """Texts that go to the driver as they are, with how many values: nothing is left to find out about them."""
    return {}


def prepare(sql: Any, arguments: Arguments, notation: Notation, adapts: Table) -> Prepared:
    """What the driver is given for a statement, text or SQLAlchemy's, and its arguments.

    Raises:
        ParameterError: the arguments do not fit.
        UsageError: it is several statements, or none.
    """
    values: Sequence[Any] = ()
    if type(sql) is not str:
        text, values = compiled(sql, arguments, notation)
    elif arguments:
        text, values = render(sql, arguments, notation)
    else:
        text = sql
    kind = kind_of(text, notation.dialect)
    if kind.several:
        raise UsageError(
            f"several statements in one call: use execute_script(), which takes no parameters.\n    {text.strip()}"
        )
    if not kind.verb and not split(text, notation.dialect):
        raise UsageError(f"there is no statement in {text!r:.80}, which is empty but for comments.")
    if text is sql and (values is arguments or not arguments) and not IN_LIST.search(text):
        known = known_statements(notation)
        if len(known) >= KEPT:
            known.clear()
        known[text] = (len(values), kind)
    return text, adapt(values, adapts) if values else values, kind
