"""Every scorer keeps the contract, and each says what it should of pictures whose content is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import prompts
from evals import scorers
from evals.__main__ import main
from evals.miniature import WEIGHTS
from evals.miniature.render import Finish, draw_portrait, draw_scene
from evals.miniature.scorers.pairwise_distance import distances_to_siblings
from evals.scorers._contract import faults
from prompts import Prompt
from prompts.world import Object, dress_of
from train.miniature.data import place


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


@pytest.mark.parametrize("name", scorers.names("miniature"))
def test_contract(name: str, drawn):
    images, asked = drawn
    scorer = scorers.load(name, domain="miniature")
    assert faults(name, scorer, images, asked) == []
    values = scorer(images, asked, *([images.flip(0)] if scorer.scope == "paired" else []))
    assert values.dtype == torch.float32
    low, high = scorer.range
    known = values[~values.isnan()]
    assert bool(((known >= low - 1e-5) & (known <= high + 1e-5)).all())


OWN = '''
import torch
from pathlib import Path

class Scorer:
    """How red a picture is."""

    range = (0.0, 1.0)
    higher_is_better = True
    source = "a user's own, public domain"
    scope = "image"
    version = "0a1b2c3d"

    def __init__(self, device="cpu"):
        self.calls = 0

    def __call__(self, images_BCHW, prompts):
        self.calls += 1
        return images_BCHW[:, 0].mean((1, 2))
'''


def own(tmp_path: Path, before: str = "", after: str = "") -> str:
    """A scorer file with a change."""
    assert before in OWN
    (tmp_path / "redness.py").write_text(OWN.replace(before, after) if before else OWN)
    return str(tmp_path / "redness.py")


def test_a_file_of_ones_own_is_a_scorer(drawn, tmp_path: Path):
    images, asked = drawn
    scorer = scorers.load(own(tmp_path))
    assert torch.equal(scorer(images, asked), images[:, 0].mean((1, 2)))
    assert faults("redness", scorer, images, asked) == []


MEAN = "images_BCHW[:, 0].mean((1, 2))"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (MEAN, f"{MEAN} / 2 + images_BCHW.mean() / 2", "alone has another score"),
        (MEAN, f"{MEAN} * torch.arange(len(prompts)) / 16", "depends on its place in the batch"),
        (MEAN, f"{MEAN} + 0.01 * self.calls", "other scores the second time"),
        (MEAN, f"{MEAN} * torch.nan", "NaN .* for every picture"),
        (
            MEAN,
            "images_BCHW.view(len(prompts), -1)[:, : 64 * 64].mean(1)",
            "failed with RuntimeError: view size is not compatible",
        ),
        (
            MEAN,
            "torch.as_strided(images_BCHW, (len(prompts), 64 * 64), (3 * 64 * 64, 1)).mean(1)",
            "channels are last in memory",
        ),
        (MEAN, "images_BCHW.clamp_(max=0.1)[:, 0].mean((1, 2))", "changes the pictures"),
        (MEAN, "images_BCHW[:, 0]", "not with one number each"),
        (MEAN, f"{MEAN} + 1", "states a range of 0 to 1"),
        (MEAN, "1 / 0", r"failed with ZeroDivisionError: division by zero \(redness.py, line 19\)"),
        ("(0.0, 1.0)", "(1.0, 0.0)", r"must be \(low, high\)"),
        ("(0.0, 1.0)", "3", r"its range is 3, but must be two numbers, \(low, high\)"),
        ("(0.0, 1.0)", "(0.0, 'one')", "must be two numbers"),
        ("(0.0, 1.0)", "(0.0, 1.0, 2.0)", "must be two numbers"),
        (MEAN, "exit(3)", "failed with SystemExit: 3"),
        ('"image"', '"picture"', "choose from image, prompt, paired"),
        ("0a1b2c3d", "one", "8 hex digits"),
        ("a user's own, public domain", "", "source is empty"),
    ],
)
def test_what_a_scorer_does_not_keep_is_found(drawn, tmp_path: Path, before: str, after: str, told: str):
    images, asked = drawn
    found = faults("redness", scorers.load(own(tmp_path, before, after)), images.clone(), asked)
    assert any(re.search(told, fault) for fault in found), found


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("class Scorer", "class Other", "holds no scorer, AttributeError: .*no attribute 'Scorer'"),
        ("import torch", "import torsch", "holds no scorer, ModuleNotFoundError: No module named 'torsch'"),
        ("    scope = ", "    reach = ", "its Scorer has no scope"),
        ("import torch", "import torch; raise SystemExit(4)", "holds no scorer, SystemExit: 4"),
        ('"0a1b2c3d"', "property(lambda self: 1 / 0)", "holds no scorer, ZeroDivisionError"),
        ("    scope = ", "    weights = 3\n    scope = ", "holds no scorer, TypeError"),
    ],
)
def test_a_file_that_is_no_scorer_is_one_sentence(tmp_path: Path, before: str, after: str, told: str):
    with pytest.raises(ValueError, match=told):
        scorers.load(own(tmp_path, before, after))
    with pytest.raises(ValueError, match="there is no scorer file"):
        scorers.load(str(tmp_path / "nowhere.py"))


def test_the_command_checks_a_file(tmp_path: Path):
    good = CliRunner().invoke(main, ["check-scorer", own(tmp_path)])
    assert (good.exit_code, "keeps the contract on 16 pictures" in good.output) == (0, True)
    bad = CliRunner().invoke(main, ["check-scorer", own(tmp_path, MEAN, f"{MEAN} + 1")])
    assert bad.exit_code == 1
    assert "states a range of 0 to 1" in bad.output


def test_unknown_scorer_names_the_choices():
    with pytest.raises(ValueError, match="did you mean 'objects'"):
        scorers.load("object", domain="miniature")


def test_loading_a_scorer_opens_no_weights(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were opened")

    monkeypatch.setattr("evals.miniature.scorers.imagereward.load_imagereward", refuse)
    monkeypatch.setattr("evals.miniature.scorers._judge.load_judge", refuse)
    for name in scorers.names("miniature"):
        scorers.load(name, domain="miniature")


def test_composition_and_tone_apply_to_their_prompts_only(drawn):
    images, asked = drawn
    detection, tone = (
        scorers.load("objects", domain="miniature")(images, asked),
        scorers.load("skin_tone", domain="miniature")(images, asked),
    )
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
    scorer = scorers.load(name, domain="miniature")
    assert int((scorer(fitting, asked) > scorer(fitting.roll(1, 0), asked)).sum()) >= 30


def test_imagereward_is_differentiable(drawn):
    images, asked = drawn
    leaf = images[:2].clone().requires_grad_()
    scorers.load("imagereward", domain="miniature").model(leaf, [p.text for p in asked[:2]]).sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().sum()) > 0


def test_the_gradient_of_the_miniatures_reward_is_its_difference_quotient(drawn):
    """Along its own direction and along random ones, and not along the weights, which are frozen."""
    images, asked = (0.1 + 0.8 * drawn[0][:4]), drawn[1][:4]
    scorer = scorers.load("imagereward", domain="miniature")
    leaf = images.clone().requires_grad_()
    answer_B = scorers.ask_differentiable("imagereward", scorer, leaf, asked)
    assert torch.equal(answer_B.detach(), scorer(images, asked))
    (slope,) = torch.autograd.grad(answer_B.sum(), leaf)
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())
    towards = [slope, *torch.randn(2, *images.shape, generator=torch.Generator().manual_seed(0))]
    for direction in (d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for d in towards):
        step = 0.05  # of a picture's norm of about 55
        quotient_B = (scorer(images + step * direction, asked) - scorer(images - step * direction, asked)) / (
            2 * step
        )
        wanted_B = (slope * direction).flatten(1).sum(1)
        torch.testing.assert_close(quotient_B, wanted_B, rtol=0.03, atol=2e-3)


GRADIENT = f"return {MEAN}\n\n    def differentiable(self, images_BCHW, prompts):\n        x = images_BCHW\n        return "
RED = "x[:, 0].mean((1, 2))"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (RED, None),
        (f"{RED} + 0.01", "its differentiable has other values than a call"),
        (f"2 * {RED}.detach() - {RED}", "does not point to where its score is higher"),
        (f"{RED} + 0 * x.sum()", None),
        (f"{RED}.detach() + 0 * x.sum((1, 2, 3))", "its gradient is 0 for every picture"),
        (f"{RED}.detach()", "answered without a graph to the images"),
        (f"{RED} + (x - x).sum((1, 2, 3)).sqrt()", "its gradient is no number"),
        (f"{RED} + x.mean() - x.mean().detach()", "is one of other pictures too"),
        ("x[:, 0].mean()", "not with one number each"),
    ],
)
def test_a_gradient_that_is_not_the_scores_is_found(drawn, tmp_path: Path, body: str, told: str | None):
    images, asked = drawn
    scorer = scorers.load(own(tmp_path, f"return {MEAN}", GRADIENT + body))
    found = faults("redness", scorer, 0.25 + images / 2, asked)
    assert [bool(re.search(told or "", fault)) for fault in found] == [True] * (told is not None), found


def test_a_gradient_is_that_of_one_picture(drawn, tmp_path: Path):
    """So there is none in a scope where pictures are one group."""
    images, asked = drawn
    path = Path(own(tmp_path, f"return {MEAN}", GRADIENT + RED))
    path.write_text(path.read_text().replace('scope = "image"', 'scope = "prompt"'))
    scorer = scorers.load(str(path))
    assert not scorers.is_differentiable(scorer)
    (found,) = faults("redness", scorer, images, asked)
    assert 'its scope is "prompt"' in found


def test_scorers_with_a_gradient_are_known_by_domain():
    assert scorers.differentiable_names("miniature") == ("imagereward",)
    assert scorers.differentiable_names("photo") == (
        "aesthetic",
        "clip_score",
        "hpsv2",
        "imagereward",
        "pickscore",
    )


def test_identical_images_have_no_diversity(drawn):
    images, asked = drawn
    same = images[:1].expand(4, -1, -1, -1)
    assert scorers.load("vendi", domain="miniature")(same, asked[:4])[0] == pytest.approx(1, abs=1e-4)
    assert scorers.load("pairwise_distance", domain="miniature")(same, asked[:4])[0] == pytest.approx(
        0, abs=1e-4
    )
    assert scorers.load("pairwise_distance", domain="miniature")(images[:4], asked[:4]).min() > 0.01


def test_pairwise_distance_is_its_definition():
    stage = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    by_hand = [
        sum(float(((stage[i] - stage[j]) ** 2).sum(0).mean()) for j in range(3) if j != i) / 2
        for i in range(3)
    ]
    assert torch.allclose(distances_to_siblings([stage]), torch.tensor(by_hand), rtol=1e-5)


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


def test_prompts_that_a_scorer_does_not_read_to_their_end_are_counted():
    class Reader:
        def cut_tokens(self, prompts):
            return [max(0, len(prompt.text) - 4) for prompt in prompts]

    asked = [prompts.Prompt("a", "cat"), prompts.Prompt("b", "a cat"), prompts.Prompt("c", "two cats")]
    told = scorers.what_is_cut("reader", Reader(), "cats", asked)
    assert told == "note: 2 of the 3 prompts of cats are longer than scorer reader reads"
    assert scorers.what_is_cut("reader", Reader(), "cats", asked[:1]) == ""
    assert scorers.what_is_cut("blind", object(), "cats", asked) == ""


@pytest.mark.parametrize("name", scorers.names("photo"))
def test_a_scorer_of_photographs_says_what_it_is_and_opens_nothing_before_it_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were looked for")

    monkeypatch.setattr("evals.weights.Weights.paths", refuse)
    scorer = scorers.load(name, domain="photo", terms=False)
    low, high = scorer.range
    assert low < high
    assert scorer.scope in get_args(scorers.Scope)
    assert scorer.higher_is_better in (True, False, None)
    assert scorer.source
    assert scorers.weights_of(scorer)
    assert all(w.licence and w.repository.count("/") == 1 for w in scorers.weights_of(scorer))


def test_the_template_of_a_reward_keeps_the_contract(tmp_path: Path) -> None:
    """The only block of Python that the guide calls a whole scorer, as it stands there."""
    guide = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (template,) = re.findall(r"A whole one:\n\n```python\n(.*?)```", guide, re.DOTALL)
    file = tmp_path / "redness.py"
    file.write_text(template, encoding="utf-8")
    for domain in ("photo", "miniature"):
        told = CliRunner().invoke(main, ["check-scorer", str(file), "--domain", domain])
        assert told.exit_code == 0, told.output
    file.write_text(template.replace("images_BCHW[:, 0]", "images_BCHW[:1, 0]"), encoding="utf-8")
    assert CliRunner().invoke(main, ["check-scorer", str(file)]).exit_code == 1


# what is said of prompts before there are pictures

CAT = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
NEEDS = {
    "objects": ({"objects": [{"name": "cat"}]}, "a cat", "names an object"),
    "objects_grounding_dino": ({"objects": [{"name": "cat"}]}, "a cat", "names an object"),
    "geneval": (CAT, "a cat", "has a task of GenEval"),
    "skin_tone": ({"group": "skin_tone"}, "a portrait of a baker", "is a portrait"),
    "monk_tone": ({"group": "skin_tone"}, "a portrait of a baker", "is a portrait"),
    "t2i_spatial": ({}, "a cat near a dog", "says how two things lie to each other"),
    "t2i_numeracy": ({}, "two cats and a dog", "says how many there are"),
}


RED_STAR, BLUE_CIRCLE = {"colour": "red", "shape": "star"}, {"colour": "blue", "shape": "circle"}
PAIR: dict[str, object] = {"objects": [RED_STAR, BLUE_CIRCLE], "relation": "above"}


@pytest.mark.parametrize(
    ("name", "expect", "needs"),
    [
        ("objects", {"objects": [{"colour": "red", "shape": "star"}]}, "names objects"),
        ("fully_right", PAIR, "names two objects in a relation"),
        ("skin_tone", {"group": "skin_tone"}, "is a portrait"),
        ("monk_tone", {"group": "skin_tone"}, "is a portrait"),
    ],
)
def test_a_set_that_a_scorer_of_the_miniature_could_say_nothing_of_is_refused(
    name: str, expect: dict[str, object], needs: str
) -> None:
    scorer = scorers.load(name, domain="miniature")
    others = [Prompt("p0", "a green field"), Prompt("p1", "a blue field")]
    scorer.check_prompts([*others, Prompt("mine", "it", expect=expect)])
    told = rf"^none of its 2 prompts {needs}.*; the first is 'p0', 'a green field'$"
    with pytest.raises(ValueError, match=told):
        scorer.check_prompts(others)


@pytest.mark.parametrize("name", ["objects", "fully_right", "gold_utility", "skin_tone", "monk_tone"])
@pytest.mark.parametrize(
    "expect",
    [
        PAIR,
        {"objects": [{"colour": "red", "shape": "cat"}]},
        {"objects": []},
        {"objects": 5},
        {"occupation": "nurse", "group": "skin_tone"},
        {"group": "skin_tone"},
        {},
    ],
)
def test_a_scorer_of_the_miniature_says_beforehand_of_a_prompt_what_a_call_says(
    name: str, expect: dict[str, object]
) -> None:
    scorer, prompt = scorers.load(name, domain="miniature"), Prompt("p0", "it", expect=expect)

    def said(ask: Callable[[], object]) -> str:
        try:
            ask()
        except ValueError as error:
            return str(error)
        return ""

    called = said(lambda: scorer(torch.rand(1, 3, 64, 64), [prompt]))
    assert said(lambda: scorer.check(prompt)) == called  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["fully_right", "gold_utility"])
@pytest.mark.parametrize(
    ("objects", "relation", "told"),
    [
        ([RED_STAR], "and", "has 1 and 'and'$"),
        ([RED_STAR, BLUE_CIRCLE, RED_STAR], "and", "has 3 and 'and'$"),
        ([RED_STAR, BLUE_CIRCLE], None, "has 2 and None$"),
        ([RED_STAR, BLUE_CIRCLE], "left-of", "has 2 and 'left-of'$"),
        ([RED_STAR, {"colour": "blue", "shape": "cat"}], "and", "list of objects with a colour"),
    ],
)
def test_a_scene_that_can_never_be_fully_right_is_told_with_its_prompt_before_there_are_pictures(
    name: str, objects: list[object], relation: str | None, told: str
) -> None:
    """A call would raise for it once a picture shows all that is named, hours later."""
    expect = {"objects": objects, **({"relation": relation} if relation else {})}
    right, wrong = Prompt("p0", "it", expect=PAIR), Prompt("p7", "it", expect=expect)
    with pytest.raises(ValueError, match=f"^prompt 'p7': .*{told}"):
        scorers.load(name, domain="miniature").check_prompts([right, wrong])  # type: ignore[attr-defined]


def test_a_picture_of_the_one_thing_that_is_named_cannot_be_judged_as_a_pair() -> None:
    """Why it is told beforehand."""
    rng = np.random.default_rng(0)
    picture = draw_scene(place((Object(**RED_STAR),), None, rng, 0.5), Finish(), rng)
    images_BCHW = torch.from_numpy(picture).permute(2, 0, 1)[None]
    alone = Prompt("p0", "it", expect={"objects": [RED_STAR], "relation": "and"})
    with pytest.raises(ValueError, match="not enough values"):
        scorers.load("fully_right", domain="miniature")(images_BCHW, [alone])


def test_an_occupation_that_is_no_text_is_told_before_there_are_pictures() -> None:
    gold = scorers.load("gold_utility", domain="miniature")
    with pytest.raises(ValueError, match=r"^prompt 'p7': `expect\.occupation` must be a text, but is 5$"):
        gold.check_prompts([Prompt("p7", "it", expect={"occupation": 5})])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NEEDS)
def test_prompts_that_a_scorer_of_photographs_needs_are_told_before_there_are_pictures(name: str):
    """None opens a file for it; a prompt that it does not apply to is none of its own among others, where its score is NaN."""
    expect, text, needs = NEEDS[name]
    scorer = scorers.load(name, terms=False)
    asked, others = (
        Prompt("mine", text, expect=expect),
        [Prompt("p0", "the mood " * 20), Prompt("p1", "ideas")],
    )
    scorer.check_prompts([*others, asked])
    told = rf"^none of its 2 prompts {needs}.*; the first is 'p0', 'the mood the mood .* \.\.\.'$"
    with pytest.raises(ValueError, match=told):
        scorer.check_prompts(others)


@pytest.mark.parametrize(
    ("name", "expect", "told"),
    [
        ("objects", {"objects": 5}, r"^prompt 'p7': `expect.objects` must be a list of objects with a name"),
        ("objects", {"objects": [{"name": "..."}]}, r"^prompt 'p7': a detector cannot be asked for"),
        ("geneval", {"tag": "colors", "include": [{"class": "unicorn", "count": 1}]}, "^prompt 'p7': .*no class 'unicorn'"),
        ("geneval", {"include": [{"class": "cat", "count": 1}]}, "^prompt 'p7': `expect` must have GenEval's tag"),
        ("geneval", {"tag": "colors", "include": "cat"}, "^prompt 'p7' has `expect` .*, in another form than one that has a task of GenEval"),
        ("geneval", {**CAT, "exclude": 1}, "^prompt 'p7' has `expect` .*, in another form"),
    ],
)  # fmt: skip
def test_a_prompt_that_expects_what_cannot_be_is_told_before_there_are_pictures(
    name: str, expect: dict, told: str
):
    right, wrong = (Prompt(id_, "a cat", expect=e) for id_, e in (("p0", NEEDS[name][0]), ("p7", expect)))
    with pytest.raises(ValueError, match=told):
        scorers.load(name, terms=False).check_prompts([right, wrong])


def test_what_is_said_of_prompts_beforehand_is_no_part_of_a_version(tmp_path: Path):
    """It changes no score, so rows of before stay comparable; whatever else a scorer does is part of it."""
    says = "    def check_prompts(self, prompts):\n        raise ValueError\n\n    def __init__"
    versions = []
    for change in ("    def __init__", says, says.replace("check_prompts", "look_at")):
        versions.append(scorers.version_of(Path(own(tmp_path, "    def __init__", change))))
    assert versions[0] == versions[1] != versions[2]
