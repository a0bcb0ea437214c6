"""What both stores promise about slots (`domain.md`, Slots)."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from support import bare_engine, connect, queued, retrying, selecting, silence, spec

from solti_store import (
    AdmissionPolicy,
    AlreadyExists,
    BackoffPolicy,
    Invalid,
    Outcome,
    RestartPolicy,
    SlotBusy,
    SlotQueueFull,
    TaskPhase,
    TaskQuery,
    TaskSpec,
    TaskStore,
    TransactionAborted,
    VersionConflict,
    WhyReason,
)
from solti_store.model import JitterPolicy, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from solti_store import Claim

NONE = timedelta(0)


def replacing(slot: str = "s", **changes: Any) -> TaskSpec:
    return spec(slot, admission=AdmissionPolicy.REPLACE, **changes)


def ids(store: TaskStore) -> list[str]:
    return [task.id for task in store.list()]


def state(store: TaskStore, task_id: str) -> tuple[str, str | None]:
    task = store.get(task_id)
    return task.phase.value, task.status.error


def claim(store: TaskStore) -> Claim:
    """The only task that is due."""
    agent = store.register("w")
    (only,) = store.claim(agent, limit=10)
    return only


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_url) as connection:
        yield connection


# --- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", AdmissionPolicy)
def test_a_free_slot_admits_everybody(store: TaskStore, policy: AdmissionPolicy) -> None:
    task = store.create("a", spec("s", admission=policy))
    assert (task.phase, task.status.attempt, task.metadata.resource_version) == (TaskPhase.PENDING, 0, 1)
    assert claim(store).task_id == "a"


def own_pending(store: TaskStore) -> None:
    store.create("owner", retrying("s"))


def own_running(store: TaskStore) -> None:
    own_pending(store)
    claim(store)


def own_waiting(store: TaskStore) -> None:
    store.create("owner", spec("s", restart=RestartPolicy.on_failure()))
    store.finish(claim(store), Outcome.failed("no"))


def own_interval(store: TaskStore) -> None:
    store.create("owner", spec("s", restart=RestartPolicy.always(3_600_000)))
    store.finish(claim(store), Outcome.succeeded())


OWNED = pytest.mark.parametrize("own", [own_pending, own_running, own_waiting, own_interval])


@OWNED
def test_an_owned_slot_refuses_who_does_not_wait(store: TaskStore, own: Callable[[TaskStore], None]) -> None:
    own(store)
    for create in (
        lambda: store.create("b", spec("s")),
        lambda: store.create_many([("elsewhere", spec()), ("b", spec("s"))]),
    ):
        with pytest.raises(SlotBusy) as refusal:
            create()
        assert (refusal.value.task_id, refusal.value.slot, refusal.value.owner) == ("b", "s", "owner")
        assert ids(store) == ["owner"]


@OWNED
def test_an_owned_slot_queues(store: TaskStore, own: Callable[[TaskStore], None]) -> None:
    own(store)
    task = store.create("b", queued("s"))
    assert (task.phase, task.status.attempt, task.metadata.resource_version) == (TaskPhase.PENDING, 0, 1)
    assert store.get("b") == task
    why = store.why("b")
    assert (why.reason, why.owner, why.slot, why.ahead) == (WhyReason.QUEUED, "owner", "s", 0)


def test_at_most_so_many_wait(database_url: str) -> None:
    with TaskStore.open(database_url, max_slot_queue=2) as store:
        store.create_many([("owner", spec("s")), ("a", queued("s")), ("b", queued("s")), ("other", queued("t"))])
        for create in (lambda: store.create("c", queued("s")), lambda: store.create_many([("c", queued("s"))])):
            with pytest.raises(SlotQueueFull) as refusal:
                create()
            assert (refusal.value.task_id, refusal.value.slot, refusal.value.limit) == ("c", "s", 2)
        store.cancel("a")
        store.create("c", queued("s"))
        # One that replaces takes a place, and needs none.
        store.start("owner")
        store.create("d", replacing())
        assert [state(store, name)[0] for name in "bcd"] == ["canceled", "pending", "pending"]
        with pytest.raises(SlotQueueFull):
            store.create("e", queued("s"))
    with pytest.raises(Invalid, match="max_slot_queue"):
        TaskStore.open(database_url, max_slot_queue=-1)


def test_each_slot_of_a_batch_is_counted_by_itself(database_url: str) -> None:
    with TaskStore.open(database_url, max_slot_queue=2) as store:
        store.create_many([(f"{slot}-{n}", queued(slot)) for slot in "ab" for n in range(2)])
        store.create_many([("a-2", queued("a")), ("b-2", queued("b"))])
        for slot in "ab":
            with pytest.raises(SlotQueueFull):
                store.create_many([("elsewhere", queued("c")), (f"{slot}-3", queued(slot))])


def test_a_queue_that_is_longer_than_the_limit_lets_nobody_in(database_url: str) -> None:
    with TaskStore.open(database_url, max_slot_queue=4) as store:
        store.create_many([("owner", spec("s")), *((f"q-{n}", queued("s")) for n in range(4))])
    with TaskStore.open(database_url, max_slot_queue=2) as store:
        # Each that replaces makes one less that waits: three, then two, then one.
        replacements = [(f"r-{n}", replacing()) for n in range(3)]
        for count in (1, 2):
            with pytest.raises(SlotQueueFull):
                store.create_many([*replacements[:count], ("late", queued("s"))])
        store.create_many([*replacements, ("late", queued("s"))])
        assert (store.why("late").owner, store.why("late").ahead) == ("r-2", 1)


def test_one_that_replaces_takes_over_from_an_owner_that_does_not_run(store: TaskStore) -> None:
    own_waiting(store)
    store.create("b", replacing())
    assert state(store, "owner") == ("canceled", None)
    assert store.get("owner").metadata.resource_version == 4
    assert store.get("b").metadata.resource_version == 1
    assert claim(store).task_id == "b"


def test_one_that_replaces_waits_for_an_owner_that_runs(store: TaskStore, database_url: str) -> None:
    own_pending(store)
    agent = store.register("w")
    (running,) = store.claim(agent)
    store.create("b", replacing())
    assert state(store, "owner") == ("running", None)
    (request,) = store.heartbeat(agent)
    assert (request.seq, request.attempt) == (running.seq, running.attempt)
    version = store.get("owner").metadata.resource_version
    store.create("c", replacing())
    assert store.get("owner").metadata.resource_version == version, "it was asked once"
    assert state(store, "b") == ("canceled", "superseded_by_replace")
    assert store.claim(agent) == []
    store.finish(running, Outcome.failed("stopped"))
    assert state(store, "owner") == ("canceled", "stopped")
    assert [one.task_id for one in store.claim(agent)] == ["c"]
    with connect(database_url) as database:
        events = database.execute(
            "SELECT id, type, detail FROM solti.task_events WHERE type <> 'created' ORDER BY event"
        ).fetchall()
    assert events[1:5] == [
        ("owner", "cancelRequested", {"supersededBy": "b"}),
        ("b", "finished", {"error": "superseded_by_replace", "supersededBy": "c"}),
        ("owner", "finished", {"outcome": "failed", "error": "stopped"}),
        ("c", "admitted", None),
    ]


@pytest.mark.parametrize("own", [own_running, own_pending])
def test_one_that_replaces_displaces_who_waits_first_and_nobody_else(
    store: TaskStore, own: Callable[[TaskStore], None]
) -> None:
    own(store)
    store.create_many([("a", queued("s")), ("b", queued("s"))])
    store.create("c", replacing())
    assert state(store, "a") == ("canceled", "superseded_by_replace")
    assert state(store, "b") == ("pending", None)
    store.delete("owner")
    assert claim(store).task_id == "c"
    store.delete("c")
    assert claim(store).task_id == "b"


def test_a_batch_is_as_one_after_the_other(store: TaskStore) -> None:
    made = store.create_many(
        [
            ("a", spec("s")),
            ("b", queued("s")),
            ("other", spec("t")),
            ("c", queued("s")),
            ("d", replacing()),
            ("e", queued("s")),
            ("f", replacing()),
        ]
    )
    assert [task.id for task in made] == ids(store) == ["a", "b", "other", "c", "d", "e", "f"]
    # d replaced a, which had not started, and b; then f did the same to d and c.
    assert [(name, *state(store, name)) for name in "abcdef"] == [
        ("a", "canceled", None),
        ("b", "canceled", "superseded_by_replace"),
        ("c", "canceled", "superseded_by_replace"),
        ("d", "canceled", None),
        ("e", "pending", None),
        ("f", "pending", None),
    ]
    assert store.why("e").owner == "f"


def test_a_batch_is_answered_as_it_is(store: TaskStore) -> None:
    # Each replaces the one before it, in so many statements that they are not all of one millisecond.
    made = store.create_many([(f"t-{n}", replacing()) for n in range(40)] + [("last", queued("s"))])
    assert list(made) == [store.get(task.id) for task in made]
    assert made[:2] == [store.get("t-0"), store.get("t-1")]
    assert [task.phase.value for task in made] == ["canceled"] * 39 + ["pending"] * 2


def test_a_creation_that_is_refused_leaves_no_trace(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    store.create("owner", spec("s"))
    elsewhere = selecting(nobody="has")

    def trace() -> Any:
        return database.execute(
            "SELECT (SELECT count(*) FROM solti.routes), count(*) FROM solti.task_events"
        ).fetchone()

    before = trace()
    for task_id, slot, error in (("new", "s", SlotBusy), ("owner", "t", AlreadyExists)):
        given = spec(slot, runner_selector=elsewhere)
        with pytest.raises(error):
            store.create(task_id, given)
        with pytest.raises(error):
            store.create_many([("other", spec()), (task_id, given)])
    with pytest.raises(VersionConflict):
        store.replace("owner", spec("s", runner_selector=elsewhere), expected_version=7)
    assert trace() == before
    store.replace("owner", spec("s", runner_selector=elsewhere), expected_version=1)
    assert trace() != before


def test_a_taken_id_is_told_before_a_taken_slot(store: TaskStore) -> None:
    store.create("a", spec("s"))
    for admission in AdmissionPolicy:
        with pytest.raises(AlreadyExists):
            store.create("a", spec("s", admission=admission))
        with pytest.raises(AlreadyExists):
            store.create_many([("b", spec("s", admission=admission)), ("a", spec("s", admission=admission))])
    assert state(store, "a") == ("pending", None)
    assert ids(store) == ["a"]


# --- who leaves lets the next in ----------------------------------------------------------------


def by_finish(store: TaskStore, url: str) -> None:
    store.finish(claim(store), Outcome.failed("no"))


def by_cancel(store: TaskStore, url: str) -> None:
    store.cancel("owner")


def by_delete(store: TaskStore, url: str) -> None:
    store.delete("owner")


def by_guarded_delete(store: TaskStore, url: str) -> None:
    store.delete("owner", expected_version=store.get("owner"))


def by_reaping(store: TaskStore, url: str) -> None:
    agent = store.register("w")
    store.claim(agent)
    silence(url, agent)
    assert len(store.reap()) == 1


def by_signing_off(store: TaskStore, url: str) -> None:
    agent = store.register("w")
    store.claim(agent)
    store.sign_off(agent)


def make_unreadable(url: str) -> None:
    with connect(url) as database:
        database.execute("""UPDATE solti.tasks SET spec = spec || '{"kind": {"subprocess": {}}}' WHERE id = 'owner'""")


def by_an_unreadable_spec(store: TaskStore, url: str) -> None:
    make_unreadable(url)
    # It fails at once, and the next one is claimed in its stead.
    agent = store.register("w")
    assert [one.task_id for one in store.claim(agent)] == ["first"]
    store.sign_off(agent)
    store.cancel("first")
    assert store.runs("first")[0].error == "agent w signed off"


ENDS = (by_finish, by_cancel, by_delete, by_guarded_delete, by_reaping, by_signing_off)


@pytest.mark.parametrize("end", ENDS)
def test_who_waits_first_is_admitted_when_the_owner_is_done(
    store: TaskStore, database_url: str, end: Callable[[TaskStore, str], None]
) -> None:
    store.create_many([("owner", spec("s")), *((name, queued("s")) for name in ("first", "second", "third"))])
    end(store, database_url)
    first = store.get("first")
    assert (first.phase, first.metadata.resource_version) == (TaskPhase.PENDING, 2)
    assert store.why("first").reason is not WhyReason.QUEUED
    assert (store.why("second").owner, store.why("third").ahead) == ("first", 1)
    assert store.get("second").metadata.resource_version == 1
    assert claim(store).task_id == "first"


def test_a_task_whose_spec_cannot_be_read_lets_the_next_in(store: TaskStore, database_url: str) -> None:
    store.create_many([("owner", spec("s")), ("first", queued("s")), ("second", queued("s"))])
    by_an_unreadable_spec(store, database_url)
    assert claim(store).task_id == "second"


def test_a_task_whose_spec_cannot_be_read_is_canceled_all_the_same(
    store: TaskStore, database_url: str, database: psycopg.Connection[Any]
) -> None:
    store.create_many([("owner", spec("s")), ("first", queued("s"))])
    make_unreadable(database_url)
    with pytest.raises(VersionConflict):
        store.delete("owner", expected_version=9)
    with pytest.raises(Invalid):
        store.cancel("owner")
    phases = database.execute("SELECT phase FROM solti.task_status ORDER BY seq").fetchall()
    assert phases == [("canceled",), ("pending",)]
    assert claim(store).task_id == "first"


def test_a_reaper_lets_the_next_in_after_an_owner_that_was_deleted_by_hand(
    store: TaskStore, database: psycopg.Connection[Any]
) -> None:
    slots = [f"s-{n}" for n in range(5)]
    store.create_many([(f"{slot}-{n}", queued(slot)) for slot in slots for n in range(3)])
    store.create_many([(f"after-{n}", spec()) for n in range(3)])
    database.execute("DELETE FROM solti.tasks WHERE id IN ('s-1-0', 's-4-0')")
    # Each looks from a random one on.
    while any(store.get(f"{slot}-1").metadata.resource_version == 1 for slot in ("s-1", "s-4")):
        assert store.reap() == []
    assert [store.why(f"{slot}-2").owner for slot in slots] == ["s-0-0", "s-1-1", "s-2-0", "s-3-0", "s-4-1"]
    events = database.execute("SELECT id FROM solti.task_events WHERE type = 'admitted' ORDER BY id").fetchall()
    assert events == [("s-1-1",), ("s-4-1",)]


def test_the_queue_is_first_in_first_out(store: TaskStore) -> None:
    agent = store.register("w")
    store.create("owner", spec("s"))
    for n in range(6):
        store.create(f"q-{n}", queued("s"))
    store.cancel("q-2")
    store.delete("q-3")
    order = []
    while claims := store.claim(agent, limit=10):
        order += [one.task_id for one in claims]
        store.finish_many([(one, Outcome.succeeded()) for one in claims])
    assert order == ["owner", "q-0", "q-1", "q-4", "q-5"]
    # The slot is free again.
    store.create("next", spec("s"))


def test_an_owner_that_restarts_keeps_its_slot(store: TaskStore) -> None:
    store.create("owner", retrying("s", max_retries=1))
    store.create("b", queued("s"))
    store.finish(claim(store), Outcome.failed("no"))
    assert store.why("b").owner == "owner"
    while not (again := store.claim(store.register("w"), limit=10)):
        pass  # a millisecond
    assert [one.task_id for one in again] == ["owner"]
    store.finish(again[0], Outcome.failed("no"))
    assert store.get("owner").phase is TaskPhase.EXHAUSTED
    assert claim(store).task_id == "b"


def test_a_batch_of_finishes_admits_for_each_slot(store: TaskStore) -> None:
    slots = [f"s-{n}" for n in range(5)]
    store.create_many([(f"{slot}-{n}", queued(slot)) for n in range(3) for slot in slots])
    agent = store.register("w")
    for n in range(3):
        claims = store.claim(agent, limit=100)
        assert [one.task_id for one in claims] == [f"{slot}-{n}" for slot in slots]
        store.finish_many([(one, Outcome.succeeded()) for one in claims])
    assert store.claim(agent, limit=100) == []


# --- the rest -----------------------------------------------------------------------------------


def test_a_task_stays_in_its_slot(store: TaskStore) -> None:
    task = store.create("a", spec("s"))
    with pytest.raises(Invalid, match="slot of task 'a' is 's' for good, not 't'") as refusal:
        store.update("a", lambda old: old.replace(slot=Slot("t")))
    assert refusal.value.field == "slot"
    assert store.get("a") == task


def test_a_queued_task_can_be_changed_and_keeps_its_place(store: TaskStore) -> None:
    store.create_many([("owner", spec("s")), ("a", queued("s")), ("b", queued("s"))])
    store.update("a", lambda old: old.replace(max_retries=7))
    store.cancel("owner")
    claimed = claim(store)
    assert (claimed.task_id, claimed.spec.max_retries) == ("a", 7)


def test_only_the_owner_can_be_started_by_hand(store: TaskStore) -> None:
    store.create_many([("done", spec("s")), ("owner", queued("s")), ("waits", queued("s"))])
    store.cancel("done")
    for name in ("done", "waits"):
        before = store.get(name)
        with pytest.raises(SlotBusy) as refusal:
            store.start(name)
        assert (refusal.value.task_id, refusal.value.owner) == (name, "owner")
        assert store.get(name) == before
    store.finish(store.start("owner"), Outcome.succeeded())
    store.cancel("waits")
    # Nobody's now: a final task may have it again, and owns it until it is done.
    again = store.start("done")
    with pytest.raises(SlotBusy):
        store.create("new", spec("s"))
    store.finish(again, Outcome.succeeded())
    store.create("new", spec("s"))


def test_a_refusal_in_the_callers_transaction_leaves_no_lock(
    database_url: str, database: psycopg.Connection[Any]
) -> None:
    engine = bare_engine(database_url)
    with TaskStore.open(database_url, max_slot_queue=1) as store:
        store.create_many([("owner", spec("s")), ("head", queued("s"))])
        calls: list[Callable[[TaskStore], object]] = [
            lambda mine: mine.create("b", spec("s")),
            lambda mine: mine.create_many([("b", queued("s"))]),
            lambda mine: mine.start("head"),
        ]
        with engine.connect() as connection:
            for call in calls:
                with pytest.raises((SlotBusy, SlotQueueFull)):
                    call(store.using(connection))
            database.execute("SELECT FROM solti.task_status FOR UPDATE NOWAIT")
    engine.dispose()


def test_a_cancellation_in_the_callers_transaction_is_the_callers(
    database_url: str, database: psycopg.Connection[Any]
) -> None:
    engine = bare_engine(database_url)
    with TaskStore.open(database_url) as store, engine.begin() as connection:
        store.create_many([("owner", spec("s")), ("first", queued("s"))])
        make_unreadable(database_url)
        with pytest.raises(Invalid):
            store.using(connection).cancel("owner")
    phases = database.execute("SELECT phase FROM solti.task_status ORDER BY seq").fetchall()
    assert phases == [("canceled",), ("pending",)]
    engine.dispose()


def test_a_refusal_in_the_callers_transaction_leaves_it_usable(database_url: str) -> None:
    engine = bare_engine(database_url)
    with TaskStore.open(database_url, max_slot_queue=0) as store:
        store.create("owner", spec("s"))
        with engine.begin() as connection:
            mine = store.using(connection)
            refused: list[tuple[TaskSpec, type[Exception]]] = [(spec("s"), SlotBusy), (queued("s"), SlotQueueFull)]
            for given, error in refused:
                with pytest.raises(error):
                    mine.create("b", given)
                with pytest.raises(error):
                    mine.create_many([("c", spec()), ("b", given)])
            mine.create("d", spec("t"))
            with pytest.raises(SlotBusy):
                mine.create("e", spec("t"))
            mine.create("f", replacing())
        assert ids(store) == ["owner", "d", "f"]
    engine.dispose()


def test_why_tells_what_the_owner_does(store: TaskStore) -> None:
    def said(pattern: str) -> bool:
        return re.fullmatch(pattern.replace("AT", r"[-0-9T:]+Z"), store.why("b").message) is not None

    minutes = BackoffPolicy(jitter=JitterPolicy.NONE, first_ms=60_000, max_ms=60_000)
    store.create_many([("a", spec("s", restart=RestartPolicy.on_failure(), backoff=minutes)), ("b", queued("s"))])
    assert said("queued behind a in slot s, which is due since AT; it is the next")
    running = claim(store)
    assert said("queued behind a in slot s, which runs on w since AT; it is the next")
    store.finish(running, Outcome.failed("no"))
    assert said("queued behind a in slot s, which waits until AT for its restart; it is the next")
    store.start("a")
    assert said("queued behind a in slot s, which runs by hand since AT; it is the next")
    store.create("c", queued("s"))
    why = store.why("c")
    assert why.message.endswith("; 1 wait before it")
    assert type(why).from_json(why.to_json()) == why


def test_queued_tasks_are_listed_as_pending(store: TaskStore) -> None:
    store.create_many([("a", spec("s")), ("b", queued("s"))])
    page = store.list(TaskQuery(phases=frozenset({TaskPhase.PENDING}), slot=Slot("s")))
    assert [task.id for task in page] == ["a", "b"]


def test_no_more_than_one_owner_whatever_somebody_writes_by_hand(
    store: TaskStore, database: psycopg.Connection[Any]
) -> None:
    store.create_many([("a", spec("s")), ("b", queued("s"))])
    before = store.get("a"), store.get("b")
    for statement in (
        "UPDATE solti.task_status SET due_at = now(), queue_key = NULL",
        "UPDATE solti.task_status SET due_at = NULL, queue_key = 1",
        "UPDATE solti.task_status SET queue_key = NULL",
        "UPDATE solti.task_status SET queue_key = 1",
    ):
        with pytest.raises(psycopg.errors.IntegrityError):
            database.execute(statement.encode())
    assert (store.get("a"), store.get("b")) == before


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("policy", AdmissionPolicy)
def test_a_snapshot_from_before_the_owner_ends_the_transaction(
    database_url: str, level: Any, policy: AdmissionPolicy
) -> None:
    engine = bare_engine(database_url, isolation_level=level)
    with TaskStore.open(database_url) as store:
        store.create("done", spec("s"))
        store.cancel("done")
        calls: list[Callable[[TaskStore], object]] = [
            lambda mine: mine.create("b", spec("s", admission=policy)),
            lambda mine: mine.start("done"),
        ]
        for call in calls:
            with engine.connect() as connection:
                mine = store.using(connection)
                mine.list()
                store.create("owner", spec("s"))
                with pytest.raises(TransactionAborted, match="lost against"):
                    call(mine)
            store.delete("owner")
    engine.dispose()
