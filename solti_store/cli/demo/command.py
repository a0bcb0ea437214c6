"""The command `demo`."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli.exits import Exit
from solti_store.cli.render import Output, emit, note
from solti_store.cli.session import Session, open_store, session_of
from solti_store.cli.tasks import OutputOption

if TYPE_CHECKING:
    from solti_store.cli.demo.account import Account
    from solti_store.cli.demo.plan import Job
    from solti_store.store import TaskStore

__all__ = ["demo"]


def demo(
    context: typer.Context,
    *,
    tasks: Annotated[int, typer.Option(metavar="N", min=24, max=999, help="How many tasks.")] = 200,
    workers: Annotated[
        int, typer.Option(metavar="N", min=2, max=16, help="How many worker processes; one is killed.")
    ] = 3,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Leave the tasks there, to look at.")] = True,
    output: OutputOption = Output.TABLE,
) -> int:
    """Run real tasks on real workers, and kill one of them.

    Some tasks fail and are retried, some fail for good, one takes too long, some are canceled, some run one after the
    other in one slot, and one is replaced. In the end every task must be final and every attempt accounted for; exit
    code 1 if that is not so.
    """
    folder = Path(tempfile.mkdtemp(prefix="solti-demo-"))
    is_met = False
    try:
        with open_store(context) as store:
            account = _perform(store, session_of(context), tasks, workers, folder)
            if not keep:
                _delete(store, [entry.job for entry in account.entries])
        is_met = all(check.is_met for check in account.checks())
        _show(account, output, keep=keep)
    except KeyboardInterrupt:
        is_met = True  # nothing in the logs that anybody would want
        raise
    finally:
        if is_met:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            note(f"the workers' logs are in {folder}")
    return Exit.OK if is_met else Exit.FAILED


def _perform(store: "TaskStore", session: Session, tasks: int, workers: int, folder: Path) -> "Account":
    from solti_store.cli.demo.account import gather  # noqa: PLC0415 - need the model
    from solti_store.cli.demo.conduct import Conductor  # noqa: PLC0415
    from solti_store.cli.demo.crew import Crew  # noqa: PLC0415
    from solti_store.cli.demo.plan import make_plan, new_run  # noqa: PLC0415
    from solti_store.cli.demo.stage import open_stage  # noqa: PLC0415

    run = new_run()
    jobs = make_plan(run, tasks, workers, folder)
    with open_stage() as stage, _deleted_on_interrupt(store, jobs), Crew(run, workers, session, folder) as crew:
        stage.say(f"starting {workers} workers")
        seconds = Conductor(store, jobs, crew, stage).run()
        crew.dismiss()
        return gather(store, run, jobs, crew.members, seconds)


@contextmanager
def _deleted_on_interrupt(store: "TaskStore", jobs: "Sequence[Job]") -> Iterator[None]:
    """No worker but this run's takes its tasks, so those that nobody will run any more are not left behind."""
    try:
        yield
    except KeyboardInterrupt:
        _delete(store, jobs)
        raise


def _delete(store: "TaskStore", jobs: "Sequence[Job]") -> None:
    for job in jobs:
        store.delete(job.task_id)


def _show(account: "Account", output: Output, *, keep: bool) -> None:
    from solti_store.cli.demo.tables import show_account, show_json, suggest  # noqa: PLC0415

    if output is Output.JSON:
        show_json(account)
    elif output is Output.NAME:
        emit("".join(f"{entry.task.id}\n" for entry in account.entries))
    else:
        show_account(account)
        if keep:
            suggest(account)
