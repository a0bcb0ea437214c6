"""What is changed after a statement has its snapshot, and before it has its locks.

Claims and finishes look, lock and write in one statement, so what they see may be older than what they lock.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from chaos.interleave import within
from checking.mutants import mutated
from support import queued, retrying, spec

from solti_store import Outcome, TaskPhase
from solti_store.sql.claims import CLAIM_BY_ROUTE
from solti_store.sql.closing import CLOSE_UNTOUCHED

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.client import Client

OK = Outcome.succeeded(0)


def claimed(client: Client, then: Callable[[], object]) -> list[tuple[str, int, int]]:
    """What a claim gets, during which `then` is done: each task, its attempt and its timeout."""
    agent = client.register()
    # It knows the route.
    assert client.claim(agent) == []
    client.store.create("a", spec("a", timeout=1000))
    found: list[tuple[str, int, int]] = []

    def claim() -> None:
        found.extend((one.task_id, one.attempt, one.spec.timeout) for one in client.store.claim(agent, limit=10))

    within(client.conn, CLAIM_BY_ROUTE, claim, then)
    return found


def test_a_claim_starts_the_spec_that_replaced_the_one_it_saw(client: Client) -> None:
    store = client.store
    found = claimed(client, lambda: store.update("a", lambda old: old.replace(timeout=2000)))
    assert found == [("a", 1, 2000)]
    assert [run.attempt for run in store.runs("a")] == [1]


def test_a_claim_by_what_never_changes_would_start_the_old_one(client: Client, ordered_url: str) -> None:
    change = partial(client.store.update, "a", lambda old: old.replace(timeout=2000))
    with mutated("claim of what was replaced meanwhile", ordered_url):
        assert claimed(client, change) == [("a", 1, 1000)]


def test_a_claim_leaves_alone_what_was_canceled_deleted_or_claimed(client: Client) -> None:
    store = client.store
    assert claimed(client, lambda: store.cancel("a")) == []
    client.clear()
    assert claimed(client, lambda: store.delete("a")) == []
    client.clear()
    other = client.register()
    assert claimed(client, lambda: client.claim(other)) == []
    assert [one.attempt for one in store.held(other)] == [1]


def test_a_claim_starts_what_was_created_anew(client: Client) -> None:
    def again() -> None:
        client.store.delete("a")
        client.store.create("a", spec("a", timeout=3000))

    assert claimed(client, again) in ([], [("a", 1, 3000)])
    assert client.store.get("a").status.phase in {TaskPhase.PENDING, TaskPhase.RUNNING}


def finished(client: Client, outcome: Outcome, then: Callable[[], object]) -> None:
    """Finish a task that may be retried, during which `then` is done."""
    store = client.store
    store.create("a", retrying("a").replace(slot="s"))
    (claim,) = store.claim(client.register())
    within(client.conn, CLOSE_UNTOUCHED, lambda: store.finish(claim, outcome), then)


def test_who_joins_the_queue_of_a_task_that_ends_is_admitted(client: Client) -> None:
    store = client.store
    finished(client, OK, lambda: store.create("b", queued("s")))
    assert store.get("a").status.phase is TaskPhase.SUCCEEDED
    assert [one.task_id for one in store.claim(client.register())] == ["b"]


def test_who_replaces_a_task_that_ends_is_admitted(client: Client) -> None:
    store = client.store
    replacing = queued("s").replace(admission="replace")
    finished(client, Outcome.failed("no"), lambda: store.create("b", replacing))
    # Its cancellation had been asked for.
    assert store.get("a").status.phase is TaskPhase.CANCELED
    assert [one.task_id for one in store.claim(client.register())] == ["b"]


@pytest.mark.parametrize("retries", [True, False])
def test_the_policies_that_were_set_before_the_end_decide(client: Client, retries: bool) -> None:
    def change() -> None:
        given = retrying("a") if retries else spec("a")
        client.store.update("a", lambda old: old.replace(restart=given.restart))

    store = client.store
    store.create("a", (spec("a") if retries else retrying("a")).replace(slot="s"))
    (claim,) = store.claim(client.register())
    within(client.conn, CLOSE_UNTOUCHED, lambda: store.finish(claim, Outcome.failed("no")), change)
    row = client.conn.execute("SELECT due_at IS NOT NULL FROM solti.task_status").fetchone()
    assert row == (retries,)


def test_a_cancellation_before_the_end_counts(client: Client) -> None:
    finished(client, Outcome.failed("no"), lambda: client.store.cancel("a"))
    assert client.store.get("a").status.phase is TaskPhase.CANCELED


def test_an_attempt_that_was_taken_away_before_the_end_is_refused(client: Client) -> None:
    store = client.store
    store.create("a", retrying("a"))
    agent = client.register()
    (claim,) = client.claim(agent)
    client.silence()
    within(client.conn, CLOSE_UNTOUCHED, lambda: client.finish([(claim, OK)]), client.reap)
    assert client.acts[-1].state == "refused"
    assert [run.phase for run in store.runs("a")] == [TaskPhase.FAILED]
