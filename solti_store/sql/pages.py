"""Statements that list: candidates in order, the page made of them, and how many there are.

Candidates are numbers of tasks that may meet a query, read in order from one index. `page` then looks at each of them
and keeps what meets every filter, so whatever a source says of a task, it cannot put a wrong one on a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sqlalchemy import BigInteger, ColumnElement, Text, bindparam, cast, column, func, literal_column, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY

from solti_store.sql import selectors
from solti_store.sql.driver import Prepared
from solti_store.sql.tables import agents, task_status, tasks
from solti_store.sql.types import Instant, array_param

if TYPE_CHECKING:
    from sqlalchemy import FromClause, Select

__all__ = ["Shape", "Walk", "estimate", "page", "scan", "total", "total_of", "walk"]

Walk: TypeAlias = Literal["created", "updated", "phases", "slot", "kind", "agent"]
"""An index to read candidates from: all tasks in one of the two orders, or those of a filter in order of creation."""

_agents_of_name = func.array(
    select(agents.c.seq).where(agents.c.id == bindparam("agent_name", type_=Text())).scalar_subquery(), type_=None
)
_after_at, _until_at = bindparam("after_at", type_=Instant), bindparam("until_at", type_=Instant)
_end_at = bindparam("end_at", type_=Instant)
_after_seq, _until_seq = bindparam("after_seq", type_=BigInteger()), bindparam("until_seq", type_=BigInteger())
_limit = bindparam("limit", type_=BigInteger())
_phases = array_param("phases", "text")
_wanted = func.unnest(_phases).table_valued(column("phase", Text), name="wanted").render_derived()
# Keeps a subquery apart: here the planner would join with a scan of a whole table, or walk through one in order.
_ONE_BY_ONE: Final[ColumnElement[int]] = literal_column("0")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a statement needs to know of a query.

    Attributes:
        filters: The filters that are set, but that of labels, by the names of their parameters.
        labels: The selector's shape.
        by_update: In the order of the last change, not of creation.
        descending: In descending order.
    """

    filters: frozenset[str]
    labels: selectors.Shape = ()
    by_update: bool = False
    descending: bool = False


_STATUS_FILTERS: Final = {
    "phases": task_status.c.phase == func.any(_phases),
    "agent_name": task_status.c.agent == func.any(_agents_of_name),
    "updated_since": task_status.c.updated_at >= bindparam("updated_since", type_=Instant),
    "updated_before": task_status.c.updated_at < bindparam("updated_before", type_=Instant),
}
_TASK_FILTERS: Final = {
    "task_slot": tasks.c.slot == bindparam("task_slot", type_=Text()),
    "task_kind": tasks.c.kind == bindparam("task_kind", type_=Text()),
    "created_since": tasks.c.created_at >= bindparam("created_since", type_=Instant),
    "created_before": tasks.c.created_at < bindparam("created_before", type_=Instant),
}


def _of_status(filters: frozenset[str]) -> list[ColumnElement[bool]]:
    return [clause for name, clause in _STATUS_FILTERS.items() if name in filters]


def _of_task(shape: Shape) -> list[ColumnElement[bool]]:
    labels = [selectors.matching(shape.labels, tasks.c.labels)] if shape.labels else []
    return [clause for name, clause in _TASK_FILTERS.items() if name in shape.filters] + labels


@lru_cache(maxsize=512)
def page(shape: Shape) -> Prepared:
    """Those of the `candidates` past `after_seq` that meet every filter, in order, at most `limit`.

    In order of the last change past (`after_at`, `after_seq`) and, unless these are NULL, not past (`until_at`,
    `until_seq`): a task that was changed since it became a candidate has another place now.
    """
    at, seq = task_status.c.updated_at, task_status.c.seq
    status = select(
        seq,
        at,
        task_status.c.resource_version,
        task_status.c.phase,
        task_status.c.attempt,
        task_status.c.exit_code,
        task_status.c.error,
    ).where(*_of_status(shape.filters - {"phases"}))
    chosen = _any_candidate()
    if "phases" in shape.filters:
        # Which have the phase is asked of its index alone: 0.3 µs a candidate, where their rows cost 2. And not asked
        # again of the rows: by a plan from when there were few, all of the phase were read, to be joined.
        other = task_status.alias("other")
        having = select(other.c.seq).where(other.c.phase == _wanted.c.phase, other.c.seq == chosen)
        each = having.offset(_ONE_BY_ONE).lateral("each")
        status = status.where(seq == each.c.seq).select_from(_wanted.join(each, literal_column("true")), task_status)
    else:
        status = status.where(seq == chosen)
    if shape.by_update:
        here, until = tuple_(at, seq), tuple_(_until_at, _until_seq)
        is_within = here >= until if shape.descending else here <= until
        past = _past(here, tuple_(_after_at, _after_seq), descending=shape.descending)
        status = status.where(past, cast(_until_at, Instant).is_(None) | is_within)
    else:
        status = status.where(_past(seq, _after_seq, descending=shape.descending))
    keys = (at, seq) if shape.by_update else (seq,)
    # The status first, of all at once. Then task by task, until the page is full.
    found_status = status.order_by(*_ordered(*keys, descending=shape.descending)).subquery("status")
    found_task = (
        select(tasks.c.id, tasks.c.generation, tasks.c.created_at, cast(tasks.c.spec, Text).label("spec"))
        .where(tasks.c.seq == found_status.c.seq, *_of_task(shape))
        .offset(_ONE_BY_ONE)
        .lateral("task")
    )
    return Prepared(
        select(*found_status.c, *found_task.c)
        .select_from(found_status.join(found_task, literal_column("true")))
        .order_by(*_ordered(*(found_status.c[key.name] for key in keys), descending=shape.descending))
        .limit(_limit)
    )


def _any_candidate() -> ColumnElement[int]:
    # In a subquery, so that the planner does not see how many there are. It would plan anew for each number, and
    # compile the plan (60 ms) from some thousands on.
    return func.any(cast(select(array_param("candidates", "bigint")).scalar_subquery(), ARRAY(BigInteger)))


def _ordered(*keys: ColumnElement[Any], descending: bool) -> list[ColumnElement[Any]]:
    return [key.desc() if descending else key for key in keys]


def _past(here: ColumnElement[Any], after: ColumnElement[Any], *, descending: bool) -> ColumnElement[bool]:
    return here < after if descending else here > after


@cache
def walk(by: Walk, *, descending: bool) -> Prepared:
    """Up to `limit` candidates from one index, past `after_seq`.

    In order of the last change past (`after_at`, `after_seq`), as far as the moment `end_at`: with it when descending,
    without it when ascending.
    """
    if by == "phases":
        # One walk a phase, each bounded by the limit, then merged: `phase = ANY(...) ORDER BY seq` would read and
        # sort every task of these phases.
        single = select(task_status.c.seq).where(task_status.c.phase == _wanted.c.phase)
        each = _stretch(single, task_status.c.seq, descending=descending).lateral("each")
        merged = select(each.c.seq).select_from(_wanted.join(each, literal_column("true")))
        return Prepared(merged.order_by(*_ordered(each.c.seq, descending=descending)).limit(_limit))
    if by == "updated":
        at, seq = task_status.c.updated_at, task_status.c.seq
        past = _past(tuple_(at, seq), tuple_(_after_at, _after_seq), descending=descending)
        is_within = at >= _end_at if descending else at < _end_at
        order = _ordered(at, seq, descending=descending)
        return Prepared(select(seq, at).where(past, is_within).order_by(*order).limit(_limit))
    if by == "agent":
        # Apart, or the planner may go through all tasks in order until it has met enough of this agent's.
        running = (
            select(task_status.c.seq)
            .where(_STATUS_FILTERS["agent_name"], task_status.c.deadline.is_not(None))
            .offset(_ONE_BY_ONE)
            .subquery("running")
        )
        return Prepared(_stretch(select(running.c.seq), running.c.seq, descending=descending))
    having = {"slot": [_TASK_FILTERS["task_slot"]], "kind": [_TASK_FILTERS["task_kind"]], "created": []}[by]
    return Prepared(_stretch(select(tasks.c.seq).where(*having), tasks.c.seq, descending=descending))


@lru_cache(maxsize=512)
def scan(labels: selectors.Shape, *, descending: bool) -> Prepared:
    """Of up to `limit` tasks past `after_seq` those whose labels match; how many were looked at, and the last one."""
    every = _stretch(select(tasks.c.seq, tasks.c.labels), tasks.c.seq, descending=descending).subquery("stretch")
    last = func.min(every.c.seq) if descending else func.max(every.c.seq)
    found = func.array_agg(every.c.seq).filter(selectors.matching(labels, every.c.labels))
    return Prepared(
        select(found.label("seqs"), last.label("last_seq"), func.count().label("looked_at")).select_from(every)
    )


def _stretch(every: Select[Any], seq: ColumnElement[int], *, descending: bool) -> Select[Any]:
    past = _past(seq, _after_seq, descending=descending)
    return every.where(past).order_by(*_ordered(seq, descending=descending)).limit(_limit)


_task = tasks.join(task_status, task_status.c.seq == tasks.c.seq)


@lru_cache(maxsize=512)
def total(shape: Shape) -> Prepared:
    """How many tasks meet the filters; counts them all."""
    return Prepared(_every(select(func.count().label("total")), shape))


@lru_cache(maxsize=512)
def total_of(shape: Shape) -> Prepared:
    """How many of the `candidates` meet the filters."""
    return Prepared(_every(select(func.count().label("total")), shape).where(tasks.c.seq == _any_candidate()))


@lru_cache(maxsize=512)
def estimate(shape: Shape) -> Prepared:
    """How many tasks the planner expects to meet the filters: a row with the plan."""
    return Prepared(_every(select(literal_column("1", BigInteger)), shape), explain=True)


def _every(statement: Select[tuple[int]], shape: Shape) -> Select[tuple[int]]:
    of_status, of_task = _of_status(shape.filters), _of_task(shape)
    table: FromClause = tasks
    if of_status:
        # Each task has a status: to count by that alone, no task is looked at.
        table = _task if of_task else task_status
    return statement.select_from(table).where(*of_status, *of_task)
