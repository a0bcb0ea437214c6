"""What a session of the store's is set to, and how to see whether a connection has a session of its own.

A pooler in transaction mode (PgBouncer) gives each transaction another server session, and tells its clients a process
number that it made up. So where the number that the connection began with is not that of who answers, there is one.
"""

from __future__ import annotations

from typing import Final

__all__ = ["IS_DIRECT", "SETTINGS", "SET_UP"]

IS_DIRECT: Final = "SELECT pg_backend_pid() = %(seen)s"

#: - A process that freezes inside a transaction lets go of its locks; no op of ours idles at all.
#: - No statement of ours is meant to read a whole table. On empty tables the planner finds that cheapest, though, and a
#:   plan of then is kept: after a load of 100,000 tasks a claim took 15 to 46 ms until autovacuum came by, instead of 1
#:   to 5.
#: - Plans are made once, for any values. For a list of one the planner finds its plan for any list too dear, each time
#:   anew, and plans: to create a task that waits for its slot took 5.1 ms of which 2.1 were that, to cancel 1.1 of 2.5.
#:   No plan of ours gains by knowing the values.
#: - No compiled plans: before PostgreSQL 18 a scan that cannot be avoided then counts as so dear that the whole
#:   statement is compiled, 60 ms each time.
SETTINGS: Final = {
    "idle_in_transaction_session_timeout": "10s",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}

#: Makes settings if the session is the connection's own, and says whether it is.
SET_UP: Final = """
    SELECT pg_backend_pid() = %(seen)s,
           (SELECT count(set_config(name, value, false))
            FROM unnest(CAST(%(names)s AS text[]), CAST(%(values)s AS text[])) AS ours (name, value)
            WHERE pg_backend_pid() = %(seen)s)
"""
