"""The agent loop and its runners, over the public store only."""

from solti_store.worker.events import Finished, Reaped, Refused, Started, WorkerEvent, WorkerReport
from solti_store.worker.runners.base import Control, Runner, RunnerUnavailable, Terms
from solti_store.worker.runners.container import ContainerRunner
from solti_store.worker.runners.embedded import EmbeddedCall, EmbeddedFunction, EmbeddedRunner, FatalError
from solti_store.worker.runners.subprocess import SubprocessRunner
from solti_store.worker.runners.wasm import WasmRunner
from solti_store.worker.worker import Worker

__all__ = [
    "ContainerRunner",
    "Control",
    "EmbeddedCall",
    "EmbeddedFunction",
    "EmbeddedRunner",
    "FatalError",
    "Finished",
    "Reaped",
    "Refused",
    "Runner",
    "RunnerUnavailable",
    "Started",
    "SubprocessRunner",
    "Terms",
    "WasmRunner",
    "Worker",
    "WorkerEvent",
    "WorkerReport",
]
