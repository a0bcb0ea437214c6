"""A small history, made by hand, and what the reports of it must be; days long gone, so that no clock matters."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg

__all__ = ["described", "make_history", "rows_of"]

_SPEC = """{{"slot": "{slot}", "kind": {kind}, "timeout": 5000, "restart": {{"type": "{restart}"}},
 "backoff": {{"jitter": "full", "firstMs": 1000, "maxMs": 30000, "factor": 2.0}}, "admission": "{admission}",
 "labels": {labels}{more}}}"""
_COMMAND = '{"subprocess": {"mode": {"command": {"command": "make", "args": ["secret"]}}, "failOnNonZero": true}}'
_SCRIPT = '{"subprocess": {"mode": {"script": {"runtime": "bash", "body": "aGk="}}, "failOnNonZero": true}}'
_RUBY = (
    '{"subprocess": {"mode": {"script": {"runtime": {"custom": {"command": "ruby", "flag": "-e"}}, "body": "aGk="}},'
    ' "failOnNonZero": true}}'
)
_IMAGE = '{"container": {"image": "alpine:3"}}'
_WASM = '{"wasm": {"module": "m.wasm"}}'


def _ago(seconds: int) -> str:
    return f"now() - interval '{seconds} s'"


_TASKS = (
    # seq, id, slot, kind, restart, admission, labels, more, created
    (
        1,
        "done",
        "build",
        _COMMAND,
        "onFailure",
        "queue",
        '{"env": "prod", "n": "1"}',
        ', "maxRetries": 3',
        "'2024-05-01 09:00:00Z'",
    ),
    (2, "gone-bad", "build", _COMMAND, "onFailure", "queue", '{"env": "prod"}', "", "'2024-05-01 09:00:10Z'"),
    (3, "runs", "build", _SCRIPT, "never", "queue", '{"env": "dev"}', "", _ago(65)),
    (4, "waits-1", "build", _RUBY, "never", "queue", "{}", "", _ago(50)),
    (5, "waits-2", "build", _WASM, "never", "replace", "{}", "", _ago(90)),
    (6, "is-due", "due", _IMAGE, "always", "dropIfRunning", "{}", "", "'2024-05-01 09:00:30Z'"),
    (7, "backs-off", "later", '"embedded"', "onFailure", "dropIfRunning", "{}", "", "'2024-05-01 09:00:40Z'"),
    (8, "stopped", "stop", _COMMAND, "never", "dropIfRunning", "{}", "", "'2024-05-01 09:00:50Z'"),
)
_ROUTE = "00000000-0000-0000-0000-000000000000"

_STATUS = """
INSERT INTO solti.task_status (seq, resource_version, updated_at, phase, attempt, failures, exit_code, error, due_at,
    slot, queue_key, route, agent, agent_id, started_at, deadline, cancel_requested_at) VALUES
(1, 7, '2024-05-01 09:02:10Z', 'succeeded', 3, 0, 0, NULL, NULL, 'build', NULL, %(r)s, NULL, NULL, NULL, NULL, NULL),
(2, 9, '2024-05-02 10:00:04Z', 'exhausted', 2, 2, 1, 'exit code 1: disk 17 is full', NULL, 'build', NULL, %(r)s,
 NULL, NULL, NULL, NULL, NULL),
(3, 3, now() - interval '8 s', 'running', 1, 0, NULL, NULL, NULL, 'build', NULL, %(r)s, 2, 'w2',
 now() - interval '20 s', now() + interval '1 min', now() - interval '8 s'),
(4, 1, now() - interval '50 s', 'pending', 0, 0, NULL, NULL, NULL, 'build', 4, %(r)s, NULL, NULL, NULL, NULL, NULL),
(5, 1, now() - interval '90 s', 'pending', 0, 0, NULL, NULL, NULL, 'build', 3, %(r)s, NULL, NULL, NULL, NULL, NULL),
(6, 1, '2024-05-01 09:00:30Z', 'pending', 0, 0, NULL, NULL, now() - interval '30 s', 'due', NULL, %(r)s,
 NULL, NULL, NULL, NULL, NULL),
(7, 3, '2024-05-02 11:00:10Z', 'timeout', 1, 1, NULL, 'timed out after 5000ms', now() + interval '1 h', 'later', NULL,
 %(r)s, NULL, NULL, NULL, NULL, NULL),
(8, 4, '2024-05-02 12:00:01Z', 'canceled', 1, 0, NULL, 'canceled', NULL, 'stop', NULL, %(r)s,
 NULL, NULL, NULL, NULL, NULL)
"""

_RUNS = """
INSERT INTO solti.task_runs (seq, attempt, phase, started_at, finished_at, error, exit_code, agent, agent_id) VALUES
(1, 1, 'failed', '2024-05-01 09:00:30Z', '2024-05-01 09:00:40Z', 'lease expired: agent w1 stopped reporting', NULL,
 1, 'w1'),
(1, 2, 'timeout', '2024-05-01 09:01:00Z', '2024-05-01 09:01:05Z', 'timed out after 5000ms', NULL, 2, 'w2'),
(1, 3, 'succeeded', '2024-05-01 09:01:10Z', '2024-05-01 09:02:10Z', NULL, 0, 2, 'w2'),
(2, 1, 'failed', '2024-05-01 23:59:50Z', '2024-05-02 00:00:00Z', 'exit code 1: disk 3 is full', 1, 2, 'w2'),
(2, 2, 'failed', '2024-05-02 10:00:00Z', '2024-05-02 10:00:04Z', 'exit code 1: disk 17 is full', 1, 3, 'w3'),
(7, 1, 'timeout', '2024-05-02 11:00:00Z', '2024-05-02 11:00:10Z', 'timed out after 5000ms', NULL, 2, 'w2'),
(8, 1, 'canceled', '2024-05-02 12:00:00Z', '2024-05-02 12:00:01Z', NULL, NULL, 2, 'w2')
"""

_AGENTS = """
INSERT INTO solti.agents (seq, id, labels, kinds, capacity, state, lease, registered_at, heartbeat_at, expires_at,
    closed_at) OVERRIDING SYSTEM VALUE VALUES
(1, 'w1', '{}', '{subprocess}', NULL, 'lost', '30 s', '2024-05-01 08:00Z', '2024-05-01 09:00:00Z',
 '2024-05-01 09:00:30Z', '2024-05-01 09:00:40Z'),
(2, 'w2', '{"zone": "a"}', '{subprocess,wasm}', 4, 'active', '30 s', '2024-05-01 08:00Z', now() - interval '5 s',
 now() + interval '25 s', NULL),
(3, 'w3', '{}', '{subprocess}', 1, 'active', '30 s', '2024-05-01 08:00Z', now() - interval '60 s',
 now() - interval '30 s', NULL),
(4, 'w4', '{}', '{embedded}', 1, 'draining', '30 s', '2024-05-01 08:00Z', now(), now() + interval '30 s', NULL)
"""

# Task 9 is deleted; of the others, one that was retried, one that is still running, and a late write.
_EVENTS = """
INSERT INTO solti.task_events (at, seq, id, type, resource_version, phase, phase_before, attempt) VALUES
('2024-05-01 09:00:00Z', 1, 'done', 'created', 1, 'pending', NULL, 0),
('2024-05-01 09:00:10Z', 1, 'done', 'specChanged', 2, 'pending', 'pending', 0),
('2024-05-01 09:00:30Z', 1, 'done', 'started', 3, 'running', 'pending', 1),
('2024-05-01 09:00:40Z', 1, 'done', 'finished', 4, 'failed', 'running', 1),
('2024-05-01 09:01:00Z', 1, 'done', 'started', 5, 'running', 'failed', 2),
('2024-05-01 09:01:04Z', 1, 'done', 'refused', 5, 'running', 'running', 2),
('2024-05-01 09:01:05Z', 1, 'done', 'finished', 5, 'timeout', 'running', 2),
('2024-05-01 09:01:10Z', 1, 'done', 'started', 6, 'running', 'timeout', 3),
('2024-05-01 09:02:10Z', 1, 'done', 'finished', 7, 'succeeded', 'running', 3),
('2024-05-01 08:00:00Z', 9, 'deleted', 'created', 1, 'pending', NULL, 0),
('2024-05-01 08:00:07Z', 9, 'deleted', 'deleted', 2, 'pending', 'pending', 0),
('2024-05-02 00:00:00Z', 2, 'gone-bad', 'finished', 4, 'failed', 'running', 1),
('2024-05-02 10:00:00Z', 2, 'gone-bad', 'started', 5, 'running', 'failed', 2),
('2024-05-02 10:00:04Z', 2, 'gone-bad', 'finished', 6, 'exhausted', 'running', 2),
(now() - interval '65 s', 3, 'runs', 'created', 1, 'pending', NULL, 0),
(now() - interval '63 s', 3, 'runs', 'admitted', 1, 'pending', 'pending', 0),
(now() - interval '20 s', 3, 'runs', 'started', 2, 'running', 'pending', 1),
(now() - interval '8 s', 3, 'runs', 'cancelRequested', 3, 'running', 'running', 1)
"""


def make_history(connection: psycopg.Connection[Any]) -> None:
    """Write the history in the transaction that is open: within it, `now()` stands still."""
    # So that days of the session's own zone would show.
    connection.execute("SET LOCAL timezone = 'Pacific/Auckland'")
    for seq, task, slot, kind, restart, admission, labels, more, created in _TASKS:
        spec = _SPEC.format(slot=slot, kind=kind, restart=restart, admission=admission, labels=labels, more=more)
        connection.execute(
            f"INSERT INTO solti.tasks (seq, id, created_at, spec) OVERRIDING SYSTEM VALUE"
            f" VALUES (%s, %s, {created}, %s)".encode(),
            (seq, task, spec),
        )
    connection.execute(_STATUS, {"r": _ROUTE})
    for statement in (_RUNS, _AGENTS, _EVENTS):
        connection.execute(statement.encode())


def described(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """What the database says of its views: for each its comment and its columns, in order."""
    rows = connection.execute(
        """
        SELECT c.relname, obj_description(c.oid, 'pg_class'), a.attname, format_type(a.atttypid, NULL),
               col_description(c.oid, a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'solti_report'::regnamespace
        ORDER BY c.relname, a.attnum
        """
    ).fetchall()
    views: dict[str, Any] = {}
    for view, comment, column, kind, meaning in rows:
        views.setdefault(view, {"comment": comment, "columns": []})["columns"].append([column, kind, meaning])
    return views


def rows_of(connection: psycopg.Connection[Any], view: str) -> list[list[Any]]:
    """A view's rows as JSON has them, in an order of their own; times that depend on now as seconds from it."""
    ((now,),) = connection.execute("SELECT now()").fetchall()
    rows = connection.execute(f"SELECT * FROM solti_report.{view}".encode()).fetchall()
    return sorted(([_plain(value, now) for value in row] for row in rows), key=repr)


def _plain(value: Any, now: datetime) -> Any:
    if isinstance(value, datetime):
        if abs(value - now) < timedelta(days=1):
            return f"now {(value - now).total_seconds():+g}s"
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, date) and abs(value - now.astimezone(UTC).date()) <= timedelta(days=1):
        return "today"
    return value.isoformat() if isinstance(value, date) else value
