"""Roles that `db roles` makes: each logs in, does its job, and is refused everything else."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from cli_run import data_of, run_cli
from psycopg import sql
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import DBAPIError
from support import ODD_SCHEMA, connect, queued, spec

from solti_store import Outcome, RestartPolicy, Retention, TaskQuery, TaskStore, migrate
from solti_store.migrate import downgrade, upgrade
from solti_store.model import Selector, TaskChange
from solti_store.ops.roles import Roles, ensure
from solti_store.rules.reports import REPORTS
from solti_store.sql.naming import SCHEMA, engine_in, quoted, renamed, report_schema
from solti_store.sql.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = ("owner", "worker", "reader")


@pytest.fixture
def prefix(empty_database_url: str) -> Iterator[str]:
    """What the names of a test's roles begin with; afterwards there are none: roles are the whole server's."""
    name = f'so:"l%ti-{uuid.uuid4().hex[:8]}'
    yield name
    with connect(empty_database_url) as connection:
        for (role,) in connection.execute("SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [name]):
            for statement in ("DROP OWNED BY {} CASCADE", "DROP ROLE {}"):
                connection.execute(sql.SQL(statement).format(sql.Identifier(role)))


@pytest.fixture(params=[SCHEMA, ODD_SCHEMA], ids=["default", "odd"])
def schema(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def make(url: str, prefix: str, schema: str = SCHEMA, *more: str) -> str:
    done = run_cli("--schema", schema, "db", "roles", "--prefix", prefix, *more, url=url)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def as_role(url: str, role: str) -> str:
    """The URL for a role, which gets a password, for servers that ask for one."""
    with connect(url) as connection:
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 's3cret'").format(sql.Identifier(role)))
    return make_url(url).set(username=role, password="s3cret").render_as_string(hide_password=False)


def migrated(url: str, prefix: str, schema: str) -> None:
    """By the owner, in a database in which it has no right."""
    make(url, prefix, schema)
    upgrade(as_role(url, f"{prefix}_owner"), schema=schema)


def all_of_a_life(store: TaskStore) -> None:
    """Whatever a store can do."""
    token = store.token()
    store.create("a", spec("a", restart=RestartPolicy.on_failure()))
    store.create_many([("b", spec("b")), ("c", queued("b")), ("d", spec("d"))])
    store.update("a", lambda old: old.replace(timeout=7000))
    agent = store.register("w", labels={"zone": "a"}, capacity=3)
    assert [one.id for one in store.agents()] == ["w"]
    claims = {str(claim.task_id): claim for claim in store.claim(agent, limit=2)}
    assert len(store.held(agent)) == len(store.held_keys(agent)) == len(claims) == 2
    store.heartbeat(agent)
    store.finish(claims["a"], Outcome.failed("no", exit_code=1))
    store.cancel("b")
    store.finish_many([(claims["b"], Outcome.canceled())])
    store.start("d", agent)
    assert store.why("c").message
    assert len(store.runs("a")) == 1
    store.index_labels()
    assert store.list(TaskQuery(selector=Selector.parse("!x"), with_token=True)).items
    assert store.changes(token).changes
    assert isinstance(next(iter(store.watch(since=token))), TaskChange)
    store.drain(agent)
    store.sign_off(agent)
    store.reap()
    store.delete("c")
    store.prune(Retention(tasks=timedelta(0), runs=timedelta(0), events=timedelta(0), agents=timedelta(0)))


def test_a_worker_lives_a_whole_life_and_can_do_nothing_else(empty_database_url: str, prefix: str, schema: str) -> None:
    migrated(empty_database_url, prefix, schema)
    with connect(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA host CREATE TABLE mine (n int)")
        connection.execute("CREATE TABLE public.mine (n int)")
    url = as_role(empty_database_url, f"{prefix}_worker")
    with TaskStore.open(url, schema=schema) as store:
        all_of_a_life(store)
    assert run_cli("--schema", schema, "db", "roll-up", url=url).returncode == 0
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as worker:
        names = [*(f"solti.{table.name}" for table in metadata.sorted_tables), "solti.alembic_version"]
        for statement in (
            *(f"TRUNCATE {name} CASCADE" for name in names),
            *(f"DROP TABLE {name} CASCADE" for name in names),
            *(f"ALTER TABLE {name} ADD COLUMN more int" for name in names),
            *(
                f"CREATE TRIGGER t AFTER INSERT ON {name} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
                for name in names
            ),
            "UPDATE solti.alembic_version SET version_num = 'x'",
            "DELETE FROM solti.alembic_version",
            "INSERT INTO solti.alembic_version VALUES ('x')",
            "CREATE TABLE solti.mine (n int)",
            "CREATE VIEW solti_report.mine AS SELECT 1",
            "DROP VIEW solti_report.tasks",
            "CREATE SCHEMA another",
            "SELECT * FROM host.mine",
            "SELECT * FROM public.mine",
            f"SET ROLE {quoted(f'{prefix}_owner')}",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                worker.execute(renamed(statement, schema).encode())
        assert worker.execute(renamed("SELECT count(*) FROM solti.alembic_version", schema).encode()).fetchone() == (1,)


def test_an_owner_migrates_both_ways_and_the_others_work_on(empty_database_url: str, prefix: str, schema: str) -> None:
    migrated(empty_database_url, prefix, schema)
    owner = as_role(empty_database_url, f"{prefix}_owner")
    with connect(owner) as connection:
        rights = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, has_database_privilege(current_database(), 'CREATE')"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        assert rights == (False, False, False, False)
    downgrade(owner, "base", schema=schema)
    upgrade(owner, schema=schema)
    with TaskStore.open(as_role(empty_database_url, f"{prefix}_worker"), schema=schema) as store:
        all_of_a_life(store)
    reader = as_role(empty_database_url, f"{prefix}_reader")
    views = {report.view for report in REPORTS.values()} | {"version", "freshness"}
    with connect(reader) as connection:
        for view in views:
            connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(view))).fetchall()
        for table in ("alembic_version", *(table.name for table in metadata.sorted_tables)):
            connection.execute("SET default_transaction_read_only = off")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(
                    sql.SQL("SELECT FROM {}.{}").format(
                        sql.Identifier(schema), sql.Identifier(getattr(table, "name", table))
                    )
                )
        assert connection.execute("SHOW statement_timeout").fetchone() == ("30s",)
    # And what the command itself asks of a reader.
    assert "b" in data_of("--schema", schema, "report", "tasks", url=reader)


def owners(url: str, schema: str) -> set[str]:
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT pg_get_userbyid(relowner) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace"
            " WHERE nspname = ANY(%(names)s) UNION SELECT pg_get_userbyid(nspowner) FROM pg_namespace"
            " WHERE nspname = ANY(%(names)s)",
            {"names": [schema, report_schema(schema)]},
        ).fetchall()
    return {row[0] for row in rows}


def test_an_owner_takes_over_what_another_role_has_made(empty_database_url: str, prefix: str, schema: str) -> None:
    upgrade(empty_database_url, schema=schema)
    with TaskStore.open(empty_database_url, schema=schema) as store:
        store.create("kept", spec())
    assert "was created" in make(empty_database_url, prefix, schema)
    assert owners(empty_database_url, schema) == {f"{prefix}_owner"}
    owner = as_role(empty_database_url, f"{prefix}_owner")
    downgrade(owner, "-1", schema=schema)
    upgrade(owner, schema=schema)
    with TaskStore.open(as_role(empty_database_url, f"{prefix}_worker"), schema=schema) as store:
        assert store.get("kept").id == "kept"


def test_a_table_that_is_held_is_not_waited_for_long(empty_database_url: str, prefix: str) -> None:
    upgrade(empty_database_url)
    before = owners(empty_database_url, SCHEMA)
    waits = migrate.Waits(lock_timeout=timedelta(milliseconds=100))
    engine = create_engine(empty_database_url)
    with connect(empty_database_url) as holder, engine.connect() as connection, holder.transaction():
        holder.execute("LOCK TABLE solti.tasks IN ROW EXCLUSIVE MODE")
        with pytest.raises(DBAPIError, match="lock timeout"), migrate.holding_lock(connection, waits=waits):
            ensure(connection, Roles.prefixed(prefix), timedelta(seconds=30))
        with connect(empty_database_url) as other, other.transaction():
            other.execute("LOCK TABLE solti.task_runs IN ACCESS EXCLUSIVE MODE NOWAIT")
    assert owners(empty_database_url, SCHEMA) == before
    engine.dispose()


@pytest.mark.parametrize("job", ["worker", "reader"])
def test_an_owner_is_not_made_less(empty_database_url: str, prefix: str, job: str) -> None:
    migrated(empty_database_url, prefix, SCHEMA)
    done = run_cli("db", "roles", f"--{job}", f"{prefix}_owner", url=empty_database_url)
    assert (done.returncode, "owns the schemas" in done.stderr) == (1, True), done.stderr
    downgrade(as_role(empty_database_url, f"{prefix}_owner"), "solti_0001")


def granted(url: str) -> set[Any]:
    """Who was given what, and what will be given, in our schemas."""
    with connect(url) as connection:
        rows = connection.execute(
            """
            SELECT nspname::text, relname::text, one.grantee, one.privilege_type
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace, aclexplode(relacl) AS one
            WHERE nspname ~ '^solti'
            UNION ALL
            SELECT nspname::text, 'the schema', one.grantee, one.privilege_type
            FROM pg_namespace, aclexplode(nspacl) AS one WHERE nspname ~ '^solti'
            UNION ALL
            SELECT defaclnamespace::text, 'what comes', one.grantee, one.privilege_type
            FROM pg_default_acl, aclexplode(defaclacl) AS one
            """
        ).fetchall()
    return set(rows)


def test_again_it_changes_nothing_and_sets_right_what_was_changed(empty_database_url: str, prefix: str) -> None:
    migrated(empty_database_url, prefix, SCHEMA)
    before = granted(empty_database_url)
    assert "created" not in make(empty_database_url, prefix)
    assert granted(empty_database_url) == before
    worker, reader = (sql.Identifier(f"{prefix}_{job}") for job in ("worker", "reader"))
    with connect(empty_database_url) as connection:
        for statement in (
            "GRANT ALL ON ALL TABLES IN SCHEMA solti TO {0}",
            "GRANT CREATE ON SCHEMA solti TO {0}",
            "REVOKE SELECT ON solti.tasks FROM {0}",
            "GRANT TRUNCATE ON solti.tasks TO PUBLIC",
            "REVOKE SELECT ON solti_report.tasks FROM {1}",
            "GRANT ALL ON solti_report.outcomes TO {1}",
        ):
            connection.execute(sql.SQL(statement).format(worker, reader))
    make(empty_database_url, prefix)
    assert granted(empty_database_url) == before


@pytest.mark.parametrize(
    ("job", "excess", "reason"),
    [
        ("worker", "ALTER ROLE {} SUPERUSER", "worker alone: it is a superuser"),
        ("owner", "ALTER ROLE {} CREATEROLE", "owner alone: it may create roles"),
        ("reader", "ALTER ROLE {} CREATEDB", "reader alone: it may create databases"),
        ("worker", "GRANT {owner} TO {}", "worker alone: it is a member of"),
        ("reader", "GRANT {worker} TO {}", "reader alone: it is a member of"),
        ("worker", "GRANT pg_write_all_data TO {}", "worker alone: it may write alembic_version, may write"),
    ],
)
def test_a_role_that_may_do_more_is_refused_and_all_is_left_as_it_was(
    empty_database_url: str, prefix: str, job: str, excess: str, reason: str
) -> None:
    migrated(empty_database_url, prefix, SCHEMA)
    names = {job: sql.Identifier(f"{prefix}_{job}") for job in JOBS}
    with connect(empty_database_url) as connection:
        connection.execute(sql.SQL(excess).format(names[job], owner=names["owner"], worker=names["worker"]))
        connection.execute(sql.SQL("REVOKE SELECT ON solti.tasks FROM {}").format(names["worker"]))
    before = granted(empty_database_url)
    done = run_cli("db", "roles", "--prefix", prefix, url=empty_database_url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert reason in done.stderr
    assert granted(empty_database_url) == before


def test_only_those_that_are_named_are_made(empty_database_url: str, prefix: str) -> None:
    upgrade(empty_database_url)
    for _ in range(2):
        done = run_cli("db", "roles", "--worker", f"{prefix}-1", url=empty_database_url)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    with connect(empty_database_url) as connection:
        found = connection.execute("SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [prefix]).fetchall()
    assert found == [(f"{prefix}-1",)]
    with TaskStore.open(as_role(empty_database_url, f"{prefix}-1")) as store:
        all_of_a_life(store)


def test_without_a_schema_an_owner_has_to_be_named(empty_database_url: str, prefix: str) -> None:
    done = run_cli("db", "roles", "--reader", f"{prefix}-r", url=empty_database_url)
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "name an owner" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("--worker", ""),
        ("--owner", "x" * 64),
        ("--reader", "a\nb"),
        ("--reader", "pg_reader"),
        ("--worker", "public"),
        ("--worker", "one", "--owner", "one"),
        ("--prefix", "p", "--owner", "o"),
        ("--prefix", "p" * 60),
    ],
)
def test_names_that_no_roles_can_have_are_refused(empty_database_url: str, wrong: tuple[str, ...]) -> None:
    done = run_cli("db", "roles", *wrong, url=empty_database_url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_who_may_not_make_roles_is_told_what_it_takes(empty_database_url: str, prefix: str) -> None:
    migrated(empty_database_url, prefix, SCHEMA)
    owner = as_role(empty_database_url, f"{prefix}_owner")
    done = run_cli("db", "roles", "--worker", f"{prefix}-more", url=owner)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "this takes a superuser" in done.stderr


def test_an_administrator_who_is_no_superuser_can_do_it(empty_database_url: str, prefix: str) -> None:
    admin = f"{prefix}-admin"
    with connect(empty_database_url) as connection:
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEROLE").format(sql.Identifier(admin)))
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, sql.Identifier(admin)))
    url = as_role(empty_database_url, admin)
    upgrade(url)
    make(url, prefix)
    make(url, prefix)
    assert owners(empty_database_url, SCHEMA) == {f"{prefix}_owner"}
    with TaskStore.open(as_role(empty_database_url, f"{prefix}_worker")) as store:
        all_of_a_life(store)


def test_several_at_once_in_two_databases(empty_database_url: str, database_url: str, prefix: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda url: make(url, prefix), (empty_database_url, database_url) * 2))
    assert all(prefix in one for one in said)
    for url in (empty_database_url, database_url):
        upgrade(as_role(url, f"{prefix}_owner"))
        with TaskStore.open(as_role(url, f"{prefix}_worker")) as store:
            all_of_a_life(store)
    with connect(database_url) as connection:
        for job in JOBS:
            connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(f"{prefix}_{job}")))


def test_several_at_once_for_schemas_of_one_database(empty_database_url: str, prefix: str) -> None:
    engine = create_engine(empty_database_url)
    together = Barrier(4, timeout=30)

    def again(schema: str) -> None:
        for _ in range(10):
            together.wait()
            with engine_in(engine, schema).connect() as connection:
                ensure(connection, Roles.prefixed(prefix), timedelta(seconds=30))
                connection.commit()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(again, ("one", "two", "three", "four")))
    engine.dispose()
