"""What the store knows of a worker."""

from enum import StrEnum

from solti_store.model._base import Value
from solti_store.model.kind import KindName
from solti_store.model.labels import Labels
from solti_store.model.scalars import U64, AgentId, Timestamp

__all__ = ["AgentState", "AgentStatus"]


class AgentState(StrEnum):
    """Whether a worker lives."""

    ACTIVE = "active"
    SILENT = "silent"
    STOPPED = "stopped"
    LOST = "lost"


class AgentStatus(Value):
    """One incarnation of a worker, as the store sees it.

    Attributes:
        id: The worker's name, which other incarnations may bear too.
        seq: This incarnation.
        state: `active`; `silent` once its lease is over, until somebody reaps it; `lost` then; `stopped` when it
            signed off.
        kinds: The kinds of task it runs, in alphabetical order.
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
    labels: Labels
    lease: U64
    registered_at: Timestamp
    heartbeat_at: Timestamp
    running: U64
