"""Prompts that are longer than a text encoder or a scorer reads: counted and told, since they are cut without a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompts import Prompt

COUNTED = 10_000
"""Prompts of a set that are counted at the most: tokenizing millions would take minutes."""


IsCut = Callable[[list[Prompt]], Sequence[bool]]
"""For each of some prompts whether it is not read to its end."""


def how_many_are_cut(prompts: Sequence[Prompt], is_cut: IsCut) -> int:
    """How many prompts are not read to their end; of a set of more than `COUNTED`, that many are counted, evenly spaced, and the answer has two digits."""
    counted = min(len(prompts), COUNTED)
    found = sum(is_cut([prompts[i * len(prompts) // counted] for i in range(counted)]))
    if counted == len(prompts):
        return found
    return int(float(f"{found * len(prompts) / counted:.2g}"))  # to two digits: more are not known


def what_is_cut(name: str, prompts: Sequence[Prompt], is_cut: IsCut, beyond: str) -> str:
    """A sentence on prompts that are not read to their end; empty where there is none.

    Of a set of more than `COUNTED` the sentence says "about".

    Args:
        name: of the prompt set.
        prompts: all of it.
        is_cut: for each of some prompts whether it is.
        beyond: what they are longer than.
    """
    found = how_many_are_cut(prompts, is_cut)
    if not found:
        return ""
    count = str(found) if len(prompts) <= COUNTED else f"about {found}"
    are = "is" if count == "1" else "are"
    return f"note: {count} of the {len(prompts)} prompts of {name} {are} longer than {beyond}"
