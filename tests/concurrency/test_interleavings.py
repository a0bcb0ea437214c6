"""Every operation meets every other in one slot, at every point where the first is between two statements.

Each time a registry is made, one operation is held after its first, second, … statement, the other runs until it is
done or waits for a lock, and the first goes on. Then what is left is worked off, and the history is checked: nobody
lost, nobody stuck, one owner at a time. `SOLTI_STORE_TEST_INTERLEAVINGS=all` adds the slots in all their states.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest
from chaos.client import Client
from chaos.interleave import interleave
from support import connect, silence

from solti_store import Agent, Claim, Outcome

OWNER, HEAD, NEXT, FINAL = (f"s.queue.onFailure.1.{name}" for name in ("owner", "head", "next", "final"))
QUEUED, REPLACING, DROPPED = "s.queue.never.n.new", "s.replace.never.n.new", "s.dropIfRunning.never.n.new"
ELSEWHERE = "elsewhere.queue.never.n.new"


@dataclass
class Scene:
    """A slot with an owner and two tasks that wait, and one that was there before; whoever runs it holds `claims`."""

    client: Client
    agent: Agent
    claims: list[Claim]


def running(client: Client) -> Scene:
    """The owner runs."""
    client.create(FINAL)
    agent = client.register()
    client.finish([(one, Outcome.succeeded(1)) for one in client.claim(agent)])
    client.create(OWNER)
    claims = client.claim(agent)
    for task_id in (HEAD, NEXT):
        client.create(task_id)
    return Scene(client, agent, list(claims))


def lost(client: Client) -> Scene:
    """The owner runs on an agent that fell silent."""
    scene = running(client)
    silence(client.url, scene.agent)
    return scene


def pending(client: Client) -> Scene:
    """The owner has not started."""
    scene = running(client)
    scene.client.finish([(one, Outcome.failed("fatal", fatal=True)) for one in scene.claims])
    return scene


def free(client: Client) -> Scene:
    """The slot has no owner."""
    scene = running(client)
    for task_id in (NEXT, HEAD, OWNER):
        client.delete(task_id)
    return scene


def owner(scene: Scene) -> str:
    """Who owns the slot, or else did."""
    with connect(scene.client.url) as conn:
        found = conn.execute(
            "SELECT id FROM solti.tasks JOIN solti.task_status USING (seq) WHERE tasks.slot = 's'"
            " ORDER BY due_at IS NOT NULL OR deadline IS NOT NULL DESC, seq DESC"
        ).fetchone()
    assert found
    return str(found[0])


def finish(scene: Scene, outcome: Outcome) -> None:
    scene.client.finish([(one, outcome) for one in scene.claims])


OPERATIONS: dict[str, Callable[[Scene, str], None]] = {
    "succeed": lambda scene, _: finish(scene, Outcome.succeeded(2)),
    "fail": lambda scene, _: finish(scene, Outcome.failed("no", exit_code=3)),
    "reap": lambda scene, _: scene.client.reap(),
    "claim": lambda scene, _: void(scene.client.claim(scene.client.register())),
    "cancel owner": lambda scene, owner: scene.client.cancel(owner),
    "delete owner": lambda scene, owner: scene.client.delete(owner),
    "start owner": lambda scene, owner: scene.client.start(owner),
    "cancel head": lambda scene, _: scene.client.cancel(HEAD),
    "delete head": lambda scene, _: scene.client.delete(HEAD),
    "start head": lambda scene, _: scene.client.start(HEAD),
    "start final": lambda scene, _: scene.client.start(FINAL),
    "queue": lambda scene, _: scene.client.create(QUEUED),
    "replace": lambda scene, _: scene.client.create(REPLACING),
    "drop": lambda scene, _: scene.client.create(DROPPED),
    "queue two": lambda scene, _: scene.client.create(QUEUED + "2", ELSEWHERE + "2"),
}
ALL = os.environ.get("SOLTI_STORE_TEST_INTERLEAVINGS") == "all"
SCENES = [running, lost, pending, free] if ALL else [running, pending]
# The others are much like one that is here.
SECOND = list(OPERATIONS) if ALL else ["succeed", "cancel owner", "delete head", "start final", "queue", "replace"]


def void(_: object) -> None:
    """For a lambda that is to return nothing."""


def clear(client: Client) -> None:
    with connect(client.url) as conn:
        for table in ("tasks", "task_events", "agents"):
            conn.execute(f"DELETE FROM solti.{table}")
    client.acts.clear()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("first", OPERATIONS)
def test_operations_that_meet_leave_a_good_history(
    client: Client, scene: Callable[[Client], Scene], first: str
) -> None:
    for second in SECOND:
        for number in count(1):
            clear(client)
            made = scene(client)
            who = owner(made)
            met = interleave(
                client.url,
                partial(OPERATIONS[first], made, who),
                number,
                partial(OPERATIONS[second], made, who),
            )
            violations = [*client.judge(drained=False)]
            client.drain()
            violations += client.judge(drained=True)
            assert violations == [], f"{first}, held after statement {number}, and {second}"
            if not met:
                break
