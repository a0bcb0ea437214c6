"""What each form of ALTER TABLE locks, rewrites and reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from solti_store.migration.known import SERIALS, STEADY, TYPES
from solti_store.migration.locks import Lock
from solti_store.migration.nodes import builtin, every, name_of

if TYPE_CHECKING:
    from solti_store.migration.locks import Names

__all__ = ["Effect", "effect", "learn", "remember"]

Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effect:
    """What one form does.

    Attributes:
        lock: On the table.
        rewrites: Whether all rows are written anew.
        scans: Whether all rows are read.
        rules: What should be done in another way.
        others: Other tables that are locked.
        constraints: Constraints that are new, which may be about other tables.
    """

    lock: Lock
    rewrites: bool = False
    scans: bool = False
    rules: tuple[str, ...] = ()
    others: tuple[tuple[str, Lock], ...] = ()
    constraints: tuple[Node, ...] = ()


_ALL = Lock.ACCESS_EXCLUSIVE
_SIMPLE = {
    # A moment, since only the catalogue changes.
    "AT_DropNotNull": Effect(_ALL),
    "AT_DropIdentity": Effect(_ALL, rules=("drop",)),
    "AT_ChangeOwner": Effect(_ALL, rules=("revoke",)),
    "AT_SetStorage": Effect(_ALL),
    "AT_SetCompression": Effect(_ALL),
    "AT_EnableRowSecurity": Effect(_ALL, rules=("revoke",)),
    "AT_DisableRowSecurity": Effect(_ALL),
    "AT_ForceRowSecurity": Effect(_ALL, rules=("revoke",)),
    "AT_NoForceRowSecurity": Effect(_ALL),
    "AT_ReplicaIdentity": Effect(_ALL),
    "AT_SetStatistics": Effect(Lock.SHARE_UPDATE_EXCLUSIVE),
    "AT_SetOptions": Effect(Lock.SHARE_UPDATE_EXCLUSIVE),
    "AT_ResetOptions": Effect(Lock.SHARE_UPDATE_EXCLUSIVE),
    "AT_ClusterOn": Effect(Lock.SHARE_UPDATE_EXCLUSIVE),
    "AT_DropCluster": Effect(Lock.SHARE_UPDATE_EXCLUSIVE),
    **{
        f"AT_{verb}Trig{which}": Effect(Lock.SHARE_ROW_EXCLUSIVE, rules=rules)
        for verb, rules in (("Enable", ()), ("Disable", ("drop",)))
        for which in ("", "User", "All")
    },
    # All rows.
    "AT_SetLogged": Effect(_ALL, rewrites=True, rules=("rewrite",)),
    "AT_SetUnLogged": Effect(_ALL, rewrites=True, rules=("rewrite",)),
    "AT_SetExpression": Effect(_ALL, rewrites=True, rules=("rewrite",)),
    "AT_AlterColumnType": Effect(_ALL, rewrites=True, rules=("type-change",)),
}
# Of these it is known that a weak lock is enough; of others the strong one is taken.
_LIGHT_OPTIONS = ("autovacuum_", "toast.", "vacuum_", "log_autovacuum_", "fillfactor", "parallel_workers")


def effect(table: str, command: Node, names: Names) -> Effect | None:  # noqa: PLR0911 - one for each form
    """What a form does to the table; None if that is not known."""
    kind = command["subtype"]
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    match kind:
        case "AT_AddColumn":
            return _add_column(command["def"]["column_def"])
        case "AT_ColumnDefault":
            # Old code that does not name the column would now write NULL.
            return Effect(_ALL, rules=() if "def" in command else ("drop",))
        case "AT_DropColumn" if command.get("behavior") != "DROP_CASCADE":
            return Effect(_ALL, rules=("drop-column",), others=_referenced(table, names))
        case "AT_DropConstraint" if command.get("behavior") != "DROP_CASCADE":
            # What a CHECK forbade old code does not write; but for another it may have an ON CONFLICT.
            rules = () if (table, command["name"]) in names.checks else ("drop",)
            # It may be a foreign key, whose triggers are on the other table too.
            return Effect(_ALL, rules=rules, others=_referenced(table, names))
        case "AT_SetNotNull":
            proved = (table, command["name"]) in names.not_null
            return Effect(_ALL, scans=not proved, rules=() if proved else ("not-null",))
        case "AT_AddConstraint":
            return _add_constraint(command["def"]["constraint"])
        case "AT_ValidateConstraint":
            # It may be a foreign key, for which the other table is read too.
            return Effect(Lock.SHARE_UPDATE_EXCLUSIVE, scans=True, others=_referenced(table, names, Lock.ROW_SHARE))
        case "AT_SetRelOptions" | "AT_ResetRelOptions":
            options = [_option(option) for option in every(command["def"], "def_elem")]
            light = all(option.startswith(_LIGHT_OPTIONS) for option in options)
            return Effect(Lock.SHARE_UPDATE_EXCLUSIVE if light else _ALL)
    return None


def learn(table: str, command: Node, names: Names) -> None:
    """Tell the names what is proved, and what no longer, once a form is done."""
    name = command.get("name", "")
    match command["subtype"]:
        case "AT_AddConstraint":
            remember(table, command["def"]["constraint"], names)
        case "AT_ValidateConstraint":
            if column := names.checks.get((table, name)):
                names.not_null.add((table, column))
        case "AT_SetNotNull":
            names.not_null.add((table, name))
        case "AT_DropNotNull":
            names.nullable(table, name)
        case "AT_DropColumn":
            # Its constraints go too, under names that are not known here.
            names.forget(table)
        case "AT_DropConstraint" if (table, name) in names.checks:
            if column := names.checks.pop((table, name)):
                names.nullable(table, column)
        case "AT_DropConstraint":
            # It may be a NOT NULL.
            names.nullable(table)


def _option(node: Node) -> str:
    space = node.get("defnamespace")
    return f"{space}.{node['defname']}" if space else str(node["defname"])


def _referenced(table: str, names: Names, lock: Lock = _ALL) -> tuple[tuple[str, Lock], ...]:
    """Foreign keys bear no name here that is known, so all of the table's are meant."""
    return tuple((name, lock) for name in sorted(names.references.get(table, ())))


def _add_column(column: Node) -> Effect:
    constraints = every(column.get("constraints"), "constraint")
    kinds = {constraint["contype"] for constraint in constraints}
    kind = builtin(column["type_name"]["names"])
    stored = any(each["contype"] == "CONSTR_GENERATED" and each.get("generated_kind") != "v" for each in constraints)
    volatile = any(each["contype"] == "CONSTR_DEFAULT" and not _is_steady(each["raw_expr"]) for each in constraints)
    rewrites = kind in SERIALS or stored or volatile or "CONSTR_IDENTITY" in kinds
    # A domain may have a CHECK of its own, and any type that is not the server's may be a domain.
    foreign_type = kind not in TYPES | SERIALS
    indexed = bool(kinds & {"CONSTR_UNIQUE", "CONSTR_PRIMARY", "CONSTR_EXCLUSION"})
    checked = "CONSTR_CHECK" in kinds or foreign_type
    # With a default that no row is asked for, none is looked at.
    needed = "CONSTR_NOTNULL" in kinds and "CONSTR_DEFAULT" not in kinds and not rewrites
    scans = rewrites or indexed or checked or needed
    rules = [
        rule
        for rule, holds in (
            ("rewrite", rewrites),
            ("constraint-not-valid", "CONSTR_CHECK" in kinds or "CONSTR_FOREIGN" in kinds),
            ("index-not-concurrent", indexed),
            ("not-null", needed),
            ("rewrite", foreign_type and not rewrites),
        )
        if holds
    ]
    references = tuple(each for each in constraints if each["contype"] == "CONSTR_FOREIGN")
    return Effect(_ALL, rewrites, scans, tuple(rules), constraints=references)


def _is_steady(expression: Node) -> bool:
    """Whether a default is the same for all rows; functions that are not known are taken for volatile."""
    return all(builtin(call["funcname"]) in STEADY for call in every(expression, "func_call"))


def _add_constraint(constraint: Node) -> Effect | None:
    later = bool(constraint.get("skip_validation"))
    match constraint["contype"]:
        case "CONSTR_FOREIGN":
            rules = () if later else ("constraint-not-valid",)
            return Effect(Lock.SHARE_ROW_EXCLUSIVE, scans=not later, rules=rules, constraints=(constraint,))
        case "CONSTR_CHECK" | "CONSTR_NOTNULL":
            return Effect(_ALL, scans=not later, rules=() if later else ("constraint-not-valid",))
        case "CONSTR_UNIQUE" | "CONSTR_PRIMARY" if "indexname" in constraint:
            # A primary key's columns are made NOT NULL, for which they are read if they are not yet.
            reads = constraint["contype"] == "CONSTR_PRIMARY"
            return Effect(_ALL, scans=reads, rules=("not-null",) if reads else ())
        case "CONSTR_UNIQUE" | "CONSTR_PRIMARY" | "CONSTR_EXCLUSION":
            return Effect(_ALL, scans=True, rules=("index-not-concurrent",))
    return None


def remember(table: str, constraint: Node, names: Names) -> None:
    """Note a new constraint, if it is a CHECK, and what it proves."""
    name = constraint.get("conname", "")
    names.checks.pop((table, name), None)
    if constraint["contype"] != "CONSTR_CHECK":
        return
    column = _says_not_null(constraint)
    if name:
        names.checks[(table, name)] = column
    if column and not constraint.get("skip_validation"):
        names.not_null.add((table, column))


def _says_not_null(constraint: Node) -> str | None:
    """The column of which a CHECK says that it IS NOT NULL, if it says nothing else and is enforced."""
    test = constraint["raw_expr"].get("null_test", {})
    if (
        not constraint.get("is_enforced")
        or test.get("nulltesttype") != "IS_NOT_NULL"
        or "column_ref" not in test["arg"]
    ):
        return None
    return name_of(test["arg"]["column_ref"]["fields"][-1])
