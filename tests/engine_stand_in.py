"""A stand-in for the command line of docker, for machines without an engine.

It knows as much of `run`, `stop`, `rm` and `ps` as the container runner uses, and runs the container's command as a
process that is nobody's child, as an engine does: who kills the command line has not ended the container. Every call
is appended to the file `calls` of the folder STAND_IN, as JSON. An image `slow:…` takes until the file `pulled` is
there; what is not an image here is refused as docker does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["STAND_IN"])
IMAGES = ("bb", "slow")


def fail(message: str, code: int) -> int:
    sys.stderr.write(f"docker: {message}\nSee 'docker run --help'.\n")
    return code


def options(words: list[str]) -> tuple[str, str | None, dict[str, str]]:
    """Take the options off: the name, the entry point, the environment."""
    name, entrypoint, env = "", None, {"PATH": os.environ["PATH"]}
    while (word := words.pop(0)) != "--":
        if word == "--name":
            name = words.pop(0)
        elif word == "--env":
            key, equals, value = words.pop(0).partition("=")
            env[key] = value if equals else os.environ[key]
        elif word.startswith("--entrypoint="):
            entrypoint = word.partition("=")[2]
        else:
            assert word in ("--rm", "--network=none")
    return name, entrypoint, env


def run(words: list[str]) -> int:
    name, entrypoint, env = options(words)
    image, *args = words
    if image.split(":")[0] not in IMAGES:
        return fail("invalid reference format", 125)
    while image.startswith("slow") and not (HOME / "pulled").exists():
        time.sleep(0.01)
    # The image has no entry point of its own, and says hello.
    argv = [*([entrypoint] if entrypoint else []), *(args if args or entrypoint is not None else ["echo", "hello"])]
    if not argv:
        return fail("no command specified", 125)
    try:
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    except FileNotFoundError:
        return fail(f"exec: {argv[0]!r}: executable file not found in $PATH", 127)
    except PermissionError:
        return fail(f"exec: {argv[0]!r}: permission denied", 126)
    (HOME / name).write_text(str(process.pid))
    # Killed, it leaves the container to whoever asks for it by name.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    with contextlib.suppress(FileNotFoundError):
        (HOME / name).unlink()
    return 128 - code if code < 0 else code


def pid_of(name: str) -> int | None:
    try:
        return int((HOME / name).read_text())
    except FileNotFoundError:
        return None


def end(name: str, number: int, patience_s: float) -> bool:
    pid = pid_of(name)
    if pid is None:
        sys.stderr.write(f"Error response from daemon: No such container: {name}\n")
        return False
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(pid, number)
            return True
        os.kill(pid, number)
        until = time.monotonic() + patience_s
        while time.monotonic() < until and (HOME / name).exists():
            time.sleep(0.01)
        if (HOME / name).exists():
            os.killpg(pid, signal.SIGKILL)
    return True


def main() -> int:
    verb, *words = sys.argv[1:]
    with (HOME / "calls").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    if verb == "run":
        return run(words)
    if verb == "stop":
        assert words[0] == "-t"
        return 0 if end(words[2], signal.SIGTERM, float(words[1])) else 1
    if verb == "rm":
        assert words[0] == "-f"
        done = end(words[1], signal.SIGKILL, 0)
        with contextlib.suppress(FileNotFoundError):
            (HOME / words[1]).unlink()
        return 0 if done else 1
    assert (verb, words) == ("ps", ["-aq", "--filter", "name=^solti-"])
    for file in HOME.glob("solti-*"):
        sys.stdout.write(f"{file.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
