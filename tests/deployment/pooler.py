"""PgBouncer in transaction mode, before a server."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import psycopg
from deployment.nodes import USER, Ground, Node, eventually, free_ports
from deployment_marker import program

if TYPE_CHECKING:
    from typing import Any


class PgBouncer:
    """A pooler with a few server connections; `url` is that of the node's database through it."""

    def __init__(self, ground: Ground, node: Node, *, servers: int, **settings: str) -> None:
        self.port = free_ports(1)[0]
        self.url = node.url.replace(f":{node.port}/", f":{self.port}/")
        folder = ground.mkdir("pgbouncer")
        self.log = folder / "log"
        wanted = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(folder / "users"),
            "admin_users": USER,
            "pool_mode": "transaction",
            "default_pool_size": str(servers),
            "max_client_conn": "200",
        } | settings
        (folder / "users").write_text(f'"{USER}" ""\n')
        lines = ["[databases]", f"postgres = host=127.0.0.1 port={node.port} dbname=postgres", "[pgbouncer]"]
        (folder / "ini").write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in wanted.items())]))
        ground.own(folder)
        self.process = ground.spawn(program("pgbouncer"), folder / "ini", log=ground.folder / "pgbouncer.log")
        eventually(self._answers, "the start of PgBouncer", ground.folder / "pgbouncer.log")

    def _answers(self) -> bool:
        with self.connect() as connection:
            return connection.execute("SELECT").rowcount == 1

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[Any]:
        """A bare connection through it."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, dbname=dbname, autocommit=True, prepare_threshold=None
        )


def version() -> str:
    """The version of PgBouncer."""
    done = subprocess.run([program("pgbouncer"), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[1]
