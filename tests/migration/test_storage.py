"""Autovacuum comes by the hot tables sooner than PostgreSQL would have it."""

from __future__ import annotations

from support import connect

SHIPPED = """
    SELECT c.relname, option_value::float
    FROM pg_class AS c CROSS JOIN LATERAL pg_options_to_table(c.reloptions)
    WHERE c.relnamespace = 'solti'::regnamespace AND option_name = 'autovacuum_vacuum_scale_factor'
"""


def test_hot_tables_are_vacuumed_early(database_url: str) -> None:
    with connect(database_url) as connection:
        found = dict(connection.execute(SHIPPED).fetchall())
    assert found == {"tasks": 0.05, "task_status": 0.02, "task_runs": 0.05, "task_events": 0.05}
