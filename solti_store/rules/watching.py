"""How to watch: which tasks, and how long to wait."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from solti_store.errors import Invalid
from solti_store.model import TaskQuery

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEFAULT_POLL", "Wait", "checked"]

#: An idle poll takes two statements, 0.2 ms of the server's time.
DEFAULT_POLL: Final = timedelta(milliseconds=500)

_LONGEST: Final = timedelta(days=1)
_JITTER: Final = 0.2


def checked(query: TaskQuery) -> TaskQuery:
    """The query, if it can be watched.

    Raises:
        Invalid: It has other filters than `selector` and `phases`, or an order.
    """
    plain = TaskQuery(limit=query.limit)
    for name in TaskQuery.model_fields:
        if name not in {"selector", "phases"} and getattr(query, name) != getattr(plain, name):
            raise Invalid(
                f"invalid model: a watch goes by selector and phases, not by {name}={getattr(query, name)!r}",
                field=name,
            )
    return query


class Wait:
    """When to look again, and when to say that there was nothing.

    Args:
        poll: How long to wait when there is nothing new, a fifth more or less.
        bookmarks: After how long without a change to say where the feed goes on; None is never.
        clock: Seconds that never go back.

    Raises:
        Invalid: A time is not positive, or longer than a day.
    """

    def __init__(
        self, poll: timedelta, bookmarks: timedelta | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        for name, given in (("poll", poll), ("bookmarks", bookmarks)):
            if given is not None and not timedelta(0) < given <= _LONGEST:
                raise Invalid(f"invalid model: {name} must be positive and at most {_LONGEST}, got {given}", field=name)
        self._poll_s = poll.total_seconds()
        self._bookmarks_s = None if bookmarks is None else bookmarks.total_seconds()
        self._clock = clock
        self._quiet_since = clock()

    def seconds(self) -> float:
        """How long to wait now."""
        return self._poll_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter

    def bookmark_is_due(self, *, had_changes: bool) -> bool:
        """Whether it is time for a bookmark, after a look."""
        if self._bookmarks_s is None:
            return False
        is_due = not had_changes and self._clock() - self._quiet_since >= self._bookmarks_s
        if had_changes or is_due:
            self._quiet_since = self._clock()
        return is_due
