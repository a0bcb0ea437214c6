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
from solti_store.sql.types import Instant, array_param, bigints_param

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Select

__all__ = ["FILTERS", "Shape", "Walk", "estimate", "page", "scan", "total", "total_of", "walk"]

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
# Keeps a subquery apart: here the planner would join with a scan of a whole table, or walk through one in order.
_ONE_BY_ONE: Final[ColumnElement[int]] = literal_column("0")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a statement needs to know of a query.

    Attributes:
        filters: Names in `FILTERS` and of parameters at the same time.
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
#: All filters but that of labels, by the names of their parameters.
FILTERS: Final = frozenset(_STATUS_FILTERS | _TASK_FILTERS)


def _of_status(shape: Shape) -> list[ColumnElement[bool]]:
    return [clause for name, clause in _STATUS_FILTERS.items() if name in shape.filters]


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
    ).where(*_of_status(shape))
    chosen = _any_candidate()
    if "phases" in shape.filters:
        # Which have the phase is asked of its index alone: 0.3 µs a candidate, where their rows cost 2.
        wanted = func.unnest(_phases).table_valued(column("phase", Text), name="wanted").render_derived()
        other = task_status.alias("other")
        having = select(other.c.seq).where(other.c.phase == wanted.c.phase, other.c.seq == chosen)
        each = having.offset(_ONE_BY_ONE).lateral("each")
        status = status.where(seq == each.c.seq).select_from(wanted.join(each, literal_column("true")), task_status)
    else:
        status = status.where(seq == chosen)
    if shape.by_update:
        here, after, until = tuple_(at, seq), tuple_(_after_at, _after_seq), tuple_(_until_at, _until_seq)
        within = (here < after, here >= until) if shape.descending else (here > after, here <= until)
        status = status.where(within[0], cast(_until_at, Instant).is_(None) | within[1])
    else:
        status = status.where(seq < _after_seq if shape.descending else seq > _after_seq)
    keys = (at, seq) if shape.by_update else (seq,)
    # The status first, of all at once. Then task by task, until the page is full.
    found_status = status.order_by(*_ordered(keys, shape)).subquery("status")
    found_task = (
        select(tasks.c.id, tasks.c.generation, tasks.c.created_at, cast(tasks.c.spec, Text).label("spec"))
        .where(tasks.c.seq == found_status.c.seq, *_of_task(shape))
        .offset(_ONE_BY_ONE)
        .lateral("task")
    )
    return Prepared(
        select(*found_status.c, *found_task.c)
        .select_from(found_status.join(found_task, literal_column("true")))
        .order_by(*_ordered([found_status.c[key.name] for key in keys], shape))
        .limit(_limit)
    )


def _any_candidate() -> ColumnElement[int]:
    # In a subquery, so that the planner does not see how many there are. It would plan anew for each number, and
    # compile the plan (60 ms) from some thousands on.
    return func.any(cast(select(bigints_param("candidates")).scalar_subquery(), ARRAY(BigInteger)))


def _ordered(keys: Iterable[ColumnElement[Any]], shape: Shape) -> list[ColumnElement[Any]]:
    return [key.desc() if shape.descending else key for key in keys]


@cache
def walk(by: Walk, *, descending: bool) -> Prepared:
    """Up to `limit` candidates from one index, past `after_seq`.

    In order of the last change past (`after_at`, `after_seq`), as far as the moment `end_at`: with it when descending,
    without it when ascending.
    """
    if by == "phases":
        # One walk a phase, each bounded by the limit, then merged: `phase = ANY(...) ORDER BY seq` would read and
        # sort every task of these phases.
        wanted = func.unnest(_phases).table_valued(column("phase", Text), name="wanted").render_derived()
        single = select(task_status.c.seq).where(task_status.c.phase == wanted.c.phase)
        each = _stretch(single, task_status.c.seq, descending=descending).lateral("each")
        merged = select(each.c.seq).select_from(wanted.join(each, literal_column("true")))
        return Prepared(merged.order_by(each.c.seq.desc() if descending else each.c.seq).limit(_limit))
    if by == "updated":
        at = task_status.c.updated_at
        here, after = tuple_(at, task_status.c.seq), tuple_(_after_at, _after_seq)
        within = (here < after, at >= _end_at) if descending else (here > after, at < _end_at)
        order = (at.desc(), task_status.c.seq.desc()) if descending else (at, task_status.c.seq)
        return Prepared(select(task_status.c.seq, at).where(*within).order_by(*order).limit(_limit))
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
    past = seq < _after_seq if descending else seq > _after_seq
    return every.where(past).order_by(seq.desc() if descending else seq).limit(_limit)


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
    return Prepared(_every(select(tasks.c.seq), shape), explain=True)


def _every(statement: Select[tuple[int]], shape: Shape) -> Select[tuple[int]]:
    of_status = _of_status(shape)
    return statement.select_from(_task if of_status else tasks).where(*of_status, *_of_task(shape))
