"""The label index, as pure values: which tasks of a segment have a label, and which meet a selector.

Tasks are taken in segments of 4096 consecutive seqs. A posting says for one *term* (a key, a key with its value, or a
key with its integer) which tasks of a segment have it; a set of them is an int whose bit *n* is the segment's task *n*,
so that `and`, `or` and `not` of selectors are those of ints, and a negative requirement costs what a positive one does.
"""

from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from solti_store.model._label_syntax import int64_of
from solti_store.model.requirement import LabelOperator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from solti_store.model.requirement import LabelRequirement

__all__ = [
    "SEGMENT_BITS",
    "SEGMENT_SIZE",
    "Condition",
    "Lookup",
    "Posting",
    "conditions",
    "decode",
    "encode",
    "meeting",
    "offsets",
    "postings",
]

SEGMENT_BITS: Final = 12
SEGMENT_SIZE: Final = 1 << SEGMENT_BITS
_BITMAP_BYTES: Final = SEGMENT_SIZE // 8
# From so many tasks on a set is a bitmap, although up to 255 a list of 16-bit offsets is shorter: one of 80 takes
# twelve microseconds to read, a bitmap half of one. A length of 512 bytes always means a bitmap.
_SPARSE: Final = 64

_INT64: Final = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Posting:
    """The tasks of a segment that have a term.

    Attributes:
        term: The term's digest, a UUID in hex.
        number: For a key with an integer, the integer; else 0.
        members: The tasks, encoded.
    """

    term: str
    number: int
    members: bytes


class Lookup(NamedTuple):
    """Postings to look up: those of a term, with a number in a range (both ends included)."""

    term: str
    low: int = 0
    high: int = 0

    @property
    def is_range(self) -> bool:
        """Whether a segment may hold several of these postings."""
        return self.low != self.high


@dataclass(frozen=True, slots=True)
class Condition:
    """A requirement in terms of postings: the tasks in any of them, or those in none."""

    lookups: tuple[Lookup, ...]
    negative: bool


def _term(family: bytes, *texts: str) -> str:
    # A digest, because keys and values have any length and a btree's do not. 128 bits: nobody finds two that collide.
    digest = blake2b(family, digest_size=16)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8))
        digest.update(encoded)
    return digest.hexdigest()


def postings(labels: Iterable[tuple[int, Mapping[str, str]]]) -> list[Posting]:
    """All postings of a segment.

    Args:
        labels: Offset in the segment and labels, of every task that exists in it.
    """
    by_label: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for offset, given in labels:
        for label in given.items():
            by_label[label].append(offset)
    by_key: defaultdict[str, list[int]] = defaultdict(list)
    by_number: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    result = []
    for (key, value), having in by_label.items():
        by_key[key] += having
        if (number := int64_of(value)) is not None:
            by_number[key, number] += having
        result.append(Posting(_term(b"value", key, value), 0, encode(having)))
    result += [Posting(_term(b"key", key), 0, encode(having)) for key, having in by_key.items()]
    result += [Posting(_term(b"number", key), number, encode(having)) for (key, number), having in by_number.items()]
    return result


def encode(having: list[int]) -> bytes:
    """A set of offsets as bytes: a short list, or a bitmap."""
    if len(having) < _SPARSE:
        packed = array("H", having)
        if sys.byteorder == "big":
            packed.byteswap()
        return packed.tobytes()
    bitmap = bytearray(_BITMAP_BYTES)
    for offset in having:
        bitmap[offset >> 3] |= 1 << (offset & 7)
    return bytes(bitmap)


def decode(members: bytes) -> int:
    """The set that `encode` made bytes of."""
    if len(members) == _BITMAP_BYTES:
        return int.from_bytes(members, "little")
    packed = array("H", members)
    if sys.byteorder == "big":
        packed.byteswap()
    result = 0
    for offset in packed:
        result |= 1 << offset
    return result


def conditions(requirements: Iterable[LabelRequirement]) -> list[Condition]:
    """Where to look for the tasks that meet some requirements.

    Bounds of one key make one range: each alone may hold nearly all its numbers where both together hold few.
    """
    result = []
    ranges: dict[str, tuple[int, int]] = {}
    for requirement in requirements:
        key = requirement.key
        low, high = ranges.get(key, _INT64)
        match requirement.operator:
            case LabelOperator.GREATER_THAN:
                ranges[key] = max(low, requirement.bound + 1), high
            case LabelOperator.LESS_THAN:
                ranges[key] = low, min(high, requirement.bound - 1)
            case LabelOperator.EXISTS:
                result.append(Condition((Lookup(_term(b"key", key)),), negative=False))
            case LabelOperator.DOES_NOT_EXIST:
                result.append(Condition((Lookup(_term(b"key", key)),), negative=True))
            case operator:
                lookups = tuple(Lookup(_term(b"value", key, value)) for value in requirement.values)
                negative = operator in {LabelOperator.NOT_EQUALS, LabelOperator.NOT_IN}
                result.append(Condition(lookups, negative=negative))
    for key, (low, high) in ranges.items():
        found = (Lookup(_term(b"number", key), low, high),) if low <= high else ()
        result.append(Condition(found, negative=False))
    return result


def meeting(conditions: Iterable[Condition], found: Mapping[Lookup, int], everyone: int) -> int:
    """The tasks of a segment that meet all of the conditions.

    Args:
        conditions: The selector.
        found: For each lookup the tasks in its postings; one that is left out has none.
        everyone: All tasks of the segment.
    """
    result = everyone
    for one in conditions:
        having = 0
        for lookup in one.lookups:
            having |= found.get(lookup, 0)
        result &= ~having if one.negative else having
        if not result:
            break
    return result


def offsets(tasks: int, *, first: int = 0, descending: bool = False) -> Iterator[int]:
    """The offsets in a set, in order, counted from `first`."""
    # 64 tasks at a time: to take the lowest bit off the whole int costs 0.3 µs a task, of a word 0.1.
    words = array("Q", tasks.to_bytes(_BITMAP_BYTES, sys.byteorder))
    if sys.byteorder == "big":
        words.reverse()
    starts = range(first, first + SEGMENT_SIZE, 64)
    numbered = list(zip(starts, words, strict=True))
    for start, word in reversed(numbered) if descending else numbered:
        rest = word
        while rest:
            bit = rest if descending else rest & -rest
            place = bit.bit_length() - 1
            rest ^= 1 << place
            yield start + place
