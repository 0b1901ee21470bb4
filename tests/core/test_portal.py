"""The background loop: one, made at first use, never waited for longer than was said."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from contextvars import ContextVar, copy_context

import pytest

from transept import LoopTimeout, UsageError
from transept._portal import Bridge, Portal

VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


def loops():
    return [thread for thread in threading.enumerate() if thread.name == "transept-loop"]


@pytest.fixture
def portal():
    made = Portal()
    yield made
    made.stop()
    assert loops() == []


async def give(value):
    await asyncio.sleep(0)
    return value


async def forever():
    await asyncio.Event().wait()


def waiting(portal, work, **options):
    """A thread that waits for this; what it got is in the list."""
    got = []

    def wait():
        try:
            got.append(portal.run(work, **{"seconds": 10, **options}))
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, got


def test_there_is_no_loop_before_it_is_used(portal):
    assert (portal.loop, loops()) == (None, [])
    assert portal.run(give(1), 5) == 1
    assert len(loops()) == 1
    assert portal.loop is not None


def test_one_loop_for_threads_that_come_at_once(portal):
    together = threading.Barrier(16)
    seen = []

    async def where():
        return asyncio.get_running_loop()

    def come():
        together.wait()
        seen.append(portal.run(where(), 5))

    threads = [threading.Thread(target=come) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(seen), len(set(seen)), len(loops())) == (16, 1, 1)


def test_many_threads_wait_at_the_same_time(portal):
    met = asyncio.Barrier(32)

    async def meet(n):
        await met.wait()
        return n

    waits = [waiting(portal, meet(n)) for n in range(32)]
    for thread, _ in waits:
        thread.join()
    assert [got for _, got in waits] == [[n] for n in range(32)]


def test_errors_come_as_they_are(portal):
    error = LookupError("mine")

    async def fail():
        raise error

    with pytest.raises(LookupError) as caught:
        portal.run(fail(), 5)
    assert caught.value is error
    assert "fail" in [entry.name for entry in caught.traceback]


def test_a_timeout_of_the_works_own_is_not_the_loops(portal):
    async def fail():
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine") as caught:
        portal.run(fail(), 5)
    assert type(caught.value) is TimeoutError


def test_a_cancellation_of_the_works_own_is_an_error_and_not_a_cancellation_of_the_thread(portal):
    async def fail():
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="was cancelled"):
        portal.run(fail(), 5)


def test_context_variables_go_there_and_can_be_had_back(portal):
    async def note():
        seen = VARIABLE.get()
        VARIABLE.set("there")
        return seen

    token = VARIABLE.set("here")
    try:
        assert portal.run(note(), 5) == "here"
        assert VARIABLE.get() == "here"
        context = copy_context()
        assert portal.run(note(), 5, context=context) == "here"
        assert context[VARIABLE] == "there"
    finally:
        VARIABLE.reset(token)


def test_waiting_ends_in_time_and_says_for_what_it_waited(portal):
    ended = threading.Event()

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(LoopTimeout, match=r"no answer from the lock within 0\.05 s.*Look at what it was") as caught:
        portal.run(wait(), 0.05, "the lock")
    assert ended.is_set()
    assert (caught.value.what, caught.value.seconds, caught.value.held_at) == ("the lock", 0.05, None)
    assert portal.run(give(1), 5) == 1


def test_a_loop_that_is_held_is_told_with_the_line(portal, monkeypatch):
    monkeypatch.setattr("transept._portal.CANCEL_SECONDS", 0.05)
    entered, leave = threading.Event(), threading.Event()

    async def hold():
        entered.set()
        leave.wait(10)

    thread, got = waiting(portal, hold())
    entered.wait()
    with pytest.raises(LoopTimeout, match=r"The loop is held at .*test_portal\.py:\d+ in .*hold") as caught:
        portal.run(give(1), 0.05)
    assert str(hold.__code__.co_firstlineno + 2) in caught.value.held_at
    leave.set()
    thread.join()
    assert got == [None]
    assert portal.run(give(1), 5) == 1


def test_what_was_given_up_before_it_began_leaves_no_warning(portal, monkeypatch):
    monkeypatch.setattr("transept._portal.CANCEL_SECONDS", 0.05)
    entered, leave = threading.Event(), threading.Event()

    async def hold():
        entered.set()
        leave.wait(10)

    thread, _ = waiting(portal, hold())
    entered.wait()
    with pytest.raises(LoopTimeout):
        portal.run(give(1), 0.05)
    leave.set()
    thread.join()
    portal.run(give(1), 5)
    gc.collect()


def test_the_loop_does_not_wait_for_itself(portal):
    async def ask():
        portal.run(give(1), 5, "database 'x'")

    with pytest.raises(UsageError, match=r"wait for itself .database 'x'.*await it"):
        portal.run(ask(), 5)


def test_ctrl_c_ends_the_wait_and_the_work(portal):
    ended = threading.Event()

    async def work():
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        portal.run(work(), 30)
    assert ended.is_set()
    assert portal.run(give(1), 5) == 1


def test_stopping_tells_those_who_wait(portal):
    begun = threading.Event()

    async def work():
        begun.set()
        await asyncio.Event().wait()

    thread, got = waiting(portal, work())
    begun.wait()
    portal.stop()
    thread.join()
    assert isinstance(got[0], RuntimeError)
    assert "background loop" in str(got[0])
    assert loops() == []


def test_what_is_sent_while_it_stops_is_done_or_told(portal):
    """By the loop that stops, or by the next one; nobody waits for a loop that is gone."""
    got = []

    def come():
        for n in range(50):
            try:
                got.append(portal.run(give(n), 5) == n)
            except RuntimeError as error:
                got.append("background loop" in str(error))

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        portal.stop()
    for thread in threads:
        thread.join()
    assert got == [True] * 200


def test_it_is_made_again_after_a_stop(portal):
    portal.run(give(1), 5)
    first = portal.loop
    portal.stop()
    assert first.is_closed()
    assert portal.run(give(2), 5) == 2
    assert portal.loop is not first


def test_stopping_unless_used_disturbs_nobody(portal):
    begun, go_on = threading.Event(), threading.Event()

    async def work():
        begun.set()
        await asyncio.to_thread(go_on.wait)
        return 1

    thread, got = waiting(portal, work())
    begun.wait()
    portal.stop(unless_used=True)
    go_on.set()
    thread.join()
    assert got == [1]
    portal.stop(unless_used=True)
    assert loops() == []


def test_stopping_what_never_ran_is_nothing(portal):
    portal.stop()
    portal.stop()
    assert portal.loop is None


def test_stopped_on_the_loop_itself(portal):
    async def stop():
        portal.stop()

    portal.start()
    (thread,) = loops()
    with pytest.raises(RuntimeError, match="background loop"):
        portal.run(then_forever(stop()), 5)
    thread.join()


async def then_forever(work):
    await work
    await forever()


def test_what_nobody_waits_for_is_logged_when_it_fails(portal, caplog):
    async def fail():
        raise LookupError("left")

    portal.leave(fail(), "the work")
    portal.run(give(1), 5)
    assert "the work failed, and nobody waited for it" in caplog.text
    assert "left" in caplog.text


def test_a_bridge_waits_as_long_as_its_app_allows(portal):
    with pytest.raises(LoopTimeout):
        Bridge(0.05, portal).run(forever())
    assert Bridge(5, portal).run(give(1)) == 1


def test_a_bridge_is_needed_everywhere_but_on_the_loop(portal):
    bridge = Bridge(5, portal)

    async def there():
        return bridge.needed()

    assert bridge.needed()
    assert bridge.run(there()) is False
    assert asyncio.run(there()) is True


def test_many_timeouts_at_once_leave_the_loop_well(portal):
    waits = [waiting(portal, forever(), seconds=0.05) for _ in range(16)]
    for thread, _ in waits:
        thread.join()
    assert {type(got[0]) for _, got in waits} == {LoopTimeout}
    assert portal.run(tasks(), 5) == 0


async def tasks():
    """How many of ours are left."""
    return sum(task.get_name().startswith("for thread") for task in asyncio.all_tasks()) - 1


def test_importing_makes_no_thread():
    code = "import threading, transept, transept.extensions.flask, transept.alchemy; print(threading.active_count())"
    assert python(code) == "1\n"


def test_the_end_of_the_program_ends_the_loop():
    code = """
import asyncio
from transept._portal import PORTAL
async def work():
    async def until_the_end():
        try:
            await asyncio.Event().wait()
        finally:
            print("ended", flush=True)
    global kept
    kept = asyncio.create_task(until_the_end())
    await asyncio.sleep(0)
PORTAL.run(work(), 5)
"""
    assert python(code) == "ended\n"


def test_worker_threads_of_the_loop_do_not_keep_the_program_alive():
    code = """
from transept._portal import PORTAL
from transept.hosts import in_thread
print(PORTAL.run(in_thread(lambda: 1), 5))
"""
    assert python(code) == "1\n"


def test_a_forked_child_has_a_loop_of_its_own():
    code = """
import os, threading
from transept._portal import PORTAL
async def give(value):
    return value
PORTAL.run(give(1), 5)
parents = PORTAL.loop
pid = os.fork()
if pid == 0:
    assert PORTAL.loop is None
    assert PORTAL.run(give(2), 5) == 2
    assert PORTAL.loop is not parents
    raise SystemExit(0)
_, status = os.waitpid(pid, 0)
assert PORTAL.run(give(3), 5) == 3
assert PORTAL.loop is parents
print("child", os.waitstatus_to_exitcode(status), flush=True)
"""
    assert python(code) == "child 0\n"


def test_a_fork_while_another_thread_makes_the_loop():
    """A lock that is held while the process forks is held for ever in the child."""
    code = """
import os, threading
from transept._portal import PORTAL
async def give(value):
    return value
with PORTAL._lock:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if PORTAL.run(give(2), 5) == 2 else 1)
_, status = os.waitpid(pid, 0)
print("child", os.waitstatus_to_exitcode(status), flush=True)
"""
    assert python(code) == "child 0\n"


def python(code):
    """What a program prints that ends by itself, without a warning."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
