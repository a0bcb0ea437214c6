"""A sweep takes away what another agent claimed after its snapshot."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from chaos.interleave import _settled
from support import retrying

from solti_store import Outcome, TaskPhase
from solti_store.sql.closing import LOCK_ABANDONED

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.client import Client

_LOCK = 4712


def after_snapshot_of_sweep(client: Client, then: Callable[[], object]) -> list[object]:
    """Reap, and do `then` when the sweep has its snapshot and no lock."""
    held = LOCK_ABANDONED.text.replace(
        " ORDER BY", f" AND pg_advisory_xact_lock({_LOCK})::text IS NOT NULL ORDER BY", 1
    )
    client.conn.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    with ThreadPoolExecutor(1) as there:
        try:
            with patch.object(LOCK_ABANDONED, "text", held):
                one = there.submit(client.store.reap, grace=timedelta(0))
                _settled(client.conn, one)
            assert not one.done()
            then()
        finally:
            client.conn.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
        return list(one.result())


@pytest.mark.parametrize("closed_by", ["its worker, late", "another sweep"])
def test_a_sweep_leaves_alone_what_a_living_agent_claimed_meanwhile(client: Client, closed_by: str) -> None:
    store = client.store
    store.create("a", retrying("a"))
    dead = client.register()
    (claim,) = store.claim(dead)
    client.silence()
    alive = store.register("alive")
    # An earlier sweep closed the agent, and its attempts were more than its limit.
    client.conn.execute("UPDATE solti.agents SET state = 'lost', closed_at = now() WHERE seq = %s", [dead.seq])

    def meanwhile() -> None:
        if closed_by == "another sweep":
            assert len(store.reap(grace=timedelta(0))) == 1
        else:
            store.finish(claim, Outcome.failed("no"))
        client.conn.execute("UPDATE solti.task_status SET due_at = now() WHERE due_at IS NOT NULL")
        assert [one.attempt for one in store.claim(alive)] == [2]

    reaped = after_snapshot_of_sweep(client, meanwhile)
    assert reaped == []
    assert [one.attempt for one in store.held(alive)] == [2]
    assert store.get("a").status.phase is TaskPhase.RUNNING
