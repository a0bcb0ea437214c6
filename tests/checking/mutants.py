"""The package, broken on purpose: what keeps it correct, taken out one piece at a time while it runs.

Each is a build that somebody could have written. That the state machine or the checker of histories notices is what
makes their silence worth something. A piece that is no longer there to be taken out fails loudly: then the mutant has
to follow the code.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from support import connect

from solti_store.ops import closing, slots, tasks
from solti_store.sql import agents as agents_sql
from solti_store.sql import claims as claims_sql
from solti_store.sql import closing as closing_sql
from solti_store.sql import slots as slots_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from solti_store.sql.driver import Prepared

__all__ = ["MUTANTS", "apply_from_environment", "mutated"]

VARIABLE = "SOLTI_CHAOS_MUTANT"
OWNERS = "uq_task_status_owner"
# In what closes: the attempt, that it runs, the version.
_ATTEMPT = r"\S+\.attempt = \w+\.attempt"
_RUNNING = r"CASE WHEN \(solti\.task_status\.phase = .*? END"
_VERSION = r"\S+\.resource_version = \w+\.version"
# In what starts: which rows to write, by what stays the same when they change.
_BY_SEQ = (r"ctid = any\(.*\s.*tid\[\]\)\)", "seq IN (SELECT seq FROM picked)")
NOTHING = "(lambda *_, **__: None)"

Undo: TypeAlias = "Callable[[], None]"


def _changed(prepared: Prepared, *changes: tuple[str, str]) -> Undo:
    """Change a statement's text, pattern by pattern."""
    original = prepared.text
    for pattern, new in changes:
        prepared.text, found = re.subn(pattern, new, prepared.text)
        if not found:
            raise LookupError(f"{pattern!r} is not in the statement:\n{prepared.text}")

    def undo() -> None:
        prepared.text = original

    return undo


def _without(prepared: Prepared, *patterns: str) -> Undo:
    """Take what matches the patterns out of a statement's text."""
    return _changed(prepared, *((pattern, "") for pattern in patterns))


def _rewritten(module: ModuleType, name: str, old: str, new: str) -> Undo:
    """Change the source of a function that a module defines or imports."""
    original = getattr(module, name)
    source = textwrap.dedent(inspect.getsource(original))
    if source.count(old) != 1:
        raise LookupError(f"{old!r} is in {name} {source.count(old)} times:\n{source}")
    made: dict[str, Any] = {}
    code = compile(f"from __future__ import annotations\n{source.replace(old, new)}", __file__, "exec")
    exec(code, original.__globals__, made)
    setattr(module, name, made[name])

    def undo() -> None:
        setattr(module, name, original)

    return undo


def _no_index_of_owners(url: str) -> list[Undo]:
    with connect(url) as conn:
        row = conn.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [OWNERS]).fetchone()
        conn.execute(f"DROP INDEX IF EXISTS solti.{OWNERS}".encode())

    def undo() -> None:
        with connect(url) as conn:
            conn.execute(str(row[0]).encode() if row else b"")

    return [undo]


#: By name, what takes the pieces out of this process or of the database, and gives back how to put them in again.
MUTANTS: dict[str, Callable[[str], list[Undo]]] = {
    "no fence": lambda _: [
        _rewritten(closing, "_mine", ' and row.phase == "running" and row.attempt == claim.attempt', ""),
        _changed(closing_sql.CLOSE, (f"{_ATTEMPT} AND {_RUNNING}", "true")),
    ],
    "no fence where nothing was touched": lambda _: [
        _changed(closing_sql.CLOSE_UNTOUCHED, (f"{_ATTEMPT} AND {_RUNNING} AND {_VERSION}", "true")),
    ],
    "no version where nothing was touched": lambda _: [_without(closing_sql.CLOSE_UNTOUCHED, f" AND {_VERSION}")],
    "nobody is seen to wait": lambda _: [
        _without(closing_sql.CLOSE_UNTOUCHED, r" AND \(SELECT other\.seq [\s\S]*?\) IS NULL"),
    ],
    "finish without a lock": lambda _: [
        _without(closing_sql.LOCK_FREE, " FOR UPDATE SKIP LOCKED"),
        _without(closing_sql.LOCK, " FOR UPDATE"),
    ],
    "finish of what was touched meanwhile": lambda _: [
        _changed(
            closing_sql.CLOSE_UNTOUCHED, (r"task_status\.ctid = untouched\.ctid", "task_status.seq = untouched.seq")
        ),
    ],
    "claim without a lock": lambda _: [
        _changed(statement, (" FOR UPDATE SKIP LOCKED", ""), _BY_SEQ)
        for statement in (claims_sql.CLAIM, claims_sql.CLAIM_BY_ROUTE)
    ],
    "claim of what was replaced meanwhile": lambda _: [
        _changed(statement, _BY_SEQ) for statement in (claims_sql.CLAIM, claims_sql.CLAIM_BY_ROUTE)
    ],
    "reaper that ignores the lease": lambda _: [
        _without(agents_sql.CLOSE_EXPIRED, r" AND solti\.agents\.expires_at < coalesce\(.*?\(\)\)")
    ],
    "queue without a lock": lambda _: [_without(slots_sql.LOCK_OWNERS, " FOR UPDATE")],
    "no index of owners": _no_index_of_owners,
    "nobody is admitted after a finish": lambda _: [_rewritten(closing, "_close", "slots.admit", NOTHING)],
    "nobody is admitted after a cancellation": lambda _: [_rewritten(tasks, "cancel", "slots.admit", NOTHING)],
    "nobody is admitted after a deletion": lambda _: [_rewritten(tasks, "delete", "slots.admit", NOTHING)],
    "the last of the queue is admitted": lambda _: [
        _changed(slots_sql.ADMIT, (r"ORDER BY (\S+)\.queue_key", r"ORDER BY \1.queue_key DESC"))
    ],
    "a queue without an end": lambda _: [_rewritten(slots, "admission", "waiting < max_waiting", "True")],
    "the head is not displaced": lambda _: [_rewritten(slots, "_supersede", "for head in heads", "for head in []")],
    # One that does not run and is not canceled: the index of owners lets nobody in its stead.
    "the owner is not canceled": lambda _: [
        _rewritten(slots, "places", "spec.slot, owner, task_id", "spec.slot, None if slot.runs else owner, task_id")
    ],
}


@contextmanager
def mutated(name: str, url: str) -> Iterator[None]:
    """The package with one mutant in it, on this database."""
    with ExitStack() as stack:
        for undo in MUTANTS[name](url):
            stack.callback(undo)
        yield


def apply_from_environment(url: str) -> None:
    """Break this process for good, if it was started to be broken."""
    if name := os.environ.get(VARIABLE):
        MUTANTS[name](url)
