"""The commands that create, read and change tasks, as processes against a real database."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cli_run import COMMAND, data_of, environment, run_cli

from solti_store import Outcome, Subprocess, Task, TaskPhase, TaskSpec, TaskStore
from solti_store.model import BackoffPolicy, JitterPolicy, Labels, Slot, Timeout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def spec(slot: str) -> TaskSpec:
    return TaskSpec(slot=Slot(slot), kind=Subprocess.command("true"), timeout=Timeout(5000))


def fill(url: str, names: Sequence[str]) -> None:
    with TaskStore.open(url) as store:
        store.create_many([(name, spec(name)) for name in names])


# --- submit ---------------------------------------------------------------------------------------


def test_flags_make_the_task_that_they_say(database_url: str) -> None:
    flags = ["--slot", "lane", "--timeout", "1.5m", "--restart", "Always:60000", "--max-retries", "3"]
    flags += ["--backoff", "1s..5sx1.5:none", "--admission", "queue", "--label", "a=b", "-l", "c=d=e"]
    flags += ["--select", "gpu=yes", "-e", "K=1", "-e", "K=2", "--cwd", "/tmp", "--no-fail-on-non-zero", "-o", "json"]
    printed = data_of("submit", "t1", *flags, "--", "ls", "-la", "--", "x", url=database_url)
    task = Task.from_json(printed)
    with TaskStore.open(database_url) as store:
        assert task == store.get("t1")
    assert (task.id, task.phase, task.spec.slot, task.spec.timeout) == ("t1", TaskPhase.PENDING, "lane", 90_000)
    assert (str(task.spec.restart), task.spec.max_retries) == ("always:60000", 3)
    assert task.spec.backoff == BackoffPolicy(jitter=JitterPolicy.NONE, first_ms=1000, max_ms=5000, factor=1.5)
    assert task.spec.admission.value == "queue"
    assert task.spec.labels == Labels({"a": "b", "c": "d=e"})
    assert task.spec.runner_selector is not None
    assert task.spec.runner_selector.match_labels == Labels({"gpu": "yes"})
    expected = Subprocess.command("ls", "-la", "--", "x", cwd="/tmp", fail_on_non_zero=False).to_dict()
    expected["subprocess"]["env"] = [{"key": "K", "value": "1"}, {"key": "K", "value": "2"}]
    assert task.spec.kind == Subprocess.from_dict(expected)


def test_without_an_id_there_is_a_new_one_which_is_the_slot_too(database_url: str) -> None:
    first, second = (data_of("submit", "-o", "name", "--", "true", url=database_url).strip() for _ in range(2))
    assert first < second
    with TaskStore.open(database_url) as store:
        task = store.get(first)
    assert task.spec == TaskSpec(slot=Slot(first), kind=Subprocess.command("true"), timeout=Timeout(300_000))


def test_a_script_comes_from_the_command_line_a_file_or_stdin(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text("print('ü')\n")
    data_of("submit", "a", "--script", "bash", "--body", "echo $1", "--", "x", "-y", url=database_url)
    data_of("submit", "b", "--script", "python", "--body", f"@{file}", url=database_url)
    data_of("submit", "c", "--script", "custom:ruby:-e", "--body", "-", url=database_url, stdin="p 1")
    with TaskStore.open(database_url) as store:
        found = [store.get(name).spec.kind.to_dict()["subprocess"]["mode"]["script"] for name in "abc"]
    assert found[0] == {"runtime": "bash", "body": "ZWNobyAkMQ==", "args": ["x", "-y"]}
    assert found[1] == {"runtime": "python", "body": "cHJpbnQoJ8O8JykK"}
    assert found[2]["runtime"] == {"custom": {"command": "ruby", "flag": "-e"}}


def test_what_get_prints_can_be_submitted_under_another_id(database_url: str, tmp_path: Path) -> None:
    data_of("submit", "t", "--label", "a=ü", "--", "ls", url=database_url)
    document = data_of("get", "t", "-o", "json", url=database_url)
    file = tmp_path / "task.json"
    file.write_text(document)
    taken = run_cli("submit", "-f", str(file), url=database_url)
    assert (taken.returncode, taken.stdout, taken.stderr) == (4, "", "error: task 't' already exists\n")
    data_of("cancel", "t", url=database_url)  # which leaves its slot
    copy = Task.from_json(data_of("submit", "copy", "-f", str(file), "-o", "json", url=database_url))
    assert (copy.id, copy.spec) == ("copy", Task.from_json(document).spec)


def test_many_documents_are_created_in_order_or_not_at_all(database_url: str) -> None:
    lines = [json.dumps({"id": name, "spec": spec(name).to_dict()}) for name in ("c", "a", "b")]
    assert data_of("submit", "-f", "-", "-o", "name", url=database_url, stdin="\n".join(lines)) == "c\na\nb\n"
    array = "[" + ",".join([lines[0].replace('"c"', '"d"'), lines[1]]) + "]"
    refused = run_cli("submit", "-f", "-", url=database_url, stdin=array)
    assert (refused.returncode, refused.stderr) == (4, "error: task 'a' already exists\n")
    one_id = run_cli("submit", "x", "-f", "-", url=database_url, stdin=array)
    assert (one_id.returncode, one_id.stderr.startswith("error: one ID for 2 tasks")) == (2, True)
    page = json.loads(data_of("list", "-o", "json", url=database_url))
    assert [item["metadata"]["id"] for item in page["items"]] == ["c", "a", "b"]
    nothing = run_cli("submit", "-f", "-", "-o", "json", url=database_url, stdin="[]")
    assert (nothing.returncode, nothing.stdout) == (0, '{"items":[]}\n')


# --- get, list, runs -------------------------------------------------------------------------------


def test_get_prints_lines_the_document_or_the_name(database_url: str) -> None:
    fill(database_url, ["t"])
    with TaskStore.open(database_url) as store:
        assert data_of("get", "t", "-o", "json", url=database_url) == store.get("t").to_json() + "\n"
    assert data_of("get", "t", "-o", "name", url=database_url) == "t\n"
    shown = dict(line.split(None, 1) for line in data_of("get", "t", url=database_url).splitlines())
    assert (shown["ID"], shown["Phase"], shown["Runs"], shown["Timeout"]) == ("t", "pending", "true", "5s")
    # The global option is as good as the variable, and wins over it.
    assert data_of("--url", database_url, "get", "t", "-o", "name", url="postgresql://127.0.0.1:1/no") == "t\n"
    missing = run_cli("get", "u", url=database_url)
    assert (missing.returncode, missing.stdout, missing.stderr) == (3, "", "error: task 'u' does not exist\n")


def test_list_goes_page_by_page_or_all_at_once(database_url: str) -> None:
    names = [f"t{number}" for number in range(1, 6)]
    fill(database_url, names)
    first = json.loads(data_of("list", "--limit", "2", "--total", "-o", "json", url=database_url))
    assert ([item["metadata"]["id"] for item in first["items"]], first["total"]) == (names[:2], 5)
    second = run_cli("list", "--limit", "2", "--cursor", first["nextCursor"], "--total", url=database_url)
    assert [line.split()[0] for line in second.stdout.splitlines()] == ["ID", "t3", "t4"]
    said = re.fullmatch(
        r"5 in all\nthere are others before: --cursor (\S+)\nthere are more: --cursor \S+\n", second.stderr
    )
    assert said is not None
    before = json.loads(data_of("list", "--limit", "2", "--cursor", said[1], "-o", "json", url=database_url))
    assert [item["metadata"]["id"] for item in before["items"]] == names[:2]
    assert (before["nextCursor"] == first["nextCursor"], "prevCursor" in before) == (True, False)
    other = run_cli("list", "--slot", "t1", "--cursor", first["nextCursor"], url=database_url)
    assert other.returncode == 2
    assert other.stderr.startswith("error: the cursor is not of this query: ")
    assert data_of("list", "--all", "-o", "name", url=database_url).split() == names
    everything = json.loads(data_of("list", "--all", "--total", "-o", "json", url=database_url))
    assert (len(everything["items"]), everything["total"], "nextCursor" in everything) == (5, 5, False)


def test_all_means_more_than_the_largest_page(database_url: str) -> None:
    names = [f"t{number}" for number in range(1205)]
    fill(database_url, names)
    assert data_of("list", "--all", "-o", "name", url=database_url).split() == names
    everything = json.loads(data_of("list", "--all", "--total", "-o", "json", url=database_url))
    assert ([item["metadata"]["id"] for item in everything["items"]], everything["total"]) == (names, 1205)
    # The reader leaves after one line, in the middle of the output.
    piped = subprocess.run(
        ["bash", "-c", '"$@" list --all | head -1; echo "${PIPESTATUS[0]}"', "bash", *COMMAND],
        env=environment(database_url),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (piped.stdout.splitlines()[1], piped.stderr) == ("0", "")


def test_list_filters_by_phase_slot_and_kind(database_url: str) -> None:
    fill(database_url, ["waits", "runs", "fails"])
    with TaskStore.open(database_url) as store:
        store.start("runs")
        store.finish(store.start("fails"), Outcome.failed("no\nluck", exit_code=3))

    def names(*flags: str) -> list[str]:
        return data_of("list", "-o", "name", *flags, url=database_url).split()

    assert names("--active") == ["waits", "runs"]
    assert names("--terminal") == ["fails"]
    assert names("--phase", "failed", "--phase", "RUNNING") == ["runs", "fails"]
    assert names("--slot", "waits", "--kind", "subprocess") == ["waits"]
    assert names("--kind", "wasm") == []
    table = data_of("list", "--terminal", url=database_url).splitlines()
    assert table[1].split()[:3] == ["fails", "failed", "1"]
    assert table[1].endswith("no luck")


def test_list_filters_by_labels_agent_and_time_in_either_order(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        for name, env in (("a", "prod"), ("b", "dev"), ("c", "prod")):
            store.create(name, TaskSpec.builder(name, Subprocess.command("true"), 5000).labels({"env": env}).build())
        store.start("b", store.register("w1"))
    start = datetime.now(UTC)

    def names(*flags: str) -> list[str]:
        return data_of("list", "-o", "name", *flags, url=database_url).split()

    assert names("-l", "env=prod") == ["a", "c"]
    assert names("-l", "env in (dev, prod), !canary", "--desc") == ["c", "b", "a"]
    assert names("--selector", "env!=prod", "--phase", "running", "--all") == ["b"]
    assert names("--agent", "w1") == ["b"]
    assert names("--agent", "w2") == []
    assert names("--order", "updated") == ["a", "c", "b"]
    assert names("--order", "updated", "--desc", "--limit", "1") == ["b"]
    assert names("--created-since", "1h", "--updated-before", (start + timedelta(hours=1)).isoformat()) == [
        "a",
        "b",
        "c",
    ]
    assert names("--created-before", "2026-01-31") == []
    assert names("--updated-since", "2h", "--created-before", "1h") == []
    counted = run_cli("list", "-l", "env=prod", "--estimate", "-o", "name", url=database_url)
    assert (counted.stdout, counted.stderr) == ("a\nc\n", "about 2 in all\n")
    document = json.loads(data_of("list", "--estimate", "--total", "-o", "json", url=database_url))
    assert document["total"] == 3
    assert document["estimatedTotal"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-l", "env in (prod"], "label selector: expected ',' or ')' at position 12, found the end"),
        (["--order", "size"], "--order: expected created or updated, got 'size'"),
        (
            ["--created-since", "yesterday"],
            "--created-since: expected a time like 2026-05-31T18:00:00Z, or how long ago",
        ),
        (["--updated-before", "1969-12-31T00:00:00Z"], "timestamp must not lie before 1970"),
        (["--agent", "a b"], "agent_id contains forbidden byte 0x20"),
    ],
)
def test_list_refuses_what_cannot_be_before_it_looks_for_a_database(flags: list[str], message: str) -> None:
    done = run_cli("list", *flags, url="postgresql://127.0.0.1:1/no")
    assert done.returncode == 2
    assert message in done.stderr


def test_runs_are_a_table_or_a_document(database_url: str) -> None:
    fill(database_url, ["t"])
    with TaskStore.open(database_url) as store:
        store.finish(store.start("t", store.register("w1")), Outcome.failed("broke", exit_code=3))
        store.start("t")
        runs = store.runs("t")
    table = [line.split() for line in data_of("runs", "t", url=database_url).splitlines()]
    assert table[0] == ["ATTEMPT", "PHASE", "AGENT", "STARTED", "TOOK", "EXIT", "ERROR"]
    assert (table[1][:3], table[1][-2:]) == (["1", "failed", "w1"], ["3", "broke"])
    assert table[2][:3] == ["2", "running", "-"]
    document = json.loads(data_of("runs", "t", "-o", "json", url=database_url))
    assert document == {"items": [run.to_dict() for run in runs]}
    assert data_of("runs", "t", "--limit", "1", "-o", "name", url=database_url) == "2\n"
    assert run_cli("runs", "u", url=database_url).returncode == 3


def test_logs_show_what_an_attempt_wrote(database_url: str) -> None:
    fill(database_url, ["t", "quiet", "new"])
    tricks = "caf\u00e9 \x1b[31mred\r\n\tlast"
    with TaskStore.open(database_url) as store:
        store.finish(store.start("t"), Outcome.failed("broke").with_output("one\n", None))
        store.finish(store.start("t"), Outcome.failed("broke").with_output(tricks, "err\n"))
        store.start("t")
        store.finish(store.start("quiet"), Outcome.succeeded())

    def logs(*arguments: str) -> tuple[int, str, str]:
        done = run_cli("logs", *arguments, url=database_url)
        return done.returncode, done.stdout, done.stderr

    # The latest that has ended.
    assert logs("t") == (0, tricks, "err\n")
    assert logs("t", "--stdout") == (0, tricks, "")
    assert logs("t", "--stderr") == (0, "err\n", "")
    assert logs("t", "--attempt", "1") == (0, "one\n", "")
    assert logs("t", "--attempt", "3") == (0, "", "attempt 3 still runs: its output is kept when it ends\n")
    assert logs("t", "--attempt", "4") == (3, "", "error: task 't' has no attempt 4, or keeps it no more\n")
    assert logs("quiet") == (0, "", "attempt 1 wrote nothing that was kept\n")
    assert logs("new") == (0, "", "no attempt has begun\n")
    assert logs("nobody")[0] == 3
    assert logs("t", "--stdout", "--stderr")[0] == 2
    code, shown = on_terminal("logs", "t", "--stdout", url=database_url, PYTHONUTF8="1")
    assert (code, shown) == (0, "caf\u00e9 \\x1b[31mred\n\tlast\n")


def test_agents_are_a_table_names_or_a_document(database_url: str) -> None:
    assert run_cli("agents", url=database_url).stderr == "no agents\n"
    fill(database_url, ["t"])
    with TaskStore.open(database_url) as store:
        store.claim(store.register("w1", labels={"zone": "a"}))
        store.sign_off(store.register("w2"))
        (agent,) = store.agents()
    table = [line.split() for line in data_of("agents", url=database_url).splitlines()]
    assert table[0] == ["ID", "STATE", "RUNNING", "KINDS", "LABELS", "REGISTERED", "HEARTBEAT"]
    assert (table[1][:3], "zone=a" in table[1]) == (["w1", "active", "1"], True)
    assert json.loads(data_of("agents", "-o", "json", url=database_url)) == {"items": [agent.to_dict()]}
    assert data_of("agents", "--all", "-o", "name", url=database_url) == "w1\nw2\n"


def test_why_is_a_sentence_a_word_or_a_document(database_url: str) -> None:
    fill(database_url, ["t"])
    assert data_of("why", "t", url=database_url) == "no worker is live\n"
    assert data_of("why", "t", "-o", "name", url=database_url) == "noWorker\n"
    document = json.loads(data_of("why", "t", "-o", "json", url=database_url))
    assert (document["id"], document["reason"], document["message"]) == ("t", "noWorker", "no worker is live")
    assert run_cli("why", "u", url=database_url).returncode == 3


# --- cancel, delete --------------------------------------------------------------------------------


def test_cancel_does_what_it_can_and_says_what_it_could_not(database_url: str) -> None:
    fill(database_url, ["waits", "runs"])
    with TaskStore.open(database_url) as store:
        store.start("runs")
        done = run_cli("cancel", "waits", "none", "runs", "-o", "json", url=database_url)
        phases = {item["metadata"]["id"]: item["status"]["phase"] for item in json.loads(done.stdout)["items"]}
        assert phases == {"waits": "canceled", "runs": "running"}
        assert done.returncode == 3
        assert done.stderr.splitlines()[0] == "error: task 'none' does not exist"
        assert done.stderr.splitlines()[1].startswith("runs: cancellation requested")
        assert store.get("waits").phase is TaskPhase.CANCELED


def test_delete_wants_to_be_sure(database_url: str) -> None:
    fill(database_url, ["a", "b", "c"])
    assert run_cli("delete", "a", url=database_url).returncode == 2
    stale = run_cli("delete", "a", "--version", "7", "-y", url=database_url)
    assert (stale.returncode, stale.stderr) == (4, "error: task 'a' is at resourceVersion 1, not 7\n")
    gone = run_cli("delete", "z", "--version", "1", "-y", url=database_url)
    assert (gone.returncode, gone.stderr) == (3, "error: task 'z' does not exist\n")
    done = run_cli("delete", "a", "z", "-y", url=database_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "there is no task 'z'\n")
    document = data_of("delete", "b", "--version", "1", "-y", "-o", "json", url=database_url)
    assert document == '{"deleted":["b"]}\n'
    assert data_of("list", "-o", "name", url=database_url) == "c\n"


# --- the terminal -----------------------------------------------------------------------------------


def on_terminal(*arguments: str, url: str, columns: int = 80, answer: bytes = b"", **env: str) -> tuple[int, str]:
    """Run the command line on a terminal of that width; the exit code and all that was written."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND[0], [*COMMAND, *arguments], environment(url, TERM="xterm", COLUMNS=str(columns), **env))
    os.write(terminal, answer)
    output = b""
    try:
        while data := os.read(terminal, 65536):
            output += data
    except OSError:  # the other side is closed
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), output.decode().replace("\r\n", "\n")


def test_on_a_terminal_tables_have_colour_and_fit(database_url: str) -> None:
    fill(database_url, ["a" * 20, "b" * 60])
    code, coloured = on_terminal("list", url=database_url)
    assert code == 0
    assert "\x1b[33mpending" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 80
    lines = plain.splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:3] == ["a" * 20, "pending", "0"]
    assert lines[3].split()[1:3] == ["pending", "0"]
    assert lines[3].split()[0].endswith("…")
    _, bare = on_terminal("list", url=database_url, NO_COLOR="1")
    # Bold headings are no colour.
    assert re.findall(r"\x1b\[([0-9;]*)m", bare.replace("\x1b[1m", "").replace("\x1b[0m", "")) == []
    _, wide = on_terminal("list", url=database_url, columns=200)
    assert "b" * 60 in wide
    _, details = on_terminal("get", "a" * 20, url=database_url)
    assert "\x1b[33mpending" in details


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, ""), (b"n\n", 1, "a\n")])
def test_on_a_terminal_delete_asks(database_url: str, answer: bytes, code: int, left: str) -> None:
    fill(database_url, ["a"])
    ended, output = on_terminal("delete", "a", url=database_url, answer=answer)
    assert ended == code
    assert "Delete a with all runs? [y/N]" in output
    assert data_of("list", "-o", "name", url=database_url) == left
