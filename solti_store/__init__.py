"""A durable task registry on PostgreSQL.

The public names, loaded when first used: `import solti_store` alone costs nothing, so the command line's help and
completion stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solti_store.errors import AgentLost as AgentLost
    from solti_store.errors import AlreadyExists as AlreadyExists
    from solti_store.errors import AlreadyRunning as AlreadyRunning
    from solti_store.errors import Blocker as Blocker
    from solti_store.errors import EmbeddedError as EmbeddedError
    from solti_store.errors import FeedExpired as FeedExpired
    from solti_store.errors import FeedUnavailable as FeedUnavailable
    from solti_store.errors import Invalid as Invalid
    from solti_store.errors import InvalidCursor as InvalidCursor
    from solti_store.errors import LeaseLost as LeaseLost
    from solti_store.errors import LockTimeout as LockTimeout
    from solti_store.errors import ModelError as ModelError
    from solti_store.errors import NotFound as NotFound
    from solti_store.errors import OutcomeUnknown as OutcomeUnknown
    from solti_store.errors import SchemaMismatch as SchemaMismatch
    from solti_store.errors import SlotBusy as SlotBusy
    from solti_store.errors import SlotQueueFull as SlotQueueFull
    from solti_store.errors import SoltiStoreError as SoltiStoreError
    from solti_store.errors import StoreUnavailable as StoreUnavailable
    from solti_store.errors import TransactionAborted as TransactionAborted
    from solti_store.errors import VersionConflict as VersionConflict
    from solti_store.model import AdmissionPolicy as AdmissionPolicy
    from solti_store.model import AgentState as AgentState
    from solti_store.model import AgentStatus as AgentStatus
    from solti_store.model import BackoffPolicy as BackoffPolicy
    from solti_store.model import Bookmark as Bookmark
    from solti_store.model import ChangeKind as ChangeKind
    from solti_store.model import Container as Container
    from solti_store.model import Embedded as Embedded
    from solti_store.model import EventType as EventType
    from solti_store.model import LabelSelector as LabelSelector
    from solti_store.model import RestartPolicy as RestartPolicy
    from solti_store.model import RunnerSelector as RunnerSelector
    from solti_store.model import Runtime as Runtime
    from solti_store.model import Selector as Selector
    from solti_store.model import Subprocess as Subprocess
    from solti_store.model import Task as Task
    from solti_store.model import TaskChange as TaskChange
    from solti_store.model import TaskOrder as TaskOrder
    from solti_store.model import TaskPage as TaskPage
    from solti_store.model import TaskPhase as TaskPhase
    from solti_store.model import TaskQuery as TaskQuery
    from solti_store.model import TaskRun as TaskRun
    from solti_store.model import TaskSpec as TaskSpec
    from solti_store.model import Wasm as Wasm
    from solti_store.ops.agents import Agent as Agent
    from solti_store.ops.agents import CancelRequest as CancelRequest
    from solti_store.ops.closing import Reaped as Reaped
    from solti_store.ops.feed import Changes as Changes
    from solti_store.ops.retention import Pruned as Pruned
    from solti_store.ops.rows import Claim as Claim
    from solti_store.retry import RetryPolicy as RetryPolicy
    from solti_store.rules.doctor import Diagnosis as Diagnosis
    from solti_store.rules.doctor import DoctorLimits as DoctorLimits
    from solti_store.rules.doctor import Finding as Finding
    from solti_store.rules.doctor import Severity as Severity
    from solti_store.rules.outcome import Outcome as Outcome
    from solti_store.rules.retention import Retention as Retention
    from solti_store.rules.why import Why as Why
    from solti_store.rules.why import WhyReason as WhyReason
    from solti_store.store import AsyncTaskStore as AsyncTaskStore
    from solti_store.store import TaskStore as TaskStore

__version__ = "0.1.0.dev0"

_HOMES = {
    "solti_store.errors": (
        "AgentLost AlreadyExists AlreadyRunning Blocker EmbeddedError FeedExpired FeedUnavailable Invalid InvalidCursor"
        " LeaseLost LockTimeout ModelError NotFound OutcomeUnknown SchemaMismatch SlotBusy SlotQueueFull"
        " SoltiStoreError StoreUnavailable TransactionAborted VersionConflict"
    ),
    "solti_store.model": (
        "AdmissionPolicy AgentState AgentStatus BackoffPolicy Bookmark ChangeKind Container Embedded EventType"
        " LabelSelector RestartPolicy RunnerSelector Runtime Selector Subprocess Task TaskChange TaskOrder TaskPage"
        " TaskPhase TaskQuery TaskRun TaskSpec Wasm"
    ),
    "solti_store.ops.agents": "Agent CancelRequest",
    "solti_store.ops.closing": "Reaped",
    "solti_store.ops.feed": "Changes",
    "solti_store.ops.retention": "Pruned",
    "solti_store.ops.rows": "Claim",
    "solti_store.retry": "RetryPolicy",
    "solti_store.rules.doctor": "Diagnosis DoctorLimits Finding Severity",
    "solti_store.rules.outcome": "Outcome",
    "solti_store.rules.retention": "Retention",
    "solti_store.rules.why": "Why WhyReason",
    "solti_store.store": "AsyncTaskStore TaskStore",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604 - strings, as the checker cannot see


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
