"""The four kinds, scripts and environments."""

import base64
import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import compact, envs, kinds, texts

from solti_store.model import (
    MAX_SCRIPT_BODY_BYTES,
    TASK_KINDS,
    Command,
    Container,
    CustomRuntime,
    Embedded,
    Invalid,
    KeyValue,
    RunnerEnv,
    Runtime,
    Script,
    Subprocess,
    SubprocessSpec,
    TaskEnv,
    TaskSpec,
    Wasm,
    merge_env,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def encoded(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def script(body: Any, runtime: Any = "bash") -> str:
    return json.dumps({"subprocess": {"mode": {"script": {"runtime": runtime, "body": body}}}})


def test_constructors_write_the_contracts_documents() -> None:
    assert Embedded().to_json() == '"embedded"'
    assert Subprocess.command("ls", "-la").to_json() == (
        '{"subprocess":{"mode":{"command":{"command":"ls","args":["-la"]}},"failOnNonZero":true}}'
    )
    ruby = Subprocess.script(
        Runtime.custom("ruby", "-e"), "p 1", "x", env={"B": "1", "A": "2"}, cwd="/", fail_on_non_zero=False
    )
    assert ruby.to_json() == (
        '{"subprocess":{"mode":{"script":{"runtime":{"custom":{"command":"ruby","flag":"-e"}},"body":"cCAx",'
        '"args":["x"]}},"env":[{"key":"B","value":"1"},{"key":"A","value":"2"}],"cwd":"/","failOnNonZero":false}}'
    )
    assert Subprocess.script(Runtime.BASH, "x").to_json() == (
        '{"subprocess":{"mode":{"script":{"runtime":"bash","body":"eA=="}},"failOnNonZero":true}}'
    )
    assert Wasm.module("a.wasm", "x", env={"K": "v"}).to_json() == (
        '{"wasm":{"module":"a.wasm","args":["x"],"env":[{"key":"K","value":"v"}]}}'
    )
    assert Container.image("img", "x", command=("sh",)).to_json() == (
        '{"container":{"image":"img","command":["sh"],"args":["x"]}}'
    )
    assert Container.image("img", command=()).to_json() == '{"container":{"image":"img","command":[]}}'
    assert Container.image("img").to_json() == '{"container":{"image":"img"}}'


VARIANTS: dict[str, type[Embedded] | type[Subprocess] | type[Wasm] | type[Container]] = {
    "embedded": Embedded,
    "subprocess": Subprocess,
    "wasm": Wasm,
    "container": Container,
}


@given(kinds())
def test_a_kind_alone_survives_byte_for_byte(document: Any) -> None:
    name = document if isinstance(document, str) else next(iter(document))
    kind = VARIANTS[name].from_json(compact(document))
    assert kind.to_json() == compact(document)
    assert kind.name == name
    assert TaskSpec.builder("a", kind, 1).build().to_dict()["kind"] == document


def test_kind_names() -> None:
    assert TASK_KINDS == ("embedded", "subprocess", "wasm", "container")
    assert (Embedded.name, Subprocess.name, Wasm.name, Container.name) == TASK_KINDS


def test_fail_on_non_zero_is_true_unless_said_otherwise() -> None:
    kind = Subprocess.from_json('{"subprocess":{"mode":{"command":{"command":"ls"}}}}')
    assert kind.spec.fail_on_non_zero is True
    assert kind.to_json() == '{"subprocess":{"mode":{"command":{"command":"ls"}},"failOnNonZero":true}}'


@pytest.mark.parametrize("blank", ["", " ", "\t\n", "\u2003"])
def test_blank_programs_are_refused(blank: str) -> None:
    cases: list[tuple[Callable[[], object], str, str]] = [
        (lambda: Subprocess.command(blank), "subprocess command cannot be empty", "command"),
        (lambda: Wasm.module(blank), "wasm module path cannot be empty", "module"),
        (lambda: Container.image(blank), "container image cannot be empty", "image"),
        (lambda: Runtime.custom(blank, "-e"), "custom runtime command cannot be empty", "command"),
        (lambda: Runtime.custom("ruby", blank), "custom runtime flag cannot be empty", "flag"),
    ]
    for call, message, field in cases:
        with pytest.raises(Invalid) as caught:
            call()
        assert (str(caught.value), caught.value.field) == (f"invalid model: {message}", field)


def test_a_rule_of_a_kind_names_the_path() -> None:
    spec = TaskSpec.builder("a", Embedded(), 1).build().to_dict()
    for kind, field in [
        ({"subprocess": {"mode": {"command": {"command": " "}}}}, "kind.subprocess.mode.command.command"),
        (
            {"subprocess": {"mode": {"script": {"runtime": "bash", "body": ""}}}},
            "kind.subprocess.mode.script.body",
        ),
        ({"container": {"image": ""}}, "kind.container.image"),
    ]:
        with pytest.raises(Invalid, match="cannot be empty") as caught:
            TaskSpec.from_dict(spec | {"kind": kind})
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("runtime", "prefix", "wire"),
    [
        (Runtime.BASH, ("bash", "-c"), '"bash"'),
        (Runtime.PYTHON, ("python3", "-c"), '"python"'),
        (Runtime.NODE, ("node", "-e"), '"node"'),
        (Runtime.custom("ruby", "-e"), ("ruby", "-e"), '{"custom":{"command":"ruby","flag":"-e"}}'),
    ],
    ids=["bash", "python", "node", "custom"],
)
def test_runtimes(runtime: Runtime | CustomRuntime, prefix: tuple[str, str], wire: str) -> None:
    made = Script.of(runtime, "x")
    assert made.runtime.argv_prefix == prefix
    assert made.to_json() == f'{{"runtime":{wire},"body":"eA=="}}'
    assert Script.from_json(made.to_json()) == made
    assert Script.from_dict(made.to_dict()) == made
    assert type(Script.from_json(made.to_json()).runtime) is type(runtime)
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("runtime", "field"),
    [
        ("perl", ""),
        ("custom", ""),
        ("Bash", ""),
        (None, ""),
        (5, ""),
        ([], ""),
        ({}, ".custom"),
        ({"bash": None}, ".custom"),
        ({"custom": None}, ".custom"),
        ({"custom": {"command": "a"}}, ".custom.flag"),
        ({"custom": {"command": "a", "flag": "b"}, "x": 1}, ".x"),
        ({"custom": {"command": "", "flag": "b"}}, ".custom.command"),
    ],
    ids=str,
)
def test_no_other_runtimes(runtime: Any, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        Subprocess.from_json(script("YQ==", runtime))
    assert caught.value.field == "subprocess.mode.script.runtime" + field


@given(st.text(min_size=1))
def test_script_text_survives(text: str) -> None:
    kind = Subprocess.script(Runtime.BASH, text)
    again = Subprocess.from_json(kind.to_json())
    assert isinstance(again.spec.mode, Script)
    assert again.spec.mode.text == text
    assert again.spec.mode.body == encoded(text)


BODY_RULES = [
    ("", "script body cannot be empty"),
    ("YQ", "invalid base64 body: "),
    ("YQ=", "invalid base64 body: "),
    ("YQ===", "invalid base64 body: "),
    ("YQ====", "invalid base64 body: "),
    ("YWI==", "invalid base64 body: "),
    ("YWJj=", "invalid base64 body: "),
    ("YWJj====", "invalid base64 body: "),
    ("=", "invalid base64 body: "),
    ("====", "invalid base64 body: "),
    ("A", "invalid base64 body: "),
    ("Y===", "invalid base64 body: "),
    ("YQ==\n", "invalid base64 body: "),
    (" YQ==", "invalid base64 body: "),
    ("YW\nJj", "invalid base64 body: "),
    ("YQ==YQ==", "invalid base64 body: "),
    ("YQ=Q", "invalid base64 body: "),
    ("_-8=", "invalid base64 body: "),  # the URL alphabet
    ("YR==", "invalid base64 body: "),  # an unused bit is set
    ("YWJ=", "invalid base64 body: "),
    ("é", "invalid base64 body: "),
    ("YQ==\0", "invalid base64 body: "),
    (encoded(b"\xff"), "script body is not valid UTF-8: "),
    (encoded(b"a\xed\xa0\x80"), "script body is not valid UTF-8: "),
]


@pytest.mark.parametrize(("body", "message"), BODY_RULES)
def test_script_body_rules(body: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        Subprocess.from_json(script(body))
    assert str(caught.value).startswith(f"invalid model: {message}")
    assert caught.value.field == "subprocess.mode.script.body"


@given(st.binary(min_size=1, max_size=8), st.data())
def test_only_one_text_is_the_base64_of_a_body(data: bytes, draw: st.DataObject) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=- "
    body = encoded(data)
    place = draw.draw(st.integers(0, len(body) - 1))
    body = body[:place] + draw.draw(st.sampled_from(alphabet)) + body[place + 1 :]
    try:
        text = Script(runtime=Runtime.BASH, body=body).text
    except Invalid:
        return
    assert encoded(text) == body


def test_script_body_size_is_that_of_the_decoded_text() -> None:
    for size in (MAX_SCRIPT_BODY_BYTES - 1, MAX_SCRIPT_BODY_BYTES):
        kind = Subprocess.script(Runtime.BASH, "x" * size)
        assert Subprocess.from_json(kind.to_json()) == kind
    size = MAX_SCRIPT_BODY_BYTES + 1
    message = f"invalid model: script body is {size} bytes decoded, maximum allowed is 2097152"
    calls: list[Callable[[], object]] = [
        lambda: Subprocess.script(Runtime.BASH, "x" * size),
        lambda: Subprocess.from_json(script(encoded(b"x" * size))),
        # The size is found before the encoding, which would be slow to refuse first.
        lambda: Subprocess.from_json(script(encoded(b"\xff" * size))),
    ]
    for call in calls:
        with pytest.raises(Invalid) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize("value", [None, 5, ["YQ=="], {}])
def test_script_body_is_text(value: Any) -> None:
    with pytest.raises(Invalid) as caught:
        Subprocess.from_json(script(value))
    assert caught.value.field == "subprocess.mode.script.body"
    with pytest.raises(Invalid):
        Script(runtime=Runtime.BASH, body=b"YQ==")  # type: ignore[arg-type]


def test_script_text_from_python_must_be_storable() -> None:
    with pytest.raises(Invalid, match="lone surrogate") as caught:
        Subprocess.script(Runtime.BASH, "echo \ud800")
    assert caught.value.field == "body"
    with pytest.raises(Invalid, match="NUL") as caught:
        Subprocess.script(Runtime.BASH, "echo", "a\0")
    assert caught.value.field == "args.0"


def test_modes_are_values_in_python() -> None:
    for mode in (Command(command="ls"), Script.of(Runtime.NODE, "1")):
        spec = SubprocessSpec(mode=mode)
        assert spec.mode is mode
        assert SubprocessSpec.from_json(spec.to_json()) == spec
    with pytest.raises(Invalid) as caught:
        SubprocessSpec(mode=CustomRuntime(command="a", flag="b"))  # type: ignore[arg-type]
    assert caught.value.field == "mode"


def test_a_kind_of_another_name_does_not_parse() -> None:
    for text in ('{"wasm":{"module":"m"}}', '"embedded"', '{"subprocess":{"mode":5},"wasm":{}}'):
        with pytest.raises(Invalid):
            Subprocess.from_json(text)
    for text in ('"other"', '{"embedded":0}', "null", "[]", "5"):
        with pytest.raises(Invalid):
            Embedded.from_json(text)


@given(st.lists(st.tuples(texts, texts)), texts)
def test_env_get_is_the_last_match(pairs: list[tuple[str, str]], key: str) -> None:
    env = TaskEnv(pairs)
    assert [(variable.key, variable.value) for variable in env] == pairs
    for wanted in [key, *(pair[0] for pair in pairs)]:
        assert env.get(wanted) == dict(pairs).get(wanted)


@given(envs, envs)
def test_merge_env(task: list[dict[str, str]], runner: list[dict[str, str]]) -> None:
    merged = merge_env(TaskEnv(map(_key_value, task)), RunnerEnv(map(_key_value, runner)))
    assert list(merged) == sorted({variable["key"] for variable in task + runner})
    for key, value in merged.items():
        values = [[v["value"] for v in side if v["key"] == key] for side in (task, runner)]
        assert value == (values[1] or values[0])[-1]


def _key_value(variable: dict[str, str]) -> KeyValue:
    return KeyValue.from_dict(variable)


def test_merge_env_by_example() -> None:
    task = TaskEnv([("B", "1"), ("A", "1"), ("A", "2"), ("C", "task")])
    runner = RunnerEnv([("C", "1"), ("C", "2"), ("PATH", "/bin")])
    assert list(merge_env(task, runner).items()) == [("A", "2"), ("B", "1"), ("C", "2"), ("PATH", "/bin")]
    assert merge_env(TaskEnv(), RunnerEnv()) == {}


def test_env_is_an_immutable_sequence() -> None:
    env = TaskEnv({"A": "1"})
    assert env == TaskEnv([("A", "1")]) == TaskEnv([KeyValue(key="A", value="1")]) == TaskEnv(env)
    assert (len(env), env[0].key) == (1, "A")
    assert hash(env) == hash(TaskEnv(env))
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert (twin, type(twin)) == (env, TaskEnv)
    assert repr(env) == "TaskEnv((KeyValue(key='A', value='1'),))"
    assert type(Wasm.module("m", env={"A": "1"}).spec.env) is TaskEnv
    with pytest.raises(Invalid) as caught:
        TaskEnv({"A": "\0"})
    assert caught.value.field == "value"
