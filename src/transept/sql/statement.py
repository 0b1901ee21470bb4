"""The placeholders of a statement and the arguments for them, as its driver takes them.

Rule 1: the arguments fix the style, one for the whole statement. A mapping looks for `:name`, else `%(name)s`, else
    `@name`, else `$name`: the first in which a given name occurs. A sequence looks for the driver's own style, else
    `?`, `$1`, `%s`, `:1`. What is written in another style is left alone. Without arguments the text is untouched.
Rule 2: literals, quoted identifiers, comments and dollar quotes hold no placeholders and stay as they are. In the
    styles with `%`, a `%%` is a percent sign everywhere, as in the drivers that have them; with `?`, a `??` is a `?`.
Rule 3: a list inside `IN (...)` is a list of items. On PostgreSQL it is one array (`= ANY`, `<> ALL`) where it stands
    alone; elsewhere it is one placeholder for each item. An empty one matches nothing. Any other list is passed on.
Rule 4: what does not fit is an error that points at the place; nothing is guessed. A list behind a bare `IN` is one.

Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from transept.errors import ParameterError
from transept.sql.kinds import kind_of
from transept.sql.tokens import LONG, cut

__all__ = ["Marked", "Notation", "forgotten", "placed", "render", "render_many"]

Style = Literal["qmark", "numeric", "format"]
Key = int | str

KEPT = 2048  # texts


@dataclass(frozen=True, slots=True)
class Notation:
    """How a driver's statements are written. `own`: what its users write, looked for first; `out`: what it is given."""

    dialect: Literal["postgresql", "mysql", "sqlite"]
    own: Style
    out: Style


def _spelling(token: str) -> str | None:
    """The style in which the token is a placeholder, named by how it is written; None if it is none."""
    match token[0]:
        case "?":
            return "?" if token == "?" else None
        case "%":
            return None if token == "%%" else "%s" if token == "%s" else "%(name)s"
        case ":":
            return None if token == "::" else ":1" if token[1] in "0123456789" else ":name"
        case "$":
            return "$1" if token[1] in "0123456789" else None if "$" in token[1:] else "$name"
        case "@":
            return None if token[1] in "@?" else "@name"
    return None


class Item(NamedTuple):
    """A placeholder that is an item of `IN (...)`: whether it is the only one, and its cast, such as `::int`."""

    alone: bool
    cast: str


class Marked(NamedTuple):
    """A cut text with the placeholders of the one style in which it is read: where they are, what they ask for."""

    parts: list[str]
    spelling: str
    where: list[int]
    keys: list[Key]


class Plan(NamedTuple):
    """A statement, read for one style, for one driver.

    `text`, and `order`, the arguments that its values are (None: as they are given), hold while no list is spread.
    `needs` is how many values there have to be. Among `lists` are the arguments that may have to be spread, or that may
    be no list: where they stand is looked at when one of them is one.
    """

    text: str
    order: tuple[Key, ...] | None
    needs: int
    lists: tuple[Key, ...]
    marked: Marked


OWN = {"qmark": "?", "numeric": "$1", "format": "%s"}
PLAIN_MARKS = frozenset({"?", "%s"})
POSITIONAL = ("?", "$1", "%s", ":1")
NAMED = (":name", "%(name)s", "@name", "$name")
CLOSED = (":name", "%(name)s")  # here every token of the spelling is a placeholder
CERTAIN = ("$1", "%s", "%(name)s", ":name", ":1")  # no operator, no variable; `?` is one on PostgreSQL
DEFINES = frozenset({"CREATE", "PREPARE", "ALTER", "DO"})  # what they define may have parameters of its own
OPTIONS = ("schema_type", "value_type", "chunk_size")  # of sessions; what is near to one is a slip
LISTS = (list, tuple, set, frozenset)
NOTHING = {"sqlite": "", "mysql": "SELECT NULL FROM DUAL WHERE FALSE"}
IN_LIST = re.compile(r"[iI](?<!\w[iI])[nN]\s*[(?$%:@]")
BARE_IN = re.compile(r"\bIN\s*$", re.IGNORECASE)
IN_WORD = re.compile(r"\b(NOT\s+)?IN\s*(?:\(\s*)?$", re.IGNORECASE)
QUERY = re.compile(r"\s*(?:SELECT|WITH|VALUES|TABLE)\b", re.IGNORECASE)
CAST = re.compile(r"\s*\w[\w. ]*")


def render(sql: str, arguments: Sequence[Any] | Mapping[str, Any], notation: Notation) -> tuple[str, Sequence[Any]]:
    """The text for the driver and its positional values; `(sql, ())`, the text untouched, without arguments.

    Raises:
        ParameterError: the arguments do not fit the placeholders.
    """
    kind = type(arguments)
    if kind is not tuple and kind is not list:
        if isinstance(arguments, Mapping):
            return _render_named(sql, arguments, notation)
        if isinstance(arguments, (str, bytes, bytearray, memoryview)) or not isinstance(arguments, Sequence):
            what = f"the parameters are {arguments!r:.80}, which is no sequence of values and no mapping"
            raise ParameterError(f"{what}: for one value pass (value,).", sql)
    if not arguments:
        return sql, ()
    find = _positional if len(sql) <= LONG else _positional.__wrapped__
    plan: Plan = find(sql, notation.dialect, notation.own, notation.out)
    if plan.needs != len(arguments):
        raise _wrong_count(sql, plan, len(arguments), notation)
    return _fill(plan, arguments, notation)


def render_many(
    sql: str, sets: Sequence[Sequence[Any] | Mapping[str, Any]], notation: Notation
) -> tuple[str, list[Sequence[Any]]]:
    """One text for the driver, with the values of each set.

    Raises:
        ParameterError: a set does not fit the placeholders (a note says which), or needs a text of its own.
    """
    text = sql
    filled: list[Sequence[Any]] = []
    for number, arguments in enumerate(sets, 1):
        try:
            own, values = render(sql, arguments, notation)
        except ParameterError as error:
            error.add_note(f"in set {number} of {len(sets)}")
            raise
        if number > 1 and own != text:
            what = f"set {number} of {len(sets)} needs another text than the sets before it"
            raise ParameterError(f"{what}: its lists or its names differ. Run the sets one by one.", sql)
        text = own
        filled.append(values)
    return text, filled


def placed(sql: str, arguments: Sequence[Any] | Mapping[str, Any], notation: Notation) -> Marked:
    """The placeholders that these arguments are for, and where they stand among the parts of the cut text.

    Raises:
        ParameterError: the arguments do not fit the placeholders.
    """
    if isinstance(arguments, Mapping):
        named = _named if len(sql) <= LONG else _named.__wrapped__
        return named(sql, notation.dialect, notation.out, frozenset(arguments)).marked
    find = _positional if len(sql) <= LONG else _positional.__wrapped__
    return find(sql, notation.dialect, notation.own, notation.out).marked


def forgotten(sql: str, dialect: str) -> str | None:
    """What to say beside the database's error about a text that was run without arguments; None if nothing.

    Counted are the placeholders that can hardly be anything else, of the first style that the text has.
    """
    if kind_of(sql, dialect).verb in DEFINES:
        return None
    parts = cut(sql, dialect)
    found = _placeholders(parts)
    for spelling in CERTAIN if dialect == "postgresql" else ("?", *CERTAIN):
        if where := found.get(spelling):
            names = ", ".join(dict.fromkeys(parts[i] for i in where))
            return f"the statement has placeholders ({names}), and no parameters were given"
    return None


def _render_named(sql: str, arguments: Mapping[str, Any], notation: Notation) -> tuple[str, Sequence[Any]]:
    if not arguments:
        return sql, ()
    find = _named if len(sql) <= LONG else _named.__wrapped__
    return _fill(find(sql, notation.dialect, notation.out, frozenset(arguments)), arguments, notation)


def _fill(plan: Plan, arguments: Any, notation: Notation) -> tuple[str, Sequence[Any]]:
    for key in plan.lists:
        if isinstance(arguments[key], LISTS):
            _refuse_bare_lists(plan.marked, arguments)
            items = _listed(plan.marked, arguments)
            if items:
                return _spread(plan.marked, items, arguments, notation)
            break
    order = plan.order
    return plan.text, (arguments if order is None else [arguments[key] for key in order])


@lru_cache(maxsize=KEPT)
def _positional(sql: str, dialect: str, own: Style, out: Style) -> Plan:
    parts = cut(sql, dialect)
    found = _placeholders(parts)
    for spelling in (OWN[own], *POSITIONAL):
        if where := found.get(spelling):
            break
    else:
        return Plan(sql, None, 0, (), Marked(parts, "", [], []))
    keys: list[Key] = list(range(len(where)))
    if spelling in ("$1", ":1"):
        keys = [int(parts[i][1:]) - 1 for i in where]
        _check_numbers(sql, parts, where)
    return _plan(sql, dialect, out, Marked(parts, spelling, where, keys))


@lru_cache(maxsize=KEPT)
def _named(sql: str, dialect: str, out: Style, names: frozenset[str]) -> Plan:
    for name in names:
        if not isinstance(name, str):
            raise ParameterError(f"the parameter name {name!r} is no str.", sql)
    parts = cut(sql, dialect)
    found = {
        spelling: [(i, parts[i][2:-2] if spelling == "%(name)s" else parts[i][1:]) for i in where]
        for spelling, where in _placeholders(parts).items()
        if spelling in NAMED
    }
    in_use = [spelling for spelling in NAMED if any(name in names for _, name in found.get(spelling, ()))]
    spelling = next(iter(in_use or [spelling for spelling in CLOSED if spelling in found]), None)
    if spelling is None:
        raise ParameterError(f"no placeholder for {_list(names)}{_meant(names) or '.'} {UNDERSTOOD}", sql)
    used = [(i, name) for i, name in found[spelling] if spelling in CLOSED or name in names]
    _check_names(sql, parts, used, names)
    return _plan(sql, dialect, out, Marked(parts, spelling, [i for i, _ in used], [name for _, name in used]))


def _placeholders(parts: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i in range(1, len(parts), 2):
        token = parts[i]
        if token in PLAIN_MARKS:
            found.setdefault(token, []).append(i)
        elif token[0] in "?%:$@" and (spelling := _spelling(token)):
            found.setdefault(spelling, []).append(i)
    return found


def _plan(sql: str, dialect: str, out: Style, marked: Marked) -> Plan:
    parts, spelling, where, keys = marked
    needs = len(set(keys))
    lists = tuple(dict.fromkeys(keys)) if IN_LIST.search(sql) else ()
    if spelling == OWN[out] and "??" not in parts and (out != "format" or sql.count("%") == len(where)):
        return Plan(sql, None, needs, lists, marked)
    chunks, marks = _chunks(marked, out), _Marks(out)
    text = chunks[0] + "".join([marks.put(key, key) + chunk for key, chunk in zip(keys, chunks[1:], strict=True)])
    order = tuple(marks.values)
    return Plan(text, None if order == tuple(range(needs)) else order, needs, lists, marked)


def _chunks(marked: Marked, out: Style) -> list[str]:
    """The text around the placeholders, as the driver takes it."""
    parts, spelling, where, _ = marked
    if spelling == "?":
        parts = ["?" if part == "??" else part for part in parts]
    chunks, begin = [], 0
    for end in (*where, len(parts)):
        chunk = "".join(parts[begin:end])
        begin = end + 1
        if "%" in chunk:
            chunk = chunk.replace("%%", "%") if spelling in ("%s", "%(name)s") else chunk
            chunk = chunk.replace("%", "%%") if out == "format" else chunk
        chunks.append(chunk)
    return chunks


class _Marks:
    """The driver's placeholders, as they are put into the text, and their values."""

    def __init__(self, out: Style) -> None:
        self.values: list[Any] = []
        self._numbers: dict[object, str] | None = {} if out == "numeric" else None
        self._mark = "%s" if out == "format" else "?"

    def put(self, key: object, value: object) -> str:
        """The mark for the value; one that has a number and is used again keeps it."""
        numbers = self._numbers
        if numbers is not None:
            if (mark := numbers.get(key)) is not None:
                return mark
            numbers[key] = mark = f"${len(numbers) + 1}"
        else:
            mark = self._mark
        self.values.append(value)
        return mark


# -- lists inside IN (...)


def _listed(marked: Marked, arguments: Any) -> dict[int, Item]:
    """Those items, by the number of the placeholder, whose argument is a list."""
    items = _items(marked.parts, marked.where)
    return {number: item for number, item in items.items() if isinstance(arguments[marked.keys[number]], LISTS)}


def _items(parts: list[str], where: list[int]) -> dict[int, Item]:
    numbers = {part: number for number, part in enumerate(where)}
    items: dict[int, Item] = {}
    opened: list[int] = []  # where a parenthesis was opened; 0 if it is not that of IN (...)
    for i in range(1, len(parts), 2):
        token = parts[i]
        if token == "(":
            listed = parts[i - 1].rstrip()[-2:].upper() == "IN" and IN_WORD.search(parts[i - 1])
            opened.append(i if listed and not QUERY.match(parts[i + 1]) else 0)
        elif token == ")":
            del opened[-1:]
        elif opened and opened[-1] and i in numbers and (item := _item(parts, i, opened[-1])):
            items[numbers[i]] = item
    return items


def _item(parts: list[str], i: int, opened: int) -> Item | None:
    """The placeholder as an item; None if it is only a part of one."""
    _, before, blank = parts[i - 1].rpartition(",")
    if blank.strip() or not (before or i - 2 == opened):
        return None
    last, cast, rest = i + 1, "", parts[i + 1]
    if not rest.strip() and parts[i + 2 : i + 3] == ["::"] and (name := CAST.match(parts[i + 3])):
        last, cast, rest = i + 3, f"{rest}::{name[0]}", parts[i + 3][name.end() :]
    blank, after, _ = rest.partition(",")
    if blank.strip() or not (after or parts[last + 1 : last + 2] == [")"]):
        return None
    return Item(not before and not after, cast)


def _spread(marked: Marked, items: dict[int, Item], arguments: Any, notation: Notation) -> tuple[str, list[Any]]:
    marks, chunks = _Marks(notation.out), _chunks(marked, notation.out)
    out = chunks[0]
    for number, (key, after) in enumerate(zip(marked.keys, chunks[1:], strict=True)):
        value, item = arguments[key], items.get(number)
        if item is None:
            out += marks.put(key, value) + after
            continue
        rows = any(isinstance(element, tuple) for element in value)
        rest = after[len(item.cast) :]
        if not value and not item.alone and (left := _leave_out(out, rest)) is not None:
            out = left
        elif notation.dialect == "postgresql" and not rows and (item.alone or not value):
            cast = item.cast and f"{item.cast.rstrip()}[]"
            out = _compare_with_array(out) + marks.put((key, "array"), list(value)) + cast + rest
        elif not value:
            out += NOTHING[notation.dialect] + rest
        else:
            # SQLite takes rows only from a query
            query = "VALUES " if rows and item.alone and notation.dialect == "sqlite" else ""
            each = [_put_element(marks, (key, i), element) for i, element in enumerate(value)]
            out += query + ", ".join([mark + item.cast for mark in each]) + rest
    return out, marks.values


def _put_element(marks: _Marks, key: tuple[Key, int], element: Any) -> str:
    if not isinstance(element, tuple):
        return marks.put(key, element)
    return f"({', '.join([marks.put((*key, i), value) for i, value in enumerate(element)])})"


def _leave_out(before: str, after: str) -> str | None:
    """The text without the item that stood in between, and without one comma; None if it would leave nothing."""
    rest = after.lstrip()
    if rest.startswith(","):
        return before + rest[1:].lstrip()
    begin = before.rstrip()
    return begin[:-1] + after if begin.endswith(",") else None


def _compare_with_array(before: str) -> str:
    """The text up to the parenthesis, with `= ANY (` for `IN (`."""
    return IN_WORD.sub(lambda word: "<> ALL (" if word[1] else "= ANY (", before)


# -- errors

UNDERSTOOD = "Values by position are understood as ?, $1, %s or :1; by name as :name, %(name)s, @name or $name."


def _wrong_count(sql: str, plan: Plan, values: int, notation: Notation) -> ParameterError:
    given = f"{values} value{'s' if values != 1 else ''}"
    parts, spelling, where, keys = plan.marked
    if not keys:
        return ParameterError(f"no placeholder for {given}. {UNDERSTOOD}", sql)
    what = f"{plan.needs} placeholder{'s' if plan.needs != 1 else ''}, {given}"
    if plan.needs == 1:
        what += ": a list alone is the parameters; for one parameter that is a list pass ([...],)"
    if spelling == "?" and notation.dialect == "postgresql":
        what += ". For the operator ? write ??"
    missing = (i for i, key in zip(where, keys, strict=True) if int(key) >= values)
    at = next(missing, None)
    return ParameterError(what, sql, None if at is None else _position(parts, at))


def _check_numbers(sql: str, parts: list[str], where: list[int]) -> None:
    used = {int(parts[i][1:]) for i in where}
    if used == set(range(1, len(used) + 1)):
        return
    sign = parts[where[0]][0]
    gap = next(number for number in range(1, len(used) + 2) if number not in used)
    wrong = next(i for i in where if not 0 < int(parts[i][1:]) < gap)
    what = f"{parts[wrong]} without {sign}{gap}" if int(parts[wrong][1:]) else f"there is no {parts[wrong]}"
    raise ParameterError(f"{what}: placeholders are numbered from {sign}1, without gaps.", sql, _position(parts, wrong))


def _check_names(sql: str, parts: list[str], used: list[tuple[int, str]], names: frozenset[str]) -> None:
    for i, name in used:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"given are {_list(names)}."
            raise ParameterError(f"no value for {parts[i]}; {hint}", sql, _position(parts, i))
    if left := names - {name for _, name in used}:
        has = ", ".join(dict.fromkeys(parts[i] for i, _ in used))
        raise ParameterError(f"the statement does not use {_list(left)}; it has {has}{_meant(left) or '.'}", sql)


def _refuse_bare_lists(marked: Marked, arguments: Any) -> None:
    parts = marked.parts
    for i, key in zip(marked.where, marked.keys, strict=True):
        if isinstance(arguments[key], LISTS) and BARE_IN.search(parts[i - 1]):
            what = f"a list belongs inside parentheses: IN ({parts[i]})"
            raise ParameterError(what, "".join(parts), _position(parts, i))


def _meant(names: frozenset[str]) -> str:
    """A question, where one of the names that are not used is that of an option, or nearly so."""
    for name in sorted(names):
        if name in OPTIONS:
            return f"; {name} is no option here, but of other methods."
        if near := get_close_matches(name, OPTIONS, n=1, cutoff=0.8):
            return f"; did you mean the option {near[0]}?"
    return ""


def _position(parts: list[str], part: int) -> int:
    return sum(map(len, parts[:part]))


def _list(names: frozenset[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
