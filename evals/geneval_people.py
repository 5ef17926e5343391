"""What people saw in the 1,200 pictures that were judged for GenEval, and how often our detector says the same: `python -m evals calibrate geneval`.

Three models (Stable Diffusion 2.1, IF-XL, and pictures found by CLIP), 100 prompts of each, four pictures of a prompt, five raters of a picture
(Ghosh et al., arXiv 2310.11513). The raters counted objects and named colours and places; whether a picture is right follows from that, by the same rules
as for the detector. The annotations are files of GenEval's repository, fetched as prompts are (`prompts.fetched`); the pictures are a data set
on the hub, whose page states no licence: they are looked at and never kept here.

A detector that agrees with the majority as often as one rater does with the majority of the others is as good as these labels can tell.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import prompts
from evals import stats
from evals.files import write_text
from evals.metrics._geneval import TASKS, task_of
from evals.stats import Array, Interval
from evals.tables import markdown_table
from prompts.fetched import File, github
from prompts.sets.geneval import COMMIT

if TYPE_CHECKING:
    import torch

    from evals.scorers import Scorer

MODELS: Mapping[str, str] = {
    "sdv2": "Stable Diffusion 2.1",
    "if-xl": "IF-XL",
    "clip": "found by CLIP",
}
SHA256 = {
    "sdv2": "973f029073f9b7f2ee7b3bbbff6a473db92486af94beebae1eb2bd2d01a5a6a7",
    "if-xl": "107cfe75e232374609c28278e734dfa0c88daed3fc5cea21d34631075a0f7a32",
    "clip": "84c5f364945543d15f5407ca1c2542cfaa571550dbf4922eff1399e7f91b7ce1",
}
FILES: Mapping[str, File] = {
    model: github(
        "djghosh13/geneval",
        COMMIT,
        f"annotations/annotations_{model}.csv",
        {f"geneval/human-annotations/annotations_{model}.csv": sha256},
    )
    for model, sha256 in SHA256.items()
}
PICTURES = "djghosh/aigen-images"
"""Data set on the hub with the pictures, as images/<model>/<prompt>/samples/<picture>.png."""
FETCHED = "fetched"
"""In place of a folder of pictures."""
HOW_TO_GET_PICTURES = f"{FETCHED}, or, without a network, a folder that is a copy of `images` in the data set {PICTURES} on the hub"


@dataclass(frozen=True)
class Judged:
    """A picture and how many of its raters found it right."""

    model: str
    prompt_id: int
    image: int
    raters: int
    right: int

    @property
    def path(self) -> Path:
        """In a folder that is laid out as the data set's."""
        return Path(self.model, f"{self.prompt_id:05d}", "samples", f"{self.image:05d}.png")

    @property
    def majority(self) -> bool:
        """Whether more than half of the raters found it right."""
        return 2 * self.right > self.raters


# what people said


def is_right(wanted: Mapping[str, Any], answer: Mapping[str, str]) -> bool:
    """Whether a picture is right by what one rater saw in it.

    Every object of the prompt must be there as often as is asked for (for "counting" no more often), the colour that it shall have must be
    among those that were ticked for it, and the second object must have the relation to the first.

    Args:
        wanted: a prompt's `expect`, as `evals.geneval.check` demands it.
        answer: a line of an annotation file; objects are numbered as in `include`.
    """
    for number, item in enumerate(wanted["include"]):
        count = int(float(answer[f"Answer.task-count-{number}"] or 0))
        enough = count == item["count"] if wanted["tag"] == "counting" else count >= item["count"]
        colours = answer[f"Answer.task-color-{number}"].split("|")
        if not enough or ("color" in item and item["color"] not in colours):
            return False
        if "position" in item and item["position"][0] not in _places(answer):
            return False
    return True


def _places(answer: Mapping[str, str]) -> set[str]:
    """Where the second object is, as seen from the first, in GenEval's words."""
    said = {answer["Answer.task-position-x"], answer["Answer.task-position-y"]}
    return {{"left": "left of", "right": "right of"}.get(place, place) for place in said}


def judged(models: Iterable[str] = MODELS) -> list[Judged]:
    """Every picture with its raters' votes, in the order of the files.

    Raises:
        ValueError: a file that cannot be had, see `prompts.fetched`.
    """
    wanted = {int(prompt.id): prompt.expect for prompt in prompts.load("geneval")}
    votes: dict[tuple[str, int, int], list[bool]] = {}
    for model in models:
        for answer in answers(FILES[model].path().read_text(encoding="utf-8")):
            prompt_id, image = int(answer["Input.prompt_id"]), int(answer["Input.image_id"])
            votes.setdefault((model, prompt_id, image), []).append(is_right(wanted[prompt_id], answer))
    return [Judged(*key, raters=len(given), right=sum(given)) for key, given in votes.items()]


def answers(content: str) -> Iterator[dict[str, str]]:
    """The lines of an annotation file by column.

    In four of them an answer's line break is not in quotes, so that the rest of the line stands on the next one.
    """
    header, *lines = csv.reader(io.StringIO(content, newline=""))
    begun: list[str] = []
    for line in lines:
        begun = [*begun[:-1], f"{begun[-1]}\n{line[0]}", *line[1:]] if begun else line
        if len(begun) >= len(header):
            yield dict(zip(header, begun, strict=True))
            begun = []


# how far people agree


def pair_agreement(right: Array, raters: Array) -> float:
    """Share of pairs of raters of one picture that agree."""
    same = right * (right - 1) + (raters - right) * (raters - right - 1)
    return float(same.sum() / (raters * (raters - 1)).sum())


def fleiss_kappa(right: Array, raters: Array) -> float:
    """Agreement of many raters on right and wrong, above what chance gives (Fleiss 1971), with as many raters of each picture."""
    return stats.fleiss_kappa(np.stack([right, raters - right], axis=-1))


def unanimous(right: Array, raters: Array) -> float:
    """Share of pictures on which all raters agree."""
    return float(np.mean((right == 0) | (right == raters)))


def one_against_the_others(right: Array, raters: Array) -> float:
    """How often a rater agrees with the majority of the picture's other raters, where these have one."""
    agree = total = 0.0
    for vote, how_many in ((1, right), (0, raters - right)):
        others_right, others = right - vote, raters - 1
        has_majority = 2 * others_right != others
        same = (2 * others_right > others) == (vote == 1)
        agree += float((how_many * (same & has_majority)).sum())
        total += float((how_many * has_majority).sum())
    return agree / total


# how often the detector says the same


def found_in(folder: Path, pictures: Sequence[Judged]) -> list[Judged]:
    """Those of the pictures that lie in a folder.

    Raises:
        ValueError: none does.
    """
    there = [picture for picture in pictures if (folder / picture.path).is_file()]
    if not there:
        raise ValueError(
            f"--images {folder} has none of the {len(pictures)} judged pictures, such as {pictures[0].path}: say "
            f"{HOW_TO_GET_PICTURES}"
        )
    return there


def fetched() -> Path:
    """The folder of all judged pictures, among the hub's downloads; what is not there yet is fetched.

    Raises:
        ValueError: they cannot be had; says what to do without a network.
    """
    from evals.hub import hub_folder

    try:
        return hub_folder(PICTURES, ["images/*"], kind="dataset") / "images"
    except ValueError as error:
        raise ValueError(f"{error}; --images takes {HOW_TO_GET_PICTURES}") from error


def verdicts(scorer: Scorer, folder: Path, pictures: Sequence[Judged]) -> list[float]:
    """What the scorer `geneval` says of each picture: 1 right, 0 wrong; one at a time, for they have many sizes."""
    from tqdm import tqdm

    asked = {int(prompt.id): prompt for prompt in prompts.load("geneval")}
    return [
        float(scorer(_read(folder / picture.path)[None], [asked[picture.prompt_id]])[0])
        for picture in tqdm(pictures, desc="looking at pictures", disable=None)
    ]


def _read(path: Path) -> torch.Tensor:
    """A picture as float32 [3, H, W] in [0, 1].

    Raises:
        ValueError: it is none.
    """
    import torch
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"--images: {path} is no picture, or was not copied to its end") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


CONFUSION = ("both right", "people right only", "detector right only", "both wrong")


def table(pictures: Sequence[Judged], verdict: Sequence[float]) -> pd.DataFrame:
    """A row for each picture: model, prompt_id, image, task, raters, right, detector, and a column of 0 and 1 for each of `CONFUSION`."""
    frame = pd.DataFrame(
        {
            "model": [p.model for p in pictures],
            "prompt_id": [p.prompt_id for p in pictures],
            "image": [p.image for p in pictures],
            "task": [task_of("geneval", f"{p.prompt_id:05d}") for p in pictures],
            "raters": [p.raters for p in pictures],
            "right": [p.right for p in pictures],
            "detector": np.asarray(verdict, dtype=np.int64),
        }
    )
    people, detector = 2 * frame["right"] > frame["raters"], frame["detector"] == 1
    cases = (people & detector, people & ~detector, ~people & detector, ~people & ~detector)
    return frame.assign(**{name: case.astype(np.int64) for name, case in zip(CONFUSION, cases, strict=True)})


def agreement(cases: Array) -> Array:
    """Share of pictures on which people's majority and the detector agree, of counts or shares [..., 4] in the order of `CONFUSION`."""
    share: Array = (cases[..., 0] + cases[..., 3]) / cases.sum(axis=-1)
    return share


def cohen_kappa(cases: Array) -> Array:
    """The same above what chance gives (`evals.stats.cohen_kappa`); NaN where both always say one and the same."""
    return stats.cohen_kappa(cases.reshape(*cases.shape[:-1], 2, 2))


def with_interval(frame: pd.DataFrame, measure: Any) -> Interval:
    """`agreement` or `cohen_kappa` of some pictures, with the 95 % interval of resampled prompts: pictures of a prompt are no independent observations.

    Agreement is a share, and has a share's interval. A kappa of 1 has no ends: no resample can vary, and that is not certainty.
    """
    cases_PS = frame.groupby("prompt_id")[list(CONFUSION)].sum().to_numpy(dtype=np.float64)
    weight_NP = stats.weights(len(cases_PS), stats.RESAMPLES, 0, "calibrate geneval")
    once = np.ones((stats.RESAMPLES, 1))  # there is nothing above the prompts
    found = stats.resampled(cases_PS[None], measure, once, stats.Sample(weight_NP, None))
    if measure is agreement:
        return stats.interval(found, share=True)
    kappa, low, high = stats.interval(found)
    if kappa > 1 - 1e-12:
        return Interval(1.0, np.nan, np.nan)
    return Interval(kappa, max(low, -1.0), min(high, 1.0))  # Student's tails know of no bound


# the report


def markdown(frame: pd.DataFrame, missing: int, detector: str, command: str) -> str:
    """The report on what `table` gave.

    Args:
        frame: of the pictures that were looked at.
        missing: judged pictures that were not there.
        detector: what gave the verdicts, with its version.
        command: as typed.
    """
    parts = [
        "# GenEval's detector against people",
        f"Made by `{command}`. {len(frame)} pictures, {frame['raters'].sum()} answers; {missing} judged pictures were not there. Detector: {detector}.",
        ABOUT,
        glance(frame),
        "## Confusion",
        markdown_table(
            [
                ["task", *CONFUSION],
                *([name, *(f"{part[case].sum()}" for case in CONFUSION)] for name, part in _parts(frame)),
            ]
        ),
        "## People among themselves",
        markdown_table(
            [
                ["task", "one against the others, %", "pairs, %", "all alike, %", "Fleiss kappa"],
                *([name, *_of_people(part)] for name, part in _parts(frame)),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


ABOUT = """A picture is right for people where more than half of its raters saw what the prompt asks for. Agreement and kappa (Cohen's) are the detector's with that majority, with 95 %
intervals over prompts; beside them how often one rater agrees with the majority of the others, which is as much as these labels can tell. The models that drew the
pictures are older than those that are scored today."""


def glance(frame: pd.DataFrame) -> str:
    """Agreement and kappa of each task and each model, beside the human ceiling."""
    header = [
        "task",
        "pictures",
        "right: people, %",
        "right: detector, %",
        "agreement, %",
        "kappa",
        "one rater against the others, %",
    ]
    return markdown_table([header, *([name, *_of_detector(part)] for name, part in _parts(frame))])


def _parts(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "all", frame
    for column, names in (("task", dict(zip(TASKS, TASKS, strict=True))), ("model", MODELS)):
        for key, name in names.items():
            if (frame[column] == key).any():
                yield name, frame[frame[column] == key]


def _of_detector(part: pd.DataFrame) -> list[str]:
    people = (part["both right"] + part["people right only"]).mean()
    right, raters = _votes(part)
    return [
        f"{len(part)}",
        f"{100 * people:.1f}",
        f"{100 * part['detector'].mean():.1f}",
        _cell(with_interval(part, agreement), 100, 1),
        _cell(with_interval(part, cohen_kappa), 1, 3),
        f"{100 * one_against_the_others(right, raters):.1f}",
    ]


def _of_people(part: pd.DataFrame) -> list[str]:
    right, raters = _votes(part)
    shares = (one_against_the_others, pair_agreement, unanimous)
    return [
        *(f"{100 * share(right, raters):.1f}" for share in shares),
        _number(fleiss_kappa(right, raters), 3),
    ]


def _votes(part: pd.DataFrame) -> tuple[Array, Array]:
    return part["right"].to_numpy(dtype=np.float64), part["raters"].to_numpy(dtype=np.float64)


def _cell(interval: Interval, scale: float, digits: int) -> str:
    value, low, high = (_number(scale * end, digits) for end in interval)
    return value if np.isnan(interval.low) else f"{value} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def write(images: str, out: Path, command: str) -> str:
    """Look at the judged pictures, write the report (.md) and what was said of each (.csv), and return the report's first table.

    Args:
        images: a folder that is laid out as the data set's `images`, or `FETCHED`.
        out: file ending in .md.
        command: as typed, for the header.

    Raises:
        ValueError: pictures, annotations or weights that cannot be had or used.
    """
    from evals import scorers
    from evals.arithmetic import exact_device

    scorer = scorers.load(
        "geneval", exact_device()
    )  # first: it refuses what is not to be used before anything is fetched
    pictures = judged()
    folder = fetched() if images == FETCHED else Path(images)
    there = found_in(folder, pictures)
    frame = table(there, verdicts(scorer, folder, there))
    detector = f"{scorer.source}, version {scorer.version}"
    write_text(markdown(frame, len(pictures) - len(there), detector, command), out)
    write_text(frame.drop(columns=list(CONFUSION)).to_csv(index=False), out.with_suffix(".csv"))
    return glance(frame)
