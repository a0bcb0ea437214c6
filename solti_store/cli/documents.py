"""`submit --file`: task documents in JSON, one or many."""

from __future__ import annotations

import json
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solti_store.cli.exits import UsageError, message_of
from solti_store.errors import ModelError
from solti_store.model import TaskId, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["new_id", "parse", "read_bytes"]

_BLANK = " \t\r\n"


def new_id() -> str:
    """An id that is unique without asking anybody, and sorts by the time it was made."""
    return f"task-{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(5)}"


def read_bytes(source: str, option: str) -> bytes:
    """The content of a file, or of stdin for `-`.

    Raises:
        UsageError: The file cannot be read.
    """
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise UsageError(f"{option}: cannot read {source!r}: {error.strerror}") from None


def parse(data: bytes, source: str) -> tuple[list[tuple[str | None, TaskSpec]], bool]:
    """Read the tasks in a text: a document, an array of them, or several one after another (JSON lines).

    A document is a whole task as `get -o json` prints it, `{"id":…,"spec":{…}}`, or a spec alone.

    Args:
        data: UTF-8.
        source: How to call it in messages.

    Returns:
        The id, if there is one, and the spec of each; and whether it was a single document and no array.

    Raises:
        UsageError: The text is no JSON, or holds something else than tasks that may be submitted.
    """
    name = "stdin" if source == "-" else source
    found = list(_values(data, name))
    if not found:
        raise UsageError(f"{name}: there is no document in it")
    is_single = len(found) == 1 and not isinstance(found[0], list)
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    return [
        _task(document, name if is_single else f"{name}, item {index}") for index, document in enumerate(found, 1)
    ], is_single


def _values(data: bytes, name: str) -> Iterator[Any]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}") from None
    decoder = json.JSONDecoder()
    position = 0
    try:
        while True:
            while position < len(text) and text[position] in _BLANK:
                position += 1
            if position == len(text):
                return
            value, position = decoder.raw_decode(text, position)
            yield value
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{name}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg.lower()}"
        ) from None
    except (ValueError, RecursionError):
        # An integer of thousands of digits, or thousands of brackets.
        raise UsageError(f"{name}: not a task document: a number is too long or the nesting too deep") from None


def _task(document: object, name: str) -> tuple[str | None, TaskSpec]:
    if not isinstance(document, dict):
        raise UsageError(f"{name}: expected a JSON object")
    task_id: object = None
    spec: object = document
    if "spec" in document:
        spec = document["spec"]
        metadata = document.get("metadata")
        task_id = metadata.get("id") if isinstance(metadata, dict) else document.get("id")
    if not isinstance(spec, dict):
        raise UsageError(f"{name}: expected an object at spec")
    if not isinstance(task_id, str | None):
        raise UsageError(f"{name}: expected a string as the id")
    try:
        checked = TaskSpec.from_dict(spec)
        checked.validate()
        return None if task_id is None else TaskId(task_id), checked
    except ModelError as error:
        # Said here, because of many documents one is at fault.
        raise UsageError(f"{name}: {message_of(error)}") from None
