"""SQL to the locks it takes, by the parser of PostgreSQL itself and the rules of its documentation.

What is not known is said to be not known. `tests/migration/test_analysis.py` runs every kind of statement and compares
with what the server really locks, rewrites and reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solti_store.errors import SoltiStoreError
from solti_store.migration import altering, blocks
from solti_store.migration.known import FUNCTIONS, SETTINGS
from solti_store.migration.locks import Hazard, Lock, Names, Statement, Touch
from solti_store.migration.nodes import builtin, every, name_of, relation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["analyse"]

Node = dict[str, Any]

# They lock no table, or only ones of the system.
_HARMLESS = {
    "alter_default_privileges_stmt",
    "alter_function_stmt",
    "create_enum_stmt",
    "create_function_stmt",
    "create_role_stmt",
    "create_schema_stmt",
    "variable_show_stmt",
}
_DROPS_WITHOUT_LOCK = {"OBJECT_FUNCTION", "OBJECT_SCHEMA"}
_OF_RELATIONS = {"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_SEQUENCE"}
_OF_TABLES = {"OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY"}


def analyse(sql: str, names: Names) -> list[Statement]:
    """What each statement of a text does.

    Args:
        sql: One statement or several.
        names: What is there before; it is brought up to date.

    Returns:
        The statements; one that is not known stands for the whole text if it cannot be parsed.

    Raises:
        SoltiStoreError: The extra `plan` is not installed.
    """
    try:
        import postgast  # noqa: PLC0415 - an extra
        from google.protobuf.json_format import MessageToDict  # noqa: PLC0415
    except ImportError:
        raise SoltiStoreError(
            "to read SQL takes PostgreSQL's parser: install the extra `plan` (pip install 'solti-store[plan]')"
        ) from None
    try:
        parsed = postgast.parse(sql)
    except postgast.PgQueryError:
        return [Statement(sql.strip(), is_known=False)]
    data, result = sql.encode(), []
    for raw in parsed.stmts:
        end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(data)
        text = data[raw.stmt_location : end].decode().strip()
        node = MessageToDict(raw.stmt, preserving_proto_field_name=True)
        result.append(_Reader(text, names).read(node))
    return result


class _Reader:
    """One statement."""

    def __init__(self, sql: str, names: Names) -> None:
        self._sql, self._names = sql, names
        self._touches: dict[str, Touch] = {}
        self._hazards: list[Hazard] = []
        self._creates: set[str] = set()
        self._is_known, self._is_alone = True, False

    def read(self, node: Node) -> Statement:
        self._read(node)
        touches = tuple(self._touches.values()) if self._is_known else ()
        hazards, creates = tuple(self._hazards), frozenset(self._creates)
        return Statement(self._sql, touches, hazards, self._is_known, creates, self._is_alone)

    def _read(self, node: Node) -> None:
        ((kind, body),) = node.items()
        handler: Callable[[Node], None] | None = getattr(self, f"_{kind}", None)
        if kind in {"insert_stmt", "update_stmt", "delete_stmt"}:
            self._reads(node)
        elif handler is not None:
            handler(body)
        elif kind not in _HARMLESS:
            self._unknown()

    def _unknown(self) -> None:
        self._is_known = False

    def _touch(self, name: str, lock: Lock, *, rewrites: bool = False, scans: bool = False) -> None:
        before = self._touches.get(name, Touch(name, lock))
        self._touches[name] = Touch(name, max(lock, before.lock), before.rewrites or rewrites, before.scans or scans)

    def _hazard(self, rule: str, name: str) -> None:
        self._hazards.append(Hazard(rule, name))

    # --- rows --------------------------------------------------------------------------------------

    def _select_stmt(self, body: Node) -> None:
        self._reads(body)
        if "into_clause" in body:
            self._creates.add(relation(body["into_clause"]["rel"]))

    def _reads(self, body: object, *, runs: bool = True) -> None:
        """All that a query reads and writes, at whatever depth; and what it calls, if it runs."""
        named = {expression["ctename"] for expression in every(body, "common_table_expr")}
        locks_rows = bool(every(body, "locking_clause"))
        for found in every(body, "range_var"):
            if "schemaname" in found or found["relname"] not in named:
                self._touch(relation(found), Lock.ROW_SHARE if locks_rows else Lock.ACCESS_SHARE)
                if locks_rows:
                    self._hazard("not-in-batches", relation(found))
        for found in every(body, "insert_stmt"):
            upserts = found.get("on_conflict_clause", {}).get("action") == "ONCONFLICT_UPDATE"
            rows = found.get("select_stmt", {}).get("select_stmt", {})
            self._writes(found, many=upserts and "values_lists" not in rows)
        for found in every(body, "update_stmt") + every(body, "delete_stmt"):
            self._writes(found, many=True)
        if every(body, "merge_stmt"):
            self._unknown()
        for call in every(body, "func_call") if runs else ():
            name = builtin(call["funcname"])
            if name == "set_config":
                setting = call.get("args", [{}])[0].get("a_const", {}).get("sval", {})
                self._sets(setting.get("sval", ""))
            elif name not in FUNCTIONS:
                # It may do anything.
                self._unknown()

    def _writes(self, body: Node, *, many: bool) -> None:
        name = relation(body["relation"])
        self._touch(name, Lock.ROW_EXCLUSIVE, scans=many)
        if many:
            self._hazard("not-in-batches", name)

    def _lock_stmt(self, body: Node) -> None:
        for name in map(relation, body["relations"]):
            self._touch(name, Lock(body["mode"]))
            self._hazard("lock-table", name)

    def _truncate_stmt(self, body: Node) -> None:
        if body.get("behavior") == "DROP_CASCADE":
            self._unknown()
        for name in map(relation, body["relations"]):
            self._touch(name, Lock.ACCESS_EXCLUSIVE)
            self._hazard("truncate", name)

    # --- the session -------------------------------------------------------------------------------

    def _variable_set_stmt(self, body: Node) -> None:
        self._sets("lock_timeout" if body["kind"] == "VAR_RESET_ALL" else body["name"])

    def _sets(self, setting: str) -> None:
        if setting.lower() == "lock_timeout":
            self._hazard("lock-timeout", "")
        elif setting.lower() not in SETTINGS:
            self._unknown()

    # --- what is new -------------------------------------------------------------------------------

    def _create_stmt(self, body: Node) -> None:
        name = relation(body["relation"])
        if "inh_relations" in body or "of_typename" in body or every(body, "table_like_clause"):
            self._unknown()
        constraints = every(body.get("table_elts"), "constraint")
        for constraint in constraints:
            self._reference(name, constraint, scans=False)
        if body.get("if_not_exists"):
            # It may be there, and be another one.
            return
        self._creates.add(name)
        self._names.forget(name)
        for constraint in constraints:
            altering.remember(name, constraint, self._names)
            if index := constraint.get("conname"):
                self._names.tables[f"{name.rpartition('.')[0]}.{index}".lstrip(".")] = name
        for column in every(body.get("table_elts"), "column_def"):
            kinds = {each["contype"] for each in every(column.get("constraints"), "constraint")}
            if kinds & {"CONSTR_NOTNULL", "CONSTR_PRIMARY", "CONSTR_IDENTITY"}:
                self._names.not_null.add((name, column["colname"]))

    def _create_table_as_stmt(self, body: Node) -> None:
        self._reads(body["query"])
        if not body.get("if_not_exists"):
            self._creates.add(relation(body["into"]["rel"]))

    def _view_stmt(self, body: Node) -> None:
        name = relation(body["view"])
        self._reads(body["query"], runs=False)
        if body.get("replace"):
            self._touch(name, Lock.ACCESS_EXCLUSIVE)
        else:
            self._creates.add(name)

    def _create_seq_stmt(self, body: Node) -> None:
        if not body.get("if_not_exists"):
            self._creates.add(relation(body["sequence"]))
        if body.get("options"):
            self._owned(body)

    def _owned(self, body: Node) -> None:
        if any(option["defname"] == "owned_by" for option in every(body.get("options"), "def_elem")):
            self._unknown()

    def _create_trig_stmt(self, body: Node) -> None:
        if body.get("isconstraint") and "constrrel" in body:
            self._touch(relation(body["constrrel"]), Lock.SHARE_ROW_EXCLUSIVE)
        self._touch(relation(body["relation"]), Lock.SHARE_ROW_EXCLUSIVE)

    # --- indexes -----------------------------------------------------------------------------------

    def _index_stmt(self, body: Node) -> None:
        table = relation(body["relation"])
        if body.get("concurrent"):
            self._touch(table, Lock.SHARE_UPDATE_EXCLUSIVE, scans=True)
            self._is_alone = True
            if body.get("if_not_exists"):
                self._hazard("concurrently", "")
        else:
            self._touch(table, Lock.SHARE, scans=True)
            self._hazard("index-not-concurrent", table)
        if name := body.get("idxname"):
            full = f"{table.rpartition('.')[0]}.{name}".lstrip(".")
            self._names.tables[full] = table
            self._creates.add(full)

    def _reindex_stmt(self, body: Node) -> None:
        concurrent = any(option["defname"] == "concurrently" for option in every(body.get("params"), "def_elem"))
        if body["kind"] not in {"REINDEX_OBJECT_INDEX", "REINDEX_OBJECT_TABLE"}:
            return self._unknown()
        name = relation(body["relation"])
        is_index = body["kind"] == "REINDEX_OBJECT_INDEX"
        table = self._names.tables.get(name) if is_index else name
        if table is None:
            return self._unknown()
        self._touch(table, Lock.SHARE_UPDATE_EXCLUSIVE if concurrent else Lock.SHARE, scans=True)
        if is_index:
            self._touch(name, Lock.SHARE_UPDATE_EXCLUSIVE if concurrent else Lock.ACCESS_EXCLUSIVE)
        self._is_alone = concurrent
        self._hazard("concurrently" if concurrent else "index-not-concurrent", table)
        return None

    # --- what changes or goes ----------------------------------------------------------------------

    def _alter_table_stmt(self, body: Node) -> None:
        table = relation(body["relation"])
        if body["objtype"] not in _OF_RELATIONS | {"OBJECT_INDEX"}:
            return self._unknown()
        # In the order in which the server takes them: no proof is one for the same statement.
        passes = ("AT_Drop", "AT_SetNotNull", "")
        for command in sorted(
            every(body["cmds"], "alter_table_cmd"),
            key=lambda one: next(n for n, begin in enumerate(passes) if one["subtype"].startswith(begin)),
        ):
            effect = altering.effect(table, command, self._names)
            if effect is None:
                return self._unknown()
            altering.learn(table, command, self._names)
            self._touch(table, effect.lock, rewrites=effect.rewrites, scans=effect.scans)
            for name, lock in effect.others:
                self._touch(name, lock, scans=effect.scans)
            for rule in effect.rules:
                self._hazard(rule, table)
            for constraint in effect.constraints:
                self._reference(table, constraint, scans=not constraint.get("skip_validation"))
        return None

    def _reference(self, table: str, constraint: Node, *, scans: bool) -> None:
        if constraint["contype"] == "CONSTR_FOREIGN":
            other = relation(constraint["pktable"])
            self._names.references.setdefault(table, set()).add(other)
            if other not in self._creates:
                self._touch(other, Lock.SHARE_ROW_EXCLUSIVE)
                # To check the rows, the other table's are read too.
                self._touch(other, Lock.SHARE_ROW_EXCLUSIVE, scans=scans)

    def _rename_stmt(self, body: Node) -> None:
        if "relation" not in body:
            return self._unknown()
        name = relation(body["relation"])
        self._names.forget(name)
        if body["rename_type"] == "OBJECT_INDEX":
            self._touch(name, Lock.SHARE_UPDATE_EXCLUSIVE)
        elif body["rename_type"] in _OF_RELATIONS | {"OBJECT_COLUMN", "OBJECT_TABCONSTRAINT"}:
            self._touch(name, Lock.ACCESS_EXCLUSIVE)
        else:
            return self._unknown()
        # Of constraints and indexes too: an error has their names, and ON CONFLICT may.
        return self._hazard("rename", name)

    def _alter_object_schema_stmt(self, body: Node) -> None:
        if body["object_type"] not in _OF_RELATIONS:
            return self._unknown()
        name = relation(body["relation"])
        self._hazard("rename", name)
        self._names.forget(name)
        return self._touch(name, Lock.ACCESS_EXCLUSIVE)

    def _alter_enum_stmt(self, body: Node) -> None:
        if "old_val" in body:
            self._hazard("rename", "")

    def _alter_seq_stmt(self, body: Node) -> None:
        self._owned(body)
        self._touch(relation(body["sequence"]), Lock.SHARE_ROW_EXCLUSIVE)

    def _comment_stmt(self, body: Node) -> None:
        parts = [name_of(part) for part in every(body["object"], "list")[:1] for part in part["items"]]
        kind = body["objtype"]
        if kind in _OF_RELATIONS | {"OBJECT_INDEX"}:
            self._touch(".".join(parts), Lock.SHARE_UPDATE_EXCLUSIVE)
        elif kind == "OBJECT_COLUMN":
            self._touch(".".join(parts[:-1]), Lock.SHARE_UPDATE_EXCLUSIVE)
        elif kind == "OBJECT_TABCONSTRAINT":
            self._touch(".".join(parts[:-1]), Lock.ACCESS_SHARE)
        elif kind not in {"OBJECT_SCHEMA", "OBJECT_FUNCTION", "OBJECT_ROLE", "OBJECT_DATABASE"}:
            self._unknown()

    def _grant_stmt(self, body: Node) -> None:
        if body["targtype"] == "ACL_TARGET_OBJECT" and body["objtype"] in _OF_RELATIONS:
            for name in map(relation, body["objects"]):
                self._touch(name, Lock.ACCESS_SHARE)
                if not body.get("is_grant"):
                    self._hazard("revoke", name)
        elif not body.get("is_grant"):
            self._hazard("revoke", "")

    def _grant_role_stmt(self, body: Node) -> None:
        if not body.get("is_grant"):
            self._hazard("revoke", "")

    def _drop_stmt(self, body: Node) -> None:
        kind = body["remove_type"]
        if body.get("behavior") == "DROP_CASCADE":
            # What else goes is not said here.
            return self._unknown()
        if kind in _DROPS_WITHOUT_LOCK:
            return self._hazard("drop", "")
        for parts in ([name_of(part) for part in each["items"]] for each in every(body["objects"], "list")):
            name = ".".join(parts)
            if kind == "OBJECT_INDEX":
                table = self._names.tables.get(name)
                if table is None:
                    return self._unknown()
                lock = Lock.SHARE_UPDATE_EXCLUSIVE if body.get("concurrent") else Lock.ACCESS_EXCLUSIVE
                self._touch(table, lock)
                self._touch(name, lock)
                if lock is Lock.ACCESS_EXCLUSIVE:
                    self._hazard("index-not-concurrent", table)
                else:
                    self._is_alone = True
            elif kind in _OF_RELATIONS:
                self._touch(name, Lock.ACCESS_EXCLUSIVE)
                self._hazard("drop", name)
                self._names.forget(name)
                for other in self._names.references.pop(name, ()):
                    # Its foreign keys are triggers there.
                    self._touch(other, Lock.ACCESS_EXCLUSIVE)
            elif kind in _OF_TABLES:
                self._touch(".".join(parts[:-1]), Lock.ACCESS_EXCLUSIVE)
                self._hazard("drop", ".".join(parts[:-1]))
            else:
                return self._unknown()
        return None

    # --- a block -----------------------------------------------------------------------------------

    def _do_stmt(self, body: Node) -> None:
        found = blocks.pieces(self._sql, body)
        if found is None:
            return self._unknown()
        block, statements = found
        self._is_alone = self._is_alone or blocks.commits(block)
        for statement in statements:
            # Each may run, or not.
            after = self._names.copy()
            self._include(analyse(statement, after))
            self._names.perhaps(after)
        return None

    def _include(self, statements: Iterable[Statement]) -> None:
        for statement in statements:
            if not statement.is_known:
                self._unknown()
            self._is_alone = self._is_alone or statement.is_alone
            self._hazards += statement.hazards
            for name, lock, rewrites, scans in statement.touches:
                self._touch(name, lock, rewrites=rewrites, scans=scans)
