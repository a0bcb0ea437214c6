"""Who may enter a slot: at once, in the queue, in somebody's stead, or not at all."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from solti_store.model import AdmissionPolicy

__all__ = ["MAX_SLOT_QUEUE", "SUPERSEDED", "Admission", "admission"]

#: How many tasks may wait for a slot unless the store is told otherwise (`domain.md`, Slots).
MAX_SLOT_QUEUE: Final = 100

#: The error of a waiting task whose place a replacing one took (`domain.md`, Slots).
SUPERSEDED: Final = "superseded_by_replace"


class Admission(Enum):
    """What becomes of a task that is created in a slot."""

    OWNER = auto()
    """It owns the slot."""

    QUEUED = auto()
    """It waits behind all others."""

    SUCCESSOR = auto()
    """It takes the place of whoever waits first, and the owner is canceled."""

    REFUSED_BUSY = auto()
    """The slot has an owner, and the task does not wait."""

    REFUSED_FULL = auto()
    """Too many wait already."""


def admission(policy: AdmissionPolicy, *, owned: bool, waiting: int, max_waiting: int) -> Admission:
    """Decide by the table of `domain.md`, Slots.

    Args:
        policy: The task's.
        owned: Whether the slot has an owner.
        waiting: How many wait for it.
        max_waiting: How many may.
    """
    if not owned:
        return Admission.OWNER
    if policy is AdmissionPolicy.REPLACE:
        return Admission.SUCCESSOR
    if policy is AdmissionPolicy.QUEUE:
        return Admission.QUEUED if waiting < max_waiting else Admission.REFUSED_FULL
    return Admission.REFUSED_BUSY
