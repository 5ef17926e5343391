"""T2I-CompBench: its rules give the released evaluator's numbers and what plain cases demand; its scorers ask detector and BLIP as the libraries themselves do."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPTokenizer,
    Owlv2ForObjectDetection,
    Owlv2Processor,
)
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.owlv2 import Owlv2ImageProcessorPil

import prompts
from evals import metrics, scorers, suites
from evals.geneval import Detection
from evals.scorers._boxes import SUPPRESSED, Owlv2Boxes
from evals.scorers._contract import faults
from evals.scorers._detectors import OWLV2
from evals.scorers.t2i_attributes import BLIP_VQA, BlipVqa
from evals.t2i_compbench import (
    binding,
    counts,
    iou,
    merged,
    noun_phrases,
    numeracy,
    place,
    position,
    related,
    singular,
    spatial,
)
from prompts import Prompt
from tests.tiny_detectors import as_pil, loosen, pictures, save_owlv2, use

SHARED = Path(__file__).parent.parent.parent / "shared"


def lines(category: str) -> list[str]:
    """The validation prompts of a category."""
    file = SHARED / "data" / "t2i-compbench" / f"{category}_val.txt"
    if not file.is_file():
        pytest.skip(f"{file.name} is not in {file.parent}")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]


# noun phrases


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a red book and a yellow vase", ["a red book", "a yellow vase"]),
        ("a red apple and yellow bananas", ["a red apple", "yellow bananas"]),
        ("a green rose and a blue tulip", ["a green rose", "a blue tulip"]),
        ("A black and white cat sits in a black sink.", ["A black and white cat", "a black sink"]),
        ("A man in a black jacket standing next to a gray dog.", ["A man", "a black jacket", "a gray dog"]),
        ("A long, narrow kitchen with floor tiles, a clock", ["A long, narrow kitchen", "floor tiles", "a clock"]),
        ("two white sheep, a black goat in a field", ["two white sheep", "a black goat", "a field"]),
        ("an oval sink and a rectangular mirror.", ["an oval sink", "a rectangular mirror"]),
        ("a round bagel and a square piece of toast", ["a round bagel", "a square piece", "toast"]),
        ("a cubic Rubik's cube and a pencil", ["a cubic Rubik's cube", "a pencil"]),
        ("A dining area features a table", ["A dining area", "a table"]),
        ("the roof was among the features of the boat", ["the roof was among", "the features", "the boat"]),
        ("a bowl on the left of a cup", ["a bowl", "a cup"]),
        ("Clouds", ["Clouds"]),
        ("and", []),
    ],
)  # fmt: skip
def test_noun_phrases(text: str, phrases: list[str]):
    assert noun_phrases(text) == phrases


@pytest.mark.parametrize(
    ("category", "plain", "named", "digest"),
    [
        ("color", 240, 682, "142be652d59a"),
        ("shape", 219, 739, "7c1091d34e3b"),
        ("texture", 240, 729, "bcaa433aae50"),
    ],
)
def test_noun_phrases_of_every_prompt(category: str, plain: int, named: int, digest: str):
    """Those in the plain form are split at their "and"; the rest was held to a tagger's phrases by eye, and may not change unseen."""
    found = {text: noun_phrases(text) for text in lines(category)}
    form = re.compile(r"(an? )?[a-z][\w' -]* and (an? )?[\w' -]+\.?")
    of_plain_form = [t for t in found if form.fullmatch(t) and not re.search(" of | with | on ", t)]
    assert len(of_plain_form) == plain
    for text in of_plain_form:
        assert found[text] == text.rstrip(".").split(" and "), text
    assert sum(map(len, found.values())) == named
    assert all(phrase in text for text, phrases in found.items() for phrase in phrases)
    assert max(map(len, found.values())) <= 8
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12] == digest


def test_binding_is_a_product():
    assert binding([0.5, 0.9, 0.2]) == pytest.approx(0.09)
    assert binding([1.0, 0.0]) == 0


# relations


def test_positions_are_the_released_evaluators():
    file = SHARED / "golden" / "golden_vectors.json"
    if not file.is_file():
        pytest.skip(f"{file.name} is not in {file.parent}")
    cases = json.loads(file.read_text(encoding="utf-8"))["t2i_compbench_determine_position"]["cases"]
    assert len(cases) >= 150
    for case in cases:
        found = position(place(case["relation"]), tuple(case["obj1"]), tuple(case["obj2"]))
        assert found == pytest.approx(case["score"], abs=1e-9), case


def test_on_top_of_is_on_the_top_of():
    """Upstream gives 0 for the first, whatever there is to see."""
    assert related("a cat on top of a box") == related("a cat on the top of a box") == ("cat", "top", "box")
    above, below = (40, 0, 60, 20), (40, 60, 60, 80)
    assert position(place("on top of"), above, below) == 1
    assert position(place("on top of", upstream=True), above, below) == 0
    assert place("on the top of", upstream=True) == "top"


@pytest.mark.parametrize(
    ("relation", "b", "score"),
    [
        ("left", (200, 0, 210, 10), 1),
        ("right", (200, 0, 210, 10), 0),
        ("top", (200, 0, 210, 10), 0),
        ("top", (0, 200, 10, 210), 1),  # y points downwards
        ("bottom", (0, 200, 10, 210), 0),
        ("left", (200, 200, 210, 210), 0),  # neither axis dominates
        ("left", (5, 0, 15, 10), 0.1 / (1 / 3)),
        ("left", (9, 0, 19, 10), 1),  # IoU 1/19
        ("near", (149, 400, 159, 410), 1),  # on one axis is enough
        ("near", (300, 200, 310, 210), 0.5),
        ("near", (150, 200, 160, 210), 0.75),
    ],
)
def test_position_of_a_box_at_the_origin(relation: str, b: tuple[float, ...], score: float):
    assert position(relation, (0, 0, 10, 10), b) == pytest.approx(score)


def test_spatial_is_a_quarter_a_quarter_and_a_half():
    cat, dog = Detection((0, 0, 1, 1), 0.4), Detection((0, 0, 1, 1), 0.8)
    assert spatial(cat, dog, 1.0) == pytest.approx(0.1 + 0.2 + 0.5)
    assert spatial(cat, dog, 0.5) == pytest.approx(0.55)
    assert spatial(cat, dog, 0.3) == 0  # .45
    assert spatial(cat, None, 1.0) == spatial(None, None, 1.0) == 0


def test_every_spatial_prompt_is_read():
    found = {text: related(text) for text in lines("spatial")}
    for text, asked in found.items():
        words = {
            "left": "on the left of",
            "right": "on the right of",
            "top": "on the top of",
            "bottom": "on the bottom of",
        }
        said = [words[asked.relation]] if asked.relation in words else ["next to", "near", "on side of"]
        assert any(
            re.fullmatch(f"an? {asked.first} {relation} an? {asked.second}", text) for relation in said
        ), text
    assert related("two cats") is related("a cat and a dog") is None


# numbers


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("two books and one cat", [("book", 2), ("cat", 1)]),
        (
            "a chicken, four birds, and a mouse sang a lively tune",
            [("chicken", 1), ("bird", 4), ("mouse", 1)],
        ),
        ("four trains carried four people", [("train", 4), ("person", 4)]),
        ("six people gathered for a picnic", [("person", 6)]),
        ("an egg", [("egg", 1)]),
        ("three clocks ticked near two microwaves", [("clock", 3), ("microwave", 2)]),
        ("the tree", []),
        ("", []),
    ],
)
def test_numbers_in_a_prompt(text: str, objects: list[tuple[str, int]]):
    assert counts(text) == objects


def test_numbers_in_every_prompt():
    numbers = dict(
        zip(["one", "two", "three", "four", "five", "six", "seven", "eight"], range(1, 9), strict=True)
    )
    only_a_list = 0
    for text in lines("numeracy"):
        items = re.split(r", and |, | and ", text)
        assert counts(text), text
        if all(re.fullmatch(r"\w+ \w+", item) for item in items):
            only_a_list += 1
            wanted = [(singular(noun), numbers[number]) for number, noun in map(str.split, items)]
            assert counts(text) == wanted, text
    assert only_a_list == 240


def test_singulars():
    plurals = "butterflies strawberries couches peaches tomatoes knives mice men women people sheep fish deer horses vases microwaves cows boxes"
    singulars = "butterfly strawberry couch peach tomato knife mouse man woman person sheep fish deer horse vase microwave cow box"
    assert [singular(noun) for noun in plurals.split()] == singulars.split()
    assert [singular(noun) for noun in singulars.split()] == singulars.split()


def test_boxes_on_or_in_one_another_are_one_object():
    whole, same = Detection((0, 0, 100, 100), 0.8), Detection((0, 0, 100, 95), 0.9)
    inside, beside = Detection((10, 10, 20, 20), 0.7), Detection((95, 0, 195, 100), 0.6)
    assert merged([whole, same, inside, beside]) == [same, beside]
    assert iou(whole.box, same.box) == pytest.approx(0.95)
    assert merged([Detection((0, 0, 1, 1), 0.9), Detection((0, 0, 1, 1.2), 0.8)])[0].confidence == 0.9
    half = [Detection((0, 0, 100, 100), 0.9), Detection((0, 50, 100, 150), 0.8)]
    assert merged(half) == half


def test_numeracy_is_half_for_being_there_and_half_for_the_number():
    asked = [("cat", 2), ("dog", 1)]
    assert numeracy(asked, {"cat": 2, "dog": 1}) == 1
    assert numeracy(asked, {"cat": 3, "dog": 1}) == 0.75
    assert numeracy(asked, {"cat": 2, "dog": 0}) == 0.5
    assert numeracy(asked, {}) == 0


# networks


WORDS = [
    "a",
    "an",
    "the",
    "red",
    "blue",
    "black",
    "white",
    "and",
    "cat",
    "dog",
    "book",
    "vase",
    "yes",
    "no",
    "?",
    ",",
    "##s",
]


def save_blip_vqa(folder: Path) -> None:
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    begin = len(vocabulary)
    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={"vocab_size": begin + 2, "bos_token_id": begin, "pad_token_id": 0, "sep_token_id": 3, "encoder_hidden_size": 24, **size},
        vision_config={"image_size": 32, "patch_size": 8, **size},
    )  # fmt: skip
    model = BlipForQuestionAnswering(config)
    loosen(model, 0.6)
    words = model.text_encoder.embeddings.word_embeddings.weight
    for weight in (words, model.vision_model.embeddings.patch_embedding.weight):
        torch.nn.init.normal_(weight, std=1)  # questions differ, and pictures
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for weights, save in ((OWLV2, save_owlv2), (BLIP_VQA, save_blip_vqa)):
        (root / weights.repository).mkdir(parents=True)
        save(root / weights.repository)
        assert all((root / weights.repository / file).is_file() for file in weights.files)
    return root


@pytest.fixture(autouse=True)
def found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(folder, monkeypatch, BLIP_VQA)


@torch.no_grad()
def through_blip(folder: Path, image: torch.Tensor, question: str) -> float:
    """The library's own way to an answer, but for BLIP's first token."""
    model = BlipForQuestionAnswering.from_pretrained(folder)
    tokenizer = BertTokenizer.from_pretrained(folder)
    pixels = BlipImageProcessorPil(size={"height": 32, "width": 32})(
        as_pil(image), return_tensors="pt"
    ).pixel_values
    ids = tokenizer(question, return_tensors="pt").input_ids
    ids[:, 0] = model.config.text_config.vocab_size - 1
    said = model.generate(ids, pixels, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    probability = said.logits[0][0].softmax(-1)
    yes, no = (float(probability[tokenizer.vocab[word]]) for word in ("yes", "no"))
    return yes / (yes + no)


@pytest.mark.parametrize("size", [(40, 40), (30, 52)], ids=str)
@torch.no_grad()
def test_blip_is_asked_as_the_library_asks_it(size: tuple[int, int], folder: Path):
    images = pictures(3, *size)
    questions = [
        ["a red book?", "the black and white cats?"],
        ["a dog?"],
        ["a blue vase?", "a red book?", "a cat?"],
    ]
    answers = BlipVqa(BLIP_VQA, "cpu").yes(images, questions)
    for image, asked, found in zip(images, questions, answers, strict=True):
        wanted = [through_blip(folder / BLIP_VQA.repository, image, question) for question in asked]
        assert found == pytest.approx(wanted, abs=1e-5)
    assert abs(answers[0][0] - answers[2][1]) > 0.002  # random networks have opinions too, of pictures
    assert abs(answers[2][1] - answers[2][0]) > 0.002  # and of questions


def test_the_score_of_attributes_is_the_product_of_the_answers():
    images, scorer = pictures(2), scorers.load("t2i_attributes")
    asked = [Prompt("1", "a red book and a blue vase."), Prompt("2", "and")]
    value = scorer(images, asked)
    with torch.no_grad():
        (yes,) = BlipVqa(BLIP_VQA, "cpu").yes(images[:1], [["a red book?", "a blue vase?"]])
    assert float(value[0]) == pytest.approx(yes[0] * yes[1], abs=1e-6)
    assert value[1].isnan()


@torch.no_grad()
def test_what_blip_is_given_at_a_time_is_bounded(monkeypatch: pytest.MonkeyPatch):
    blip, images = BlipVqa(BLIP_VQA, "cpu"), pictures(5)
    questions = [["a cat?", "a dog?", "the red cat?"]] * 5
    at_once = blip.yes(images, questions)
    monkeypatch.setattr(blip, "batch", 2)
    asked, whole = [], blip._yes
    monkeypatch.setattr(blip, "_yes", lambda seen, ids: (asked.append(len(ids)), whole(seen, ids))[1])
    for one, other in zip(blip.yes(images, questions), at_once, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert max(asked) == 2
    assert sum(asked) == 15


def suppressed(boxes: list[Detection]) -> Iterator[Detection]:
    """Non-maximum suppression, written out."""
    left = sorted(boxes, key=lambda d: -d.confidence)
    while left:
        yield left[0]
        left = [d for d in left[1:] if iou(d.box, left[0].box) <= SUPPRESSED]


@pytest.mark.parametrize("size", [(40, 40), (30, 52)], ids=str)
@torch.no_grad()
def test_boxes_are_the_librarys_less_those_on_a_better_one(size: tuple[int, int], folder: Path):
    where = folder / OWLV2.repository
    model = Owlv2ForObjectDetection.from_pretrained(where)
    processor = Owlv2Processor(
        Owlv2ImageProcessorPil.from_pretrained(where), CLIPTokenizer.from_pretrained(where)
    )
    images, names = pictures(3, *size), [["cat", "dog"], ["apple"], ["dog", "ball", "fire truck"]]
    boxes = Owlv2Boxes(OWLV2, "cpu").see(images, names)
    total = 0
    for image, named, seen in zip(images, names, boxes, strict=True):
        inputs = processor(
            text=[[f"a photo of a {name}" for name in named]], images=as_pil(image), return_tensors="pt"
        )
        side = max(size)  # the library gives boxes of the padded square
        (result,) = processor.post_process_grounded_object_detection(
            model(**inputs), threshold=Owlv2Boxes.threshold, target_sizes=[(side, side)]
        )
        assert set(seen) == set(named)
        for number, name in enumerate(named):
            mine = result["labels"] == number
            inside = result["boxes"][mine].clamp(min=0).minimum(torch.tensor([size[1], size[0]] * 2))
            wanted = list(
                suppressed(
                    [
                        Detection(tuple(b), float(c))
                        for b, c in zip(inside.tolist(), result["scores"][mine], strict=True)
                    ]
                )
            )
            assert [d.confidence for d in seen[name]] == pytest.approx(
                [d.confidence for d in wanted], abs=2e-5
            )
            for one, other in zip(seen[name], wanted, strict=True):
                assert one.box == pytest.approx(other.box, abs=1e-2)
            total += len(wanted)
            assert all(iou(a.box, b.box) <= SUPPRESSED for a, b in combinations(seen[name], 2))
    assert total >= 6


def test_spatial_and_numeracy_are_the_rules_on_what_is_seen(monkeypatch: pytest.MonkeyPatch):
    cat, dog = Detection((0, 0, 10, 10), 0.6), Detection((300, 0, 310, 10), 0.4)
    second = Detection((100, 100, 200, 200), 0.5)
    monkeypatch.setattr(
        Owlv2Boxes, "see", lambda self, images, names: [{"cat": [cat, second], "dog": [dog]}] * len(names)
    )
    spatial_prompts = [
        Prompt("1", "a cat on the left of a dog"),
        Prompt("2", "a cat near a dog"),
        Prompt("3", "a mood"),
    ]
    value = scorers.load("t2i_spatial")(torch.zeros(3, 3, 512, 400), spatial_prompts)
    assert value[:2].tolist() == pytest.approx([0.75, 0.75])
    assert value[2].isnan()
    asked = [Prompt("1", "two cats and two dogs"), Prompt("2", "the mood"), Prompt("3", "one cat")]
    value = scorers.load("t2i_numeracy")(torch.zeros(3, 3, 8, 8), asked)
    assert value.tolist()[::2] == pytest.approx([0.75, 0.5])
    assert value[1].isnan()


def test_nearness_grows_with_the_picture():
    cat, dog = Detection((0, 0, 10, 10), 1.0), Detection((200, 200, 210, 210), 1.0)
    asked, found = Prompt("1", "a cat near a dog"), {"cat": [cat], "dog": [dog]}
    at_512, at_1024 = (scorers.load("t2i_spatial").judge(asked, found, side) for side in (512, 1024))
    assert at_512 == pytest.approx(0.5 + 0.5 * 150 / 200)
    assert at_1024 == 1


ASKED = {
    "t2i_attributes": ("a red book and a blue vase", "a cat", "the black and white cats and a dog", "and"),
    "t2i_spatial": (
        "a cat near a dog",
        "a mood",
        "an apple on the left of a cat",
        "a fire truck next to a ball",
    ),
    "t2i_numeracy": ("a cat", "two dogs and three apples", "the mood", "one cat, two balls"),
}


@pytest.mark.parametrize("name", ASKED)
def test_contract(name: str, monkeypatch: pytest.MonkeyPatch):
    asked = [Prompt(f"{i}", text) for i, text in enumerate(ASKED[name] * 3)]
    scorer, images = scorers.load(name), pictures(len(asked))
    assert faults(name, scorer, images, asked) == []
    values = scorer(images, asked)
    assert values.dtype == torch.float32
    assert int(values.isnan().sum()) == 3
    assert re.fullmatch(r"[0-9a-f]{8}", scorer.version)
    assert "ratios to the base" in scorer.source
    assert all(weights.free for weights in scorers.weights_of(scorer))


def test_the_suite_has_a_metric_for_every_scorer():
    suite = suites.load("t2i_compbench")
    assert {part.images_per_prompt for part in suite.parts} == {10}
    for part in suite.parts:
        for name in part.scorers:
            metric = metrics.load(name)
            assert metric.scorer == name
            assert set(part.headlines) <= {
                m for m in metrics.names() if metrics.load(m).scorer in part.scorers
            }
        assert part.prompt_set in prompts.names()
