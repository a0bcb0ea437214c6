"""Where the due tasks of a route begin, so that a claim need not look past those that are claimed already.

A claimed task leaves an entry behind in the claim index, and as long as some transaction may still see the old row (a
report that runs for an hour holds all of them), no vacuum removes it. A claim that starts at the front of the index
reads every such entry, each time. So a claim starts where the last one got to. What comes to lie before that, because
it was committed late, was locked, or was changed by hand, is found by looking at all from the front now and then: as
often as takes a twentieth of the time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

__all__ = ["ClaimCursor"]

_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
# Due times are those of statements, and commits come a little later: what is younger than this is always looked at.
_SLACK: Final = timedelta(milliseconds=100)
_SHARE: Final = 20
# So quick that a claim which finds nothing may as well make sure.
_CHEAP_S: Final = 0.005


class ClaimCursor:
    """How far one agent's claims have come in each route.

    Threads may share it: whatever they make of it, what is missed is found by the next look at all.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reached: dict[UUID, datetime] = {}
        self._took = 0.0
        self._next = 0.0
        self._is_dry = False

    @property
    def is_dry(self) -> bool:
        """Whether the last claim left nothing, so that the next one may well find nothing."""
        return self._is_dry

    def wants_all(self) -> bool:
        """Whether it is time to look at all tasks that are due."""
        return self._clock() >= self._next

    @property
    def all_is_cheap(self) -> bool:
        """Whether looking at all took next to nothing the last time."""
        return self._took < _CHEAP_S

    def since(self, routes: Sequence[UUID], *, whole: bool) -> list[datetime]:
        """From which due time on to look in each route."""
        return [_BEGINNING if whole else self._reached.get(route, _BEGINNING) for route in routes]

    def looked_at_all(self, took_s: float) -> None:
        """Take note of how long that took."""
        self._took = took_s
        self._next = self._clock() + _SHARE * took_s

    def found(
        self,
        tasks: Iterable[tuple[UUID, datetime]],
        routes: Iterable[UUID],
        moment: datetime,
        *,
        all_there_is: bool,
    ) -> None:
        """Take note of what was claimed.

        Args:
            tasks: Route and due time of each.
            routes: Where was looked.
            moment: When, on the database's clock.
            all_there_is: Whether nothing was left.
        """
        if all_there_is:
            self.found_nothing(routes, moment)
            return
        self._is_dry = False
        latest: dict[UUID, datetime] = {}
        for route, due_at in tasks:
            latest[route] = max(due_at, latest.get(route, due_at))
        for route, due_at in latest.items():
            self._reached[route] = min(due_at, moment - _SLACK)

    def found_nothing(self, routes: Iterable[UUID], moment: datetime) -> None:
        """Take note that nothing in these routes is left that was due at that moment."""
        self._is_dry = True
        for route in routes:
            self._reached[route] = moment - _SLACK
