"""The rules for migrations: the shipped ones keep them, and bad ones are caught."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from extra_migrations import write

from solti_store.migration.lint import lint
from solti_store.sql.revision import HEAD

if TYPE_CHECKING:
    from pathlib import Path


def test_the_shipped_migrations_keep_every_rule() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "solti_store.migration.lint"], check=False, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def run(*statements: str) -> str:
    return "\n    ".join(f"op.execute(f{statement!r})" for statement in statements)


BAD = [
    ("CREATE INDEX i ON {SCHEMA}.tasks (created_at)", ["index-not-concurrent"]),
    ("DROP INDEX {SCHEMA}.ix_tasks_kind_seq", ["index-not-concurrent", "several-locks"]),
    ("REINDEX TABLE {SCHEMA}.tasks", ["index-not-concurrent"]),
    ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x uuid DEFAULT gen_random_uuid()", ["rewrite"]),
    ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x bigint GENERATED ALWAYS AS (seq) STORED", ["rewrite"]),
    ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x text NOT NULL", ["not-null"]),
    ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x int UNIQUE", ["index-not-concurrent"]),
    ("ALTER TABLE {SCHEMA}.task_status ALTER COLUMN error SET NOT NULL", ["not-null"]),
    ("ALTER TABLE {SCHEMA}.task_status ALTER COLUMN exit_code TYPE bigint", ["type-change"]),
    ("ALTER TABLE {SCHEMA}.task_status ADD CONSTRAINT k CHECK (exit_code < 9)", ["constraint-not-valid"]),
    ("ALTER TABLE {SCHEMA}.routes ADD CONSTRAINT k UNIQUE (kind)", ["index-not-concurrent"]),
    (
        "ALTER TABLE {SCHEMA}.routes ADD CONSTRAINT k FOREIGN KEY (kind) REFERENCES {SCHEMA}.tasks (id)",
        ["constraint-not-valid", "several-locks"],
    ),
    ("ALTER TABLE {SCHEMA}.tasks RENAME COLUMN kind TO sort", ["rename"]),
    ("ALTER TABLE {SCHEMA}.tasks RENAME TO jobs", ["rename"]),
    ("ALTER TABLE {SCHEMA}.agents DROP COLUMN capacity", ["drop-column"]),
    ("DROP TABLE {SCHEMA}.routes", ["drop"]),
    ("TRUNCATE {SCHEMA}.routes", ["truncate"]),
    ("UPDATE {SCHEMA}.agents SET capacity = 1", ["not-in-batches"]),
    ("DELETE FROM {SCHEMA}.task_events WHERE at < now()", ["not-in-batches"]),
    ("SET lock_timeout = 0", ["lock-timeout"]),
    ("RESET ALL", ["lock-timeout"]),
    ("DO $$ BEGIN EXECUTE 'DROP TABLE x'; END $$", ["unknown"]),
    ("DROP TABLE {SCHEMA}.routes CASCADE", ["unknown"]),
    ("this is no SQL", ["unknown"]),
    # What goes on behind another word.
    ("SET lock_timeout=0", ["lock-timeout"]),
    ("SET LOCAL lock_timeout=0", ["lock-timeout"]),
    ("RESET lock_timeout", ["lock-timeout"]),
    ("SELECT set_config('lock_timeout', '0', false)", ["lock-timeout"]),
    ("SELECT pg_catalog.set_config('Lock_Timeout', '0', false)", ["lock-timeout"]),
    ("SELECT set_config(name, '0', false) FROM pg_settings", ["unknown"]),
    ("DO $$ BEGIN SET lock_timeout = 0; END $$", ["lock-timeout"]),
    ("DO $$ BEGIN PERFORM set_config('lock_timeout', '0', false); END $$", ["lock-timeout"]),
    ("SET session_replication_role = replica", ["unknown"]),
    ("WITH x AS (UPDATE {SCHEMA}.tasks SET spec = spec RETURNING 1) SELECT count(*) FROM x", ["not-in-batches"]),
    ("WITH x AS (DELETE FROM {SCHEMA}.agents RETURNING 1) SELECT count(*) FROM x", ["not-in-batches"]),
    ("WITH x AS (MERGE INTO {SCHEMA}.agents a USING x ON true WHEN MATCHED THEN DELETE) SELECT 1", ["unknown"]),
    ("INSERT INTO {SCHEMA}.agents SELECT FROM x ON CONFLICT (seq) DO UPDATE SET capacity = 1", ["not-in-batches"]),
    ("SELECT * FROM {SCHEMA}.tasks FOR UPDATE", ["not-in-batches"]),
    ("SELECT * FROM (SELECT * FROM {SCHEMA}.tasks FOR SHARE) AS x", ["not-in-batches"]),
    ("DO $$ BEGIN UPDATE {SCHEMA}.tasks SET spec = spec; END $$", ["not-in-batches"]),
    ("LOCK TABLE {SCHEMA}.tasks IN ACCESS EXCLUSIVE MODE", ["lock-table"]),
    ("CREATE INDEX CONCURRENTLY i ON {SCHEMA}.tasks (created_at)", ["concurrently"]),
    ("DROP INDEX CONCURRENTLY {SCHEMA}.ix_tasks_kind_seq", ["concurrently"]),
    ("SELECT f()", ["unknown"]),
    ("SELECT pg_sleep(3600)", ["unknown"]),
    ("SELECT nextval('x')", ["unknown"]),
    ("DO $$ BEGIN PERFORM f(); END $$", ["unknown"]),
    ("DO $$ BEGIN CREATE TABLE {SCHEMA}.tasks (id int); TRUNCATE {SCHEMA}.tasks; END $$", ["truncate"]),
    ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x mydomain", ["rewrite"]),
    ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x {SCHEMA}.mydomain", ["rewrite"]),
    ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x timestamptz DEFAULT {SCHEMA}.now()", ["rewrite"]),
    ("ROLLBACK", ["unknown"]),
    ("SAVEPOINT x", ["unknown"]),
    # What code that is still running may need.
    ("ALTER TABLE {SCHEMA}.tasks ENABLE ROW LEVEL SECURITY", ["revoke"]),
    ("ALTER TABLE {SCHEMA}.tasks FORCE ROW LEVEL SECURITY", ["revoke"]),
    ("ALTER TABLE {SCHEMA}.tasks OWNER TO somebody", ["revoke"]),
    ("REVOKE ALL ON {SCHEMA}.tasks FROM somebody", ["revoke"]),
    ("REVOKE USAGE ON SCHEMA {SCHEMA} FROM somebody", ["revoke"]),
    ("REVOKE SELECT ON ALL TABLES IN SCHEMA {SCHEMA} FROM somebody", ["revoke"]),
    ("REVOKE one FROM somebody", ["revoke"]),
    ("ALTER ROLE somebody NOLOGIN", ["unknown"]),
    ("ALTER TABLE {SCHEMA}.tasks DISABLE TRIGGER ALL", ["drop"]),
    ("ALTER TABLE {SCHEMA}.tasks ALTER COLUMN seq DROP IDENTITY", ["drop"]),
    ("ALTER TABLE {SCHEMA}.tasks ALTER COLUMN created_at DROP DEFAULT", ["drop"]),
    ("ALTER TABLE {SCHEMA}.tasks DROP CONSTRAINT uq_tasks_id", ["drop"]),
    ("DROP TRIGGER x ON {SCHEMA}.tasks", ["drop"]),
    ("DROP FUNCTION {SCHEMA}.f()", ["drop"]),
    ("DROP SCHEMA {SCHEMA}_report", ["drop"]),
    ("ALTER TYPE {SCHEMA}.x RENAME VALUE 'a' TO 'b'", ["rename"]),
    ("ALTER TABLE {SCHEMA}.tasks RENAME CONSTRAINT uq_tasks_id TO x", ["rename"]),
    ("ALTER INDEX {SCHEMA}.ix_tasks_kind_seq RENAME TO x", ["rename"]),
]


@pytest.mark.parametrize(("statement", "rules"), BAD)
def test_a_bad_statement_is_caught_unless_a_reason_is_given(tmp_path: Path, statement: str, rules: list[str]) -> None:
    write(tmp_path, run(statement))
    found = lint([tmp_path])
    assert sorted(finding.rule for finding in found) == rules
    assert all(str(finding).startswith(f"{HEAD}_0001: {finding.rule}") for finding in found)
    begins = statement.split(maxsplit=1)[0]
    write(tmp_path, run(statement), unsafe={begins: " "})
    assert [finding.rule for finding in lint([tmp_path])] == [*(finding.rule for finding in found), "unused-reason"]
    write(tmp_path, run(statement), unsafe={begins: "a test, on nobody's table"})
    assert lint([tmp_path]) == []


GOOD = [
    run("CREATE TABLE {SCHEMA}.fresh (id bigint)", "CREATE INDEX i ON {SCHEMA}.fresh (id)"),
    run("CREATE TABLE {SCHEMA}.fresh (id bigint)", "ALTER TABLE {SCHEMA}.fresh ALTER COLUMN id SET NOT NULL"),
    run("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x text", "ALTER TABLE {SCHEMA}.tasks ADD COLUMN y int DEFAULT 7"),
    run("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x int NOT NULL DEFAULT 7"),
    run("ALTER TABLE {SCHEMA}.tasks ADD CONSTRAINT k CHECK (seq > 0) NOT VALID"),
    run("ALTER TABLE {SCHEMA}.tasks VALIDATE CONSTRAINT ck_tasks_generation"),
    run("ALTER TABLE {SCHEMA}.tasks SET (autovacuum_vacuum_scale_factor = 0.01)"),
    run("ALTER TABLE {SCHEMA}.tasks ALTER COLUMN slot SET NOT NULL"),
    run(
        "ALTER TABLE {SCHEMA}.tasks ADD COLUMN x uuid, ADD COLUMN y varchar(10), ADD COLUMN z timestamptz DEFAULT now()"
    ),
    run("INSERT INTO {SCHEMA}.rollup VALUES (true) ON CONFLICT (id) DO UPDATE SET upto = now()"),
    run("CREATE VIEW {SCHEMA}.v AS SELECT {SCHEMA}.f(seq) FROM {SCHEMA}.tasks", "GRANT SELECT ON {SCHEMA}.v TO x"),
    run("SET LOCAL statement_timeout = 0", "SELECT count(*) FROM {SCHEMA}.tasks"),
    run(
        "CREATE TABLE {SCHEMA}.fresh (id bigint DEFAULT 1)",
        "LOCK TABLE {SCHEMA}.fresh",
        "ALTER TABLE {SCHEMA}.fresh ALTER COLUMN id DROP DEFAULT",
        "ALTER TABLE {SCHEMA}.fresh ENABLE ROW LEVEL SECURITY",
        "REVOKE ALL ON {SCHEMA}.fresh FROM somebody",
        "INSERT INTO {SCHEMA}.fresh SELECT 1 ON CONFLICT (id) DO UPDATE SET id = 2",
    ),
    # These only allow more.
    run("ALTER TABLE {SCHEMA}.tasks DROP CONSTRAINT ck_tasks_generation"),
    run("ALTER TABLE {SCHEMA}.tasks ALTER COLUMN slot DROP NOT NULL"),
    run("ALTER TABLE {SCHEMA}.tasks DISABLE ROW LEVEL SECURITY"),
    'build_index("i", "tasks", "(created_at)")\n    drop_index("ix_tasks_kind_seq")',
    'backfill("agents", {"capacity": "1"}, where="t.capacity IS NULL")',
]


@pytest.mark.parametrize("body", GOOD)
def test_the_way_it_should_be_done_passes(tmp_path: Path, body: str) -> None:
    write(tmp_path, body)
    assert lint([tmp_path]) == []


def test_not_null_is_cheap_after_a_check_that_says_so(tmp_path: Path) -> None:
    write(
        tmp_path,
        run("ALTER TABLE {SCHEMA}.agents ADD CONSTRAINT k CHECK (capacity IS NOT NULL) NOT VALID"),
        run("ALTER TABLE {SCHEMA}.agents VALIDATE CONSTRAINT k"),
        run("ALTER TABLE {SCHEMA}.agents ALTER COLUMN capacity SET NOT NULL"),
    )
    assert lint([tmp_path]) == []


SAYS = "ALTER TABLE {SCHEMA}.agents ADD CONSTRAINT k CHECK (capacity IS NOT NULL) NOT VALID"
VALIDATE = "ALTER TABLE {SCHEMA}.agents VALIDATE CONSTRAINT k"
SET = "ALTER TABLE {SCHEMA}.agents ALTER COLUMN capacity SET NOT NULL"


@pytest.mark.parametrize(
    ("statements", "rules"),
    [
        ((SAYS, SET), ["not-null"]),
        ((SAYS, f"{VALIDATE}, ALTER COLUMN capacity SET NOT NULL"), ["not-null"]),
        ((SAYS, f"DO $$ BEGIN IF false THEN {VALIDATE}; END IF; END $$", SET), ["not-null"]),
        ((SAYS, VALIDATE, "DO $$ BEGIN ALTER TABLE {SCHEMA}.agents DROP CONSTRAINT k; END $$", SET), ["not-null"]),
        ((SAYS, VALIDATE, "ALTER TABLE {SCHEMA}.agents DROP CONSTRAINT k", SET), ["not-null"]),
        (
            (SAYS, VALIDATE, f"ALTER TABLE {{SCHEMA}}.agents DROP CONSTRAINT k, {SET.partition('agents ')[2]}"),
            ["not-null"],
        ),
        ((SAYS, VALIDATE, "ALTER TABLE {SCHEMA}.agents DROP CONSTRAINT other", SET), ["drop", "not-null"]),
        ((SAYS.replace("NULL)", "NULL OR seq > 0)"), VALIDATE, SET), ["not-null"]),
        ((SAYS.replace("NULL)", "NULL OR closed_at IS NOT NULL)"), VALIDATE, SET), ["not-null"]),
        ((SAYS.replace("NOT VALID", "NOT ENFORCED"), VALIDATE, SET), ["not-null"]),
        (
            (SAYS, VALIDATE, SET, SET.replace("SET", "DROP"), "ALTER TABLE {SCHEMA}.agents DROP CONSTRAINT k", SET),
            ["not-null"],
        ),
        # In between, others go.
        ((SAYS, VALIDATE, "ALTER TABLE {SCHEMA}.agents DROP CONSTRAINT ck_agents_id", SET), []),
        ((SAYS, VALIDATE, SET, "ALTER TABLE {SCHEMA}.agents DROP CONSTRAINT k"), []),
    ],
)
def test_a_check_is_a_proof_when_it_says_that_alone_and_is_valid_and_there(
    tmp_path: Path, statements: tuple[str, ...], rules: list[str]
) -> None:
    write(tmp_path, *(run(one) for one in statements))
    assert sorted(finding.rule for finding in lint([tmp_path])) == rules


@pytest.mark.parametrize(
    "create",
    [
        "CREATE TABLE IF NOT EXISTS {SCHEMA}.tasks (seq bigint NOT NULL)",
        "CREATE TABLE IF NOT EXISTS {SCHEMA}.tasks AS SELECT 1",
        "DO $$ BEGIN IF false THEN CREATE TABLE {SCHEMA}.tasks (seq bigint); END IF; END $$",
    ],
)
def test_what_may_have_been_there_is_not_new(tmp_path: Path, create: str) -> None:
    write(
        tmp_path, run(create, "UPDATE {SCHEMA}.tasks SET spec = spec", "ALTER TABLE {SCHEMA}.tasks DROP COLUMN labels")
    )
    assert [finding.rule for finding in lint([tmp_path])] == ["not-in-batches", "drop-column"]


def by_hand(statement: str) -> str:
    return f"with op.get_context().autocommit_block():\n        {run(statement)}"


@pytest.mark.parametrize(
    ("statement", "rules"),
    [
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON {SCHEMA}.tasks (created_at)", ["concurrently"]),
        ("REINDEX INDEX CONCURRENTLY {SCHEMA}.ix_tasks_kind_seq", ["concurrently"]),
        ("DROP INDEX CONCURRENTLY {SCHEMA}.ix_tasks_kind_seq", []),
        ("DO $$ BEGIN COMMIT; END $$", []),
    ],
)
def test_what_a_killed_build_leaves_is_taken_for_no_index(tmp_path: Path, statement: str, rules: list[str]) -> None:
    write(tmp_path, by_hand(statement))
    assert [finding.rule for finding in lint([tmp_path])] == rules


def test_a_transaction_is_ended_by_nobody_else(tmp_path: Path) -> None:
    for end in ("COMMIT", "BEGIN"):
        add = (f"ALTER TABLE {{SCHEMA}}.{table} ADD COLUMN x int" for table in ("tasks", "agents"))
        write(tmp_path, run(end, *add))
        assert "unknown" in [finding.rule for finding in lint([tmp_path])]
    write(tmp_path, run("DO $$ BEGIN COMMIT; END $$"))
    assert [finding.rule for finding in lint([tmp_path])] == ["concurrently"]


def test_two_tables_in_one_transaction_and_the_same_in_two(tmp_path: Path) -> None:
    both = ("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x int", "ALTER TABLE {SCHEMA}.agents ADD COLUMN x int")
    write(tmp_path, run(*both))
    assert [(finding.rule, finding.relation) for finding in lint([tmp_path])] == [("several-locks", "solti.agents")]
    write(tmp_path, *(run(one) for one in both))
    assert lint([tmp_path]) == []


def test_what_cannot_be_repeated_stands_apart_from_a_build(tmp_path: Path) -> None:
    body = run("ALTER TABLE {SCHEMA}.tasks ADD COLUMN x int") + '\n    build_index("i", "tasks", "(x)")'
    write(tmp_path, body)
    assert [finding.rule for finding in lint([tmp_path])] == ["not-repeatable"]
