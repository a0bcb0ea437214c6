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
    run("ALTER TABLE {SCHEMA}.tasks ADD CONSTRAINT k CHECK (seq > 0) NOT VALID"),
    run("ALTER TABLE {SCHEMA}.tasks VALIDATE CONSTRAINT ck_tasks_id"),
    run("ALTER TABLE {SCHEMA}.tasks SET (autovacuum_vacuum_scale_factor = 0.01)"),
    run("ALTER TABLE {SCHEMA}.tasks ALTER COLUMN slot SET NOT NULL"),
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
