"""Somebody's transaction stays open over one slot: nobody else has to wait for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from support import lock_waits, queued

from solti_store import Outcome, TaskPhase

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
