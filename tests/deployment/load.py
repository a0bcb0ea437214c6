"""Two workers and two creators, as processes, and what they did."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from cli_run import COMMAND, environment
from deployment.nodes import eventually, kill

from solti_store import TaskPhase, TaskQuery, TaskStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = 2


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A creation that was answered: with success, or not."""

    answer: str
    task_id: str
    at: float


class Load:
    """What runs against a URL."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._files = [folder / f"creator-{number}" for number in range(COUNT)]
        self.workers_log = folder / "workers.log"
        paths = os.pathsep.join(path for path in sys.path if path)
        creators = [
            [sys.executable, "-m", "deployment.creator", url, str(file), f"c{number}"]
            for number, file in enumerate(self._files)
        ]
        workers = [
            [*COMMAND, "-v", "work", "-q", "--id", f"w{number}", "--lease", "5s", "--concurrency", "4"]
            for number in range(COUNT)
        ]
        with self.workers_log.open("wb") as log:
            self.processes = [
                subprocess.Popen(argv, env=environment(url, PYTHONPATH=paths), stderr=log, start_new_session=True)
                for argv in [*creators, *workers]
            ]

    def answers(self) -> list[Acknowledged]:
        """All that the creators were answered so far, in order of time."""
        found = []
        for file in self._files:
            for line in file.read_text().splitlines() if file.exists() else ():
                answer, task_id, at = line.split()
                found.append(Acknowledged(answer, task_id, float(at)))
        return sorted(found, key=lambda one: one.at)

    def acknowledged(self) -> list[Acknowledged]:
        """The creations that succeeded."""
        return [one for one in self.answers() if one.answer == "ok"]

    def flows(self, since: float, *, count: int = 20) -> None:
        """Wait until every creator has had so many creations acknowledged after that time."""

        def enough() -> bool:
            late = [one for one in self.acknowledged() if one.at > since]
            return all(sum(one.task_id.startswith(f"c{number}-") for one in late) >= count for number in range(COUNT))

        eventually(enough, "creations that are acknowledged", self.workers_log)

    def stop_creating(self) -> None:
        """Let the creators end."""
        for file, process in zip(self._files, self.processes, strict=False):
            file.with_name(f"{file.name}.stop").touch()
            assert process.wait(60) == 0

    def longest_pause(self, since: float) -> float:
        """The longest time, in seconds, that no creation of any creator was acknowledged."""
        times = [one.at for one in self.acknowledged() if one.at > since]
        return max(later - earlier for earlier, later in pairwise(times))

    def check_all_done(self, store: TaskStore) -> int:
        """What was acknowledged is there, and the workers of the beginning ran it; how many there are."""
        wanted = {one.task_id for one in self.acknowledged()}
        unfinished = TaskQuery(phases=frozenset({TaskPhase.PENDING, TaskPhase.RUNNING}), limit=1)
        eventually(lambda: not store.list(unfinished), "the end of all tasks", self.workers_log)
        found = {str(task.id) for page in store.pages(TaskQuery(limit=1000)) for task in page}
        assert not wanted - found
        assert all(process.poll() is None for process in self.processes[COUNT:])
        return len(wanted)


@contextmanager
def load(url: str, folder: Path) -> Iterator[Load]:
    """The load; whatever happens, its processes are gone afterwards."""
    made = Load(url, folder)
    try:
        yield made
    finally:
        for process in made.processes:
            kill(process)
