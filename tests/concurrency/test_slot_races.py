"""What meets in a slot: who is refused is in nobody's way, and nobody waits in a circle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from chaos.interleave import interleave
from sqlalchemy import create_engine
from support import lock_waits, queued, spec

from solti_store import (
    AdmissionPolicy,
    Outcome,
    RetryPolicy,
    SlotBusy,
    SlotQueueFull,
    TaskSpec,
    TaskStore,
    TransactionAborted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chaos.client import Client

    from solti_store import Claim

MAX_SLOT_QUEUE = 2


@pytest.fixture
def store(client: Client, ordered_url: str) -> Iterator[TaskStore]:
    """A store that does not try again: of a deadlock it raises `TransactionAborted`."""
    assert client.acts == []
    with TaskStore.open(ordered_url, retry=RetryPolicy(attempts=1), max_slot_queue=MAX_SLOT_QUEUE) as opened:
        yield opened


def answer(call: Callable[[], object], answers: list[str]) -> None:
    try:
        answers.append(type(call()).__name__)
    except (SlotBusy, SlotQueueFull, TransactionAborted) as error:
        answers.append(type(error).__name__)


def each_way(
    client: Client, arrange: Callable[[], object], first: Callable[[], object], second: Callable[[], object]
) -> Iterator[list[str]]:
    """What the two answered, `first` held after its first, second, … statement until `second` is done or waits."""
    for number in count(1):
        client.clear()
        arrange()
        one: list[str] = []
        other: list[str] = []
        met = interleave(client.conn, partial(answer, first, one), number, partial(answer, second, other))
        yield one + other
        if not met:
            return


REFUSED: dict[str, Callable[[TaskStore], object]] = {
    "SlotBusy": lambda store: store.create("new", spec("s")),
    "SlotQueueFull": lambda store: store.create("new", queued("s")),
    "SlotBusy in a batch": lambda store: store.create_many([("elsewhere", spec()), ("new", spec("s"))]),
    "SlotQueueFull in a batch": lambda store: store.create_many([("elsewhere", spec()), ("new", queued("s"))]),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_creation_that_is_refused_hides_the_owner_from_no_claim(
    client: Client, store: TaskStore, refused: str
) -> None:
    claims: list[Claim] = []

    def arrange() -> None:
        claims.clear()
        store.create_many([("owner", spec("s")), *((f"q-{n}", queued("s")) for n in range(MAX_SLOT_QUEUE))])

    def claim() -> None:
        claims.extend(store.claim(store.register("w")))

    for answers in each_way(client, arrange, partial(REFUSED[refused], store), claim):
        assert refused.startswith(answers[0])
        assert [one.task_id for one in claims] == ["owner"]


@pytest.mark.parametrize("judged", [False, True], ids=["as owners", "by their slots"])
def test_batches_that_bring_owners_in_opposite_orders_do_not_deadlock(
    client: Client, store: TaskStore, ordered_url: str, judged: bool
) -> None:
    def batch(name: str, slots: str) -> list[tuple[str, TaskSpec]]:
        # Two of one slot are not all owners.
        waits = [(f"{name}-{n}", queued(f"waits-{name}")) for n in range(2)] if judged else []
        return [*((f"{name}-{slot}", spec(slot)) for slot in slots), *waits]

    engine = create_engine(ordered_url)
    one: list[str] = []
    two: list[str] = []
    with engine.connect() as other, ThreadPoolExecutor(2) as pool:
        # Both come to this slot when they have brought some owners, and have others to bring.
        store.using(other).create("m", spec("m"))
        for number, (answers, items) in enumerate([(one, batch("one", "amz")), (two, batch("two", "zma"))], 1):
            pool.submit(answer, partial(store.create_many, items), answers)
            while lock_waits(client.conn) < number:
                pass
        other.rollback()
    assert (one, two) == (["NewTasks"], ["SlotBusy"])
    engine.dispose()


def test_a_batch_that_replaces_its_own_locks_the_owners_in_order(client: Client, store: TaskStore) -> None:
    arrange = partial(store.create_many, [("a", spec("a")), ("b", spec("b"))])
    replaces_its_own = partial(
        store.create_many,
        [("b-1", queued("b")), ("b-2", spec("b", admission=AdmissionPolicy.REPLACE)), ("a-1", queued("a"))],
    )
    queues = partial(store.create_many, [("a-2", queued("a")), ("b-3", queued("b"))])
    for answers in each_way(client, arrange, replaces_its_own, queues):
        assert answers == ["NewTasks"] * 2


@pytest.mark.parametrize("end", ["finish", "cancel", "delete"])
def test_a_start_of_who_waits_first_and_the_owners_end_do_not_deadlock(
    client: Client, store: TaskStore, end: str
) -> None:
    claims: list[Claim] = []
    ends: dict[str, Callable[[], object]] = {
        "finish": lambda: store.finish(claims[-1], Outcome.succeeded()),
        "cancel": lambda: store.cancel("owner"),
        "delete": lambda: store.delete("owner"),
    }

    def arrange() -> None:
        store.create_many([("owner", spec("s")), ("head", queued("s"))])
        if end == "finish":
            claims.append(store.start("owner"))

    for answers in each_way(client, arrange, partial(store.start, "head"), ends[end]):
        # Whichever came first.
        assert answers[0] in {"SlotBusy", "Claim"}
        assert len(answers) == 2
        assert "TransactionAborted" not in answers
