"""One statement on SQLite in memory, in an open transaction: what a session adds to the driver, in microseconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

from contenders import LIBRARIES, MissingError, imported
from measuring import Clock, GarbageError, timed_now
from report import Against, Section, aim, median_over, times_of

__all__ = ["measured"]

WARM, UNSEEN = "A text that was seen before, sqlite3", "A text that was never seen, sqlite3"
SELECT = "SELECT id, name, stock FROM item WHERE id = ? AND stock >= ?"
CREATE = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, stock INTEGER)"
INSERT = "INSERT INTO item VALUES (?, ?, ?)"
ITEMS = [(number, f"item {number}", number) for number in range(100)]
HAND = Against("sqlite3", "by hand")
MOST_WARM, MOST_UNSEEN = 3.0, 30.0  # microseconds over the driver

Texts = list[tuple[int, str]]  # with the number of the row that each looks for
Run = Callable[[Texts], None]


def measured(rounds: int, calls: int, *, clock: Clock) -> Section:
    """So many statements a round, and a fifth as many whose text is new."""
    titles, left_out = {HAND.name: "sqlite3 by hand"}, {}
    blocks = {}
    with ExitStack() as stack:
        runs = {HAND.name: stack.enter_context(by_hand())}
        for one in LIBRARIES:
            try:
                runs[one.name] = stack.enter_context(by_session(imported(one.package, one.module).blocking_session()))
                titles[one.name] = one.title
            except MissingError as error:
                left_out[one.title] = str(error)
        for name, run in runs.items():
            run(warm(len(ITEMS)))
            blocks[WARM, name] = partial(block, run, warm, calls)
            blocks[UNSEEN, name] = partial(block, run, partial(unseen, count()), max(calls // 5, 1))
        times = timed_now(blocks, rounds=rounds, clock=clock)
    over = {what: median_over(what, times, "transept", HAND.name) for what in (WARM, UNSEEN)}
    return Section(
        [times_of(what, times, titles=titles, against=HAND, each="a statement") for what in (WARM, UNSEEN)],
        [
            aim(f"{WARM}: over by hand", over[WARM], MOST_WARM, unit="{:.1f} µs"),
            aim(f"{UNSEEN}: over by hand", over[UNSEEN], MOST_UNSEEN, unit="{:.1f} µs"),
        ],
        left_out,
    )


@contextmanager
def by_hand() -> Iterator[Run]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(CREATE)
    connection.executemany(INSERT, ITEMS)
    connection.execute("BEGIN")
    execute = connection.execute

    def run(texts: Texts) -> None:
        for number, text in texts:
            execute(text, (number, 0)).fetchall()

    right(execute(SELECT, (7, 0)).fetchall(), [ITEMS[7]], "sqlite3")
    yield run
    connection.close()


@contextmanager
def by_session(opened: Any) -> Iterator[Run]:
    with opened as session:
        session.execute(CREATE)
        session.execute_many(INSERT, ITEMS)
        execute = session.execute

        def run(texts: Texts) -> None:
            for number, text in texts:
                execute(text, number, 0)

        expected = [dict(zip(("id", "name", "stock"), ITEMS[7], strict=True))]
        right(session.select(SELECT, 7, 0), expected, type(session).__name__)
        yield run


def right(found: Sequence[Any], expected: Sequence[Any], name: str) -> None:
    if list(found) != expected:
        raise GarbageError(f"{name} answered {found!r}")


def warm(calls: int) -> Texts:
    return [(number % len(ITEMS), SELECT) for number in range(calls)]


def unseen(numbers: Iterator[int], calls: int) -> Texts:
    """Each contender has numbers, and a database, of its own: what one has seen, no other has."""
    found = [next(numbers) for _ in range(calls)]
    return [(number % len(ITEMS), f"{SELECT} AND id <> {number + len(ITEMS)}") for number in found]


def block(run: Run, made: Callable[[int], Texts], calls: int, clock: Clock) -> float:
    texts = made(calls)
    begun = clock()
    run(texts)
    return (clock() - begun) / calls / 1000
