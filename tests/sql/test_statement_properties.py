"""Whatever stands around the placeholders, exactly they are replaced, and nothing else changes."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from transept.errors import ParameterError
from transept.sql.kinds import kind_of
from transept.sql.statement import Notation, forgotten, render, render_many
from transept.sql.tokens import split

DIALECTS = ("postgresql", "mysql", "sqlite")
STYLES = ("qmark", "numeric", "format")
WRITTEN = {"qmark": "?", "numeric": "${}", "format": "%s"}
inside = st.text(st.sampled_from("ab ?$:%@1s(),;-/*#\n[]"), max_size=12)


def quoted(quote: str):
    return inside.map(lambda text: quote + text.replace(quote, quote * 2) + quote)


def comments(begin: str, end: str):
    return inside.map(lambda text: begin + text.replace("/*", "").replace("*/", "").replace("\n", "").strip("*/") + end)


PLAIN = st.sampled_from(
    ["SELECT a", "b::int", "c := d", "e->'f'", "g - h", "(i)", "j[1:2]", "k <> l", "m / n", ";", ", "]
)
FRAGMENTS = {
    "postgresql": st.one_of(
        PLAIN,
        quoted("'"),
        quoted('"'),
        st.sampled_from(
            ["E'\\' ? :a $1 %s'", "$$ ? ' :a $1 $$", "$t$ $$ ? :a $1 $t$", "a ?| b", "a @? b", "/* /* ? */ :a */"]
        ),
        comments("--", "\n"),
        comments("/*", "*/"),
    ),
    "mysql": st.one_of(
        PLAIN,
        quoted("'"),
        quoted('"'),
        quoted("`"),
        st.sampled_from(["'\\' ? :a %s'", "@@x", "1--1"]),
        comments("-- ", "\n"),
        comments("#", "\n"),
        comments("/* ", "*/"),
    ),
    "sqlite": st.one_of(
        PLAIN,
        quoted("'"),
        quoted('"'),
        quoted("`"),
        inside.map(lambda text: f"[{text.replace(']', '')}]"),
        comments("--", "\n"),
        comments("/*", "*/"),
    ),
}


@st.composite
def written(draw, mark):
    """A dialect, a style of output, and the fragments around the placeholders, each of which `mark(number)` writes."""
    dialect = draw(st.sampled_from(DIALECTS))
    fragments = draw(st.lists(st.lists(FRAGMENTS[dialect], max_size=3).map(" ".join), min_size=2, max_size=5))
    return dialect, draw(st.sampled_from(STYLES)), fragments, _join(fragments, mark)


def _join(fragments, mark):
    text = fragments[0]
    for number, fragment in enumerate(fragments[1:], 1):
        text += f" {mark(number)} {fragment}"
    return text


def expected(fragments, out, percent_signs_are_doubled=False):
    if percent_signs_are_doubled:
        fragments = [fragment.replace("%%", "%") for fragment in fragments]
    if out == "format":
        fragments = [fragment.replace("%", "%%") for fragment in fragments]
    return _join(fragments, lambda number: WRITTEN[out].format(number))


@given(written(lambda _: "?"))
def test_question_marks_are_replaced_and_nothing_else(drawn):
    dialect, out, fragments, sql = drawn
    values = list(range(len(fragments) - 1))
    assert render(sql, values, Notation(dialect, "qmark", out)) == (expected(fragments, out), values)


@given(written(lambda number: f"${number}"))
def test_numbers_are_replaced_and_nothing_else(drawn):
    dialect, out, fragments, sql = drawn
    values = list(range(len(fragments) - 1))
    assert render(sql, values, Notation(dialect, "numeric", out)) == (expected(fragments, out), values)


@given(written(lambda _: "%s"))
def test_percent_s_is_replaced_and_nothing_else(drawn):
    dialect, out, fragments, sql = drawn
    values = list(range(len(fragments) - 1))
    own = render(sql, values, Notation(dialect, "format", out))
    assert own == (expected(fragments, out, percent_signs_are_doubled=True), values)


@given(written(lambda number: f":n{number}"))
def test_names_are_replaced_and_nothing_else(drawn):
    dialect, out, fragments, sql = drawn
    values = list(range(len(fragments) - 1))
    named = {f"n{number}": number - 1 for number in range(len(values), 0, -1)}
    assert render(sql, named, Notation(dialect, "qmark", out)) == (expected(fragments, out), values)


texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.one_of(*FRAGMENTS.values(), st.sampled_from("?'\"$%:@`[/*-;()")), max_size=8).map("".join),
)
value = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
arguments = st.one_of(st.lists(value, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "s", ""]), value))
notations = st.builds(Notation, st.sampled_from(DIALECTS), st.sampled_from(STYLES), st.sampled_from(STYLES))


def outcome(sql, given_arguments, notation):
    try:
        return render(sql, given_arguments, notation)
    except ParameterError as error:
        return str(error)


@given(texts, arguments, notations)
def test_any_text_is_rendered_or_refused_and_each_time_alike(sql, given_arguments, notation):
    first = outcome(sql, given_arguments, notation)
    assert outcome(sql, given_arguments, notation) == first
    if not isinstance(first, str):
        assert render_many(sql, [given_arguments] * 2, notation) == (first[0], [first[1]] * 2)


@given(texts, st.sampled_from(DIALECTS))
def test_any_text_has_a_kind_and_is_split(sql, dialect):
    assert kind_of(sql, dialect) == kind_of(sql, dialect)
    statements = split(sql, dialect)
    assert kind_of(sql, dialect).several == (len(statements) > 1)
    assert all(statement in sql for statement in statements)
    assert statements or not kind_of(sql, dialect).verb
    assert "placeholders" in (forgotten(sql, dialect) or "placeholders")


@given(
    st.lists(
        st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(codec="utf-8"))), min_size=1, max_size=6
    ),
    st.randoms(),
)
def test_sqlite_gives_the_values_back_in_their_order(values, random):
    numbers = [*range(1, len(values) + 1), *random.choices(range(1, len(values) + 1), k=3)]
    random.shuffle(numbers)
    wanted = tuple(values[number - 1] for number in numbers)
    named = {f"n{number}": value for number, value in enumerate(values, 1)}
    notation = Notation("sqlite", "qmark", "qmark")
    with closing(sqlite3.connect(":memory:")) as connection:
        for mark, given_arguments in (("$", values), (":", values), (":n", named), ("@n", named)):
            sql = "SELECT " + ", ".join(f"{mark}{number}" for number in numbers)
            assert connection.execute(*render(sql, given_arguments, notation)).fetchone() == wanted
