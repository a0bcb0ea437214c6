"""What becomes of a subprocess spec: arguments and environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from solti_store.model import Command, RunnerEnv, Runtime, Script, TaskEnv
from solti_store.worker.commandline import MAX_ARGUMENT_BYTES, arguments, environment


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (Command(command="ls", args=("-l", "a b")), ["ls", "-l", "a b"]),
        (Script.of(Runtime.BASH, "echo"), ["bash", "-c", "echo", "bash"]),
        (Script.of(Runtime.BASH, "echo", "-x", "y"), ["bash", "-c", "echo", "bash", "-x", "y"]),
        (Script.of(Runtime.PYTHON, "pass", "-x", "y"), ["python3", "-c", "pass", "-x", "y"]),
        (Script.of(Runtime.NODE, "1", "-x", "y"), ["node", "-e", "1", "--", "-x", "y"]),
        (Script.of(Runtime.custom("ruby", "-e"), "1", "-x", "y"), ["ruby", "-e", "1", "-x", "y"]),
    ],
)
def test_text_and_arguments_stand_where_the_interpreter_looks(mode: Command | Script, expected: list[str]) -> None:
    with arguments(mode) as argv:
        assert argv == expected


@pytest.mark.parametrize("runtime", [Runtime.BASH, Runtime.PYTHON, Runtime.NODE, Runtime.custom("ruby", "-e")])
def test_a_text_too_long_for_an_argument_is_a_private_file_for_a_while(runtime: Runtime) -> None:
    text = "é" * (MAX_ARGUMENT_BYTES // 2) + "12"
    with arguments(Script.of(runtime, text, "-x")) as argv:
        program, path, *rest = argv
        file = Path(path)
        assert (program, rest) == (runtime.argv_prefix[0], ["-x"])
        assert file.read_text() == text
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not file.parent.exists()


def test_the_longest_argument_is_measured_in_bytes() -> None:
    text = "x" * MAX_ARGUMENT_BYTES
    with arguments(Script.of(Runtime.PYTHON, text)) as argv:
        assert argv[1:] == ["-c", text]


def test_the_file_is_removed_when_the_run_breaks() -> None:
    found: list[Path] = []

    def break_off() -> None:
        with arguments(Script.of(Runtime.BASH, "#" * 200_000)) as argv:
            found.append(Path(argv[1]))
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert not found[0].parent.exists()


def test_the_runner_wins_over_the_task_and_the_task_over_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A", "B", "C"):
        monkeypatch.setenv(name, "worker")
    env = environment(TaskEnv({"B": "task", "C": "task", "D": "task"}), RunnerEnv({"C": "runner", "E": "runner"}))
    assert {name: env[name] for name in "ABCDE"} == {
        "A": "worker",
        "B": "task",
        "C": "runner",
        "D": "task",
        "E": "runner",
    }
