"""Environment variables of tasks and runners."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from solti_store.model._base import Value
from solti_store.model.scalars import Text

__all__ = ["KeyValue", "RunnerEnv", "TaskEnv", "merge_env"]


class KeyValue(Value):
    """One environment variable."""

    key: Text
    value: Text


class _Env(tuple[KeyValue, ...]):
    """An immutable list of variables; order and duplicates are kept, the last of a name counts.

    Args:
        variables: A mapping, or `KeyValue`s or `(key, value)` pairs in order.

    Raises:
        Invalid: A key or value is no string, or holds NUL or a lone surrogate.
    """

    __slots__ = ()

    def __new__(cls, variables: Mapping[str, str] | Iterable[KeyValue | tuple[str, str]] = ()) -> Self:
        pairs = variables.items() if isinstance(variables, Mapping) else variables
        return tuple.__new__(
            cls,
            (pair if isinstance(pair, KeyValue) else KeyValue(key=pair[0], value=pair[1]) for pair in pairs),
        )

    def get(self, key: str) -> str | None:
        """The value of the last variable of that name, None when there is none."""
        return next((variable.value for variable in reversed(self) if variable.key == key), None)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            partial(tuple.__new__, cls), handler.generate_schema(tuple[KeyValue, ...])
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({tuple.__repr__(self)})"


class TaskEnv(_Env):
    """The variables a task asks for."""

    __slots__ = ()


class RunnerEnv(_Env):
    """The variables a runner sets for every task it runs; they win over the task's."""

    __slots__ = ()


def merge_env(task: TaskEnv, runner: RunnerEnv) -> dict[str, str]:
    """The environment a task runs with, sorted by name.

    For each name the runner's last value, else the task's last value.
    """
    merged = {variable.key: variable.value for variables in (task, runner) for variable in variables}
    return dict(sorted(merged.items()))
