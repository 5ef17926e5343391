"""The detection scores are what the libraries' own processors and post-processing give, one picture at a time; see `tiny_detectors`."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Mask2FormerForUniversalSegmentation,
    Owlv2ForObjectDetection,
    Owlv2Processor,
)
from transformers.models.grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.mask2former import Mask2FormerImageProcessorPil
from transformers.models.owlv2 import Owlv2ImageProcessorPil

from evals import scorers
from evals.geneval import CLASSES
from evals.scorers._contract import faults
from evals.scorers._detectors import (
    GROUNDING_DINO,
    IN_PLAIN_WORDS,
    MASK2FORMER,
    OWLV2,
    GroundingDino,
    Mask2Former,
    Owlv2,
    antialiased,
    box_about,
    detection_score,
    instances,
    object_names,
    plain,
)
from evals.weights import Weights
from prompts import Prompt
from prompts.sets.composition import OBJECTS_FILE
from tests.tiny_detectors import as_pil, pictures, save_all, use
from tests.toy import assert_same_on_gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    save_all(root)
    return root


@pytest.fixture(autouse=True)
def found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(folder, monkeypatch)


def about(*names: str) -> Prompt:
    expect = {"objects": [{"name": name} for name in names]}
    return Prompt("-".join(names) or "nothing", " and ".join(names) or "a mood", expect=expect)


ASKED = [
    about("cat", "dog"), about("dog"), Prompt("mood", "a mood"), about("cat", "baseball bat", "apple"), about("cat", "cat", "dog"),
    about("fire truck", "cat"), about(), about("rifle, gun", "hami melon"),
]  # fmt: skip


@cache
def owlv2_of(folder: Path) -> tuple[Owlv2ForObjectDetection, Owlv2Processor]:
    parts = Owlv2ImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    return Owlv2ForObjectDetection.from_pretrained(folder), Owlv2Processor(*parts)


@cache
def grounding_dino_of(folder: Path) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    parts = GroundingDinoImageProcessorPil.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    return GroundingDinoForObjectDetection.from_pretrained(folder), GroundingDinoProcessor(*parts)


def through_owlv2(folder: Path, image: Image.Image, names: list[str]) -> list[float]:
    """Best confidence of each name by the library: one picture, its own names, boxes above the default threshold."""
    model, processor = owlv2_of(folder)
    inputs = processor(text=[[f"a photo of a {name}" for name in names]], images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    best = []
    for i in range(len(names)):  # a box counts for every name, not for its best one only
        one = type(outputs)(logits=outputs.logits[..., i : i + 1], pred_boxes=outputs.pred_boxes)
        scores = processor.post_process_grounded_object_detection(one)[0]["scores"]
        best.append(float(scores.max()) if len(scores) else 0.0)
    return best


def through_grounding_dino(folder: Path, image: Image.Image, names: list[str]) -> list[float]:
    """Best confidence of each name by the library: one picture and one name at a time; the mean over its tokens where there are several."""
    model, processor = grounding_dino_of(folder)
    best = []
    for name in names:
        inputs = processor(text=[[name]], images=[image], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        tokens = processor.tokenizer.tokenize(name)
        if len(tokens) == 1:
            outputs.logits[:, :, [0, 2, 3]] = -torch.inf  # [CLS], the full stop, [SEP]: no part of the name
            scores = processor.post_process_grounded_object_detection(outputs)[0]["scores"]
        else:
            scores = sum(outputs.logits[0, :, 1 + i].sigmoid() for i in range(len(tokens))) / len(tokens)
            scores = scores[scores > 0.25]
        best.append(float(scores.max()) if len(scores) else 0.0)
    return best


ALL = ((OWLV2, Owlv2), (GROUNDING_DINO, GroundingDino), (MASK2FORMER, Mask2Former))
CASES = {
    "objects": (OWLV2, Owlv2, through_owlv2),
    "objects_grounding_dino": (GROUNDING_DINO, GroundingDino, through_grounding_dino),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_says_the_same(name: str):
    assert_same_on_gpu(partial(scorers.load, name), pictures(len(ASKED), 90, 70), ASKED)


@pytest.mark.parametrize("size", [(40, 40), (90, 70)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_score_is_the_librarys_picture_by_picture(name: str, size: tuple[int, int], folder: Path):
    weights, _, through = CASES[name]
    images = pictures(len(ASKED), *size)
    values = scorers.load(name)(images, ASKED)
    assert values.dtype == torch.float32
    for image, prompt, value in zip(images, ASKED, values.tolist(), strict=True):
        if names := object_names(prompt):
            best = through(folder / weights.repository, as_pil(image), names)
            assert value == pytest.approx(sum(best) / len(best), abs=2e-5)
        else:
            assert np.isnan(value)
    assert values.nan_to_num(0).unique().numel() >= 5  # they are not all alike


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str):
    assert faults(name, scorers.load(name), pictures(len(ASKED)), ASKED) == []


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_no_score_depends_on_what_else_is_asked_in_the_batch_or_of_the_picture(name: str):
    weights, detector, _ = CASES[name]
    opened, images = detector(weights, "cpu"), pictures(3)
    alone = opened.best(images[:1], [["cat"]])[0]["cat"]
    for beside in ([["cat", "dog"]], [["fire truck", "cat", "baseball bat"]]):
        assert opened.best(images[:1], beside)[0]["cat"] == pytest.approx(alone, abs=1e-6)
    longer = [["cat"], ["baseball bat", "dog", "fire truck"], ["hami melon"]]
    assert opened.best(images, longer)[0]["cat"] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_a_network_is_given_at_a_time_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch):
    weights, detector, _ = CASES[name]
    opened, images = detector(weights, "cpu"), pictures(5)
    names = [["cat", "dog"], ["apple"], ["cat"], ["ball", "cat"], ["dog"]]
    at_once, shown = opened.best(images, names), []
    monkeypatch.setattr(opened, "batch", 2)
    whole = opened.preprocess
    monkeypatch.setattr(opened, "preprocess", lambda few: (shown.append(len(few)), whole(few))[1])
    for one, other in zip(opened.best(images, names), at_once, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert max(shown) == 2
    assert sum(shown) == {"objects": 5, "objects_grounding_dino": 7}[name]  # a pass an image, or a pair


@pytest.mark.parametrize("name", CASES)
def test_below_the_threshold_nothing_is_detected(name: str, monkeypatch: pytest.MonkeyPatch):
    weights, detector, _ = CASES[name]
    images, asked = pictures(2), [about("cat", "dog", "apple"), about("dog")]
    with torch.no_grad():
        seen = detector(weights, "cpu").best(images, [object_names(prompt) for prompt in asked])
    cut = sorted(seen[0].values())[1]
    monkeypatch.setattr(detector, "threshold", cut)  # the middle one of three is not above it
    value = scorers.load(name)(images, asked)
    assert float(value[0]) == pytest.approx(max(seen[0].values()) / 3, abs=1e-5)
    monkeypatch.setattr(detector, "threshold", 0.9999)
    assert scorers.load(name)(images, asked).tolist() == [0, 0]


def test_the_detection_score_is_a_mean_and_counts_a_class_named_twice_twice():
    assert detection_score([0.9, 0.0, 0.3]) == pytest.approx(0.4)
    assert detection_score([0.8]) == 0.8
    asked = [about("cat", "cat"), about("cat"), about("dog")]
    same, one, other = scorers.load("objects")(pictures(1).repeat(3, 1, 1, 1), asked)
    assert float(same) == float(one) != float(other)


def test_a_picture_scores_as_its_file():
    """Eight bits are what a file holds and what the libraries take."""
    images, asked = pictures(2), [about("cat"), about("dog")]
    scorer = scorers.load("objects")
    assert torch.equal(scorer(images + 0.4 / 255 * torch.rand(images.shape), asked), scorer(images, asked))


@pytest.mark.parametrize("size", [(40, 40), (30, 41), (301, 200)], ids=str)
def test_preprocessing_is_the_librarys(size: tuple[int, int], folder: Path):
    noise = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0))
    image = ((pictures(1, *size) + noise) / 2 * 255).round() / 255
    owlv2, dino, mask2former = (detector(weights, "cpu") for weights, detector in ALL)
    masks = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    pairs = (
        (owlv2, Owlv2ImageProcessorPil.from_pretrained(folder / OWLV2.repository)),
        (dino, GroundingDinoImageProcessorPil.from_pretrained(folder / GROUNDING_DINO.repository)),
        (mask2former, masks),
    )
    for ours, theirs in pairs:
        wanted = theirs(as_pil(image[0]), return_tensors="pt")
        assert bool(wanted.get("pixel_mask", torch.ones(1)).all())  # nothing is padded
        assert torch.allclose(ours.preprocess(image), wanted.pixel_values, atol=2e-5)


def test_resizing_for_owlv2_mirrors_the_edges():
    """At a mirrored edge a pixel that lies outside of the outer centres is told by its neighbour inside."""
    assert antialiased(2, 4).tolist() == [[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]]
    assert np.allclose(antialiased(7, 3).sum(1), 1)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("rifle, gun", "rifle gun"), ("Lifejacket", "life jacket"), ("poker card", "playing card"), ("Cell  Phone", "cell phone"),
        ("t-shirt", "t-shirt"), ("St. Bernard's dog.", "st bernard s dog"), ("cup, mug", "cup mug"),
    ],
)  # fmt: skip
def test_names_are_asked_for_in_plain_words(name: str, asked: str):
    assert plain(name) == asked
    assert plain(asked) == asked


def test_all_objects_of_the_paper_can_be_asked_for():
    with OBJECTS_FILE.open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == 532
    assert set(IN_PLAIN_WORDS) <= set(names)
    asked = [plain(name) for name in names]
    assert len(set(asked)) == 532
    assert all(name in IN_PLAIN_WORDS or plain(name) == name for name in names)
    encode = open_clip.SimpleTokenizer().encode  # CLIP's, whose vocabulary is OWLv2's
    assert max(2 + len(encode(Owlv2.caption.format(name))) for name in asked) <= 16


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ([{"name": "..."}], r"a detector cannot be asked for '\.\.\.'"),
        (
            [{"colour": "red", "shape": "star"}],
            "`expect.objects` must be a list of objects with a name, but is",
        ),
        ([{"name": 3}], "must be a list of objects with a name"),
        (5, "must be a list of objects with a name"),
    ],
)
def test_what_names_no_object_is_one_sentence(objects, told: str):
    with pytest.raises(ValueError, match=told):
        scorers.load("objects")(pictures(1), [Prompt("a", "a", expect={"objects": objects})])


@pytest.mark.parametrize("name", CASES)
def test_a_name_that_is_longer_than_the_text_encoder_reads_is_one_sentence(name: str):
    with pytest.raises(ValueError, match=r"tokens, .* reads 32: name it in fewer words"):
        scorers.load(name)(pictures(1), [about("apple cat dog ball bat " * 12)])


def changed(folder: Path, tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the weights' folder to be spoilt."""
    copy = tmp_path / weights.repository
    shutil.copytree(folder / weights.repository, copy)
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(tmp_path))
    return copy


@pytest.mark.parametrize(("weights", "detector"), ALL, ids=lambda one: getattr(one, "repository", ""))
def test_weights_of_another_model_are_refused(
    weights: Weights, detector: Callable[..., object], folder: Path, tmp_path: Path, monkeypatch
):
    copy = changed(folder, tmp_path, weights, monkeypatch)
    tensors = load_file(copy / "model.safetensors")
    lost = next(name for name in sorted(tensors) if "layernorm" in name or "layer_norm" in name)
    shape = tensors[lost].shape
    other = f"weights of another model than {weights.repository}: 1 tensors are"
    for change, told in (
        ({lost: None}, rf"{other} missing, .*norm.* is one"),
        ({"one.more.weight": torch.zeros(3)}, rf"{other} foreign, one.more.weight is one"),
        (
            {lost: torch.zeros(shape[0] + 1, *shape[1:])},
            f"{other} missing|cannot be opened as {weights.repository}",
        ),
    ):
        held = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
        save_file(held, copy / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=told) as error:
            detector(weights, "cpu")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("weights", "detector"), ALL, ids=lambda one: getattr(one, "repository", ""))
def test_what_older_libraries_stored_beside_the_weights_is_let_through(
    weights: Weights, detector: Callable[..., object], folder: Path, tmp_path: Path, monkeypatch
):
    copy = changed(folder, tmp_path, weights, monkeypatch)
    tensors = load_file(copy / "model.safetensors")
    block = next((name.split(".attention.")[0] for name in tensors if "blocks.0.attention." in name), None)
    index = f"{block}.attention.self.relative_position_index" if block else "owlv2.text_model.position_ids"
    tensors[index] = torch.zeros(4, 4, dtype=torch.long)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    detector(weights, "cpu")


@pytest.mark.parametrize(
    "file", [name for name in OWLV2.files if name.endswith(("ors", "ig.json", "vocab.json"))]
)
def test_damaged_files_are_one_sentence(file: str, folder: Path, tmp_path: Path, monkeypatch):
    copy = changed(folder, tmp_path, OWLV2, monkeypatch)
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"cannot be opened as {OWLV2.repository}") as told:
        Owlv2(OWLV2, "cpu")
    assert "\n" not in str(told.value)
    (copy / file).unlink()
    with pytest.raises(ValueError, match="the hub cannot be reached, and"):
        Owlv2(OWLV2, "cpu")


def test_a_model_of_other_classes_is_refused(folder: Path, tmp_path: Path, monkeypatch):
    copy = changed(folder, tmp_path, MASK2FORMER, monkeypatch)
    three = {"num_labels": 3, "ignore_mismatched_sizes": True}
    Mask2FormerForUniversalSegmentation.from_pretrained(copy, **three).save_pretrained(copy)
    with pytest.raises(ValueError, match="knows 3 classes, not COCO's 80"):
        Mask2Former(MASK2FORMER, "cpu")


def test_a_scorer_is_made_and_described_without_weights(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(tmp_path))
    for name in CASES:
        scorer = scorers.load(name)
        assert scorers.weights_of(scorer)[0].free
        assert "Apache-2.0" in scorer.source
        with pytest.raises(ValueError, match="the hub cannot be reached"):
            scorer(pictures(1), [about("cat")])


def test_the_version_changes_with_the_weights(folder: Path, tmp_path: Path, monkeypatch):
    before = scorers.load("objects").version
    copy = changed(folder, tmp_path, OWLV2, monkeypatch)
    assert scorers.load("objects").version == before
    tensors = load_file(copy / "model.safetensors")
    tensors["class_head.dense0.bias"] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert scorers.load("objects").version != before


def test_the_box_about_a_mask_ends_behind_its_last_pixel():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:9, 7:12] = True
    mask[6, 20] = True
    assert box_about(mask) == (7, 4, 21, 9)


def logits_of(probabilities: dict[int, float]) -> torch.Tensor:
    """Of 81 classes, the rest on the last one, nothing."""
    p = torch.full((81,), 1e-9)
    for label, probability in probabilities.items():
        p[label] = probability
    p[-1] = 1 - sum(probabilities.values())
    return p.log()


def test_instances_are_classes_times_masks():
    cat, dog = CLASSES.index("cat"), CLASSES.index("dog")
    classes = torch.stack([logits_of({cat: 0.8}), logits_of({dog: 0.5, cat: 0.45}), logits_of({dog: 0.2})])
    masks = torch.full((3, 8, 8), -20.0)
    masks[0, 2:6, 1:4] = 20.0
    masks[1, :, 4:] = 1.0
    masks[2] = 20.0
    found = instances(classes, masks, [(16, 16)], least=0.3, most=100)
    assert set(found) == {"cat", "dog"}
    first, second = found["cat"]
    assert first.box == (2, 4, 8, 12)
    assert first.confidence == pytest.approx(0.8, abs=0.02)  # but for the rim its mask is certain
    assert second.confidence == pytest.approx(found["dog"][0].confidence * 0.45 / 0.5)
    assert found["dog"][0].confidence == pytest.approx(0.5 / (1 + np.exp(-1)), abs=0.02)
    assert len(found["dog"]) == 1  # the other is too doubtful
    assert first.mask_HW.shape == (16, 16)
    assert int(first.mask_HW.sum()) == 6 * 8
    assert [len(v) for v in instances(classes, masks, [(16, 16)], least=0.3, most=1).values()] == [1]


def test_a_mask_of_no_pixel_is_no_object():
    masks = torch.full((1, 8, 8), -5.0)
    assert instances(logits_of({0: 0.99})[None], masks, [(16, 16)], least=0.001, most=100) == {}


@pytest.mark.parametrize("size", [(40, 40), (40, 52)], ids=str)
@torch.no_grad()
def test_mask2former_is_the_papers_inference_for_instances(size: tuple[int, int], folder: Path):
    """Written out once more: all pairs, all masks at once, thresholds last."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder / MASK2FORMER.repository)
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    images, least = pictures(3, *size), 0.3
    for image, found in zip(images, Mask2Former(MASK2FORMER, "cpu").see(images, least), strict=True):
        inputs = processor(as_pil(image), return_tensors="pt").pixel_values
        outputs = model(inputs)
        masks = F.interpolate(outputs.masks_queries_logits, inputs.shape[-2:], mode="bilinear")
        masks = F.interpolate(masks, size, mode="bilinear")[0]
        binary = (masks > 0).float()
        certain = (masks.sigmoid() * binary).flatten(1).sum(1) / (binary.flatten(1).sum(1) + 1e-6)
        scores = (outputs.class_queries_logits[0].softmax(-1)[:, :80] * certain[:, None]).flatten()
        wanted = sorted(float(s) for s in scores if s > least)
        given = sorted(d.confidence for seen in found.values() for d in seen)
        assert given == pytest.approx(wanted, abs=1e-4)
        assert len(wanted) >= 3
        assert len(found) >= 2
