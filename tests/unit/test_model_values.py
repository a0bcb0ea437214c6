"""Specs and their builder, labels, queries and pages as Python values."""

import copy
import pickle
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import compact, tasks, texts

import solti_store.model
from solti_store.model import (
    ACTIVE_PHASES,
    TERMINAL_PHASES,
    AdmissionPolicy,
    BackoffPolicy,
    Embedded,
    Invalid,
    Labels,
    RestartPolicy,
    RunnerSelector,
    SelectorRequirement,
    Slot,
    Subprocess,
    Task,
    TaskPage,
    TaskPhase,
    TaskQuery,
    TaskRun,
    TaskSpec,
    Timeout,
    Timestamp,
)


def test_all_public_names_are_there() -> None:
    for name in solti_store.model.__all__:
        assert hasattr(solti_store.model, name)
    assert len(set(solti_store.model.__all__)) == len(solti_store.model.__all__)


def test_spec_defaults_hold_in_python() -> None:
    spec = TaskSpec(slot=Slot("build"), kind=Embedded(), timeout=Timeout(5000))
    assert spec.to_json() == (
        '{"slot":"build","kind":"embedded","timeout":5000,"restart":{"type":"never"},'
        '"backoff":{"jitter":"full","firstMs":1000,"maxMs":30000,"factor":2.0},"admission":"dropIfRunning"}'
    )
    assert TaskSpec.builder("build", Embedded(), 5000).build() == spec
    assert TaskSpec.builder("build", Embedded(), timedelta(seconds=5)).build() == spec
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert (spec.max_retries, spec.runner_selector, spec.labels) == (None, None, Labels())


def test_the_builder_sets_every_field() -> None:
    selector = RunnerSelector(match_expressions=(SelectorRequirement.exists("gpu"),))
    built = (
        TaskSpec.builder("build", Subprocess.command("make"), 5000)
        .restart(RestartPolicy.always(60_000))
        .backoff(BackoffPolicy(first_ms=1))
        .admission(AdmissionPolicy.QUEUE)
        .max_retries(3)
        .runner_selector(selector)
        .labels({"b": "2", "a": "1"})
        .build()
    )
    assert built == TaskSpec(
        slot=Slot("build"),
        kind=Subprocess.command("make"),
        timeout=Timeout(5000),
        restart=RestartPolicy.always(60_000),
        backoff=BackoffPolicy(first_ms=1),
        admission=AdmissionPolicy.QUEUE,
        max_retries=3,
        runner_selector=selector,
        labels=Labels(a="1", b="2"),
    )
    assert TaskSpec.from_json(built.to_json()) == built
    assert built.to_json().endswith(
        '"admission":"queue","maxRetries":3,"runnerSelector":{"matchExpressions":[{"key":"gpu",'
        '"operator":"Exists"}]},"labels":{"a":"1","b":"2"}}'
    )


def test_the_builder_fails_at_the_step_that_is_wrong() -> None:
    with pytest.raises(Invalid, match="slot must not be empty"):
        TaskSpec.builder("", Embedded(), 1)
    with pytest.raises(Invalid, match="timeout must be greater than zero"):
        TaskSpec.builder("a", Embedded(), 0)
    with pytest.raises(Invalid) as caught:
        TaskSpec.builder("a", Embedded(), 1).max_retries(0)
    assert caught.value.field == "maxRetries"
    with pytest.raises(Invalid, match="NUL"):
        TaskSpec.builder("a", Embedded(), 1).labels({"a": "\0"})


def test_replace_validates_and_leaves_the_original_alone() -> None:
    spec = TaskSpec.builder("a", Embedded(), 1).labels({"k": "v"}).build()
    assert spec.replace(timeout=Timeout(2)).timeout == 2
    assert spec.replace(labels=Labels()).labels == {}
    assert spec.model_copy(update={"timeout": 3}).timeout == Timeout(3)
    assert spec.timeout == 1
    with pytest.raises(Invalid):
        spec.replace(timeout=0)


@given(st.dictionaries(texts, texts, max_size=5))
def test_labels_are_an_immutable_sorted_mapping(pairs: dict[str, str]) -> None:
    labels = Labels(pairs)
    assert labels == pairs
    assert list(labels) == sorted(pairs)
    assert dict(labels) == pairs
    assert len(labels) == len(pairs)
    assert isinstance(labels, Mapping)
    same = Labels(dict(reversed(pairs.items())))
    for twin in (same, pickle.loads(pickle.dumps(labels)), copy.copy(labels), copy.deepcopy(labels)):
        assert (twin, hash(twin), type(twin)) == (labels, hash(labels), Labels)
    before = dict(labels)
    pairs["\U0010ffff more"] = "x"
    assert labels == before


def test_labels_by_example() -> None:
    labels = Labels({"b": "1"}, a="2")
    assert repr(labels) == "Labels({'a': '2', 'b': '1'})"
    assert labels | {"b": "3"} == Labels(a="2", b="3")
    assert isinstance(labels | {}, Labels)
    assert labels.get("c") is None
    assert "a" in labels
    assert labels != Labels()
    assert labels != [("a", "2"), ("b", "1")]
    with pytest.raises(KeyError):
        labels["c"]
    with pytest.raises(TypeError):
        labels["c"] = "x"  # type: ignore[index]
    for bad, field in [({"k": 1}, "k"), ({"k": "\0"}, "k"), ({"k": "\ud800"}, "k"), ({1: "v"}, "1")]:
        with pytest.raises(Invalid) as caught:
            Labels(bad)  # type: ignore[arg-type]
        assert caught.value.field == field


def test_run_activity() -> None:
    run = TaskRun(attempt=1, phase=TaskPhase.RUNNING, started_at=Timestamp(5))
    assert run.is_active
    assert not run.replace(finished_at=Timestamp(6), phase=TaskPhase.FAILED).is_active


def test_query_defaults_and_shortcuts() -> None:
    query = TaskQuery()
    assert (query.phases, query.slot, query.kind, query.limit) == (frozenset(), None, None, 100)
    assert (query.cursor, query.with_total) == (None, False)
    assert query.with_active().phases == ACTIVE_PHASES == {"pending", "running"}
    assert query.with_terminal().phases == TERMINAL_PHASES
    narrowed = TaskQuery(slot=Slot("a"), kind="wasm", limit=5).with_active()
    assert (narrowed.slot, narrowed.kind, narrowed.limit) == ("a", "wasm", 5)
    assert hash(narrowed) == hash(narrowed.replace())
    assert TaskQuery(phases=frozenset({TaskPhase.FAILED})) != query


@pytest.mark.parametrize(("given_limit", "limit"), [(1, 1), (1000, 1000), (1001, 1000), (10**30, 1000)])
def test_a_large_limit_is_capped(given_limit: int, limit: int) -> None:
    assert TaskQuery(limit=given_limit).limit == limit


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit", 0),
        ("limit", -1),
        ("limit", -(10**5000)),
        ("limit", True),
        ("limit", 5.0),
        ("limit", None),
        ("slot", ".."),
        ("kind", "none"),
        ("phases", "pending"),
        ("cursor", "\0"),
        ("cursor", 5),
        ("withTotal", 1),
    ],
    ids=lambda value: str(value)[:9] if not isinstance(value, int) or abs(value) < 10**9 else "huge",
)
def test_a_query_is_checked(field: str, value: Any) -> None:
    with pytest.raises(Invalid) as caught:
        TaskQuery(**{"with_total" if field == "withTotal" else field: value})
    assert caught.value.field == field


@given(st.lists(tasks, max_size=3))
def test_a_page_is_its_items(documents: list[dict[str, Any]]) -> None:
    items = tuple(Task.from_dict(document) for document in documents)
    page = TaskPage(items=items, total=7, next_cursor="abc")
    assert len(page) == len(items)
    assert tuple(page) == page.items == items
    assert page.to_json() == '{"items":' + compact(documents) + ',"total":7,"nextCursor":"abc"}'
    assert TaskPage.from_json(page.to_json()) == page
    assert TaskPage(items=items).to_json() == '{"items":' + compact(documents) + "}"
    assert page.replace(total=None).total is None
    assert pickle.loads(pickle.dumps(page)) == page
    assert copy.deepcopy(page) == page


@given(tasks)
def test_task_shortcuts(document: dict[str, Any]) -> None:
    task = Task.from_dict(document)
    assert (task.id, task.phase) == (document["metadata"]["id"], document["status"]["phase"])
