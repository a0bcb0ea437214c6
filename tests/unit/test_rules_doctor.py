"""The doctor's decisions, as pure values: where each limit lies, and what is said."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from solti_store import AgentState, AgentStatus, Diagnosis, DoctorLimits, Finding, Invalid, Severity
from solti_store.model import AgentId, Labels, Timestamp
from solti_store.rules import doctor_server, doctor_settings, doctor_tables, doctor_work
from solti_store.rules.doctor import CONSEQUENCES, Code, amount, diagnosis, finding, quoted, size, span

LIMITS = DoctorLimits()
ROOT = Path(__file__).resolve().parents[2]


def one_of(code: Code, severity: Severity = Severity.WARNING) -> Finding:
    return finding(code, severity, "s", "f", "r")


# --- the list of what there is ------------------------------------------------------------------


def test_every_code_has_a_consequence_and_is_documented() -> None:
    assert set(CONSEQUENCES) == set(Code)
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z0-9-]+)` \|", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(Code)


def test_every_code_is_brought_about_on_a_real_server() -> None:
    pages = (ROOT / "tests" / "integration").glob("test_doctor*.py")
    tests = "".join(page.read_text(encoding="utf-8") for page in pages)
    # A server of another version cannot be had everywhere.
    assert [code for code in Code if f'"{code}"' not in tests] == [Code.SERVER_VERSION]


# --- findings and limits ------------------------------------------------------------------------


def test_the_worst_comes_first_and_ten_of_a_kind_are_enough() -> None:
    many = [one_of(Code.SETTING_JIT, Severity.NOTE)] * 3
    many += [one_of(Code.LOCK_WAIT)] * 12 + [one_of(Code.SCHEMA_DRIFT, Severity.ERROR)]
    found = diagnosis(many, ["x\n  y"])
    assert [one.code for one in found.findings] == ["schema-drift", *["lock-wait"] * 10, *["setting-jit"] * 3]
    assert found.unchecked == ("x y", "lock-wait: 2 more like these were found")
    assert not found.is_well


def test_notes_alone_are_well() -> None:
    assert diagnosis([one_of(Code.SETTING_JIT, Severity.NOTE)]).is_well
    assert not diagnosis([one_of(Code.LOCK_WAIT)]).is_well
    assert diagnosis([]).is_well


def test_a_diagnosis_survives_its_json() -> None:
    found = diagnosis([one_of(Code.LOCK_WAIT)], ["that"])
    assert Diagnosis.from_json(found.to_json()) == found
    assert diagnosis([]).to_json() == '{"findings":[],"unchecked":[]}'


def test_twelve_times_a_limit_is_an_error() -> None:
    assert [amount(value, 10) for value in (10, 119.9, 120)] == ["warning", "warning", "error"]
    # Of no limit at all everything is a multiple.
    assert amount(5, 0) is Severity.WARNING


def test_names_are_quoted_and_figures_readable() -> None:
    assert quoted("a", 'b"c') == '"a"."b""c"'
    assert [span(seconds) for seconds in (3, 119, 121, 7200, 900_000)] == ["3 s", "119 s", "2 min", "2 h", "10 d"]
    assert [size(count) for count in (2048, 3 << 20, 5 << 30)] == ["2 KiB", "3.0 MiB", "5.0 GiB"]


@pytest.mark.parametrize("change", [{"dead": -1}, {"idle": timedelta(seconds=-1)}])
def test_a_limit_is_not_negative(change: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=f"the limit {next(iter(change))} is negative"):
        DoctorLimits(**change)


# --- the server ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "is_finding"), [(140012, True), (150000, False), (180004, False), (190000, True)])
def test_which_servers_are_tested(version: int, is_finding: bool) -> None:
    server = doctor_settings.Server(version, is_standby=False, encoding="UTF8", database="d", tables_bytes=0)
    assert [one.code for one in doctor_settings.server(server, {}, LIMITS)] == ["server-version"] * is_finding


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("250", 250), ("2s", 2000), ("1min", 60_000), ("1.5 h", 5_400_000), ("300us", 0.3), ("", 0), ("x", 0)],
)
def test_times_of_settings(text: str, expected: float) -> None:
    assert doctor_settings.milliseconds(text) == pytest.approx(expected)


def transaction(**changes: Any) -> doctor_server.Transaction:
    given: dict[str, Any] = {
        "pid": 7, "role": "app", "application": "", "state": "active", "seconds": 0.0, "state_seconds": 0.0,
        "xids": 9, "writes": False, "is_here": True,
    }  # fmt: skip
    return doctor_server.Transaction(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({"seconds": 299.0, "state_seconds": 299.0}, None),
        ({"seconds": 300.0}, "warning"),
        ({"seconds": 3600.0}, "error"),
        ({"seconds": 61.0, "state": "idle in transaction", "state_seconds": 59.0}, None),
        ({"seconds": 61.0, "state": "idle in transaction", "state_seconds": 60.0}, "warning"),
        ({"seconds": 999.0, "state": "idle in transaction (aborted)", "state_seconds": 720.0}, "error"),
    ],
)
def test_which_transactions_are_old(changes: dict[str, Any], severity: str | None) -> None:
    found = list(doctor_server.transactions([transaction(**changes)], LIMITS, 5))
    assert [one.severity for one in found] == ([] if severity is None else [severity])
    if found:
        assert found[0].found.endswith("9 transactions behind; our tables have 5 dead rows")


def test_a_standby_s_read_only_default_is_none() -> None:
    values = {"default_transaction_read_only": "on"}
    assert not list(doctor_settings.settings(values, LIMITS, is_standby=True))
    assert [one.code for one in doctor_settings.settings(values, LIMITS, is_standby=False)] == ["setting-read-only"]


def test_a_slow_answer_leaves_the_clocks_in_doubt() -> None:
    assert not list(doctor_settings.clock(ahead=8, uncertain=4, limits=LIMITS))
    assert list(doctor_settings.clock(ahead=-9, uncertain=4, limits=LIMITS))


def test_wal_that_is_gone_is_an_error() -> None:
    lost = doctor_server.ReplicationSlot(
        "s'x", active=False, xids=None, catalog_xids=None, retained_bytes=None, wal_status="lost"
    )
    (one,) = doctor_server.replication_slots([lost], LIMITS)
    assert (one.severity, one.remedy) == (Severity.ERROR, "SELECT pg_drop_replication_slot('s''x');")


# --- tables and indexes -------------------------------------------------------------------------

VACUUM = doctor_tables.Vacuum(50, 0.2, 50, 0.1, 200_000_000, 3, 0)


def table(**changes: Any) -> doctor_tables.Table:
    given: dict[str, Any] = {
        "schema": "s", "name": "t", "bytes": 0, "rows": 0.0, "width": None, "live": 0, "dead": 0, "changed": 0,
        "vacuumed_seconds": None, "vacuum_wait": 600.0, "analyze_wait": 600.0, "xids": 0, "options": [],
    }  # fmt: skip
    return doctor_tables.Table(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"dead": 100}, []),
        ({"dead": 101}, ["vacuum-lag"]),
        ({"dead": 101, "vacuum_wait": 599.0}, []),
        ({"dead": 100_000, "live": 500_000, "rows": 500_000.0}, []),
        ({"dead": 100_001, "live": 500_000, "rows": 500_000.0}, ["table-dead"]),
        ({"dead": 3000, "options": ["autovacuum_vacuum_threshold=1500"]}, []),
        ({"dead": 3001, "options": ["autovacuum_vacuum_threshold=1500"]}, ["vacuum-lag"]),
        ({"options": ["autovacuum_enabled=false"]}, ["vacuum-off"]),
        ({"changed": 101}, ["analyze-lag"]),
        ({"changed": 101, "analyze_wait": 599.0}, []),
        ({"bytes": 200 << 20, "rows": 1000.0, "width": 100.0}, ["table-bloat"]),
        ({"bytes": 200 << 20, "rows": 1_000_000.0, "width": 100.0}, []),
        ({"bytes": 200 << 20, "rows": -1.0, "width": 100.0}, []),
        ({"bytes": 200 << 20, "rows": 1000.0}, []),
    ],
)
def test_what_statistics_of_a_table_mean(changes: dict[str, Any], codes: list[str]) -> None:
    assert [one.code for one in doctor_tables.tables([table(**changes)], VACUUM, LIMITS)] == codes


def test_busy_autovacuum_workers_are_named() -> None:
    busy = doctor_tables.Vacuum(50, 0.2, 50, 0.1, 200_000_000, 3, 3)
    (one,) = doctor_tables.tables([table(dead=101)], busy, LIMITS)
    assert one.found.endswith("last vacuumed never; all 3 autovacuum workers are busy")


@pytest.mark.parametrize(
    ("xids", "severity"), [(250_000_000, None), (250_000_001, "warning"), (1_500_000_001, "error")]
)
def test_how_old_rows_may_be(xids: int, severity: str | None) -> None:
    found = doctor_tables.wraparound([table(xids=xids)], VACUUM, LIMITS)
    assert [one.severity for one in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize(
    ("changes", "counted", "codes"),
    [
        ({}, 8, ["index-unused"]),
        ({}, 6, []),
        ({"scans": 1}, 8, []),
        ({"is_rule": True}, 8, []),
        ({"name": "ours"}, 8, []),
        ({"is_valid": False}, 8, ["index-invalid"]),
    ],
)
def test_which_indexes_nobody_needs(changes: dict[str, Any], counted: int, codes: list[str]) -> None:
    given: dict[str, Any] = {
        "schema": "s", "name": "i", "table": "t", "is_valid": True, "is_rule": False, "bytes": 8192, "rows": 0.0,
        "width": 8.0, "scans": 0,
    }  # fmt: skip
    index = doctor_tables.Index(**(given | changes))
    found = doctor_tables.indexes([index], LIMITS, counted_seconds=counted * 86_400, expected={"ours"})
    assert [one.code for one in found] == codes


def test_of_a_table_that_is_gone_its_columns_are_not_told() -> None:
    wanted = [doctor_tables.Expected(kind, name, "t", "x") for kind, name in (("table", "t"), ("column", "t.a"))]
    assert [one.subject for one in doctor_tables.drift(wanted, set())] == ["table t"]
    assert [one.subject for one in doctor_tables.drift(wanted, {("table", "t")})] == ["column t.a"]


# --- the work -----------------------------------------------------------------------------------


def queue(**changes: Any) -> doctor_work.Queue:
    given: dict[str, Any] = {
        "slot": "s", "head": "h", "owner": "o", "due_seconds": None, "over_seconds": None, "agent": None,
        "silent_seconds": None, "is_gone": False,
    }  # fmt: skip
    return doctor_work.Queue(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"owner": None}, "slot-ownerless"),
        ({"over_seconds": -5.0, "agent": "w"}, None),
        ({"over_seconds": 59.0, "agent": "w"}, None),
        ({"over_seconds": 60.0, "agent": "w"}, "slot-stalled"),
        ({"over_seconds": -5.0, "agent": "w", "silent_seconds": 60.0}, "slot-stalled"),
        ({"over_seconds": -5.0, "agent": "w", "is_gone": True}, "slot-stalled"),
        ({"due_seconds": 899.0}, None),
        ({"due_seconds": 900.0}, "slot-stalled"),
        ({"due_seconds": -86_399.0}, None),
        ({"due_seconds": -86_400.0}, "slot-stalled"),
    ],
)
def test_which_slots_do_not_move(changes: dict[str, Any], code: str | None) -> None:
    found = doctor_work.queues([queue(**changes)], LIMITS, lambda task: f"why {task}")
    assert [one.code for one in found] == ([] if code is None else [code])


def agent(**changes: Any) -> AgentStatus:
    given: dict[str, Any] = {
        "id": AgentId("w"), "seq": 1, "state": AgentState.ACTIVE, "kinds": ("subprocess",), "labels": Labels({}),
        "lease": 30_000, "registered_at": Timestamp(0), "heartbeat_at": Timestamp(1_000_000), "running": 0,
    }  # fmt: skip
    return AgentStatus(**(given | changes))


@pytest.mark.parametrize(
    ("kind", "selector", "code"),
    [
        ("subprocess", "{}", "work-late"),
        ("wasm", "{}", "route-unserved"),
        ("subprocess", '{"matchLabels":{"zone":"a"}}', "route-unserved"),
        (None, None, "route-unserved"),
        ("subprocess", '{"matchExpressions":[{"key":"a","operator":"Newer"}]}', "route-unserved"),
    ],
)
def test_who_serves_a_route(kind: str | None, selector: str | None, code: str) -> None:
    backlog = doctor_work.Backlog(kind, selector, "t", 900, 100)
    (one,) = doctor_work.routes([backlog], [agent()], LIMITS, lambda _: "why")
    assert (one.code, one.found.startswith("100 or more due")) == (code, True)
    # Who drains, or is silent, does not serve.
    for state in (AgentState.DRAINING, AgentState.SILENT):
        (one,) = doctor_work.routes([backlog], [agent(state=state)], LIMITS, lambda _: "why")
        assert one.code == "route-unserved"
    assert not list(doctor_work.routes([doctor_work.Backlog(kind, selector, "t", 899, 1)], [], LIMITS, lambda _: ""))


@pytest.mark.parametrize(
    ("changes", "seconds", "codes"),
    [
        ({"state": AgentState.SILENT}, 89, []),
        ({"state": AgentState.SILENT}, 90, ["agent-silent"]),
        ({"state": AgentState.DRAINING}, 0, ["agent-drained"]),
        ({"state": AgentState.DRAINING, "running": 1}, 0, []),
        ({"capacity": 4, "running": 14}, 0, []),
        ({"capacity": 4, "running": 15}, 0, ["agent-overfull"]),
        ({"capacity": 40, "running": 80}, 0, []),
        ({"running": 1000}, 0, []),
    ],
)
def test_which_agents_are_told_of(changes: dict[str, Any], seconds: int, codes: list[str]) -> None:
    found = doctor_work.agents([agent(**changes)], LIMITS, now_ms=1_000_000 + seconds * 1000)
    assert [one.code for one in found] == codes


def test_a_label_index_may_lag_a_little() -> None:
    assert not list(doctor_work.label_index(is_valid=True, unknown=8192, most=8192))
    assert list(doctor_work.label_index(is_valid=True, unknown=8193, most=8192))
    assert list(doctor_work.label_index(is_valid=False, unknown=0, most=8192))
