"""From the rows of a driver to what was asked for: dicts, or instances of a class.

Rule 1: What can be decided from the columns and the class is decided once, by `maker`; the function that it returns
only does it.
Rule 2: A column belongs to the field of its name. Columns without a field are left out; a required field without a
column is an error. (pydantic decides both by itself.)
Rule 3: NULL stays None, and a value that is of the field's type already stays what it is.
Rule 4: A field whose type every driver delivers (int, str, float, bytes), or this one does, is not looked at.
Rule 5: Text for a field that is a document (dict, list, a class with fields) is JSON. What else is not of the field's
type is converted as msgspec does when it is not strict.
"""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import repeat, starmap
from operator import itemgetter
from typing import Annotated, Any, NamedTuple, TypeVar, overload

import msgspec

from transept.errors import UsageError

__all__ = ["converter", "maker"]

T = TypeVar("T")

Row = Sequence[Any]
Rows = Iterable[Row]
Convert = Callable[[Any], Any]

ALLOWED = "a dataclass, a msgspec.Struct, a pydantic model, an attrs class, a TypedDict, a NamedTuple class or dict"
PLAIN: frozenset[type] = frozenset({int, str, float, bytes, object, type(None)})
TEXT = (str, bytes, bytearray, memoryview)
QUALIFIERS = (typing.Required, typing.NotRequired, getattr(typing, "ReadOnly", typing.Required))
UNIONS = (typing.Union, types.UnionType)


class Field(NamedTuple):
    """What a class takes: the keyword, the columns that may give it, and the type of its values."""

    keyword: str
    columns: tuple[str, ...]
    annotation: Any
    required: bool
    positional: bool


@overload
def maker(
    columns: tuple[str, ...], schema_type: None, natives: frozenset[type]
) -> Callable[[Rows], list[dict[str, Any]]]: ...
@overload
def maker(columns: tuple[str, ...], schema_type: type[T], natives: frozenset[type]) -> Callable[[Rows], list[T]]: ...
def maker(columns: tuple[str, ...], schema_type: Any, natives: frozenset[type]) -> Callable[[Rows], list[Any]]:
    """A function from the rows of a result to a list of what was asked for: dicts without a schema, else instances.

    ``natives`` are the types that the driver delivers by itself. `UsageError` if ``schema_type`` is nothing that rows
    can become, has a required field that is not among the columns, or has annotations that cannot be resolved; the
    function itself raises it for a value that cannot be converted. If two columns have one name, the last one counts.
    """
    if schema_type is not None and not isinstance(schema_type, type):
        raise UsageError(f"schema_type is {schema_type!r}; it has to be {ALLOWED}.")
    return _maker(columns, schema_type, natives)


@lru_cache(maxsize=1024)
def _maker(columns: tuple[str, ...], schema_type: Any, natives: frozenset[type]) -> Callable[[Rows], list[Any]]:
    if schema_type is None or schema_type is dict:
        return _dict_maker(columns)
    if hasattr(schema_type, "__pydantic_validator__"):
        return _pydantic_maker(columns, schema_type)
    found, indices = _found(columns, schema_type)
    steps = _steps(found, schema_type, natives | PLAIN)
    pick = _picker(columns, indices)

    def prepared(rows: Rows) -> Rows:
        picked = rows if pick is None else map(pick, rows)
        return _converted(picked, steps) if steps else picked

    keywords = tuple(field.keyword for field in found)
    if typing.is_typeddict(schema_type):
        return lambda rows: [dict(zip(keywords, row, strict=True)) for row in prepared(rows)]
    if all(field.positional for field in found) and keywords == _parameters(schema_type)[: len(keywords)]:
        return lambda rows: list(starmap(schema_type, prepared(rows)))
    return lambda rows: [schema_type(**dict(zip(keywords, row, strict=True))) for row in prepared(rows)]


def _dict_maker(columns: tuple[str, ...]) -> Callable[[Rows], list[Any]]:
    return lambda rows: list(map(dict, map(zip, repeat(columns), rows)))


def _pydantic_maker(columns: tuple[str, ...], schema_type: Any) -> Callable[[Rows], list[Any]]:
    # Only a class of pydantic's comes here, so that pydantic has been imported.
    pydantic = sys.modules["pydantic"]
    validate = pydantic.TypeAdapter(list[schema_type]).validate_python
    dicts = _dict_maker(columns)

    def make(rows: Rows) -> list[Any]:
        try:
            made: list[Any] = validate(dicts(rows))
        except pydantic.ValidationError as error:
            raise UsageError(f"the rows do not make a list of {schema_type.__name__}: {error}") from error
        return made

    return make


def _found(columns: tuple[str, ...], schema_type: type[Any]) -> tuple[list[Field], list[int]]:
    places = {column: place for place, column in enumerate(columns)}
    found, indices = [], []
    for field in _fields(schema_type):
        place = next((places[column] for column in field.columns if column in places), None)
        if place is not None:
            found.append(field)
            indices.append(place)
        elif field.required:
            raise UsageError(
                f"{schema_type.__name__} needs {field.keyword!r}, which is not among the columns "
                f"({', '.join(columns)}): select it, by that name, or give the field a default."
            )
    return found, indices


def _steps(found: list[Field], schema_type: type[Any], trusted: frozenset[type]) -> tuple[tuple[int, Convert], ...]:
    converters = [converter(field.annotation, trusted, f"{schema_type.__name__}.{field.keyword}") for field in found]
    return tuple((place, convert) for place, convert in enumerate(converters) if convert is not None)


def _picker(columns: tuple[str, ...], indices: list[int]) -> Callable[[Row], Row] | None:
    if indices == list(range(len(columns))):
        return None
    if len(indices) > 1:
        return itemgetter(*indices)
    return lambda row: [row[index] for index in indices]


def _converted(rows: Rows, steps: tuple[tuple[int, Convert], ...]) -> Iterator[Row]:
    for row in rows:
        values = list(row)
        for place, convert in steps:
            values[place] = convert(values[place])
        yield values


def _fields(schema_type: type[Any]) -> list[Field]:
    hints = _hints(schema_type)
    if typing.is_typeddict(schema_type):
        return [_key(schema_type, name, hint) for name, hint in hints.items()]
    columns = _columns_of_parameters(schema_type)
    if columns is None:
        raise UsageError(f"schema_type is {schema_type!r}; it has to be {ALLOWED}.")
    return [
        Field(
            keyword=name,
            columns=columns.get(name, (name,)),
            annotation=_annotation(schema_type, columns.get(name, (name,))[-1], hints),
            required=parameter.default is parameter.empty,
            positional=parameter.kind is parameter.POSITIONAL_OR_KEYWORD,
        )
        for name, parameter in inspect.signature(schema_type).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]


def _columns_of_parameters(schema_type: type[Any]) -> dict[str, tuple[str, ...]] | None:
    """The columns that give each parameter, the attribute's own name last; None if the class is of no known kind."""
    if issubclass(schema_type, msgspec.Struct):
        pairs = zip(schema_type.__struct_fields__, schema_type.__struct_encode_fields__, strict=True)
        return {name: (encoded, name) for name, encoded in pairs}
    if hasattr(schema_type, "__attrs_attrs__"):
        return {attribute.alias: (attribute.alias, attribute.name) for attribute in schema_type.__attrs_attrs__}
    if dataclasses.is_dataclass(schema_type) or (issubclass(schema_type, tuple) and hasattr(schema_type, "_fields")):
        return {}
    return None


def _annotation(schema_type: type[Any], name: str, hints: dict[str, Any]) -> Any:
    for attribute in getattr(schema_type, "__attrs_attrs__", ()):
        if attribute.name == name and attribute.converter is not None:
            return Any  # its own converter takes whatever comes
    hint = hints.get(name, Any)
    return hint.type if isinstance(hint, dataclasses.InitVar) else hint


def _parameters(schema_type: type[Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(schema_type).parameters)


def _key(schema_type: type[Any], name: str, hint: Any) -> Field:
    # __required_keys__ does not know of NotRequired in annotations that are strings, so the hint comes first.
    required = name in schema_type.__required_keys__
    while (origin := typing.get_origin(hint)) in QUALIFIERS:
        required = origin is typing.Required or (required and origin is not typing.NotRequired)
        (hint,) = typing.get_args(hint)
    return Field(name, (name,), hint, required, positional=False)


def _hints(schema_type: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(schema_type, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise UsageError(
            f"the annotations of {schema_type.__name__} cannot be resolved ({error}): define or import at the top of "
            "its module, not in a function or under TYPE_CHECKING, what they name."
        ) from error


def converter(annotation: Any, trusted: frozenset[type], name: str) -> Convert | None:
    """A function that makes one value fit an annotation, None if all that the annotation allows is ``trusted``.

    ``name`` says in the error whose value it is. `UsageError` if text is to be read as a type that msgspec cannot make;
    the function itself raises it for a value that does not fit.
    """
    members = tuple(_members(annotation))
    if trusted.issuperset(members):
        return None
    stays = tuple(member for member in members if _is_class(member) and not typing.is_typeddict(member))
    decode = _decoder(annotation, members, name)
    text: tuple[type, ...] = () if decode is None else tuple({str, bytes}.difference(members))

    def convert(value: Any) -> Any:
        if value is None:
            return None
        try:
            if decode is not None and isinstance(value, text):
                return decode(value)
            if isinstance(value, stays):
                return value
            # Databases answer SUM of ints with a Decimal, of which msgspec makes no int; MySQL a TIME with a timedelta.
            if type(value) is timedelta and time in members:
                return _time_of_day(value)
            return msgspec.convert(str(value) if type(value) is Decimal else value, annotation, strict=False)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise UsageError(
                f"{name}: {reprlib.repr(value)} cannot become {_described(annotation)}: {error}"
            ) from error

    return convert


def _time_of_day(since_midnight: timedelta) -> time:
    if not timedelta(0) <= since_midnight < timedelta(days=1):
        raise ValueError("a time of day is at least 00:00 and less than 24:00; timedelta holds any")
    return (datetime.min + since_midnight).time()


def _members(annotation: Any) -> Iterator[Any]:
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):  # of a `type` statement
            annotation = annotation.__value__
        else:
            break
    if typing.get_origin(annotation) in UNIONS:
        for member in typing.get_args(annotation):
            yield from _members(member)
    elif annotation is Any or isinstance(annotation, TypeVar):
        yield object
    else:
        yield type(None) if annotation is None else annotation


def _is_class(member: Any) -> bool:
    return isinstance(member, type) and typing.get_origin(member) is None


def _decoder(annotation: Any, members: tuple[Any, ...], name: str) -> Convert | None:
    if not any(_is_document(typing.get_origin(member) or member) for member in members):
        return None
    try:
        return msgspec.json.Decoder(annotation, strict=False).decode
    except (TypeError, NameError) as error:
        raise UsageError(f"{name}: {_described(annotation)} cannot be made of JSON: {error}") from error


def _is_document(member: Any) -> bool:
    if not isinstance(member, type):
        return False
    if hasattr(member, "__struct_fields__") or hasattr(member, "__attrs_attrs__") or dataclasses.is_dataclass(member):
        return True
    return issubclass(member, Collection) and not issubclass(member, (*TEXT, Enum))


def _described(annotation: Any) -> str:
    return annotation.__name__ if _is_class(annotation) else repr(annotation)
