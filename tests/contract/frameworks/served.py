"""Flask behind real servers: gunicorn's sync and gthread workers, and waitress, asked over a socket.

What the client is told is read from the socket. What the database holds is looked at where the app hands a message over
to the server, which does not wait for its client: a client that sees a message is too late to look.

The servers run in threads of the tests' process, because a case looks at what its handlers have done: gunicorn's own
workers, on a listening socket, without the arbiter that forks them. `tests/flask/test_flask_servers.py` has gunicorn
as a whole. A client that leaves half way is there, too: a server notices that only when it writes again, after what the
app has done for the next chunk.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, IncompleteRead
from typing import Any

import waitress.server
from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
from waitress import wasyncore

from contract.frameworks import Told
from contract.frameworks.flask import FlaskClientFramework, FlaskFramework

HOST = "127.0.0.1"
SECONDS = 20


class ServedFlask(FlaskFramework):
    """What all servers have in common."""

    can = FlaskFramework.can - {"disconnect"}
    columns = FlaskClientFramework.columns | {("asyncpg", "postgres", "asyncpg"), ("sqlite3", "sqlite", "sqlite3")}
    server: Any

    def run(self, case: Callable[[], Any], stop: Callable[[], Any]) -> None:
        with self.server(lambda environ, start_response: self.watched(environ, start_response)) as self.port:
            super().run(case, stop)

    async def asked(self, app: Any, look: Callable[[], list[int]], control: Any) -> Told:
        told = Told()
        self.watched = Watched(app, told, look)
        connection = HTTPConnection(HOST, self.port, timeout=SECONDS)
        try:
            connection.request(control.method, "/work")
            response = connection.getresponse()
            told.status = response.status
            told.body = response.read()
            told.complete = True
        except IncompleteRead as error:
            told.body = error.partial
        except (HTTPException, OSError) as error:
            told.error = error
        finally:
            connection.close()
            assert self.watched.done.wait(SECONDS), "the server has not closed the body"
        return told


class Watched:
    """An app whose database is looked at whenever it hands something over to the server. For one request."""

    def __init__(self, app: Any, told: Told, look: Callable[[], list[int]]) -> None:
        self.app = app
        self.told = told
        self.look = look
        self.done = threading.Event()
        self.body: Any = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def start(*arguments: Any) -> Any:
            self.told.seen.append(("start", self.look()))
            return start_response(*arguments)

        try:
            self.body = self.app(environ, start)
        except BaseException:
            self.done.set()
            raise
        return self

    def __iter__(self) -> Iterator[bytes]:
        with self.noting():
            for chunk in self.body:
                self.told.seen.append(("body", self.look()))
                yield chunk
            self.told.seen.append(("end", self.look()))

    def close(self) -> None:
        try:
            with self.noting():
                if hasattr(self.body, "close"):
                    self.body.close()
        finally:
            self.done.set()

    @contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.told.error = error
            raise


@contextmanager
def waitress_server(app: Any) -> Iterator[int]:
    server = waitress.server.create_server(app, host=HOST, port=0, threads=2)
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            wasyncore.loop(timeout=1, map=server._map, count=1)

    thread = threading.Thread(target=run, name="waitress")
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        stopping.set()
        server.pull_trigger()
        thread.join(SECONDS)
        assert not thread.is_alive()
        server.task_dispatcher.shutdown()
        wasyncore.close_all(server._map)


class Configured(BaseApplication):  # type: ignore[misc]
    """An app with the settings of one of gunicorn's workers."""

    def __init__(self, app: Any, worker_class: str) -> None:
        self.served = app
        self.worker_class = worker_class
        self.ready = threading.Event()
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("post_worker_init", lambda worker: self.ready.set())
        self.cfg.set("worker_class", self.worker_class)
        self.cfg.set("threads", 2 if self.worker_class == "gthread" else 1)

    def load(self) -> Any:
        return self.served


class InThread:
    """A worker of gunicorn in a thread, where signals cannot be had."""

    PIPE: Any
    tmp: Any
    handle_exit: Any

    def init_signals(self) -> None:
        """They are the main thread's."""

    def stop(self) -> None:
        self.handle_exit(None, None)
        os.write(self.PIPE[1], b"1")

    def let_go(self) -> None:
        self.tmp.close()
        for end in self.PIPE:
            os.close(end)


class SyncInThread(InThread, SyncWorker):  # type: ignore[misc]
    pass


class ThreadsInThread(InThread, ThreadWorker):  # type: ignore[misc]
    pass


@contextmanager
def gunicorn_worker(app: Any, kind: Any, worker_class: str) -> Iterator[int]:
    configured = Configured(app, worker_class)
    with socket.create_server((HOST, 0)) as listener:
        log = configured.cfg.logger_class(configured.cfg)
        worker = kind(1, os.getppid(), [listener], configured, SECONDS, configured.cfg, log)
        thread = threading.Thread(target=worker.init_process, name=f"gunicorn-{worker_class}")
        thread.start()
        try:
            assert configured.ready.wait(SECONDS)
            yield int(listener.getsockname()[1])
        finally:
            worker.stop()
            thread.join(SECONDS)
            assert not thread.is_alive()
            worker.let_go()


class WaitressFlask(ServedFlask):
    name = "flask-waitress"
    server = staticmethod(waitress_server)


class SyncGunicornFlask(ServedFlask):
    name = "flask-gunicorn-sync"

    @staticmethod
    def server(app: Any) -> Any:
        return gunicorn_worker(app, SyncInThread, "sync")


class GthreadGunicornFlask(ServedFlask):
    name = "flask-gunicorn-gthread"

    @staticmethod
    def server(app: Any) -> Any:
        return gunicorn_worker(app, ThreadsInThread, "gthread")


SERVED = [SyncGunicornFlask, GthreadGunicornFlask, WaitressFlask]
