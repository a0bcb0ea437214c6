"""What to list, and a page of it."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator

from solti_store.model._base import Value, is_none
from solti_store.model._problems import BrokenRule, shown
from solti_store.model.kind import KindName
from solti_store.model.phase import ACTIVE_PHASES, TERMINAL_PHASES, TaskPhase
from solti_store.model.requirement import LabelRequirement, requirements_of
from solti_store.model.resource import Task
from solti_store.model.scalars import DEFAULT_LIMIT, MAX_LIMIT, U64, AgentId, Flag, Slot, Text, Timestamp
from solti_store.model.selector import RunnerSelector
from solti_store.model.selector_text import Selector

__all__ = ["MAX_REQUIREMENTS", "TaskOrder", "TaskPage", "TaskQuery"]

#: The most requirements of a query's selector. A statement may have 65,535 parameters, and its reader has a life.
MAX_REQUIREMENTS: Final = 100

_ALMOST_1_MS: Final = timedelta(microseconds=999)


class TaskOrder(StrEnum):
    """What a listing goes by."""

    CREATED = "created"
    UPDATED = "updated"


def _check_limit(limit: int) -> int:
    if limit < 1:
        raise BrokenRule(f"limit must be at least 1, got {shown(limit)}")
    return min(limit, MAX_LIMIT)


def _as_timestamp(moment: object) -> object:
    # Rounded up, though `Timestamp` rounds down: a period that begins within a millisecond begins with the next one.
    return Timestamp.from_datetime(moment + _ALMOST_1_MS) if isinstance(moment, datetime) else moment


def _check_moment(moment: Timestamp) -> Timestamp:
    moment.datetime  # noqa: B018 - raises for what lies past the year 9999
    return moment


def _as_selector(selector: object) -> Selector | RunnerSelector:
    match selector:
        case str():
            selector = Selector.parse(selector)
        case dict():
            selector = RunnerSelector.from_dict(selector)
    if not isinstance(selector, Selector | RunnerSelector):
        raise BrokenRule(f"selector must be one of labels, as text or structured, got {shown(selector)}")
    if (count := len(_requirements(selector))) > MAX_REQUIREMENTS:
        raise BrokenRule(f"selector must have at most {MAX_REQUIREMENTS} requirements, got {count}")
    return selector


def _requirements(selector: Selector | RunnerSelector) -> tuple[LabelRequirement, ...]:
    return selector.requirements if isinstance(selector, Selector) else requirements_of(selector)


def _as_document(selector: Selector | RunnerSelector) -> str | dict[str, Any]:
    return str(selector) if isinstance(selector, Selector) else selector.to_dict()


Moment = Annotated[Timestamp, BeforeValidator(_as_timestamp), AfterValidator(_check_moment)]


class TaskQuery(Value):
    """Which tasks to list, and in which order; a task must meet every filter that is set.

    Attributes:
        phases: Any of these phases; empty means all.
        slot: Only this slot.
        kind: Only this kind.
        agent: Only tasks that an agent of this name is running now.
        selector: Only tasks whose labels match: a `Selector` or its text, or a structured `LabelSelector`; at most
            `MAX_REQUIREMENTS` requirements.
        created_since: Only tasks created at this moment or later; an aware `datetime` is taken too, and rounded
            up to a millisecond.
        created_before: Only tasks created before this moment.
        updated_since: Only tasks changed last at this moment or later.
        updated_before: Only tasks changed last before this moment.
        order_by: By creation, or by the last change.
        descending: The latest first.
        limit: The most items of one page, at least 1; more than `MAX_LIMIT` is taken as `MAX_LIMIT`.
        cursor: Where to go on: the `next_cursor` of the page before, or the `prev_cursor` of the page after.
        with_total: Whether to count all the tasks that meet the filters, which costs a scan.
        with_estimate: Whether to guess how many there are, which does not.
        with_token: Whether to say where the change feed goes on from the page, without a gap and without a repeat.
    """

    phases: frozenset[TaskPhase] = frozenset()
    slot: Slot | None = None
    kind: KindName | None = None
    agent: AgentId | None = None
    selector: (
        Annotated[
            Selector | RunnerSelector,
            PlainValidator(_as_selector, json_schema_input_type=str | RunnerSelector),
            PlainSerializer(_as_document),
        ]
        | None
    ) = None
    created_since: Moment | None = None
    created_before: Moment | None = None
    updated_since: Moment | None = None
    updated_before: Moment | None = None
    order_by: TaskOrder = TaskOrder.CREATED
    descending: Flag = False
    limit: Annotated[int, Field(strict=True), AfterValidator(_check_limit)] = DEFAULT_LIMIT
    cursor: Text | None = None
    with_total: Flag = False
    with_estimate: Flag = False
    with_token: Flag = False

    @property
    def requirements(self) -> tuple[LabelRequirement, ...]:
        """The selector's requirements."""
        return () if self.selector is None else _requirements(self.selector)

    def with_active(self) -> Self:
        """The same query for active tasks: pending or running."""
        return self.replace(phases=ACTIVE_PHASES)

    def with_terminal(self) -> Self:
        """The same query for the five terminal phases."""
        return self.replace(phases=TERMINAL_PHASES)


class TaskPage(Value):
    """One page of a listing: its length and its iteration are those of its items.

    Attributes:
        items: The tasks, in the query's order.
        total: How many tasks meet the filters, None unless the query asked for it.
        estimated_total: About how many, None unless the query asked for it.
        next_cursor: The cursor of the next page, None on the last.
        prev_cursor: The cursor of the page before, None on the first.
        token: Where the change feed goes on from this page, None unless the query asked for it.
    """

    items: tuple[Task, ...] = ()
    total: U64 | None = Field(default=None, exclude_if=is_none)
    estimated_total: U64 | None = Field(default=None, exclude_if=is_none)
    next_cursor: Text | None = Field(default=None, exclude_if=is_none)
    prev_cursor: Text | None = Field(default=None, exclude_if=is_none)
    token: Text | None = Field(default=None, exclude_if=is_none)

    def __iter__(self) -> Iterator[Task]:  # type: ignore[override]  # BaseModel iterates over its fields
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
