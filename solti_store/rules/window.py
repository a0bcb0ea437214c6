"""Which code runs on which schema.

Code runs on the schemas that it knows, back to the oldest that it still serves; and on those that come after it, as
long as they say so: code cannot know them, so each migration writes down the oldest code that it leaves working.

Revisions and code go by the same names: code is called after the newest migration that it has. The names sort.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from solti_store.errors import SchemaMismatch

__all__ = ["Applied", "Fit", "Window"]


@dataclass(frozen=True, slots=True)
class Applied:
    """The schema of a database.

    Attributes:
        revision: Its newest revision.
        oldest_code: The oldest code that works on it.
        serves: The newest of its revisions that this code works on; None when there is none.
    """

    revision: str
    oldest_code: str
    serves: str | None


class Fit(Enum):
    """How a schema and some code go together."""

    FITS = auto()
    """The code works on the schema."""

    MISSING = auto()
    """There is no schema."""

    BEHIND = auto()
    """The schema is too old for the code."""

    AHEAD = auto()
    """The code is too old for the schema."""


@dataclass(frozen=True, slots=True)
class Window:
    """What some code works on.

    Attributes:
        oldest: The oldest revision.
        head: The newest it knows, after which it is called.
    """

    oldest: str
    head: str

    def fit(self, applied: Applied | None) -> Fit:
        """How the schema and this code go together."""
        if applied is None:
            return Fit.MISSING
        if applied.revision < self.oldest:
            return Fit.BEHIND
        if applied.revision > self.head and applied.oldest_code > self.head:
            return Fit.AHEAD
        return Fit.FITS

    def lags(self, applied: Applied | None) -> bool:
        """Whether this code has migrations that the schema has not."""
        return applied is None or applied.revision < self.head

    def require(self, applied: Applied | None, options: str = "") -> None:
        """Refuse a schema that this code does not work on.

        Args:
            applied: The schema.
            options: What the commands that are named need between `solti-store` and `db`, with a space before it.

        Raises:
            SchemaMismatch: It does not; the message has the command to run.
        """
        fit = self.fit(applied)
        if fit is Fit.FITS:
            return
        if applied is None:
            raise SchemaMismatch(f"the database has no solti schema: run `solti-store{options} db upgrade`")
        state = f"the database is at schema revision {applied.revision}"
        if fit is Fit.BEHIND:
            raise SchemaMismatch(
                f"{state}, and this code works on {self.oldest} and later: run `solti-store{options} db upgrade`",
                revision=applied.revision,
            )
        command = f"solti-store{options} db downgrade {applied.serves} -y"
        back = f", or, with the one that is ahead, take the database back: `{command}`"
        raise SchemaMismatch(
            f"{state}, which takes code of {applied.oldest_code} and later, and this code is of {self.head}: install a"
            f" newer solti-store (`pip install --upgrade solti-store`){back if applied.serves else ''}",
            revision=applied.revision,
        )
