"""SQL to the locks it takes, by the parser of PostgreSQL itself and the rules of its documentation.

What is not known is said to be not known. `tests/migration/test_analysis.py` runs every kind of statement and compares
with what the server really locks, rewrites and reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solti_store.errors import SoltiStoreError
from solti_store.migration import altering
from solti_store.migration.locks import Hazard, Lock, Names, Statement, Touch
from solti_store.migration.nodes import every, last_name, name_of, relation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["analyse"]

Node = dict[str, Any]

# They lock no table, or only ones of the system.
_HARMLESS = {
    "alter_default_privileges_stmt",
    "alter_enum_stmt",
    "alter_function_stmt",
    "alter_role_set_stmt",
    "alter_role_stmt",
    "create_enum_stmt",
    "create_function_stmt",
    "create_role_stmt",
    "create_schema_stmt",
    "grant_role_stmt",
    "transaction_stmt",
    "variable_set_stmt",
    "variable_show_stmt",
}
_HARMLESS_DROPS = {"OBJECT_FUNCTION", "OBJECT_SCHEMA"}
_OF_RELATIONS = {"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_SEQUENCE"}
_OF_TABLES = {"OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY"}
_PLPGSQL = {
    f"PLpgSQL_stmt_{kind}"
    for kind in ("block", "if", "loop", "while", "exit", "assign", "return", "raise", "perform", "execsql", "commit")
}
_STATEMENT, _EXPRESSION = 0, 2  # how PL/pgSQL reads a piece


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
        self._is_known = True

    def read(self, node: Node) -> Statement:
        self._read(node)
        touches = tuple(self._touches.values()) if self._is_known else ()
        return Statement(self._sql, touches, tuple(self._hazards), self._is_known, frozenset(self._creates))

    def _read(self, node: Node) -> None:
        ((kind, body),) = node.items()
        if kind in _HARMLESS:
            return
        handler: Callable[[Node], None] | None = getattr(self, f"_{kind}", None)
        if handler is None:
            self._unknown()
        else:
            handler(body)

    def _unknown(self) -> None:
        self._is_known = False

    def _touch(self, name: str, lock: Lock, *, rewrites: bool = False, scans: bool = False) -> None:
        before = self._touches.get(name, Touch(name, lock))
        self._touches[name] = Touch(name, max(lock, before.lock), before.rewrites or rewrites, before.scans or scans)

    def _hazard(self, rule: str, name: str) -> None:
        self._hazards.append(Hazard(rule, name))

    # --- rows --------------------------------------------------------------------------------------

    def _select_stmt(self, body: Node) -> None:
        self._reads(body, Lock.ROW_SHARE if body.get("locking_clause") else Lock.ACCESS_SHARE)
        if "into_clause" in body:
            self._creates.add(relation(body["into_clause"]["rel"]))

    def _insert_stmt(self, body: Node) -> None:
        self._writes(body)

    def _update_stmt(self, body: Node) -> None:
        self._writes(body)
        self._touch(relation(body["relation"]), Lock.ROW_EXCLUSIVE, scans=True)

    def _delete_stmt(self, body: Node) -> None:
        self._writes(body)
        self._touch(relation(body["relation"]), Lock.ROW_EXCLUSIVE, scans=True)

    def _writes(self, body: Node) -> None:
        self._touch(relation(body["relation"]), Lock.ROW_EXCLUSIVE)
        self._reads({key: value for key, value in body.items() if key != "relation"}, Lock.ACCESS_SHARE)

    def _reads(self, body: object, lock: Lock) -> None:
        named = {expression["ctename"] for expression in every(body, "common_table_expr")}
        for found in every(body, "range_var"):
            if "schemaname" in found or found["relname"] not in named:
                self._touch(relation(found), lock)
        for kind in ("insert_stmt", "update_stmt", "delete_stmt", "merge_stmt"):
            for found in every(body, kind):
                self._touch(relation(found["relation"]), Lock.ROW_EXCLUSIVE)
        for call in every(body, "func_call"):
            # A function of somebody's own may do anything.
            if len(call["funcname"]) > 1 and name_of(call["funcname"][0]) != "pg_catalog":
                self._unknown()

    def _lock_stmt(self, body: Node) -> None:
        for name in map(relation, body["relations"]):
            self._touch(name, Lock(body["mode"]))

    def _truncate_stmt(self, body: Node) -> None:
        if body.get("behavior") == "DROP_CASCADE":
            self._unknown()
        for name in map(relation, body["relations"]):
            self._touch(name, Lock.ACCESS_EXCLUSIVE)
            self._hazard("truncate", name)

    # --- what is new -------------------------------------------------------------------------------

    def _create_stmt(self, body: Node) -> None:
        name = relation(body["relation"])
        if "inh_relations" in body or "of_typename" in body or every(body, "table_like_clause"):
            self._unknown()
        self._creates.add(name)
        for constraint in every(body.get("table_elts"), "constraint"):
            self._reference(name, constraint, scans=False)
            if index := constraint.get("conname"):
                self._names.tables[f"{name.rpartition('.')[0]}.{index}".lstrip(".")] = name
        for column in every(body.get("table_elts"), "column_def"):
            kinds = {each["contype"] for each in every(column.get("constraints"), "constraint")}
            if kinds & {"CONSTR_NOTNULL", "CONSTR_PRIMARY", "CONSTR_IDENTITY"}:
                self._names.not_null.add((name, column["colname"]))

    def _create_table_as_stmt(self, body: Node) -> None:
        self._reads(body["query"], Lock.ACCESS_SHARE)
        self._creates.add(relation(body["into"]["rel"]))

    def _view_stmt(self, body: Node) -> None:
        name = relation(body["view"])
        self._reads(body["query"], Lock.ACCESS_SHARE)
        if body.get("replace"):
            self._touch(name, Lock.ACCESS_EXCLUSIVE)
        else:
            self._creates.add(name)

    def _create_seq_stmt(self, body: Node) -> None:
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
        if not concurrent:
            self._hazard("index-not-concurrent", table)
        return None

    # --- what changes or goes ----------------------------------------------------------------------

    def _alter_table_stmt(self, body: Node) -> None:
        table = relation(body["relation"])
        if body["objtype"] not in _OF_RELATIONS | {"OBJECT_INDEX"}:
            return self._unknown()
        for command in every(body["cmds"], "alter_table_cmd"):
            effect = altering.effect(table, command, self._names)
            if effect is None:
                return self._unknown()
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
        if body["rename_type"] == "OBJECT_INDEX":
            self._touch(name, Lock.SHARE_UPDATE_EXCLUSIVE)
        elif body["rename_type"] in _OF_RELATIONS | {"OBJECT_COLUMN", "OBJECT_TABCONSTRAINT"}:
            self._touch(name, Lock.ACCESS_EXCLUSIVE)
            if body["rename_type"] != "OBJECT_TABCONSTRAINT":
                self._hazard("rename", name)
        else:
            return self._unknown()
        return None

    def _alter_object_schema_stmt(self, body: Node) -> None:
        if body["object_type"] not in _OF_RELATIONS:
            return self._unknown()
        name = relation(body["relation"])
        self._hazard("rename", name)
        return self._touch(name, Lock.ACCESS_EXCLUSIVE)

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

    def _drop_stmt(self, body: Node) -> None:
        kind = body["remove_type"]
        if body.get("behavior") == "DROP_CASCADE":
            # What else goes is not said here.
            return self._unknown()
        if kind in _HARMLESS_DROPS:
            return None
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
            elif kind in _OF_RELATIONS:
                self._touch(name, Lock.ACCESS_EXCLUSIVE)
                self._hazard("drop", name)
                for other in self._names.references.pop(name, ()):
                    # Its foreign keys are triggers there.
                    self._touch(other, Lock.ACCESS_EXCLUSIVE)
            elif kind in _OF_TABLES:
                self._touch(".".join(parts[:-1]), Lock.ACCESS_EXCLUSIVE)
            else:
                return self._unknown()
        return None

    # --- a block -----------------------------------------------------------------------------------

    def _do_stmt(self, body: Node) -> None:
        import postgast  # noqa: PLC0415 - `analyse` has it

        options = every(body, "def_elem")
        if any(option["defname"] == "language" and last_name(option["arg"]) != "plpgsql" for option in options):
            return self._unknown()
        try:
            block = postgast.parse_plpgsql(self._sql)
        except postgast.PgQueryError:
            return self._unknown()
        if not block or any(kind not in _PLPGSQL for kind in _statements(block)):
            return self._unknown()
        for piece in every(block, "PLpgSQL_expr"):
            query = piece["query"]
            if piece["parseMode"] == _EXPRESSION:
                query = f"SELECT {query}"
            elif piece["parseMode"] != _STATEMENT:
                query = f"SELECT {query.partition('=')[2]}"
            self._include(analyse(query, self._names))
        return None

    def _include(self, statements: Iterable[Statement]) -> None:
        for statement in statements:
            if not statement.is_known:
                self._unknown()
            self._creates |= statement.creates
            self._hazards += statement.hazards
            for name, lock, rewrites, scans in statement.touches:
                self._touch(name, lock, rewrites=rewrites, scans=scans)


def _statements(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (key for key in node if key.startswith("PLpgSQL_stmt_"))
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _statements(child)
