"""Who gets which connection: every order of events, against a list of rules."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from transept.sql.stock import Stock

picks = st.integers(0, 1000)


class Connection:
    """Equal to every other, as a driver's may be: only which one it is counts."""

    def __init__(self, era):
        self.era = era

    def __eq__(self, other):
        return True

    __hash__ = None


class Users(RuleBasedStateMachine):
    """Those who use a stock as a pool does, and remember what each of them was told."""

    @initialize(max_size=st.integers(1, 4), max_idle=st.sampled_from([None, 0, 5]))
    def open(self, max_size, max_idle):
        self.stock = Stock(max_size, max_idle)
        self.max_size, self.max_idle = max_size, max_idle
        self.names = (f"user {number}" for number in itertools.count())
        self.now, self.era = 0.0, 0
        self.asked = {}  # era in which somebody asked who connects or waits
        self.waiting, self.connecting = [], []
        self.out, self.idle, self.doomed, self.closing = [], [], [], []

    def may_connect(self, waiter):
        """What follows when a slot is free: the longest waiter has it, or nobody waited."""
        assert waiter == (self.waiting[0] if self.waiting else None)
        if waiter is not None:
            self.connecting.append(self.waiting.pop(0))

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def somebody_comes(self):
        name = next(self.names)
        connection = self.stock.take(name, self.now)
        if self.idle:
            assert connection is self.idle[-1][0]
            self.out.append(self.idle.pop()[0])
            return
        assert connection is None
        self.asked[name] = self.era
        free = len(self.slots()) < self.max_size
        assert self.stock.ask(name, name, now=self.now) == free
        (self.connecting if free else self.waiting).append(name)

    @rule(size=st.integers(0, 4))
    def the_pool_is_warmed(self, size):
        name = next(self.names)
        free = len(self.slots()) < min(size, self.max_size)
        assert self.stock.reserve(name, min(size, self.max_size), holder=name, now=self.now) == free
        if free:
            self.asked[name] = self.era
            self.connecting.append(name)

    @precondition(lambda self: self.connecting)
    @rule(pick=picks)
    def a_connect_succeeds(self, pick):
        name = self.connecting.pop(pick % len(self.connecting))
        connection = Connection(self.asked[name])
        self.stock.connected(name, connection)
        self.out.append(connection)

    @precondition(lambda self: self.connecting)
    @rule(pick=picks)
    def a_connect_fails(self, pick):
        self.may_connect(self.stock.failed(self.connecting.pop(pick % len(self.connecting)), self.now))

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def a_waiter_leaves(self, pick):
        self.stock.leave(self.waiting.pop(pick % len(self.waiting)))

    @precondition(lambda self: self.out)
    @rule(pick=picks)
    def a_connection_is_given_back(self, pick):
        connection = self.out.pop(pick % len(self.out))
        waiter = self.stock.give_back(connection, self.now)
        if connection.era < self.era:
            assert waiter is None
            self.doomed.append(connection)
        elif self.waiting:
            assert waiter == self.waiting.pop(0)
            self.out.append(connection)
        else:
            assert waiter is None
            self.idle.append((connection, self.now))

    @precondition(lambda self: self.out)
    @rule(pick=picks)
    def a_connection_is_dropped(self, pick):
        self.may_connect(self.stock.drop(self.out.pop(pick % len(self.out)), self.now))

    @precondition(lambda self: self.idle or self.doomed or self.closing)
    @rule()
    def what_nobody_has_cannot_be_given_back(self):
        for connection in [*(one for one, _ in self.idle), *self.doomed, *self.closing, Connection(self.era)]:
            for give_up in (self.stock.give_back, self.stock.drop):
                with pytest.raises(RuntimeError, match="is not in use"):
                    give_up(connection, self.now)

    @rule()
    def idle_ones_expire(self):
        self.stock.expire(self.now)
        if self.max_idle is not None:
            self.doomed += [one for one, since in self.idle if self.now - since > self.max_idle]
            self.idle = [(one, since) for one, since in self.idle if self.now - since <= self.max_idle]

    @rule()
    def the_pool_closes(self):
        self.stock.close()
        self.era += 1
        self.doomed += [one for one, _ in self.idle]
        self.idle = []

    @rule()
    def a_doomed_one_begins_to_close(self):
        connection = self.stock.to_close()
        assert (connection is None) == (not self.doomed)
        if connection is not None:
            index = next(index for index, one in enumerate(self.doomed) if one is connection)
            self.closing.append(self.doomed.pop(index))

    @precondition(lambda self: self.closing)
    @rule()
    def a_doomed_one_is_closed(self):
        self.closing.pop()
        self.may_connect(self.stock.closed(self.now))

    def slots(self):
        return [*self.out, *self.idle, *self.connecting, *self.doomed, *self.closing]

    @invariant()
    def no_more_slots_are_used_than_there_are_and_nobody_waits_without_need(self):
        assert self.stock.size == len(self.slots()) <= self.max_size
        assert (self.stock.in_use, self.stock.idle, self.stock.waiting) == (
            *map(len, (self.out, self.idle)),
            len(self.waiting),
        )
        assert not self.waiting or (not self.idle and len(self.slots()) == self.max_size)
        assert len(self.stock.holders(self.now)) == len(self.out) + len(self.connecting)

    def teardown(self):
        """When all have finished after a close, no connection is left."""
        if not hasattr(self, "stock"):
            return
        self.the_pool_closes()
        while self.slots() or self.waiting:
            assert self.slots(), f"{self.waiting} wait for nobody"
            while self.connecting:
                self.a_connect_succeeds(0)
            while self.out:
                self.a_connection_is_given_back(0)
            while self.doomed:
                self.a_doomed_one_begins_to_close()
            while self.closing:
                self.a_doomed_one_is_closed()
        assert self.stock.size == 0


TestEveryOrderOfEvents = Users.TestCase


def test_holders_are_named_with_the_seconds_since_when_and_the_longest_comes_first():
    stock = Stock(3)
    assert stock.ask("a", "GET /a", now=1.0)
    assert stock.ask("b", "GET /b", now=2.0)
    stock.connected("b", Connection(0))
    stock.connected("a", first := Connection(0))
    assert stock.ask("c", "GET /c", now=3.0)
    assert stock.holders(4.0) == [("GET /a", 3.0), ("GET /b", 2.0), ("GET /c", 1.0)]
    assert not stock.ask("d", "GET /d", now=4.0)
    assert stock.give_back(first, 5.0) == "d"
    assert stock.holders(5.0) == [("GET /b", 3.0), ("GET /c", 2.0), ("GET /d", 0.0)]


def test_the_connection_used_last_is_taken_first_and_those_idle_for_too_long_are_doomed():
    stock = Stock(3, max_idle=5)
    connections = {name: Connection(0) for name in "abc"}
    for name, connection in connections.items():
        assert stock.ask(name, name, now=0.0)
        stock.connected(name, connection)
    for now, connection in enumerate(connections.values()):
        stock.give_back(connection, now)
    stock.expire(6.0)
    assert stock.to_close() is connections["a"]
    assert stock.to_close() is None
    assert stock.take("d", 6.0) is connections["c"]
    assert stock.take("e", 6.0) is connections["b"]
