"""How far a reader of the feed has come, and what there is for it to read next.

Events are numbered when they are written, and seen when their transactions are committed, which is in another order. A
reader that remembers the last number it saw misses what was committed late. So it remembers the snapshot of its last
look: the next look has the events of transactions that are over now and were not over then, in order of their numbers.
No writer waits for that, and none is missed.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Self

__all__ = ["FeedPosition", "Look", "Snapshot"]

_VERSION: Final = 1
_DIGEST_BYTES: Final = 6
_END: Final = 2**63
_SNAPSHOT = re.compile(r"(\d+):(\d+):((?:\d+(?:,\d+)*)?)")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions are over, as `pg_current_snapshot` tells it.

    Attributes:
        text: As PostgreSQL writes it.
        xmax: No transaction from this number on is over.
        open: Those below that go on.
    """

    text: str
    xmax: int = field(compare=False)
    open: frozenset[int] = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From PostgreSQL's text.

        Raises:
            ValueError: It is none.
        """
        if (found := _SNAPSHOT.fullmatch(text)) is None:
            raise ValueError(text)
        xmin, xmax = int(found[1]), int(found[2])
        still_open = list(map(int, found[3].split(","))) if found[3] else []
        # As PostgreSQL would: but whether it looks at a value depends on the plan.
        if not 0 < xmin <= xmax < _END or still_open != sorted(still_open):
            raise ValueError(text)
        if not all(xmin <= xid < xmax for xid in still_open):
            raise ValueError(text)
        return cls(text, xmax, frozenset(still_open))

    def up_to(self, newest: int) -> Self:
        """The same, but whether later transactions are over is left open: as good, if none of those over has events.

        A number above that of all events may be drawn a second time. A transaction that is rolled back does not wait
        until the log is written; after a crash the server does not know of it, and a new one gets its number.

        Args:
            newest: The highest transaction of which there are events, or were.
        """
        xmax = min(self.xmax, newest + 1)
        still_open = frozenset(xid for xid in self.open if xid < xmax)
        text = f"{min(still_open, default=xmax)}:{xmax}:{','.join(map(str, sorted(still_open)))}"
        return type(self)(text, xmax, still_open)

    def is_over(self, xid: int) -> bool:
        """Whether this transaction is over."""
        return xid < self.xmax and xid not in self.open


@dataclass(frozen=True, slots=True)
class Look:
    """Which events to read next: all of them after a number that are of these transactions.

    Attributes:
        after: The number.
        since: Of transactions from this one on,
        ended: and of these,
        within: as far as they are over in this snapshot.
        first: The first event of the transactions from `since` on.
    """

    after: int
    since: int
    ended: list[int]
    within: str
    first: int


@dataclass(frozen=True, slots=True)
class FeedPosition:
    """Where a reader goes on.

    Attributes:
        epoch: Of which life of which database the numbers are.
        xmax: All transactions from this one on are still to be read,
        open: and these, which went on at the last look.
        within: The snapshot that is being read; None between two looks.
        after: The last event that was read of it.
        first: The first event that it has of transactions that are new in it; 0 before that was looked up.
    """

    epoch: str
    xmax: int
    open: frozenset[int]
    within: Snapshot | None = None
    after: int = 0
    first: int = 0

    @classmethod
    def of(cls, epoch: str, snapshot: Snapshot) -> Self:
        """All that a snapshot does not have yet is still to be read."""
        return cls(epoch, snapshot.xmax, snapshot.open)

    def look(self, snapshot: Snapshot) -> Self:
        """Begin to read what has come by this snapshot."""
        return replace(self, within=snapshot)

    def next(self) -> Look | None:
        """What to read next of the present look; None when nothing can have come since the last one."""
        assert self.within is not None  # noqa: S101 - for mypy; `look` comes first
        ended = sorted(xid for xid in self.open if self.within.is_over(xid))
        if not ended and self.within.xmax == self.xmax:
            return None
        return Look(self.after, self.xmax, ended, self.within.text, self.first)

    def begun(self, first: int | None) -> Self:
        """With the first event of what is new in the present look; None if there is none."""
        return replace(self, first=_END - 1 if first is None else first)

    def read(self, event: int) -> Self:
        """After one event of the present look."""
        return replace(self, after=event)

    def done(self) -> Self:
        """After all events of the present look."""
        assert self.within is not None  # noqa: S101
        return self.of(self.epoch, self.within)

    def is_kept(self, *, pruned: int, pruned_xid: int) -> bool:
        """Whether all that is to be read is still there.

        Args:
            pruned: Events up to this one may be gone.
            pruned_xid: All of those are of transactions up to this one.
        """
        return self.after >= pruned or (pruned_xid < self.xmax and all(xid > pruned_xid for xid in self.open))

    def is_of(self, snapshot: Snapshot) -> bool:
        """Whether this can be of the life that the snapshot is of: not if it is ahead of it."""
        within = self.xmax if self.within is None else self.within.xmax
        return max(self.xmax, within) <= snapshot.xmax

    # --- as text ---

    def encode(self) -> str:
        """The token: opaque to its bearer."""
        within = self.within and self.within.text
        parts = [_VERSION, self.epoch, self.xmax, sorted(self.open), within, self.after, self.first]
        body = json.dumps(parts, separators=(",", ":")).encode()
        return urlsafe_b64encode(sha256(body).digest()[:_DIGEST_BYTES] + body).decode().rstrip("=")

    @classmethod
    def decode(cls, token: str) -> Self:
        """From its token.

        Raises:
            ValueError: The text is damaged, or of another version of this package.
        """
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if digest != sha256(body).digest()[:_DIGEST_BYTES]:
            raise ValueError(token)
        try:
            version, epoch, xmax, still_open, within, after, first = json.loads(body)
        except RecursionError:
            raise ValueError(token) from None
        if version != _VERSION or not isinstance(still_open, list):
            raise ValueError(token)
        if not all(type(one) is int and 0 <= one < _END for one in (xmax, after, first, *still_open)):
            raise ValueError(token)
        snapshot = None if within is None else Snapshot.parse(within)
        return cls(epoch, xmax, frozenset(still_open), snapshot, after, first)
