"""The private server when processes are killed, files are damaged and names are taken."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from solti_store.embedded import EmbeddedServer, find_binaries
from solti_store.embedded.places import socket_dir
from solti_store.embedded.postmaster import alive, same_command
from solti_store.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}
AS_ROOT = os.geteuid() == 0

# Says that it is ready, waits for a line, starts the server, says which one, and lives until its input ends.
STARTER = """
import sys
from pathlib import Path
import psycopg
from solti_store.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off", "shared_buffers": "16MB"})
print("ready", flush=True)
sys.stdin.readline()
query = server.ensure_running().partition("?")[2]
with psycopg.connect(f"postgresql://solti@/solti?{query}") as connection:
    connection.execute("SELECT 1")
print(server.status().pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: pytest closes the folders above it (mode 0700), and root's server is another user.
    path = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(folder / "root", settings=FAST)
    yield server
    server.destroy()


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    # Its name is the best disguise there is.
    process = subprocess.Popen(["postgres", "1000"], executable=shutil.which("sleep"))
    yield process
    assert process.poll() is None, "an innocent process was killed"
    process.kill()
    process.wait()


@contextlib.contextmanager
def starter(root: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a process group of its own, to send Ctrl-C to
    )
    try:
        assert line_of(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this never happened"
        time.sleep(0.001)


def ask(url: str, statement: str) -> Any:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


def servers_of(server: EmbeddedServer) -> list[int]:
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if same_command(process, server.data_root / "pgdata"):
                found[process.pid] = process.ppid()
    # Less the sub-processes that have no title of their own yet.
    return [pid for pid, parent in found.items() if parent not in found]


def kill_server(server: EmbeddedServer) -> None:
    process = psutil.Process(server.status().pid)
    process.kill()
    # And a sub-process of the last moment has its title: without, and without a parent, it looks like a server.
    until(lambda: not alive(process) and not servers_of(server))


def leftovers(server: EmbeddedServer) -> list[Path]:
    return list(server.data_root.glob("init-*"))


def pid_file(server: EmbeddedServer) -> Path:
    return server.data_root / "pgdata" / "postmaster.pid"


def test_eight_cold_starts_at_once_give_one_server(server: EmbeddedServer) -> None:
    with contextlib.ExitStack() as stack:
        starters = [stack.enter_context(starter(server.data_root)) for _ in range(8)]
        for process in starters:
            go(process)
        pids = {line_of(process) for process in starters}
    assert pids == {str(server.status().pid)}
    assert servers_of(server) == [server.status().pid]
    assert leftovers(server) == []


def test_kill_9_in_the_middle_of_initdb_leaves_nothing_half_made(server: EmbeddedServer) -> None:
    with starter(server.data_root) as process:
        go(process)
        until(lambda: any((entry / "PG_VERSION").exists() for entry in leftovers(server)))
        process.kill()
        process.wait()
        assert not (server.data_root / "pgdata").exists()
    assert ask(server.ensure_running(), "SELECT 1") == 1
    assert len(servers_of(server)) == 1
    # initdb itself was killed with what it had started, or this is swept by the next start.
    server.stop()
    server.ensure_running()
    assert leftovers(server) == []


def test_kill_9_in_the_middle_of_a_start_leaves_one_server(server: EmbeddedServer) -> None:
    with starter(server.data_root) as process:
        go(process)
        until((server.data_root / "pgdata").exists)
        process.kill()
        process.wait()
    assert ask(server.ensure_running(), "SELECT 1") == 1
    assert servers_of(server) == [server.status().pid]


def test_kill_9_of_a_user_leaves_the_server_alone(server: EmbeddedServer) -> None:
    with starter(server.data_root) as process:
        go(process)
        pid = line_of(process)
        process.kill()
        process.wait()
    server.ensure_running()
    assert str(server.status().pid) == pid


def test_ctrl_c_ends_the_starter_and_not_the_server(server: EmbeddedServer) -> None:
    with starter(server.data_root) as process:
        go(process)
        pid = line_of(process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) != 0
    assert str(server.status().pid) == pid
    assert ask(server.ensure_running(), "SELECT 1") == 1
    assert str(server.status().pid) == pid


def test_ctrl_c_in_the_middle_of_initdb_cleans_up(server: EmbeddedServer) -> None:
    with starter(server.data_root) as process:
        go(process)
        until(lambda: any((entry / "PG_VERSION").exists() for entry in leftovers(server)))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) != 0
    assert not (server.data_root / "pgdata").exists()
    assert ask(server.ensure_running(), "SELECT 1") == 1


def test_data_survives_kill_9_of_the_server(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n"))
    before = server.status().pid
    kill_server(server)
    assert server.status().state == "stopped"
    assert server.ensure_running() == url
    assert server.status().pid != before
    engine.dispose()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT sum(n) FROM kept")).scalar_one() == 500500
    engine.dispose()


def test_a_statement_that_outlives_its_server_does_not_block_the_next(server: EmbeddedServer) -> None:
    engine = create_engine(server.ensure_running(), poolclass=NullPool)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        pid = driver.info.backend_pid
        # Busy in the processor, where a backend does not notice that its server is gone.
        driver.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1e11::bigint)")
        backend = psutil.Process(pid)
        until(lambda: backend.cpu_times().user > 0.05)
        kill_server(server)
        assert alive(backend)
        assert ask(server.ensure_running(), "SELECT 1") == 1
        assert not alive(backend)
        connection.invalidate()


@pytest.mark.parametrize(
    "contents",
    [b"", b"12", b"\x00\xff garbage\n" * 9, b"-1\n" * 8, b"99999999999999999999\n" * 8, b"0\n" * 8],
    ids=["empty", "short", "binary", "negative", "huge", "zero"],
)
def test_a_damaged_pid_file_of_a_stopped_server(server: EmbeddedServer, contents: bytes) -> None:
    server.ensure_running()
    server.stop()
    pid_file(server).write_bytes(contents)
    assert server.status().state == "stopped"
    assert not server.stop()
    assert ask(server.ensure_running(), "SELECT 1") == 1


def test_a_truncated_pid_file_of_a_running_server(server: EmbeddedServer) -> None:
    server.ensure_running()
    os.truncate(pid_file(server), 0)
    assert ask(server.ensure_running(), "SELECT 1") == 1
    assert servers_of(server) == [server.status().pid]


def test_a_truncated_pid_file_does_not_hide_a_server_from_stop(server: EmbeddedServer) -> None:
    server.ensure_running()
    os.truncate(pid_file(server), 0)
    assert server.stop()
    assert servers_of(server) == []


def test_a_stale_pid_file_never_harms_who_has_the_number_now(
    server: EmbeddedServer, innocent: subprocess.Popen[bytes]
) -> None:
    server.ensure_running()
    lines = pid_file(server).read_text().split("\n")
    kill_server(server)
    # As true to life as can be: the right file, but for the number and a start that fits it.
    lines[0] = str(innocent.pid)
    lines[2] = str(int(psutil.Process(innocent.pid).create_time()))
    pid_file(server).write_text("\n".join(lines))
    stale_lock = socket_dir(server.data_root) / ".s.PGSQL.5432.lock"
    stale_lock.write_text("\n".join(lines[:5]))
    assert server.status().state == "stopped"
    assert not server.stop()
    assert ask(server.ensure_running(), "SELECT 1") == 1
    assert server.status().pid != innocent.pid
    assert server.stop()


def test_a_clock_that_was_set_does_not_hide_the_server(server: EmbeddedServer) -> None:
    server.ensure_running()
    pid = server.status().pid
    lines = pid_file(server).read_text().split("\n")
    lines[2] = str(int(lines[2]) - 3600)
    pid_file(server).write_text("\n".join(lines))
    server.ensure_running()
    assert server.status().pid == pid
    assert server.stop()


def test_a_number_used_again_by_another_server_is_told_by_its_start(server: EmbeddedServer, folder: Path) -> None:
    other = EmbeddedServer(folder / "other", settings=FAST)
    try:
        server.ensure_running()
        other.ensure_running()
        stale = pid_file(other).read_bytes()
        server.stop()
        pid_file(server).write_bytes(stale)
        assert not server.stop()
        server.ensure_running()
        assert other.status().state == "ready"
        assert {server.status().pid, other.status().pid} == {*servers_of(server), *servers_of(other)}
    finally:
        other.destroy()


def test_a_removed_socket_is_made_again(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    shutil.rmtree(socket_dir(server.data_root))
    assert server.ensure_running() == url
    assert ask(url, "SELECT 1") == 1


def test_a_data_root_moved_under_a_running_server(server: EmbeddedServer, folder: Path) -> None:
    engine = create_engine(server.ensure_running(), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT 42 AS answer"))
    server.data_root.rename(folder / "elsewhere")
    moved = EmbeddedServer(folder / "elsewhere", settings=FAST)
    try:
        assert ask(moved.ensure_running(), "SELECT answer FROM kept") == 42
        assert servers_of(moved) == [moved.status().pid]
    finally:
        moved.destroy()


def test_a_server_that_is_out_of_sight_is_not_doubled(server: EmbeddedServer) -> None:
    server.ensure_running()
    server.stop()
    # To this process, what another container runs on a shared volume looks like this: no such process,
    # and yet somebody listens.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_dir(server.data_root) / ".s.PGSQL.5432"))
        listener.listen()
        with pytest.raises(EmbeddedError, match="two servers on one data directory"):
            server.ensure_running()
    assert ask(server.ensure_running(), "SELECT 1") == 1


@pytest.mark.parametrize("trap", ["link", "file", "foreign"])
def test_a_socket_directory_that_somebody_else_made_is_refused(folder: Path, trap: str) -> None:
    server = EmbeddedServer(folder / "a name with blanks", settings=FAST)
    taken = socket_dir(server.data_root)
    target = folder / "trap"
    target.mkdir(mode=0o700)
    try:
        if trap == "link":
            taken.symlink_to(target)
        elif trap == "file" or not AS_ROOT:  # an ordinary user cannot make a directory of another one
            taken.write_text("")
        else:
            taken.mkdir(mode=0o777)
            os.chown(taken, pwd.getpwnam("daemon").pw_uid, -1)
        with pytest.raises(EmbeddedError, match="should be the private directory of the server's socket"):
            server.ensure_running()
        assert servers_of(server) == []
        assert list(target.iterdir()) == []
    finally:
        if taken.is_dir() and not taken.is_symlink():
            taken.rmdir()
        else:
            taken.unlink()
        server.destroy()


def test_a_data_root_of_somebody_else_is_refused(folder: Path) -> None:
    root = folder / "theirs"
    if AS_ROOT:
        root.mkdir()
        os.chown(root, pwd.getpwnam("nobody").pw_uid, -1)
    else:
        root = Path("/")
    with pytest.raises(EmbeddedError, match=r"belongs to uid \d+, not to uid"):
        EmbeddedServer(root).ensure_running()


def test_a_place_where_nothing_can_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"cannot start the private server in .*/file/root"):
        EmbeddedServer(folder / "file" / "root").ensure_running()
    with pytest.raises(EmbeddedError, match="is a file"):
        EmbeddedServer(folder / "file").ensure_running()


def test_a_start_that_fails_shows_the_servers_last_words(folder: Path) -> None:
    server = EmbeddedServer(folder / "root", settings={**FAST, "no_such_setting": "1"})
    with pytest.raises(EmbeddedError, match='unrecognized configuration parameter "no_such_setting"'):
        server.ensure_running()
    # Nothing stands in the way of a start that is right.
    right = EmbeddedServer(folder / "root", settings=FAST)
    assert ask(right.ensure_running(), "SELECT 1") == 1
    right.destroy()


def test_a_missing_library_is_named(folder: Path) -> None:
    bindir = folder / "programs" / "bin"
    bindir.mkdir(parents=True)
    for program in ("initdb", "postgres"):
        shutil.copy(find_binaries() / program, bindir)
    server = EmbeddedServer(folder / "root", settings=FAST, binaries=bindir)
    with pytest.raises(EmbeddedError, match=r"initdb failed(?s:.*)libpq.*cannot open shared object"):
        server.ensure_running()
    assert leftovers(server) == []
    server.destroy()


def test_a_full_disk_leaves_nothing_half_made(server: EmbeddedServer) -> None:
    # A limit on a file's size stands for the disk: the same failed write, and no mount is needed.
    code = """
import resource, sys
from pathlib import Path
from solti_store.embedded import EmbeddedServer
from solti_store.errors import EmbeddedError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    EmbeddedServer(Path(sys.argv[1])).ensure_running()
except EmbeddedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(server.data_root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("initdb failed")
    assert not (server.data_root / "pgdata").exists()
    assert leftovers(server) == []
    assert ask(server.ensure_running(), "SELECT 1") == 1


def test_the_log_stays_bounded(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    log = server.status().log_file
    with log.open("ab") as file:
        file.truncate(5 * 1024 * 1024)
    assert server.ensure_running() == url
    assert log.stat().st_size == 0
    # The server appends, so there is no hole in front of its next words.
    server.stop()
    assert b"\0" not in log.read_bytes()
    assert b"shut down" in log.read_bytes()


def test_constraint_errors_do_not_fill_the_log(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    before = server.status().log_file.read_text()
    engine = create_engine(url, poolclass=NullPool)
    with contextlib.suppress(Exception), engine.connect() as connection:
        connection.execute(text("SELECT 1 / 0"))
    assert ask(url, "SELECT 1") == 1
    assert server.status().log_file.read_text() == before
