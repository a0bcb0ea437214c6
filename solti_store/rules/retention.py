"""How long what is over is kept."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Final

from solti_store.errors import Invalid

__all__ = ["MAX_RUNS", "Retention"]

#: The most runs that are kept of one task. The start of an attempt forgets the one that many before it.
MAX_RUNS: Final = 256

_LONGEST: Final = timedelta(days=366_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long what is over is kept; None is for ever.

    Attributes:
        tasks: A task after it became final, with its runs. One that waits for a restart is not final.
        runs: A run after it ended, of a task that lives on.
        agents: An agent after it signed off or was lost.
        events: An event of the feed after it happened. A watcher that comes back later than that has to list anew.

    Raises:
        Invalid: A time is negative, or longer than a thousand years.
    """

    tasks: timedelta | None = timedelta(days=30)
    runs: timedelta | None = timedelta(days=30)
    agents: timedelta | None = timedelta(days=1)
    events: timedelta | None = timedelta(days=7)

    def __post_init__(self) -> None:
        for field in fields(self):
            kept = getattr(self, field.name)
            if kept is not None and not (isinstance(kept, timedelta) and timedelta(0) <= kept <= _LONGEST):
                raise Invalid(
                    f"invalid model: retention of {field.name} must be from 0 to {_LONGEST}, got {kept!r}",
                    field=field.name,
                )
