"""Whatever is wrong with a document ends in one `ModelError` that names the field."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXAMPLE, compact, example, tasks

from solti_store.model import (
    BackoffPolicy,
    Embedded,
    Invalid,
    ModelError,
    ObjectMeta,
    Slot,
    Subprocess,
    Task,
    TaskQuery,
    TaskSpec,
    TaskStatus,
    Timeout,
    UnknownTaskPhase,
    Value,
)

Path = tuple[str | int, ...]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with one field set to `value`."""
    document = example()
    *parents, last = path.split(".")
    holder = document
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    return document


def refusal(document: Any) -> ModelError:
    """The error of a document, the same from its text and from its decoded form."""
    with pytest.raises(Invalid) as from_dict:
        Task.from_dict(document)
    with pytest.raises(Invalid) as from_json:
        Task.from_json(json.dumps(document))
    assert from_json.value.field == from_dict.value.field
    assert str(from_json.value).startswith("invalid model: ")
    assert str(from_json.value).isprintable()
    return from_json.value


def outcome_of(call: Callable[[], Task]) -> Task | ModelError:
    """What a call returns or refuses; any other error is the test's."""
    try:
        return call()
    except ModelError as error:
        return error


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def put(document: Any, path: Path, value: Any) -> Any:
    """A copy with `value` at that path; a copy, because strategies share their constant parts."""
    document = holder = copy.deepcopy(document)
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return document


def dotted(path: Path) -> str:
    return ".".join(str(step) for step in path)


INTEGER_FIELDS = [
    ("metadata.resourceVersion", 0, 2**64 - 1),
    ("metadata.createdAt", 0, 2**64 - 1),
    ("metadata.updatedAt", 0, 2**64 - 1),
    ("metadata.generation", 0, 2**64 - 1),
    ("status.attempt", 0, 2**32 - 1),
    ("status.exitCode", -(2**31), 2**31 - 1),
    ("spec.timeout", 1, 2**64 - 1),
    ("spec.maxRetries", 1, 2**32 - 1),
    ("spec.backoff.firstMs", 1, 2**64 - 1),
    ("spec.backoff.maxMs", 1, 2**64 - 1),
]


@pytest.mark.parametrize(("field", "least", "most"), INTEGER_FIELDS)
def test_integers_have_exact_ranges_and_no_other_type(field: str, least: int, most: int) -> None:
    for value in (least, most):
        document = changed(field, value)
        if field.startswith("spec.backoff"):
            document["spec"]["backoff"] |= {"firstMs": value, "maxMs": value}
        text = compact(Task.from_dict(document).to_dict())
        assert Task.from_json(text).to_json() == text
        assert f":{value}" in text
    wrongs: list[Any] = [
        least - 1,
        most + 1,
        -(10**30),
        10**30,
        float(least),
        5000.5,
        str(most),
        True,
        [],
        {},
    ]
    for wrong in wrongs:
        error = refusal(changed(field, wrong))
        assert error.field == field


@pytest.mark.parametrize("field", ["metadata.resourceVersion", "status.attempt", "spec.timeout"])
def test_a_required_integer_is_not_null(field: str) -> None:
    assert refusal(changed(field, None)).field == field


@pytest.mark.parametrize("value", [True, "2.0", None, [], {}])
def test_factor_is_a_number(value: Any) -> None:
    assert refusal(changed("spec.backoff.factor", value)).field == "spec.backoff.factor"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("metadata", [], "metadata"),
        ("metadata", None, "metadata"),
        ("status", "running", "status"),
        ("spec", 5, "spec"),
        ("metadata.id", 5, "metadata.id"),
        ("metadata.id", None, "metadata.id"),
        ("status.phase", "Running", "status.phase"),
        ("status.phase", 1, "status.phase"),
        ("status.error", 1, "status.error"),
        ("spec.restart", "never", "spec.restart"),
        ("spec.restart", {"type": "sometimes"}, "spec.restart.type"),
        ("spec.restart", {"type": "always", "intervalMs": -1}, "spec.restart.intervalMs"),
        ("spec.restart", {"intervalMs": True, "type": "always"}, "spec.restart.intervalMs"),
        ("spec.backoff.jitter", "FULL", "spec.backoff.jitter"),
        ("spec.admission", "drop", "spec.admission"),
        ("spec.labels", None, "spec.labels"),
        ("spec.labels", [], "spec.labels"),
        ("spec.labels", {"a": 1}, "spec.labels.a"),
        ("spec.labels", {"a": None}, "spec.labels.a"),
        ("spec.runnerSelector", [], "spec.runnerSelector"),
        ("spec.runnerSelector", {"matchLabels": None}, "spec.runnerSelector.matchLabels"),
        ("spec.runnerSelector", {"matchExpressions": {}}, "spec.runnerSelector.matchExpressions"),
        (
            "spec.runnerSelector",
            {"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Gt"}]},
            "spec.runnerSelector.matchExpressions.1.operator",
        ),
        ("spec.kind", "subprocess", "spec.kind"),
        ("spec.kind", "unknown", "spec.kind"),
        ("spec.kind", None, "spec.kind"),
        ("spec.kind", [], "spec.kind"),
        ("spec.kind", {}, "spec.kind"),
        ("spec.kind", {"unknown": {}}, "spec.kind"),
        ("spec.kind", {"wasm": {"module": "m"}, "embedded": None}, "spec.kind"),
        ("spec.kind", {"embedded": {}}, "spec.kind.embedded"),
        ("spec.kind", {"subprocess": None}, "spec.kind.subprocess"),
        ("spec.kind", {"subprocess": {}}, "spec.kind.subprocess.mode"),
        ("spec.kind", {"subprocess": {"mode": "command"}}, "spec.kind.subprocess.mode"),
        ("spec.kind", {"subprocess": {"mode": {}}}, "spec.kind.subprocess.mode"),
        ("spec.kind", {"subprocess": {"mode": {"other": 1}}}, "spec.kind.subprocess.mode.other"),
        ("spec.kind", {"subprocess": {"mode": {"command": {}}}}, "spec.kind.subprocess.mode.command.command"),
        ("spec.kind", {"wasm": {"module": "m", "args": "x"}}, "spec.kind.wasm.args"),
        ("spec.kind", {"wasm": {"module": "m", "args": None}}, "spec.kind.wasm.args"),
        ("spec.kind", {"wasm": {"module": "m", "env": {"A": "b"}}}, "spec.kind.wasm.env"),
        ("spec.kind", {"wasm": {"module": "m", "env": [{"key": "A"}]}}, "spec.kind.wasm.env.0.value"),
        ("spec.kind", {"container": {"image": "i", "command": "x"}}, "spec.kind.container.command"),
    ],
    ids=str,
)
def test_a_wrong_type_names_its_field(path: str, value: Any, field: str) -> None:
    assert refusal(changed(path, value)).field == field


@pytest.mark.parametrize("flag", [None, 0, 1, "true", []])
def test_a_flag_is_a_boolean(flag: Any) -> None:
    kind = {"subprocess": {"mode": {"command": {"command": "ls"}}, "failOnNonZero": flag}}
    assert refusal(changed("spec.kind", kind)).field == "spec.kind.subprocess.failOnNonZero"


def test_two_modes_are_one_too_many() -> None:
    mode = {"command": {"command": "ls"}, "script": {"runtime": "bash", "body": "YQ=="}}
    error = refusal(changed("spec.kind", {"subprocess": {"mode": mode}}))
    assert error.field == "spec.kind.subprocess.mode"


@given(tasks, st.data())
def test_a_value_of_no_field_is_refused_by_path(document: dict[str, Any], data: st.DataObject) -> None:
    # No field takes an array in an array, so wherever this lands it is the wrong type there.
    path = data.draw(st.sampled_from(list(leaves(document))))
    document = put(document, path, [[]])
    error = refusal(document)
    assert error.field in {dotted(path), f"{dotted(path)}.0"}


@given(tasks, st.sampled_from(["\0", "a\0b", "\ud800", "x\udfff"]), st.data())
def test_text_that_postgresql_cannot_store_is_refused_anywhere(
    document: dict[str, Any], bad: str, data: st.DataObject
) -> None:
    paths = list(leaves(document))
    texts = [path for path in paths if isinstance(_get(document, path), str)]
    path = data.draw(st.sampled_from(texts))
    document = put(document, path, bad)
    with pytest.raises(ModelError) as caught:
        Task.from_json(json.dumps(document))
    assert caught.value.field == dotted(path)
    with pytest.raises(ModelError) as caught:
        Task.from_dict(document)
    assert caught.value.field == dotted(path)


def _get(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


KEYED = [
    ("spec.labels", lambda bad: {bad: "v"}),
    ("spec.runnerSelector", lambda bad: {"matchLabels": {bad: "v"}}),
    ("spec.runnerSelector", lambda bad: {"matchExpressions": [{"key": bad, "operator": "Exists"}]}),
    ("spec.kind", lambda bad: {"wasm": {"module": "m", "env": [{"key": bad, "value": "v"}]}}),
    ("spec.kind", lambda bad: {"subprocess": {"mode": {"command": {"command": bad}}}}),
    ("spec.kind", lambda bad: {bad: {}}),
]


@pytest.mark.parametrize("bad", ["k\0", "k\ud800", "\udc00"])
@pytest.mark.parametrize(
    ("path", "make"), KEYED, ids=["labels", "match-labels", "expression", "env", "command", "kind"]
)
def test_keys_are_text_too(path: str, make: Any, bad: str) -> None:
    document = changed(path, make(bad))
    text = json.dumps(document)
    calls: list[Callable[[], object]] = [lambda: Task.from_dict(document), lambda: Task.from_json(text)]
    for call in calls:
        with pytest.raises(Invalid) as caught:
            call()
        assert caught.value.field.startswith(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        '{"status":{"error":"a\ud800"}}',
        '{"status":{"error":"\\ud800"}}',
        '{"status":{"error":"\\ud800abcdefghijkl"}}',
        '{"status":{"error":"\\ud800\\ud800"}}',
        '{"status":{"error":"\\ud800\\n"}}',
        '{"status":{"error":"\\udc00"}}',
        '{"status":\n{"list":["a,[{",{"b":[]}],\n"error":"x\\"y\\ud83dz"}}',
    ],
)
def test_a_lone_surrogate_in_text_is_located(text: str) -> None:
    with pytest.raises(Invalid, match="lone surrogate") as caught:
        Task.from_json(text)
    assert caught.value.field == "status.error"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.timeout", "5000", 'spec.timeout: input should be a valid integer, got "5000"'),
        ("spec.timeout", None, "spec.timeout: input should be a valid integer, got null"),
        (
            "status.error",
            "a\0",
            'status.error: must not contain NUL, which PostgreSQL cannot store, got "a\\x00"',
        ),
        (
            "spec.labels",
            {"k\0": "v"},
            'spec.labels.k\\x00: must not contain NUL, which PostgreSQL cannot store, got "k\\x00"',
        ),
        (
            "spec.kind",
            {"other": {}},
            'spec.kind: must be "embedded" or an object with one key of subprocess, wasm, container, got an object',
        ),
    ],
    ids=["text", "null", "nul", "nul-key", "kind"],
)
def test_messages_name_field_and_value(path: str, value: Any, message: str) -> None:
    assert str(refusal(changed(path, value))) == f"invalid model: {message}"


def test_a_surrogate_pair_is_a_character() -> None:
    status = TaskStatus.from_json('{"phase":"failed","attempt":1,"error":"\\ud83d\\ude00"}')
    assert status.error == "\U0001f600"
    assert status.to_json() == '{"phase":"failed","attempt":1,"error":"\U0001f600"}'


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", ""),
        ("   ", ""),
        ("{", ""),
        ("null", ""),
        ("[]", ""),
        ("5", ""),
        ('"embedded"', ""),
        (EXAMPLE + "}", ""),
        (EXAMPLE[:-3], "spec.admission"),
        ('{"metadata":{"id":"a","createdAt":01}}', "metadata.createdAt"),
        ('{"metadata":{"id":"a\n"}}', "metadata.id"),
        ('{"spec":{"labels":{"a":"\\uqqqq"}}}', "spec.labels.a"),
        ('{"spec":{"kind":{"wasm":{"args":["a","b",nul]}}}}', "spec.kind.wasm.args.2"),
        ('{"metadata":{"resourceVersion":' + "9" * 5000 + "}}", "metadata.resourceVersion"),
        ('{"spec":{"labels":' + "[" * 10_000, "spec.labels.0.0.0.0.0.0"),
        ('{"spec":' + '{"kind":' * 10_000, "spec.kind.kind.kind.kind.kind.kind.kind"),
        (b"\xff", ""),
        (b'{"status":{"error":"\xff"}}', "status.error"),
        (b"\xef\xbb\xbf{}", ""),
    ],
)
def test_what_is_no_json_is_located(text: str | bytes, field: str) -> None:
    for parse in (Task.from_json, Task.model_validate_json):
        with pytest.raises(Invalid, match=r"\Ainvalid model: ") as caught:
            parse(text)
        assert caught.value.field == field


@given(st.text() | st.binary())
def test_no_text_raises_anything_but_a_model_error(text: str | bytes) -> None:
    with pytest.raises(ModelError):
        Task.from_json(text)


@given(st.integers(0, len(EXAMPLE) - 1), st.characters())
def test_a_damaged_document_raises_nothing_but_a_model_error(place: int, char: str) -> None:
    text = EXAMPLE[:place] + char + EXAMPLE[place + 1 :]
    outcome = outcome_of(lambda: Task.from_json(text))
    if isinstance(outcome, ModelError):
        assert str(outcome).startswith("invalid model: ")
    else:
        assert Task.from_json(outcome.to_json()) == outcome


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(tasks, json_values, st.data())
def test_no_value_anywhere_raises_anything_but_a_model_error(
    document: dict[str, Any], value: Any, data: st.DataObject
) -> None:
    document = put(document, data.draw(st.sampled_from(list(leaves(document)))), value)
    outcome = outcome_of(lambda: Task.from_dict(document))
    if isinstance(outcome, ModelError):
        assert str(outcome).isprintable()
    else:
        assert Task.from_json(outcome.to_json()) == outcome


@pytest.mark.parametrize("field", ["metadata.id", "status.error", "spec.slot", "spec.kind"])
def test_bytes_are_no_text(field: str) -> None:
    for wrong in (b"pending", bytearray(b"embedded")):
        with pytest.raises(Invalid) as caught:
            Task.from_dict(changed(field, wrong))
        assert caught.value.field == field


def test_a_document_that_is_no_object_is_called_that() -> None:
    with pytest.raises(Invalid) as caught:
        Task.from_json("[]")
    assert str(caught.value) == "invalid model: input should be an object, got an array"


def test_deep_python_documents_are_refused_without_recursion() -> None:
    deep: Any = {}
    for _ in range(50_000):
        deep = {"x": deep}
    for field in ("spec.labels", "spec.kind", "status", "metadata.id"):
        with pytest.raises(Invalid) as caught:
            Task.from_dict(changed(field, deep))
        assert caught.value.field.startswith(field)


def test_long_values_are_cut_in_the_message() -> None:
    error = refusal(changed("status.phase", "x" * 10_000_000))
    assert len(str(error)) < 300
    error = refusal(changed("spec.labels", {"k" * 100_000: 1}))
    assert len(str(error)) < 600
    assert len(error.field) == 200


BROKEN_IN_ORDER = [
    ("spec.slot", "..", "slot cannot be"),
    ("spec.timeout", 0, "timeout must be greater than zero"),
    ("spec.kind", {"wasm": {"module": ""}}, "wasm module path cannot be empty"),
    ("spec.backoff.firstMs", 0, "backoff first_ms"),
    (
        "spec.runnerSelector",
        {"matchExpressions": [{"key": "", "operator": "In"}]},
        "selector requirement key",
    ),
]


def test_the_first_rule_in_the_contracts_order_is_reported() -> None:
    document = example()
    # Later rules are broken first, so each step must displace what was reported before.
    for path, value, message in reversed(BROKEN_IN_ORDER):
        *parents, last = path.split(".")
        holder = document
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
        assert message in str(refusal(document))
    # The task's own id is an identity that stands before the slot; a wrong type comes before any rule.
    document["metadata"]["id"] = ""
    assert str(refusal(document)) == "invalid model: task_id must not be empty"
    document["spec"]["admission"] = 5
    assert refusal(document).field == "spec.admission"


def test_constructors_raise_model_errors_with_wire_names() -> None:
    with pytest.raises(Invalid) as caught:
        BackoffPolicy(first_ms=-1)
    assert caught.value.field == "firstMs"
    with pytest.raises(Invalid) as caught:
        BackoffPolicy(first_ms=10, max_ms=9)
    assert caught.value.field == "maxMs"
    with pytest.raises(Invalid) as caught:
        ObjectMeta(id="..", resource_version=1, created_at=1, updated_at=1)  # type: ignore[arg-type]
    assert (caught.value.field, str(caught.value)) == ("id", "invalid model: task_id cannot be '.' or '..'")
    with pytest.raises(Invalid) as caught:
        TaskStatus(phase="running", attempt=True)  # type: ignore[arg-type]
    assert caught.value.field == "attempt"


def test_a_misspelt_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="firstMs"):
        BackoffPolicy(firstMs=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no_such"):
        BackoffPolicy().replace(no_such=5)


def test_pydantics_entry_points_keep_the_error_contract() -> None:
    calls: list[Callable[[], object]] = [
        lambda: TaskSpec.model_validate({}),
        lambda: TaskSpec.model_validate_json("{"),
        lambda: BackoffPolicy.model_validate_strings({"jitter": "no"}),
        lambda: BackoffPolicy().model_copy(update={"first_ms": 0}),
        lambda: TaskQuery(limit=0),
    ]
    for call in calls:
        # pydantic's ValidationError is a ValueError too, but no Invalid.
        with pytest.raises(Invalid) as caught:
            call()
        assert caught.value.__suppress_context__


def test_model_validate_takes_names_instances_and_by_name() -> None:
    policy = BackoffPolicy(first_ms=5)
    assert BackoffPolicy.model_validate(policy) is policy
    named = {"jitter": "full", "first_ms": 5, "max_ms": 30000, "factor": 2}
    assert BackoffPolicy.model_validate(named) == policy
    assert BackoffPolicy.model_validate_json(json.dumps(named), by_name=True) == policy


def test_values_cannot_be_changed() -> None:
    task = Task.from_json(EXAMPLE)
    with pytest.raises(AttributeError, match="replace"):
        task.spec = task.spec  # type: ignore[misc]
    with pytest.raises(AttributeError):
        task.extra = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        del task.spec
    assert task.to_json() == EXAMPLE


def test_errors_carry_their_kind_and_survive_pickling() -> None:
    error = refusal(changed("spec.timeout", 0))
    assert isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.field) == (Invalid, str(error), "spec.timeout")
    assert not issubclass(UnknownTaskPhase, Invalid)


def test_embedded_is_refused_only_when_submitted() -> None:
    spec = TaskSpec(slot=Slot("a"), kind=Embedded(), timeout=Timeout(1))
    with pytest.raises(Invalid) as caught:
        spec.validate()
    assert caught.value.field == "kind"
    assert str(caught.value) == (
        "invalid model: TaskKind::Embedded cannot be submitted via runner; use submit_with_task"
    )
    spec.replace(kind=Subprocess.command("ls")).validate()


@given(tasks)
def test_values_are_equal_hashable_picklable_and_copyable(document: dict[str, Any]) -> None:
    task = Task.from_json(compact(document))
    for twin in (
        Task.from_dict(document),
        pickle.loads(pickle.dumps(task)),
        copy.copy(task),
        copy.deepcopy(task),
        task.model_copy(),
        task.replace(),
        Task(metadata=task.metadata, status=task.status, spec=task.spec),
    ):
        assert isinstance(twin, Value)
        assert twin == task
        assert hash(twin) == hash(task)
        assert twin.to_json() == task.to_json()
    assert task != task.replace(status=task.status.replace(attempt=task.status.attempt ^ 1))
