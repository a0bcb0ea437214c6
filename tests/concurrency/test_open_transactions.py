"""Somebody's transaction stays open over one slot: nobody else has to wait for it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from sqlalchemy import create_engine
from support import lock_waits, queued, retrying, spec, without_waiting

from solti_store import AsyncTaskStore, LeaseLost, Outcome, TaskPhase
from solti_store.sql.slots import SELECT_BLOCKED
from solti_store.worker.reporting import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chaos.client import Client

    from solti_store import Agent, Claim, TaskStore

OK = Outcome.succeeded(0)


@contextmanager
def still_open(client: Client, url: str, change: Callable[[TaskStore], object]) -> Iterator[Callable[[], None]]:
    """`change` in a transaction that is not committed before the function this gives is called."""
    engine = create_engine(url)
    with engine.connect() as conn:
        change(client.store.using(conn))
        yield conn.commit
    engine.dispose()


def owners(client: Client, *slots: str) -> tuple[Agent, Sequence[Claim]]:
    """Running owners of these slots, with their agent."""
    client.store.create_many([(f"owner-{slot}", queued(slot)) for slot in slots])
    agent = client.register()
    return agent, client.store.claim(agent, limit=len(slots))


def finish_all_but(client: Client, claims: Sequence[Claim], blocked: str, commit: Callable[[], None]) -> None:
    """Finish all, and see that only one of them is waited for."""
    store = client.store
    with ThreadPoolExecutor(1) as there:
        finishing = there.submit(store.finish_many, [(claim, OK) for claim in claims])
        while not lock_waits(client.conn):
            assert not finishing.done()
        phases = {claim.task_id: store.get(claim.task_id).status.phase for claim in claims}
        assert [name for name, phase in phases.items() if phase is TaskPhase.RUNNING] == [blocked]
        commit()
        assert finishing.result() == [None] * len(claims)
    assert store.get(blocked).status.phase is TaskPhase.SUCCEEDED


def test_a_batch_of_finishes_does_not_wait_for_one_whose_queue_somebody_joins(client: Client, ordered_url: str) -> None:
    _, claims = owners(client, "a", "b", "c")
    with still_open(client, ordered_url, lambda store: store.create("late", queued("a"))) as commit:
        finish_all_but(client, claims, "owner-a", commit)
    assert [one.task_id for one in client.store.claim(client.register())] == ["late"]


def test_a_batch_of_finishes_does_not_wait_for_one_whose_next_somebody_cancels(
    client: Client, ordered_url: str
) -> None:
    _, claims = owners(client, "a", "b", "c")
    for slot in "abc":
        client.store.create(f"next-{slot}", queued(slot))
    with still_open(client, ordered_url, lambda store: store.cancel("next-b")) as commit:
        finish_all_but(client, claims, "owner-b", commit)
    found = {one.task_id for one in client.store.claim(client.register(), limit=9)}
    assert found == {"next-a", "next-c"}


@pytest.mark.parametrize("signs_off", [True, False])
def test_attempts_are_taken_away_without_waiting_for_who_comes_next(
    client: Client, ordered_url: str, signs_off: bool
) -> None:
    store = client.store
    agent, _ = owners(client, "a", "b")
    client.silence()
    for name in ("a-1", "a-2", "b-1"):
        store.create(name, queued(name[0]))
    with still_open(client, ordered_url, lambda other: other.cancel("a-1")) as commit:
        reaped = store.sign_off(agent) if signs_off else store.reap(grace=timedelta(0))
        assert [one.task_id for one in reaped] == ["owner-b"]
        assert store.get("owner-a").status.phase is TaskPhase.RUNNING
        commit()
    assert [one.task_id for one in store.reap()] == ["owner-a"]
    # Nobody was passed over.
    assert {one.task_id for one in store.claim(client.register(), limit=9)} == {"a-2", "b-1"}


def test_a_sweep_gets_past_those_whose_next_somebody_holds(client: Client, ordered_url: str) -> None:
    store = client.store
    store.create_many([(f"owner-{slot}", queued(slot)) for slot in "ab"])
    agent = client.register()
    assert len(store.claim(agent, limit=2)) == 2
    client.silence()
    store.create("next-a", queued("a"))
    with still_open(client, ordered_url, lambda other: other.cancel("next-a")):
        assert [one.task_id for _ in range(3) for one in store.reap(limit=1, grace=timedelta(0))] == ["owner-b"]


def test_a_late_result_holds_nothing_while_another_is_waited_for(client: Client, ordered_url: str) -> None:
    """A batch with a late result and one that has to wait locks the late one's task, which somebody else runs."""
    store = client.store
    store.create("late", retrying("late"))
    store.create("held", queued("h"))
    old = client.register()
    claims = {str(one.task_id): one for one in store.claim(old, limit=2)}
    store.finish(claims["late"], Outcome.failed("no"))
    client.conn.execute("UPDATE solti.task_status SET due_at = now() WHERE due_at IS NOT NULL")
    (again,) = store.claim(client.register())
    assert again.task_id == "late"
    with (
        ThreadPoolExecutor(1) as there,
        ThreadPoolExecutor(1) as here,
        still_open(client, ordered_url, lambda other: other.create("joins", queued("h"))) as commit,
    ):
        first = there.submit(store.finish_many, [(claims["late"], OK), (claims["held"], OK)])
        while not lock_waits(client.conn):
            assert not first.done()
        second = here.submit(store.finish, again, OK)
        try:
            without_waiting(second, client.conn, others=1)
        finally:
            commit()
        late, done = first.result()
        assert isinstance(late, LeaseLost)
        assert done is None


def test_a_sweep_does_not_wait_for_who_is_next_after_one_that_was_canceled_in_that_moment(
    client: Client, ordered_url: str
) -> None:
    """The head is canceled between the snapshot of SELECT_BLOCKED and its lock, and a stranger holds the one behind."""
    store = client.store
    store.create("owner", queued("a"))
    assert len(store.claim(client.register())) == 1
    client.silence()
    for name in ("first", "second"):
        store.create(name, queued("a"))
    held = SELECT_BLOCKED.text.replace(
        " LIMIT ", " LIMIT (SELECT CASE WHEN pg_advisory_xact_lock(4713)::text IS NOT NULL THEN 1 END) + -1 + ", 1
    )
    client.conn.execute("SELECT pg_advisory_lock(4713)")
    with (
        ThreadPoolExecutor(1) as there,
        still_open(client, ordered_url, lambda other: other.cancel("second")) as commit,
    ):
        with patch.object(SELECT_BLOCKED, "text", held):
            sweep = there.submit(store.reap, grace=timedelta(0))
            while not lock_waits(client.conn):
                assert not sweep.done()
        store.cancel("first")
        client.conn.execute("SELECT pg_advisory_unlock(4713)")
        try:
            without_waiting(sweep, client.conn)
        finally:
            commit()


def test_there_are_no_more_runs_than_are_kept_while_one_more_runs(client: Client) -> None:
    store = client.store
    store.create("a", spec("a"))
    for _ in range(256):
        store.finish(store.start("a"), Outcome.succeeded(0))
    store.start("a")
    assert len(store.runs("a")) == 256


def test_a_cancellation_counts_for_who_asked_what_it_holds(client: Client) -> None:
    store = client.store
    store.create("a", retrying("a"))
    agent = client.register()
    assert len(store.claim(agent)) == 1
    store.cancel("a")
    (held,) = store.held(agent)
    store.finish(held, Outcome.failed("no", exit_code=3))
    # A failure after a cancellation request is never retried.
    assert store.get("a").status.phase is TaskPhase.CANCELED
    assert store.claim(agent) == []


def test_what_ends_later_is_reported_though_one_report_has_to_wait(client: Client, ordered_url: str) -> None:
    client.store.create_many([("a", queued("a")), ("b", queued("b"))])
    claims = {str(one.task_id): one for one in client.store.claim(client.register(), limit=2)}

    async def report() -> TaskPhase:
        async with await AsyncTaskStore.open(ordered_url) as store:
            reporter = Reporter(store, patience_s=30, tell=lambda _: None, on_change=lambda: None)
            keeping = asyncio.create_task(reporter.keep())
            reporter.add(claims["a"], OK)
            # ruff: noqa: ASYNC110 - neither has an event of its own
            while not lock_waits(client.conn):
                await asyncio.sleep(0.01)
            reporter.add(claims["b"], OK)
            while reporter.holds(claims["b"].seq, 1):
                await asyncio.sleep(0.01)
            phase = (await store.get("b")).status.phase
            assert reporter.holds(claims["a"].seq, 1)
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            return phase

    with still_open(client, ordered_url, lambda other: other.create("joins", queued("a"))):
        assert asyncio.run(asyncio.wait_for(report(), 60)) is TaskPhase.SUCCEEDED
