"""Migrations that would hold up a database in use: `python -m solti_store.migration.lint`.

Rules on the offline SQL of every migration upwards. A statement that breaks one needs a reason in its file:
`unsafe = {"how the statement begins": "why it may"}`. docs/migrations.md has the rules.
"""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from alembic.script import ScriptDirectory

from solti_store import migrate
from solti_store.migration.locks import Lock, Names
from solti_store.migration.plan import steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from solti_store.migration.locks import Statement
    from solti_store.migration.plan import Step

__all__ = ["Finding", "lint"]

_WHY = {
    "concurrently": "in a transaction it fails, and what a killed one has left is kept: use build_index and drop_index",
    "constraint-not-valid": "add it NOT VALID, and VALIDATE it in a migration after",
    "drop": "code of the release before may use it: drop it one release later",
    "drop-column": "code of the release before may use it: drop it one release later",
    "index-not-concurrent": "writers wait for it: use build_index and drop_index",
    "lock-table": "it is held to the transaction's end: let each statement take what it needs",
    "lock-timeout": "it would wait for its lock however long, and everybody behind it",
    "not-in-batches": "it locks rows until all are done: use backfill",
    "not-null": "all rows are read under the lock: first a CHECK (… IS NOT NULL) NOT VALID, and VALIDATE it",
    "not-repeatable": "a crash leaves it done without the revision: put it into a file of its own",
    "rename": "code of the release before uses the old name: add the new one beside it",
    "revoke": "code of the release before may need the right: take it one release later",
    "rewrite": "all rows are written anew under the lock: add a column without a default, and backfill it",
    "several-locks": "each lock is held until the last is had: one in a file",
    "truncate": "rows are lost",
    "type-change": "all rows are written anew under the lock: add another column, and backfill it",
    "unknown": "nobody knows what it locks",
    "unused-reason": "there is no such statement that needs one",
}


class Finding(NamedTuple):
    """A rule that is broken.

    Attributes:
        revision: The migration.
        rule: The rule's name.
        relation: The table; empty when it is not known.
        sql: The start of the statement.
    """

    revision: str
    rule: str
    relation: str
    sql: str

    def __str__(self) -> str:
        table = f" on {self.relation}" if self.relation else ""
        return f"{self.revision}: {self.rule}{table}: {_WHY[self.rule]} ({self.sql})"


def lint(versions: Sequence[Path] = ()) -> list[Finding]:
    """Look at every migration upwards.

    Args:
        versions: Folders of migrations beside our own.

    Raises:
        SoltiStoreError: The extra `plan` is not installed.
    """
    scripts = ScriptDirectory.from_config(migrate.config(versions=versions))
    reasons = {each.revision: dict(getattr(each.module, "unsafe", {})) for each in scripts.walk_revisions()}
    findings: list[Finding] = []
    pieces = migrate.script("heads", versions=versions)
    for revision, group in groupby(steps(pieces, Names()), key=lambda step: step.revision):
        allowed = reasons.get(revision, {})
        used = set()
        for rule, relation, statement in _broken(list(group)):
            sql = " ".join(_code(statement).split())
            begins = next((begin for begin, why in allowed.items() if why.strip() and sql.startswith(begin)), None)
            if begins is None:
                findings.append(Finding(revision, rule, relation, sql[:80]))
            else:
                used.add(begins)
        findings += [Finding(revision, "unused-reason", "", begin) for begin in allowed if begin not in used]
    return findings


def _broken(group: list[Step]) -> Iterator[tuple[str, str, Statement]]:
    """What a migration does that it should not, on tables that were there before it."""
    created: set[str] = set()
    heavy: dict[int, str] = {}
    # Before the first revision there is only what the environment writes.
    is_split = bool(group[0].revision) and any(step.transaction is None for step in group)
    for step in group:
        statement = step.statement
        created |= statement.creates
        old = [touch for touch in statement.touches if touch.relation not in created]
        rules = [
            (rule, relation)
            for rule, relation in statement.hazards
            if relation not in created and not _is_ours(rule, step)
        ]
        if not statement.is_known:
            rules.append(("unknown", ""))
        if is_split and step.transaction is not None and not _stamps(statement):
            rules.append(("not-repeatable", ""))
        if statement.is_alone and step.transaction is not None:
            rules.append(("concurrently", ""))
        for touch in old:
            strong = touch.lock >= Lock.SHARE and step.transaction is not None
            if strong and heavy.setdefault(step.transaction or 0, touch.relation) != touch.relation:
                rules.append(("several-locks", touch.relation))
        yield from ((rule, relation, statement) for rule, relation in rules)


def _is_ours(rule: str, step: Step) -> bool:
    """Whether it is what the environment does, or a backfill, which is in batches online."""
    if rule == "lock-timeout":
        return not step.revision
    return rule == "not-in-batches" and (step.in_batches or _stamps(step.statement))


def _code(statement: Statement) -> str:
    """Without the comments before it."""
    lines = statement.sql.splitlines()
    while lines and lines[0].startswith("--"):
        lines.pop(0)
    return "\n".join(lines)


def _stamps(statement: Statement) -> bool:
    """Whether it is a note of the revision: Alembic's own, or in the schema's list."""
    names: Iterable[str] = (*(touch.relation for touch in statement.touches), *statement.creates)
    return all(name.endswith((".alembic_version", ".schema_history")) for name in names)


if __name__ == "__main__":
    found = lint()
    for finding in found:
        print(finding)  # noqa: T201 - a command's output
    sys.exit(1 if found else 0)
