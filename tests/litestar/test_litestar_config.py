"""Settings of databases in a Litestar app: their keys, and what is refused."""

import gc
from pathlib import Path
from typing import Any

import pytest
from held import COUNT, File, insert
from litestar import Litestar, post
from litestar.datastructures import State
from litestar.di import Provide
from litestar.testing import TestClient
from litestar_app import config_of
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from transept import ImproperConfigurationError, Registry
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.extensions.litestar import (
    SQLAlchemyAsyncConfig,
    SQLAlchemyInitPlugin,
    SQLAlchemyPlugin,
    SQLAlchemySyncConfig,
    Transept,
    autocommit_before_send_handler,
    autocommit_handler_maker,
    default_before_send_handler,
    sync_autocommit_before_send_handler,
    sync_default_handler_maker,
)

pytestmark = pytest.mark.anyio

URL = "sqlite+aiosqlite://"
KEYS = (
    "session_dependency_key",
    "engine_dependency_key",
    "engine_app_state_key",
    "session_maker_app_state_key",
    "session_scope_key",
)
DEFAULTS = ("db_session", "db_engine", "db_engine", "session_maker_class", "_sqlalchemy_db_session")


def memory(**settings: Any) -> SQLAlchemyAsyncConfig:
    return SQLAlchemyAsyncConfig(connection_string=URL, **settings)


def keys_of(config: Any) -> tuple[str, ...]:
    return tuple(getattr(config, key) for key in KEYS)


def app_of(*plugins: Any, handlers: Any = (), **settings: Any) -> Litestar:
    return Litestar(handlers, plugins=plugins, **{"openapi_config": None, "logging_config": None, **settings})


def answer(app: Litestar, path: str = "/", method: str = "GET") -> Any:
    with TestClient(app) as client:
        response = client.request(method, path)
    assert response.status_code < 300, response.text
    return response.json()


# Keys


def test_a_database_without_a_name_has_the_default_keys() -> None:
    assert keys_of(memory()) == DEFAULTS
    assert keys_of(SQLAlchemySyncConfig(connection_string="sqlite://")) == DEFAULTS


def test_keys_that_nobody_chose_follow_from_the_bind_key() -> None:
    config = memory(bind_key="reports")
    assert keys_of(config) == (
        "reports_session",
        "reports_engine",
        "reports_engine",
        "reports_session_maker_class",
        "_sqlalchemy_reports_session",
    )


@pytest.mark.parametrize("bind_key", ["default", "reports"])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_was_chosen_stays_and_the_others_follow(key: str, bind_key: str) -> None:
    chosen = dict(zip(KEYS, keys_of(memory(bind_key=bind_key)), strict=True)) | {key: "mine"}
    assert dict(zip(KEYS, keys_of(memory(bind_key=bind_key, **{key: "mine"})), strict=True)) == chosen


def test_a_default_key_that_is_written_out_was_chosen() -> None:
    config = memory(bind_key="reports", engine_dependency_key="db_engine", session_scope_key="_sqlalchemy_db_session")
    assert keys_of(config) == (
        "reports_session",
        "db_engine",
        "reports_engine",
        "reports_session_maker_class",
        "_sqlalchemy_db_session",
    )


def test_session_key_is_another_name_of_session_dependency_key() -> None:
    assert memory(session_key="mine").session_dependency_key == "mine"
    assert memory(session_dependency_key="mine").session_key == "mine"
    assert memory(session_key="mine", session_dependency_key="mine").session_key == "mine"
    with pytest.raises(
        ImproperConfigurationError, match="session_key='a' and session_dependency_key='b' are two names"
    ):
        memory(session_key="a", session_dependency_key="b")


def test_configurations_made_one_after_the_other_keep_the_default_keys() -> None:
    configs = [memory() for _ in range(20)]
    apps = [app_of(Transept(config)) for config in configs]
    assert {keys_of(config) for config in configs} == {DEFAULTS}
    assert {frozenset(app.dependencies) for app in apps} == {frozenset({"db_session", "db_engine"})}
    del configs, apps
    gc.collect()
    assert keys_of(memory()) == DEFAULTS


def test_one_configuration_and_one_plugin_serve_several_apps(file: File) -> None:
    @post("/")
    async def write(db_session: AsyncSession) -> int:
        await db_session.execute(insert(1))
        return await db_session.scalar(COUNT) or 0

    config = config_of(file)
    plugin = Transept(config)
    for count, use in enumerate([plugin, plugin, Transept(config), SQLAlchemyPlugin(config)], 1):
        assert answer(app_of(use, handlers=[write]), method="POST") == count
    assert keys_of(config) == DEFAULTS


def test_apps_that_are_given_the_same_settings_do_not_mix(file: File, other_file: File) -> None:
    """Whoever makes apps in a function may keep what is the same for all of them outside of it."""

    @post("/")
    async def write(db_session: AsyncSession) -> int:
        await db_session.execute(insert(1))
        return await db_session.scalar(COUNT) or 0

    same: dict[str, Any] = {
        "dependencies": {},
        "exception_handlers": {},
        "type_encoders": {},
        "signature_namespace": {},
        "before_send": [],
        "lifespan": [],
        "on_shutdown": [],
    }
    for where in (file, other_file):
        assert answer(app_of(Transept(config_of(where)), handlers=[write], **same), method="POST") == 1
    assert (file.held(), other_file.held()) == ([1], [1])
    assert not any(value for setting, value in same.items() if setting != "exception_handlers")


def test_apps_with_one_state_do_not_mix(file: File, other_file: File) -> None:
    @post("/")
    async def write(db_session: AsyncSession) -> int:
        await db_session.execute(insert(1))
        return await db_session.scalar(COUNT) or 0

    state = State({"motto": "kept"})
    for where in (file, other_file):
        assert answer(app_of(Transept(config_of(where)), handlers=[write], state=state), method="POST") == 1
    assert (file.held(), other_file.held()) == ([1], [1])


@pytest.mark.parametrize("order", [1, -1])
def test_two_that_were_left_at_default_are_named_by_their_session_dependency_key(
    file: File, other_file: File, order: int
) -> None:
    @post("/")
    async def write(db_session: AsyncSession, reports: AsyncSession, reports_engine: AsyncEngine) -> bool:
        await db_session.execute(insert(1))
        await reports.execute(insert(2))
        return reports_engine is second.get_engine()

    first, second = config_of(file), config_of(other_file, session_dependency_key="reports")
    plugin = SQLAlchemyPlugin([first, second][::order])
    assert answer(app_of(plugin, handlers=[write]), method="POST") is True
    assert (file.held(), other_file.held()) == ([1], [2])
    assert (plugin.get_config("reports"), plugin.get_config("default")) == (second, first)


def test_three_whose_keys_were_all_chosen_work_as_they_are(file: File, other_file: File, tmp_path: Path) -> None:
    third = File(tmp_path / "third.db")

    @post("/")
    async def write(one: AsyncSession, two: AsyncSession, three: AsyncSession, engine_three: AsyncEngine) -> None:
        for session in (one, two, three):
            await session.execute(insert(1))

    configs = [
        config_of(
            where,
            session_dependency_key=name,
            engine_dependency_key=f"engine_{name}",
            engine_app_state_key=f"engine_{name}",
            session_maker_app_state_key=f"maker_{name}",
            session_scope_key=f"_{name}",
        )
        for name, where in (("one", file), ("two", other_file), ("three", third))
    ]
    plugin = SQLAlchemyPlugin(configs)
    assert answer(app_of(plugin, handlers=[write]), method="POST") is None
    assert [where.held() for where in (file, other_file, third)] == [[1], [1], [1]]
    assert [plugin.get_config(name) for name in ("one", "two", "three")] == configs


def test_a_registry_names_databases_and_so_their_keys() -> None:
    registry = Registry()
    config = registry.add_config(memory(), name="reports")
    assert keys_of(config) == keys_of(memory(bind_key="reports"))
    assert set(app_of(Transept(registry)).dependencies) == {"reports_session", "reports_engine"}


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (
            {"engine_dependency_key": "db_engine"},
            r"'default' \(engine_dependency_key\) and 'b' \(engine_dependency_key\)",
        ),
        (
            {"engine_dependency_key": "db_session"},
            r"'default' \(session_dependency_key\) and 'b' \(engine_dependency_key\)",
        ),
        ({"engine_app_state_key": "db_engine"}, r"'default' \(engine_app_state_key\) and 'b' \(engine_app_state_key\)"),
        (
            {"engine_app_state_key": "session_maker_class"},
            r"'default' \(session_maker_app_state_key\) and 'b' \(engine_app_state_key\)",
        ),
        (
            {"session_maker_app_state_key": "session_maker_class"},
            r"'default' \(session_maker_app_state_key\) and 'b' \(session_maker_app_state_key\)",
        ),
        (
            {"session_scope_key": "_sqlalchemy_db_session"},
            r"'default' \(session_scope_key\) and 'b' \(session_scope_key\)",
        ),
    ],
)
@pytest.mark.parametrize("plugins", [1, 2])
def test_a_clash_of_keys_names_both_databases_and_both_settings(second: Any, words: str, plugins: int) -> None:
    configs = [memory(), memory(bind_key="b", **second)]
    made = [Transept(configs)] if plugins == 1 else [Transept(config) for config in configs]
    with pytest.raises(ImproperConfigurationError, match=rf"^Duplicate keys found: databases {words} both have"):
        app_of(*made)


@pytest.mark.parametrize("setting", ["session_dependency_key", "session_key"])
def test_a_clash_of_session_keys_is_refused_before_there_is_an_app(setting: str) -> None:
    with pytest.raises(
        ImproperConfigurationError, match=r"'default' \(session_key\) and 'b' \(session_key\) both have"
    ):
        Transept([memory(), memory(bind_key="b", **{setting: "db_session"})])


def test_two_keys_of_one_database_must_differ() -> None:
    with pytest.raises(ImproperConfigurationError, match=r"session_dependency_key.*engine_dependency_key.*have 'x'"):
        app_of(Transept(memory(session_dependency_key="x", engine_dependency_key="x")))


def test_the_same_key_in_injection_and_on_the_apps_state_is_no_clash() -> None:
    assert set(app_of(Transept(memory(engine_app_state_key="db_session"))).dependencies) == {
        "db_session",
        "db_engine",
    }


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"before_send_handler": "autocomit"},
            r"SQLAlchemyAsyncConfig: before_send_handler='autocomit' is not known\. Did you mean 'autocommit'\?",
        ),
        ({"before_send_handler": "autocommit_include_redirct"}, "Did you mean 'autocommit_include_redirect"),
        ({"before_send_handler": 3}, "before_send_handler=3: a callable is needed"),
        ({"session_dependancy_key": "x"}, "'session_dependancy_key'. Did you mean 'session_dependency_key'"),
        ({"commit_mode": "autocomit"}, r"commit_mode='autocomit' is not known\. Did you mean 'autocommit'"),
        (
            {"before_send_handler": "autocommit", "commit_mode": "autocommit_include_redirect"},
            "before_send_handler='autocommit' and commit_mode='autocommit_include_redirect' say different things",
        ),
        (
            {"before_send_handler": autocommit_before_send_handler, "commit_mode": "autocommit_include_redirect"},
            "and commit_mode='autocommit_include_redirect'.*say different things",
        ),
        (
            {"before_send_handler": autocommit_before_send_handler, "commit_mode": "autocommit",
             "extra_commit_statuses": {404}},
            r"with its extra statuses\) say different things",
        ),
        (
            {"before_send_handler": sync_autocommit_before_send_handler},
            "a sync one, which this database is not: use those without sync_",
        ),
        (
            {"before_send_handler": autocommit_handler_maker(session_scope_key="a"), "session_scope_key": "b"},
            "of another session than session_scope_key='b'",
        ),
        ({"session_dependency_key": "request"}, "session_dependency_key='request': the name of a handler's parameter"),
        ({"engine_dependency_key": "state"}, "engine_dependency_key='state'.*Litestar keeps for itself"),
        ({"session_dependency_key": "my-session"}, "session_dependency_key='my-session'"),
        ({"session_key": "my session"}, "session_dependency_key='my session'"),
        ({"engine_dependency_key": "class"}, "engine_dependency_key='class'"),
        ({"bind_key": "my-db"}, "'my-db_session': the name of a handler's parameter is needed"),
        ({"session_dependency_key": ""}, "session_dependency_key='': a name is needed"),
        ({"engine_app_state_key": " "}, "engine_app_state_key=' ': a name is needed, such as 'db_engine'"),
        ({"session_maker_app_state_key": 1}, "session_maker_app_state_key=1: a name is needed"),
        ({"session_scope_key": None}, "session_scope_key=None: a name is needed"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_when_it_is_written(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=words):
        memory(**settings)


def test_an_async_handler_is_refused_by_a_sync_database() -> None:
    with pytest.raises(
        ImproperConfigurationError, match=r"an async one, which this database is not: .* begin with sync_"
    ):
        SQLAlchemySyncConfig(connection_string="sqlite://", before_send_handler=autocommit_before_send_handler)


@pytest.mark.parametrize("mode", ["autocommit_include_redirect", "autocommit_include_redirects"])
def test_handler_and_mode_that_say_the_same_are_no_contradiction(mode: Any) -> None:
    both = memory(before_send_handler="autocommit_include_redirects", commit_mode=mode)
    assert both.policy.keeps(302)
    assert memory(before_send_handler=autocommit_handler_maker(True), commit_mode=mode).policy.keeps(302)
    assert memory(before_send_handler="autocommit", extra_rollback_statuses={202}).policy.keeps(201)


def test_what_is_no_database_is_refused() -> None:
    wrong: list[Any] = [
        (SQLAlchemyAsyncConfig, r"is the class: pass an object, SQLAlchemyAsyncConfig\(\.\.\.\)"),
        ([], "at least one database configuration is needed"),
        ("sqlite://", "which is no database"),
    ]
    for config, words in wrong:
        with pytest.raises(ImproperConfigurationError, match=words):
            Transept(config)


def test_an_empty_registry_is_refused_with_the_app_and_may_be_filled_until_then() -> None:
    registry = Registry()
    plugin = Transept(registry)
    with pytest.raises(ImproperConfigurationError, match=r"no database yet: call add_config\(\.\.\.\) before Litestar"):
        app_of(plugin)
    registry.add_config(memory())
    assert set(app_of(plugin).dependencies) == {"db_session", "db_engine"}


def test_the_sqlalchemy_plugins_take_sqlalchemy_alone() -> None:
    raw: Any = AiosqliteConfig(pool_config={"database": ":memory:"})
    for plugin in (SQLAlchemyPlugin, SQLAlchemyInitPlugin):
        with pytest.raises(ImproperConfigurationError, match=rf"{plugin.__name__}: .*use Transept\(\.\.\.\)"):
            plugin(raw)


@pytest.mark.parametrize("key", ["db_session", "db_engine"])
def test_a_dependency_of_the_app_with_a_key_of_ours_is_refused(key: str) -> None:
    own = {key: Provide(lambda: 1, sync_to_thread=False)}
    with pytest.raises(ImproperConfigurationError, match=rf"has '{key}' already, .* database 'default'"):
        app_of(Transept(memory()), dependencies=own)


def test_a_handler_of_the_apps_that_means_no_database_is_refused() -> None:
    with pytest.raises(ImproperConfigurationError, match="whose session_scope_key no database has: there is '_sqlalch"):
        app_of(Transept(memory()), before_send=[autocommit_handler_maker(session_scope_key="other")])
    with pytest.raises(ImproperConfigurationError, match="a sync one, which this database is not"):
        app_of(Transept(memory()), before_send=[sync_autocommit_before_send_handler])


# Handlers of the app's before_send


def test_a_handler_in_before_send_of_the_app_is_a_policy(file: File) -> None:
    @post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))

    given = [autocommit_before_send_handler]
    app = app_of(Transept(config_of(file, before_send_handler=None)), handlers=[write], before_send=given)
    assert answer(app, method="POST") is None
    assert (file.held(), app.before_send, given) == ([1], [], [autocommit_before_send_handler])


def test_a_handler_in_before_send_may_mean_a_database_of_any_plugin(file: File, other_file: File) -> None:
    @post("/")
    async def write(db_session: AsyncSession, b_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        await b_session.execute(insert(2))

    first = config_of(file, before_send_handler=default_before_send_handler)
    second = config_of(other_file, before_send_handler=None, bind_key="b")
    app = app_of(
        Transept(first),
        Transept(second),
        handlers=[write],
        before_send=[autocommit_handler_maker(session_scope_key="_sqlalchemy_b_session")],
    )
    assert answer(app, method="POST") is None
    assert (file.held(), other_file.held()) == ([], [2])


def test_a_handler_in_before_send_is_a_policy_of_the_database_in_all_apps(file: File) -> None:
    @post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))

    config = config_of(file, before_send_handler=None)
    app_of(Transept(config), handlers=[write], before_send=[autocommit_before_send_handler])
    assert config.commit_mode == "autocommit"
    assert answer(app_of(Transept(config), handlers=[write]), method="POST") is None
    assert file.held() == [1]


@pytest.mark.parametrize(
    "given",
    [autocommit_handler_maker, sync_default_handler_maker, lambda: None, lambda message: None, 5],
    ids=["a maker", "another", "no parameters", "one parameter", "a number"],
)
def test_what_is_no_handler_is_refused_when_it_is_written(given: Any) -> None:
    with pytest.raises(ImproperConfigurationError, match=r"before_send_handler=.*takes a message"):
        SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", before_send_handler=given)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("session_config", {"expire_on_commit": False}),
        ("session_maker_class", 5),
        ("create_engine_callable", 5),
        ("session_maker", 5),
        ("engine_instance", 5),
    ],
)
def test_settings_of_another_type_are_refused_when_they_are_written(setting: str, value: Any) -> None:
    place: Any = {} if setting in ("session_maker", "engine_instance") else {"connection_string": "sqlite+aiosqlite://"}
    with pytest.raises(ImproperConfigurationError, match=f"SQLAlchemyAsyncConfig: {setting}="):
        SQLAlchemyAsyncConfig(**place, **{setting: value})
