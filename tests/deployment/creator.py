"""A creator process: one task after another, each acknowledged one written down.

    python -m deployment.creator URL FILE PREFIX

A line is `ok ID TIME` or `unknown ID TIME`, in seconds of the machine's monotonic clock, one write each. It ends when
FILE.stop is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from support import spec

from solti_store import OutcomeUnknown, StoreUnavailable, TaskStore

PAUSE_S = 0.03


def main(url: str, file: str, prefix: str) -> None:
    """Create until told to stop."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stop = Path(f"{file}.stop")
    number = 0
    with TaskStore.open(url, pool_size=1) as store:
        while not stop.exists():
            number += 1
            task_id = f"{prefix}-{number}"
            try:
                store.create(task_id, spec(task_id))
                answer = "ok"
            except OutcomeUnknown:
                answer = "unknown"
            except StoreUnavailable:
                answer = "failed"
            os.write(log, f"{answer} {task_id} {time.monotonic()}\n".encode())
            # Not more than the workers can run on a busy machine.
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
