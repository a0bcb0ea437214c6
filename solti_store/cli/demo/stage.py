"""What the demo shows while it runs: a live bar on a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol, Self

from solti_store.cli.render import PHASE_STYLES, console, is_fancy, note

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.progress import Progress, TaskID

__all__ = ["Stage", "open_stage"]

_PLAIN_EVERY_S = 1.0


class Stage(Protocol):
    """Where the demo tells what happens."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str, style: str = "") -> None:
        """Tell of something that happened."""

    def progress(self, final: int, total: int, phases: Iterable[str]) -> None:
        """Show how far it is: tasks that are final, of how many, and the phase of each."""


def open_stage() -> Stage:
    """The stage that fits stderr."""
    return _Live() if is_fancy(stderr=True) else _Plain()


class _Plain:
    def __init__(self) -> None:
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str, style: str = "") -> None:
        del style
        note(f"{time.monotonic() - self._start:5.1f}s  {text}")

    def progress(self, final: int, total: int, phases: Iterable[str]) -> None:
        now = time.monotonic()
        if now - self._shown >= _PLAIN_EVERY_S or final == total:
            self._shown = now
            counts = ", ".join(f"{count} {phase}" for phase, count in _counts(phases))
            self.say(f"{final} of {total} final: {counts}")


class _Live:
    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._progress: Progress = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f} final"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=console(stderr=True),
            transient=True,
        )
        self._bar: TaskID = self._progress.add_task("", total=1, counts="")
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str, style: str = "") -> None:
        from rich.text import Text  # noqa: PLC0415

        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{time.monotonic() - self._start:5.1f}s  ", "dim")
        line.append(text, style)
        self._progress.console.print(line)

    def progress(self, final: int, total: int, phases: Iterable[str]) -> None:
        counts = " ".join(
            f"[{PHASE_STYLES[phase]}]{count} {phase}[/]" for phase, count in _counts(phases) if phase != "pending"
        )
        self._progress.update(self._bar, completed=final, total=total, counts=counts)


def _counts(phases: Iterable[str]) -> list[tuple[str, int]]:
    counted = Counter(phases)
    return [(phase, counted[phase]) for phase in PHASE_STYLES if counted[phase]]
