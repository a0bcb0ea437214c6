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

from solti_store import Claim, Outcome

OWNER, HEAD, NEXT, FINAL = (f"s.queue.onFailure.1.{name}" for name in ("owner", "head", "next", "final"))
QUEUED, REPLACING, DROPPED = "s.queue.never.n.new", "s.replace.never.n.new", "s.dropIfRunning.never.n.new"
ELSEWHERE = "elsewhere.queue.never.n.new"


@dataclass
class Scene:
    """A slot with an owner and two tasks that wait, and one that was there before; whoever runs it holds `claims`."""

    client: Client
    owner: str
    head: str
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
    return Scene(client, OWNER, HEAD, list(claims))


def lost(client: Client) -> Scene:
    """The owner runs on an agent that fell silent."""
    scene = running(client)
    client.silence()
    return scene


def pending(client: Client) -> Scene:
    """The owner has not started."""
    scene = running(client)
    finish(scene, Outcome.failed("fatal", fatal=True))
    scene.owner, scene.head = HEAD, NEXT
    return scene


def free(client: Client) -> Scene:
    """The slot has no owner."""
    scene = running(client)
    for task_id in (NEXT, HEAD, OWNER):
        client.delete(task_id)
    return scene


def finish(scene: Scene, outcome: Outcome) -> None:
    scene.client.finish([(one, outcome) for one in scene.claims])


# What each does, as the first or the second of the two: both may create.
OPERATIONS: dict[str, Callable[[Scene, str], object]] = {
    "succeed": lambda scene, _: finish(scene, Outcome.succeeded(2)),
    "fail": lambda scene, _: finish(scene, Outcome.failed("no", exit_code=3)),
    "reap": lambda scene, _: scene.client.reap(),
    "claim": lambda scene, _: scene.client.claim(scene.client.register()),
    "cancel owner": lambda scene, _: scene.client.cancel(scene.owner),
    "delete owner": lambda scene, _: scene.client.delete(scene.owner),
    "start owner": lambda scene, _: scene.client.start(scene.owner),
    "cancel head": lambda scene, _: scene.client.cancel(scene.head),
    "delete head": lambda scene, _: scene.client.delete(scene.head),
    "start head": lambda scene, _: scene.client.start(scene.head),
    "start final": lambda scene, _: scene.client.start(FINAL),
    "queue": lambda scene, which: scene.client.create(QUEUED + which),
    "replace": lambda scene, which: scene.client.create(REPLACING + which),
    "drop": lambda scene, which: scene.client.create(DROPPED + which),
    "create two": lambda scene, which: scene.client.create(QUEUED + which, ELSEWHERE + which),
}
if os.environ.get("SOLTI_STORE_TEST_INTERLEAVINGS") == "all":
    SECOND = list(OPERATIONS)
    CASES = [(scene, first) for scene in (running, lost, pending, free) for first in OPERATIONS]
else:
    # The others are much like one that is here.
    SECOND = ["succeed", "cancel owner", "delete head", "queue", "replace"]
    CASES = [(running, first) for first in OPERATIONS]
    CASES += [(pending, first) for first in ("cancel owner", "delete owner", "replace")]


@pytest.mark.parametrize(("scene", "first"), CASES, ids=[f"{scene.__name__}: {first}" for scene, first in CASES])
def test_operations_that_meet_leave_a_good_history(
    client: Client, scene: Callable[[Client], Scene], first: str
) -> None:
    for second in SECOND:
        for number in count(1):
            client.clear()
            made = scene(client)
            one, other = partial(OPERATIONS[first], made, "1"), partial(OPERATIONS[second], made, "2")
            met = interleave(client.conn, one, number, other)
            violations = client.judge(drained=False)
            client.drain()
            violations += client.judge(drained=True)
            assert violations == [], f"{first}, held after statement {number}, and {second}"
            if not met:
                break
