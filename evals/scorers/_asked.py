"""What scorers of photographs need of prompts, told before there are pictures: what their `check_prompts` have in common."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from prompts import Prompt

LONGEST = 60
"""Letters of a prompt that a message shows."""


def refuse_none(prompts: Sequence[Prompt], is_asked: Callable[[Prompt], bool], needs: str) -> None:
    """Refuse prompts that a scorer raises for, and a set that it applies to no prompt of.

    A prompt that it does not apply to is no mistake by itself: there its score is NaN, as with a portrait among scenes. A set of nothing else has no score at all.

    Args:
        prompts: of a set.
        is_asked: whether the scorer applies to a prompt; raises as a call of the scorer would.
        needs: what makes it apply, to follow "none of its 30 prompts".

    Raises:
        ValueError: naming the prompt, or the first of those that lack what is needed.
    """
    if not [prompt for prompt in prompts if _is_asked(prompt, is_asked, needs)]:
        first = textwrap.shorten(prompts[0].text, LONGEST, placeholder=" ...")
        raise ValueError(
            f"none of its {len(prompts):,} prompts {needs}; the first is {prompts[0].id!r}, {first!r}"
        )


def said_of(prompt: Prompt, error: ValueError) -> str:
    """What is wrong with a prompt, which the sentence then names."""
    of = f"prompt {prompt.id!r}"
    return str(error) if of in str(error) else f"{of}: {error}"


def _is_asked(prompt: Prompt, is_asked: Callable[[Prompt], bool], needs: str) -> bool:
    try:
        return is_asked(prompt)
    except ValueError as error:
        raise ValueError(said_of(prompt, error)) from error
    except (AttributeError, KeyError, TypeError) as error:  # what a prompt expects is anybody's JSON
        raise ValueError(
            f"prompt {prompt.id!r} has `expect` {dict(prompt.expect)!r}, in another form than one that {needs}"
        ) from error
