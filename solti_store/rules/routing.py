"""Who may run what: a task goes by its route, the pair of its kind and its runner selector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING
from uuid import UUID

from solti_store.model import KindName, RunnerSelector

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from solti_store.model import TaskSpec

__all__ = ["Route", "route_of", "serves"]


@dataclass(frozen=True, slots=True)
class Route:
    """A kind and a runner selector, interned.

    Attributes:
        id: A digest of the two, so that whoever creates a task knows it without a look-up. 128 bits: two
            selectors made to collide would send one's tasks to the other's workers.
        kind: The kind of task.
        selector: The selector's JSON; `{}` matches every worker.
    """

    id: UUID
    kind: KindName
    selector: str


@lru_cache(maxsize=1024)
def _route(kind: KindName, selector: RunnerSelector | None) -> Route:
    text = "{}" if selector is None else selector.to_json()
    digest = sha256(f"{kind} {text}".encode()).digest()
    return Route(UUID(bytes=digest[:16]), kind, text)


def route_of(spec: TaskSpec) -> Route:
    """The route of a task."""
    return _route(spec.kind.name, spec.runner_selector)


def serves(kinds: Collection[str], labels: Mapping[str, str], *, kind: str, selector: str) -> bool:
    """Whether a worker of these kinds and labels may run the tasks of a route."""
    return kind in kinds and RunnerSelector.from_json(selector).matches(labels)
