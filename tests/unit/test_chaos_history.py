"""The checker of histories itself: a good history passes, and each forgery is caught by the rule it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from chaos.history import SUPERSEDED, Act, Event, History, RunRow, TaskRow, check
from chaos.plan import plan_of

Forgery = Callable[["Tape"], object]

A, B, C, D = "s.queue.never.n.a", "s.queue.never.n.b", "s.queue.never.n.c", "s.queue.never.n.d"
R, R2 = "s.replace.never.n.r", "s.replace.never.n.r2"
DROP = "s.dropIfRunning.never.n.x"
RETRY = "own.queue.onFailure.1.y"
AGAIN = "own2.queue.always.n.z"
OK, BAD = ("succeeded", 1, "no 1"), ("failed", 2, "no 2")


class Tape:
    """A history in the making. Every event is a transaction of its own, unless `at` puts it into one that is there."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.acts: list[Act] = []
        self.seqs: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.time = 0
        self.hidden: set[str] = set()
        self.rows: dict[str, dict[str, Any]] = {}
        self.drained = True

    def event(self, task_id: str, kind: str, phase: str, *, at: int | None = None, **changes: Any) -> int:
        self.time += 10
        time = self.time if at is None else at
        if kind == "created":
            self.seqs[task_id] = len(self.seqs) + 1
            self.versions[task_id] = self.attempts[task_id] = 0
        self.versions[task_id] += kind not in {"refused", "deleted"}
        self.attempts[task_id] += kind == "started"
        facts = {"version": self.versions[task_id], "attempt": self.attempts[task_id]} | changes
        number = len(self.events) + 1
        self.events.append(Event(number, time, time, self.seqs[task_id], task_id, kind, phase=phase, **facts))
        return time

    def create(self, task_id: str, **changes: Any) -> int:
        self.acts += [Act("create", "try", task_id), Act("create", "ok", task_id)]
        return self.event(task_id, "created", "pending", **changes)

    def start(self, task_id: str, **changes: Any) -> int:
        time = self.event(task_id, "started", "running", **changes)
        self.acts.append(Act("claim", "ok", task_id, seq=self.seqs[task_id], attempt=self.attempts[task_id], agent=7))
        return time

    def finish(self, task_id: str, record: tuple[str, int | None, str | None], phase: str = "", **changes: Any) -> int:
        for state in ("try", "ok"):
            self.report(task_id, state, record)
        outcome, exit_code, error = record
        facts: dict[str, Any] = {"outcome": outcome, "exit_code": exit_code, "error": error}
        return self.event(task_id, "finished", phase or outcome, **facts, **changes)

    def report(self, task_id: str, state: str, record: tuple[Any, Any, Any], attempt: int | None = None) -> None:
        number = self.attempts[task_id] if attempt is None else attempt
        self.acts.append(Act("finish", state, task_id, seq=self.seqs[task_id], attempt=number, record=record))

    def run(self, task_id: str, record: tuple[str, int | None, str | None] = OK, phase: str = "") -> int:
        self.start(task_id)
        return self.finish(task_id, record, phase)

    def history(self) -> History:
        """With the rows that the events leave behind."""
        last: dict[str, Event] = {}
        runs: dict[tuple[int, int], RunRow] = {}
        for event in self.events:
            if event.type != "refused":
                last[event.id] = event
            if event.type == "started":
                runs[event.seq, event.attempt] = RunRow(event.seq, event.attempt, "running", None, None, 7)
            elif event.outcome is not None and (event.seq, event.attempt) in runs:
                runs[event.seq, event.attempt] = RunRow(
                    event.seq, event.attempt, event.outcome, event.exit_code, event.error, 7
                )
        rows = []
        for task_id, event in last.items():
            if event.type != "deleted" and task_id not in self.hidden:
                row = TaskRow(
                    event.seq, task_id, event.version, event.phase, event.attempt, event.error,
                    owns=False, queue_key=None,
                )  # fmt: skip
                rows.append(replace(row, **self.rows.get(task_id, {})))
        kept = {row.seq for row in rows}
        return History(
            self.events, rows, [run for run in runs.values() if run.seq in kept], self.acts, 2, drained=self.drained
        )


def good() -> Tape:
    """Something of everything that is allowed."""
    tape = Tape()
    tape.create(A)
    tape.start(A)
    tape.create(B)
    tape.create(C)
    tape.event(B, "admitted", "pending", at=tape.finish(A, OK))
    tape.run(B)
    tape.event(C, "admitted", "pending", at=tape.time)
    # A replacing task becomes the head, another one displaces it, and the owner is asked to stop once.
    tape.start(C)
    tape.create(D)
    tape.event(C, "cancelRequested", "running", at=tape.create(R))
    tape.event(D, "finished", "canceled", at=tape.time - 10)
    tape.rows[D] = {"error": SUPERSEDED}
    tape.event(R, "finished", "canceled", at=tape.create(R2))
    tape.rows[R] = {"error": SUPERSEDED}
    tape.event(R2, "admitted", "pending", at=tape.finish(C, ("canceled", None, None)))
    # Not started, so it makes room at once.
    third = "s.replace.never.n.r3"
    tape.event(R2, "finished", "canceled", at=tape.create(third))
    tape.run(third)
    tape.create(DROP)
    tape.event(DROP, "specChanged", "pending")
    tape.event(DROP, "deleted", "pending")
    tape.acts += [Act("delete", "ok", DROP)]
    # Policies.
    tape.create(RETRY)
    tape.run(RETRY, BAD)
    tape.run(RETRY, ("failed", None, "lease expired: agent w stopped reporting"), "exhausted")
    tape.create(AGAIN)
    tape.run(AGAIN)
    tape.start(AGAIN)
    tape.event(AGAIN, "cancelRequested", "running")
    tape.finish(AGAIN, OK, "canceled")
    tape.report(AGAIN, "refused", BAD)
    tape.event(AGAIN, "refused", "canceled")
    refused = "s.dropIfRunning.never.n.no"
    tape.acts += [Act("create", "try", refused), Act("create", "refused", refused, error="SlotBusy", owner=A)]
    return tape


def test_a_good_history_has_no_violations() -> None:
    assert check(good().history()) == []


def test_what_was_cut_short_is_judged_as_far_as_it_went() -> None:
    tape = Tape()
    tape.create(A)
    tape.start(A)
    tape.create(B)
    tape.rows = {A: {"owns": True}, B: {"queue_key": 3}}
    tape.drained = False
    assert check(tape.history()) == []


def last(tape: Tape, task_id: str, kind: str) -> int:
    return next(
        i for i in reversed(range(len(tape.events))) if (tape.events[i].id, tape.events[i].type) == (task_id, kind)
    )


def edit(task_id: str, kind: str, **changes: Any) -> Forgery:
    def forge(tape: Tape) -> None:
        index = last(tape, task_id, kind)
        tape.events[index] = replace(tape.events[index], **changes)

    return forge


def drop(task_id: str, kind: str) -> Forgery:
    return lambda tape: tape.events.pop(last(tape, task_id, kind))


def swap(one: tuple[str, str], other: tuple[str, str]) -> Forgery:
    """Exchange the times of two events."""

    def forge(tape: Tape) -> None:
        i, j = last(tape, *one), last(tape, *other)
        first, second = tape.events[i], tape.events[j]
        tape.events[i] = replace(first, committed=second.committed, xid=second.xid)
        tape.events[j] = replace(second, committed=first.committed, xid=first.xid)

    return forge


def second_owner(tape: Tape) -> None:
    tape.create("s.dropIfRunning.never.n.q", at=tape.events[last(tape, A, "started")].committed + 1)


def claimed_twice(tape: Tape) -> None:
    tape.acts.append(next(act for act in tape.acts if act.op == "claim"))


def started_twice(tape: Tape) -> None:
    tape.create("o.queue.never.n.t")
    tape.start("o.queue.never.n.t")
    tape.run("o.queue.never.n.t")


def attempt_skipped(tape: Tape) -> None:
    tape.create("o.queue.never.n.t")
    tape.attempts["o.queue.never.n.t"] = 1
    tape.run("o.queue.never.n.t")


def finished_twice(tape: Tape) -> None:
    tape.finish(RETRY, BAD, "exhausted")


def restarted(tape: Tape) -> None:
    tape.create("o.queue.never.n.t")
    tape.run("o.queue.never.n.t")
    tape.run("o.queue.never.n.t")


def accepted_late(tape: Tape) -> None:
    tape.report(RETRY, "ok", ("succeeded", 9, "no 9"), attempt=1)


def refused_while_running(tape: Tape) -> None:
    tape.create("o.queue.never.n.t")
    tape.start("o.queue.never.n.t")
    tape.report("o.queue.never.n.t", "refused", BAD)
    tape.drained = False
    tape.rows["o.queue.never.n.t"] = {"owns": True}


def refused_and_on_record(tape: Tape) -> None:
    tape.report(A, "refused", OK)


def queue_of_three(tape: Tape) -> None:
    for n in "1234":
        tape.create(f"q.queue.never.n.{n}")


def stuck(tape: Tape) -> None:
    tape.create("o.queue.never.n.t")
    tape.rows["o.queue.never.n.t"] = {"owns": True}


def owner_lost(tape: Tape) -> None:
    stuck(tape)
    tape.rows["o.queue.never.n.t"] = {"owns": False}


def canceled_again(tape: Tape) -> None:
    tape.event(A, "finished", "canceled")


def asked_twice(tape: Tape) -> None:
    tape.create("o.queue.never.n.t")
    tape.start("o.queue.never.n.t")
    for _ in range(2):
        tape.event("o.queue.never.n.t", "cancelRequested", "running")


FORGERIES: dict[str, tuple[str, Forgery]] = {
    "a version is skipped": ("version", edit(RETRY, "finished", version=9)),
    "creation at version 2": ("version", edit(A, "created", version=2)),
    "a change without an event": ("version", drop(DROP, "specChanged")),
    "two owners": ("owner", second_owner),
    "dropIfRunning on an owned slot": ("owner", edit(B, "created", id=DROP + "1")),
    "started from the queue": ("owner", drop(B, "admitted")),
    "the head is not admitted": ("stalled", drop(B, "admitted")),
    "the second is admitted first": ("fifo", swap((B, "admitted"), (C, "admitted"))),
    "admitted in another order than created": ("fifo", swap((B, "created"), (C, "created"))),
    "a queue too long": ("queue", queue_of_three),
    "admitted but never queued": ("queue", edit(B, "created", id="elsewhere.queue.never.n.b")),
    "the owner is not asked to stop": ("replace", drop(C, "cancelRequested")),
    "the head is not displaced": ("replace", drop(D, "finished")),
    "a replacing head is not displaced": ("replace", drop(R, "finished")),
    "asked to stop twice": ("cancel", asked_twice),
    "an attempt handed out twice": ("claim", claimed_twice),
    "a claim of nothing": ("claim", lambda tape: tape.acts.append(Act("claim", "ok", A, seq=1, attempt=5, agent=7))),
    "a claim of another's attempt": (
        "claim",
        lambda tape: tape.acts.append(Act("claim", "ok", A, seq=1, attempt=1, agent=8)),
    ),
    "started while running": ("attempts", started_twice),
    "an attempt number skipped": ("attempts", attempt_skipped),
    "a second outcome": ("attempts", finished_twice),
    "an outcome without an event": ("fence", lambda tape: tape.events.pop(last(tape, RETRY, "finished"))),
    "restarted against its policy": ("policy", restarted),
    "canceled when final": ("policy", canceled_again),
    "exhausted is not reached": ("policy", edit(RETRY, "finished", phase="failed")),
    "always goes on though canceled": ("policy", edit(AGAIN, "finished", phase="succeeded")),
    "a late report accepted": ("fence", accepted_late),
    "a report refused for nothing": ("fence", refused_while_running),
    "a report refused and recorded": ("fence", refused_and_on_record),
    "an outcome that nobody reported": ("fence", edit(A, "finished", exit_code=77)),
    "an accepted report of no attempt": ("fence", lambda tape: tape.report(A, "ok", OK, attempt=4)),
    "a task is gone": ("lost", lambda tape: tape.hidden.add(A)),
    "gone without a deletion": ("lost", drop(DROP, "deleted")),
    "a creation is lost": ("lost", lambda tape: tape.acts.append(Act("create", "ok", "s.queue.never.n.gone"))),
    "a deletion is lost": ("lost", lambda tape: tape.acts.append(Act("delete", "ok", A))),
    "a task of nobody": ("lost", lambda tape: tape.event("o.queue.never.n.t", "created", "pending")),
    "a refused creation exists": (
        "refusal",
        lambda tape: tape.acts.append(Act("create", "refused", A, error="SlotBusy", owner=B)),
    ),
    "SlotBusy names a stranger": (
        "refusal",
        lambda tape: tape.acts.append(Act("create", "refused", "s.queue.never.n.no", error="SlotBusy", owner=RETRY)),
    ),
    "stuck": ("stuck", stuck),
    "an owner's books say it is not": ("books", owner_lost),
    "another phase": ("books", lambda tape: tape.rows.update({A: {"phase": "failed"}})),
    "another version": ("books", lambda tape: tape.rows.update({A: {"version": 4}})),
    "a displaced task without its error": ("books", lambda tape: tape.rows.update({D: {"error": None}})),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_caught(name: str) -> None:
    rule, forge = FORGERIES[name]
    tape = good()
    forge(tape)
    assert rule in {violation.rule for violation in check(tape.history())}


def test_the_rows_beside_good_events_are_judged_too() -> None:
    history = good().history()
    seq = next(event.seq for event in history.events if event.id == RETRY)
    runs = [run for run in history.runs if run.seq != seq]
    assert {one.rule for one in check(replace(history, runs=runs))} == {"attempts"}
    twice = [*history.runs, history.runs[0]]
    assert {one.rule for one in check(replace(history, runs=twice))} == {"attempts"}
    tape = Tape()
    for task_id in (A, B, C):
        tape.create(task_id)
    tape.drained = False
    tape.rows = {A: {"owns": True}, B: {"queue_key": 2}, C: {"queue_key": 1}}
    assert {one.rule for one in check(tape.history())} == {"books"}
    tape.rows = {A: {"owns": True}, B: {"queue_key": 1}, C: {"owns": True}}
    assert "owner" in {one.rule for one in check(tape.history())}


def test_the_plan_of_a_task_stands_in_its_id() -> None:
    assert plan_of(RETRY).id("y") == RETRY
    assert plan_of(A).id("a") == A
    spec = plan_of(RETRY).spec(timeout_ms=5, label="x")
    assert (spec.slot, spec.max_retries, spec.restart.type, spec.admission.value) == ("own", 1, "onFailure", "queue")


def test_an_attempt_that_was_taken_from_a_living_agent_is_found() -> None:
    history = good().history()
    taken = [replace(run, taken_early=True) for run in history.runs[:1]]
    found = check(replace(history, runs=[*taken, *history.runs[1:]]))
    assert [violation.rule for violation in found] == ["fence"]
