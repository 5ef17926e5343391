"""Apparent skin tone of a portrait: what `skin_tone` and `monk_tone` share.

**What this is, and is not.** It reads the tone that a *generated picture* shows, as a colour, so that the parity of a set of pictures can be
counted. It says nothing of a person: a tone is no identity, ethnicity or ancestry, and light, make-up and a camera change it. It is
not for photographs of real people, beyond the calibration. Methods that read colours err; how often, on which tones and in
which light, `python -m evals calibrate skin-tone` measures and results/skin-tone.md holds. Shares of groups are to be read with that confusion.

**How a tone is read**

1. *Face*: YuNet (Wu, Peng and Yu 2023, "YuNet: a tiny millisecond-level face detector") through OpenCV, on the picture scaled down to 320
   pixels. Of several faces the largest counts. Usable is a face with a score of at least `MIN_SCORE`, at least `MIN_EYES` pixels between the eyes
   at that scale (its width is then about a sixteenth of the picture's longer side), turned so little that the nose lies between the eyes,
   and with both eyes and three of its four areas of skin in the picture. Blur is judged by the detector's score alone, as it does not change a
   colour. All else is NaN, in no group, and so is a picture without colour.
2. *Skin*: both cheeks, forehead and bridge of the nose, placed by the five landmarks. No pixel is taken or left for its colour, since
   gates on colour do not see very light and very dark skin. The skin's colour is the median over the areas of each one's median, in CIELAB:
   a fringe, a beard, glasses or a highlight on one of them does not count.
3. *Light*: its level and colour (`light_on`), from what surrounds the head (shades of grey, Finlayson and Trezzi 2004) and from the skin,
   which has to be near some swatch, whichever it is. This is undone.
4. *Tone*: the one of the ten Monk swatches whose individual typology angle (ITA) is nearest.

**Why ITA and not the distance in CIELAB.** On recoloured faces the two are right about equally often once the light is undone. They differ on
real skin, which is redder than the swatches: ITA leaves the red-green axis out, because redness is blood and not pigment. By distance, a colour
that cameras give to light skin, sRGB (200, 150, 130), is nearest to the sixth tone of ten, by ITA to the fifth. The price is a picture without
colour, in which the angle means nothing.

**What one picture cannot tell.** A light face in the dark and a dark one in bright light are the same pixels if nothing else is in the picture,
and a plain yellow wall is a lamp. A face against the light is read as it appears. The whites of the eyes would be a reference in
the same light, but in three of six photographs they were hidden or tinted, and a bound from them was no help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals.miniature import render
from evals.miniature.render import MONK_TONES
from evals.scorers import Scope, _preprocess
from evals.scorers._asked import refuse_none
from evals.scorers._preprocess import to_8bit
from evals.weights import Weights
from prompts import Prompt

Array = NDArray[np.float64]
Picture = NDArray[np.float32]
"""[H, W, 3], sRGB in [0, 1]."""

YUNET = Weights(
    repository="opencv/face_detection_yunet",
    files=("face_detection_yunet_2023mar_int8bq.onnx",),
    licence="MIT",
    free=True,
    sha256=("49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",),
)

DETECTION_SIZE = 320
"""Longest side in pixels at which a face is looked for: YuNet was trained on faces of 10 to 300 pixels, and this finds those that fill a picture as well."""
MIN_SCORE = 0.7
"""Of the detector. Photographs recoloured to the darkest tone reach .85 an aperture too dark; what is no face stayed below .65."""
MIN_EYES = 8.0
"""Pixels between the eyes at that scale."""
MIN_AREAS = 3
"""Areas of skin that must lie in the picture, of four."""
MIN_SURROUNDINGS = 0.05
"""Share of the picture beside the head from which it is asked for the light."""
MIN_CHROMA = 3.5
"""CIELAB chroma that one pixel in a hundred must reach; the least colourful swatch, the tenth, has 3.8."""

TO_OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [1, 0, -1], [-1 / 2, 1, -1 / 2]])
"""Log channels (R, G, B) to level, orange against blue, and green against magenta."""
FROM_OPPONENT = np.linalg.inv(TO_OPPONENT)
USUAL = np.array([-1.2, 0.4, -0.1])
"""What ordinary photographs have of these, log2 of the Minkowski mean: scikit-image's astronaut, coffee, chelsea, rocket and motorcycle on average."""
OVEREXPOSED = 0.6
"""By how much their mean grows with an aperture too bright, log2, as the brightest is cut off."""
SCENE_SD = np.array([0.5, 0.5, 0.1])
"""How far what is shown is from `USUAL`: scale of Student's t with `SCENE_FREEDOM`, whose tails leave room for a plain wall."""
SCENE_FREEDOM = 3
SKIN_SD = np.array([10.0, 5.0])
"""How far L* and b* of skin are from those of the swatch that it is.

These three were chosen on the astronaut's face, before those photographs and plain walls, in light from 3000 to 9000 K.
"""
LIGHTS = np.stack(
    np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-0.6, 2.7, 12), np.linspace(-0.5, 0.5, 5), indexing="ij"),
    axis=-1,
).reshape(-1, 3)
"""Every light that is considered, in opponent coordinates, log2: an aperture either way, 9000 to 3000 K."""


def linear(srgb: NDArray[np.floating[Any]]) -> Array:
    """SRGB in [0, 1] to linear light. IEC 61966-2-1."""
    c = np.asarray(srgb, dtype=np.float64)
    return np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)


def to_lab(rgb: Array) -> Array:
    """Linear light in sRGB's primaries [..., 3], which may exceed 1, to CIELAB (D65). IEC 61966-2-1 and CIE 15."""
    xyz = rgb @ TO_XYZ.T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def ita(lab: Array) -> Array:
    """Individual typology angle in degrees, `atan2(L* - 50, b*)`: 90 is lightest. Of CIELAB [..., 3]. Chardon et al. 1991."""
    return np.degrees(np.arctan2(lab[..., 0] - 50, lab[..., 2]))


MONK_LAB = to_lab(linear(np.array(MONK_TONES) / 255))
MONK_ITA = ita(MONK_LAB)


def nearest_tone(angle: float) -> int:
    """The Monk tone, 0 (lightest) to 9 (darkest), whose ITA is nearest."""
    return int(np.abs(MONK_ITA - angle).argmin())


@dataclass(frozen=True)
class Face:
    """A face found: box and landmarks, (x, y) in pixels of the scaled picture."""

    box: Array
    """Left, top, width, height."""
    eyes: Array
    """[2, 2], the one on the picture's left first."""
    nose: Array
    """Its tip."""
    mouth: Array
    """[2, 2], its corners, as the eyes."""

    @property
    def between_eyes(self) -> float:
        """Their distance, the unit in which a face is measured here."""
        return float(np.linalg.norm(self.eyes[1] - self.eyes[0]))

    def turned_away(self) -> bool:
        """Whether the nose, seen along the line through the eyes, does not lie between them."""
        across = (self.eyes[1] - self.eyes[0]) / self.between_eyes**2
        return not 0.1 < float((self.nose - self.eyes[0]) @ across) < 0.9

    def skin(self) -> list[tuple[Array, float]]:
        """Centre and radius of discs of skin: the cheeks beside the nose, the forehead above the brows, the bridge of the nose.

        Away from eyes, brows and mouth, and as far inside the face as they allow.
        """
        middle, mouth = self.eyes.mean(0), self.mouth.mean(0)
        cheeks = 0.45 * self.eyes + 0.55 * self.mouth
        forehead = middle + 0.55 * (middle - mouth)
        bridge = 0.6 * middle + 0.4 * self.nose
        places = ((cheeks[0], 0.18), (cheeks[1], 0.18), (forehead, 0.16), (bridge, 0.12))
        return [(centre, share * self.between_eyes) for centre, share in places]


class FaceDetector:
    """YuNet, loaded at the first picture. One picture at a time, on the CPU; its threads do not change a number."""

    def __init__(self) -> None:
        self._net: cv2.FaceDetectorYN | None = None

    def largest(self, small: Picture) -> Face | None:
        """The face with the largest box in a scaled picture, or None without one of `MIN_SCORE`."""
        net = self._loaded()
        net.setInputSize((small.shape[1], small.shape[0]))
        _, found = net.detect(np.ascontiguousarray((small * 255).round().astype(np.uint8)[..., ::-1]))
        if found is None:
            return None
        best = max(found.astype(np.float64), key=lambda row: float(row[2] * row[3]))
        right_eye, left_eye, nose, right_corner, left_corner = best[4:14].reshape(5, 2)
        return Face(best[:4], np.stack([right_eye, left_eye]), nose, np.stack([right_corner, left_corner]))

    def _loaded(self) -> cv2.FaceDetectorYN:
        if self._net is None:
            (path,) = YUNET.paths()
            log = cv2.utils.logging
            level = log.setLogLevel(log.LOG_LEVEL_ERROR)  # it warns that the CPU is its only target
            self._net = cv2.FaceDetectorYN.create(str(path), "", (DETECTION_SIZE, DETECTION_SIZE), MIN_SCORE)
            log.setLogLevel(level)
        return self._net


def scaled_down(picture: Picture) -> tuple[Picture, float]:
    """The picture at which faces and light are looked for, `DETECTION_SIZE` long or smaller, and its scale."""
    scale = min(1.0, DETECTION_SIZE / max(picture.shape[:2]))
    if scale == 1:
        return picture, scale
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32), scale


@dataclass(frozen=True)
class Skin:
    """What is seen of a usable face and about it."""

    areas: list[Array]
    """Linear light [n, 3] of each area."""
    deviation: Array
    """By how much what surrounds the head differs from `USUAL`, in opponent coordinates; NaN where too little does."""

    def rgb(self) -> Array:
        """Its colour as it is, linear light [3]."""
        return np.asarray(np.median([np.median(area, axis=0) for area in self.areas], axis=0))

    def light(self) -> Array:
        """What is laid to the light, log2 (R, G, B)."""
        return light_on(self.rgb(), self.deviation)

    def lab(self, light: Array) -> Array:
        """Its colour in CIELAB [3] with that light undone: the median over areas of each one's median."""
        medians = [np.median(to_lab(area / 2**light), axis=0) for area in self.areas]
        return np.asarray(np.median(medians, axis=0))

    def tone(self) -> int:
        """The apparent tone, 0 (lightest) to 9 (darkest)."""
        return nearest_tone(float(ita(self.lab(self.light()))))


def skin_of(picture: Picture, faces: FaceDetector) -> Skin | None:
    """Skin of the largest face, None where the picture has no usable face or no colour."""
    small, scale = scaled_down(picture)
    face = faces.largest(small)
    if face is None or face.between_eyes < MIN_EYES or face.turned_away():
        return None
    if not all(inside(small, eye, 0) for eye in face.eyes):
        return None
    places = [(centre / scale, radius / scale) for centre, radius in face.skin()]
    areas = [disc(picture, *place) for place in places if inside(picture, *place)]
    rgb = linear(small)
    if len(areas) < MIN_AREAS or colourless(rgb):
        return None
    seen = beside_head(rgb, face)
    enough = len(seen) >= MIN_SURROUNDINGS * rgb.shape[0] * rgb.shape[1]
    return Skin(areas, TO_OPPONENT @ minkowski_mean(seen) - USUAL if enough else np.full(3, np.nan))


def inside(picture: Picture, centre: Array, radius: float) -> bool:
    """Whether a disc lies in the picture wholly."""
    height, width = picture.shape[:2]
    return bool((centre >= radius).all() and (centre <= np.array([width, height]) - 1 - radius).all())


def disc(picture: Picture, centre: Array, radius: float) -> Array:
    """Linear light [n, 3] of the pixels in a disc that lies in the picture."""
    left, top = np.floor(centre - radius).astype(int)
    right, bottom = np.ceil(centre + radius).astype(int) + 1
    rows, columns = np.mgrid[top:bottom, left:right]
    within = np.hypot(columns - centre[0], rows - centre[1]) <= radius
    return linear(picture[top:bottom, left:right][within])


def beside_head(rgb: Array, face: Face) -> Array:
    """Pixels [n, 3] of the scaled picture outside the face's box, widened by a quarter on either side, .3 above and .2 below."""
    left, top, width, height = face.box
    kept = np.ones(rgb.shape[:2], dtype=bool)
    rows = slice(max(0, int(top - 0.3 * height)), max(0, int(top + 1.2 * height)))
    columns = slice(max(0, int(left - 0.25 * width)), max(0, int(left + 1.25 * width)))
    kept[rows, columns] = False
    return rgb[kept]


def minkowski_mean(rgb: Array) -> Array:
    """Log2 of `mean(x^6)^(1/6)` of each channel [3], of linear light [n, 3]: shades of grey. Finlayson and Trezzi 2004.

    Black is as dark as half a step of 8 bits.
    """
    cube = np.maximum(rgb, 1 / 12.92 / 510) ** 3
    mean: Array = np.log2((cube * cube).mean(0)) / 6
    return mean


def light_on(skin: Array, deviation: Array) -> Array:
    """By how much, log2 (R, G, B), the light on a face differs from daylight at a usual exposure: the posterior mean over `LIGHTS`.

    Each of them is as likely beforehand. What surrounds the head deviates as the light does, but for what it shows (Student's t); where nothing is
    known of it that term is left out. The skin, the light undone, is normal about one of the ten swatches, each as likely, in L* and b*.

    Args:
        skin: linear light [3].
        deviation: of the surroundings from `USUAL` in opponent coordinates, or NaN.
    """
    expected = LIGHTS * np.where(LIGHTS > 0, (OVEREXPOSED, 1, 1), 1)
    shown = (deviation - expected) / SCENE_SD
    log_scene = -(SCENE_FREEDOM + 1) / 2 * np.nan_to_num(np.log1p(shown**2 / SCENE_FREEDOM)).sum(1)
    undone = to_lab(skin / 2 ** (LIGHTS @ FROM_OPPONENT.T))
    unlike = (undone[:, None, ::2] - MONK_LAB[None, :, ::2]) / SKIN_SD
    log_skin = np.logaddexp.reduce(-0.5 * (unlike**2).sum(2), axis=1)
    log_posterior = log_scene + log_skin
    weight = np.exp(log_posterior - log_posterior.max())
    mean: Array = FROM_OPPONENT @ (weight @ LIGHTS / weight.sum())
    return mean


def colourless(rgb: Array) -> bool:
    """Whether a picture [H, W, 3], its tint taken out, has no colour but in less than one pixel of a hundred."""
    some = rgb[::2, ::2].reshape(-1, 3)
    tint = minkowski_mean(some)
    lab = to_lab(some / 2 ** (tint - tint.mean()))
    return float(np.percentile(np.hypot(lab[:, 1], lab[:, 2]), 99)) < MIN_CHROMA


class ToneScorer:
    """Base of the scorers that read the tone of a portrait."""

    range: tuple[float, float]
    version: str
    higher_is_better: bool | None = None
    source = (
        "ITA of the skin of the largest face (YuNet, opencv/face_detection_yunet, MIT), nearest of the ten Monk tones; "
        "this repository, Apache-2.0"
    )
    scope: Scope = "image"
    weights = (YUNET,)
    read_with = (Path(__file__), Path(str(_preprocess.__file__)), Path(render.__file__), YUNET)
    """Code and weights that a score hangs on, for `version_of`."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """The device is accepted for the contract's sake; faces are looked for on the CPU."""
        self._faces = FaceDetector()

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        needs = 'is a portrait whose tone is read, which `"expect": {"group": "skin_tone"}` says'
        refuse_none(prompts, lambda prompt: prompt.expect.get("group") == "skin_tone", needs)

    def value(self, tone: int) -> float:
        """The score of a Monk tone, 0 to 9."""
        raise NotImplementedError

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        assert len(prompts) == len(images_BCHW)
        values = torch.full((len(prompts),), torch.nan)
        for number, prompt in enumerate(prompts):
            if prompt.expect.get("group") == "skin_tone":
                picture = to_8bit(images_BCHW[number].detach().float()).permute(1, 2, 0).cpu().numpy()
                skin = skin_of(np.ascontiguousarray(picture), self._faces)
                if skin is not None:
                    values[number] = self.value(skin.tone())
        return values
