"""How long to wait before another attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from solti_store.model import BackoffPolicy, JitterPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["base_ms", "delay_ms"]


def base_ms(policy: BackoffPolicy, n: int) -> int:
    """The wait before jitter, after the failure number `n` of a streak, counted from 0: min(first · factor^n, max)."""
    try:
        grown = policy.first_ms * policy.factor**n
    except OverflowError:
        return policy.max_ms
    # Compared before it is made an integer: the product may be infinite.
    return int(grown) if grown < policy.max_ms else policy.max_ms


def delay_ms(policy: BackoffPolicy, n: int, uniform: Callable[[float, float], float]) -> int:
    """The wait with jitter, in milliseconds, at least 1.

    Args:
        policy: The task's backoff policy.
        n: The failure's number in its streak, counted from 0.
        uniform: Draws from the closed interval, like `random.uniform`.
    """
    base = base_ms(policy, n)
    match policy.jitter:
        case JitterPolicy.NONE:
            return max(1, base)
        case JitterPolicy.FULL:
            low, high = 0, base
        case JitterPolicy.EQUAL:
            low, high = base // 2, base
        case JitterPolicy.DECORRELATED:
            low = policy.first_ms
            high = max(low, min(3 * base, policy.max_ms))
        case _:
            assert_never(policy.jitter)
    # Cut to the interval again: past 2^53 the draw's rounding could leave it.
    return max(1, low, min(high, round(uniform(low, high))))
