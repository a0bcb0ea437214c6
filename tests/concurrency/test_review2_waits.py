"""Who waits for a stranger's open transaction all the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

from support import lock_waits, queued, retrying
from test_open_transactions import still_open

from solti_store import LeaseLost, Outcome, TaskPhase

if TYPE_CHECKING:
    from chaos.client import Client

OK = Outcome.succeeded(0)


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
    claims = {one.task_id: one for one in store.claim(old, limit=2)}
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
            second.result(timeout=2)
        finally:
            commit()
        late, done = first.result()
        assert isinstance(late, LeaseLost)
        assert done is None
