"""A claim from `held` knows a version at which a cancellation was already asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import retrying

from solti_store import Outcome, TaskPhase

if TYPE_CHECKING:
    from chaos.client import Client


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
