"""What tests of Litestar apps share: configurations of the tests' tables, apps, and what may stand before a route."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from held import File, Postgres, eventually, out_of_pool
from litestar import Litestar
from litestar.config.allowed_hosts import AllowedHostsConfig
from litestar.config.compression import CompressionConfig
from litestar.config.cors import CORSConfig
from litestar.config.csrf import CSRFConfig
from litestar.middleware.csrf import generate_csrf_token

from transept.extensions.litestar import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept

SECRET = "a" * 32


def config_of(tables: File | Postgres, *, port: int | None = None, pool_size: int = 5, **settings: Any) -> Any:
    """An async database over these tables; it commits by status unless the settings say otherwise."""
    settings = {"before_send_handler": "autocommit", **settings}
    if isinstance(tables, File):
        return SQLAlchemyAsyncConfig(connection_string=tables.url(), **settings)
    url = tables.server.url("asyncpg").replace(f":{tables.server.port}/", f":{port or tables.server.port}/")
    named = {"server_settings": {"application_name": tables.name}}
    options = EngineConfig(pool_size=pool_size, max_overflow=0, pool_timeout=5, connect_args=named)
    return SQLAlchemyAsyncConfig(connection_string=url, engine_config=options, **settings)


def sync_config_of(tables: File | Postgres, **settings: Any) -> Any:
    """As `config_of`, for handlers in threads."""
    settings = {"before_send_handler": "autocommit", **settings}
    if isinstance(tables, File):
        config = SQLAlchemySyncConfig(connection_string=tables.url("pysqlite"), **settings)
    else:
        named = {"application_name": tables.name}
        options = EngineConfig(pool_size=5, max_overflow=0, pool_timeout=5, connect_args=named)
        config = SQLAlchemySyncConfig(connection_string=tables.server.url("psycopg"), engine_config=options, **settings)
    tables.blocking.append(config)
    return config


def app_with(config: Any, *handlers: Any, **options: Any) -> tuple[Litestar, Transept]:
    """An app with these handlers, and its databases."""
    db = Transept(config)
    options = {"openapi_config": None, "logging_config": None, **options}
    return Litestar(list(handlers), plugins=[db], **options), db


async def clean(pg: Postgres, config: Any) -> None:
    """Nothing of the app is left open."""
    assert await eventually(lambda: out_of_pool(config) == 0, 2)
    assert await eventually(lambda: pg.in_transaction() == 0, 2)


class Noting:
    """Middleware that notes the statuses that pass, and adds a header to each response."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def __deepcopy__(self, memo: Any) -> "Noting":
        """Litestar copies handlers with all that they hold; this goes on noting here."""
        return self

    def __call__(self, app: Any) -> Any:
        async def noting(scope: Any, receive: Any, send: Any) -> None:
            async def noted(message: Any) -> None:
                if message["type"] == "http.response.start":
                    self.statuses.append(message["status"])
                    message["headers"] = [*message["headers"], (b"x-noted", b"yes")]
                await send(message)

            await app(scope, receive, noted)

        return noting


@dataclass
class Layer:
    """What stands between the gate and a route: options of the app and of a handler, and what a request needs."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    cache: Any = False
    sends: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    answers: Sequence[tuple[str, str]] = ()
    """Headers that this puts on every response."""
    noting: Noting = field(default_factory=Noting)

    def __repr__(self) -> str:
        return self.name


def layers() -> dict[str, Layer]:
    """Each of them once, and all together; made anew, since they keep note."""
    token, noting = generate_csrf_token(SECRET), Noting()
    cors = CORSConfig(allow_origins=["https://elsewhere.test"])
    csrf = CSRFConfig(secret=SECRET)
    gzip = CompressionConfig("gzip", minimum_size=1)
    hosts = AllowedHostsConfig(["test"])
    from_elsewhere = {"origin": "https://elsewhere.test"}
    with_token = {"x-csrftoken": token}
    allowed = ("access-control-allow-origin", "https://elsewhere.test")
    every = {
        "cors_config": cors, "csrf_config": csrf, "compression_config": gzip, "allowed_hosts": hosts,
        "middleware": [noting],
    }  # fmt: skip
    found = [
        Layer("nothing"),
        Layer("middleware", {"middleware": [noting]}, answers=[("x-noted", "yes")], noting=noting),
        Layer("compression", {"compression_config": gzip}, answers=[("content-encoding", "gzip")]),
        Layer("cache", cache=60),
        Layer("cors", {"cors_config": cors}, sends=from_elsewhere, answers=[allowed]),
        Layer("csrf", {"csrf_config": csrf}, sends=with_token, cookies={"csrftoken": token}),
        Layer("allowed hosts", {"allowed_hosts": hosts}),
        Layer(
            "all",
            every,
            cache=60,
            sends={**from_elsewhere, **with_token},
            cookies={"csrftoken": token},
            answers=[allowed, ("x-noted", "yes"), ("content-encoding", "gzip")],
            noting=noting,
        ),
    ]
    return {layer.name: layer for layer in found}


LAYERS = tuple(layers())
