"""What a task is: immutable values and their exact JSON. No SQL, no clock, no I/O."""

from solti_store.errors import (
    Invalid,
    InvalidSelector,
    ModelError,
    UnknownAdmissionPolicy,
    UnknownJitterPolicy,
    UnknownRestartPolicy,
    UnknownTaskPhase,
)
from solti_store.model._base import Value
from solti_store.model.agent import AgentState, AgentStatus
from solti_store.model.change import Bookmark, ChangeKind, EventType, TaskChange
from solti_store.model.env import KeyValue, RunnerEnv, TaskEnv, merge_env
from solti_store.model.kind import (
    TASK_KINDS,
    Container,
    ContainerSpec,
    Embedded,
    KindName,
    Subprocess,
    TaskKind,
    Wasm,
    WasmSpec,
)
from solti_store.model.labels import Labels
from solti_store.model.phase import ACTIVE_PHASES, TERMINAL_PHASES, TaskPhase
from solti_store.model.policy import AdmissionPolicy, BackoffPolicy, JitterPolicy, RestartPolicy
from solti_store.model.query import MAX_REQUIREMENTS, TaskOrder, TaskPage, TaskQuery
from solti_store.model.requirement import LabelOperator, LabelRequirement, requirements_of
from solti_store.model.resource import ObjectMeta, Task, TaskRun, TaskStatus
from solti_store.model.scalars import (
    AGENT_ID_MAX_LEN,
    DEFAULT_LIMIT,
    MAX_LIMIT,
    MAX_SCRIPT_BODY_BYTES,
    SLOT_MAX_LEN,
    TASK_ID_MAX_LEN,
    AgentId,
    Flag,
    Slot,
    TaskId,
    Timeout,
    Timestamp,
)
from solti_store.model.selector import LabelSelector, RunnerSelector, SelectorOperator, SelectorRequirement
from solti_store.model.selector_text import Selector
from solti_store.model.spec import TaskSpec, TaskSpecBuilder
from solti_store.model.subprocess import (
    Command,
    CustomRuntime,
    Runtime,
    Script,
    SubprocessMode,
    SubprocessSpec,
)

__all__ = [
    "ACTIVE_PHASES",
    "AGENT_ID_MAX_LEN",
    "DEFAULT_LIMIT",
    "MAX_LIMIT",
    "MAX_REQUIREMENTS",
    "MAX_SCRIPT_BODY_BYTES",
    "SLOT_MAX_LEN",
    "TASK_ID_MAX_LEN",
    "TASK_KINDS",
    "TERMINAL_PHASES",
    "AdmissionPolicy",
    "AgentId",
    "AgentState",
    "AgentStatus",
    "BackoffPolicy",
    "Bookmark",
    "ChangeKind",
    "Command",
    "Container",
    "ContainerSpec",
    "CustomRuntime",
    "Embedded",
    "EventType",
    "Flag",
    "Invalid",
    "InvalidSelector",
    "JitterPolicy",
    "KeyValue",
    "KindName",
    "LabelOperator",
    "LabelRequirement",
    "LabelSelector",
    "Labels",
    "ModelError",
    "ObjectMeta",
    "RestartPolicy",
    "RunnerEnv",
    "RunnerSelector",
    "Runtime",
    "Script",
    "Selector",
    "SelectorOperator",
    "SelectorRequirement",
    "Slot",
    "Subprocess",
    "SubprocessMode",
    "SubprocessSpec",
    "Task",
    "TaskChange",
    "TaskEnv",
    "TaskId",
    "TaskKind",
    "TaskOrder",
    "TaskPage",
    "TaskPhase",
    "TaskQuery",
    "TaskRun",
    "TaskSpec",
    "TaskSpecBuilder",
    "TaskStatus",
    "Timeout",
    "Timestamp",
    "UnknownAdmissionPolicy",
    "UnknownJitterPolicy",
    "UnknownRestartPolicy",
    "UnknownTaskPhase",
    "Value",
    "Wasm",
    "WasmSpec",
    "merge_env",
    "requirements_of",
]
