"""Numbers in an order that looks like chance and is arithmetic: the same for ever, in every version of Python."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

from prompts.world import stable_fraction


@lru_cache
def stride(size: int) -> int:
    """The first number from the golden section of `size` on that has no divisor in common with it.

    So `i * stride(size) % size` meets every number below `size` once, and what is near in i is far apart.
    """
    step = max(1, size * 618_034 // 1_000_000)
    while gcd(step, size) != 1:
        step += 1
    return step


def draw(label: str, count: int, size: int) -> list[int]:
    """`count` different numbers below `size`, at random by the hash of the label."""
    assert count <= size
    drawn: dict[int, None] = {}
    turn = 0
    while len(drawn) < count:
        drawn[int(stable_fraction(f"{label} {turn}") * size)] = None
        turn += 1
    return list(drawn)
