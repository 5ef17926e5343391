"""How often the apparent skin tone of a picture is read right: `python -m evals calibrate skin-tone`.

Faces are given each of the ten Monk tones, put in light of several colours and exposures, rounded to 8 bits and read by the scorers
`skin_tone` and `monk_tone`. Two kinds of faces, neither of which any constant of the scorers was chosen on:

- *photographs* from a folder, their skin recoloured. The skin is found by its likeness to the middle of the face, for the
  original colours are known to be ordinary; the scorers never see this mask. Each channel is multiplied in linear light, so that
  shading stays and the median of the skin is the swatch.
- *drawn heads*: a relief of a head with a known albedo, lit from a random side, with hair, eyes, clothes and a highlight, before
  walls of several colours. What is true is exact, what it looks like is plain.

Also read is scikit-image's astronaut, on whose face the scorers' constants were chosen: a check, not evidence.

Recoloured faces are for measuring only. They are kept in memory and never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from evals.files import write_text
from evals.metrics._parity import REGROUPED
from evals.miniature.render import MONK_TONES, TONE_GROUPS
from evals.scorers._skin import (
    FROM_OPPONENT,
    MONK_LAB,
    TO_XYZ,
    Array,
    Face,
    FaceDetector,
    Picture,
    Skin,
    ita,
    linear,
    nearest_tone,
    scaled_down,
    skin_of,
    to_lab,
)
from evals.tables import markdown_table
from evals.weights import sha256_of

SIZE = 512
"""Longest side of the photographs that are read, pixels: what Stable Diffusion draws."""
HEAD_SIZE = 320
KELVINS = (3000, 4000, 5000, 6504, 9000)
STOPS = (-1.0, -0.5, 0.0, 0.5, 1.0)
FEWER_KELVINS = (3000, 5000, 6504, 9000)
FEWER_STOPS = (-1.0, 0.0, 1.0)
"""For the drawn heads, of which there are more."""
HEADS = 4
"""Before each wall."""
WALLS: dict[str, tuple[float, float, float]] = {
    "white": (0.9, 0.9, 0.9),
    "grey": (0.2, 0.2, 0.2),
    "black": (0.01, 0.01, 0.01),
    "yellow": (0.65, 0.5, 0.08),
    "blue": (0.1, 0.2, 0.45),
    "green": (0.1, 0.25, 0.08),
}
"""Albedo of what drawn heads stand before."""
ARCHIVES = {
    "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130": "matplotlib 3.10.0 (sample data; public domain by its pull request 1599)",
    "3c17508bb91554c637a2eabddfae790e5bb1caba93130814fc2ac50be9760c4c": "face_recognition 1.3.0, tests (MIT; no terms of the picture's own)",
    "0930e3aa8cae5920329c0c8cbc6a2ab70f47b0e67b432875beaa95cbf7e741f6": "face_recognition 1.3.0, tests (MIT; no terms of the picture's own)",
    "a7efcc907375274796f39646510704aa86672d59f6d5469d69af3c85590976a6": "face_recognition 1.3.0, tests (MIT; no terms of the picture's own)",
    "76ac6bf97c36dc2da0ad16a537d6a5ac1b10f48d49aac29a0cca9a17cdbc3ca3": "face_recognition 1.3.0, tests (MIT; no terms of the picture's own)",
}
"""SHA-256 of the photographs of the published report to the package archives that they are in."""
PHOTOGRAPH_ENDINGS = (".jpg", ".jpeg", ".png")
SWATCHES = linear(np.array(MONK_TONES) / 255)
GROUPINGS = {"1-4, 5, 6-7, 8-10": np.array(TONE_GROUPS), "1-3, 4-5, 6-7, 8-10": np.array(REGROUPED)}


# light


def planckian(kelvin: float) -> Array:
    """XYZ [3], Y = 1, of a black body from 1667 to 25000 K. Kim et al. 2002 (cubic splines of x and y)."""
    t = 1000 / kelvin
    if kelvin <= 4000:
        x = -0.2661239 * t**3 - 0.2343589 * t**2 + 0.8776956 * t + 0.179910
    else:
        x = -3.0258469 * t**3 + 2.1070379 * t**2 + 0.2226347 * t + 0.240390
    if kelvin <= 2222:
        y = -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683
    elif kelvin <= 4000:
        y = -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867
    else:
        y = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
    return np.array([x / y, 1.0, (1 - x - y) / y])


BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
BALANCED = 6504
"""Kelvin of the light in which a picture is balanced: sRGB's white."""


def von_kries(kelvin: float) -> Array:
    """Matrix [3, 3] on linear sRGB that puts a balanced picture in that light, in Bradford's cone space."""
    ratio = (BRADFORD @ planckian(kelvin)) / (BRADFORD @ planckian(BALANCED))
    adapt = np.linalg.inv(BRADFORD) @ np.diag(ratio) @ BRADFORD
    matrix: Array = np.linalg.inv(TO_XYZ) @ adapt @ TO_XYZ
    return matrix


def in_light(scene: Array, kelvin: float, stops: float) -> Picture:
    """A scene in linear light as an 8-bit picture, lit by a black body of that temperature, brighter by so many apertures."""
    c = np.clip(scene @ von_kries(kelvin).T * 2**stops, 0, 1)
    encoded = np.where(c > 0.0031308, 1.055 * c ** (1 / 2.4) - 0.055, 12.92 * c)
    return np.asarray((encoded * 255).round() / 255, dtype=np.float32)


# photographs


def skin_mask(photograph: Picture, face: Face) -> Array:
    """Share [H, W] of skin in each pixel, 0 to 1, of an ordinary photograph: like the middle of the face in CIELAB, in an ellipse about the head."""
    lab = to_lab(linear(photograph))
    rows, columns = np.mgrid[: photograph.shape[0], : photograph.shape[1]]
    middle, mouth = face.eyes.mean(0), face.mouth.mean(0)
    across = (face.eyes[1] - face.eyes[0]) / face.between_eyes
    x, y = columns - (middle + 0.25 * (mouth - middle))[0], rows - (middle + 0.25 * (mouth - middle))[1]
    width, height = 1.15 * face.between_eyes, 1.75 * float(np.linalg.norm(mouth - middle))
    out = np.hypot((x * across[0] + y * across[1]) / width, (y * across[0] - x * across[1]) / height)
    skin = np.median(lab[out < 0.55], axis=0)
    unlike = np.hypot(
        np.hypot(lab[..., 1] - skin[1], lab[..., 2] - skin[2]) / 14, (lab[..., 0] - skin[0]) / 40
    )
    share = np.exp(-0.5 * (np.maximum(unlike - 0.7, 0) / 0.4) ** 2) * np.clip((1.05 - out) / 0.1, 0, 1)
    sharp = np.clip((share - 0.25) / 0.5, 0, 1)
    return np.asarray(ndimage.gaussian_filter(sharp, max(0.02 * face.between_eyes, 0.6)))


def recoloured(photograph: Picture, mask: Array, tone: int) -> Array:
    """Scene [H, W, 3] in linear light whose skin has the tone's swatch as its median; shading stays."""
    scene = linear(photograph)
    factor: Array = SWATCHES[tone] / np.median(scene[mask > 0.99], axis=0)
    return np.asarray(scene * (1 + mask[..., None] * (factor - 1)))


# drawn heads


def drawn_head(tone: int, wall: str, seed: int) -> Array:
    """Scene [320, 320, 3] in linear light: a person of that tone before a wall, the median of the skin's light the swatch's.

    Proportions, side of the light, hair, eyes and clothes hang on the seed alone, so that a head differs from itself in its tone only.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEAD_SIZE, :HEAD_SIZE] / HEAD_SIZE
    half = rng.uniform(0.17, 0.24)
    x = (columns - rng.normal(0.5, 0.03)) / half  # half a face is 1 wide
    y = (rows - rng.normal(0.42, 0.02)) / half
    tall = rng.normal(1.32, 0.05)
    light = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.7, -0.1), 1.0])
    shade, shine = _shading(
        x, y, tall, light / np.linalg.norm(light), rng.uniform(0.3, 0.6), 1 / HEAD_SIZE / half
    )
    hair = np.array(HAIR[rng.integers(len(HAIR))])
    clothes = linear(rng.uniform(0.05, 0.95, 3))
    albedo, bare = _face(x, y, SWATCHES[tone], hair, np.array(IRISES[rng.integers(len(IRISES))]))

    scene = (
        np.broadcast_to(np.array(WALLS[wall]), (*x.shape, 3))
        * (1 + 0.15 * np.sin(2 * columns + rows))[..., None]
    )
    scene[np.hypot(x / 1.12, (y + 0.12) / tall) < 1.02] = hair
    scene[(np.abs(x) < 0.5) & (y > 0.8) & (y < 1.8)] = 0.6 * SWATCHES[tone]
    body = (y > 1.55 + 0.2 * x**2) & (np.abs(x) < 2.1 + 0.15 * y)
    scene[body] = clothes * (0.8 + 0.2 * np.cos(2 * x[body]))[:, None]
    head = np.hypot(x, y / tall) < 1
    scene[head] = (albedo * (shade / np.median(shade[head & bare]))[..., None] + shine[..., None])[head]
    return np.asarray(ndimage.gaussian_filter(scene, (0.7, 0.7, 0)))


HAIR = ((0.02, 0.015, 0.012), (0.06, 0.035, 0.02), (0.2, 0.12, 0.06), (0.35, 0.25, 0.12), (0.25, 0.25, 0.26))
IRISES = ((0.03, 0.015, 0.008), (0.06, 0.09, 0.12), (0.07, 0.06, 0.03))
"""Albedo, linear light."""


def _shading(
    x: Array, y: Array, tall: float, light: Array, ambient: float, step: float
) -> tuple[Array, Array]:
    """Lambert's shading of a head's relief, and the light that its skin mirrors, the same for every tone."""

    def bump(x0: float, y0: float, width: float, height: float) -> Array:
        return np.exp(-0.5 * (((np.abs(x) - x0) / width) ** 2 + ((y - y0) / height) ** 2))

    relief = np.sqrt(np.clip(1 - x**2 - (y / tall) ** 2, 1e-3, None))
    relief += 0.22 * bump(0, 0.18, 0.13, 0.22) + 0.12 * bump(0, 0.35, 0.2, 0.09)  # nose
    relief += 0.05 * bump(0, -0.33, 0.5, 0.1) - 0.13 * bump(0.4, -0.12, 0.2, 0.12)  # brows, sockets
    relief += 0.07 * bump(0, 0.68, 0.28, 0.1) - 0.05 * bump(0, 0.52, 0.3, 0.05)  # mouth
    relief += 0.06 * bump(0, 1.05, 0.3, 0.15) + 0.05 * bump(0.5, 0.25, 0.25, 0.25)  # chin, cheeks
    down, right = np.gradient(relief, step)
    normal = np.stack([-right, -down, np.ones_like(relief)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    halfway = light + np.array([0, 0, 1])
    mirrored = 0.03 * np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, None) ** 25
    return ambient + (1 - ambient) * np.clip(normal @ light, 0, None), mirrored


def _face(x: Array, y: Array, skin: Array, hair: Array, iris: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Albedo [H, W, 3] of a face, and where it is bare skin."""
    albedo = np.broadcast_to(skin, (*x.shape, 3))
    bare = np.ones(x.shape, dtype=bool)

    def spot(x0: float, y0: float, width: float, height: float) -> Array:
        """Both of a pair, or the one in the middle."""
        return np.clip(3 * (1 - np.hypot((np.abs(x) - x0) / width, (y - y0) / height)) + 0.5, 0, 1)

    white = spot(0.4, -0.11, 0.17, 0.07)
    arch = y + 0.1 * ((np.abs(x) - 0.4) / 0.24) ** 2
    paint: tuple[tuple[Array, Any], ...] = (
        (spot(0, 0.62, 0.3, 0.1), skin * (0.75, 0.5, 0.52)),  # lips
        (spot(0, 0.62, 0.28, 0.018), skin * 0.25),
        (spot(0.1, 0.36, 0.05, 0.03), skin * 0.3),  # nostrils
        (spot(0.4, -0.12, 0.2, 0.1), skin * 0.45),  # lids
        (white, (0.55, 0.5, 0.48)),
        (white * spot(0.4, -0.12, 0.075, 0.075), iris),
        (white * spot(0.4, -0.12, 0.035, 0.035), (0.005, 0.005, 0.005)),
        (
            np.clip(3 * (1 - np.hypot((np.abs(x) - 0.42) / 0.24, (arch + 0.36) / 0.045)) + 0.5, 0, 1),
            hair * 1.2,
        ),
        (np.clip((-0.75 - y) / 0.06 + 0.5, 0, 1), hair),  # hairline
    )
    for share, colour in paint:
        albedo = albedo * (1 - share[..., None]) + np.asarray(colour) * share[..., None]
        bare &= share < 0.1
    return albedo, bare


# reading


METHODS: dict[str, Callable[[Skin], int]] = {
    "as it is, nearest by ITA": lambda skin: nearest_tone(float(ita(skin.lab(np.zeros(3))))),
    "as it is, nearest in CIELAB": lambda skin: nearest_in_lab(skin.lab(np.zeros(3))),
    "light by shades of grey alone, nearest by ITA": lambda skin: nearest_tone(
        float(ita(skin.lab(FROM_OPPONENT @ np.nan_to_num(skin.deviation))))
    ),
    "light by surroundings and skin, nearest in CIELAB": lambda skin: nearest_in_lab(skin.lab(skin.light())),
    "light by surroundings and skin, nearest by ITA (the scorers)": Skin.tone,
}
"""The scorers' way of reading a tone, last, and what it is made of or might have been."""
SCORERS = list(METHODS)[-1]
UNKNOWN = -1
"""Instead of a tone where there is no usable face."""


def nearest_in_lab(lab: Array) -> int:
    """The Monk tone, 0 to 9, whose swatch is nearest in CIELAB."""
    return int(np.linalg.norm(MONK_LAB - lab, axis=1).argmin())


@dataclass(frozen=True)
class Subject:
    """A face that can be had in every tone."""

    name: str
    kind: str
    """Faces of one kind are tabulated together."""
    where: str
    """The wall, or the photograph."""
    in_tone: Callable[[int], Array]
    """The scene [H, W, 3] in linear light and balanced, of a tone 0 to 9."""


def read(subjects: Iterable[Subject], kelvins: Sequence[int], stops: Sequence[float]) -> pd.DataFrame:
    """Every subject in every tone and light, read by every method.

    Returns:
        A row for each: subject, kind, where, tone, kelvin, stops, and the tone read, or `UNKNOWN`, in a column for each of `METHODS`.
    """
    faces = FaceDetector()
    rows = []
    for subject in subjects:
        for tone in range(len(MONK_TONES)):
            scene = subject.in_tone(tone)
            for kelvin, stop in product(kelvins, stops):
                skin = skin_of(in_light(scene, kelvin, stop), faces)
                found = {name: UNKNOWN if skin is None else method(skin) for name, method in METHODS.items()}
                rows.append(
                    {
                        **{"subject": subject.name, "kind": subject.kind, "where": subject.where},
                        **{"tone": tone, "kelvin": kelvin, "stops": stop},
                        **found,
                    }
                )
    return pd.DataFrame(rows)


def photographs_in(folder: Path) -> dict[str, Picture]:
    """The photographs of a folder by name, in their order, scaled to `SIZE`.

    Raises:
        ValueError: a folder that is not there or has none, or a file that is no picture.
    """
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in PHOTOGRAPH_ENDINGS]
    if not files:
        raise ValueError(
            f"--photographs {folder}: no folder with pictures in it ({', '.join(PHOTOGRAPH_ENDINGS)})"
        )
    found = {}
    for path in files:
        try:
            with Image.open(path) as image:
                found[path.name] = _scaled(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"--photographs: {path} is no picture, or not a whole one of usual size"
            ) from error
    return found


def _scaled(image: Image.Image) -> Picture:
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(np.asarray(image) / 255, dtype=np.float32)


def of_photograph(name: str, kind: str, photograph: Picture) -> Subject:
    """A photograph's largest face, to be recoloured.

    Raises:
        ValueError: where there is none.
    """
    small, scale = scaled_down(photograph)
    face = FaceDetector().largest(small)
    if face is None:
        raise ValueError(f"--photographs: no face was found in {name}")
    mask = skin_mask(
        photograph, Face(*(part / scale for part in (face.box, face.eyes, face.nose, face.mouth)))
    )
    return Subject(name, kind, name, partial(recoloured, photograph, mask))


def of_heads() -> Iterator[Subject]:
    """The drawn heads, `HEADS` before each wall."""
    for number, (wall, seed) in enumerate(product(WALLS, range(HEADS))):
        yield Subject(f"head {number}", "drawn heads", wall, partial(drawn_head, wall=wall, seed=seed))


# the report


def calibrate(photographs: dict[str, Picture]) -> pd.DataFrame:
    """What is read of all subjects: photographs by name, the astronaut and the drawn heads."""
    from skimage import data

    picture = _scaled(Image.fromarray(data.astronaut()))  # type: ignore[no-untyped-call]
    subjects = [of_photograph(name, "photographs", photograph) for name, photograph in photographs.items()]
    subjects.append(of_photograph("astronaut.png", "astronaut", picture))
    return pd.concat([read(subjects, KELVINS, STOPS), read(of_heads(), FEWER_KELVINS, FEWER_STOPS)])


def write(folder: Path | None, out: Path, command: str) -> None:
    """Measure, and write the tables (.md) and the counts beside them (.csv).

    Args:
        folder: of photographs, or None.
        out: file ending in .md.
        command: as typed, for the header.
    """
    photographs = {} if folder is None else photographs_in(folder)
    frame = calibrate(photographs)
    files = [] if folder is None else [folder / name for name in photographs]
    write_text(markdown(frame, files, command), out)
    counts = (
        frame.groupby(["kind", "where", "tone", "kelvin", "stops", SCORERS]).size().reset_index(name="images")
    )
    write_text(counts.rename(columns={SCORERS: "read"}).to_csv(index=False), out.with_suffix(".csv"))


def markdown(frame: pd.DataFrame, photographs: Sequence[Path], command: str) -> str:
    """The report on what `read` returned."""
    kinds = list(dict.fromkeys(frame["kind"]))
    parts = [
        "# Apparent skin tone: how often it is read right",
        f"Made by `{command}`. {ABOUT}",
        "## Faces",
        "\n".join(_whence(path) for path in photographs),
        f"- scikit-image's astronaut\n- {HEADS} drawn heads before each of {len(WALLS)} walls: {', '.join(WALLS)}",
        "## Groups right, %",
        f"Over every tone and light. Groups of tones: {' and, in brackets, '.join(GROUPINGS)}.",
        markdown_table([["method", *kinds], *(_of_method(frame, name, kinds) for name in METHODS)]),
        _of_scorers("No usable face was found in", frame, kinds, lambda part: part[SCORERS] == UNKNOWN),
        _of_scorers(
            "The scorers read more than one group (of the first grouping) off in", frame, kinds, _far_off
        ),
    ]
    for kind in kinds:
        part = frame[frame["kind"] == kind]
        parts += [f"## {kind.capitalize()}, light by light", LIGHT_BY_LIGHT, _by_light(part)]
        parts += [f"## {kind.capitalize()}, one by one", _by_subject(part)]
        for name, some in (("in balanced light", part[balanced(part)]), ("in every light", part)):
            parts += [f"## {kind.capitalize()}, confusion {name}", _tone_confusion(some)]
            parts += [_group_confusion(some, groups) for groups in GROUPINGS]
    return "\n\n".join(parts) + "\n"


ABOUT = """Faces are given each of the ten Monk tones and put in light from 3000 to 9000 K, one aperture too dark to one too bright, in 8 bits;
`evals/skin.py` says how, `evals/scorers/_skin.py` how they are read. The photographs and the drawn heads had no part in choosing a constant of the scorers; the
astronaut's face had. A tone is the *apparent* one of a generated picture. It is nobody's
identity, and real people are not to be sorted by it. Recoloured faces keep the shading, but not the highlights and the redness of other skin, so that
these rates are for light alone, and an upper bound for real skin."""
LIGHT_BY_LIGHT = """Colour of the light in kelvin (6504: balanced), exposure in apertures, groups right in both groupings, and right groups (of the first) by tone, %."""


def _whence(path: Path) -> str:
    digest = sha256_of(path)
    return f"- `{path.name}` from {ARCHIVES.get(digest, 'a folder')}, sha256 `{digest}`"


def _right(frame: pd.DataFrame, method: str, groups: NDArray[np.int64]) -> pd.Series:
    """Whether the group read is the true one; unknown is not."""
    right: pd.Series = (frame[method] != UNKNOWN) & (groups[frame[method]] == groups[frame["tone"]])
    return right


def _far_off(frame: pd.DataFrame) -> pd.Series:
    """Whether the group read is not even a neighbour of the true one."""
    groups = next(iter(GROUPINGS.values()))
    far: pd.Series = (frame[SCORERS] != UNKNOWN) & (
        np.abs(groups[frame[SCORERS]] - groups[frame["tone"]]) > 1
    )
    return far


def _of_scorers(
    what: str, frame: pd.DataFrame, kinds: Sequence[str], is_so: Callable[[pd.DataFrame], pd.Series]
) -> str:
    shares = (f"{100 * is_so(frame[frame['kind'] == kind]).mean():.1f} % of {kind}" for kind in kinds)
    return f"{what} {', '.join(shares)}."


def _percent(hits: pd.Series) -> str:
    return f"{100 * hits.mean():.0f}"


def _of_method(frame: pd.DataFrame, method: str, kinds: Sequence[str]) -> list[str]:
    cells = []
    for kind in kinds:
        first, second = (
            _percent(_right(frame[frame["kind"] == kind], method, g)) for g in GROUPINGS.values()
        )
        cells.append(f"{first} ({second})")
    return [method, *cells]


def balanced(frame: pd.DataFrame) -> pd.Series:
    """Which lines of a calibration are of the light that leaves colours as they are."""
    return (frame["kelvin"] == BALANCED) & (frame["stops"] == 0)


def _by_light(frame: pd.DataFrame) -> str:
    lines = []
    for (kelvin, stops), some in frame.groupby(["kelvin", "stops"]):
        both = [_percent(_right(some, SCORERS, groups)) for groups in GROUPINGS.values()]
        first = _right(some, SCORERS, next(iter(GROUPINGS.values())))
        lines.append(
            [
                f"{kelvin}",
                f"{stops:+.1f}",
                *both,
                *(_percent(first[some["tone"] == tone]) for tone in range(10)),
            ]
        )
    return markdown_table([["kelvin", "stops", *GROUPINGS, *TONE_NAMES], *lines])


def _by_subject(frame: pd.DataFrame) -> str:
    lines = []
    for where, some in frame.groupby("where", sort=False):
        in_balance = some[balanced(some)]
        lines.append(
            [f"{where}"]
            + [
                _percent(_right(part, SCORERS, groups))
                for part in (in_balance, some)
                for groups in GROUPINGS.values()
            ]
        )
    header = [f"{name}, {groups}" for name in ("balanced", "every light") for groups in GROUPINGS]
    return markdown_table([["face or wall", *header], *lines])


def _tone_confusion(frame: pd.DataFrame) -> str:
    counts = _counts(frame["tone"], frame[SCORERS], 10)
    return _confusion(TONE_NAMES, counts)


def _group_confusion(frame: pd.DataFrame, grouping: str) -> str:
    groups = GROUPINGS[grouping]
    found = frame[SCORERS]
    read_group = pd.Series(np.where(found == UNKNOWN, UNKNOWN, groups[found]), index=frame.index)
    names = grouping.split(", ")
    counts = _counts(pd.Series(groups[frame["tone"]], index=frame.index), read_group, len(names))
    return _confusion(names, counts)


def _confusion(names: Sequence[str], counts: Sequence[Sequence[str]]) -> str:
    lines = [[name, *row] for name, row in zip(names, counts, strict=True)]
    return markdown_table([["shown \\ read", *names, "unknown"], *lines])


def _counts(shown: pd.Series, found: pd.Series, classes: int) -> list[list[str]]:
    table = pd.crosstab(shown, found).reindex(
        index=range(classes), columns=[*range(classes), UNKNOWN], fill_value=0
    )
    return [[str(count) if count else "" for count in row] for row in table.to_numpy()]


TONE_NAMES = [f"{tone + 1}" for tone in range(10)]
