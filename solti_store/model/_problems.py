"""From what pydantic reports to one `Invalid` error that names one field.

pydantic collects every error of a document in field order. The contract wants one, in its own order:
wrong shapes and types before broken rules, and the rules in the order the contract lists them.
"""

from enum import IntEnum
from typing import Any

from pydantic import ValidationError

from solti_store.errors import Invalid, ModelError
from solti_store.model._json_path import path_at

__all__ = ["PREFIX", "TAG_MARK", "BrokenRule", "Rank", "invalid", "shown", "translate"]

PREFIX = "invalid model: "

# pydantic puts the tag of a tagged union into an error's location; the document has no such level.
# Tags carry this mark so that a label of the same name is not mistaken for one.
TAG_MARK = "\0tag:"

_SHOWN_CHARS = 40
_FIELD_CHARS = 200


class Rank(IntEnum):
    """Which of several errors is reported: the lowest, and of equals the first in the document."""

    STRUCTURE = 0
    IDENTITY = 1
    TIMEOUT = 2
    KIND = 3
    BACKOFF = 4
    SELECTOR = 5


class BrokenRule(ValueError):  # noqa: N818 - internal; a caller sees `Invalid`
    """What a validator raises inside pydantic, to be translated at the edge.

    Args:
        message: The rule, without the common prefix.
        rank: Where the rule stands in the contract's order.
        at: Path below the value under validation, as wire names.
    """

    def __init__(self, message: str, rank: Rank = Rank.STRUCTURE, at: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.at = at


def invalid(message: str, field: str = "") -> Invalid:
    """The error of one broken rule; the caller raises it."""
    return Invalid(PREFIX + message, field=field)


def printable(text: str) -> str:
    """The text as it may stand in a message: no control characters, no lone surrogates."""
    return text if text.isprintable() else ascii(text)[1:-1]


def shown(value: object) -> str:
    """A short, printable picture of a value: scalars cut off, containers by their kind only.

    Containers are not rendered because they may be megabytes, or nested deeper than `repr` can follow.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        cut = value[:_SHOWN_CHARS]
        return f'"{printable(cut)}{"…" if len(value) > _SHOWN_CHARS else ""}"'
    if isinstance(value, int):
        # str() of an int is quadratic, and refused past 4300 digits.
        return str(int(value)) if value.bit_length() <= 4 * _SHOWN_CHARS else "a huge integer"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    return f"a {type(value).__name__}"


def translate(error: ValidationError, document: object = None) -> ModelError:
    """Choose the error to report and word it.

    Args:
        error: What pydantic found.
        document: The JSON text, when there is one: it tells where invalid JSON breaks off.
    """
    problem = min(error.errors(include_url=False), key=_rank)
    cause = problem.get("ctx", {}).get("error")
    steps = [str(step) for step in problem["loc"] if not _is_internal(step)]
    if isinstance(cause, BrokenRule | ModelError):
        at = cause.at if isinstance(cause, BrokenRule) else cause.field
        message = str(cause).removeprefix(PREFIX)
        return Invalid(PREFIX + message, field=_join([*steps, at] if at else steps))
    if problem["type"] == "json_invalid":
        steps = path_at(document, str(cause))
    field = _join(steps)
    subject = f"{printable(field)}: " if field else ""
    return Invalid(f"{PREFIX}{subject}{_reason(problem)}", field=field)


def _rank(problem: Any) -> int:
    cause = problem.get("ctx", {}).get("error")
    return int(cause.rank) if isinstance(cause, BrokenRule) else Rank.STRUCTURE


def _is_internal(step: object) -> bool:
    return step == "[key]" or (isinstance(step, str) and step.startswith(TAG_MARK))


def _join(steps: list[str]) -> str:
    field = ".".join(steps)
    return field if len(field) <= _FIELD_CHARS else field[: _FIELD_CHARS - 1] + "…"


def _reason(problem: Any) -> str:
    match problem["type"]:
        case "missing":
            return "the field is required"
        case "string_pattern_mismatch":
            return f"must not contain NUL, which PostgreSQL cannot store, got {shown(problem['input'])}"
        case "string_unicode":
            return f"must not contain a lone surrogate, got {shown(problem['input'])}"
        case "json_invalid":
            return f"not valid JSON: {problem['ctx']['error']}"
        case "extra_forbidden":
            return "no such variant, or more than one"
    message = problem["msg"]
    return f"{message[:1].lower()}{message[1:]}, got {shown(problem['input'])}"
