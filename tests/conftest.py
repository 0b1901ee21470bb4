"""The tests' servers as fixtures, and the switch that lets no test be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from held import File, Postgres
from servers.found import SERVERS, SWITCH, everything, needed, servers
from servers.server import LABELS, NoServerError, Server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        SWITCH,
        action="store_true",
        help="start the database servers that do not answer; a missing server or a skipped test is a failure",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    if not everything(session.config) or session.config.option.collectonly:
        return
    for kind in LABELS:
        try:
            servers(session.config).find(kind)
        except NoServerError as error:
            raise pytest.UsageError(f"{SWITCH}: {error}") from error


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if everything(session.config) and skips(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    if found := config.stash.get(SERVERS, None):
        found.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = skips(config)
    for kind, label in LABELS.items():
        if count := sum(n for reason, n in left_out.items() if f"needs {label}:" in reason):
            reason = servers(config).why_not(kind)
            tests = "1 test that needs" if count == 1 else f"{count} tests that need"
            terminalreporter.write_line(f"NOT RUN: {tests} {label}: {reason}", red=True, bold=True)
    if left_out and everything(config):
        terminalreporter.write_line(f"FAILED: {left_out.total()} skipped under {SWITCH}", red=True, bold=True)


def skips(config: pytest.Config) -> Counter[str]:
    """Reason of each test or module that was skipped, with how many there were."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return Counter(str(report.longrepr[-1]) for report in reporter.stats.get("skipped", ())) if reporter else Counter()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Server:
    return needed(request.config, "postgres")


@pytest.fixture(scope="session")
def mariadb(request: pytest.FixtureRequest) -> Server:
    return needed(request.config, "mariadb")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    tables = File(tmp_path / "held.db")
    yield tables
    tables.close()


@pytest.fixture
def other_file(tmp_path: Path) -> Iterator[File]:
    tables = File(tmp_path / "other.db")
    yield tables
    tables.close()


@pytest.fixture
def pg(postgres: Server) -> Iterator[Postgres]:
    tables = Postgres(postgres)
    yield tables
    tables.close()
