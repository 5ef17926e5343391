"""Every scorer keeps the contract, and each says what it should of pictures whose content is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import prompts
from evals import scorers
from evals.miniature import WEIGHTS
from evals.miniature.render import Finish, draw_portrait, draw_scene
from evals.scorers.kid import cubic_kernel, kid_pseudo_values
from evals.scorers.pairwise_distance import distances_to_siblings
from evals.scorers.vendi import vendi_score
from prompts.world import Object, dress_of
from train.miniature.data import place

GOLDEN = Path(__file__).parent.parent.parent / "shared" / "golden" / "golden_vectors.json"


def golden(key: str):
    if not GOLDEN.is_file():
        pytest.skip(f"golden vectors are not at {GOLDEN}")
    return json.loads(GOLDEN.read_text(encoding="utf-8"))[key]


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, list[prompts.Prompt]]:
    """Four prompts, four renderings each: scenes and portraits, crisp and spoilt."""
    chosen = [*prompts.load("miniature-scenes-unseen")[:2], *prompts.load("miniature-portraits-unseen")[:2]]
    images, asked = [], []
    for number, prompt in enumerate(chosen):
        for i in range(4):
            rng = np.random.default_rng([number, i])
            finish = Finish(0.4 * (i % 2), 1.2 * (i // 2))
            if "objects" in prompt.expect:
                objects = tuple(Object(**o) for o in prompt.expect["objects"])
                images.append(draw_scene(place(objects, prompt.expect["relation"], rng, 0.5), finish, rng))
            else:
                images.append(draw_portrait(2 * i, dress_of(prompt.expect["occupation"]), finish, rng))
            asked.append(prompt)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), asked


@pytest.mark.parametrize("name", scorers.names())
def test_contract(name: str, drawn):
    images, asked = drawn
    scorer = scorers.load(name)
    base = [images.flip(0)] if scorer.scope == "paired" else []
    values = scorer(images, asked, *base)
    assert values.shape == (len(images),)
    assert values.dtype == torch.float32
    low, high = scorer.range
    known = values[~values.isnan()]
    assert len(known)
    assert bool(((known >= low - 1e-5) & (known <= high + 1e-5)).all())
    assert scorer.source
    assert len(scorer.version) == 8
    int(scorer.version, 16)
    if scorer.scope == "image":
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        shuffled = scorer(images[order], [asked[i] for i in order])
        assert torch.allclose(shuffled, values[order], atol=1e-4, equal_nan=True)
        alone = torch.cat([scorer(images[i : i + 1], asked[i : i + 1]) for i in range(4)])
        assert torch.allclose(alone, values[:4], atol=1e-4, equal_nan=True)


def test_unknown_scorer_names_the_choices():
    with pytest.raises(ValueError, match="did you mean 'objects'"):
        scorers.load("object")


def test_loading_a_scorer_opens_no_weights(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were opened")

    monkeypatch.setattr("evals.scorers.imagereward.load_imagereward", refuse)
    monkeypatch.setattr("evals.scorers._judge.load_judge", refuse)
    for name in scorers.names():
        scorers.load(name)


def test_composition_and_tone_apply_to_their_prompts_only(drawn):
    images, asked = drawn
    detection, tone = scorers.load("objects")(images, asked), scorers.load("skin_tone")(images, asked)
    assert detection[:8].isfinite().all()
    assert detection[8:].isnan().all()
    assert tone[:8].isnan().all()
    assert detection[0] > 0.8


@pytest.mark.parametrize("name", ["imagereward", "clip_judge"])
def test_the_reward_model_and_the_judge_prefer_the_picture_that_fits(name: str):
    asked = prompts.load("miniature-scenes-unseen")[:32]
    images = []
    for number, prompt in enumerate(asked):
        rng, objects = np.random.default_rng(number), tuple(Object(**o) for o in prompt.expect["objects"])
        images.append(draw_scene(place(objects, prompt.expect["relation"], rng, 1.0), Finish(), rng))
    fitting = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    scorer = scorers.load(name)
    assert int((scorer(fitting, asked) > scorer(fitting.roll(1, 0), asked)).sum()) >= 30


def test_imagereward_is_differentiable(drawn):
    images, asked = drawn
    leaf = images[:2].clone().requires_grad_()
    scorers.load("imagereward").model(leaf, [p.text for p in asked[:2]]).sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().sum()) > 0


def test_vendi_golden():
    for case in golden("vendi")["cases"] if isinstance(golden("vendi"), dict) else golden("vendi"):
        order = float("inf") if case["q"] in ("inf", "Infinity") else float(case["q"])
        assert vendi_score(torch.tensor(case["K"], dtype=torch.float64), order) == pytest.approx(
            case["vs"], rel=1e-5
        )


def test_vendi_means_the_number_of_different_images():
    assert vendi_score(torch.ones(5, 5)) == pytest.approx(1)
    assert vendi_score(torch.eye(5)) == pytest.approx(5)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    assert vendi_score(blocks) == pytest.approx(2)
    assert vendi_score(blocks, order=float("inf")) == pytest.approx(2)


def test_identical_images_have_no_diversity(drawn):
    images, asked = drawn
    same = images[:1].expand(4, -1, -1, -1)
    assert scorers.load("vendi")(same, asked[:4])[0] == pytest.approx(1, abs=1e-4)
    assert scorers.load("pairwise_distance")(same, asked[:4])[0] == pytest.approx(0, abs=1e-4)
    assert scorers.load("pairwise_distance")(images[:4], asked[:4]).min() > 0.01


def test_pairwise_distance_is_its_definition():
    stage = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    by_hand = [
        sum(float(((stage[i] - stage[j]) ** 2).sum(0).mean()) for j in range(3) if j != i) / 2
        for i in range(3)
    ]
    assert torch.allclose(distances_to_siblings([stage]), torch.tensor(by_hand), rtol=1e-5)


def mmd2_by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased in the three sums, pairs i != j only: the form for samples that come in pairs."""
    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                k = lambda a, b: float((a @ b / len(a) + 1) ** 3)  # noqa: E731
                total += k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    return total / (n * (n - 1))


def test_kid_is_its_definition_and_zero_in_the_mean_for_one_distribution():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    assert float(kid_pseudo_values(x, y + 0.5).mean()) == pytest.approx(
        mmd2_by_definition(x, y + 0.5), rel=1e-5
    )
    estimates = [
        float(kid_pseudo_values(*torch.randn(2, 40, 5, generator=generator, dtype=torch.float64)).mean())
        for _ in range(200)
    ]
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / math.sqrt(200)
    assert float(kid_pseudo_values(x, x).abs().max()) < 1e-6


def test_kid_needs_three_images():
    with pytest.raises(ValueError, match="at least 3 images"):
        kid_pseudo_values(torch.zeros(2, 5), torch.zeros(2, 5))


def test_kid_pseudo_values_have_the_variance_of_the_estimate():
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(2, 60, 4, generator=generator, dtype=torch.float64) for _ in range(300)]
    values = [kid_pseudo_values(x, y + 0.7) for x, y in drawn]
    true = np.std([float(v.mean()) for v in values])
    claimed = np.mean([float(v.std() / math.sqrt(len(v))) for v in values])
    assert claimed == pytest.approx(true, rel=0.15)


def test_cubic_kernel_golden():
    cases = golden("torch_fidelity_kid_mmd2")
    for case in cases["cases"] if isinstance(cases, dict) else cases:
        x, y = (torch.tensor(case[k], dtype=torch.float64) for k in ("X", "Y"))
        m = len(x)
        kxx, kyy, kxy = cubic_kernel(x, x), cubic_kernel(y, y), cubic_kernel(x, y)
        off = (kxx.sum() - kxx.trace() + kyy.sum() - kyy.trace()) / (m * (m - 1))
        expected = next(v for k, v in case.items() if k not in ("X", "Y") and isinstance(v, float))
        assert float(off - 2 * kxy.mean()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_shipped_weights_are_those_of_the_record():
    import hashlib

    record = json.loads((WEIGHTS / "record.json").read_text(encoding="utf-8"))
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name


def test_the_preference_models_agree_nearly_as_well_as_a_second_annotator():
    stages = json.loads((WEIGHTS / "record.json").read_text(encoding="utf-8"))["stages"]
    for part in ("imagereward", "judge"):
        agreement = stages[part]["agreement"]
        assert agreement["model"] > agreement["second_annotator"] - 0.05


def test_a_range_allows_for_rounding_and_no_more() -> None:
    from evals.scorers import first_outside

    assert first_outside(torch.tensor([0.9999999, 5.0, torch.nan]), (1.0, float("inf"))) is None
    assert first_outside(torch.tensor([1.0, 0.999]), (1.0, float("inf"))) == 1
    assert first_outside(torch.tensor([1e9, -1e9]), (float("-inf"), float("inf"))) is None
