"""No framework at all: work in a unit of its own, by `transaction()` and by `run_in_new_ctx`.

There is no status to go by: a unit commits when its work returns. "Answered" is what the caller saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from contract.frameworks import Answer, Told, Work
from contract.frameworks.starlette import StarletteFramework
from contract.frameworks.wsgi import WSGIFramework
from transept import db_session, in_new_unit, run_in_new_ctx, sync_db_session, transaction
from transept._bridge import run_now

CASES = {
    "a_2xx_is_told_after_its_commit",
    "a_blocking_session_never_waits_for_the_pool_on_the_loop",
    "a_cleanup_that_fails_hides_no_error_and_stops_no_other",
    "a_failing_hook_is_logged_and_changes_nothing",
    "a_later_commit_that_fails_says_what_was_kept",
    "a_nested_block_is_undone_alone",
    "a_request_cancelled_in_its_handler_keeps_nothing",
    "a_request_cancelled_while_a_statement_runs_keeps_nothing",
    "a_request_cancelled_while_commit_runs_is_kept_and_not_acknowledged",
    "a_request_that_asks_for_no_statement_takes_no_connection",
    "a_second_database_that_fails_before_its_commit_takes_the_first_with_it",
    "a_session_killed_before_the_commit_is_an_error",
    "a_swallowed_error_fails_the_commit_where_it_aborts_the_transaction",
    "a_swallowed_error_that_the_engine_shrugs_off_is_no_failure",
    "a_task_that_outlives_its_request_is_told_so",
    "a_transaction_that_an_error_ended_cannot_be_committed",
    "all_are_checked_before_the_first_commits",
    "an_error_at_commit_is_answered_by_the_apps_handler",
    "an_error_at_commit_without_a_handler_is_a_500",
    "an_error_undone_by_its_savepoint_costs_no_extra_round_trip",
    "an_error_undone_by_its_savepoint_is_no_failure",
    "an_exception_that_reaches_the_gate_rolls_back",
    "an_exhausted_pool_does_not_stop_requests_without_a_database",
    "first_requests_that_race_each_other_prepare_the_database_once",
    "hooks_run_after_the_commit_and_before_the_answer",
    "requests_that_read_and_then_write_do_not_fail_each_other",
    "the_next_request_is_not_harmed_by_a_failed_commit",
    "two_tasks_in_one_session_at_once_is_an_error_in_the_second",
    "two_threads_in_one_session_at_once_is_an_error_in_the_second",
    "what_a_flush_refuses_is_known_before_the_first_commit",
    "what_a_hook_writes_is_kept_before_the_answer",
}
ONLY_WHERE_A_UNIT_READS = {"a_second_database_that_fails_before_its_commit_takes_the_first_with_it"}


class Units:
    """A job instead of an app. Its databases have names here only."""

    cases = CASES
    leaves_out: frozenset[tuple[str, str]] = frozenset()
    families: tuple[str, ...]

    def takes(self, family: Any) -> bool:
        return family.name in self.families

    def app(self, databases: list[Any], work: Work, blocking: bool, handlers: dict[type[Exception], int]) -> Any:
        self.databases = {None: databases[0], **{database.key: database for database in databases}}
        self.handlers = handlers
        return work

    async def find(self, connection: Any, key: str | None) -> Any:
        return self.session(connection, key)

    def session(self, connection: Any, key: str | None) -> Any:
        return sync_db_session(self.databases[key])

    def tell(self, told: Told, outcome: Answer | BaseException, look: Callable[[], list[int]]) -> None:
        """What the caller makes of it, who answers the errors it knows and is failed by the others."""
        if isinstance(outcome, Answer):
            told.status, told.body = outcome.status, outcome.body
        else:
            status = next((status for kind, status in self.handlers.items() if isinstance(outcome, kind)), None)
            told.status, told.error = status or 500, None if status else outcome
        told.complete = True
        told.seen = [("start", look())]


class AwaitedUnits(Units):
    can = frozenset({"async", "cancel", "outlive"})
    run = StarletteFramework.run

    async def call(self, job: Any, look: Callable[[], list[int]], control: Any) -> Told:
        told = Told()
        control.task = task = asyncio.ensure_future(self.alone(job, control.method == "GET"))
        await asyncio.wait({task}, timeout=20)
        if task.cancelled():
            told.error = asyncio.CancelledError()
        else:
            self.tell(told, task.exception() or task.result(), look)
        return told

    async def alone(self, job: Any, reads_only: bool) -> Answer:
        raise NotImplementedError


class BlockingUnits(Units):
    can: frozenset[str] = frozenset()
    run = WSGIFramework.run

    async def call(self, job: Any, look: Callable[[], list[int]], control: Any) -> Told:
        told = Told()
        try:
            outcome: Any = self.alone(lambda: run_now(job(None)), control.method == "GET")
        except Exception as error:
            outcome = error
        self.tell(told, outcome, look)
        return told

    def alone(self, job: Callable[[], Answer], reads_only: bool) -> Answer:
        raise NotImplementedError


class Transaction(AwaitedUnits):
    name = "transaction"
    families = ("alchemy-async",)
    leaves_out = frozenset({("postgres", "psycopg"), ("memory", "aiosqlite")})

    async def alone(self, job: Any, reads_only: bool) -> Answer:
        async with transaction(reads_only=reads_only):
            answer: Answer = await job(None)
        return answer


class BlockingTransaction(BlockingUnits):
    name = "transaction"
    families = ("alchemy-sync",)
    leaves_out = frozenset({("memory", "pysqlite")})

    def alone(self, job: Callable[[], Answer], reads_only: bool) -> Answer:
        with transaction(reads_only=reads_only):
            return job()


class NewContext(AwaitedUnits):
    name = "run_in_new_ctx"
    families = ("dbconnect", "asyncpg")
    cases = CASES - ONLY_WHERE_A_UNIT_READS

    async def find(self, connection: Any, key: str | None) -> Any:
        return await db_session(self.databases[key])

    async def alone(self, job: Any, reads_only: bool) -> Answer:
        answer: Answer = await run_in_new_ctx(job, None)
        return answer


class NewUnit(BlockingUnits):
    name = "in_new_unit"
    families = ("sqlite3",)
    cases = CASES - ONLY_WHERE_A_UNIT_READS
    leaves_out = frozenset({("memory", "sqlite3")})

    def alone(self, job: Callable[[], Answer], reads_only: bool) -> Answer:
        return in_new_unit(job)()


OWN_UNITS = [Transaction, BlockingTransaction, NewContext, NewUnit]
