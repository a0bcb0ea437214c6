"""The demo's account as tables, or as a JSON document."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from solti_store.cli.render import PHASE_STYLES, Column, Table, elapsed, emit, note, show_table

if TYPE_CHECKING:
    from solti_store.cli.demo.account import Account
    from solti_store.cli.demo.crew import Member

__all__ = ["show_account", "show_json", "suggest"]

_VERDICTS = {"ok": "green", "FAILED": "bold red"}


def show_account(account: Account) -> None:
    """Write the tables to stdout."""
    parts = [_endings(account), _workers(account), _rescues(account), _checks(account)]
    for table in parts:
        emit("\n")
        show_table(table)
    attempts = sum(len(entry.runs) for entry in account.entries)
    emit(
        f"\n{len(account.entries)} tasks, {attempts} attempts, {len(account.members)} workers, "
        f"{account.seconds:.1f}s from submission until all was final\n"
    )


def _endings(account: Account) -> Table:
    rows = []
    for phase in PHASE_STYLES:
        entries = [entry for entry in account.entries if entry.task.phase == phase]
        if entries:
            roles = Counter(entry.job.role.value for entry in entries)
            attempts = sum(len(entry.runs) for entry in entries)
            what = ", ".join(f"{count} {role}" for role, count in roles.most_common())
            rows.append((phase, str(len(entries)), str(attempts), what))
    columns = [
        Column("PHASE", styles=PHASE_STYLES),
        Column("TASKS", is_number=True),
        Column("ATTEMPTS", is_number=True),
        Column("WHICH", is_flexible=True),
    ]
    return Table(columns, rows, "How the tasks ended")


def _workers(account: Account) -> Table:
    lost = Counter(str(rescue.lost.agent) for rescue in account.rescues())
    rows = []
    for member in account.members:
        phases = Counter(run.phase.value for entry in account.entries for run in entry.runs if run.agent == member.name)
        gone = lost[member.name]
        others = phases["timeout"] + phases["canceled"]
        cells = (phases.total(), phases["succeeded"], phases["failed"] - gone, others, gone)
        rows.append((member.name, *(str(cell) for cell in cells), _end_of(member)))
    numbers = ("ATTEMPTS", "SUCCEEDED", "FAILED", "STOPPED", "LOST")
    columns = [
        Column("WORKER", is_name=True),
        *(Column(title, is_number=True) for title in numbers),
        Column("END", is_flexible=True, styles={cell[-1]: "bold red" for cell in rows if "SIGKILL" in cell[-1]}),
    ]
    return Table(columns, rows, "Who ran them")


def _end_of(member: Member) -> str:
    if member.killed_after_s is not None:
        return f"SIGKILL at {member.killed_after_s:.1f}s"
    return "finished" if member.process.returncode == 0 else f"exit code {member.process.returncode}"


def _rescues(account: Account) -> Table:
    rows = []
    for rescue in account.rescues():
        again, lost = rescue.again, rescue.lost
        waited = "-" if again is None else elapsed(again.started_at - lost.started_at)
        rows.append(
            (
                rescue.entry.task.id,
                rescue.entry.job.role.value,
                f"#{lost.attempt} on {_short(lost.agent)}",
                "-" if again is None else f"#{again.attempt} on {_short(again.agent)}",
                waited,
                rescue.entry.task.phase.value,
            )
        )
    columns = [
        Column("TASK", is_name=True),
        Column("ROLE"),
        Column("LOST", is_flexible=True),
        Column("RESCUED AS", is_flexible=True),
        Column("AFTER", is_number=True),
        Column("END", styles=PHASE_STYLES),
    ]
    return Table(columns, rows, "Rescued attempts")


def _short(agent: str | None) -> str:
    """The worker's name without what all of this run's names begin with."""
    return (agent or "nobody").rpartition("-")[2]


def _checks(account: Account) -> Table:
    rows = [("ok" if check.is_met else "FAILED", check.what, check.result) for check in account.checks()]
    return Table([Column("", styles=_VERDICTS), Column("CHECK", is_flexible=True), Column("FOUND")], rows, "Checks")


def show_json(account: Account) -> None:
    """Write one JSON document to stdout."""
    document = {
        "run": account.run,
        "seconds": round(account.seconds, 3),
        "tasks": [
            {
                "id": entry.task.id,
                "role": entry.job.role.value,
                "phase": entry.task.phase.value,
                "executions": entry.executions,
                "runs": [run.to_dict() for run in entry.runs],
            }
            for entry in account.entries
        ],
        "workers": [
            {"id": member.name, "pid": member.process.pid, "killedAfterSeconds": member.killed_after_s}
            for member in account.members
        ],
        "rescued": [
            {
                "id": rescue.entry.task.id,
                "lost": rescue.lost.to_dict(),
                "again": None if rescue.again is None else rescue.again.to_dict(),
            }
            for rescue in account.rescues()
        ],
        "checks": [{"what": check.what, "found": check.result, "ok": check.is_met} for check in account.checks()],
    }
    emit(json.dumps(document, separators=(",", ":")) + "\n")


def suggest(account: Account) -> None:
    """Tell on stderr what to look at next."""
    rescued = next(iter(account.rescues()), None)
    exhausted = next((entry for entry in account.entries if entry.task.phase == "exhausted"), None)
    note("\nThe tasks are still there. Try next:")
    if rescued is not None:
        note(f"  solti-store runs {rescued.entry.task.id}")
    if exhausted is not None:
        note(f"  solti-store get {exhausted.task.id}")
    note("  solti-store list --phase failed --phase timeout")
