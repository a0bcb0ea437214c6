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
from solti_store.errors import SoltiStoreError
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
        # Which DROP OWNED leaves.
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(database))
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
            " WHERE nspname = ANY(%(names)s)"
            " UNION SELECT pg_get_userbyid(proowner) FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace"
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
    downgrade(owner, "base", schema=schema)


def test_a_worker_needs_no_right_that_everybody_has(empty_database_url: str, prefix: str) -> None:
    # As who hardens a server may have it: then nobody runs the functions of CHECKs without being told so.
    with connect(empty_database_url) as connection:
        connection.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    upgrade(empty_database_url)
    make(empty_database_url, prefix)
    with TaskStore.open(as_role(empty_database_url, f"{prefix}_worker")) as store:
        all_of_a_life(store)


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
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace,
                -- None is the owner's own, which a REVOKE from anybody spells out.
                aclexplode(COALESCE(relacl, acldefault(CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, relowner)))
                    AS one
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
            "GRANT UPDATE ON SEQUENCE solti.tasks_seq_seq TO {0}",
            "GRANT UPDATE (oldest_code) ON solti.schema_history TO {0}",
            "GRANT SELECT ON solti.agents TO {0} WITH GRANT OPTION",
            "REVOKE SELECT ON solti_report.tasks FROM {1}",
            "GRANT ALL ON solti_report.outcomes TO {1}",
        ):
            connection.execute(sql.SQL(statement).format(worker, reader))
    make(empty_database_url, prefix)
    assert granted(empty_database_url) == before


@pytest.mark.parametrize(
    ("job", "excess", "reason"),
    [
        ("worker", "ALTER ROLE {} SUPERUSER", "it is a superuser\n"),
        ("owner", "ALTER ROLE {} CREATEROLE", "it may create roles\n"),
        ("reader", "ALTER ROLE {} CREATEDB", "it may create databases\n"),
        ("worker", "GRANT {owner} TO {}", "it is a member of"),
        ("reader", "GRANT {worker} TO {}", "it is a member of"),
        ("worker", "GRANT pg_write_all_data TO {}", "it is a member of pg_write_all_data, may DELETE on"),
        ("owner", "GRANT pg_execute_server_program TO {}", "it is a member of pg_execute_server_program\n"),
        # By way of a group, whose rights a member that does not inherit takes by SET ROLE.
        ("worker", "ALTER ROLE {group} SUPERUSER; GRANT {group} TO {}", "which is a superuser\n"),
        ("owner", "ALTER ROLE {group} SUPERUSER; GRANT {group} TO {}", "which is a superuser\n"),
        ("worker", "ALTER ROLE {} NOINHERIT; GRANT {owner} TO {group}; GRANT {group} TO {}", "it is a member of"),
        ("owner", "GRANT pg_write_server_files TO {group}; GRANT {group} TO {}", "member of pg_write_server_files\n"),
        ("worker", "GRANT TRIGGER ON solti.tasks TO {group}; GRANT {group} TO {}", "it may TRIGGER on tasks\n"),
        (
            "worker",
            "ALTER ROLE {} NOINHERIT; GRANT TRUNCATE ON solti.tasks, solti.agents TO {group}; GRANT {group} TO {}",
            "it may TRUNCATE on agents and tasks\n",
        ),
        ("worker", "GRANT DELETE ON solti.backfills TO {group}; GRANT {group} TO {}", "it may DELETE on backfills\n"),
        (
            "worker",
            "GRANT UPDATE (oldest_code) ON solti.schema_history TO {group}; GRANT {group} TO {}",
            "it may UPDATE on schema_history\n",
        ),
        (
            "worker",
            "GRANT SELECT ON solti.tasks TO {group} WITH GRANT OPTION; GRANT {group} TO {}",
            "it may SELECT WITH GRANT OPTION on tasks\n",
        ),
        (
            "worker",
            "GRANT UPDATE ON SEQUENCE solti.tasks_seq_seq TO {group}; GRANT {group} TO {}",
            "it may UPDATE on tasks_seq_seq\n",
        ),
        ("reader", "GRANT SELECT ON solti.tasks TO {}", "it may SELECT on tasks\n"),
        # What it could do by owning.
        ("worker", "ALTER TABLE solti.agents OWNER TO {}", "it owns agents and agents_seq_seq\n"),
        ("worker", "ALTER SCHEMA solti_report OWNER TO {}", "it owns the schema solti_report\n"),
        ("reader", "ALTER VIEW solti_report.tasks OWNER TO {}", "it owns tasks\n"),
        # What it could make.
        ("owner", "GRANT CREATE ON DATABASE {database} TO {}", "it may create in the database\n"),
        ("reader", "GRANT CREATE ON DATABASE {database} TO {}", "it may create in the database\n"),
        ("worker", "ALTER DATABASE {database} OWNER TO {}", "may create in the schema public, owns the database\n"),
        ("worker", "GRANT CREATE ON SCHEMA public TO {}", "it may create in the schema public\n"),
        ("owner", "GRANT CREATE ON SCHEMA public TO PUBLIC", "it may create in the schema public, as everybody\n"),
        # What it could do to what comes.
        (
            "worker",
            "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT INSERT, SELECT ON TABLES TO {}",
            "it may INSERT on what is to come\n",
        ),
        (
            "reader",
            "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA solti_report GRANT TRUNCATE ON TABLES TO PUBLIC",
            "it may TRUNCATE on what is to come\n",
        ),
    ],
)
def test_a_role_that_may_do_more_is_refused_and_all_is_left_as_it_was(
    empty_database_url: str, prefix: str, job: str, excess: str, reason: str
) -> None:
    upgrade(empty_database_url)
    engine = create_engine(empty_database_url)
    with engine.begin() as connection:
        ensure(connection, Roles.prefixed(prefix), timedelta(seconds=30))
    names = {one: sql.Identifier(f"{prefix}_{one}") for one in (*JOBS, "group")}
    with connect(empty_database_url) as connection:
        names["database"] = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("CREATE ROLE {}").format(names["group"]))
        for statement in excess.split("; "):
            connection.execute(sql.SQL(statement).format(names[job], **names))
        connection.execute(sql.SQL("REVOKE SELECT ON solti_report.tasks FROM {}").format(names[job]))
    before = granted(empty_database_url)
    # It alone: an owner that is named is given what others own.
    with pytest.raises(SoltiStoreError) as caught, engine.begin() as connection:
        ensure(connection, Roles(**{job: f"{prefix}_{job}"}), timedelta(seconds=30))
    assert f"is not for a {job} alone: it" in str(caught.value)
    assert reason in f"{caught.value}\n"
    assert granted(empty_database_url) == before
    engine.dispose()


def test_the_command_says_in_a_line_what_is_too_much(empty_database_url: str, prefix: str) -> None:
    make(empty_database_url, prefix)
    with connect(empty_database_url) as connection:
        connection.execute(sql.SQL("ALTER ROLE {} CREATEDB").format(sql.Identifier(f"{prefix}_worker")))
    done = run_cli("db", "roles", "--prefix", prefix, url=empty_database_url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "is not for a worker alone: it may create databases" in done.stderr


def test_the_right_to_maintain_tables_is_one_too_many(empty_database_url: str, prefix: str) -> None:
    migrated(empty_database_url, prefix, SCHEMA)
    worker, group = f"{prefix}_worker", sql.Identifier(f"{prefix}_group")
    with connect(empty_database_url) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(group))
        connection.execute(sql.SQL("GRANT {} TO {}").format(group, sql.Identifier(worker)))
        new = connection.info.server_version >= 170000
        connection.execute(
            sql.SQL("GRANT {} ON solti.tasks TO {}").format(sql.SQL("MAINTAIN" if new else "TRIGGER"), group)
        )
    done = run_cli("db", "roles", "--worker", worker, url=empty_database_url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"it may {'MAINTAIN' if new else 'TRIGGER'} on tasks\n" in done.stderr


def test_what_the_job_needs_by_way_of_a_group_is_allowed(empty_database_url: str, prefix: str) -> None:
    migrated(empty_database_url, prefix, SCHEMA)
    worker, group = sql.Identifier(f"{prefix}_worker"), sql.Identifier(f"{prefix}_group")
    with connect(empty_database_url) as connection:
        for statement in (
            "CREATE ROLE {group}",
            "GRANT SELECT, UPDATE ON solti.tasks TO {group}",
            "GRANT SELECT ON solti.backfills TO {group}",
            "GRANT {group}, pg_read_all_stats TO {worker}",
        ):
            connection.execute(sql.SQL(statement).format(worker=worker, group=group))
    make(empty_database_url, prefix)


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
        ("--reader", "r", "--timeout", "60d"),
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
