"""PostgreSQL's table locks, and what a statement does to a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

__all__ = ["Hazard", "Lock", "Names", "Statement", "Touch"]


class Lock(IntEnum):
    """The table locks, weakest first."""

    ACCESS_SHARE = 1
    ROW_SHARE = 2
    ROW_EXCLUSIVE = 3
    SHARE_UPDATE_EXCLUSIVE = 4
    SHARE = 5
    SHARE_ROW_EXCLUSIVE = 6
    EXCLUSIVE = 7
    ACCESS_EXCLUSIVE = 8

    @property
    def label(self) -> str:
        """As PostgreSQL's documentation spells it."""
        return self.name.replace("_", " ")

    @property
    def stops(self) -> str:
        """Who has to wait: `reads and writes`, `writes` or nobody (empty)."""
        if self is Lock.ACCESS_EXCLUSIVE:
            return "reads and writes"
        return "writes" if self >= Lock.SHARE else ""


class Touch(NamedTuple):
    """What a statement does to one relation.

    Attributes:
        relation: Its name, with the schema where the statement names it.
        lock: The strongest lock on it.
        rewrites: Whether its rows are all written anew.
        scans: Whether its rows are all read, and so long as the lock is held.
    """

    relation: str
    lock: Lock
    rewrites: bool = False
    scans: bool = False


class Hazard(NamedTuple):
    """Something that a migration should do in another way.

    Attributes:
        rule: Its short name, as in docs/migrations.md.
        relation: The table; empty when it is not known.
    """

    rule: str
    relation: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, and what it does.

    Attributes:
        sql: Its text.
        touches: The relations; empty when it locks none, or is not known.
        hazards: What should be done in another way on a table that is in use.
        is_known: Whether all of it was understood. If not, ACCESS EXCLUSIVE on anything must be assumed.
        creates: Relations that are there only after it.
        is_alone: Whether the server refuses it within a transaction.
    """

    sql: str
    touches: tuple[Touch, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    is_known: bool = True
    creates: frozenset[str] = frozenset()
    is_alone: bool = False


@dataclass(slots=True)
class Names:
    """What a statement's names stand for; each statement that is analysed adds to it.

    Attributes:
        tables: Of each index, the table.
        references: Of each table, the tables that its foreign keys are about.
        not_null: Columns that are NOT NULL, or have a valid CHECK that says so, as (table, column).
        checks: CHECKs by (table, name), and the column if one says of it that it IS NOT NULL and nothing else; valid
            or not.
    """

    tables: dict[str, str] = field(default_factory=dict)
    references: dict[str, set[str]] = field(default_factory=dict)
    not_null: set[tuple[str, str]] = field(default_factory=set)
    checks: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def nullable(self, table: str, column: str | None = None) -> None:
        """Forget that a column, or any of a table's, is NOT NULL."""
        self.not_null = {(t, c) for t, c in self.not_null if t != table or column not in (None, c)}

    def forget(self, table: str) -> None:
        """Forget what the names of a table's columns and constraints stand for."""
        self.nullable(table)
        self.checks = {key: column for key, column in self.checks.items() if key[0] != table}

    def copy(self) -> Names:
        """The same, to go on alone."""
        references = {table: set(others) for table, others in self.references.items()}
        return Names(dict(self.tables), references, set(self.not_null), dict(self.checks))

    def perhaps(self, after: Names) -> None:
        """What holds whether or not something was done that makes this of it: all it may lock, what is proved still."""
        self.tables |= after.tables
        for table, others in after.references.items():
            self.references.setdefault(table, set()).update(others)
        self.not_null &= after.not_null
        self.checks = {key: column for key, column in self.checks.items() if after.checks.get(key, "") == column}
