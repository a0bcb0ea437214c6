"""`db check`, `plan`, `stamp` and the SQL of a migration, from the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from datetime import datetime

import pytest
from cli_run import data_of, environment, run_cli
from support import ODD_SCHEMA, connect

from solti_store import migrate
from solti_store.sql.revision import HEAD
from solti_store.sql.tables import SCHEMA

FIRST = "solti_0001"


def test_check_says_whether_the_code_fits(empty_database_url: str) -> None:
    url = empty_database_url
    done = run_cli("db", "check", url=url)
    assert (done.returncode, done.stdout) == (5, "no\n")
    assert "run `solti-store db upgrade`" in done.stderr
    data_of("db", "upgrade", url=url)
    assert data_of("db", "check", url=url) == "yes\n"
    document = json.loads(data_of("db", "check", "-o", "json", url=url))
    assert document == {"fits": True, "revision": HEAD, "head": HEAD, "problem": None, "invalidIndexes": []}
    with connect(url) as connection:
        connection.execute(
            b"UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (f"{SCHEMA}.ix_agents_id",)
        )
    done = run_cli("db", "check", "-o", "json", url=url)
    assert (done.returncode, json.loads(done.stdout)["invalidIndexes"]) == (0, ["ix_agents_id"])
    assert f'REINDEX INDEX CONCURRENTLY "{SCHEMA}"."ix_agents_id";' in done.stderr


def test_check_is_fast_to_start_for_alembic_is_not_loaded(database_url: str) -> None:
    script = (
        "import sys; from solti_store.cli.app import run; code = run(['db', 'check']);"
        " sys.exit(code or any(name in sys.modules for name in ('alembic', 'postgast')))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(database_url), check=False, timeout=60)
    assert done.returncode == 0


def test_a_stamp_says_where_the_schema_is_and_is_asked_for_twice(database_url: str) -> None:
    refused = run_cli("db", "stamp", FIRST, url=database_url)
    assert (refused.returncode, "give -y" in refused.stderr) == (2, True)
    assert data_of("db", "stamp", FIRST, "-y", url=database_url) == f"{FIRST}\n"
    lagging = run_cli("db", "check", url=database_url)
    assert (lagging.returncode, lagging.stdout) == (0, "yes\n")
    assert lagging.stderr == f"this version brings {HEAD}: run `solti-store db upgrade`\n"
    assert data_of("db", "stamp", "base", "-y", url=database_url) == "none\n"
    assert run_cli("db", "check", url=database_url).returncode == 5
    assert run_cli("db", "stamp", "nonsense", "-y", url=database_url).returncode == 5
    assert data_of("db", "stamp", "head", "-y", url=database_url) == f"{HEAD}\n"
    assert data_of("db", "check", url=database_url) == "yes\n"


def test_the_printed_sql_up_and_down_can_be_run_by_hand(empty_database_url: str) -> None:
    url = empty_database_url
    # No database is named: none is needed.
    for arguments, revision in (
        (("upgrade", FIRST), FIRST),
        (("upgrade", f"{FIRST}:head"), HEAD),
        (("downgrade", f"{HEAD}:{FIRST}"), FIRST),
        (("upgrade", f"{FIRST}:head"), HEAD),
    ):
        sql = data_of("db", *arguments, "--sql")
        assert "SET lock_timeout" in sql or arguments[0] == "downgrade"
        with connect(url) as connection:
            connection.execute(sql.encode())
        assert run_cli("db", "current", url=url).stdout == f"{revision}\n"
    assert data_of("db", "check", url=url) == "yes\n"
    assert run_cli("db", "downgrade", FIRST, "--sql").returncode == 2
    assert run_cli("db", "upgrade", "nonsense", "--sql").returncode == 5


def test_a_plan_tells_locks_and_runs_nothing(empty_database_url: str) -> None:
    url = empty_database_url
    document = json.loads(data_of("db", "plan", "-o", "json", url=url))
    assert (document["from"], document["to"]) == (None, "head")
    # What the grants of roles come to is in the database alone.
    assert {item["sql"].split()[0] for item in document["items"] if not item["isKnown"]} == {"DO"}
    assert run_cli("db", "current", url=url).stdout == "none\n"
    data_of("db", "upgrade", FIRST, url=url)
    with connect(url) as connection:
        connection.execute(f"ANALYZE {SCHEMA}.task_runs".encode())
    items = json.loads(data_of("db", "plan", "-o", "json", url=url))["items"]
    assert {item["revision"] for item in items} == {None, HEAD}
    reads = [item for item in items if item["relation"] == f"{SCHEMA}.task_runs"]
    assert reads
    assert {(item["lock"], item["rewrites"], item["scans"]) for item in reads} == {("ACCESS SHARE", False, False)}
    table = data_of("db", "plan", url=url)
    assert table.splitlines()[0].split()[:3] == ["Revision", "Tx", "Statement"]
    assert run_cli("db", "current", url=url).stdout == f"{FIRST}\n"
    data_of("db", "upgrade", url=url)
    done = run_cli("db", "plan", url=url)
    assert (done.returncode, done.stderr) == (0, "nothing is to do\n")


@pytest.mark.parametrize("option", ["--lock-timeout", "--patience"])
def test_waits_are_lengths_of_time(database_url: str, option: str) -> None:
    data_of("db", "upgrade", option, "10s", url=database_url)
    for wrong in ("soon", "60d"):
        assert run_cli("db", "upgrade", option, wrong, url=database_url).returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "base:head"),
        ("plan", ""),
        ("upgrade", ""),
        ("upgrade", "head+1"),
        ("upgrade", "solti@"),
        ("upgrade", "", "--sql"),
        ("upgrade", "a:b:c", "--sql"),
        ("upgrade", "solti_0001:", "--sql"),
        ("downgrade", "", "-y"),
        ("downgrade", "head:base", "-y"),
        ("downgrade", "a:b:c", "--sql"),
        ("stamp", "", "-y"),
    ],
)
def test_what_cannot_be_a_revision_is_a_mistake_of_usage(database_url: str, arguments: tuple[str, ...]) -> None:
    done = run_cli("db", *arguments, url=database_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "revision" in done.stderr
    assert data_of("db", "check", url=database_url) == "yes\n"


@pytest.mark.parametrize("further", [(), ("--sql",)])
def test_a_step_back_from_the_first_revision_leads_nowhere(database_url: str, further: tuple[str, ...]) -> None:
    done = run_cli("db", "upgrade", "solti_0001-1", *further, url=database_url)
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "error: there is no revision so far back\n")


def test_a_schema_without_tables_is_not_stamped(empty_database_url: str) -> None:
    done = run_cli("db", "stamp", "head", "-y", url=empty_database_url)
    assert (done.returncode, done.stderr.startswith("error: there is nothing to stamp: the schema 'solti'")) == (
        5,
        True,
    )
    assert data_of("db", "stamp", "base", "-y", url=empty_database_url) == "none\n"
    assert data_of("db", "upgrade", url=empty_database_url) == f"{HEAD}\n"


def test_without_the_parser_a_plan_is_refused_with_the_remedy(database_url: str) -> None:
    script = (
        "import sys; sys.modules['postgast'] = None; from solti_store.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "db", "plan", "head"],
        env=environment(database_url),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    migrate.stamp(database_url, FIRST)
    again = subprocess.run(
        [sys.executable, "-c", script, "db", "plan", "head"],
        env=environment(database_url),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("error: ")
    assert "solti-store[plan]" in again.stderr


def test_what_is_applied_is_listed_and_a_schema_that_is_ahead_fits(database_url: str) -> None:
    with connect(database_url) as connection:
        connection.execute(
            f"INSERT INTO {SCHEMA}.schema_history (revision, oldest_code) VALUES ('{HEAD}_1', '{HEAD}')".encode()
        )
    document = json.loads(data_of("db", "current", "-o", "json", url=database_url))
    assert (document["fits"], document["revision"], document["head"]) == (True, f"{HEAD}_1", HEAD)
    listed = [(one["revision"], one["oldestCode"]) for one in document["history"]]
    assert listed == [(FIRST, FIRST), (HEAD, FIRST), (f"{HEAD}_1", HEAD)]
    assert all(datetime.fromisoformat(one["appliedAt"]).tzinfo for one in document["history"])
    table = data_of("db", "current", "-o", "table", url=database_url).splitlines()
    assert [line.split()[:2] for line in table[1:]] == [list(one) for one in listed]
    done = run_cli("db", "plan", url=database_url)
    assert (done.returncode, done.stderr) == (0, "nothing is to do\n")
    with connect(database_url) as connection:
        connection.execute(f"UPDATE {SCHEMA}.schema_history SET oldest_code = revision".encode())
    for what in ("current", "check", "plan"):
        done = run_cli("db", what, url=database_url)
        assert (done.returncode, "install a newer solti-store" in done.stderr) == (5, True)


def test_every_command_is_about_the_schema_that_is_named(empty_database_url: str) -> None:
    def run(*arguments: str) -> str:
        return data_of("--schema", ODD_SCHEMA, "db", *arguments, url=empty_database_url)

    refused = run_cli("--schema", ODD_SCHEMA, "db", "check", url=empty_database_url)
    command = f"solti-store --schema {shlex.quote(ODD_SCHEMA)} db upgrade"
    assert (refused.returncode, command in refused.stderr) == (5, True)
    assert run("upgrade", FIRST) == f"{FIRST}\n"
    lagging = run_cli("--schema", ODD_SCHEMA, "db", "current", url=empty_database_url)
    assert (lagging.returncode, command in lagging.stderr) == (0, True)
    items = json.loads(run("plan", "-o", "json"))["items"]
    assert f"{ODD_SCHEMA}.task_runs" in {item["relation"] for item in items}
    assert {item["isKnown"] for item in items} == {True}
    sql = run("upgrade", f"{FIRST}:head", "--sql")
    assert f"{SCHEMA}." not in sql.replace(ODD_SCHEMA, "")
    with connect(empty_database_url) as connection:
        connection.execute(sql.encode())
    assert run("check") == "yes\n"
    assert run("stamp", FIRST, "-y") == f"{FIRST}\n"
    assert run("stamp", "head", "-y") == f"{HEAD}\n"
    assert run("downgrade", "base", "-y") == "none\n"
    # Nothing was said about the other.
    assert run_cli("db", "check", url=empty_database_url).returncode == 5
