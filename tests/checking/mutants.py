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

from solti_store.ops import attempts
from solti_store.sql import agents as agents_sql
from solti_store.sql import attempts as attempts_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from solti_store.sql.driver import Prepared

__all__ = ["MUTANTS", "apply_from_environment", "mutated"]

VARIABLE = "SOLTI_CHAOS_MUTANT"

Undo: TypeAlias = "Callable[[], None]"


def _without(prepared: Prepared, *patterns: str) -> Undo:
    """Take what matches the patterns out of a statement's text."""
    original = prepared.text
    for pattern in patterns:
        prepared.text, found = re.subn(pattern, "", prepared.text)
        if not found:
            raise LookupError(f"{pattern!r} is not in the statement:\n{prepared.text}")

    def undo() -> None:
        prepared.text = original

    return undo


def _rewritten(module: ModuleType, name: str, old: str, new: str) -> Undo:
    """Change a function's source."""
    original = getattr(module, name)
    source = textwrap.dedent(inspect.getsource(original))
    if source.count(old) != 1:
        raise LookupError(f"{old!r} is in {name} {source.count(old)} times:\n{source}")
    namespace: dict[str, Any] = vars(module)
    exec(compile(f"from __future__ import annotations\n{source.replace(old, new)}", __file__, "exec"), namespace)

    def undo() -> None:
        setattr(module, name, original)

    return undo


#: By name, what takes the pieces out, and gives back how to put them in again.
MUTANTS: dict[str, Callable[[], list[Undo]]] = {
    "no fence": lambda: [
        _rewritten(attempts, "finish_many", 'row.phase == "running" and row.attempt == claim.attempt', "True"),
        _without(
            attempts_sql.CLOSE,
            r" AND \S+\.attempt = \w+\.attempt",
            r" AND solti\.task_status\.phase = \S+ COLLATE \"C\"",
        ),
    ],
    "finish without a lock": lambda: [_without(attempts_sql.LOCK, " FOR UPDATE")],
    "claim without a lock": lambda: [
        _without(statement, " FOR UPDATE SKIP LOCKED") for statement in (attempts_sql.PICK, attempts_sql.PICK_REST)
    ],
    "reaper that ignores the lease": lambda: [
        _without(agents_sql.CLOSE_EXPIRED, r" AND solti\.agents\.expires_at < coalesce\(.*?\(\)\)")
    ],
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """The package with one mutant in it."""
    with ExitStack() as stack:
        for undo in MUTANTS[name]():
            stack.callback(undo)
        yield


def apply_from_environment() -> None:
    """Break this process for good, if it was started to be broken."""
    if name := os.environ.get(VARIABLE):
        MUTANTS[name]()
