"""What the store knows of a worker."""

from enum import StrEnum

from pydantic import Field

from solti_store.model._base import Value, is_none
from solti_store.model.kind import KindName
from solti_store.model.labels import Labels
from solti_store.model.scalars import U32, U64, AgentId, Timestamp

__all__ = ["AgentState", "AgentStatus"]


class AgentState(StrEnum):
    """Whether a worker lives."""

    ACTIVE = "active"
    DRAINING = "draining"
    SILENT = "silent"
    STOPPED = "stopped"
    LOST = "lost"


class AgentStatus(Value):
    """One incarnation of a worker, as the store sees it.

    Attributes:
        id: The worker's name, which other incarnations may bear too.
        seq: This incarnation.
        state: `active`; `draining` when it is to run what it has and take on no more; `silent` once its lease is over,
            until somebody reaps it; `lost` then; `stopped` when it signed off.
        kinds: The kinds of task it runs, in alphabetical order.
        capacity: How many attempts it takes on at the same time, by its own account; None when it did not say.
        labels: What runner selectors see of it.
        lease: How long it may be silent, in milliseconds.
        registered_at: When it began.
        heartbeat_at: When it was heard of last.
        running: How many attempts it runs now.
    """

    id: AgentId
    seq: U64
    state: AgentState
    kinds: tuple[KindName, ...]
    capacity: U32 | None = Field(default=None, exclude_if=is_none)
    labels: Labels
    lease: U64
    registered_at: Timestamp
    heartbeat_at: Timestamp
    running: U64
