"""GenEval's number is the mean over its tasks; its detector is held to what people saw, whose agreement is that of the published annotations."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import prompts
from evals import geneval_people, metrics, stats, suites
from evals.__main__ import main
from evals.geneval_people import (
    FILES,
    MODELS,
    Judged,
    agreement,
    answers,
    cohen_kappa,
    fleiss_kappa,
    found_in,
    glance,
    is_right,
    judged,
    markdown,
    one_against_the_others,
    pair_agreement,
    table,
    unanimous,
    with_interval,
)
from evals.metrics._geneval import SIZES, TASKS, task_of
from prompts import Prompt

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture
def annotations(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published files."""
    folder = SHARED / "geneval" / "human-annotations"
    if not folder.is_dir():
        pytest.skip(f"GenEval's annotations are not in {folder}")
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(SHARED))
    return folder


# the metric


def rows(prompt_set: str, **images: list[float]) -> pd.DataFrame:
    """Rows of the scorer `geneval`: prompt id, without its "p", to the values of its images."""
    cells = [
        {"seed": 0, "prompt_set": prompt_set, "prompt_id": name.lstrip("p"), "image": image, "value": value}
        for name, values in images.items()
        for image, value in enumerate(values)
    ]
    return pd.DataFrame(cells)


def value_of(name: str, frame: pd.DataFrame) -> float:
    metric = metrics.load(name)
    return stats.point(metric.statistics(frame, frame).to_numpy()[None], metric.finish)


ONE_OF_EACH = {
    "p00000": [1.0, 1.0, 1.0, 1.0],  # single_object
    "p00079": [1.0, 1.0, 1.0, 1.0],  # its last
    "p00080": [1.0, 0.0, 0.0, 0.0],  # two_object
    "p00179": [0.0, 0.0, 0.0, 0.0],  # counting
    "p00259": [1.0, 1.0, 0.0, 0.0],  # colors
    "p00353": [0.0, 0.0, 0.0, 0.0],  # position
    "p00453": [1.0, 1.0, 1.0, 0.0],  # color_attr
    "p00552": [0.0, 0.0, 0.0, 1.0],  # its last
}


def test_the_number_is_the_mean_over_tasks_not_over_prompts():
    frame = rows("geneval", **ONE_OF_EACH)
    assert value_of("geneval", frame) == pytest.approx((1 + 0.25 + 0 + 0.5 + 0 + 0.5) / 6)
    assert value_of("geneval_prompts", frame) == pytest.approx(6 / 8)


def test_an_image_that_cannot_be_judged_is_in_neither_share():
    seen = ONE_OF_EACH | {"p00080": [1.0, math.nan, 0.0, math.nan], "p00079": [math.nan] * 4}
    assert value_of("geneval", rows("geneval", **seen)) == pytest.approx((1 + 0.5 + 0 + 0.5 + 0 + 0.5) / 6)
    assert value_of("geneval_prompts", rows("geneval", **seen)) == pytest.approx(5 / 7)


def test_without_a_task_there_is_no_number():
    del (some := dict(ONE_OF_EACH))["p00353"]
    assert math.isnan(value_of("geneval", rows("geneval", **some)))


def test_tasks_are_known_from_the_number_of_a_prompt(monkeypatch: pytest.MonkeyPatch):
    if not (SHARED / "geneval").is_dir():
        pytest.skip(f"GenEval's prompts are not in {SHARED}")
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(SHARED))
    asked = prompts.load("geneval")
    assert len(asked) == sum(SIZES) == 553
    assert [task_of("geneval", prompt.id) for prompt in asked] == [prompt.tags[0] for prompt in asked]
    other = prompts.load("geneval-unseen")
    assert [task_of("geneval-unseen", prompt.id) for prompt in other] == [prompt.tags[0] for prompt in other]


@pytest.mark.parametrize(
    ("prompt_id", "told"),
    [("00553", "prompt 00553 of geneval is not in it"), ("cat", "prompt cat of geneval is not in it")],
)
def test_a_prompt_of_no_task_is_one_sentence(prompt_id: str, told: str):
    with pytest.raises(ValueError, match=told):
        value_of("geneval", rows("geneval", **{prompt_id: [1.0]}))


def test_the_suite_has_553_prompts_at_four_pictures():
    (part,) = suites.load("geneval").parts
    assert (part.prompt_set, part.images_per_prompt) == ("geneval", 4)
    assert metrics.load("geneval").scorer in part.scorers


# people


def test_votes_are_the_derived_ones(annotations: Path):
    """The derived file counts the raters who saw what the prompt asks for."""
    with (annotations / "derived_votes.csv").open(encoding="utf-8", newline="") as file:
        wanted = {
            (row["model"], int(row["prompt_id"]), int(row["image_id"])): (
                int(row["n_annotators"]),
                int(row["n_correct"]),
            )
            for row in csv.DictReader(file)
        }
    found = {(p.model, p.prompt_id, p.image): (p.raters, p.right) for p in judged()}
    assert len(found) == 1200
    assert found == wanted


@pytest.mark.usefixtures("annotations")
def test_people_agree_as_far_as_was_measured():
    people = judged()
    right, raters = (
        np.array([getattr(p, name) for p in people], dtype=float) for name in ("right", "raters")
    )
    assert pair_agreement(right, raters) == pytest.approx(0.868, abs=5e-4)
    assert one_against_the_others(right, raters) == pytest.approx(0.920, abs=5e-4)
    assert fleiss_kappa(right, raters) == pytest.approx(0.731, abs=5e-4)
    assert unanimous(right, raters) == pytest.approx(0.717, abs=5e-4)


@pytest.mark.usefixtures("annotations")
def test_models_are_as_good_as_people_found_them():
    people = judged()
    means = {}
    for model in MODELS:
        by_task = {
            task: [
                p.majority
                for p in people
                if p.model == model and task_of("geneval", f"{p.prompt_id:05d}") == task
            ]
            for task in TASKS
        }
        means[model] = {task: float(np.mean(found)) for task, found in by_task.items()}
    assert [round(np.mean(list(means[model].values())), 3) for model in MODELS] == [0.579, 0.734, 0.414]
    assert {task: round(value, 3) for task, value in means["sdv2"].items()} == {
        "single_object": 1.0, "two_object": 0.611, "counting": 0.544, "colors": 0.882, "position": 0.150, "color_attr": 0.288
    }  # fmt: skip


def by_hand(right: int, raters: int = 5) -> list[bool]:
    return [True] * right + [False] * (raters - right)


def test_agreement_among_people_is_counted_pair_by_pair():
    counts = [5, 3, 0, 2, 4]
    right, raters = np.array(counts, dtype=float), np.full(5, 5.0)
    votes = [by_hand(count) for count in counts]
    pairs = [a == b for v in votes for i, a in enumerate(v) for b in v[i + 1 :]]
    assert pair_agreement(right, raters) == pytest.approx(np.mean(pairs))
    assert unanimous(right, raters) == 0.4
    others = [(v[i], sum(v[:i] + v[i + 1 :])) for v in votes for i in range(5)]
    assert one_against_the_others(right, raters) == pytest.approx(
        np.mean([vote == (n > 2) for vote, n in others if n != 2])
    )
    share = sum(counts) / 25
    chance = share**2 + (1 - share) ** 2
    assert fleiss_kappa(right, raters) == pytest.approx((np.mean(pairs) - chance) / (1 - chance))


HEADER = (
    "HITId,Input.prompt_id,Input.image_id,Answer.task-color-0,Answer.task-color-1,Answer.task-count-0,Answer.task-count-1,"
    "Answer.task-objects,Answer.task-position-x,Answer.task-position-y"
)


def test_a_line_that_is_broken_in_two_is_one_answer():
    content = f"{HEADER}\nx,3,1,red,blue,1,1.0,1. cat\n2. dog,left,above\ny,3,1,,,0,,none,,\n"
    first, second = answers(content)
    assert first["Answer.task-objects"] == "1. cat\n2. dog"
    assert (first["Answer.task-position-x"], first["Answer.task-position-y"]) == ("left", "above")
    assert second["HITId"] == "y"


def answer(colours=("", ""), numbers=("1", "1.0"), x="", y="") -> dict[str, str]:
    cells = ["x", "0", "0", *colours, *numbers, "", x, y]
    return dict(zip(HEADER.split(","), cells, strict=True))


CAT, DOG = {"class": "cat", "count": 1}, {"class": "dog", "count": 1}


@pytest.mark.parametrize(
    ("tag", "include", "seen", "right"),
    [
        ("two_object", [CAT, DOG], answer(), True),
        ("two_object", [CAT, DOG], answer(numbers=("3", "1.0")), True),
        ("two_object", [CAT, DOG], answer(numbers=("1", "")), False),
        ("counting", [CAT | {"count": 2}], answer(numbers=("2", "")), True),
        ("counting", [CAT | {"count": 2}], answer(numbers=("3", "")), False),
        ("colors", [CAT | {"color": "red"}], answer(colours=("black|red", "")), True),
        ("colors", [CAT | {"color": "red"}], answer(colours=("black", "")), False),
        (
            "color_attr",
            [CAT | {"color": "red"}, DOG | {"color": "blue"}],
            answer(colours=("red", "red")),
            False,
        ),
        ("position", [CAT, DOG | {"position": ["left of", 0]}], answer(x="left", y="neither_y"), True),
        ("position", [CAT, DOG | {"position": ["left of", 0]}], answer(x="right", y="above"), False),
        ("position", [CAT, DOG | {"position": ["above", 0]}], answer(x="right", y="above"), True),
    ],
)
def test_a_rater_is_held_to_the_rules_of_the_detector(
    tag: str, include: list[dict], seen: dict[str, str], right: bool
):
    assert is_right({"tag": tag, "include": include}, seen) is right


# the detector beside them


PEOPLE = [
    Judged(model, prompt_id, image, 5, (prompt_id + image) % 6)
    for model in ("sdv2", "clip")
    for prompt_id in (0, 90, 200, 300, 400, 500)
    for image in range(4)
]


def test_agreement_and_kappa_are_their_definitions():
    rng = np.random.default_rng(0)
    verdict = rng.integers(0, 2, len(PEOPLE)).astype(float)
    frame = table(PEOPLE, verdict)
    assert (frame[list(geneval_people.CONFUSION)].sum(axis=1) == 1).all()
    cases = frame[list(geneval_people.CONFUSION)].sum().to_numpy(dtype=float)
    people, detector = np.array([p.majority for p in PEOPLE]), verdict == 1
    observed = np.mean(people == detector)
    chance = np.mean(people) * np.mean(detector) + np.mean(~people) * np.mean(~detector)
    assert float(agreement(cases)) == pytest.approx(observed)
    assert float(cohen_kappa(cases)) == pytest.approx((observed - chance) / (1 - chance))
    assert cases.tolist() == [
        sum(people & detector),
        sum(people & ~detector),
        sum(~people & detector),
        sum(~people & ~detector),
    ]
    interval = with_interval(frame, agreement)
    assert interval.low < interval.value < interval.high


def test_a_detector_that_says_what_most_people_say_agrees_wholly():
    frame = table(PEOPLE, [float(p.majority) for p in PEOPLE])
    assert with_interval(frame, agreement) == stats.wilson(6, 6)  # prompts: none of their pictures differs
    kappa = with_interval(frame, cohen_kappa)
    assert kappa.value == 1 and math.isnan(kappa.low) and math.isnan(kappa.high)
    assert math.isnan(float(cohen_kappa(np.array([4.0, 0, 0, 0]))))
    told = markdown(frame, 3, "a friend", "a command")
    assert glance(frame) in told
    assert "48 pictures, 240 answers; 3 judged pictures were not there" in told
    assert told.count("| two_object |") == 3


def test_no_interval_goes_beyond_what_there_can_be():
    """One picture of 48 is read otherwise: Student's tails went beyond 100 %, and beyond a kappa of 1."""
    frame = table(PEOPLE, [float(p.majority) for p in PEOPLE[:-1]] + [float(not PEOPLE[-1].majority)])
    for measure in (agreement, cohen_kappa):
        interval = with_interval(frame, measure)
        assert interval.low < interval.value < interval.high <= 1
    one_prompt = table(PEOPLE[:4], [1.0, 1.0, 1.0, 1.0])
    told = markdown(one_prompt, 0, "a friend", "a command")
    assert "nan" not in told and "[" not in told.split("## Confusion")[0].split("| all |")[1]


def pictures_in(folder: Path, people: list[Judged]) -> None:
    """Their pictures: white where most people found it right."""
    for picture in people:
        (folder / picture.path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "white" if picture.majority else "black").save(folder / picture.path)


class Brightness:
    """A detector that finds white pictures right."""

    source, version = "brightness", "0a1b2c3d"

    def __call__(self, images_BCHW: torch.Tensor, asked: list[Prompt]) -> torch.Tensor:
        assert len(images_BCHW) == len(asked) == 1
        return images_BCHW.mean((1, 2, 3)).round()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures in a folder, what people say of them, and a detector."""
    pictures_in(tmp_path / "images", PEOPLE)
    asked = [Prompt(f"{number:05d}", "x") for number in range(553)]
    monkeypatch.setattr(geneval_people, "judged", lambda: PEOPLE)
    monkeypatch.setattr(geneval_people.prompts, "load", lambda name: asked)
    monkeypatch.setattr("evals.scorers.load", lambda name, device: Brightness())
    return tmp_path


def calibrate(*arguments: str):
    return CliRunner().invoke(main, ["calibrate", "geneval", *arguments])


def test_the_command_writes_what_it_prints(world: Path):
    out = world / "geneval.md"
    given = ("--images", str(world / "images"), "--accept-terms", "a/b", "--out", str(out))
    (world / "images" / PEOPLE[0].path).unlink()
    done = calibrate(*given)
    assert done.exit_code == 0, done.output
    told = out.read_text(encoding="utf-8")
    assert f"calibrate geneval --images {world / 'images'} --accept-terms a/b --out {out}" in told
    assert (
        "47 pictures, 235 answers; 1 judged pictures were not there. Detector: brightness, version 0a1b2c3d"
        in told
    )
    line = next(line for line in told.splitlines() if line.startswith("| all |"))
    assert line in done.output
    assert "| 100.0 [61.0, 100.0] | 1.000 |" in line
    frame = pd.read_csv(out.with_suffix(".csv"))
    assert list(frame) == ["model", "prompt_id", "image", "task", "raters", "right", "detector"]
    assert len(frame) == 47


def test_pictures_are_fetched_as_a_data_set(world: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def snapshot_download(repository: str, **options: object) -> str:
        asked.append((repository, options["repo_type"], options["allow_patterns"]))
        return str(world)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert calibrate("--images", "fetched", "--out", str(world / "x.md")).exit_code == 0
    assert asked == [("djghosh/aigen-images", "dataset", ["images/*"])]


def test_mistakes_are_one_sentence(world: Path, monkeypatch: pytest.MonkeyPatch):
    out = ("--out", str(world / "x.md"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (world / "damaged").mkdir()
    pictures_in(world / "damaged", PEOPLE[:2])
    (world / "damaged" / PEOPLE[0].path).write_bytes(b"GIF89a")
    for given, told in (
        ((), "calibrate geneval needs --images: fetched, or, without a network, a folder"),
        (
            ("--images", str(world)),
            "has none of the 48 judged pictures, such as sdv2/00000/samples/00000.png: say fetched, or",
        ),
        (
            ("--images", "fetched"),
            "the hub cannot be reached, and a part of djghosh/aigen-images is not among earlier downloads; --images takes",
        ),
        (
            ("--images", str(world / "damaged")),
            f"{PEOPLE[0].path} is no picture, or was not copied to its end",
        ),
        (
            ("--images", "fetched", "--photographs", str(world)),
            "--photographs has no meaning for calibrate geneval: leave it out",
        ),
    ):
        done = calibrate(*given, *out)
        assert done.exit_code == 2
        assert told in done.output
        assert done.output.count("\n") == 1
    done = CliRunner().invoke(main, ["calibrate", "skin-tone", "--images", "fetched", *out])
    assert "--images has no meaning for calibrate skin-tone: leave it out" in done.output


def test_a_part_of_the_pictures_is_looked_at(tmp_path: Path):
    pictures_in(tmp_path, PEOPLE[:5])
    assert found_in(tmp_path, PEOPLE) == PEOPLE[:5]


def test_annotations_are_pinned():
    assert all(len(sha256) == 64 for file in FILES.values() for sha256 in file.kept.values())
