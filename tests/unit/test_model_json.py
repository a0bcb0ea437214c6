"""The JSON of the model: exact, complete, and tolerant only where the contract is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXAMPLE, compact, example, label_maps, runs, selectors, specs, tasks

from solti_store.model import (
    Invalid,
    Labels,
    ObjectMeta,
    RestartPolicy,
    RunnerSelector,
    Task,
    TaskRun,
    TaskSpec,
    TaskStatus,
)


@given(tasks)
def test_a_contract_document_survives_byte_for_byte(document: dict[str, Any]) -> None:
    text = compact(document)
    task = Task.from_json(text)
    assert task.to_json() == text
    assert Task.from_json(text.encode()) == task


@given(tasks)
def test_every_way_in_and_out_agrees(document: dict[str, Any]) -> None:
    task = Task.from_json(compact(document))
    assert task.to_dict() == document
    assert list(task.to_dict()["spec"]) == list(document["spec"])
    assert Task.from_dict(document) == task
    assert Task.model_validate(document) == task
    assert Task.model_validate_json(compact(document)) == task
    assert task.model_dump_json() == compact(document)
    assert task.model_dump(mode="json") == document


@given(runs())
def test_a_run_survives_byte_for_byte(document: dict[str, Any]) -> None:
    run = TaskRun.from_json(compact(document))
    assert run.to_json() == compact(document)
    assert run.is_active == ("finishedAt" not in document)


def test_a_run_may_name_its_agent_last() -> None:
    text = '{"attempt":1,"phase":"failed","startedAt":5,"finishedAt":6,"exitCode":1,"agent":"worker-1"}'
    assert TaskRun.from_json(text).to_json() == text
    with pytest.raises(Invalid) as caught:
        TaskRun.from_json(text.replace("worker-1", ".."))
    assert (caught.value.field, str(caught.value)) == ("agent", "invalid model: agent_id cannot be '.' or '..'")


def test_a_run_may_have_output_after_its_exit_code() -> None:
    text = (
        '{"attempt":1,"phase":"failed","startedAt":5,"finishedAt":6,"exitCode":1,'
        '"stdout":"a\\nb\\u001b[1m","stderr":"é\ufffd","agent":"worker-1"}'
    )
    run = TaskRun.from_json(text)
    assert (run.stdout, run.stderr) == ("a\nb\x1b[1m", "é\ufffd")
    assert run.to_json() == text
    for wrong in ("\\u0000", "\\ud800"):
        with pytest.raises(Invalid) as caught:
            TaskRun.from_json(text.replace("é", wrong))
        assert caught.value.field == "stderr"


@given(selectors())
def test_a_selector_survives_byte_for_byte(document: dict[str, Any]) -> None:
    assert RunnerSelector.from_json(compact(document)).to_json() == compact(document)


@given(specs(), st.sampled_from([1, 2, 2**32 - 1]))
def test_max_retries_stands_after_admission(document: dict[str, Any], retries: int) -> None:
    document = {
        key: value
        for name, old in document.items()
        for key, value in ([(name, old), ("maxRetries", retries)] if name == "admission" else [(name, old)])
    }
    spec = TaskSpec.from_json(compact(document))
    assert spec.max_retries == retries
    assert spec.to_json() == compact(document)


@given(st.floats(1.0, 1.7e308))
def test_what_is_dumped_for_a_factor_is_a_float_and_stable(factor: float) -> None:
    document = example()
    document["spec"]["backoff"] |= {"factor": factor, "maxMs": 2000}
    dumped = Task.from_dict(document).to_json()
    assert json.loads(dumped)["spec"]["backoff"]["factor"] == factor
    assert isinstance(json.loads(dumped)["spec"]["backoff"]["factor"], float)
    assert Task.from_json(dumped).to_json() == dumped


@pytest.mark.parametrize(
    ("written", "dumped"),
    [("2", "2.0"), ("2.0", "2.0"), ("2.5", "2.5"), ("2e0", "2.0"), ("1e16", "1e16"), ("1e+300", "1e300")],
)
def test_factor_is_written_as_a_float(written: str, dumped: str) -> None:
    text = EXAMPLE.replace('"factor":2.0', f'"factor":{written}')
    assert Task.from_json(text).to_json() == EXAMPLE.replace('"factor":2.0', f'"factor":{dumped}')


def test_the_contract_example_is_exact() -> None:
    assert Task.from_json(EXAMPLE).to_json() == EXAMPLE


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (Task, "metadata"),
        (Task, "status"),
        (Task, "spec"),
        (ObjectMeta, "id"),
        (ObjectMeta, "resourceVersion"),
        (ObjectMeta, "createdAt"),
        (ObjectMeta, "updatedAt"),
        (TaskStatus, "phase"),
        (TaskStatus, "attempt"),
        (TaskSpec, "slot"),
        (TaskSpec, "kind"),
        (TaskSpec, "timeout"),
        (TaskSpec, "restart"),
        (TaskSpec, "backoff"),
        (TaskSpec, "admission"),
        (TaskSpec, "backoff.jitter"),
        (TaskSpec, "backoff.firstMs"),
        (TaskSpec, "backoff.maxMs"),
        (TaskSpec, "backoff.factor"),
        (TaskSpec, "restart.type"),
    ],
)
def test_required_fields_have_no_default_in_json(model: type[Task], field: str) -> None:
    sections: dict[type, dict[str, Any]] = {
        Task: example(),
        ObjectMeta: example()["metadata"],
        TaskStatus: example()["status"],
        TaskSpec: example()["spec"],
    }
    document = sections[model]
    *parents, last = field.split(".")
    holder = document
    for parent in parents:
        holder = holder[parent]
    del holder[last]
    with pytest.raises(Invalid, match="required") as caught:
        model.from_json(compact(document))
    assert caught.value.field == field
    with pytest.raises(Invalid, match="required") as caught:
        model.from_dict(document)
    assert caught.value.field == field


def test_python_names_are_no_wire_names() -> None:
    text = EXAMPLE.replace("firstMs", "first_ms")
    for parse in (Task.from_json, Task.model_validate_json):
        with pytest.raises(Invalid) as caught:
            parse(text)
        assert caught.value.field == "spec.backoff.firstMs"
    with pytest.raises(Invalid) as caught:
        Task.from_dict(json.loads(text))
    assert caught.value.field == "spec.backoff.firstMs"


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE.replace('"status":{', '"more":{"x":[1,null]},"status":{"phase2":1,'),
        EXAMPLE.replace('"spec":{', '"spec":{"runnerSelector":null,"maxRetries":null,"other":"é",'),
        EXAMPLE.replace('"status":{', '"status":{"exitCode":null,"error":null,'),
        EXAMPLE.replace('"metadata":{', '"metadata":{"generation":1,'),
        EXAMPLE.replace('"embedded"', '{"embedded":null}'),
        EXAMPLE.replace('"admission"', '"labels":{},"admission"'),
        EXAMPLE.replace('"type":"never"', '"type":"never","intervalMs":"ignored"'),
        json.dumps(json.loads(EXAMPLE), indent=2, sort_keys=True),
    ],
    ids=["unknown", "null-option", "null-status", "generation", "embedded", "labels", "interval", "layout"],
)
def test_equal_documents_are_dumped_the_same(text: str) -> None:
    assert Task.from_json(text).to_json() == EXAMPLE


def test_generation_is_written_only_past_one() -> None:
    text = EXAMPLE.replace('"updatedAt":1712750401000', '"updatedAt":1712750401000,"generation":2')
    assert Task.from_json(text).metadata.generation == 2
    assert Task.from_json(text).to_json() == text


def test_empty_strings_and_zeros_are_values_not_absence() -> None:
    text = '{"phase":"failed","attempt":0,"exitCode":0,"error":""}'
    assert TaskStatus.from_json(text).to_json() == text


@pytest.mark.parametrize("text", ['{"type":"always","intervalMs":0}', '{"intervalMs":0,"type":"always"}'])
def test_an_interval_of_zero_is_kept(text: str) -> None:
    assert RestartPolicy.from_json(text).to_json() == '{"type":"always","intervalMs":0}'


def test_an_interval_of_null_is_none() -> None:
    assert RestartPolicy.from_json('{"type":"always","intervalMs":null}').to_json() == '{"type":"always"}'


@given(label_maps(min_size=2))
def test_labels_are_sorted_and_the_last_duplicate_wins(labels: dict[str, str]) -> None:
    last = next(reversed(labels))
    backwards = [*reversed(labels.items())]
    text = "{" + ",".join(f"{compact(key)}:{compact(value)}" for key, value in backwards) + "}"
    doubled = "{" + compact(last) + ':"earlier",' + text[1:]
    document = EXAMPLE[:-2] + ',"labels":' + doubled + "}}"
    assert Task.from_json(document).to_json() == EXAMPLE[:-2] + ',"labels":' + compact(labels) + "}}"
    assert list(Task.from_json(document).spec.labels) == list(labels)


def test_labels_sort_by_bytes() -> None:
    # UTF-16 order, which JavaScript and some databases use, would put the emoji first.
    assert list(Labels({"\U0001f600": "", "\uffee": "", "z": "", "Z": ""})) == [
        "Z",
        "z",
        "\uffee",
        "\U0001f600",
    ]


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize("model", [Task, TaskSpec, TaskRun, RunnerSelector])
def test_a_json_schema_can_be_made(model: type[Task], mode: Any) -> None:
    schema = json.dumps(model.model_json_schema(mode=mode))
    assert "\\u0000tag" not in schema


def test_the_json_schema_requires_what_json_requires() -> None:
    required = TaskSpec.model_json_schema()["required"]
    assert required == ["slot", "kind", "timeout", "restart", "backoff", "admission"]


def test_a_string_that_looks_like_a_factor_stays_as_it_is() -> None:
    task = Task.from_json(EXAMPLE)
    odd = task.replace(spec=task.spec.replace(labels={'"factor":1e+16': '"factor":1e+16'}))
    assert Task.from_json(odd.to_json()) == odd
