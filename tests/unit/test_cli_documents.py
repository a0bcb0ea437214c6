"""`submit --file`: task documents in JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from solti_store.cli import documents
from solti_store.cli.exits import UsageError

SPEC: dict[str, Any] = {
    "slot": "s",
    "kind": {"subprocess": {"mode": {"command": {"command": "true"}}, "failOnNonZero": True}},
    "timeout": 5000,
    "restart": {"type": "never"},
    "backoff": {"jitter": "full", "firstMs": 1000, "maxMs": 30000, "factor": 2.0},
    "admission": "dropIfRunning",
}
TASK = {
    "metadata": {"id": "t", "resourceVersion": 3, "createdAt": 1, "updatedAt": 2},
    "status": {"phase": "failed", "attempt": 1},
    "spec": SPEC,
}


def ids(data: str | bytes) -> tuple[list[str | None], bool]:
    found, is_single = documents.parse(data.encode() if isinstance(data, str) else data, "-")
    assert all(spec.to_dict() == SPEC for _, spec in found)
    return [task_id for task_id, _ in found], is_single


def test_a_document_is_a_spec_or_a_spec_with_an_id_or_a_whole_task() -> None:
    assert ids(json.dumps(SPEC)) == ([None], True)
    assert ids(json.dumps({"id": "a", "spec": SPEC})) == (["a"], True)
    assert ids(json.dumps({"spec": SPEC})) == ([None], True)
    assert ids(json.dumps(TASK)) == (["t"], True)


def test_many_documents_are_an_array_or_follow_each_other() -> None:
    one, two = {"id": "a", "spec": SPEC}, TASK
    assert ids(json.dumps([one, two, SPEC])) == (["a", "t", None], False)
    assert ids(json.dumps(one) + "\n" + json.dumps(two) + "\n") == (["a", "t"], False)
    assert ids(json.dumps(one, indent=2) + json.dumps(two, indent=2)) == (["a", "t"], False)
    assert ids(json.dumps([one])) == (["a"], False)
    assert ids("[]") == ([], False)


def test_a_byte_order_mark_is_no_part_of_the_document() -> None:
    assert ids(b"\xef\xbb\xbf" + json.dumps(SPEC).encode()) == ([None], True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "stdin: there is no document in it"),
        (b" \n", "stdin: there is no document in it"),
        (b"\xff", "stdin: not UTF-8 at byte 0"),
        (b'{"a":\n}', "stdin: not valid JSON at line 2, column 1: expecting value"),
        (b'{"a":1}\n{', "stdin: not valid JSON at line 2"),
        (b"7", "stdin: expected a JSON object"),
        (b'[{"id":"a"}, 7]', "stdin, item 1: invalid model: slot: the field is required"),
        (b'{"id":7,"spec":{}}', "stdin: expected a string as the id"),
        (b'{"id":"a","spec":[]}', "stdin: expected an object at spec"),
        (b"[" * 100_000, "stdin: not a task document: a number is too long or the nesting too deep"),
        (b'{"a":' + b"9" * 5000 + b"}", "stdin: not a task document: a number is too long"),
        (
            json.dumps({"id": "a b", "spec": SPEC}).encode(),
            "stdin: invalid model: task_id contains forbidden byte 0x20",
        ),
        (json.dumps([SPEC, SPEC | {"timeout": 0}]).encode(), "stdin, item 2: invalid model: timeout must be greater"),
        (json.dumps(SPEC | {"timeout": 5000.0}).encode(), "stdin: invalid model: timeout:"),
        (
            json.dumps(SPEC | {"kind": "embedded"}).encode(),
            "stdin: invalid model: TaskKind::Embedded cannot be submitted",
        ),
        (json.dumps(SPEC | {"slot": "\ud800"}).encode(), "stdin: invalid model: slot"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        documents.parse(data, "-")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_file_is_named_when_it_is_at_fault() -> None:
    with pytest.raises(UsageError, match=r"^tasks\.json: there is no document in it"):
        documents.parse(b"", "tasks.json")
    with pytest.raises(UsageError, match=r"^--file: cannot read '/no/such/file': No such file"):
        documents.read_bytes("/no/such/file", "--file")


def test_new_ids_differ_and_sort_by_time() -> None:
    many = [documents.new_id() for _ in range(1000)]
    assert len(set(many)) == 1000
    assert [text[:18] for text in many] == sorted(text[:18] for text in many)
