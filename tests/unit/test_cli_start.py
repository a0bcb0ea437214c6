"""Help, completion, exit codes: the command line before and around its commands."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_run import COMMAND, environment, run_cli

from solti_store import errors
from solti_store.cli import exits, main
from solti_store.cli.exits import Exit

COMMANDS = ("demo", "submit", "get", "list", "runs", "logs", "cancel", "delete", "report", "work", "db")
HEAVY = ("sqlalchemy", "psycopg", "alembic", "solti_store.model", "solti_store.store", "asyncio", "rich")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom solti_store.cli import main\n"
        "codes = [main([]), main(['--help'])]\n"
        # For a command's own help Typer parses the options before it, and for that newer ones load pydantic.
        "early = 'pydantic' in sys.modules\n"
        f"codes += [main([name, '--help']) for name in {COMMANDS!r}]\n"
        f"print(early, [name for name in {HEAVY!r} if name in sys.modules], set(codes), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr == "False [] {0}\n"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_choices(shell: str) -> None:
    words = {"bash": "solti-store ca", "zsh": "solti-store ca", "fish": "solti-store ca"}[shell]
    env = {
        "_SOLTI_STORE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = run_cli(env=env)
    assert "cancel" in done.stdout
    assert "delete" not in done.stdout


def test_completion_offers_phases() -> None:
    env = {"_SOLTI_STORE_COMPLETE": "complete_bash", "COMP_WORDS": "solti-store list --phase ex", "COMP_CWORD": "3"}
    assert run_cli(env=env).stdout.split() == ["exhausted"]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "solti-store 0.1.0.dev0\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    # Found nowhere, as on a machine without it; everything else is as usual.
    code = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {missing!r} else find(name, *rest)\n"
        "from solti_store.cli import main\nsys.exit(main(['list']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: the command line needs {missing}: install solti-store[cli]\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.NotFound("a"), 3, "task 'a' does not exist"),
        (errors.AlreadyExists("a"), 4, "task 'a' already exists"),
        (errors.VersionConflict("a", expected=1, current=2), 4, "task 'a' is at resourceVersion 2, not 1"),
        (errors.AlreadyRunning("a", attempt=1), 4, "task 'a' is running already (attempt 1)"),
        (errors.Invalid("invalid model: no", field="spec.kind"), 2, "invalid model: no (at spec.kind)"),
        (errors.Invalid("invalid model: slot: no", field="slot"), 2, "invalid model: slot: no"),
        (errors.UnknownTaskPhase("unknown task phase: x"), 2, "unknown task phase: x"),
        (errors.InvalidCursor("bad"), 2, "bad"),
        (errors.StoreUnavailable("gone\n\tfor ever"), 5, "gone for ever"),
        (errors.SchemaMismatch("old"), 5, "old"),
        (errors.EmbeddedError("broken:\n  its log"), 5, "broken:\n  its log"),
        (errors.OutcomeUnknown("perhaps"), 6, "perhaps"),
        (errors.TransactionAborted("again"), 1, "again"),
        (exits.UsageError("what?"), 2, "what?"),
    ],
)
def test_every_error_is_one_message_and_a_code(
    error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits.report(error) == code
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_a_bug_is_one_line_too_and_a_traceback_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("a\nb")
    monkeypatch.delenv("SOLTI_STORE_DEBUG", raising=False)
    assert exits.report(error) == Exit.BUG
    said = capsys.readouterr().err
    assert said == "error: RuntimeError: a b; this is a bug: run with SOLTI_STORE_DEBUG=1 for the traceback\n"
    monkeypatch.setenv("SOLTI_STORE_DEBUG", "1")
    try:
        raise error
    except RuntimeError:
        exits.report(error)
    assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "no such command 'frob'"),
        (["--frob"], "no such option: --frob"),
        (["db"], "missing command"),
        (["get"], "missing argument 'ID'"),
        (["get", "a", "b"], "got unexpected extra argument"),
        (["get", "a b"], "invalid model: task_id contains forbidden byte 0x20 at position 1"),
        (["list", "-o", "yaml"], "invalid value for '--output'"),
        (["list", "--phase", "late"], "unknown task phase: late"),
        (["list", "--limit", "0"], "invalid value for '--limit'"),
        (["list", "--all", "--limit", "5"], "--all shows every page"),
        (["list", "--kind", "magic"], "invalid model: kind"),
        (["list", "--slot", "a/b"], "invalid model: slot"),
        (["submit"], "nothing to run"),
        (["submit", "a", "ls"], "got unexpected extra argument"),
        (["submit", "a", "--"], "nothing to run"),
        (["submit", "a", "--", " "], "invalid model: subprocess command cannot be empty"),
        (["submit", "--timeout", "5", "--", "ls"], "--timeout: expected a length of time"),
        (["submit", "--restart", "often", "--", "ls"], "unknown restart policy: often"),
        (["submit", "--admission", "maybe", "--", "ls"], "unknown admission policy: maybe"),
        (["submit", "--backoff", "2s:odd", "--", "ls"], "unknown jitter policy: odd"),
        (["submit", "--backoff", "2s..1s", "--", "ls"], "invalid model: backoff max_ms must be >= first_ms"),
        (["submit", "--max-retries", "0", "--", "ls"], "invalid value for '--max-retries'"),
        (["submit", "--max-retries", "4294967296", "--", "ls"], "invalid model: maxRetries"),
        (["submit", "--label", "x", "--", "ls"], "--label: expected KEY=VALUE"),
        (["submit", "--script", "perl", "--body", "1"], "--script: expected bash, python, node"),
        (["submit", "--script", "custom: :-e", "--body", "1"], "invalid model: custom runtime command cannot be empty"),
        (["submit", "--script", "bash"], "--script needs --body"),
        (["submit", "--script", "bash", "--body", ""], "invalid model: script body cannot be empty"),
        (["submit", "--script", "bash", "--body", "@"], "--body: name a file after @"),
        (["submit", "--body", "ls"], "--body is the text of a --script"),
        (["submit", "--file", "x", "--", "ls"], "--file holds the whole task, so it does not go with a command"),
        (
            ["submit", "--file", "x", "--no-fail-on-non-zero"],
            "--file holds the whole task, so it does not go with --no-f",
        ),
        (["submit", "--file", "/no/such"], "--file: cannot read '/no/such'"),
        (["submit", "x" * 65, "--", "ls"], "invalid model: slot length 65 exceeds max 64; the slot is named like"),
        (["submit", "caf\udce9", "--", "ls"], "invalid model: task_id contains forbidden byte"),
        (["delete", "a", "b", "--version", "1"], "--version is one task's"),
        (["delete", "a"], "give -y to delete without being asked"),
        (["db", "downgrade", "base"], "a downgrade may lose data"),
        (["--url", "postgresql://x", "db", "stop"], "this is about the private server"),
        (["work", "--lease", "0s"], "--lease: must be at least 1ms"),
        (["work", "--label", "x"], "--label: expected KEY=VALUE"),
        (["demo", "--tasks", "3"], "invalid value for '--tasks'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == Exit.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1


def test_a_reader_of_help_may_leave() -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" submit --help | true; echo "${PIPESTATUS[0]}"', "bash", *COMMAND],
        env=environment(PYTHONUNBUFFERED="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}


@pytest.mark.parametrize(("form", "module", "package"), [("parquet", "pyarrow", "pyarrow"), ("png", "PIL", "Pillow")])
def test_without_an_extra_one_line_says_what_to_install(form: str, module: str, package: str) -> None:
    # Found nowhere, as on a machine without it.
    code = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == '{module}' else find(name, *rest)\n"
        "from solti_store.cli import main\n"
        f"sys.exit(main(['--url', 'postgresql://h/x', 'report', 'tasks', '-o', '{form}']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: -o {form} needs {package}: install solti-store[{form}]\n"
