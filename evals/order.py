"""The order q of a Vendi score, as names say it: the scorer `vendi_q2` is `vendi` of order 2, and `diversity_vendi_q2` its metric.

Order 1 is `vendi` itself. Below it rare pictures count for more, above it for less: .1, .5, 2 and inf are those of Pasarkar and Dieng ("Cousins of the Vendi score",
AISTATS 2024, arXiv 2310.12952).
"""

from __future__ import annotations

import re

VENDI = ("vendi", "vendi_clip")
"""The Vendi scorers: of order 1, their 1 means one picture, whatever the network."""
MOST = 100.0
"""Above it a power of a small eigenvalue is below what a double holds; `inf`, the largest alone, is within 5 % of it for up to a hundred pictures."""
_NAME = re.compile(rf"({'|'.join(VENDI)})_q(\d+(?:\.\d+)?|inf)")
CHOICES = f"an order of a Vendi score is a number above 0 and up to {MOST:g} other than 1, or inf, in its shortest form: vendi_q0.5, vendi_q2, vendi_qinf"


def is_order(q: float) -> bool:
    """Whether there is a Vendi score of that order beside order 1."""
    return q != 1 and (0 < q <= MOST or q == float("inf"))


def of_order(vendi: str, q: float) -> str:
    """The name of a Vendi scorer of another order."""
    return f"{vendi}_q{q:g}"


def split(scorer: str) -> tuple[str, float] | None:
    """The Vendi scorer that a name of another order is made of, and the order; None for any other name."""
    found = _NAME.fullmatch(scorer)
    if found is None:
        return None
    vendi, q = found[1], float(found[2])
    return (vendi, q) if is_order(q) and of_order(vendi, q) == scorer else None


def is_vendi(scorer: str) -> bool:
    """Whether a name is a Vendi scorer's, of any order: all pictures of a prompt have one value."""
    return scorer in VENDI or split(scorer) is not None


def is_meant(scorer: str) -> bool:
    """Whether a name that is no scorer's looks like one with an order."""
    return scorer.startswith(tuple(f"{vendi}_q" for vendi in VENDI))
