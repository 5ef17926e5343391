"""Whether pytest was asked for the tests of a GPU. Imports nothing that could look for one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def asks_for_gpu(arguments: Sequence[str]) -> bool:
    """Whether a marker expression among pytest's arguments names them, not only to leave them out."""
    asked = [after for before, after in pairwise(arguments) if before == "-m"]
    asked += [each for each in arguments if each.startswith("-m")]
    return any("gpu" in each.replace("not gpu", "") for each in asked)
