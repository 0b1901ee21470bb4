"""Values become what a driver takes, and come back as they were."""

import dataclasses
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from time import gmtime
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transept.errors import UsageError
from transept.sql.rows import maker
from transept.sql.values import ASYNCPG_TYPES, MYSQL_TYPES, TEXT_TYPES, Json, Table, adapt

KEY = UUID("0190d2a4-7b7e-7a3c-8c55-0d2f1f3a9b11")
PLAIN = (1, "a", 2.5, b"b", True, None)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Word(StrEnum):
    YES = "yes"


class Level(IntEnum):
    LOW = 1


class Keyed(Enum):
    ONE = KEY


class Day(date, Enum):
    LEAP = (2024, 2, 29)


class Point(msgspec.Struct):
    x: int


@dataclasses.dataclass
class Data:
    x: int


@attrs.define
class Attrs:
    x: int


class Pair(NamedTuple):
    x: int
    y: int


class Lasts(timedelta):
    __slots__ = ()


class MyStr(str):
    __slots__ = ()


class MyUUID(UUID):
    __slots__ = ()


@pytest.mark.parametrize("table", [TEXT_TYPES, ASYNCPG_TYPES])
@pytest.mark.parametrize("values", [PLAIN, list(PLAIN), (), (MyStr("a"), memoryview(b"a"))])
def test_plain_values_are_the_same_sequence(table: Table, values: Any) -> None:
    adapt(values, table)  # the first look at a class is the only one

    assert adapt(values, table) is values


def test_texts_and_whole_numbers_are_the_same_sequence_for_mysql() -> None:
    values = (1, "a", b"b", True, None, MyStr("a"), date(2024, 2, 29))
    adapt(values, MYSQL_TYPES)

    assert adapt(values, MYSQL_TYPES) is values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (KEY, str(KEY)),
        (MyUUID(str(KEY)), str(KEY)),
        (Decimal("1.50"), "1.50"),
        (datetime(2024, 2, 29, 12), "2024-02-29T12:00:00"),
        (datetime(2024, 2, 29, 12, tzinfo=UTC), "2024-02-29T12:00:00+00:00"),
        (datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(seconds=30))), "2024-02-29T11:59:30+00:00"),
        (date(2024, 2, 29), "2024-02-29"),
        (time(12, 30, 0, 1), "12:30:00.000001"),
        (timedelta(days=1, seconds=2), "P1DT2S"),
        ({"a": KEY}, f'{{"a":"{KEY}"}}'),
        (OrderedDict(a=1), '{"a":1}'),
        ([1, None], "[1,null]"),
        ((1, "a"), '[1,"a"]'),
        (Pair(1, 2), "[1,2]"),
        (Point(1), '{"x":1}'),
        (Data(1), '{"x":1}'),
        (Attrs(1), '{"x":1}'),
        (Json([1]), "[1]"),
        (Json("a"), '"a"'),
        (Json(None), "null"),
        (Color.RED, "red"),
        (Word.YES, "yes"),
        (Level.LOW, 1),
        (Keyed.ONE, str(KEY)),
    ],
)
def test_a_value_becomes_text_for_a_driver_of_text(value: Any, expected: Any) -> None:
    assert adapt(("plain", value), TEXT_TYPES) == ("plain", expected)
    assert type(adapt((value,), TEXT_TYPES)[0]) is type(expected)


def test_an_enum_that_is_a_date_becomes_its_value() -> None:
    assert adapt((Day.LEAP,), ASYNCPG_TYPES) == (Day.LEAP.value,)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (KEY, str(KEY)),
        ({"a": 1}, '{"a":1}'),
        ([1], "[1]"),
        (Point(1), '{"x":1}'),
        (Json([1]), "[1]"),
        (Color.RED, "red"),
        (datetime(2024, 2, 29, 12, tzinfo=timezone(timedelta(hours=2))), datetime(2024, 2, 29, 10)),
        (datetime(2024, 2, 29, 12), datetime(2024, 2, 29, 12)),
        (Decimal("1.5"), Decimal("1.5")),
        (timedelta(1), timedelta(1)),
        (Lasts(1), timedelta(1)),
        ((1, 2), "[1,2]"),
        (Pair(1, 2), "[1,2]"),
        (gmtime(0), gmtime(0)),
        (2.5, 2.5),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
    ],
)
def test_mysql_is_given_naive_utc_and_text(value: Any, expected: Any) -> None:
    changed = adapt((value,), MYSQL_TYPES)
    assert (changed, type(changed[0])) == ((expected,), type(expected))


@pytest.mark.parametrize("value", [object(), Path("/x"), 3j, {1}, frozenset({1}), (n for n in "a"), range(3), int])
def test_what_the_drivers_of_mysql_do_not_know_is_refused(value: Any) -> None:
    with pytest.raises(
        UsageError, match=f"of type {type(value).__module__}.{type(value).__name__} cannot.*UUID, .* str, "
    ):
        adapt(("a", value), MYSQL_TYPES)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity")]
)
def test_what_is_no_number_is_refused_for_mysql(value: Any) -> None:
    with pytest.raises(UsageError, match="has no such number"):
        adapt((value,), MYSQL_TYPES)


def test_a_type_that_a_driver_was_taught_is_left_to_it() -> None:
    table = MYSQL_TYPES.also([Path, UUID])

    assert adapt((Path("/x"), KEY), table) == (Path("/x"), str(KEY))
    with pytest.raises(UsageError):
        adapt((3j,), table)


def test_asyncpg_is_given_bare_values_and_its_own_types() -> None:
    given_values = (Color.RED, Keyed.ONE, Json([1]), [1], {"a": 1}, KEY)

    assert adapt(given_values, ASYNCPG_TYPES) == ("red", KEY, [1], [1], {"a": 1}, KEY)


def test_a_table_of_ones_own_changes_what_it_says() -> None:
    table = Table({int: lambda value: -value, Json: repr})

    assert adapt((1, True, "a", Json(1)), table) == (-1, -1, "a", "Json(value=1)")


@pytest.mark.parametrize("value", [{"a": object()}, {(1, 2): 3}, Json("\ud800")])
def test_what_cannot_be_json_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        adapt((value,), TEXT_TYPES)


DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DATETIMES = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.timezones() | st.just(UTC)).filter(
    lambda moment: moment == moment.astimezone(UTC)  # in an hour that is skipped or comes twice, it equals no other
)


@dataclasses.dataclass
class Everything:
    uuid: UUID
    aware: datetime
    naive: datetime
    date: date
    time: time
    timedelta: timedelta
    decimal: Decimal
    bytes: bytes
    document: dict[str, Any]
    items: list[Any]
    color: Color
    flag: bool


EVERYTHING = st.builds(
    Everything,
    uuid=st.uuids(),
    aware=DATETIMES,
    naive=st.datetimes(),
    date=st.dates(),
    time=st.times(),
    timedelta=st.timedeltas(),
    decimal=st.decimals(allow_nan=False),
    bytes=st.binary(),
    document=st.dictionaries(st.text(), DOCUMENTS, max_size=3),
    items=st.lists(DOCUMENTS, max_size=3),
    color=st.sampled_from(Color),
    flag=st.booleans(),
)


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:")
    yield made
    made.close()


@given(everything=EVERYTHING)
def test_what_went_into_sqlite_as_text_comes_back_as_it_was(
    connection: sqlite3.Connection, everything: Everything
) -> None:
    columns = tuple(field.name for field in dataclasses.fields(Everything))
    values = tuple(getattr(everything, column) for column in columns)
    rows = connection.execute(f"SELECT {', '.join('?' * len(columns))}", adapt(values, TEXT_TYPES)).fetchall()

    assert maker(columns, Everything, frozenset())(rows) == [everything]
