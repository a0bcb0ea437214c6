"""What the doctor finds in a store: each finding brought about for real, and most of them mended by what it says."""

from __future__ import annotations

import json
import shlex
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from cli_run import run_cli
from sqlalchemy import create_engine, make_url
from support import ODD_SCHEMA, connect, queued, selecting, spec
from support_doctor import diagnose, found, mend, the

from solti_store import DoctorLimits, Finding, Invalid, Outcome, Severity, TaskStore
from solti_store.ops.schema import invalid_indexes
from solti_store.sql.naming import renamed

if TYPE_CHECKING:
    from collections.abc import Iterator

NONE = timedelta(0)
HOUR = timedelta(hours=1)


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as connection:
        yield connection


@pytest.fixture
def tasks(database_url: str) -> Iterator[TaskStore]:
    with TaskStore.open(database_url) as opened:
        yield opened


# --- schema -------------------------------------------------------------------------------------


def test_a_database_without_the_schema_is_a_finding_and_no_error(empty_database_url: str) -> None:
    done = run_cli("doctor", "-o", "json", url=empty_database_url)
    assert done.returncode == 7, done.stderr
    (one,) = [one for one in json.loads(done.stdout)["findings"] if one["code"] == "schema-revision"]
    assert (one["severity"], one["subject"], one["remedy"]) == ("error", "schema solti", "solti-store db upgrade")
    assert one["consequence"] == "a store refuses to open"
    assert "has no solti schema" in one["found"]


def test_a_schema_of_another_revision_is_a_finding(database_url: str, database: psycopg.Connection) -> None:
    database.execute("INSERT INTO solti.schema_history (revision, oldest_code) VALUES ('solti_9999', 'solti_9998')")
    done = run_cli("doctor", "-o", "name", url=database_url)
    assert (done.returncode, "schema-revision\n" in done.stdout) == (7, True)
    # What else the schema lacks is the migration's to bring.
    assert "schema-drift\n" not in done.stdout


def test_each_remedy_is_for_the_schema_that_was_examined(database_url: str, database: psycopg.Connection) -> None:
    def findings() -> dict[str, Finding]:
        done = run_cli("--schema", ODD_SCHEMA, "doctor", "-o", "json", url=database_url)
        return {one["code"]: Finding.from_dict(one) for one in json.loads(done.stdout)["findings"]}

    def spoil(statement: str) -> None:
        database.execute(renamed(statement, ODD_SCHEMA).encode())

    mend(database_url, findings()["schema-revision"])
    assert "schema-revision" not in findings()
    with TaskStore.open(database_url, schema=ODD_SCHEMA) as odd:
        odd.create("first", queued("s"))
        odd.create("next", queued("s"))
        odd.create("late", spec("a"))  # before the other: reaping begins at a random slot
    spoil("DELETE FROM solti.tasks WHERE id = 'first'")
    spoil("UPDATE solti.task_status SET due_at = now() - interval '1 hour' WHERE due_at IS NOT NULL")
    spoil("DROP INDEX solti.ix_agents_closed_at")
    spoil("ALTER TABLE solti.tasks SET (autovacuum_enabled = off)")
    for code in ("slot-ownerless", "schema-drift", "vacuum-off"):
        mend(database_url, findings()[code])
        assert code not in findings()
    assert findings()["route-unserved"].remedy.startswith(f"solti-store --schema {shlex.quote(ODD_SCHEMA)} work")


def test_views_of_another_version_are_a_finding(database_url: str, database: psycopg.Connection) -> None:
    database.execute("CREATE OR REPLACE VIEW solti_report.version AS SELECT 99 AS version")
    assert "version 99" in the(database_url, "schema-revision", "reports").found


def test_what_is_missing_is_named_with_what_makes_it(database_url: str, database: psycopg.Connection) -> None:
    database.execute("DROP INDEX solti.ix_task_status_claim, solti.uq_task_status_owner")
    database.execute("ALTER TABLE solti.tasks DROP CONSTRAINT ck_tasks_backoff")
    database.execute("DROP VIEW solti_report.throughput")
    database.execute("ALTER TABLE solti.task_runs DROP COLUMN stderr")
    database.execute("DROP TABLE solti.label_segments")
    drift = {one.subject: one for one in found(database_url, "schema-drift")}
    assert sorted(drift) == [
        "column task_runs.stderr",
        "constraint task_runs.ck_task_runs_stderr",
        "constraint tasks.ck_tasks_backoff",
        "index ix_task_status_claim",
        "index uq_task_status_owner",
        "table label_segments",
        "view throughput",
    ]
    for subject in ("constraint tasks.ck_tasks_backoff", "index ix_task_status_claim", "index uq_task_status_owner"):
        assert drift[subject].severity is Severity.ERROR
        mend(database_url, drift[subject])
    left = {one.subject for one in found(database_url, "schema-drift")}
    assert not any("claim" in one or "owner" in one or "backoff" in one for one in left)
    made = database.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'uq_task_status_owner'").fetchone()
    assert made is not None
    assert made[0].endswith("USING btree (slot) WHERE ((due_at IS NOT NULL) OR (deadline IS NOT NULL))")


def test_a_constraint_that_was_not_validated_is_a_finding(database_url: str, database: psycopg.Connection) -> None:
    database.execute("ALTER TABLE solti.routes ADD CONSTRAINT mine CHECK (kind <> '') NOT VALID")
    one = the(database_url, "schema-unvalidated", "constraint routes.mine")
    mend(database_url, one)
    assert not found(database_url, "schema-unvalidated", "constraint routes.mine")


def test_a_backfill_that_has_not_ended_is_worth_a_note(database_url: str, database: psycopg.Connection) -> None:
    database.execute("INSERT INTO solti.backfills (name, identity, seen, estimate) VALUES ('tasks (x)', '1', 70, 300)")
    one = the(database_url, "backfill-pending", "backfill of tasks (x)")
    assert one.found.startswith("has looked at 70 of about 300 rows")
    assert one.severity is Severity.NOTE


# --- tables and indexes -------------------------------------------------------------------------


def fill(database: psycopg.Connection, rows: int) -> None:
    """Events, as of tasks that are no more."""
    database.execute(
        "INSERT INTO solti.task_events (at, seq, id, type, resource_version, phase, attempt)"
        " SELECT now(), n, 'task-' || n, 'created', 1, 'pending', 0 FROM generate_series(1, %s) AS n",
        [rows],
    )


def counted(database: psycopg.Connection) -> None:
    """Let the statistics have what this session did."""
    database.execute("SELECT pg_stat_force_next_flush()")
    database.execute("SELECT 1")


def test_dead_rows_that_no_vacuum_removes(database_url: str, database: psycopg.Connection) -> None:
    database.execute("ALTER TABLE solti.task_events SET (autovacuum_enabled = off)")
    off = the(database_url, "vacuum-off", "task_events")
    assert off.severity is Severity.ERROR
    fill(database, 3000)
    database.execute("UPDATE solti.task_events SET attempt = 1")
    counted(database)
    dead = the(database_url, "table-dead", "task_events", dead=1000)
    assert dead.found == "3000 dead rows beside 3000 live ones"
    assert not found(database_url, "table-dead", "task_events", dead=3001)
    lag = the(database_url, "vacuum-lag", "task_events", vacuum=NONE)
    assert lag.found.startswith("3000 dead rows, where autovacuum is to come at 50; last vacuumed never")
    assert not found(database_url, "vacuum-lag", "task_events", vacuum=timedelta(days=36_500))
    assert "6000 rows have changed" in the(database_url, "analyze-lag", "task_events", vacuum=NONE).found
    # A table's own parameters count.
    database.execute("ALTER TABLE solti.task_events SET (autovacuum_vacuum_threshold = 1500)")
    assert not found(database_url, "vacuum-lag", "task_events", vacuum=NONE)
    database.execute("ALTER TABLE solti.task_events SET (autovacuum_vacuum_threshold = 1499)")
    mend(database_url, the(database_url, "vacuum-lag", "task_events", vacuum=NONE))
    left = diagnose(database_url, dead=1000, vacuum=NONE).findings
    codes = {one.code for one in left if one.subject == "task_events"}
    assert codes == {"vacuum-off"}
    mend(database_url, off)
    assert not found(database_url, "vacuum-off")


def test_a_table_and_an_index_that_are_mostly_empty(database_url: str, database: psycopg.Connection) -> None:
    fill(database, 20_000)
    database.execute("DELETE FROM solti.task_events WHERE event <= (SELECT max(event) - 500 FROM solti.task_events)")
    database.execute("VACUUM (ANALYZE) solti.task_events")
    one = the(database_url, "table-bloat", "task_events", bloat_bytes=500_000)
    assert "pgstattuple" in one.found
    index = the(database_url, "index-bloat", "pk_task_events", bloat_bytes=200_000)
    mend(database_url, index)
    assert not found(database_url, "index-bloat", "pk_task_events", bloat_bytes=200_000)
    mend(database_url, one)
    assert not found(database_url, "table-bloat", "task_events", bloat_bytes=500_000)


def test_a_full_table_is_not_bloated(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    tasks.create_many([(f"t-{n}", spec(labels={"a": f"{n}", "b": "c"})) for n in range(2000)])
    fill(database, 20_000)
    database.execute("VACUUM (ANALYZE)")
    bloated = [one for one in diagnose(database_url, bloat_bytes=0).findings if one.code.endswith("-bloat")]
    # A handful of pages is all empty space.
    assert not [one for one in bloated if one.subject.endswith(("tasks", "task_status", "task_events"))], bloated


def test_an_index_whose_build_failed(database_url: str, database: psycopg.Connection) -> None:
    fill(database, 2)
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.execute("CREATE UNIQUE INDEX CONCURRENTLY mine ON solti.task_events (type)")
    one = the(database_url, "index-invalid", "mine")
    assert (one.severity, one.remedy) == (Severity.ERROR, 'REINDEX INDEX CONCURRENTLY "solti"."mine";')
    database.execute("DELETE FROM solti.task_events WHERE seq = 1")
    mend(database_url, one)
    assert not found(database_url, "index-invalid")


@pytest.fixture
def stranger(database_url: str) -> Iterator[str]:
    """The URL for a role that may read our tables, and see no more of others' sessions than everybody."""
    name = f"solti_{uuid.uuid4().hex[:8]}"
    with connect(database_url) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 's3cret'".encode())
        admin.execute(f"GRANT USAGE ON SCHEMA solti, solti_report TO {name}".encode())
        admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA solti, solti_report TO {name}".encode())
        yield make_url(database_url).set(username=name, password="s3cret").render_as_string(hide_password=False)
        admin.execute(f"DROP OWNED BY {name}".encode())
        admin.execute(f"DROP ROLE {name}".encode())


def test_a_build_that_goes_on_is_no_failed_one_whoever_asks(
    database_url: str, database: psycopg.Connection, stranger: str
) -> None:
    fill(database, 2)
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.execute("CREATE UNIQUE INDEX CONCURRENTLY left_over ON solti.task_events (type)")
    build = "CREATE INDEX CONCURRENTLY mine ON solti.tasks (created_at)"
    engine = create_engine(make_url(stranger).set(drivername="postgresql+psycopg"))
    # The holder goes first when something fails, or all would wait for the build.
    with connect(database_url) as builder, ThreadPoolExecutor(1) as pool, connect(database_url) as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        # A snapshot, whose end the build waits for when it has made its index.
        holder.execute("SELECT count(*) FROM solti.tasks")
        building = pool.submit(builder.execute, build.encode())
        there = "SELECT FROM pg_index WHERE indexrelid = to_regclass('solti.mine') AND NOT indisvalid"
        while database.execute(there).fetchone() is None:
            assert not building.done()
        for url in (database_url, stranger):
            assert [one.subject for one in found(url, "index-invalid")] == ["left_over"]
        with engine.connect() as connection:
            assert [one.subject for one in invalid_indexes(connection)] == ["left_over"]
        builder.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            building.result()
        assert sorted(one.subject for one in found(stranger, "index-invalid")) == ["left_over", "mine"]
        with engine.connect() as connection:
            assert [one.subject for one in invalid_indexes(connection)] == ["left_over", "mine"]
    engine.dispose()


def test_what_a_reindex_left(database_url: str, database: psycopg.Connection) -> None:
    fill(database, 2)
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.execute("CREATE UNIQUE INDEX CONCURRENTLY mine_ccnew1 ON solti.task_events (type)")
    one = the(database_url, "index-invalid", "mine_ccnew1")
    assert one.severity is Severity.WARNING
    mend(database_url, one)
    assert not found(database_url, "index-invalid")


def test_an_index_that_nobody_uses(database_url: str, database: psycopg.Connection) -> None:
    database.execute("CREATE INDEX mine ON solti.task_runs (phase)")
    database.execute("CREATE UNIQUE INDEX rule ON solti.task_runs (seq, attempt, phase)")
    # Of ours, none has been used either.
    one = the(database_url, "index-unused", unused=NONE)
    assert (one.subject, one.severity) == ("mine", Severity.NOTE)
    assert not found(database_url, "index-unused", unused=timedelta(days=36_500))
    mend(database_url, one)
    assert not found(database_url, "index-unused", unused=NONE)


def test_the_age_of_rows(database_url: str, database: psycopg.Connection) -> None:
    database.execute(
        "DO $$ BEGIN FOR n IN 1..2000 LOOP BEGIN PERFORM pg_current_xact_id(); EXCEPTION WHEN others THEN NULL; END;"
        " END LOOP; END $$"
    )
    one = the(database_url, "wraparound", "agents", xids=0)
    assert one.severity is Severity.WARNING
    assert "of 2147483647 that there can be" in one.found
    mend(database_url, one)
    # None at all, unless somebody has used a number since.
    younger = found(database_url, "wraparound", "agents", xids=0)
    assert all(age_of(each.found) < age_of(one.found) for each in younger)
    assert not found(database_url, "wraparound")


def age_of(text: str) -> int:
    return int(text.removeprefix("its oldest rows are ").partition(" ")[0])


# --- slots, attempts, routes, agents ------------------------------------------------------------


def test_a_queue_without_an_owner(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    tasks.create("owner", spec("s"))
    tasks.create("next", queued("s"))
    assert not found(database_url, "slot-ownerless")
    database.execute("DELETE FROM solti.tasks WHERE id = 'owner'")
    one = the(database_url, "slot-ownerless", "slot s")
    assert (one.severity, one.found) == (Severity.ERROR, "'next' waits first, and nobody owns the slot")
    mend(database_url, one)
    assert not found(database_url, "slot-ownerless")
    assert tasks.why("next").reason == "noWorker"


def test_a_slot_whose_owner_nobody_may_run(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    tasks.register("w", labels={"zone": "b"})
    tasks.create("owner", spec("s", runner_selector=selecting(zone="a")))
    tasks.create("next", queued("s"))
    assert not found(database_url, "slot-stalled")
    assert not found(database_url, "route-unserved")
    database.execute("UPDATE solti.task_status SET due_at = now() - interval '20 min' WHERE due_at IS NOT NULL")
    one = the(database_url, "slot-stalled", "slot s")
    assert "'next' waits first, and its owner 'owner' has been due for 20 min: no live worker may run it" in one.found
    assert "w lacks zone=a (has zone=b)" in one.found
    route = the(database_url, "route-unserved")
    assert route.subject == 'subprocess {"matchLabels": {"zone": "a"}}'
    assert route.found.startswith("1 due, 'owner' for 20 min: no live worker may run it: w lacks zone=a")
    mend(database_url, one)
    tasks.cancel("owner")
    assert not found(database_url, "slot-stalled")
    assert not found(database_url, "route-unserved")


def test_work_that_nobody_gets_to(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    for number in range(3):
        tasks.create(f"t-{number}", spec())
    database.execute("UPDATE solti.task_status SET due_at = now() - interval '1 hour'")
    no_worker = the(database_url, "route-unserved")
    assert no_worker.found == "3 due, 't-0' for 60 min: no worker is live"
    agent = tasks.register("w")
    late = the(database_url, "work-late")
    assert late.found == "3 due, 't-0' for 60 min, though live workers may run it"
    tasks.drain(agent)
    assert not found(database_url, "work-late")
    assert "time (it drains)" in the(database_url, "route-unserved").found
    mend(database_url, late)
    assert not found(database_url, "route-unserved")


def test_a_worker_that_fell_silent(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    agent = tasks.register("gone")
    tasks.create("owner", spec("s"))
    tasks.create("next", queued("s"))
    assert len(tasks.claim(agent)) == 1
    assert not found(database_url, "agent-silent")
    database.execute(
        "UPDATE solti.agents SET heartbeat_at = now() - interval '1 hour', expires_at = now() - interval '1 hour'"
    )
    database.execute("UPDATE solti.task_status SET deadline = now() - interval '2 hours' WHERE deadline IS NOT NULL")
    silent = the(database_url, "agent-silent", "agent gone")
    assert silent.severity is Severity.ERROR
    assert "with 1 running attempts that nobody has reaped" in silent.found
    assert "runs on 'gone', which has been silent for" in the(database_url, "slot-stalled", "slot s").found
    overdue = the(database_url, "attempt-overdue", "task owner")
    assert overdue.found == "attempt 1 on 'gone' is 2 h past its deadline"
    mend(database_url, silent)
    codes = {one.code for one in diagnose(database_url).findings}
    assert not codes & {"agent-silent", "slot-stalled", "attempt-overdue"}
    assert tasks.get("owner").phase == "failed"


def test_an_owner_past_its_deadline_on_a_live_worker(
    database_url: str, database: psycopg.Connection, tasks: TaskStore
) -> None:
    agent = tasks.register("w")
    tasks.create("owner", spec("s"))
    tasks.create("next", queued("s"))
    tasks.claim(agent)
    database.execute("UPDATE solti.task_status SET deadline = now() - interval '5 min' WHERE deadline IS NOT NULL")
    one = the(database_url, "slot-stalled", "slot s")
    assert "its owner 'owner' is 5 min past its deadline" in one.found
    mend(database_url, one)
    assert not found(database_url, "slot-stalled")


def test_an_owner_that_runs_on_a_closed_worker(
    database_url: str, database: psycopg.Connection, tasks: TaskStore
) -> None:
    agent = tasks.register("w")
    tasks.create("owner", spec("s"))
    tasks.create("next", queued("s"))
    tasks.claim(agent)
    database.execute("UPDATE solti.agents SET state = 'lost', closed_at = now()")
    assert "runs on 'w', which was closed" in the(database_url, "slot-stalled", "slot s").found


def test_an_owner_that_waits_very_long(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    tasks.create("owner", spec("s"))
    tasks.create("next", queued("s"))
    database.execute("UPDATE solti.task_status SET due_at = now() + interval '9 days' WHERE due_at IS NOT NULL")
    one = the(database_url, "slot-stalled", "slot s")
    assert "does not start again for 9 d" in one.found
    mend(database_url, one)
    assert not found(database_url, "slot-stalled")


def test_workers_that_drain_or_took_on_too_much(database_url: str, tasks: TaskStore) -> None:
    drained, full = tasks.register("drained"), tasks.register("full", capacity=2)
    for number in range(13):
        tasks.create(f"t-{number}", spec())
    assert len(tasks.claim(full, limit=12)) == 12
    assert not found(database_url, "agent-overfull")
    tasks.claim(full)
    tasks.drain(drained)
    assert the(database_url, "agent-drained", "agent drained").severity is Severity.NOTE
    one = the(database_url, "agent-overfull", "agent full")
    assert one.found == "has 13 running attempts, and says that it takes on 2"
    mend(database_url, one)
    assert [agent.state for agent in tasks.agents()] == ["draining", "draining"]


def test_of_very_many_alike_ten_are_shown(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    agent = tasks.register("w")
    tasks.create_many([(f"t-{number}", spec()) for number in range(14)])
    tasks.claim(agent, limit=14)
    database.execute("UPDATE solti.task_status SET deadline = now() - interval '5 min'")
    diagnosis = diagnose(database_url)
    assert sum(one.code == "attempt-overdue" for one in diagnosis.findings) == 10
    assert "attempt-overdue: 4 more like these were found" in diagnosis.unchecked


# --- dates, retention, the label index ----------------------------------------------------------


def test_what_is_dated_in_the_future(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    agent = tasks.register("w")
    tasks.create("t", spec())
    (claim,) = tasks.claim(agent)
    tasks.finish(claim, Outcome.succeeded(0))
    assert not found(database_url, "clock-future")
    database.execute("UPDATE solti.task_status SET updated_at = now() + interval '1 hour'")
    database.execute("UPDATE solti.task_runs SET finished_at = now() + interval '1 hour'")
    database.execute("UPDATE solti.task_events SET at = now() + interval '1 hour'")
    ahead = found(database_url, "clock-future")
    assert [one.subject for one in ahead] == ["task_status", "task_runs", "task_events"]
    for one in ahead:
        mend(database_url, one)
    assert not found(database_url, "clock-future")


def test_what_is_over_for_long(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    agent = tasks.register("w")
    tasks.create("t", spec())
    (claim,) = tasks.claim(agent)
    tasks.finish(claim, Outcome.succeeded(0))
    assert not found(database_url, "retention-lag")
    database.execute("UPDATE solti.task_status SET updated_at = now() - interval '40 days'")
    database.execute("UPDATE solti.task_runs SET finished_at = now() - interval '40 days'")
    old = found(database_url, "retention-lag")
    assert [(one.subject, one.severity) for one in old] == [("final tasks", "note"), ("runs", "note")]
    assert old[0].found == "the oldest is over for 40 d, by default 31 d at most"
    mend(database_url, old[0])
    assert not found(database_url, "retention-lag")


def test_a_label_index_that_nobody_keeps(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    database.execute(
        "INSERT INTO solti.tasks (id, spec) SELECT 't-' || n, %s::jsonb FROM generate_series(1, 8200) AS n",
        [spec().to_json()],
    )
    one = the(database_url, "label-index-lag")
    assert one.found == "it does not know 8192 tasks or more"
    mend(database_url, one)
    assert not found(database_url, "label-index-lag")
    # A dump brings the row, and not its xmin.
    database.execute("UPDATE solti.label_index SET written_by = '3'")
    assert "restored" in the(database_url, "label-index-lag").found


# --- sessions and their settings ----------------------------------------------------------------


def test_settings_of_the_store_s_sessions(database_url: str) -> None:
    given = {
        "idle_in_transaction_session_timeout": "0",
        "statement_timeout": "250ms",
        "jit": "on",
        "synchronous_commit": "off",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
    }
    options = " ".join(f"-c {name}={value}" for name, value in given.items())
    engine = create_engine(database_url, connect_args={"options": options})
    found_here = {str(one.code): one for one in TaskStore(engine).doctor().findings}
    engine.dispose()
    for code, figure in {
        "setting-idle": "0 in a session of the store",
        "setting-timeout": "250 ms",
        "setting-jit": "on in a session of the store",
        "setting-commit": "off",
        "setting-isolation": "serializable",
        "setting-read-only": "on",
    }.items():
        assert found_here[code].found == figure
    assert not {one.code for one in diagnose(database_url).findings} & {
        "setting-idle", "setting-timeout", "setting-jit", "setting-commit", "setting-isolation", "setting-read-only"
    }  # fmt: skip


def test_buffers_of_the_default_size_for_large_tables(database_url: str) -> None:
    # Whatever the server has: with half a terabyte of tables, nothing less than 128 MiB would do.
    with connect(database_url) as connection:
        row = connection.execute("SELECT setting::int * 8192 FROM pg_settings WHERE name = 'shared_buffers'").fetchone()
    assert row is not None
    assert bool(found(database_url, "setting-memory", memory_bytes=0)) == (row[0] <= 128 << 20)


# --- how it behaves -----------------------------------------------------------------------------


def test_both_stores_examine(store: TaskStore, database_url: str, database: psycopg.Connection) -> None:
    store.create("owner", spec("s"))
    store.create("next", queued("s"))
    database.execute("DELETE FROM solti.tasks WHERE id = 'owner'")
    assert "slot-ownerless" in {one.code for one in store.doctor().findings}
    with pytest.raises(Invalid, match="negative"):
        store.doctor(limits=DoctorLimits(dead=-1))


def test_inside_a_caller_s_transaction_it_does_not_examine(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection, TaskStore.open(database_url) as store, pytest.raises(Invalid, match="doctor"):
        store.using(connection).doctor()
    engine.dispose()


def test_a_lock_in_the_way_is_no_error(database_url: str, tasks: TaskStore) -> None:
    with connect(database_url) as other, other.transaction():
        other.execute("LOCK TABLE solti.task_status IN ACCESS EXCLUSIVE MODE")
        diagnosis = tasks.doctor()
    assert "slots and their queues: a lock was in the way, as of a migration" in diagnosis.unchecked
    assert "the label index" not in str(diagnosis.unchecked)


def test_a_question_that_takes_too_long_is_no_error(database_url: str, tasks: TaskStore) -> None:
    with connect(database_url) as other, other.transaction():
        other.execute("LOCK TABLE solti.task_status IN ACCESS EXCLUSIVE MODE")
        diagnosis = tasks.doctor(statement_timeout=timedelta(milliseconds=400))
    assert "slots and their queues: it took too long" in diagnosis.unchecked


def test_the_command_for_people(database_url: str, database: psycopg.Connection, tasks: TaskStore) -> None:
    tasks.create("owner", spec("s"))
    tasks.create("next", queued("s"))
    database.execute("DELETE FROM solti.tasks WHERE id = 'owner'")
    done = run_cli("doctor", url=database_url)
    assert done.returncode == 7
    block = done.stdout[done.stdout.index("error: slot-ownerless: slot s") :].splitlines()
    assert block[1] == "  found 'next' waits first, and nobody owns the slot"
    assert block[2].startswith("  so    nobody lets the next one in")
    assert block[3].startswith("  mend  python -c ")
    assert "error" in done.stderr
    assert run_cli("doctor", "--timeout", "soon", url=database_url).returncode == 2
