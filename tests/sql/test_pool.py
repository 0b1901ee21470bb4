"""The small pools: never too many connections, none lost, and whoever waited longest is served first."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest

from transept.errors import ImproperConfigurationError, PoolBusyOnLoop, PoolTimeout
from transept.sql.pool import AsyncPool, PoolSettings, ThreadPool

EACH_CANCELLATION = pytest.mark.parametrize("how", ["task.cancel", "asyncio.timeout", "anyio.CancelScope"])


class Server:
    """Real connections to one file, counted. `failures` says how many connects fail next; `pause` is awaited first."""

    def __init__(self, path, pause=0.0):
        self.path, self.pause = path, pause
        self.failures = 0
        self.alive = set()
        self.peak = self.made = 0
        self.lock = threading.Lock()

    def connect(self):
        with self.lock:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("no")
            connection = sqlite3.connect(self.path, check_same_thread=False)
            self.made += 1
            self.alive.add(connection)
            self.peak = max(self.peak, len(self.alive))
        return connection

    def close(self, connection):
        connection.close()
        with self.lock:
            self.alive.remove(connection)

    async def aconnect(self):
        await asyncio.sleep(self.pause)
        return self.connect()

    async def aclose(self, connection):
        await asyncio.sleep(0)
        self.close(connection)

    def pool(self, kind, max_size=2, **settings):
        settings = PoolSettings("main", max_size, **settings)
        if kind is AsyncPool:
            return AsyncPool(self.aconnect, self.aclose, settings)
        return ThreadPool(self.connect, self.close, settings)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "test.db")
    yield server
    for connection in list(server.alive):
        server.close(connection)


async def ticks(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    with anyio.fail_after(5):
        while not condition():
            await asyncio.sleep(0.001)


def poll(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# One event loop


@pytest.mark.anyio
async def test_two_hundred_tasks_share_five_connections_in_the_order_in_which_they_came(server):
    pool, order = server.pool(AsyncPool, 5), []

    async def work(number):
        connection = await pool.acquire(f"task {number}")
        order.append(number)
        await asyncio.sleep(0)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        pool.release(connection)

    await asyncio.gather(*map(work, range(200)))
    assert order == list(range(200))
    assert (server.made, server.peak, pool.size, pool.idle, pool.in_use) == (5, 5, 5, 5, 0)


@pytest.mark.anyio
async def test_the_connection_used_last_is_used_next(server):
    pool = server.pool(AsyncPool)
    first, second = await pool.acquire("a"), await pool.acquire("b")
    pool.release(first)
    pool.release(second)
    assert await pool.acquire("c") is second


@pytest.mark.anyio
async def test_who_waits_in_vain_learns_who_holds_the_connections_and_since_when(server):
    pool = server.pool(AsyncPool, 2, timeout=0.05)
    await pool.acquire("POST /users")
    await asyncio.sleep(0.02)
    last = await pool.acquire("GET /report")
    with pytest.raises(PoolTimeout, match=r"held by POST /users \(for 0\.\d s\), GET /report") as raised:
        await pool.acquire("GET /")
    assert (raised.value.database, raised.value.seconds) == ("main", 0.05)
    assert [who for who, _ in raised.value.holders] == ["POST /users", "GET /report"]
    assert raised.value.holders[0][1] >= 0.065
    pool.release(last)
    assert await pool.acquire("GET /") is last


@pytest.mark.anyio
async def test_a_connection_that_comes_in_the_moment_when_the_time_is_up_is_used(server):
    pool = server.pool(AsyncPool, 1, timeout=0.01)
    connection = await pool.acquire("a")
    waiter = asyncio.create_task(pool.acquire("b"))
    await ticks(2)
    time.sleep(0.02)  # noqa: ASYNC251 - the timer is due, and has not run
    pool.release(connection)
    assert await waiter is connection


async def acquire_unless_cancelled(pool, how, cancel, got):
    """Waits for a connection; once `cancel` is set, its own deadline or scope or task ends that at once."""

    async def take():
        got.append(await pool.acquire("the cancelled one"))

    if how == "asyncio.timeout":
        try:
            async with asyncio.timeout(None) as limit:
                cancel.append(lambda: limit.reschedule(asyncio.get_running_loop().time() - 1))
                await take()
        except TimeoutError:
            pass
    elif how == "anyio.CancelScope":
        with anyio.CancelScope() as scope:
            cancel.append(scope.cancel)
            await take()
    else:
        cancel.append(asyncio.current_task().cancel)
        await take()


@pytest.mark.anyio
@pytest.mark.parametrize("tick", range(9))
@pytest.mark.parametrize("end", ["release", "discard"])
@EACH_CANCELLATION
async def test_a_waiter_cancelled_at_any_moment_keeps_nothing_from_the_next(server, how, end, tick):
    pool, got, cancel = server.pool(AsyncPool, 1), [], []
    connection = await pool.acquire("the first")
    victim = asyncio.create_task(acquire_unless_cancelled(pool, how, cancel, got))
    following = [asyncio.create_task(pool.acquire(name)) for name in ("next", "last")]
    await ticks(2)
    for now in range(12):  # the first ticks cancel before, the later ones after the victim has been served
        if now == tick and not victim.done():
            cancel[0]()
        if now == 3 and end == "release":
            pool.release(connection)
        elif now == 3:
            server.close(connection)
            pool.discard(connection)
        await asyncio.sleep(0)
    await asyncio.wait({victim})
    for taken in got:
        pool.release(taken)
    for task in following:
        async with asyncio.timeout(1):
            pool.release(await task)
    assert (server.peak, pool.size, pool.idle, len(server.alive)) == (1, 1, 1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("order", ["cancelled, then served", "served, then cancelled"])
@EACH_CANCELLATION
async def test_a_connection_handed_to_a_waiter_in_the_moment_of_its_cancellation_goes_to_the_next(server, how, order):
    pool, got, cancel = server.pool(AsyncPool, 1), [], []
    connection = await pool.acquire("the first")
    victim = asyncio.create_task(acquire_unless_cancelled(pool, how, cancel, got))
    following = asyncio.create_task(pool.acquire("next"))
    await ticks(3)
    steps = [cancel[0], lambda: pool.release(connection)]
    for step in steps if order == "cancelled, then served" else reversed(steps):
        step()
    await asyncio.wait({victim})
    for taken in got:
        pool.release(taken)
    async with asyncio.timeout(1):
        assert await following is connection


@pytest.mark.anyio
async def test_a_connect_that_fails_frees_the_slot_for_the_next(server):
    pool = server.pool(AsyncPool, 1)
    server.failures, server.pause = 2, 0.001
    results = await asyncio.gather(*(pool.acquire(name) for name in "abc"), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["ConnectionError", "ConnectionError", "Connection"]
    assert (pool.size, pool.in_use) == (1, 1)


@pytest.mark.anyio
@EACH_CANCELLATION
async def test_a_connect_that_is_cancelled_frees_the_slot_for_the_next(server, how):
    pool, cancel = server.pool(AsyncPool, 1), []
    server.pause = 3600
    victim = asyncio.create_task(acquire_unless_cancelled(pool, how, cancel, []))
    await ticks(2)
    server.pause = 0
    following = asyncio.create_task(pool.acquire("next"))
    await ticks(3)
    assert not following.done()
    cancel[0]()
    async with asyncio.timeout(1):
        pool.release(await following)
    await asyncio.wait({victim})
    assert (pool.size, pool.idle) == (1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_when_connects_fail_and_waiters_leave_in_any_order(server, seed):
    chance, pool = random.Random(seed), server.pool(AsyncPool, 3, timeout=0.004, max_idle=0.002)
    held = 0

    async def use():
        nonlocal held
        connection = await pool.acquire("a task")
        held += 1
        assert held <= 3
        try:
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.003]))
        finally:
            held -= 1
            if chance.random() < 0.3:
                server.close(connection)
                pool.discard(connection)
            else:
                pool.release(connection)

    async def user():
        await asyncio.sleep(chance.random() * 0.05)
        server.failures += chance.random() < 0.1
        server.pause = chance.choice([0, 0, 0.002])
        how, seconds = chance.randrange(4), chance.random() * 0.006
        if how == 0:
            async with asyncio.timeout(seconds):
                await use()
        elif how == 1:
            with anyio.move_on_after(seconds):
                await use()
        else:
            await use()

    tasks = [asyncio.create_task(user()) for _ in range(200)]
    for task in chance.sample(tasks, 50):
        await asyncio.sleep(chance.choice([0, 0.001]))
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, (type(None), ConnectionError, PoolTimeout, TimeoutError, asyncio.CancelledError))
    await until(lambda: pool.size == pool.idle == len(server.alive))
    assert server.peak <= 3
    server.failures = 0
    async with asyncio.timeout(1):
        assert len({await pool.acquire("at last") for _ in range(3)}) == 3


@pytest.mark.anyio
async def test_a_close_ends_idle_connections_now_and_those_in_use_when_they_come_back(server):
    pool = server.pool(AsyncPool, 2)
    used, idle = await pool.acquire("a"), await pool.acquire("b")
    pool.release(idle)
    await pool.close()
    assert server.alive == {used}
    assert used.execute("SELECT 1").fetchone() == (1,)
    pool.release(used)
    await pool.close()
    assert (server.alive, pool.size) == (set(), 0)
    pool.release(await pool.acquire("a later one"))
    assert (pool.idle, len(server.alive)) == (1, 1)


@pytest.mark.anyio
async def test_connections_from_before_a_close_count_until_they_are_closed(server):
    pool = server.pool(AsyncPool, 1)
    used = await pool.acquire("before")
    await pool.close()
    later = asyncio.create_task(pool.acquire("after"))
    await ticks()
    assert not later.done()
    pool.release(used)
    assert await later is not used
    assert (server.peak, pool.size) == (1, 1)


@pytest.mark.anyio
async def test_nothing_stays_open_of_those_who_waited_or_connected_while_the_pool_closed(server):
    pool = server.pool(AsyncPool, 2)
    server.pause = 0.001

    async def use():
        connection = await pool.acquire("a")
        await asyncio.sleep(0.001)
        pool.release(connection)

    tasks = [asyncio.create_task(use()) for _ in range(6)]
    await ticks(3)
    await pool.close()
    await asyncio.gather(*tasks)
    await until(lambda: pool.size == 0)
    assert (server.alive, server.peak) == (set(), 2)


def test_a_connection_given_back_last_thing_after_a_close_is_closed_before_the_loop_ends(server):
    async def main():
        pool = server.pool(AsyncPool)
        connection = await pool.acquire("a")
        await pool.close()
        pool.release(connection)

    asyncio.run(main())
    assert server.alive == set()


@pytest.mark.anyio
async def test_a_close_that_is_cancelled_closes_all_the_same(server):
    pool = server.pool(AsyncPool, 2)
    await pool.warm(2)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    await until(lambda: not server.alive)
    assert pool.size == 0


@pytest.mark.anyio
async def test_a_connection_that_was_idle_for_too_long_is_closed_and_not_used(server):
    pool = server.pool(AsyncPool, 2, max_idle=0.02)
    await pool.warm(2)
    stale = set(server.alive)
    await asyncio.sleep(0.03)
    assert await pool.acquire("a") not in stale
    await until(lambda: len(server.alive) == 1)
    assert server.peak == 2


@pytest.mark.anyio
async def test_a_connection_that_cannot_be_closed_is_logged_and_gone(server, caplog):
    async def refuse(connection):
        server.close(connection)
        raise OSError("no")

    pool = AsyncPool(server.aconnect, refuse, PoolSettings("main", 1))
    await pool.warm(1)
    await pool.close()
    assert pool.size == 0
    assert [record.getMessage() for record in caplog.records] == ["a connection to 'main' could not be closed"]


@pytest.mark.anyio
async def test_warming_connects_up_to_the_size_and_not_above(server):
    pool = server.pool(AsyncPool, 3)
    await pool.warm(2)
    await pool.warm(1)
    assert (pool.idle, server.made) == (2, 2)
    await pool.warm(4)
    assert (pool.idle, server.made) == (3, 3)


# Both


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [AsyncPool, ThreadPool])
async def test_a_connection_is_given_back_once_to_the_pool_it_is_from(server, kind):
    pool = server.pool(kind)
    connection = pool.acquire("a")
    connection = connection if kind is ThreadPool else await connection
    pool.release(connection)
    with server.pool(ThreadPool)._connect() as foreign:
        for wrong in (connection, foreign):
            for give_up in (pool.release, pool.discard):
                with pytest.raises(RuntimeError, match="is not in use"):
                    give_up(wrong)
    assert (pool.size, pool.idle) == (1, 1)


@pytest.mark.parametrize(
    ("setting", "values", "allowed"),
    [
        ("max_size", [0, -1, "3", 2.5, True, None], "a whole number, 1 or more"),
        ("min_size", [-1, 6, "2", 0.5, False, None], "at least 0 and at most max_size=5"),
        ("timeout", [-1, float("nan"), "1", None, True], "seconds are needed, 0 or more"),
        ("max_idle", [-0.1, "x", True, float("nan")], "seconds are needed, 0 or more, or None"),
    ],
)
def test_wrong_settings_are_refused_by_name(setting, values, allowed):
    for value in values:
        said = f"MyConfig: pool_config: {setting}={value!r}: "
        with pytest.raises(ImproperConfigurationError, match=f"^{said}.*{allowed}"):
            PoolSettings("main", **{setting: value}, owner="MyConfig: pool_config")


def test_a_setting_is_refused_by_the_name_that_it_was_given():
    spellings = {"max_idle": "pool_recycle", "max_size": "maxsize", "min_size": "minsize"}
    for wrong, said in (({"max_idle": "x"}, "pool_recycle='x'"), ({"min_size": 6}, r"minsize=6: .* maxsize=5")):
        with pytest.raises(ImproperConfigurationError, match=said):
            PoolSettings("main", **wrong, spellings=spellings)


# Threads


def test_fifty_threads_hammer_three_connections_and_nothing_is_lost(server):
    pool = server.pool(ThreadPool, 3, timeout=0.02, max_idle=0.0005)
    held, stop = [], time.monotonic() + 1.5

    def user(seed):
        chance, done = random.Random(seed), 0
        while time.monotonic() < stop:
            if chance.random() < 0.02:
                server.failures = 1
            try:
                connection = pool.acquire(f"thread {seed}")
            except (ConnectionError, PoolTimeout):
                continue
            held.append(connection)
            assert len(held) <= 3
            if chance.random() < 0.05:
                time.sleep(0.002)
            assert connection.execute("SELECT 1").fetchone() == (1,)
            held.remove(connection)
            done += 1
            if chance.random() < 0.1:
                server.close(connection)
                pool.discard(connection)
            else:
                pool.release(connection)
            if chance.random() < 0.01:
                pool.close()
        return done

    with ThreadPoolExecutor(50) as threads:
        assert sum(threads.map(user, range(50))) > 100
    assert server.peak <= 3
    assert pool.size == pool.idle == len(server.alive)
    pool.close()
    assert server.alive == set()


def test_threads_are_served_in_the_order_in_which_they_came(server):
    pool, order = server.pool(ThreadPool, 1), []
    connection = pool.acquire("the first")

    def work(number):
        taken = pool.acquire(f"thread {number}")
        order.append(number)
        pool.release(taken)

    with ThreadPoolExecutor(10) as threads:
        for number in range(10):
            threads.submit(work, number)
            poll(lambda count=number + 1: pool._stock.waiting == count)
        pool.release(connection)
    assert order == list(range(10))


def test_a_thread_that_waits_in_vain_learns_who_holds_the_connections(server):
    pool = server.pool(ThreadPool, 1, timeout=0.01)
    connection = pool.acquire("POST /users")
    with pytest.raises(PoolTimeout, match="held by POST /users"):
        pool.acquire("GET /")
    pool.release(connection)
    assert pool.acquire("GET /") is connection


@pytest.mark.anyio
async def test_on_an_event_loops_thread_nothing_waits(server):
    pool = server.pool(ThreadPool, 1, timeout=3600)
    connection = pool.acquire("a")
    with pytest.raises(PoolBusyOnLoop) as raised:
        pool.acquire("b")
    assert raised.value.in_use == 1
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, lambda: pool.release(pool.acquire("a worker thread")))
        await until(lambda: pool._stock.waiting == 1)
        pool.release(connection)
    assert pool.acquire("b") is connection


@pytest.mark.anyio
async def test_stale_connections_are_in_nobodys_way_on_an_event_loops_thread(server):
    pool = server.pool(ThreadPool, 1, max_idle=0.01)
    pool.warm(1)
    (stale,) = server.alive
    await asyncio.sleep(0.02)
    assert pool.acquire("a") is not stale
    assert server.peak == 1


def test_while_one_thread_connects_others_use_the_pool(server):
    pool, gate = server.pool(ThreadPool, 2), threading.Event()
    pool.warm(1)
    first = pool.acquire("a")

    def slowly():
        assert gate.wait(5)
        return server.connect()

    pool._connect = slowly
    with ThreadPoolExecutor(1) as threads:
        connecting = threads.submit(pool.acquire, "b")
        poll(lambda: pool.size == 2)
        pool.release(first)
        assert pool.acquire("c") is first
        gate.set()
        assert connecting.result() is not first


def test_a_connect_that_fails_in_one_thread_lets_the_next_connect(server):
    pool, gate = server.pool(ThreadPool, 1), threading.Event()

    def fail_first():
        pool._connect = server.connect
        assert gate.wait(5)
        raise ConnectionError("no")

    pool._connect = fail_first
    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(pool.acquire, "a")
        poll(lambda: pool.size == 1)
        following = threads.submit(pool.acquire, "b")
        poll(lambda: pool._stock.waiting == 1)
        gate.set()
        assert isinstance(failing.exception(), ConnectionError)
        pool.release(following.result(5))
    assert (pool.size, pool.idle) == (1, 1)


def test_a_connection_in_use_during_a_close_is_closed_by_who_gives_it_back(server):
    pool = server.pool(ThreadPool, 2)
    used, idle = pool.acquire("a"), pool.acquire("b")
    pool.release(idle)
    pool.close()
    assert server.alive == {used}
    pool.release(used)
    assert (server.alive, pool.size) == (set(), 0)
    pool.release(pool.acquire("a later one"))
    assert pool.idle == 1


class Interrupted(BaseException):
    pass


def test_a_wait_that_a_signal_interrupts_leaves_the_queue(server):
    pool = server.pool(ThreadPool, 1)
    connection = pool.acquire("a")

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(Interrupted):
            pool.acquire("b")
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert pool._stock.waiting == 0
    pool.release(connection)
    assert pool.acquire("c") is connection
