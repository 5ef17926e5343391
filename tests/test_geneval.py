"""GenEval's rules give what the released evaluator gives, and what its paper says of plain cases; the scorer asks detector and CLIP as it does."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

import prompts
from evals import scorers
from evals import weights as the_weights
from evals.geneval import (
    CLASSES,
    COLOURS,
    CONFIDENCE,
    Detection,
    check,
    counted,
    iou,
    relations,
    shortcomings,
)
from evals.scorers import geneval as the_scorer
from evals.scorers._clip import OPENAI_VIT_L_14, OpenClip, load_clip
from evals.scorers._contract import faults
from evals.scorers._detectors import MASK2FORMER, Mask2Former
from evals.scorers.geneval import ColourClassifier, alone
from prompts import Prompt
from tests.tiny_detectors import CLIP, as_pil, pictures, save_all, use
from tests.toy import assert_same_on_gpu

SHARED = Path(__file__).parent.parent.parent / "shared"


def shared(path: str) -> str:
    file = SHARED / path
    if not file.is_file():
        pytest.skip(f"{path} is not in {SHARED}")
    return file.read_text(encoding="utf-8")


def golden(key: str):
    return json.loads(shared("golden/golden_vectors.json"))[key]


def test_relations_and_overlap_are_the_released_evaluators():
    cases = golden("geneval_relative_position")["cases"]
    assert len(cases) > 200
    for case in cases:
        a, b = tuple(case["a"][:4]), tuple(case["b"][:4])
        assert relations(a, b) == set(case["relations"]), case
        assert iou(a, b) == pytest.approx(case["iou_plus1"], abs=1e-9)


@dataclass(frozen=True)
class Coloured(Detection):
    colour: str = ""


def test_verdicts_are_the_released_evaluators():
    lines = shared("data/geneval/evaluation_metadata.jsonl").splitlines()
    wanted = {(line := json.loads(text))["prompt"]: line for text in lines}
    cases = golden("geneval_evaluate")["cases"]
    assert len(cases) > 800
    for case in cases:
        found = {
            name: [Coloured(tuple(o["box"][:4]), o["box"][4], colour=o["color"]) for o in seen]
            for name, seen in case["objects"].items()
        }
        reasons = shortcomings(wanted[case["prompt"]], found, lambda _, seen: [d.colour for d in seen])
        assert (not reasons, len(reasons)) == (case["correct"], case["n_reasons"]), (case, reasons)


@pytest.mark.parametrize("name", ["geneval", "geneval-unseen"])
def test_every_prompt_of_the_benchmark_is_understood(name: str, monkeypatch: pytest.MonkeyPatch):
    if not (SHARED / "data" / name).is_dir():
        pytest.skip(f"{name} is not in {SHARED}")
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(SHARED / "data"))
    asked = prompts.load(name)
    assert len(asked) == {"geneval": 553, "geneval-unseen": 256}[name]
    for prompt in asked:
        check(prompt.expect)


def test_classes_are_those_of_the_released_evaluator():
    assert tuple(shared("data/geneval/object_names.txt").split("\n")[:80]) == CLASSES


def at(x: float, y: float, width: float = 10, height: float = 10) -> tuple[float, float, float, float]:
    """A box about a centre."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@pytest.mark.parametrize(
    ("x", "y", "holds"),
    [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),  # y points downwards
        (0, 30, {"below"}),
        (-30, -30, {"left of", "above"}),
        (30, 10, {"right of"}),  # a third of the offset is no direction
        (0, 0, set()),
        (1.9, 0, set()),  # a tenth of both sizes is 2
        (3.9, 0, set()),  # 1.9 of 3.9 is not half
        (4.1, 0, {"right of"}),
    ],
)
def test_a_direction_is_half_of_the_way_and_more_than_a_tenth_of_the_sizes(x: float, y: float, holds: set):
    assert relations(at(x, y), at(0, 0)) == holds


def test_a_box_has_its_last_pixel():
    assert iou((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert iou((0, 0, 9, 9), (9, 9, 18, 18)) == pytest.approx(1 / 199)
    assert iou((0, 0, 9, 9), (10, 0, 19, 9)) == 0
    assert iou((0, 0, -1, -1), (0, 0, -1, -1)) == 0  # nothing


def seen(*confidences: float) -> list[Detection]:
    return [Detection(at(20 * i, 0), c) for i, c in enumerate(confidences)]


def test_what_counts_is_above_the_threshold_and_the_most_confident_sixteen():
    assert [d.confidence for d in counted(seen(0.5, 0.3, 0.95, 0.31), "two_object")] == [0.95, 0.5, 0.31]
    assert [d.confidence for d in counted(seen(0.5, 0.9, 0.95), "counting")] == [0.95]
    many = counted(seen(*(0.4 + i / 100 for i in range(20))), "colors")
    assert len(many) == 16
    assert many[-1].confidence == pytest.approx(0.44)


def test_boxes_at_one_place_all_count_unless_an_overlap_is_named():
    twins = [Detection((0, 0, 9, 9), 0.8), Detection((0, 0, 9, 9), 0.9), Detection((0, 5, 9, 14), 0.7)]
    assert len(counted(twins, "two_object")) == 3
    assert [d.confidence for d in counted(twins, "two_object", max_overlap=0.9)] == [0.9, 0.7]
    assert [d.confidence for d in counted(twins, "two_object", max_overlap=0.3)] == [0.9]


def no_colours(name: str, boxes) -> list[str]:
    raise AssertionError(f"asked for the colour of {name}")


def test_counting_is_equality():
    wanted = {
        "tag": "counting",
        "include": [{"class": "cat", "count": 2}],
        "exclude": [{"class": "cat", "count": 3}],
    }
    reasons = [shortcomings(wanted, {"cat": seen(*[0.95] * n)}, no_colours) for n in range(4)]
    assert [len(r) for r in reasons] == [1, 1, 0, 1]
    assert reasons[1] == ["expected 2 cat, found 1"]
    assert reasons[3] == ["expected less than 3 cat, found 3"]


def test_every_one_that_is_asked_for_has_the_colour_and_no_other_is_looked_at():
    wanted = {"tag": "colors", "include": [{"class": "cat", "count": 2, "color": "red"}]}
    asked = []

    def colours(name, boxes):
        asked.append((name, len(boxes)))
        return answer

    answer = ["red", "red"]
    assert shortcomings(wanted, {"cat": seen(0.9, 0.8, 0.7)}, colours) == []
    answer = ["red", "blue"]
    assert shortcomings(wanted, {"cat": seen(0.9, 0.8)}, colours) == ["expected red cat, found red, blue"]
    assert shortcomings(wanted, {"cat": seen(0.9)}, colours) == ["expected 2 cat, found 1"]
    assert asked == [("cat", 2), ("cat", 2)]


def test_a_place_is_looked_at_only_where_the_target_is_right():
    wanted = {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
    }
    cat, dog = Detection(at(0, 0), 0.9), Detection(at(50, 0), 0.9)
    assert shortcomings(wanted, {"cat": [cat], "dog": [dog]}, no_colours) == []
    assert shortcomings(wanted, {"cat": [dog], "dog": [cat]}, no_colours) == [
        "expected cat left of its target, found right of"
    ]
    assert shortcomings(wanted, {"cat": [cat]}, no_colours) == [
        "expected 1 dog, found 0",
        "no target for cat to be left of",
    ]
    # only the most confident one of each counts
    assert shortcomings(wanted, {"cat": [dog, cat], "dog": [dog]}, no_colours) != []


ITEM = {"class": "cat", "count": 1}


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({}, "must have GenEval's tag and a list `include`"),
        ({"tag": "colors"}, "must have GenEval's tag and a list `include`"),
        ({"include": [ITEM]}, "must have GenEval's tag"),
        ({"tag": "colors", "include": [ITEM | {"class": "unicorn"}]}, "no class 'unicorn'"),
        ({"tag": "colors", "include": [ITEM | {"count": 0}]}, "the count of cat is 0"),
        ({"tag": "colors", "include": [ITEM | {"color": "mauve"}]}, f"no color 'mauve'.*{COLOURS[-1]}"),
        ({"tag": "position", "include": [ITEM, ITEM | {"position": ["behind", 0]}]}, "no position 'behind'"),
        ({"tag": "position", "include": [ITEM | {"position": ["above", 0]}]}, "item 0 refers to item 0"),
        (
            {"tag": "counting", "include": [ITEM], "exclude": [{"class": "cats", "count": 2}]},
            "no class 'cats'",
        ),
    ],
)
def test_what_is_no_metadata_is_one_sentence(wanted, told: str):
    with pytest.raises(ValueError, match=told):
        check(wanted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    save_all(root)
    return root


@pytest.fixture
def scorer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> the_scorer.Scorer:
    """The real one on tiny networks with random weights."""
    use(folder, monkeypatch)
    unpinned = replace(OPENAI_VIT_L_14, sha256=())
    monkeypatch.setattr(the_scorer.Scorer, "weights", (MASK2FORMER, unpinned))
    monkeypatch.setattr(the_scorer.Scorer, "architecture", CLIP)
    return scorers.load("geneval")


def prompt(tag: str, *include: dict, exclude: tuple[dict, ...] = ()) -> Prompt:
    return Prompt(tag, tag, expect={"tag": tag, "include": include, "exclude": exclude})


def test_an_object_is_cut_out_of_a_grey_picture():
    """As with Pillow: composite over #999, then crop."""
    (image,) = pictures(1)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[5:20, 10:30] = True
    mask[8, 12] = False
    grey = Image.new("RGB", (40, 40), "#999")
    wanted = Image.composite(as_pil(image), grey, Image.fromarray(mask.numpy())).crop((10, 5, 30, 20))
    cut = alone(image, Detection((10.0, 5.0, 30.0, 20.0), 1.0, mask))
    assert as_pil(cut).tobytes() == wanted.tobytes()
    assert as_pil(cut).getpixel((2, 3)) == (0x99, 0x99, 0x99)


@torch.no_grad()
def test_colours_are_open_clips_zero_shot_answer(scorer: the_scorer.Scorer):
    clip = load_clip(OpenClip, CLIP, scorer.weights[1], "cpu")
    templates = [
        lambda c: f"a photo of a {c} tie",
        lambda c: f"a photo of a {c}-colored tie",
        lambda c: f"a photo of a {c} object",
    ]
    heads_DK = open_clip.build_zero_shot_classifier(
        clip.model, open_clip.SimpleTokenizer(), COLOURS, templates
    )
    transform = open_clip.image_transform(clip.size, is_train=False)
    images, mask = pictures(12, 60, 50), torch.zeros(60, 50, dtype=torch.bool)
    mask[10:50, 10:33] = True
    said = set()
    for image in images:
        tie = Detection((10, 10, 33, 50), 0.9, mask)
        whole = Detection((0, 0, 50, 60), 0.5, torch.ones_like(mask))
        shown = torch.stack([transform(as_pil(alone(image, d))) for d in (tie, whole)])
        wanted = [COLOURS[i] for i in (clip.model.encode_image(shown, normalize=True) @ heads_DK).argmax(1)]
        assert ColourClassifier(clip)(image, "tie", [tie, whole]) == wanted
        said.update(wanted)
    assert len(said) >= 2  # random networks have opinions too
    assert torch.allclose(ColourClassifier(clip)._colours_of("tie").T, heads_DK, atol=1e-6)


def test_the_scorer_is_the_rules_on_what_detector_and_clip_say(scorer: the_scorer.Scorer, monkeypatch):
    (image,) = pictures(1)
    with torch.no_grad():
        seen = Mask2Former(MASK2FORMER, "cpu").see(image[None], 0.3)[0]
    name, boxes = max(seen.items(), key=lambda item: len(item[1]))
    count, sure = len(counted(boxes, "two_object")), len(counted(boxes, "counting"))
    other = next(c for c in CLASSES if c not in seen)
    assert count > sure
    few, more = {"class": name, "count": count}, {"class": name, "count": count + 1}

    def score(*asked: Prompt) -> list[float]:
        return scorer(image.expand(len(asked), -1, -1, -1), asked).tolist()

    monkeypatch.setattr(OpenClip, "see", None)  # nobody asks for a colour
    verdicts = score(
        prompt("single_object", few), prompt("single_object", more), prompt("two_object", few, {"class": other, "count": 1}),
        prompt("counting", few),  # by a higher threshold there are fewer
        prompt("single_object", few, exclude=(more,)), prompt("single_object", few, exclude=(few,)),
    )  # fmt: skip
    assert verdicts == [1, 0, 0, 0, 1, 0]
    monkeypatch.undo()


def test_the_scorer_names_the_colour_of_the_most_confident(scorer: the_scorer.Scorer):
    (image,) = pictures(1)
    with torch.no_grad():
        seen = Mask2Former(MASK2FORMER, "cpu").see(image[None], 0.3)[0]
        name, boxes = next(iter(seen.items()))
        (colour,) = scorer.colours(image, name, counted(boxes, "colors")[:1])
    asked = [prompt("colors", {"class": name, "count": 1, "color": c}) for c in COLOURS]
    assert scorer(image.expand(len(asked), -1, -1, -1), asked).tolist() == [
        float(c == colour) for c in COLOURS
    ]


@pytest.mark.gpu
@pytest.mark.usefixtures("scorer")
def test_a_gpu_says_the_same():
    (image,) = pictures(1)
    with torch.no_grad():
        name = next(iter(Mask2Former(MASK2FORMER, "cpu").see(image[None], 0.3)[0]))
    asked = [prompt("colors", {"class": name, "count": 1, "color": colour}) for colour in COLOURS]
    assert_same_on_gpu(partial(scorers.load, "geneval"), image.expand(len(asked), -1, -1, -1), asked)


def plain(seen: dict[str, list[Detection]]) -> tuple[list[str], list[str]]:
    """Classes of which one is seen before all others, and that are not seen, by more than rounding: what random weights see differs from one version of a library to the next."""
    margin = 0.01
    there, absent = [], []
    for name in CLASSES:
        first, second = sorted([0.0, 0.0, *(d.confidence for d in seen.get(name, ()))])[:-3:-1]
        if first > CONFIDENCE + margin and first > second + margin:
            there.append(name)
        if first < CONFIDENCE - margin:
            absent.append(name)
    return there, absent


@torch.no_grad()
def test_contract(scorer: the_scorer.Scorer):
    shown, asked, wanted = [], [Prompt("mood", "a mood")], [torch.nan]
    for image in pictures(32):
        seen = scorer.detector.see(image[None], CONFIDENCE / 2)[0]
        there, absent = plain(seen)
        if not (there and absent):
            continue
        (colour,) = scorer.colours(image, there[0], counted(seen[there[0]], "colors")[:1])
        wrong = next(other for other in COLOURS if other != colour)
        one, none = ({"class": name, "count": 1} for name in (there[0], absent[0]))
        shown += [image] * 4
        asked += [prompt("single_object", one), prompt("single_object", none)]
        asked += [prompt("colors", one | {"color": said}) for said in (colour, wrong)]
        wanted += [1.0, 0.0, 1.0, 0.0]
        if len(shown) == 12:
            break
    assert len(shown) == 12, (
        "the networks of tests.tiny_detectors see something in most pictures, and not everything"
    )
    images = torch.stack([shown[0], *shown])
    assert faults("geneval", scorer, images, asked) == []
    values = scorer(images, asked)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor(wanted), rtol=0, atol=0, equal_nan=True)


def test_metadata_that_is_none_is_refused_before_anything_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    use(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="there is no class 'unicorn'"):
        scorers.load("geneval")(pictures(1), [prompt("colors", {"class": "unicorn", "count": 1})])


def test_terms_have_to_be_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(the_weights, "_accepted", set())
    with pytest.raises(ValueError, match=f"say --accept-terms {MASK2FORMER.repository}"):
        scorers.load("geneval")
    monkeypatch.setattr(the_weights, "_accepted", {MASK2FORMER.repository})
    with pytest.raises(ValueError, match=f"say --accept-terms {OPENAI_VIT_L_14.repository}"):
        scorers.load("geneval")
