"""Kubernetes' syntax of label keys and values, and the integers that `>` and `<` compare.

Only the text selector asks for this syntax; labels themselves may be any strings.
"""

import re
from typing import Final

__all__ = ["int64_of", "key_problem", "value_problem"]

_NAME_MAX_LEN: Final = 63
_PREFIX_MAX_LEN: Final = 253
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1

# `fullmatch` everywhere: `$` would let a final line feed through. `\w`, `\d` and `isalnum` know all of Unicode.
# The name bounds its own length; the prefix's pattern can backtrack, so its length is looked at first.
_is_name = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?").fullmatch
_is_prefix = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*").fullmatch
# Leading zeros are skipped (possessively, hence in linear time) because int() refuses more than 4300 digits,
# and a label may be that long.
_integer = re.compile(r"([+-]?)(?=[0-9])0*+([0-9]{0,19})").fullmatch

_NAME_RULE: Final = "must be letters, digits, '-', '_' and '.', with a letter or digit at both ends"


def key_problem(key: str) -> str | None:
    """What is wrong with a label key (`name` or `dns.prefix/name`), None when it is legal."""
    if _is_name(key):
        return None
    prefix, slash, name = key.partition("/")
    if not slash:
        return _name_problem("key", key)
    if "/" in name:
        return "the key must not have more than one '/'"
    return _prefix_problem(prefix) or _name_problem("name after '/'", name)


def value_problem(value: str) -> str | None:
    """What is wrong with a label value, None when it is legal, as the empty one is."""
    return _name_problem("value", value) if value else None


def _prefix_problem(prefix: str) -> str | None:
    if not prefix:
        return "the prefix before '/' must not be empty"
    if len(prefix) > _PREFIX_MAX_LEN:
        return f"the prefix has {len(prefix)} characters, at most {_PREFIX_MAX_LEN} are allowed"
    if not _is_prefix(prefix):
        return "the prefix must be a DNS name: lower-case letters, digits and '-', in parts separated by single dots"
    return None


def _name_problem(what: str, name: str) -> str | None:
    if _is_name(name):
        return None
    if not name:
        return f"the {what} must not be empty"
    if len(name) > _NAME_MAX_LEN:
        return f"the {what} has {len(name)} characters, at most {_NAME_MAX_LEN} are allowed"
    return f"the {what} {_NAME_RULE}"


def int64_of(text: str) -> int | None:
    """The integer a label value stands for, None when it is none or outside of 64 bits.

    ASCII digits with an optional sign, as Go's `strconv.ParseInt(text, 10, 64)` has it. Python's `int` would
    also read `1_000`, ` 1 ` and the digits of other scripts.
    """
    if not (found := _integer(text)):
        return None
    sign, digits = found.groups()
    number = int(f"{sign}{digits or '0'}")
    return number if _INT64_MIN <= number <= _INT64_MAX else None
