"""Statements that list: keyset pages in order of creation, and totals."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Text, bindparam, column, func, select

from solti_store.sql.driver import Prepared
from solti_store.sql.tables import task_status, tasks
from solti_store.sql.tasks import TASK_COLUMNS
from solti_store.sql.types import array_param

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

__all__ = ["page", "total"]

_task = tasks.join(task_status, task_status.c.seq == tasks.c.seq)
_after = bindparam("after", type_=BigInteger())
_limit = bindparam("limit", type_=BigInteger())
_phases = array_param("phases", "text")


def _filters(*, slot: bool, kind: bool) -> list[ColumnElement[bool]]:
    result: list[ColumnElement[bool]] = []
    if slot:
        result.append(tasks.c.slot == bindparam("task_slot", type_=Text()))
    if kind:
        result.append(tasks.c.kind == bindparam("task_kind", type_=Text()))
    return result


@cache
def page(*, phases: bool, slot: bool, kind: bool) -> Prepared:
    """Up to `limit` tasks past the seq `after`, for the filters that are set (sixteen statements at the most)."""
    statement = select(*TASK_COLUMNS).select_from(_task)
    if phases and not (slot or kind):
        # One walk a phase, each bounded by the limit, then merged: `phase = ANY(...) ORDER BY seq` would read and
        # sort every task of these phases.
        wanted = func.unnest(_phases).table_valued(column("phase", Text), name="wanted").render_derived()
        walk = (
            select(task_status.c.seq)
            .where(task_status.c.phase == wanted.c.phase, task_status.c.seq > _after)
            .order_by(task_status.c.seq)
            .limit(_limit)
            .lateral("walk")
        )
        hits = select(walk.c.seq).select_from(wanted.join(walk, walk.c.seq.is_not(None))).subquery("hits")
        statement = statement.join(hits, hits.c.seq == tasks.c.seq)
    else:
        statement = statement.where(tasks.c.seq > _after, *_filters(slot=slot, kind=kind))
        if phases:
            statement = statement.where(task_status.c.phase == func.any(_phases))
    return Prepared(statement.order_by(tasks.c.seq).limit(_limit))


@cache
def total(*, phases: bool, slot: bool, kind: bool) -> Prepared:
    """How many tasks meet the filters; counts them all."""
    statement = (
        select(func.count().label("total"))
        .select_from(_task if phases else tasks)
        .where(*_filters(slot=slot, kind=kind))
    )
    if phases:
        statement = statement.where(task_status.c.phase == func.any(_phases))
    return Prepared(statement)
