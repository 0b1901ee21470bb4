"""Plain views over async databases: a `Session` with all that it can do, and no event loop in sight."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest
from flask import Response, current_app, g, render_template_string, request, stream_with_context
from flask_site import Child, Held, Parent, Site, site_of
from held import File, Postgres, out_of_pool
from sqlalchemy import Column, Integer, MetaData, String, Table, event, func, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, joinedload, selectinload

from transept import (
    CommitFailed,
    OutsideScope,
    UsageError,
    after_commit,
    after_rollback,
    current_unit,
    doom,
    in_new_unit,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.adapters.sqlalchemy import over
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig
from transept.extensions.flask import Transept


def config_of(driver: str, tables: File | Postgres, **settings: object) -> SQLAlchemyAsyncConfig:
    if driver != "psycopg":
        return tables.config(**settings)
    options = EngineConfig(pool_size=5, max_overflow=0, pool_timeout=5, connect_args={"application_name": tables.name})
    settings = {"commit_mode": "autocommit", **settings}
    return SQLAlchemyAsyncConfig(connection_string=tables.server.url("psycopg"), engine_config=options, **settings)


@pytest.fixture(params=["aiosqlite", "asyncpg", "psycopg"])
def driver(request):
    return request.param


@pytest.fixture
def driver_tables(request, driver):
    return request.getfixturevalue("file" if driver == "aiosqlite" else "pg")


@pytest.fixture
def site(driver, driver_tables) -> Iterator[Site]:
    with site_of(driver_tables, config_of(driver, driver_tables)) as made:
        made.app.config["PROPAGATE_EXCEPTIONS"] = True
        yield made


@pytest.fixture
def manual(driver, driver_tables) -> Iterator[Site]:
    with site_of(driver_tables, config_of(driver, driver_tables, commit_mode="manual")) as made:
        made.app.config["PROPAGATE_EXCEPTIONS"] = True
        yield made


def answer(site, view):
    """What a view at / answers."""
    site.view(view)
    return site.post()


def family(session):
    """Two parents with a child each, sent and forgotten."""
    session.add_all([Parent(id=1, children=[Child()]), Parent(id=2, children=[Child()])])
    session.flush()
    session.expunge_all()


def test_the_session_of_a_plain_view_is_a_session(site):
    def view():
        session = site.db.get_session()
        assert isinstance(session, Session)
        assert not isinstance(session, AsyncSession)
        assert session is site.db.get_sync_session() is sync_db_session() is current_unit().session()
        return "", 201

    assert answer(site, view).status_code == 201


def test_core_and_orm_statements(site):
    def view():
        session = site.db.get_session()
        session.execute(insert(Held), [{"v": v} for v in range(5)])
        session.execute(update(Held).where(Held.v == 4).values(v=40))
        assert session.scalar(select(func.count()).select_from(Held)) == 5
        assert session.scalars(select(Held.v).order_by(Held.v)).all() == [0, 1, 2, 3, 40]
        assert session.execute(select(Held).where(Held.v == 3)).scalar_one().v == 3
        assert session.execute(text("SELECT v FROM held WHERE v = :v"), {"v": 40}).mappings().one() == {"v": 40}
        with pytest.raises(NoResultFound):
            session.execute(select(Held).where(Held.v == 99)).scalar_one()
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [0, 1, 2, 3, 40]


def test_queries_of_the_old_style(site):
    def view():
        session = site.db.get_session()
        session.add_all(Held(v=v) for v in range(6))
        query = session.query(Held).order_by(Held.v)
        assert query.count() == 6
        assert [one.v for one in query.filter(Held.v > 1)] == [2, 3, 4, 5]
        assert [one.v for one in query[1:3]] == [1, 2]
        assert query.first().v == 0
        assert session.query(Held.v).filter_by(v=5).scalar() == 5
        assert session.query(query.filter(Held.v == 1).exists()).scalar()
        assert session.query(Held).filter(Held.v == 5).delete() == 1
        assert session.query(Held).filter(Held.v == 4).update({"v": 14}) == 1
        assert [one.v for one in query.yield_per(2)] == [0, 1, 2, 3, 14]
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [0, 1, 2, 3, 14]


def test_get_merge_refresh_delete_and_expire(site):
    def view():
        session = site.db.get_session()
        session.add_all([Held(v=1), Held(v=2)])
        session.flush()
        one = session.get(Held, 1)
        assert session.get_one(Held, 1) is one
        assert session.get(Held, 99) is None
        session.expire(one)
        assert one.v == 1
        session.refresh(one)
        session.expire_all()
        assert one.v == 1
        session.delete(session.get(Held, 2))
        session.merge(Held(v=3))
        session.merge_all([Held(v=4), Held(v=1)])
        session.expunge(one)
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 3, 4]


def test_bulk_methods(site):
    def view():
        session = site.db.get_session()
        session.bulk_save_objects([Held(v=1)])
        session.bulk_insert_mappings(Held, [{"v": 2}, {"v": 3}])
        assert session.scalars(insert(Held).returning(Held.v), [{"v": 4}, {"v": 5}]).all() == [4, 5]
        session.delete_all(session.scalars(select(Held).where(Held.v > 3)).all())
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2, 3]


def test_lazy_loads_in_the_view(site):
    def view():
        session = site.db.get_session()
        family(session)
        parents = session.scalars(select(Parent).order_by(Parent.id)).all()
        assert [[child.p for child in parent.children] for parent in parents] == [[1], [2]]
        session.expunge_all()
        assert session.get(Child, 2).parent.children[0].p == 2
        return "", 201

    assert answer(site, view).status_code == 201


def test_eager_loads_and_streams_with_eager_loads(site):
    def view():
        session = site.db.get_session()
        family(session)
        chosen = select(Parent).order_by(Parent.id)
        for how in (joinedload, selectinload):
            found = session.scalars(chosen.options(how(Parent.children))).unique().all()
            assert [one.children[0].p for one in found] == [1, 2]
            session.expunge_all()
        streamed = session.scalars(chosen.options(selectinload(Parent.children)).execution_options(yield_per=1))
        assert [one.children[0].p for one in streamed] == [1, 2]
        return "", 201

    assert answer(site, view).status_code == 201


def test_lazy_loads_in_a_template(site):
    def view():
        family(site.db.get_session())
        parents = site.db.get_session().scalars(select(Parent).order_by(Parent.id))
        page = "{% for one in parents %}{{ one.id }}:{{ one.children | map(attribute='p') | list }} {% endfor %}"
        return render_template_string(page, parents=parents), 201

    assert answer(site, view).text == "1:[1] 2:[2] "


def test_lazy_loads_in_the_body_of_a_stream(site):
    def view():
        family(site.db.get_session())
        parents = site.db.get_session().scalars(select(Parent).order_by(Parent.id)).all()

        @stream_with_context
        def body():
            for parent in parents:
                yield f"{request.method} {parent.children[0].p}\n"

        return Response(body(), 201)

    assert answer(site, view).text == "POST 1\nPOST 2\n"


def test_a_cursor_that_is_opened_in_the_body_reads_to_its_end(site):
    def view():
        def body():
            session = sync_db_session()
            session.execute(insert(Held), [{"v": v} for v in range(100, 150)])
            rows = session.scalars(select(Held.v).where(Held.v > 99).order_by(Held.v).execution_options(yield_per=7))
            for v in rows:
                yield f"{v},"

        return Response(body(), 201)

    assert answer(site, view).text == "".join(f"{v}," for v in range(100, 150))
    assert site.held()[-1] == 149


def test_results_that_are_read_piece_by_piece(site):
    def view():
        session = site.db.get_session()
        session.execute(insert(Held), [{"v": v} for v in range(25)])
        chosen = select(Held.v).order_by(Held.v)
        streamed = session.execute(text("SELECT v FROM held ORDER BY v"), execution_options={"stream_results": True})
        assert streamed.fetchone() == (0,)
        assert [v for (v,) in streamed.fetchmany(3)] == [1, 2, 3]
        assert len(streamed.fetchall()) == 21
        parts = session.scalars(chosen.execution_options(yield_per=10)).partitions()
        assert [len(part) for part in parts] == [10, 10, 5]
        with session.execute(chosen, execution_options={"stream_results": True}) as left:
            assert left.fetchone() == (0,)
        left = session.scalars(chosen, execution_options={"stream_results": True, "max_row_buffer": 2})
        assert next(iter(left)) == 0
        left.close()
        frozen = session.execute(chosen).freeze()
        assert len(frozen().all()) == 25
        return "", 201

    assert answer(site, view).status_code == 201


def test_a_cursor_left_open_is_closed_with_the_request(site):
    def view():
        session = site.db.get_session()
        session.execute(insert(Held), [{"v": v} for v in range(25)])
        g.left = session.scalars(select(Held), execution_options={"stream_results": True})
        next(iter(g.left))
        return "", 404

    assert answer(site, view).status_code == 404
    assert site.held() == []


def test_savepoints_of_the_sessions_own(site):
    def view():
        session = site.db.get_session()
        session.add(Held(v=1))
        with session.begin_nested():
            session.add(Held(v=2))
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.add(Held(v=3))
            session.flush()
            raise ZeroDivisionError
        savepoint = session.begin_nested()
        session.add(Held(v=4))
        savepoint.rollback()
        savepoint = session.begin_nested()
        session.add(Held(v=5))
        with session.begin_nested() as inner:
            session.add(Held(v=6))
            inner.rollback()
        savepoint.commit()
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2, 5]


def test_a_failed_statement_in_a_savepoint_is_undone_alone(site):
    def view():
        session = site.db.get_session()
        session.execute(insert(Parent).values(id=1))
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(insert(Parent).values(id=1))
        session.add(Held(v=1))
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1]


def test_begin_as_a_block(manual):
    def view():
        session = manual.db.get_session()
        with session.begin():
            session.add(Held(v=1))
        with pytest.raises(ZeroDivisionError), session.begin():
            session.add(Held(v=2))
            session.flush()
            raise ZeroDivisionError
        transaction = session.begin()
        session.add(Held(v=3))
        transaction.commit()
        return "", 500

    assert answer(manual, view).status_code == 500
    assert manual.held() == [1, 3]


def test_no_autoflush(site):
    def view():
        session = site.db.get_session()
        with session.no_autoflush:
            session.add(Held(v=1))
            assert session.scalar(select(func.count()).select_from(Held)) == 0
        assert session.scalar(select(func.count()).select_from(Held)) == 1
        return "", 201

    assert answer(site, view).status_code == 201


def test_the_apps_own_commits_and_rollbacks(manual):
    def view():
        session = manual.db.get_session()
        session.add(Held(v=1))
        session.commit()
        assert manual.held() == [1]
        assert out_of_pool(manual.config) == 0
        session.add(Held(v=2))
        session.flush()
        session.rollback()
        one = session.get(Held, 1)
        session.commit()
        assert one.v == 1  # expired by the commit, and read again
        session.close()
        session.add(Held(v=3))
        session.commit()
        session.invalidate()
        session.reset()
        return "", 500

    assert answer(manual, view).status_code == 500
    assert manual.held() == [1, 3]


def test_a_manual_commit_that_was_forgotten_is_warned_of(manual, caplog):
    def view():
        manual.db.get_session().add(Held(v=1))
        return "", 201

    assert answer(manual, view).status_code == 201
    assert manual.held() == []
    assert "POST /" in caplog.text


def test_the_sessions_connection(site):
    def view():
        connection = site.db.get_session().connection()
        assert connection is site.db.get_session().connection()
        connection.execute(text("INSERT INTO held VALUES (1)"))
        connection.exec_driver_sql("INSERT INTO held VALUES (2)")
        assert connection.scalar(text("SELECT count(*) FROM held")) == 2
        assert connection.scalars(select(Held.v).order_by(Held.v)).all() == [1, 2]
        streamed = connection.execution_options(stream_results=True).execute(select(Held.v).order_by(Held.v))
        assert [row.v for row in streamed] == [1, 2]
        assert connection.in_transaction()
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2]


def test_savepoints_of_the_sessions_connection(site):
    def view():
        connection = site.db.get_session().connection()
        with connection.begin_nested():
            connection.execute(text("INSERT INTO held VALUES (1)"))
        with pytest.raises(ZeroDivisionError), connection.begin_nested():
            connection.execute(text("INSERT INTO held VALUES (2)"))
            raise ZeroDivisionError
        savepoint = connection.begin_nested()
        connection.execute(text("INSERT INTO held VALUES (3)"))
        savepoint.rollback()
        savepoint.close()
        savepoint = connection.begin_nested()
        connection.execute(text("INSERT INTO held VALUES (4)"))
        assert connection.get_nested_transaction() is savepoint
        savepoint.commit()
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 4]


def test_the_connections_own_end_of_the_transaction(manual):
    def view():
        connection = manual.db.get_session().connection()
        connection.execute(text("INSERT INTO held VALUES (1)"))
        connection.get_transaction().rollback()
        return "", 201

    assert answer(manual, view).status_code == 201
    assert manual.held() == []


def test_what_a_connection_tells(site):
    def view():
        session = site.db.get_session()
        connection = session.connection()
        assert connection.get_isolation_level() in ("READ COMMITTED", "SERIALIZABLE")
        assert connection.dialect.name in ("sqlite", "postgresql")
        assert not connection.closed
        return "", 201

    assert answer(site, view).status_code == 201


def test_an_isolation_level_for_one_transaction(site):
    def view():
        session = site.db.get_session()
        connection = session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        assert connection.get_isolation_level() == "SERIALIZABLE"
        session.add(Held(v=1))
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1]


def test_tables_are_made_looked_at_and_dropped(site):
    metadata = MetaData()
    made = Table("made_in_a_view", metadata, Column("id", Integer, primary_key=True), Column("name", String(20)))

    def view():
        session = site.db.get_session()
        connection = session.connection()
        metadata.create_all(connection)
        metadata.create_all(connection)
        session.execute(insert(made).values(id=1, name="x"))
        look = inspect(connection)
        assert look.has_table("made_in_a_view")
        assert [column["name"] for column in look.get_columns("made_in_a_view")] == ["id", "name"]
        assert look.get_pk_constraint("made_in_a_view")["constrained_columns"] == ["id"]
        reflected = Table("made_in_a_view", MetaData(), autoload_with=connection)
        assert session.execute(select(reflected)).all() == [(1, "x")]
        made.drop(connection)
        return "", 201

    assert answer(site, view).status_code == 201


def test_one_session_in_all_parts_of_a_request(site):
    seen = []

    def note(*args):
        seen.append(site.db.get_session())
        return args[0] if args else None

    site.app.before_request(note)
    site.app.after_request(note)
    site.app.teardown_request(lambda error: seen.append(site.db.get_session()) and None)
    site.app.jinja_env.globals["note"] = note

    def view():
        note()
        return render_template_string("{{ note() and '' }}"), 201

    assert answer(site, view).status_code == 201
    assert len({id(one) for one in seen[:4]}) == 1
    assert len(seen) == 5
    assert seen[4] is not seen[0]  # a teardown function comes after the settled response


def test_what_before_request_and_after_request_do_is_part_of_it(site):
    site.app.before_request(lambda: site.add(1))

    @site.app.after_request
    def after(response):
        site.add(3)
        return response

    def view():
        site.add(2)
        return "", request.args.get("status", 201, int)

    site.view(view)
    assert site.post("/?status=404").status_code == 404
    assert site.held() == []
    assert site.post().status_code == 201
    assert site.held() == [1, 2, 3]


def test_errors_have_the_views_traceback(site):
    def view():
        that_fails(site.db.get_session())

    def that_fails(session):
        session.execute(text("SELECT * FROM nowhere"))

    with pytest.raises(Exception, match="nowhere") as caught:
        answer(site, view)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "view" in frames
    assert "that_fails" in frames
    assert frames.index("view") < frames.index("that_fails")


def test_an_error_that_was_handled_can_be_raised_again(site):
    def view():
        session = site.db.get_session()
        try:
            session.execute(insert(Parent).values(id=1))
            session.execute(insert(Parent).values(id=1))
        except IntegrityError:
            session.rollback()
        session.add(Held(v=1))
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1]


def test_a_swallowed_error_is_a_failed_commit_where_the_database_says_so(site):
    def view():
        session = site.db.get_session()
        site.add(1)
        with pytest.raises(Exception, match="nowhere"):
            session.connection().execute(text("SELECT * FROM nowhere"))
        return "", 201

    if isinstance(site.tables, Postgres):
        with pytest.raises(CommitFailed):
            answer(site, view)
        assert site.held() == []
    else:
        assert answer(site, view).status_code == 201
        assert site.held() == [1]


def test_a_failed_commit_is_answered_by_the_apps_handler(site):
    told = []

    @site.app.errorhandler(IntegrityError)
    def handler(error):
        told.append(site.db.get_session().scalar(select(func.count()).select_from(Held)))
        return "conflict", 409

    def view():
        site.add(1)
        site.violate()
        after_commit(lambda: told.append("never"))
        return "", 201

    assert answer(site, view).status_code == 409
    assert (told, site.held()) == ([0], [])


def test_no_connection_is_held_before_the_first_statement_nor_after_the_commit(site):
    taken = []

    def view():
        site.db.get_session()
        taken.append(out_of_pool(site.config))
        site.add(1)
        taken.append(out_of_pool(site.config))

        def body():
            taken.append(out_of_pool(site.config))
            yield "a"

        return Response(body(), 201)

    assert answer(site, view).text == "a"
    assert taken == [0, 1, 0]


def test_listeners_and_defaults_see_the_request(site):
    def by_whom(context):
        return f"{g.who} of {current_app.name} {request.path}"

    metadata = MetaData()
    noted = Table("noted", metadata, Column("v", Integer), Column("by", String(50), default=by_whom))
    seen = []

    def view():
        g.who = "me"
        session = site.db.get_session()
        event.listen(session, "before_flush", lambda *_: seen.append((g.who, request.method, current_app.name)))
        event.listen(session, "do_orm_execute", lambda state: seen.append(g.who))
        metadata.create_all(session.connection())
        session.execute(insert(noted).values(v=1))
        session.add(Held(v=1))
        session.flush()
        assert session.scalar(select(noted.c.by)) == "me of site /"
        metadata.drop_all(session.connection())
        return "", 201

    assert answer(site, view).status_code == 201
    assert ("me", "POST", "site") in seen
    assert "me" in seen


def test_a_listener_of_a_plain_view_gets_the_plain_session(site):
    seen = []

    def listener(session, *_):
        asked = site.db.get_session()
        seen.append(asked is session)
        asked.execute(insert(Held).values(v=2))

    def view():
        session = site.db.get_session()
        event.listen(session, "after_flush", listener)
        session.add(Held(v=1))
        return "", 201

    assert answer(site, view).status_code == 201
    assert seen == [True]
    assert site.held() == [1, 2]


def test_sql_first_over_the_session(site):
    def view():
        session = site.db.get_session()
        session.add(Held(v=1))
        session.flush()
        sql = over(session)
        assert sql.select_value("SELECT v FROM held") == 1
        sql.execute("INSERT INTO held VALUES (:v)", v=2)
        assert [row["v"] for row in sql.select("SELECT v FROM held ORDER BY v")] == [1, 2]
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2]


def test_blocks_are_savepoints(site):
    def view():
        site.add(1)
        with unit_of_work():
            site.add(2)
        with pytest.raises(ZeroDivisionError), unit_of_work():
            site.add(3)
            with unit_of_work():
                site.add(4)
            raise ZeroDivisionError
        with unit_of_work():
            with pytest.raises(ZeroDivisionError), unit_of_work():
                site.add(5)
                raise ZeroDivisionError
            site.add(6)
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2, 6]


def test_a_block_before_the_first_statement_is_a_savepoint_too(site):
    def view():
        with pytest.raises(ZeroDivisionError), unit_of_work():
            site.add(1)
            raise ZeroDivisionError
        site.add(2)
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [2]


def test_commit_inside_a_block_is_refused(site):
    def view():
        site.add(1)
        with unit_of_work():
            with pytest.raises(UsageError):
                site.db.get_session().commit()
            site.add(2)
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2]


def test_transactions_of_each_kind(pg):
    with site_of(pg, pg.config()) as site:
        site.app.config["PROPAGATE_EXCEPTIONS"] = True

        @transaction("mandatory")
        def part(v):
            site.add(v)

        @transaction("requires_new")
        def alone(v):
            site.add(v)
            assert site.db.get_session() is not outer

        def view():
            nonlocal outer
            outer = site.db.get_session()
            site.add(1)
            part(2)
            alone(3)
            with transaction("never"), pytest.raises(OutsideScope):
                site.db.get_session()
            return "", 404

        outer = None
        with pytest.raises(UsageError):
            answer(site, view)
        with site.app.app_context():
            outer = None
            alone(4)
        assert site.held() == [3, 4]


def test_an_error_swallowed_around_a_part_of_the_unit_fails_its_commit(site):
    def view():
        site.add(1)
        with pytest.raises(ZeroDivisionError), transaction():
            site.add(2)
            raise ZeroDivisionError
        return "", 201

    with pytest.raises(CommitFailed):
        answer(site, view)
    assert site.held() == []


def test_functions_in_units_of_their_own(pg):
    with site_of(pg, pg.config()) as site:

        @in_new_unit
        def audit(v):
            site.add(v)
            if v == 3:
                raise ZeroDivisionError

        def view():
            site.add(1)
            audit(2)
            with pytest.raises(ZeroDivisionError):
                audit(3)
            return "", 500

        assert answer(site, view).status_code == 500
        assert site.held() == [2]


def test_sessions_of_their_own(pg):
    with site_of(pg, pg.config()) as site:

        def view():
            site.add(1)
            with site.db.with_session() as session:
                session.add(Held(v=2))
            assert site.held() == [2]
            with pytest.raises(ZeroDivisionError), site.db.with_session() as session:
                session.add(Held(v=3))
                raise ZeroDivisionError
            return "", 500

        assert answer(site, view).status_code == 500
        with site.db.with_session() as session:
            session.add(Held(v=4))
        assert site.held() == [2, 4]


def test_hooks_plain_and_async(site):
    ran = []

    async def coroutine():
        ran.append(("async", g.who, site.held()))

    def view():
        g.who = "me"
        site.add(1)
        after_commit(lambda: ran.append(("plain", g.who, request.path, site.held())))
        after_commit(coroutine)
        after_rollback(lambda: ran.append("rolled back"))
        return "", request.args.get("status", 201, int)

    site.view(view)
    assert site.post().status_code == 201
    assert ran == [("plain", "me", "/", [1]), ("async", "me", [1])]
    ran.clear()
    assert site.get("/?status=404").status_code in (404, 500)
    assert ran == ["rolled back"]


def test_a_plain_hook_uses_the_database(site):
    def hook():
        session = site.db.get_session()
        assert isinstance(session, Session)
        assert session.scalar(select(func.count()).select_from(Held)) == 1
        session.add(Held(v=2))

    def view():
        site.add(1)
        after_commit(hook)
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2]


def test_a_hook_that_fails_changes_nothing(site, caplog):
    def view():
        site.add(1)
        after_commit(lambda: 1 / 0)
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1]
    assert "ZeroDivisionError" in caplog.text


def test_what_is_doomed_is_not_kept(site, caplog):
    def view():
        site.add(1)
        doom("not this")
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == []
    assert "not this" in caplog.text


def test_the_session_after_its_request(site):
    kept = []

    def view():
        session = site.db.get_session()
        session.add(Parent(id=1, children=[Child()]))
        session.flush()
        kept.append(session)
        return "", 201

    assert answer(site, view).status_code == 201
    (session,) = kept
    with pytest.raises(OutsideScope):
        session.execute(select(Held))
    session.rollback()
    session.close()


def test_the_in_memory_database_is_one():
    config = SQLAlchemyAsyncConfig(
        connection_string="sqlite+aiosqlite://", metadata=Held.metadata, create_all=True, commit_mode="autocommit"
    )
    from flask import Flask

    app = Flask("memory")
    db = Transept(config, app)

    @app.post("/<int:v>")
    def add(v):
        db.get_session().add(Held(v=v))
        return "", 201 if v else 400

    @app.get("/")
    def read():
        return [one.v for one in db.get_session().scalars(select(Held).order_by(Held.v))]

    client = app.test_client()
    assert [client.post(f"/{v}").status_code for v in (1, 0, 2)] == [201, 400, 201]
    assert client.get("/").json == [1, 2]
    db.close()


def test_the_unit_of_an_app_context(site):
    with site.app.app_context():
        site.add(1)
        assert site.held() == []
    assert site.held() == [1]
    with pytest.raises(ZeroDivisionError), site.app.app_context():
        site.add(2)
        raise ZeroDivisionError
    assert site.held() == [1]
