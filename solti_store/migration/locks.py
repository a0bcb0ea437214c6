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
    """

    sql: str
    touches: tuple[Touch, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    is_known: bool = True
    creates: frozenset[str] = frozenset()


@dataclass(slots=True)
class Names:
    """What a statement's names stand for; each statement that is analysed adds to it.

    Attributes:
        tables: Of each index, the table.
        references: Of each table, the tables that its foreign keys are about.
        not_null: Columns that are NOT NULL, or have a valid CHECK that says so, as (table, column).
    """

    tables: dict[str, str] = field(default_factory=dict)
    references: dict[str, set[str]] = field(default_factory=dict)
    not_null: set[tuple[str, str]] = field(default_factory=set)
