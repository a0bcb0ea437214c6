"""From what pydantic reports to one `Invalid` error that names one field.

pydantic collects every error of a document in field order. The contract wants one, in its own order:
wrong shapes and types before broken rules, and the rules in the order the contract lists them.
"""

from collections.abc import Mapping
from enum import IntEnum

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from solti_store.errors import Invalid, ModelError
from solti_store.model._json_path import Place

__all__ = ["PREFIX", "TAG_MARK", "BrokenRule", "Rank", "invalid", "quoted", "shown", "translate"]

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


class BrokenRule(ValueError):
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


def quoted(text: str) -> str:
    """What to call a text that no text form knows: trimmed, printable, cut off."""
    return printable(text.strip()[:_SHOWN_CHARS])


def shown(value: object) -> str:
    """A short, printable picture of a value: scalars cut off, containers by their kind only.

    Containers are not rendered because they may be megabytes, or nested deeper than `repr` can follow.
    """
    match value:
        case None:
            picture = "null"
        case bool():
            picture = "true" if value else "false"
        case str():
            picture = f'"{printable(value[:_SHOWN_CHARS])}{"…" if len(value) > _SHOWN_CHARS else ""}"'
        case int():
            # str() of an int is quadratic, and refused past 4300 digits.
            picture = str(int(value)) if value.bit_length() <= 4 * _SHOWN_CHARS else "a huge integer"
        case float():
            picture = repr(value)
        case dict():
            picture = "an object"
        case list() | tuple():
            picture = "an array"
        case _:
            picture = f"a {type(value).__name__}"
    return picture


def translate(
    error: ValidationError, document: object = None, wire_names: Mapping[str, str] | None = None
) -> ModelError:
    """Choose the error to report and word it.

    Args:
        error: What pydantic found.
        document: The JSON text, when there is one: it tells where invalid JSON breaks off.
        wire_names: For values given by Python name: what JSON calls the fields.
    """
    problem = min(error.errors(include_url=False), key=_rank)
    cause = problem.get("ctx", {}).get("error")
    steps = [str(step) for step in problem["loc"] if not _is_internal(step)]
    if steps and wire_names:
        steps[0] = wire_names.get(steps[0], steps[0])
    if isinstance(cause, BrokenRule | ModelError):
        at = cause.at if isinstance(cause, BrokenRule) else cause.field
        message = str(cause).removeprefix(PREFIX)
        return Invalid(PREFIX + message, field=_join([*steps, at] if at else steps))
    reason = _reason(problem)
    if not steps and isinstance(document, str | bytes | bytearray):
        # The text as a whole was refused; say where in it.
        place = Place.of(document, str(cause))
        steps = place.path
        if place.is_surrogate:
            reason = "must not contain a lone surrogate"
    field = _join(steps)
    subject = f"{printable(field)}: " if field else ""
    return Invalid(f"{PREFIX}{subject}{reason}", field=field)


def _rank(problem: ErrorDetails) -> int:
    cause = problem.get("ctx", {}).get("error")
    return int(cause.rank) if isinstance(cause, BrokenRule) else Rank.STRUCTURE


def _is_internal(step: object) -> bool:
    return step == "[key]" or (isinstance(step, str) and step.startswith(TAG_MARK))


def _join(steps: list[str]) -> str:
    field = ".".join(steps)
    return field if len(field) <= _FIELD_CHARS else field[: _FIELD_CHARS - 1] + "…"


def _reason(problem: ErrorDetails) -> str:
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
    if message[1:2].islower():
        message = message[0].lower() + message[1:]
    return f"{message}, got {shown(problem['input'])}"
