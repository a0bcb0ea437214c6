"""Three nodes kept by Patroni, with etcd as their common memory."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import psutil
from deployment.nodes import SETTINGS, USER, Ground, eventually, free_ports, kill
from deployment_marker import program

if TYPE_CHECKING:
    import subprocess

TTL_S = 20


class Member:
    """One of the nodes: Patroni, and the server that it keeps."""

    def __init__(self, ground: Ground, name: str, port: int, rest_port: int, etcd_port: int) -> None:
        self.ground = ground
        self.name = name
        self.port = port
        self.log = ground.folder / f"{name}.log"
        self._rest = f"http://127.0.0.1:{rest_port}"
        login = {"username": USER}
        document: dict[str, Any] = {
            "scope": "solti",
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{rest_port}", "connect_address": f"127.0.0.1:{rest_port}"},
            "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": SETTINGS | {"wal_log_hints": "on"}},
                },
                "initdb": [{"encoding": "UTF8"}, "no-locale", "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}",
                "connect_address": f"127.0.0.1:{port}",
                "data_dir": str(ground.mkdir(f"{name}-data")),
                "bin_dir": str(ground.programs),
                "pgpass": str(ground.mkdir(f"{name}-home") / "pgpass"),
                "authentication": {"superuser": login, "replication": login, "rewind": login},
                "parameters": {"unix_socket_directories": ""},
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
                "basebackup": ["no-sync", {"checkpoint": "fast"}],
            },
        }
        # JSON is YAML.
        self._file = ground.folder / f"{name}.yml"
        self._file.write_text(json.dumps(document))
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start Patroni, which starts the server."""
        env = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(self.ground.folder)}
        self.process = self.ground.spawn(program("patroni"), self._file, log=self.log, env=env)

    def cluster(self) -> list[dict[str, Any]]:
        """What Patroni knows of all members."""
        return list(self.request("/cluster")["members"])

    def request(self, path: str, document: object = None) -> Any:
        """Ask Patroni, or tell it."""
        body = None if document is None else json.dumps(document).encode()
        with urllib.request.urlopen(f"{self._rest}{path}", body, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text.startswith(b"{") else text

    def server(self) -> list[psutil.Process]:
        """The server's main process, and then the others."""
        pid = int((self.ground.folder / f"{self.name}-data" / "postmaster.pid").read_text().split()[0])
        main = psutil.Process(pid)
        return [main, *main.children()]

    def kill_server(self) -> None:
        """Kill -9 of all processes of the server."""
        _kill_all(self.server())

    def kill(self) -> None:
        """Kill -9 of Patroni, and of the server: what happens when a machine goes."""
        server = self.server()
        kill(self.process)
        _kill_all(server)

    def end(self) -> None:
        """What is left of it."""
        kill(self.process)
        try:
            _kill_all(self.server())
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return


def _kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


class Patroni:
    """The cluster."""

    def __init__(self, ground: Ground) -> None:
        client, peer, *ports = free_ports(8)
        ground.spawn(
            program("etcd"),
            f"--data-dir={ground.mkdir('etcd')}/data",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
            log=ground.folder / "etcd.log",
        )
        self.members = [
            Member(ground, f"node{number}", ports[2 * number], ports[2 * number + 1], client) for number in range(3)
        ]
        hosts = "&".join(f"host=127.0.0.1:{member.port}" for member in self.members)
        self.url = f"postgresql+psycopg://{USER}@/postgres?{hosts}&target_session_attrs=read-write&connect_timeout=3"
        self.wait_whole()

    def wait_whole(self) -> None:
        """Wait until there is a leader, a synchronous standby, and another one that follows."""
        eventually(self._is_whole, "a whole cluster", self.members[0].log)

    def _is_whole(self) -> bool:
        # Whom each of them knows: one may not have heard yet.
        return all(
            {("leader", "running"), ("sync_standby", "streaming"), ("replica", "streaming")}
            == {(one["role"], one["state"]) for one in member.cluster()}
            for member in self.members
        )

    @property
    def leader(self) -> Member:
        """The member that leads, as the others know it."""
        names = {one["name"]: one["role"] for one in self.members[0].cluster()}
        return next(member for member in self.members if names.get(member.name) == "leader")

    def switch_over(self) -> None:
        """Hand over to the synchronous standby, in order."""
        roles = {one["role"]: one["name"] for one in self.members[0].cluster()}
        document = {"leader": roles["leader"], "candidate": roles["sync_standby"]}
        self.members[0].request("/switchover", document)
