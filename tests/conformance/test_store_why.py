"""Why a task does not run, over both stores. Each reason, as a value and as a sentence."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from sqlalchemy import text
from support import bare_engine, retrying, selecting, silence, spec

from solti_store import NotFound, Outcome, TaskStore, Wasm, Why, WhyReason

AT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def said(why: Why, pattern: str) -> bool:
    return re.fullmatch(pattern.replace("AT", AT), why.message) is not None


def test_there_must_be_a_task(store: TaskStore) -> None:
    with pytest.raises(NotFound):
        store.why("nobody")


def test_a_due_task_waits_for_its_turn(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    store.register("w")
    first, last = store.why("t-0"), store.why("t-2")
    assert (first.reason, first.ahead, last.ahead) == (WhyReason.DUE, 0, 2)
    assert said(first, "due since AT, waits for a free worker; it is the next of its kind and selector")
    assert said(last, "due since AT, waits for a free worker; 2 like it are before it")
    assert last.at == store.get("t-2").metadata.created_at
    assert Why.from_json(last.to_json()) == last


def test_no_worker_may_run_it(store: TaskStore, database_url: str) -> None:
    store.create("a", spec("a", runner_selector=selecting(zone="a", arch="arm")))
    nobody = store.why("a")
    assert (nobody.reason, nobody.message, nobody.unfit) == (WhyReason.NO_WORKER, "no worker is live", ())
    store.register("wrong-zone", labels={"zone": "b", "arch": "arm"})
    store.register("no-arch", labels={"zone": "a"})
    store.register("wasm-only", kinds=["wasm"], labels={"zone": "a", "arch": "arm"})
    silence(database_url, store.register("silent", labels={"zone": "a", "arch": "arm"}))
    store.sign_off(store.register("gone", labels={"zone": "a", "arch": "arm"}))
    found = store.why("a")
    assert [(one.agent, one.lacks) for one in found.unfit] == [
        ("wrong-zone", "zone=a (has zone=b)"),
        ("no-arch", "arch=arm (no arch)"),
        ("wasm-only", "the kind subprocess"),
    ]
    assert found.message.startswith("no live worker may run it: wrong-zone lacks ")
    store.register("right", labels={"zone": "a", "arch": "arm"})
    assert store.why("a").reason is WhyReason.DUE
    for n in range(7):
        store.register(f"w-{n}")
    store.create("wasm", spec("wasm", kind=Wasm.module("m"), runner_selector=selecting(zone="z")))
    assert store.why("wasm").message.endswith("; and 6 others")


def test_it_runs_or_is_asked_to_stop(store: TaskStore) -> None:
    store.create("a", spec("a"))
    store.create("by-hand", spec("by-hand"))
    (claim,) = store.claim(store.register("w"), limit=1)
    running = store.why("a")
    assert (running.reason, running.agent) == (WhyReason.RUNNING, "w")
    assert said(running, "running on w since AT, attempt 1")
    assert running.at == store.runs("a")[0].started_at
    store.cancel("a")
    assert said(store.why("a"), "running on w since AT, attempt 1; asked to stop at AT")
    assert store.why("a").reason is WhyReason.CANCELING
    store.finish(claim, Outcome.canceled())
    assert said(store.why("a"), "final: canceled at AT after 1 attempt")
    store.start("by-hand")
    assert said(store.why("by-hand"), "running by hand since AT, attempt 1")
    assert store.why("by-hand").agent is None


def test_it_waits_for_its_restart_or_is_final(store: TaskStore, database_url: str) -> None:
    store.create("a", retrying("a", max_retries=1))
    agent = store.register("w")
    store.finish(store.claim(agent)[0], Outcome.failed("first"))
    engine = bare_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE solti.task_status SET due_at = now() + interval '1 hour'"))
    waits = store.why("a")
    assert waits.reason is WhyReason.RESTARTING
    assert said(waits, "waits until AT for its restart: attempt 1 ended failed: first")
    assert waits.at.datetime - store.get("a").metadata.updated_at.datetime > timedelta(minutes=59)
    with engine.begin() as connection:
        connection.execute(text("UPDATE solti.task_status SET due_at = now()"))
    store.finish(store.claim(agent)[0], Outcome.failed("second"))
    final = store.why("a")
    assert final.reason is WhyReason.FINAL
    assert said(final, "final: exhausted at AT after 2 attempts: second")
    engine.dispose()
