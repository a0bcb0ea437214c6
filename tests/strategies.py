"""Hypothesis strategies for contract documents, built from the contract and not from the package.

A document is a plain dict in the contract's field order, holding only the contract's fields and none
that the contract omits. `compact` writes it as the contract does.
"""

import base64
import json
import re
from typing import Any

from hypothesis import strategies as st

Document = dict[str, Any]

# The contract's own example.
EXAMPLE = (
    '{"metadata":{"id":"subprocess-build-1","resourceVersion":3,"createdAt":1712750400000,'
    '"updatedAt":1712750401000},"status":{"phase":"running","attempt":1},"spec":{"slot":"build",'
    '"kind":"embedded","timeout":5000,"restart":{"type":"never"},"backoff":{"jitter":"full",'
    '"firstMs":1000,"maxMs":30000,"factor":2.0},"admission":"dropIfRunning"}}'
)


def example() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(EXAMPLE)
    return document


def compact(document: Any) -> str:
    """The document as the contract's writer has it: no white space, and no plus in an exponent."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return re.sub(r'(?<="factor":)([0-9.]+e)\+', r"\1", text)


def optional(document: Document, **fields: Any) -> Document:
    """The document with those fields added that are not None."""
    return document | {name: value for name, value in fields.items() if value is not None}


def u(bits: int, least: int = 0) -> st.SearchStrategy[int]:
    return st.sampled_from([least, 2**bits - 1]) | st.integers(least, 2**bits - 1)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Document]:
    """Those fields in that order (`st.fixed_dictionaries` shuffles them)."""
    return st.tuples(*fields.values()).map(lambda values: dict(zip(fields, values, strict=True)))


NAME_CHARS = "abcXYZ019._-"


def names(max_len: int) -> st.SearchStrategy[str]:
    return st.text(NAME_CHARS, min_size=1, max_size=max_len).filter(lambda name: name not in {".", ".."})


# Everything PostgreSQL can store, with the characters that JSON writers disagree about up front.
texts = st.text(
    st.sampled_from('"\\/\b\f\n\r\t\x01\x1f\x7f\u2028é😀')
    | st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=12,
)
solid_texts = texts.filter(lambda text: bool(text.strip()))
lists = st.lists(texts, min_size=1, max_size=3)
i32 = st.sampled_from([-(2**31), 2**31 - 1, 0, 1]) | st.integers(-(2**31), 2**31 - 1)
maybe = st.none()
phases = st.sampled_from(["pending", "running", "succeeded", "failed", "timeout", "canceled", "exhausted"])


@st.composite
def label_maps(draw: st.DrawFn, min_size: int = 1) -> Document:
    labels = draw(st.dictionaries(texts, texts, min_size=min_size, max_size=4))
    return {key: labels[key] for key in sorted(labels, key=str.encode)}


envs = st.lists(record(key=texts, value=texts), min_size=1, max_size=3)


@st.composite
def modes(draw: st.DrawFn) -> Document:
    args = draw(maybe | lists)
    if draw(st.booleans()):
        return {"command": optional({"command": draw(solid_texts)}, args=args)}
    runtime = draw(
        st.sampled_from(["bash", "python", "node"]) | record(custom=record(command=solid_texts, flag=solid_texts))
    )
    body = base64.b64encode(draw(st.text(min_size=1, max_size=20)).encode()).decode()
    return {"script": optional({"runtime": runtime, "body": body}, args=args)}


@st.composite
def kinds(draw: st.DrawFn) -> Any:
    tag = draw(st.sampled_from(["embedded", "subprocess", "wasm", "container"]))
    args, env = draw(maybe | lists), draw(maybe | envs)
    if tag == "subprocess":
        spec = optional({"mode": draw(modes())}, env=env, cwd=draw(maybe | texts))
        return {tag: spec | {"failOnNonZero": draw(st.booleans())}}
    if tag == "wasm":
        return {tag: optional({"module": draw(solid_texts)}, args=args, env=env)}
    if tag == "container":
        command = draw(maybe | st.lists(texts, max_size=2))
        return {tag: optional({"image": draw(solid_texts)}, command=command, args=args, env=env)}
    return tag


restarts = st.sampled_from([{"type": "never"}, {"type": "onFailure"}, {"type": "always"}]) | record(
    type=st.just("always"), intervalMs=u(64)
)


@st.composite
def backoffs(draw: st.DrawFn) -> Document:
    first = draw(u(64, 1))
    return {
        "jitter": draw(st.sampled_from(["full", "none", "equal", "decorrelated"])),
        "firstMs": first,
        "maxMs": draw(st.integers(first, 2**64 - 1)),
        "factor": draw(st.sampled_from([1.0, 2.0, 2.5, 1e15, 1e16, 1e300]) | st.floats(1.0, 1.7e308)),
    }


@st.composite
def requirements(draw: st.DrawFn) -> Document:
    key = draw(texts.filter(bool))
    operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
    values = draw(lists) if operator.endswith("In") else None
    return optional({"key": key, "operator": operator}, values=values)


@st.composite
def selectors(draw: st.DrawFn) -> Document:
    expressions = draw(maybe | st.lists(requirements(), min_size=1, max_size=3))
    return optional({}, matchLabels=draw(maybe | label_maps()), matchExpressions=expressions)


@st.composite
def specs(draw: st.DrawFn) -> Document:
    document = {
        "slot": draw(names(64)),
        "kind": draw(kinds()),
        "timeout": draw(u(64, 1)),
        "restart": draw(restarts),
        "backoff": draw(backoffs()),
        "admission": draw(st.sampled_from(["dropIfRunning", "replace", "queue"])),
    }
    return optional(document, runnerSelector=draw(maybe | selectors()), labels=draw(maybe | label_maps()))


@st.composite
def statuses(draw: st.DrawFn) -> Document:
    document = {"phase": draw(phases), "attempt": draw(u(32))}
    return optional(document, exitCode=draw(maybe | i32), error=draw(maybe | texts))


@st.composite
def runs(draw: st.DrawFn) -> Document:
    document = {"attempt": draw(u(32, 1)), "phase": draw(phases), "startedAt": draw(u(64))}
    return optional(document, finishedAt=draw(maybe | u(64)), error=draw(maybe | texts), exitCode=draw(maybe | i32))


metadata = record(id=names(256), resourceVersion=u(64), createdAt=u(64), updatedAt=u(64))
tasks = record(metadata=metadata, status=statuses(), spec=specs())
