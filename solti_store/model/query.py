"""What to list, and a page of it."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from solti_store.model._base import Value, is_none
from solti_store.model._problems import BrokenRule, shown
from solti_store.model.kind import KindName
from solti_store.model.phase import ACTIVE_PHASES, TERMINAL_PHASES, TaskPhase
from solti_store.model.resource import Task
from solti_store.model.scalars import DEFAULT_LIMIT, MAX_LIMIT, U64, Flag, Slot, Text

__all__ = ["TaskPage", "TaskQuery"]


def _check_limit(limit: int) -> int:
    if limit < 1:
        raise BrokenRule(f"limit must be at least 1, got {shown(limit)}")
    return min(limit, MAX_LIMIT)


class TaskQuery(Value):
    """Which tasks to list; a task must meet every filter that is set.

    Attributes:
        phases: Any of these phases; empty means all.
        slot: Only this slot.
        kind: Only this kind.
        limit: The most items of one page, at least 1; more than `MAX_LIMIT` is taken as `MAX_LIMIT`.
        cursor: Where to go on: the `next_cursor` of the page before.
        with_total: Whether to count all the tasks that meet the filters, which costs a scan.
    """

    phases: frozenset[TaskPhase] = frozenset()
    slot: Slot | None = None
    kind: KindName | None = None
    limit: Annotated[int, Field(strict=True), AfterValidator(_check_limit)] = DEFAULT_LIMIT
    cursor: Text | None = None
    with_total: Flag = False

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
        next_cursor: The cursor of the next page, None on the last.
    """

    items: tuple[Task, ...] = ()
    total: U64 | None = Field(default=None, exclude_if=is_none)
    next_cursor: Text | None = Field(default=None, exclude_if=is_none)

    def __iter__(self) -> Iterator[Task]:  # type: ignore[override]  # BaseModel iterates over its fields
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
