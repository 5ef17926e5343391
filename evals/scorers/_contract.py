"""Holds a scorer to what training and tables rely on: `python -m evals check-scorer NAME_OR_FILE`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.scorers import Domain, Scope, Scorer, ScorerFailed, ask, ask_differentiable, is_range
from evals.scorers._preprocess import preprocess, resize
from prompts import Prompt

SAME = 1e-4
"""How far an image's score may lie from the same image's in another batch: rounding."""
STEPS = (1 / 255, 4 / 255, 16 / 255)
"""How far pictures are moved along the gradient of their score: past the rounding to 8 bit, and not so far that what they show is another thing."""


def faults(name: str, scorer: Scorer, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> list[str]:
    """What a scorer does not keep of the contract, a sentence each; empty where it keeps all of it.

    Args:
        name: of the scorer.
        scorer: to be held to it.
        images_BCHW: at least four, float32 RGB in [0, 1].
        prompts: of the images.
    """
    found = _of_what_it_states(scorer)
    if found:
        return found
    base = images_BCHW.flip(0) if scorer.scope == "paired" else None
    given = images_BCHW.clone()

    def answer(order: Tensor) -> Tensor:
        asked = [prompts[i] for i in order.tolist()]
        other = None if base is None else base[order]
        return ask(name, scorer, given[order], asked, lambda i: f"picture {int(order[i])}", other)

    try:
        # these very pictures: one that writes into them shows
        value_B = ask(name, scorer, images_BCHW, prompts, lambda i: f"picture {i}", base)
        again_B = answer(torch.arange(len(given)))
        other = None if base is None else reordered(base)
        reordered_B = ask(name, scorer, reordered(given), prompts, lambda i: f"picture {i}", other)
        if not value_B.isfinite().any():
            found.append("it answers NaN (not applicable) for every picture that it was shown")
        found += _of_the_same(value_B, again_B, reordered_B)
        if not torch.equal(given, images_BCHW):
            found.append("it changes the pictures that it is given")
        if scorer.scope == "image":
            found += _of_neighbours(answer, value_B)
        if hasattr(scorer, "differentiable"):
            found += _of_gradient(name, scorer, given, prompts, value_B)
    except ScorerFailed as failure:
        found.append(str(failure))
    return found


def reordered(images_BCHW: Tensor) -> Tensor:
    """The same pictures with channels last in memory, or as planes where they were last: scoring gives the former, training what its decoder leaves."""
    is_last = images_BCHW.is_contiguous(memory_format=torch.channels_last)
    return images_BCHW.contiguous(memory_format=torch.contiguous_format if is_last else torch.channels_last)


def pictures(domain: Domain) -> tuple[Tensor, list[Prompt]]:
    """Sixteen pictures to hold a scorer to, and what was asked for, by which any scorer of the domain applies to some of them."""
    return _photographs() if domain == "photo" else _drawings()


def _photographs() -> tuple[Tensor, list[Prompt]]:
    """Four of scikit-image's, each as it is, mirrored, darker and smaller in its frame: 256 pixels."""
    from skimage import data

    shown = {"astronaut": "person", "chelsea": "cat", "coffee": "cup", "rocket": "airplane"}
    images, asked = [], []
    for name, thing in shown.items():
        pixels = torch.from_numpy(getattr(data, name)()[..., :3].copy()).permute(2, 0, 1) / 255
        image = preprocess(pixels[None], 256, mean=(0, 0, 0), std=(1, 1, 1))[0]
        small = F.pad(resize(image[None], (192, 192))[0], (32, 32, 32, 32), value=0.5)
        images += [image, image.flip(-1), 0.7 * image, small]
        expect = {
            "objects": [{"name": thing}],
            "include": [{"class": thing, "count": 1}],
            "tag": "single_object",
            **({"group": "skin_tone"} if thing == "person" else {}),
        }
        asked += [Prompt(name, f"a {thing} next to a table", expect=expect)] * 4
    return torch.stack(images), asked


def _drawings() -> tuple[Tensor, list[Prompt]]:
    """Two scenes and two portraits by the miniature's base, four of each."""
    import prompts
    from evals.checkpoints import load_pipeline
    from evals.diffusion import Painter
    from evals.miniature import weights_folder
    from evals.suites.miniature import SUITE

    few = [*prompts.load("miniature-scenes-unseen")[:2], *prompts.load("miniature-portraits-unseen")[:2]]
    asked = [prompt for prompt in few for _ in range(4)]
    painter = Painter.of(load_pipeline(str(weights_folder("pipeline"))), SUITE.sampling)
    return painter.paint([prompt.text for prompt in asked], range(len(asked)), seed=0), asked


def _of_what_it_states(scorer: Scorer) -> list[str]:
    found = []
    bounds: object = scorer.range
    if not is_range(bounds):
        found.append(f"its range is {bounds!r}, but must be two numbers, (low, high)")
    elif not bounds[0] < bounds[1]:
        found.append(f"its range is {scorer.range}, but must be (low, high)")
    if scorer.scope not in get_args(Scope):
        found.append(f"its scope is {scorer.scope!r}: choose from {', '.join(get_args(Scope))}")
    if scorer.higher_is_better not in (True, False, None):
        found.append(f"its higher_is_better is {scorer.higher_is_better!r}: choose True, False or None")
    if not (isinstance(scorer.source, str) and scorer.source):
        found.append("its source is empty: name model, revision, licence and paper")
    if not re.fullmatch(r"[0-9a-f]{8}", str(scorer.version)):
        found.append(
            f"its version is {scorer.version!r}, but must be 8 hex digits (evals.scorers.version_of makes them)"
        )
    return found


def _of_the_same(value_B: Tensor, again_B: Tensor, reordered_B: Tensor) -> list[str]:
    """The same pictures have the same scores, however they lie in memory."""
    if not _same(value_B, again_B):
        return ["it gives the same pictures other scores the second time"]
    if not _same(value_B, reordered_B):
        return ["its scores are others where channels are last in memory, as scoring gives pictures"]
    return []


def _of_neighbours(answer: Callable[[Tensor], Tensor], value_B: Tensor) -> list[str]:
    """In scope "image" neither order nor batch size may change a score."""
    found = []
    order = torch.randperm(len(value_B), generator=torch.Generator().manual_seed(0))
    if not _same(answer(order), value_B[order]):
        found.append('its scope is "image", but a picture\'s score depends on its place in the batch')
    alone = torch.cat([answer(torch.tensor([i])) for i in range(4)])
    if not _same(alone, value_B[:4]):
        found.append('its scope is "image", but a picture alone has another score than in a batch')
    return found


def _of_gradient(
    name: str, scorer: Scorer, images_BCHW: Tensor, prompts: Sequence[Prompt], value_B: Tensor
) -> list[str]:
    """`differentiable` has the values of a call, and a gradient of each picture's own score along which it rises.

    Not compared with a difference quotient: pictures are rounded to 8 bit, so that a score is a staircase.
    """
    if scorer.scope != "image":
        return [
            f'it has differentiable, but its scope is "{scorer.scope}": a gradient is that of a picture\'s own score'
        ]
    images = images_BCHW.clone().requires_grad_()
    answer_B = ask_differentiable(name, scorer, images, prompts)
    found = []
    if not _same(answer_B.detach().cpu(), value_B):
        found.append("its differentiable has other values than a call")
    applies_B = value_B.isfinite()
    (slope_BCHW,) = torch.autograd.grad(answer_B[applies_B.to(answer_B.device)].sum(), images)
    if not slope_BCHW[applies_B].isfinite().all():
        return [*found, "its gradient is no number"]
    (own_BCHW,) = torch.autograd.grad(
        ask_differentiable(name, scorer, images, prompts)[applies_B.nonzero()[0, 0]], images
    )
    if own_BCHW.flatten(1).abs().amax(1).count_nonzero() > 1:
        found.append("the gradient of a picture's score is one of other pictures too")
    sloped_B = slope_BCHW.flatten(1).abs().amax(1) > 0
    if not sloped_B[applies_B].any():
        return [*found, "its gradient is 0 for every picture"]
    moved = [(images.detach() + step * slope_BCHW.sign()).clamp(0, 1) for step in STEPS]
    best_B = torch.stack([ask(name, scorer, x, prompts, lambda i: f"picture {i} moved") for x in moved]).amax(
        0
    )
    if (best_B > value_B)[sloped_B].float().mean() <= 0.5:
        found.append("its gradient does not point to where its score is higher")
    return found


def _same(one_B: Tensor, other_B: Tensor) -> bool:
    return torch.allclose(one_B, other_B, atol=SAME, equal_nan=True)
