"""What both stores promise about tasks, at the public API. Runs over `TaskStore` and `AsyncTaskStore`."""

from __future__ import annotations

import pytest
from support import retrying, spec

from solti_store import (
    AlreadyExists,
    Invalid,
    NotFound,
    Outcome,
    Runtime,
    Subprocess,
    TaskPhase,
    TaskStore,
    VersionConflict,
)
from solti_store.model import MAX_SCRIPT_BODY_BYTES, BackoffPolicy, RestartPolicy, Timeout

U64_MAX = 2**64 - 1


def test_a_created_task_is_pending_at_version_1(store: TaskStore) -> None:
    task = store.create("build-1", spec("build"))
    assert (task.id, task.phase, task.status.attempt) == ("build-1", TaskPhase.PENDING, 0)
    assert (task.metadata.resource_version, task.metadata.generation) == (1, 1)
    assert task.metadata.created_at == task.metadata.updated_at
    assert store.get("build-1") == task


def test_a_taken_id_is_refused_and_nothing_is_written(store: TaskStore) -> None:
    first = store.create("a", spec("one"))
    with pytest.raises(AlreadyExists) as refusal:
        store.create("a", spec("two"))
    assert refusal.value.task_id == "a"
    assert list(store.list()) == [first]


@pytest.mark.parametrize("task_id", ["", ".", "..", "a b", "a\x00", "ü", "x" * 257, "\ud800"])
def test_an_id_that_cannot_be_is_invalid_everywhere(store: TaskStore, task_id: str) -> None:
    calls = (
        lambda: store.create(task_id, spec()),
        lambda: store.create_many([("fine", spec()), (task_id, spec())]),
        lambda: store.get(task_id),
        lambda: store.replace(task_id, spec(), expected_version=1),
        lambda: store.update(task_id, lambda old: old),
        lambda: store.cancel(task_id),
        lambda: store.delete(task_id),
        lambda: store.delete(task_id, expected_version=1),
        lambda: store.runs(task_id),
        lambda: store.start(task_id),
    )
    for call in calls:
        with pytest.raises(Invalid, match="task_id"):
            call()
    assert len(store.list()) == 0


def test_the_longest_id_and_slot_fit(store: TaskStore) -> None:
    task = store.create("x" * 256, spec(slot="y" * 64))
    assert store.get(task.id) == task


@pytest.mark.parametrize(
    "kept",
    [
        spec(timeout=Timeout(U64_MAX)),
        spec(restart=RestartPolicy.always(U64_MAX)),
        spec(backoff=BackoffPolicy(first_ms=U64_MAX, max_ms=U64_MAX, factor=1.7976931348623157e308)),
        spec(max_retries=2**32 - 1),
        spec(labels={"": "", "quote'\"": "\\ %s $1 {}", "é": "\U0001f600" * 1000}),
        spec(kind=Subprocess.script(Runtime.BASH, "x" * MAX_SCRIPT_BODY_BYTES)),
    ],
    ids=["timeout", "interval", "backoff", "retries", "labels", "script"],
)
def test_extremes_come_back_as_they_went_in(store: TaskStore, kept: object) -> None:
    task = store.create("extreme", kept)  # type: ignore[arg-type]
    assert store.get("extreme").to_json() == task.to_json()
    claim = store.start("extreme")
    assert claim.spec == kept
    store.finish(claim, Outcome.failed("no", exit_code=-(2**31)))
    assert store.get("extreme").status.exit_code == -(2**31)
    assert store.get("extreme").spec == kept


def test_a_batch_is_created_in_order_or_not_at_all(store: TaskStore) -> None:
    made = store.create_many([(f"t-{n}", spec(slot=f"s-{n}")) for n in (3, 1, 2)])
    assert [task.id for task in store.list()] == ["t-3", "t-1", "t-2"]
    assert list(store.list()) == list(made)
    with pytest.raises(AlreadyExists) as refusal:
        store.create_many([("new", spec()), ("t-2", spec()), ("t-1", spec())])
    assert refusal.value.task_id == "t-2"
    with pytest.raises(Invalid, match="twice"):
        store.create_many([("same", spec()), ("same", spec())])
    assert [task.id for task in store.list()] == ["t-3", "t-1", "t-2"]
    assert list(store.create_many([])) == []


def test_what_is_not_there_is_not_found(store: TaskStore) -> None:
    for call in (
        lambda: store.get("none"),
        lambda: store.replace("none", spec("none"), expected_version=1),
        lambda: store.update("none", lambda old: old),
        lambda: store.cancel("none"),
        lambda: store.delete("none", expected_version=1),
        lambda: store.runs("none"),
        lambda: store.start("none"),
    ):
        with pytest.raises(NotFound) as missing:
            call()
        assert missing.value.task_id == "none"
    assert store.delete("none") is False


# --- spec changes -------------------------------------------------------------------------------


def test_replace_moves_version_and_generation_by_one(store: TaskStore) -> None:
    before = store.create("a", spec("a"))
    after = store.replace("a", spec("a", timeout=Timeout(1)), expected_version=1)
    assert (after.metadata.resource_version, after.metadata.generation) == (2, 2)
    assert after.spec.timeout == 1
    assert after.metadata.created_at == before.metadata.created_at
    assert store.get("a") == after


def test_replace_at_another_version_changes_nothing_and_tells_the_current_one(store: TaskStore) -> None:
    store.create("a", spec("a"))
    current = store.replace("a", spec("a", timeout=Timeout(1)), expected_version=1)
    with pytest.raises(VersionConflict) as conflict:
        store.replace("a", spec("a", timeout=Timeout(2)), expected_version=1)
    assert (conflict.value.expected, conflict.value.current) == (1, 2)
    assert store.get("a") == current


def test_the_same_spec_again_bumps_nothing(store: TaskStore) -> None:
    task = store.create("a", spec("a", labels={"k": "v"}))
    assert store.replace("a", spec("a", labels={"k": "v"}), expected_version=1) == task
    assert store.get("a") == task


@pytest.mark.parametrize("version", [0, -1, 2**63, True, "1", 1.0])
def test_an_expected_version_that_cannot_be_is_invalid(store: TaskStore, version: object) -> None:
    store.create("a", spec("a"))
    with pytest.raises(Invalid, match="expected"):
        store.replace("a", spec("a"), expected_version=version)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="expected"):
        store.delete("a", expected_version=version)  # type: ignore[arg-type]


def test_a_spec_change_leaves_the_running_attempt_and_applies_from_the_next(store: TaskStore) -> None:
    store.create("a", retrying("a"))
    first = store.start("a")
    changed = store.replace("a", retrying("a", timeout=Timeout(77)), expected_version=2)
    assert (changed.phase, changed.status.attempt) == (TaskPhase.RUNNING, 1)
    store.finish(first, Outcome.failed("once"))
    assert store.start("a").spec.timeout == 77


def test_update_reads_changes_and_writes(store: TaskStore) -> None:
    store.create("a", spec("a"))
    task = store.update("a", lambda old: old.replace(labels={"seen": "yes"}))
    assert task.spec.labels == {"seen": "yes"}
    assert task.metadata.generation == 2


# --- cancel and delete --------------------------------------------------------------------------


def test_cancel_ends_a_pending_task_at_once_and_is_a_no_op_after(store: TaskStore) -> None:
    store.create("a", spec("a"))
    task = store.cancel("a")
    assert (task.phase, task.metadata.resource_version, task.status.attempt) == (TaskPhase.CANCELED, 2, 0)
    assert store.cancel("a") == task


def test_cancel_of_a_waiting_task_clears_what_its_last_attempt_left(store: TaskStore) -> None:
    store.create("a", retrying("a"))
    store.finish(store.start("a"), Outcome.failed("broken", exit_code=3))
    assert store.get("a").status.error == "broken"
    task = store.cancel("a")
    assert (task.phase, task.status.error, task.status.exit_code) == (TaskPhase.CANCELED, None, None)
    assert [(run.phase, run.error) for run in store.runs("a")] == [(TaskPhase.FAILED, "broken")]


def test_cancel_of_a_running_task_is_a_request(store: TaskStore) -> None:
    agent = store.register("w")
    store.create("a", retrying("a"))
    (claim,) = store.claim(agent)
    asked = store.cancel("a")
    assert (asked.phase, asked.metadata.resource_version) == (TaskPhase.RUNNING, 3)
    assert store.cancel("a") == asked
    (request,) = store.heartbeat(agent)
    assert (request.seq, request.attempt) == (claim.seq, claim.attempt)
    store.finish(claim, Outcome.canceled())
    assert store.get("a").phase is TaskPhase.CANCELED
    assert store.heartbeat(agent) == []


def test_cancel_of_a_final_task_changes_nothing(store: TaskStore) -> None:
    store.create("a", spec("a"))
    store.finish(store.start("a"), Outcome.succeeded(0))
    done = store.get("a")
    assert store.cancel("a") == done


def test_delete_takes_the_runs_along(store: TaskStore) -> None:
    store.create("a", spec("a"))
    store.finish(store.start("a"), Outcome.succeeded())
    assert store.delete("a") is True
    with pytest.raises(NotFound):
        store.get("a")
    again = store.create("a", spec("a"))
    assert again.metadata.resource_version == 1
    assert list(store.runs("a")) == []


def test_a_guarded_delete_needs_its_version(store: TaskStore) -> None:
    store.create("a", spec("a"))
    with pytest.raises(VersionConflict) as conflict:
        store.delete("a", expected_version=7)
    assert conflict.value.current == 1
    assert store.delete("a", expected_version=1) is True
