"""What happened in the demo, read back from the store, and whether that is what must have."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from solti_store.cli.demo.plan import Job, Role, is_final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solti_store.cli.demo.crew import Member
    from solti_store.model import Task, TaskRun
    from solti_store.store import TaskStore

__all__ = ["Account", "Check", "Entry", "Rescue", "gather"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A task of the demo in the end.

    Attributes:
        job: What it was to be.
        task: What the store says.
        runs: Its attempts.
        executions: How often its script really began, by its ledger.
    """

    job: Job
    task: Task
    runs: Sequence[TaskRun]
    executions: int


@dataclass(frozen=True, slots=True)
class Rescue:
    """An attempt that was lost with its worker.

    Attributes:
        entry: The task.
        lost: The attempt.
        again: The attempt that followed it; None if none did.
    """

    entry: Entry
    lost: TaskRun
    again: TaskRun | None


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must be so.

    Attributes:
        what: What.
        result: What was found.
        is_met: Whether it is so.
    """

    what: str
    result: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that there is to tell.

    Attributes:
        run: The name of this run of the demo.
        entries: The tasks.
        members: The workers.
        seconds: From submission until all was final.
    """

    run: str
    entries: Sequence[Entry]
    members: Sequence[Member]
    seconds: float

    @property
    def victim(self) -> Member | None:
        """The worker that was killed."""
        return next((member for member in self.members if member.killed_after_s is not None), None)

    def rescues(self) -> list[Rescue]:
        """The attempts that were closed because their worker fell silent, and what followed each."""
        return [
            Rescue(entry, run, next((later for later in entry.runs if later.attempt > run.attempt), None))
            for entry in self.entries
            for run in entry.runs
            if (run.error or "").startswith("lease expired: ")
        ]

    def checks(self) -> list[Check]:
        """All that must be so, whatever the timing was."""
        total = len(self.entries)
        attempts = sum(len(entry.runs) for entry in self.entries)
        rescues = self.rescues()
        victim = self.victim
        of_victim = [rescue for rescue in rescues if victim is not None and rescue.lost.agent == victim.name]
        retried = [rescue for rescue in rescues if rescue.entry.job.spec.restart.type != "never"]
        final = sum(is_final(entry.job, entry.task) for entry in self.entries)
        planned = sum(entry.task.phase is entry.job.end for entry in self.entries)
        numbered = sum(_is_numbered(entry) for entry in self.entries)
        once = sum(entry.executions <= len(entry.runs) for entry in self.entries)
        taken = sum(rescue.again is not None and rescue.again.agent != rescue.lost.agent for rescue in retried)
        gone = [member for member in self.members if member is not victim and member.process.returncode != 0]
        return [
            Check("every task is final", f"{final} of {total}", final == total),
            Check("every task ended as planned", f"{planned} of {total}", planned == total),
            Check("attempts are numbered 1..n, each ended once", f"{attempts} attempts", numbered == total),
            Check(
                "no attempt ran twice, say the scripts' ledgers",
                f"{sum(entry.executions for entry in self.entries)} executions",
                once == total,
            ),
            Check("tasks of one slot ran one after the other, in order", *_in_line(self.entries)),
            Check("the replaced task gave way to the other", *_replaced(self.entries)),
            Check(
                "a worker was killed while it held attempts",
                f"{len(of_victim)} were lost" if victim else "nobody was",
                bool(of_victim),
            ),
            Check(
                "other workers took over what was lost",
                f"{taken} of {len(retried)}",
                taken == len(retried),
            ),
            Check(
                "the other workers ended in good order",
                f"{len(self.members) - len(gone) - bool(victim)} of {len(self.members) - bool(victim)}",
                not gone,
            ),
        ]


def _is_numbered(entry: Entry) -> bool:
    numbers = [run.attempt for run in entry.runs]
    return numbers == list(range(1, entry.task.status.attempt + 1)) and all(
        run.phase.is_terminal and run.finished_at is not None for run in entry.runs
    )


def _of(entries: Sequence[Entry], role: Role) -> list[Entry]:
    return [entry for entry in entries if entry.job.role is role]


def _in_line(entries: Sequence[Entry]) -> tuple[str, bool]:
    """Whether who waited in line ran in the order of submission, and nobody before the one ahead was done."""
    runs = [run for entry in _of(entries, Role.IN_LINE) for run in entry.runs]
    apart = all(
        before.finished_at is not None and before.finished_at <= after.started_at for before, after in pairwise(runs)
    )
    return f"{len(runs)} attempts", apart


def _replaced(entries: Sequence[Entry]) -> tuple[str, bool]:
    ends = [run.finished_at for entry in _of(entries, Role.REPLACED) for run in entry.runs]
    starts = [run.started_at for entry in _of(entries, Role.REPLACING) for run in entry.runs]
    met = all(end is not None and end <= start for end in ends for start in starts)
    return f"{len(starts)} after {len(ends)}", met


def gather(store: TaskStore, run: str, jobs: Sequence[Job], members: Sequence[Member], seconds: float) -> Account:
    """Read back what happened."""
    entries = []
    for job in jobs:
        executions = len(job.ledger.read_text().splitlines()) if job.ledger.exists() else 0
        entries.append(Entry(job, store.get(job.task_id), store.runs(job.task_id), executions))
    return Account(run, entries, members, seconds)
