"""Scores to rewards: weights, masks, and the parity reward on groups whose tones are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prompts import Prompt
from tests import toy
from train.batches import at_once
from train.config import Reward, Task
from train.rewards import (
    RewardFailed,
    above_others,
    check_validity,
    leave_one_out,
    load_scorers,
    parity,
    score,
    shape,
    worst_of_group,
)

NAN = math.nan
TASK = Task("t", "prompts", (Reward("a", 2.0), Reward("b", -1.0)), batch=4, images_per_prompt=2)
PARITY = Task("t", "prompts", (Reward("tone"),), batch=8, images_per_prompt=4, shaping="parity")


def group_of(*tones: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(tones), torch.zeros(len(tones), dtype=torch.long)


def eq_12(tones: list[int], classes: int, root: bool) -> float:
    """The definition."""
    total = sum((tones.count(a) / len(tones) - 1 / classes) ** 2 for a in range(classes))
    return -(math.sqrt(total) if root else total)


# ------------------------------------------------------------------------------------------------------------ pointwise


def test_terms_are_weighted_and_a_missing_one_masks_the_image() -> None:
    shaped = shape(TASK, torch.tensor([[1.0, 0.5], [2.0, NAN], [0.0, 1.0], [3.0, 0.0]]))
    assert shaped.credit_B[[0, 2, 3]].tolist() == [1.5, -1.0, 6.0]
    assert shaped.credit_B[1].isnan()
    assert shaped.group_B is None


def test_an_image_is_compared_with_the_others_of_its_prompt() -> None:
    score_BK = torch.tensor([[1.0], [3.0], [101.0], [103.0]])
    task = replace(TASK, rewards=(Reward("a"),), baseline="group")
    shaped = shape(task, score_BK)
    assert shaped.credit_B.tolist() == [-2.0, 2.0, -2.0, 2.0]  # what a prompt's images have in common is gone
    assert shaped.reported.tolist() == [1.0, 3.0, 101.0, 103.0]  # the curve is of the reward itself
    assert shape(replace(task, baseline="batch"), score_BK).credit_B.tolist() == [1.0, 3.0, 101.0, 103.0]


def test_an_image_without_others_to_compare_it_with_is_masked() -> None:
    reward_B = torch.tensor([1.0, NAN, 5.0, 7.0, 2.0, NAN])
    credit = above_others(reward_B, torch.tensor([0, 0, 1, 1, 1, 2])).tolist()
    assert credit[2:5] == pytest.approx([5 - 4.5, 7 - 3.5, 2 - 6.0])
    assert all(math.isnan(credit[i]) for i in (0, 1, 5))


def test_a_batch_in_which_nothing_can_be_compared_is_refused() -> None:
    task = replace(TASK, rewards=(Reward("a"),), baseline="group")
    with pytest.raises(RewardFailed, match="no image of task t has another of its prompt"):
        shape(task, torch.tensor([[1.0], [NAN], [NAN], [3.0]]))


# --------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("root", [True, False])
def test_parity_is_eq_12_on_every_histogram(root: bool) -> None:
    for tones in itertools.combinations_with_replacement(range(4), 6):
        tone_B, group_B = group_of(*tones)
        assert parity(tone_B, group_B, 4, root).item() == pytest.approx(eq_12(list(tones), 4, root), abs=1e-6)


def test_parity_is_zero_when_uniform_and_worst_when_all_alike() -> None:
    assert parity(*group_of(0, 1, 2, 3, 0, 1, 2, 3), 4).item() == 0.0
    assert parity(*group_of(2, 2, 2, 2), 4).item() == pytest.approx(-math.sqrt(0.75))
    assert parity(*group_of(2, 2, 2, 2), 4, root=False).item() == pytest.approx(-0.75)


def test_parity_does_not_care_which_class_or_order() -> None:
    values = {round(parity(*group_of(*tones), 4).item(), 6) for tones in itertools.permutations([0, 0, 1, 3])}
    values |= {round(parity(*group_of(*tones), 4).item(), 6) for tones in ([2, 2, 3, 0], [1, 1, 2, 0])}
    assert len(values) == 1


def test_floor_of_a_fair_generator_at_sixteen() -> None:
    """0.200 at n = 16 (paper notes, 3.2), by simulation."""
    tones = torch.randint(4, (4000 * 16,), generator=torch.Generator().manual_seed(0)).float()
    groups = torch.arange(4000).repeat_interleave(16)
    assert -parity(tones, groups, 4).mean().item() == pytest.approx(0.200, abs=0.004)


def test_unusable_images_are_worth_what_the_worst_of_their_group_is() -> None:
    credit_B = torch.tensor([0.2, NAN, -0.1, 0.3, NAN, NAN, NAN, -0.4, -0.5])
    group_B = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
    filled = worst_of_group(credit_B, group_B)
    assert filled[:5].tolist() == pytest.approx([0.2, -0.1, -0.1, 0.3, 0.3])
    assert filled[5:7].isnan().all()  # nothing in that group says what is worst
    assert filled[7:].tolist() == pytest.approx([-0.4, -0.5])


def test_blurring_a_face_gains_no_more_than_the_most_frequent_class_where_unusable_is_worst() -> None:
    tones = torch.tensor([[0.0], [0.0], [1.0], [NAN], [0.0], [0.0], [1.0], [2.0]])
    task = replace(PARITY, credit="leave_one_out")
    masked, worst = (shape(replace(task, unusable=unusable), tones) for unusable in ("masked", "worst"))
    assert masked.credit_B[3].isnan()
    lost = eq_12([0, 0, 1], 4, True) - eq_12([0, 1], 4, True)
    assert worst.credit_B[3].item() == worst.credit_B[0].item() == pytest.approx(lost, abs=1e-6)
    assert lost < 0 < masked.credit_B[2]
    assert torch.equal(masked.reported, worst.reported)  # what is reported is Eq 12 in both


def test_images_without_a_face_are_masked() -> None:
    tone_B = torch.tensor([0.0, 1.0, NAN, 3.0, NAN, NAN, NAN, NAN])
    shaped = shape(PARITY, tone_B[:, None])
    assert shaped.reported[0].item() == pytest.approx(eq_12([0, 1, 3], 4, True))
    assert shaped.reported[1].isnan()
    assert shaped.credit_B.isnan().tolist() == [False, False, True, False, True, True, True, True]
    assert shaped.group_B is not None


def test_shared_credit_is_the_groups_reward() -> None:
    shaped = shape(PARITY, torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0])[:, None])
    assert shaped.credit_B[:4].tolist() == [0.0] * 4
    assert shaped.credit_B[4:].tolist() == pytest.approx([eq_12([0, 0, 0, 1], 4, True)] * 4)


@pytest.mark.parametrize("root", [True, False])
def test_leave_one_out_is_what_the_group_loses_without_the_image(root: bool) -> None:
    tones = [0, 0, 0, 1, 3, 3]
    credit = leave_one_out(*group_of(*map(float, tones)), 4, root)
    for i, found in enumerate(credit.tolist()):
        without = tones[:i] + tones[i + 1 :]
        assert found == pytest.approx(eq_12(tones, 4, root) - eq_12(without, 4, root), abs=1e-6)
    assert credit[3] > 0 > credit[0]  # the rare one is worth something, one of many is not
    assert credit[0] == credit[1] == credit[2]


def test_leave_one_out_masks_what_it_cannot_say() -> None:
    tone_B = torch.tensor([0.0, 1.0, NAN, 2.0, 3.0, NAN])
    group_B = torch.tensor([0, 0, 0, 1, 2, 2])
    credit = leave_one_out(tone_B, group_B, 4)
    assert credit.isnan().tolist() == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]  # alone in its group: nothing is left
    alone = leave_one_out(torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), 4)
    torch.testing.assert_close(credit[:2], alone)


def test_parity_refuses_other_classes() -> None:
    for strange in (4.0, -1.0, 0.5):
        with pytest.raises(RewardFailed, match="0 to 3"):
            parity(*group_of(0.0, strange), 4)


# ------------------------------------------------------------------------------------------------------------- failures


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", "red") for i in range(count)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wrong_shape", r"scorer wrong_shape answered with \(1,\) for 4 images"),
        ("writing", r"scorer writing changes the pictures that it is given, .* images_BCHW\.clone\(\)"),
        ("infinite", "scorer infinite answered with infinity for 4 of 4 images"),
        ("out_of_range", r"scorer out_of_range gave [\d.]+ to prompt p0, but states a range of -1 to 1"),
    ],
)
def test_a_scorer_that_answers_nonsense_is_named(name: str, sentence: str) -> None:
    with pytest.raises(RewardFailed, match=sentence):
        score(name, toy.load_scorer(name), torch.rand(4, 3, 8, 8), prompts(4))


class Counting:
    """A picture's mean; remembers how many it was given at a time."""

    range = (0.0, 1.0)

    def __init__(self, scope: str) -> None:
        self.scope, self.given = scope, list[int]()

    def __call__(self, images_BCHW: torch.Tensor, asked: Sequence[Prompt]) -> torch.Tensor:
        assert len(asked) == len(images_BCHW)
        self.given.append(len(asked))
        return images_BCHW.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("scope", "at_once", "given"), [("image", 2, [2, 2, 1]), ("image", None, [5]), ("prompt", 2, [5])]
)
def test_a_scorer_is_given_so_many_pictures_at_a_time(
    scope: str, at_once: int | None, given: list[int]
) -> None:
    scorer, images = Counting(scope), torch.rand(5, 3, 8, 8)
    assert torch.equal(score("counting", scorer, images, prompts(5), at_once), images.mean((1, 2, 3)))
    assert scorer.given == given


def test_on_a_gpu_that_is_as_many_as_the_denoiser_holds() -> None:
    sampling = SimpleNamespace(micro_batch=16)
    for device, expected in (("cuda", 16), ("cpu", None)):
        accelerator = SimpleNamespace(device=torch.device(device))
        run: Any = SimpleNamespace(accelerator=accelerator, experiment=SimpleNamespace(sampling=sampling))
        assert at_once(run) == expected


def test_a_picture_of_a_later_part_is_named_by_its_own_prompt() -> None:
    scorer, images = Counting("image"), torch.rand(5, 3, 8, 8)
    images[4] = 7.0
    with pytest.raises(RewardFailed, match="gave 7 to prompt p4"):
        score("counting", scorer, images, prompts(5), at_once=2)


def test_a_scorer_that_raises_is_named() -> None:
    scorer = toy.Raising()
    scorer.calls = 2
    with pytest.raises(RewardFailed, match="scorer raising failed with RuntimeError: out of ideas"):
        score("raising", scorer, torch.rand(4, 3, 8, 8), prompts(4))


def test_too_many_missing_scores_stop_the_run() -> None:
    task = replace(TASK, rewards=(Reward("faces"),), max_invalid=0.5)
    check_validity(task, torch.tensor([[1.0], [NAN], [NAN], [0.0]]))
    with pytest.raises(
        RewardFailed,
        match=r"scorer faces answered NaN .* for 3 of 4 images of task t, more than the share of 0\.5",
    ):
        check_validity(task, torch.tensor([[1.0], [NAN], [NAN], [NAN]]))
    with pytest.raises(RewardFailed, match="for all 4 images"):
        check_validity(task, torch.full((4, 1), NAN))


def test_training_refuses_a_scorer_that_needs_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.scorers.load", toy.load_scorer)
    with pytest.raises(ValueError, match="scorer paired compares with the base"):
        load_scorers(["redness", "paired"], torch.device("cpu"), "photo")
