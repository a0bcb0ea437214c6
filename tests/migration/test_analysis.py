"""What is said of a statement's locks, rewrites and reads, against what the server does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from psycopg import pq
from support import connect

from solti_store.migration.analysis import analyse
from solti_store.migration.locks import Lock, Names, Touch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

SETUP = """
    CREATE SCHEMA s;
    CREATE TABLE s.parent (id bigint PRIMARY KEY, name text);
    CREATE TABLE s.t (
        id bigint CONSTRAINT t_pkey PRIMARY KEY, a int, b text, n int, checked int, gone int, c varchar(10),
        parent_id bigint CONSTRAINT t_fk REFERENCES s.parent (id),
        CONSTRAINT t_check CHECK (a > 0) NOT VALID, CONSTRAINT t_b UNIQUE (b),
        CONSTRAINT t_checked CHECK (checked IS NOT NULL)
    );
    CREATE TABLE s.plain (id bigint, x int, CONSTRAINT plain_x CHECK (x > 0) NOT VALID);
    CREATE TABLE s.alone (id bigint, x int);
    CREATE INDEX alone_id ON s.alone (id);
    CREATE UNIQUE INDEX plain_id ON s.plain (id);
    CREATE VIEW s.v AS SELECT id FROM s.t;
    CREATE SEQUENCE s.q;
    CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
    CREATE TRIGGER tr BEFORE INSERT ON s.plain FOR EACH ROW EXECUTE FUNCTION s.f();
    CREATE POLICY po ON s.plain;
    INSERT INTO s.parent SELECT n, 'p' FROM generate_series(1, 50) n;
    INSERT INTO s.t SELECT n, n, n, n, n, n, 'c', n FROM generate_series(1, 50) n;
    INSERT INTO s.plain SELECT n, n FROM generate_series(1, 50) n;
    INSERT INTO s.alone SELECT n, n FROM generate_series(1, 50) n;
    ALTER TABLE s.t ADD CONSTRAINT t_later FOREIGN KEY (n) REFERENCES s.parent (id) NOT VALID;
"""


def names() -> Names:
    return Names(
        tables={"s.t_b": "s.t", "s.t_pkey": "s.t", "s.plain_id": "s.plain", "s.alone_id": "s.alone"},
        references={"s.t": {"s.parent"}},
        not_null={("s.t", "id"), ("s.t", "checked")},
    )


IN_A_TRANSACTION = [
    "SELECT count(*) FROM s.t JOIN s.parent p ON p.id = t.id",
    "SELECT * FROM s.t FOR UPDATE",
    "WITH parent AS (SELECT 1 AS id) SELECT * FROM parent",
    "INSERT INTO s.plain SELECT id + 1000, 1 FROM s.parent",
    "UPDATE s.plain SET x = 1",
    "UPDATE s.plain SET x = t.a FROM s.t WHERE t.id = plain.id",
    "DELETE FROM s.plain",
    "WITH d AS (DELETE FROM s.plain RETURNING id) INSERT INTO s.alone SELECT id FROM d",
    "LOCK TABLE s.t IN SHARE MODE",
    "TRUNCATE s.plain",
    "CREATE TABLE s.new (id bigint PRIMARY KEY)",
    "CREATE TABLE s.new (id bigint REFERENCES s.parent (id))",
    "CREATE TABLE s.new AS SELECT * FROM s.t",
    "CREATE VIEW s.w AS SELECT id FROM s.t",
    "CREATE OR REPLACE VIEW s.v AS SELECT id FROM s.t",
    "CREATE SEQUENCE s.r",
    "ALTER SEQUENCE s.q INCREMENT 2",
    "CREATE INDEX i ON s.plain (x)",
    "CREATE UNIQUE INDEX i ON s.plain (id)",
    "DROP INDEX s.alone_id",
    "REINDEX INDEX s.alone_id",
    "REINDEX TABLE s.plain",
    "DROP TABLE s.alone",
    "DROP VIEW s.v",
    "DROP SEQUENCE s.q",
    "DROP TRIGGER tr ON s.plain",
    "DROP POLICY po ON s.plain",
    "CREATE TRIGGER tr2 BEFORE INSERT ON s.plain FOR EACH ROW EXECUTE FUNCTION s.f()",
    "COMMENT ON TABLE s.t IS 'x'",
    "COMMENT ON COLUMN s.t.a IS 'x'",
    "COMMENT ON VIEW s.v IS 'x'",
    "COMMENT ON SCHEMA s IS 'x'",
    "COMMENT ON INDEX s.plain_id IS 'x'",
    "COMMENT ON CONSTRAINT t_check ON s.t IS 'x'",
    "GRANT SELECT ON s.t TO PUBLIC",
    "REVOKE SELECT ON s.t FROM PUBLIC",
    "SET LOCAL lock_timeout = '3s'",
    "ALTER INDEX s.alone_id RENAME TO j",
    "ALTER TABLE s.t RENAME TO u",
    "ALTER TABLE s.t RENAME COLUMN a TO z",
    "ALTER TABLE s.t RENAME CONSTRAINT t_check TO t_check2",
    "ALTER VIEW s.v RENAME TO w",
    "ALTER TABLE s.plain SET SCHEMA public",
    "ALTER TABLE s.t ADD COLUMN x int",
    "ALTER TABLE s.t ADD COLUMN x int DEFAULT 7",
    "ALTER TABLE s.t ADD COLUMN x int NOT NULL DEFAULT 7",
    "ALTER TABLE s.t ADD COLUMN x timestamptz DEFAULT now()",
    "ALTER TABLE s.t ADD COLUMN x timestamptz DEFAULT CURRENT_TIMESTAMP",
    "ALTER TABLE s.t ADD COLUMN x timestamptz DEFAULT clock_timestamp()",
    "ALTER TABLE s.t ADD COLUMN x float DEFAULT random()",
    "ALTER TABLE s.t ADD COLUMN x int GENERATED ALWAYS AS (a + 1) STORED",
    "ALTER TABLE s.t ADD COLUMN x bigint GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE s.t ADD COLUMN x int CHECK (x > 0)",
    "ALTER TABLE s.t ADD COLUMN x int UNIQUE",
    "ALTER TABLE s.t ADD COLUMN x int REFERENCES s.parent (id)",
    "ALTER TABLE s.plain DROP COLUMN x",
    "ALTER TABLE s.t DROP COLUMN parent_id",
    "ALTER TABLE s.t DROP CONSTRAINT t_fk",
    "ALTER TABLE s.plain DROP CONSTRAINT plain_x",
    "ALTER TABLE s.t ALTER COLUMN b TYPE int USING b::int",
    "ALTER TABLE s.t ALTER COLUMN a TYPE bigint",
    "ALTER TABLE s.t ALTER COLUMN a SET NOT NULL",
    "ALTER TABLE s.t ALTER COLUMN checked SET NOT NULL",
    "ALTER TABLE s.t ALTER COLUMN a DROP NOT NULL",
    "ALTER TABLE s.t ALTER COLUMN a SET DEFAULT 3",
    "ALTER TABLE s.t ALTER COLUMN a SET STATISTICS 500",
    "ALTER TABLE s.t ALTER COLUMN b SET STORAGE EXTERNAL",
    "ALTER TABLE s.t ALTER COLUMN b SET (n_distinct = 5)",
    "ALTER TABLE s.t ADD CONSTRAINT k CHECK (n > 0)",
    "ALTER TABLE s.t ADD CONSTRAINT k CHECK (n > 0) NOT VALID",
    "ALTER TABLE s.plain ADD CONSTRAINT k NOT NULL x NOT VALID",
    "ALTER TABLE s.plain ADD CONSTRAINT k FOREIGN KEY (x) REFERENCES s.parent (id)",
    "ALTER TABLE s.plain ADD CONSTRAINT k FOREIGN KEY (x) REFERENCES s.parent (id) NOT VALID",
    "ALTER TABLE s.plain ADD CONSTRAINT k UNIQUE (x)",
    "ALTER TABLE s.plain ADD CONSTRAINT k UNIQUE USING INDEX plain_id",
    "ALTER TABLE s.plain ADD CONSTRAINT k PRIMARY KEY (id)",
    "ALTER TABLE s.plain ADD CONSTRAINT k PRIMARY KEY USING INDEX plain_id",
    "ALTER TABLE s.plain VALIDATE CONSTRAINT plain_x",
    "ALTER TABLE s.t VALIDATE CONSTRAINT t_later",
    "ALTER TABLE s.t SET (fillfactor = 80)",
    "ALTER TABLE s.t SET (autovacuum_vacuum_scale_factor = 0.01, toast.autovacuum_enabled = true)",
    "ALTER TABLE s.t RESET (fillfactor)",
    "ALTER VIEW s.v SET (security_barrier = true)",
    "ALTER TABLE s.t SET UNLOGGED",
    "ALTER TABLE s.t DISABLE TRIGGER USER",
    "ALTER TABLE s.t ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE s.t REPLICA IDENTITY FULL",
    "ALTER TABLE s.t OWNER TO CURRENT_USER",
    "ALTER TABLE s.t ADD COLUMN x int, ALTER COLUMN a SET STATISTICS 10",
    "CREATE SCHEMA z",
    "CREATE FUNCTION s.g() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP FUNCTION IF EXISTS s.none()",
    "DO $$ BEGIN IF to_regnamespace('z') IS NULL THEN CREATE SCHEMA z; END IF; END $$",
    "DO $$ DECLARE many int := 0; BEGIN many := (SELECT count(*) FROM s.parent); UPDATE s.plain SET x = many; END $$",
]

# Said to be more than it is: the analysis does not know the types or the rows, and is careful.
CAREFUL = {
    "ALTER TABLE s.t ALTER COLUMN c TYPE varchar(20)": (Touch("s.t", Lock.ACCESS_EXCLUSIVE, rewrites=True),),
    "ALTER TABLE s.t DROP CONSTRAINT t_check": (
        Touch("s.t", Lock.ACCESS_EXCLUSIVE),
        Touch("s.parent", Lock.ACCESS_EXCLUSIVE),
    ),
}

UNKNOWN = [
    "SELECT s.f()",
    "CALL s.p()",
    "DROP TABLE s.t CASCADE",
    "DROP INDEX s.never_heard_of",
    "CREATE TABLE s.new PARTITION OF s.t DEFAULT",
    "ALTER TABLE s.t ATTACH PARTITION s.plain DEFAULT",
    "ALTER TABLE s.t SET ACCESS METHOD heap",
    "DO $$ BEGIN EXECUTE 'DROP TABLE s.t'; END $$",
    "DO LANGUAGE plperl $$ 1 $$",
    "CREATE EXTENSION hstore",
    "this is no SQL",
    "MERGE INTO s.t USING s.plain p ON p.id = t.id WHEN MATCHED THEN DELETE",
]


@pytest.fixture
def server(empty_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(empty_database_url) as connection:
        connection.execute(SETUP.encode())
        connection.execute(b"ANALYZE")
        yield connection


RELATIONS = """
    SELECT format('%s.%s', n.nspname, c.relname), c.oid, pg_relation_filenode(c.oid), c.relkind
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 's'
"""
LOCKS = """
    SELECT relation, mode FROM pg_locks
    WHERE pid = pg_backend_pid() AND granted AND relation = ANY (%s) AND database <> 0
"""
MODES = {lock.label.title().replace(" ", "") + "Lock": lock for lock in Lock}


def reality(connection: psycopg.Connection[Any], sql: str) -> dict[str, tuple[Lock, bool, bool]]:
    """By relation: the strongest lock, whether it has other files, whether all of it was read."""
    before = {oid: (name, filenode, kind) for name, oid, filenode, kind in connection.execute(RELATIONS.encode())}
    connection.execute(b"BEGIN")
    try:
        scanned = scans(connection, list(before))
        # By the simple protocol and with the result dropped, as psql would.
        result = connection.pgconn.exec_(sql.encode())
        assert result.status in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}, result.error_message
        held: dict[int, Lock] = {}
        for oid, mode in connection.execute(LOCKS.encode(), (list(before),)):
            held[oid] = max(held.get(oid, MODES[mode]), MODES[mode])
        after = scans(connection, list(before))
        files = dict(
            connection.execute(
                b"SELECT oid, pg_relation_filenode(oid) FROM pg_class WHERE oid = ANY (%s)", (list(before),)
            )
        )
    finally:
        connection.execute(b"ROLLBACK")
    found = {}
    for oid, lock in held.items():
        name, filenode, kind = before[oid]
        moved = oid in files and files[oid] != filenode and kind == "r"
        found[name] = (lock, moved, after.get(oid, 0) > scanned.get(oid, 0))
    return found


def scans(connection: psycopg.Connection[Any], oids: list[int]) -> dict[int, int]:
    query = b"SELECT relid, seq_scan FROM pg_stat_xact_all_tables WHERE relid = ANY (%s)"
    return dict(connection.execute(query, (oids,)).fetchall())


@pytest.mark.parametrize("sql", IN_A_TRANSACTION)
def test_what_is_said_is_what_the_server_does(server: psycopg.Connection[Any], sql: str) -> None:
    said = analyse(sql, names())
    assert all(statement.is_known for statement in said)
    touched = {touch.relation: touch for statement in said for touch in statement.touches}
    for name, (lock, rewritten, _) in reality(server, sql).items():
        touch = touched.pop(name, None)
        if touch is None:
            # Indexes and keys are locked along with their table, and as strongly at most.
            assert kind_of(server, name) == "i", f"{name}: {lock.label}, and nobody said so"
            continue
        assert touch.lock == lock, f"{name}: the server takes {lock.label}"
        assert touch.rewrites == rewritten or "TRUNCATE" in sql, f"{name}: rewritten is {rewritten}"
    assert touched == {}, "the server does not lock these"


def kind_of(connection: psycopg.Connection[Any], name: str) -> str:
    row = connection.execute(b"SELECT relkind::text FROM pg_class WHERE oid = to_regclass(%s)", (name,)).fetchone()
    return row[0] if row else ""


@pytest.mark.parametrize("sql", [sql for sql in IN_A_TRANSACTION if sql.startswith(("ALTER", "CREATE", "COMMENT"))])
def test_a_definition_that_reads_all_rows_is_said_to(server: psycopg.Connection[Any], sql: str) -> None:
    said = {t.relation: t for statement in analyse(sql, names()) for t in statement.touches}
    for name, (_, _, scanned) in reality(server, sql).items():
        if scanned and " AS SELECT" not in sql:
            assert said[name].scans or said[name].rewrites


@pytest.mark.parametrize("sql", CAREFUL)
def test_what_depends_on_more_than_the_statement_is_taken_for_the_worse(
    server: psycopg.Connection[Any], sql: str
) -> None:
    (said,) = analyse(sql, names())
    assert said.touches == CAREFUL[sql]
    for name, (lock, _, _) in reality(server, sql).items():
        assert lock <= next((touch.lock for touch in said.touches if touch.relation == name), Lock.ACCESS_EXCLUSIVE)


@pytest.mark.parametrize("sql", UNKNOWN)
def test_what_is_not_known_is_said_to_be_not_known(sql: str) -> None:
    assert [statement.is_known for statement in analyse(sql, names())] == [False]


@pytest.mark.parametrize(
    ("sql", "relation"),
    [
        ("CREATE INDEX CONCURRENTLY i ON s.plain (x)", "s.plain"),
        ("DROP INDEX CONCURRENTLY s.alone_id", "s.alone"),
        ("REINDEX INDEX CONCURRENTLY s.alone_id", "s.alone"),
    ],
)
def test_a_concurrent_statement_locks_as_said_while_it_waits(
    server: psycopg.Connection[Any], empty_database_url: str, sql: str, relation: str
) -> None:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    (said,) = analyse(sql, names())
    with ThreadPoolExecutor(1) as pool, connect(empty_database_url) as holder, connect(empty_database_url) as runner:
        holder.execute(b"BEGIN")
        holder.execute(f"UPDATE {relation} SET x = x".encode())
        running = pool.submit(runner.execute, sql.encode())
        query = b"SELECT mode FROM pg_locks WHERE pid = %s AND granted AND relation = %s::regclass"
        waiting = b"SELECT FROM pg_locks WHERE pid = %s AND NOT granted AND locktype = 'virtualxid'"
        while server.execute(waiting, (runner.info.backend_pid,)).fetchone() is None:
            assert not running.done()
        modes = [MODES[mode] for (mode,) in server.execute(query, (runner.info.backend_pid, relation))]
        assert max(modes) == said.touches[0].lock == Lock.SHARE_UPDATE_EXCLUSIVE
        holder.execute(b"COMMIT")
        running.result()
