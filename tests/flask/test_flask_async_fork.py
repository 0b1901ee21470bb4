"""Processes that fork after the database was used: no child touches what is the parent's, and both go on."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from contextlib import closing
from time import monotonic, sleep

import pytest
from servers import ports

DRIVERS = {
    "asyncpg": ("SQLAlchemyAsyncConfig", "postgres", "SELECT pg_backend_pid()"),
    "psycopg async": ("SQLAlchemyAsyncConfig", "postgres", "SELECT pg_backend_pid()"),
    "psycopg": ("SQLAlchemySyncConfig", "postgres", "SELECT pg_backend_pid()"),
    "asyncmy": ("SQLAlchemyAsyncConfig", "mariadb", "SELECT connection_id()"),
    "pymysql": ("SQLAlchemySyncConfig", "mariadb", "SELECT connection_id()"),
    "aiosqlite": ("SQLAlchemyAsyncConfig", "file", "SELECT 1"),
    "pysqlite": ("SQLAlchemySyncConfig", "file", "SELECT 1"),
}
APP = """
import os, sys, threading
from flask import Flask
from sqlalchemy import text
from transept import *
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.extensions.flask import Transept
app = Flask("forks")
config = {config}(connection_string={url!r}, commit_mode="autocommit")
db = Transept(config, app)

@app.post("/<int:v>")
def view(v):
    session = db.get_session()
    session.execute(text("INSERT INTO held VALUES (:v)"), {{"v": v}})
    return str(session.scalar(text({who!r}))), 201

def post(v):
    response = app.test_client().post(f"/{{v}}")
    assert response.status_code == 201, response.text
    return response.text

def forked(child):
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)
    return pid

def ended(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""


class Program:
    """A program over one database, whose table `held` it fills."""

    def __init__(self, driver, server, url):
        self.driver = driver
        self.server = server
        config, _, who = DRIVERS[driver]
        self.app = APP.format(config=config, url=url, who=who)

    def run(self, body):
        """What it prints; it ends well and by itself, without a warning, and so do its children."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", self.app + body]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    def held(self):
        return self.server.held()


class MariaDB:
    def __init__(self, server):
        self.server = server
        server.execute("DROP TABLE IF EXISTS held", "CREATE TABLE held (v integer) ENGINE=InnoDB")

    def held(self):
        return [v for (v,) in self.server.execute("SELECT v FROM held ORDER BY v")]


SOME = ("asyncpg", "psycopg", "aiosqlite")


def every_driver(test):
    return pytest.mark.parametrize("program", DRIVERS, indirect=True)(test)


@pytest.fixture(params=SOME)
def program(request):
    driver, kind = request.param.split()[0], DRIVERS[request.param][1]
    if kind == "file":
        file = request.getfixturevalue("file")
        return Program(request.param, file, file.url(driver))
    if kind == "postgres":
        pg = request.getfixturevalue("pg")
        return Program(request.param, pg, pg.server.url(driver))
    server = request.getfixturevalue("mariadb")
    return Program(request.param, MariaDB(server), server.url(driver))


@every_driver
def test_children_of_a_parent_that_used_the_database(program):
    """Each has connections of its own, and the parent keeps its one."""
    printed = program.run("""
mine = post(1)
children = [forked(lambda: print(post(2), post(3), flush=True)), forked(lambda: print(post(4), post(5), flush=True))]
print(*ended(*children), flush=True)
assert post(6) == mine
print(mine)
""")
    *children, one, other, parents = printed
    assert (one, other) == ("0", "0")
    assert program.held() == [1, 2, 3, 4, 5, 6]
    if parents != "1":
        assert len({*children, parents}) == 3


@every_driver
def test_a_child_that_does_not_use_it(program):
    printed = program.run("""
mine = post(1)
print(*ended(forked(lambda: None)), flush=True)
assert post(2) == mine
""")
    assert printed == ["0"]
    assert program.held() == [1, 2]


def test_a_child_that_closes(program):
    printed = program.run("""
mine = post(1)
def child():
    db.close()
    post(2)
    db.close()
    assert threading.active_count() == 1
print(*ended(forked(child)), flush=True)
assert post(3) == mine
db.close()
""")
    assert printed == ["0"]
    assert program.held() == [1, 2, 3]


def test_parent_and_child_at_the_same_time(program):
    printed = program.run("""
mine = post(0)
def child():
    for v in range(1, 20):
        post(v)
pid = forked(child)
for v in range(21, 40):
    assert post(v) == mine
print(*ended(pid), flush=True)
""")
    assert printed == ["0"]
    assert program.held() == [*range(20), *range(21, 40)]


def test_a_grandchild(program):
    printed = program.run("""
post(1)
def child():
    post(2)
    print(*ended(forked(lambda: post(3))), flush=True)
    post(4)
print(*ended(forked(child)), flush=True)
post(5)
""")
    assert printed == ["0", "0"]
    assert program.held() == [1, 2, 3, 4, 5]


def test_a_fork_inside_of_a_transaction(program):
    """What the child does is its own; the parent's transaction is still the parent's."""
    printed = program.run("""
with app.app_context():
    session = db.get_session()
    session.execute(text("INSERT INTO held VALUES (1)"))
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    print(*ended(pid), flush=True)
    session.execute(text("INSERT INTO held VALUES (2)"))
""")
    assert printed == ["0"]
    assert program.held() == [1, 2]


@pytest.mark.parametrize("kind", ["psycopg", "pymysql", "sqlite"])
def test_raw_blocking_pools(request, kind):
    if kind == "psycopg":
        server = request.getfixturevalue("pg")
        made, who = f"PsycopgSyncConfig(pool_config={{'dsn': {server.server.dsn!r}}}", "SELECT pg_backend_pid()"
    elif kind == "pymysql":
        mariadb = request.getfixturevalue("mariadb")
        server = MariaDB(mariadb)
        made, who = f"PyMysqlConfig(pool_config={{'dsn': {mariadb.dsn!r}}}", "SELECT connection_id()"
    else:
        server = request.getfixturevalue("file")
        made, who = f"SqliteConfig(pool_config={{'database': {str(server.path)!r}}}", "SELECT 1"
    program = Program("psycopg", server, "")
    name = made.split("(")[0]
    program.app = f"""
import os, sys, threading
from flask import Flask
from transept.adapters.{kind} import {name}
from transept.extensions.flask import Transept
app = Flask("forks")
db = Transept({made}, commit_mode="autocommit"), app)

@app.post("/<int:v>")
def view(v):
    session = db.get_session()
    session.execute(f"INSERT INTO held VALUES ({{v}})")
    return str(session.select_value({who!r})), 201
""" + APP[APP.index("\ndef post(v)") :].replace("{{", "{").replace("}}", "}")
    printed = program.run("""
mine = post(1)
print(*ended(forked(lambda: print(post(2), post(3), flush=True)), forked(lambda: post(4))), flush=True)
assert post(5) == mine
print(mine)
db.close()
""")
    assert printed[:4] == [printed[0], printed[0], "0", "0"]
    assert kind == "sqlite" or printed[0] != printed[4]
    assert server.held() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("colour", ["SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"])
def test_tables_that_the_parent_made_in_memory(colour):
    """Memory is copied: the child begins with what was there, and has it to itself."""
    url = "sqlite+aiosqlite://" if "Async" in colour else "sqlite://"
    program = Program("aiosqlite", None, "")
    program.app = APP.format(config=colour, url=url, who="SELECT count(*) FROM held")
    assert program.run("""
with app.app_context():
    db.get_session().execute(text("CREATE TABLE held (v integer)"))
post(1)
print(*ended(forked(lambda: print(post(2), post(3), flush=True))), flush=True)
print(post(4))
""") == ["2", "3", "0", "2"]


def asked(port, method, path):
    """What the server answers, once it does."""
    deadline = monotonic() + 30
    while True:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                connection.request(method, path)
                response = connection.getresponse()
                assert response.status in (200, 201)
                return response.read()
        except ConnectionRefusedError:
            assert monotonic() < deadline
            sleep(0.05)


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_gunicorn_with_preload(program, tmp_path, worker):
    """The app uses its database while it is loaded, in the arbiter; then two workers serve."""
    (tmp_path / "forks.py").write_text(
        program.app
        + """
@app.get("/pid")
def pid():
    return str(os.getpid())

post(0)
"""
    )
    port = ports.free()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    options = ["--preload", "-w", "2", "--graceful-timeout", "5", "--log-level", "warning", "--no-control-socket"]
    options += ["-k", worker, "-b", f"127.0.0.1:{port}", *(["--threads", "2"] if worker == "gthread" else [])]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "gunicorn", "forks:app", *options]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        workers, v = {asked(port, "GET", "/pid")}, 0
        while len(workers) < 2 or v < 12:
            v += 1
            asked(port, "POST", f"/{v}")
            workers.add(asked(port, "GET", "/pid"))
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
    assert "Warning" not in said
    assert program.held() == list(range(v + 1))
