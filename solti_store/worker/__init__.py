"""The agent loop and its runners, over the public store only."""

from solti_store.worker.events import Finished, Reaped, Refused, Started, WorkerEvent, WorkerReport
from solti_store.worker.worker import Worker

__all__ = ["Finished", "Reaped", "Refused", "Started", "Worker", "WorkerEvent", "WorkerReport"]
