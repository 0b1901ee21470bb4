"""Rows become dicts or instances of what was asked for."""

import dataclasses
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Optional, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from transept.errors import UsageError
from transept.sql.rows import maker

NONE: frozenset[type] = frozenset()
NATIVES: frozenset[type] = frozenset({UUID, datetime})
KEY = UUID("0190d2a4-7b7e-7a3c-8c55-0d2f1f3a9b11")


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Struct(msgspec.Struct):
    id: int
    name: str


@dataclasses.dataclass
class Data:
    id: int
    name: str


@attrs.define
class Attrs:
    id: int
    name: str


class Tuple(NamedTuple):
    id: int
    name: str


class Model(pydantic.BaseModel):
    id: int
    name: str


class Typed(TypedDict):
    id: int
    name: str


@pytest.mark.parametrize("columns", [("id", "name"), ("name", "id"), ("name", "extra", "id")])
@pytest.mark.parametrize("cls", [Struct, Data, Attrs, Tuple, Model, Typed])
def test_columns_go_to_the_fields_of_their_names_in_any_order(cls: type[Any], columns: tuple[str, ...]) -> None:
    values = {"id": 1, "name": "ada", "extra": None}
    rows = [tuple(values[column] for column in columns)]

    assert maker(columns, cls, NONE)(rows) == [cls(id=1, name="ada")]


@pytest.mark.parametrize("schema_type", [None, dict])
def test_without_a_class_a_row_is_a_dict(schema_type: Any) -> None:
    assert maker(("id", "name"), schema_type, NONE)([(1, "ada"), [2, "bob"]]) == [
        {"id": 1, "name": "ada"},
        {"id": 2, "name": "bob"},
    ]


@pytest.mark.parametrize("cls", [None, Struct, Data, Attrs, Tuple, Model, Typed])
def test_no_rows_are_an_empty_list(cls: Any) -> None:
    assert maker(("id", "name"), cls, NONE)([]) == []


def test_of_two_columns_with_one_name_the_last_counts() -> None:
    assert maker(("id", "name", "id"), None, NONE)([(1, "ada", 2)]) == [{"id": 2, "name": "ada"}]
    assert maker(("id", "name", "id"), Struct, NONE)([(1, "ada", 2)]) == [Struct(2, "ada")]


def test_a_maker_is_made_once() -> None:
    assert maker(("id", "name"), Struct, NONE) is maker(("id", "name"), Struct, NONE)


@pytest.mark.parametrize("cls", [Struct, Data, Attrs, Tuple, Typed])
def test_a_required_field_without_a_column_is_refused_before_any_row(cls: type[Any]) -> None:
    with pytest.raises(UsageError, match=rf"{cls.__name__} needs 'name'.*\(id, nmae\)"):
        maker(("id", "nmae"), cls, NONE)


def test_pydantic_says_itself_what_is_missing() -> None:
    with pytest.raises(UsageError, match=r"(?s)of Model: .*name\n +Field required") as refused:
        maker(("id",), Model, NONE)([(1,)])
    assert isinstance(refused.value.__cause__, pydantic.ValidationError)


@pytest.mark.parametrize("what", [int, str, Color, object, list[int], Data | None, "Data", Data(1, "ada")])
def test_what_rows_cannot_become_is_refused_with_what_they_can(what: Any) -> None:
    with pytest.raises(UsageError, match=r"a dataclass, a msgspec\.Struct, a pydantic model"):
        maker(("id",), what, NONE)


@dataclasses.dataclass
class WithDefaults:
    id: int
    name: str = "nobody"
    tags: list[str] = dataclasses.field(default_factory=list)
    length: int = dataclasses.field(init=False, default=0)


def test_fields_with_defaults_need_no_column() -> None:
    assert maker(("id",), WithDefaults, NONE)([(1,)]) == [WithDefaults(1)]
    assert maker(("tags", "id"), WithDefaults, NONE)([('["a"]', 1)]) == [WithDefaults(1, tags=["a"])]


def test_a_field_that_is_not_given_at_construction_is_left_alone() -> None:
    assert maker(("id", "length"), WithDefaults, NONE)([(1, 7)])[0].length == 0


class KeywordOnly(msgspec.Struct, kw_only=True):
    id: int
    key: UUID | None = None


def test_keyword_only_classes_are_made_by_keyword() -> None:
    assert maker(("id", "key"), KeywordOnly, NONE)([(1, str(KEY)), (2, None)]) == [
        KeywordOnly(id=1, key=KEY),
        KeywordOnly(id=2),
    ]


class Renamed(msgspec.Struct, rename="camel"):
    user_id: int
    given_name: str


def test_a_struct_takes_the_names_of_its_fields_and_their_encoded_names() -> None:
    assert maker(("user_id", "givenName"), Renamed, NONE)([(1, "ada")]) == [Renamed(1, "ada")]


class Aliased(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userId")


def test_a_pydantic_model_takes_its_aliases_and_validates() -> None:
    assert maker(("userId",), Aliased, NONE)([("7",)]) == [Aliased(userId=7)]
    with pytest.raises(UsageError, match="userId"):
        maker(("userId",), Aliased, NONE)([("seven",)])


@pydantic.dataclasses.dataclass
class Checked:
    id: pydantic.PositiveInt


def test_a_pydantic_dataclass_is_validated() -> None:
    assert maker(("id",), Checked, NONE)([("7",)]) == [Checked(7)]
    with pytest.raises(UsageError, match="greater than 0"):
        maker(("id",), Checked, NONE)([(-1,)])


@attrs.define
class Private:
    _key: UUID
    size: int = attrs.field(converter=int, default=0)


@pytest.mark.parametrize("column", ["key", "_key"])
def test_an_attrs_class_takes_attributes_by_name_or_alias_and_converts_by_itself(column: str) -> None:
    assert maker((column, "size"), Private, NONE)([(str(KEY), "7")]) == [Private(KEY, 7)]


class Partial(TypedDict, total=False):
    id: int
    key: UUID


class Mixed(TypedDict):
    id: int
    key: NotRequired[UUID]


@pytest.mark.parametrize("cls", [Partial, Mixed])
def test_keys_that_are_not_required_need_no_column(cls: Any) -> None:
    assert maker(("id",), cls, NONE)([(1,)]) == [{"id": 1}]
    assert maker(("id", "key", "more"), cls, NONE)([(1, str(KEY), 2)]) == [{"id": 1, "key": KEY}]


@dataclasses.dataclass
class Derived:
    id: int
    name: str = dataclasses.field(init=False)
    suffix: dataclasses.InitVar[UUID]

    def __post_init__(self, suffix: UUID) -> None:
        self.name = f"{self.id}-{suffix.hex}"


def test_what_only_the_constructor_takes_is_a_field_as_well() -> None:
    assert maker(("id", "suffix"), Derived, NONE)([(1, str(KEY))])[0].name == f"1-{KEY.hex}"


UserId = NewType("UserId", UUID)
Item = TypeVar("Item")


class Point(msgspec.Struct):
    x: int
    key: UUID | None = None


CONVERSIONS = [
    (UUID, str(KEY), KEY),
    (UUID, KEY.bytes, KEY),
    (datetime, "2024-02-29 12:00:00", datetime(2024, 2, 29, 12)),
    (datetime, "2024-02-29T12:00:00+00:00", datetime(2024, 2, 29, 12, tzinfo=UTC)),
    (date, "2024-02-29", date(2024, 2, 29)),
    (time, "12:30:00", time(12, 30)),
    (timedelta, "PT90S", timedelta(seconds=90)),
    (time, timedelta(0), time(0)),
    (time, timedelta(hours=24, microseconds=-1), time(23, 59, 59, 999999)),
    (Decimal, "1.50", Decimal("1.50")),
    (Decimal, 2, Decimal(2)),
    (bool, 1, True),
    (bool, 0, False),
    (Color, "red", Color.RED),
    (Level, 2, Level.HIGH),
    (Literal["a", "b"], "b", "b"),
    (UUID | None, str(KEY), KEY),
    (Optional[UUID], str(KEY), KEY),  # noqa: UP045 - the old spelling has to work as well
    (Annotated[UUID, "primary key"], str(KEY), KEY),
    (Annotated[UUID | None, "primary key"], str(KEY), KEY),
    (UserId, str(KEY), KEY),
    (int | UUID, str(KEY), KEY),
    (dict, '{"a": 1}', {"a": 1}),
    (dict[str, UUID], f'{{"a": "{KEY}"}}', {"a": KEY}),
    (dict[str, UUID], {"a": str(KEY)}, {"a": KEY}),
    (list[int], b"[1, 2]", [1, 2]),
    (list[UUID], [str(KEY)], [KEY]),
    (list[UUID] | None, f'["{KEY}"]', [KEY]),
    (tuple[int, str], '[1, "a"]', (1, "a")),
    (set[int], "[1, 1]", {1}),
    (Point, '{"x": 1}', Point(1)),
    (Point | None, {"x": 1, "key": str(KEY)}, Point(1, KEY)),
    (list[Point], '[{"x": 1}]', [Point(1)]),
    (Data, '{"id": 1, "name": "ada"}', Data(1, "ada")),
    (Typed, '{"id": 1, "name": "ada"}', {"id": 1, "name": "ada"}),
    (dict | str, "text", "text"),
    (int, "not looked at", "not looked at"),
    (Any, b"not looked at", b"not looked at"),
    (str | int | None, 1.5, 1.5),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), CONVERSIONS)
def test_a_value_is_converted_to_the_type_of_its_field(annotation: Any, value: Any, expected: Any) -> None:
    cls = dataclasses.make_dataclass("Row", [("value", annotation)])

    (row,) = maker(("value",), cls, NONE)([(value,)])

    assert row.value == expected
    assert type(row.value) is type(expected)


@pytest.mark.parametrize(("annotation", "expected"), [(a, e) for a, _, e in CONVERSIONS])
def test_null_stays_none_and_what_is_of_the_type_stays_equal(annotation: Any, expected: Any) -> None:
    cls = dataclasses.make_dataclass("Row", [("value", annotation)])

    first, second = maker(("value",), cls, NONE)([(None,), (expected,)])

    assert first.value is None
    assert second.value == expected


def test_what_the_driver_delivers_itself_is_not_looked_at() -> None:
    class Row(msgspec.Struct):
        key: UUID
        at: datetime | None

    (row,) = maker(("key", "at"), Row, NATIVES)([("as the driver gave it", 1)])

    assert (row.key, row.at) == ("as the driver gave it", 1)


class Box(msgspec.Struct, Generic[Item]):
    item: Item


def test_a_field_of_an_open_type_takes_anything() -> None:
    assert maker(("item",), Box, NONE)([("a",), (1,)]) == [Box("a"), Box(1)]


def test_an_error_names_the_class_the_field_the_value_and_the_type() -> None:
    @dataclasses.dataclass
    class User:
        id: int
        key: UUID

    with pytest.raises(UsageError, match=r"User\.key: 'no-uuid' cannot become UUID: .*") as refused:
        maker(("id", "key"), User, NONE)([(1, "no-uuid")])
    assert isinstance(refused.value.__cause__, msgspec.ValidationError)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (dict, "{"),
        (dict, "[]"),
        (list[int], '["a"]'),
        (Color, "green"),
        (Literal["a"], "c"),
        (bool, 2),
        (date, object()),
        (UUID | datetime, "x"),
        (complex, "x"),
        (time, timedelta(hours=30)),
        (time | None, timedelta(hours=24)),
        (time, timedelta(hours=-1)),
    ],
)
def test_what_does_not_fit_is_refused(annotation: Any, value: Any) -> None:
    cls = dataclasses.make_dataclass("Row", [("value", annotation)])
    make = maker(("value",), cls, NONE)

    with pytest.raises(UsageError, match=r"Row\.value: "):
        make([(value,)])


def test_a_document_that_cannot_be_made_of_json_is_refused_before_any_row() -> None:
    cls = dataclasses.make_dataclass("Row", [("value", list[int] | set[int])])

    with pytest.raises(UsageError, match=r"Row\.value: .* cannot be made of JSON"):
        maker(("value",), cls, NONE)


@dataclasses.dataclass
class Forward:
    point: "Point | None"
    next: "Forward | None" = None


@dataclasses.dataclass
class Unknown:
    point: "Nowhere"  # noqa: F821 - that is the point


def test_names_in_annotations_are_resolved() -> None:
    assert maker(("point", "next"), Forward, NONE)([('{"x": 1}', '{"point": null}')]) == [
        Forward(Point(1), Forward(None))
    ]


def test_names_that_cannot_be_resolved_are_named() -> None:
    with pytest.raises(UsageError, match=r"annotations of Unknown cannot be resolved \(name 'Nowhere'"):
        maker(("point",), Unknown, NONE)


def test_an_error_of_the_class_itself_is_left_as_it_is() -> None:
    @dataclasses.dataclass
    class Positive:
        id: int

        def __post_init__(self) -> None:
            if self.id < 1:
                raise ValueError("not positive")

    with pytest.raises(ValueError, match="not positive"):
        maker(("id",), Positive, NONE)([(0,)])
