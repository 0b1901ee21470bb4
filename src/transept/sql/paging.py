"""A statement without its limit, to count what it would give.

Rule 1: only a query has a limit: LIMIT, OFFSET and FETCH outside of all parentheses but those around the whole.
Rule 2: the limit goes with all that stands behind it, and with the locks (FOR UPDATE) around it; what stands before
    stays as it is, with the arguments of its placeholders.
Rule 3: where a word is a keyword in one dialect and may be a column in another, the dialect decides.

Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from transept.sql.kinds import kind_of
from transept.sql.statement import Notation, placed
from transept.sql.tokens import LONG, WORD, cut, is_comment

__all__ = ["without_limit"]

KEPT = 2048  # texts

QUERIES = frozenset({"SELECT", "VALUES", "TABLE"})
LIMITS = {
    "postgresql": frozenset({"LIMIT", "OFFSET", "FETCH"}),
    "mysql": frozenset({"LIMIT", "FETCH"}),
    "sqlite": frozenset({"LIMIT"}),
}
LOCK = re.compile(r"\s+(?:UPDATE|SHARE|NO\s+KEY|KEY\s+SHARE)\b", re.IGNORECASE)
NAME_BEFORE = re.compile(r"(?:\.|\bAS)\s*$", re.IGNORECASE)  # what follows is a name, whatever it reads
# MariaDB has OFFSET without LIMIT; in MySQL such a word is a column.
MARIADB_OFFSET = re.compile(r"\s+\S+\s+ROWS?\b", re.IGNORECASE)


def without_limit(sql: str, arguments: Any, notation: Notation) -> tuple[str, Any] | None:
    """The text of this query without its limit, and the arguments that it still needs; None if it has no limit.

    Raises:
        ParameterError: the arguments do not fit the placeholders.
    """
    find = _end_of_rest if len(sql) <= LONG else _end_of_rest.__wrapped__
    rest = find(sql, notation.dialect)
    if rest is None:
        return None
    begin, part, end = rest
    parts = cut(sql, notation.dialect)
    kept = [*parts[begin:part], parts[part][:end]]
    if not arguments:
        return "".join(kept), arguments
    _, spelling, where, keys = placed(sql, arguments, notation)
    used = [(i - begin, key) for i, key in zip(where, keys, strict=True) if begin <= i < part]
    if not used:
        return "".join(_unescaped(kept, spelling)), ()
    if isinstance(arguments, Mapping):
        return "".join(kept), {key: arguments[key] for _, key in used}
    numbers = sorted({int(key) for _, key in used})
    if spelling in ("$1", ":1"):
        for i, key in used:
            kept[i] = f"{spelling[0]}{numbers.index(int(key)) + 1}"
    return "".join(kept), [arguments[number] for number in numbers]


def _unescaped(parts: list[str], spelling: str) -> Iterator[str]:
    """A text that has no placeholders any more goes to the driver as it is."""
    for part in parts:
        if spelling == "?":
            yield "?" if part == "??" else part
        else:
            yield part.replace("%%", "%") if spelling in ("%s", "%(name)s") else part


@lru_cache(maxsize=KEPT)
def _end_of_rest(sql: str, dialect: str) -> tuple[int, int, int] | None:
    """What stays of the parts: from the first of these, up to that place in the other; None if there is no limit."""
    if kind_of(sql, dialect).verb not in QUERIES:
        return None
    parts = cut(sql, dialect)
    begin, end = 0, len(parts)
    while True:
        ends = _clauses(parts, begin, end, dialect)
        if any(is_limit for _, _, is_limit in ends):
            return (begin, *ends[0][:2])
        inside = _inside(parts, begin, end)
        if inside is None:
            return None
        begin, end = inside


def _clauses(parts: list[str], begin: int, end: int, dialect: str) -> list[tuple[int, int, bool]]:
    """Where the limits and locks of a query begin: the part, the place in it, whether it is a limit."""
    depth, found = 0, list[tuple[int, int, bool]]()
    for i in range(begin, end):
        part = parts[i]
        if i % 2:
            depth += (part == "(") - (part == ")")
        elif depth == 0:
            for word in WORD.finditer(part):
                is_limit = _is_limit(word, "".join(parts[i + 1 : i + 3]), dialect)
                is_lock = word[0].upper() == "FOR" and LOCK.match(part, word.end()) is not None
                if (is_limit or is_lock) and not NAME_BEFORE.search(part, 0, word.start()):
                    found.append((i, word.start(), is_limit))
    return found


def _is_limit(word: re.Match[str], behind: str, dialect: str) -> bool:
    name = word[0].upper()
    if name == "OFFSET" and dialect == "mysql":
        return MARIADB_OFFSET.match(word.string[word.end() :] + behind) is not None
    return name in LIMITS[dialect]


def _inside(parts: list[str], begin: int, end: int) -> tuple[int, int] | None:
    """The parts within parentheses around the whole; None if there are none."""
    code = [i for i in range(begin, end) if (not is_comment(parts[i]) if i % 2 else parts[i].strip())]
    while code and parts[code[-1]] == ";":
        code.pop()
    if not code or parts[code[0]] != "(" or parts[code[-1]] != ")":
        return None
    depth = 0
    for i in code[:-1]:
        depth += (parts[i] == "(") - (parts[i] == ")") if i % 2 else 0
        if depth == 0:
            return None
    return code[0] + 1, code[-1]
