"""The imagereward scorer against the authors' package: the same random weights of full size, pictures and prompts, in float32. `make parity`.

Exit code 1 where a score differs by more than `TOLERANCE`, where tokens differ, where the scores depend so little on picture or prompt that their
agreement would mean nothing, or where a deliberate mistake is not noticed.
"""

from __future__ import annotations

import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from bench.package import ENVIRONMENT, Package
from evals.scorers import imagereward
from evals.scorers._preprocess import CLIP_STD
from evals.scorers.imagereward import MAX_LENGTH, VOCABULARY, Scorer
from evals.weights import sha256_of
from prompts import Prompt

TOLERANCE = 2e-5
"""Rounding in float32 gives some 2e-6, and the least of the mistakes below 6e-5."""
DEPENDS = 0.1
"""Standard deviation over pictures, and over prompts, that scores must have at least."""

LONG = "a very detailed oil painting of " + "an old lighthouse above the sea, " * 8 + "at dawn"
PROMPTS = (
    "a cat",
    "",
    " \t ",
    "a photograph of a red bowl on a wooden table, seen from above, soft light",
    "Ein gemütliches Café à la crème, 猫と犬, naïve ﬁne-art 🐈 №5",
    "the token [ENC] and [SEP] in a prompt, ALL CAPS, don't-you-think?!",
    LONG,
)
PHOTOGRAPHS = {
    "astronaut 512x512": (Path(skimage.__file__).parent / "data" / "astronaut.png", None),
    "chelsea 451x300": (Path(skimage.__file__).parent / "data" / "chelsea.png", None),
    "coffee 600x400": (Path(skimage.__file__).parent / "data" / "coffee.png", None),
    "rocket 640x427": (Path(skimage.__file__).parent / "data" / "rocket.jpg", None),
    "retina 1411x1411": (Path(skimage.__file__).parent / "data" / "retina.jpg", None),
    "camera, grey 512x512": (Path(skimage.__file__).parent / "data" / "camera.png", None),
    "coffee, upright 223x401": (Path(skimage.__file__).parent / "data" / "coffee.png", (150, 0, 373, 401)),
    "rocket, narrow 97x427": (Path(skimage.__file__).parent / "data" / "rocket.jpg", (280, 0, 377, 427)),
    "astronaut, small 224x224": (
        Path(skimage.__file__).parent / "data" / "astronaut.png",
        (120, 0, 344, 224),
    ),
    "astronaut, tiny 41x33": (Path(skimage.__file__).parent / "data" / "astronaut.png", (200, 90, 241, 123)),
}
"""Files, and what is cut out of them: left, top, right, bottom."""


@dataclass(frozen=True)
class Pair:
    """A picture and the prompt that it is scored for."""

    picture: str
    prompt: str


def write_pictures(folder: Path) -> dict[str, Path]:
    """Photographs and generated pictures as PNG files, by name."""
    photographs = dict(PHOTOGRAPHS)
    for path in sorted(ENVIRONMENT.glob("lib/python*/site-packages/sklearn/datasets/images/*.jpg")):
        photographs[f"{path.stem} 640x427"] = (path, None)
    pictures = {}
    for name, (path, box) in photographs.items():
        with Image.open(path) as opened:
            pictures[name] = opened.convert("RGB").crop(box or (0, 0, *opened.size))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (225, 340, 3), dtype=np.uint8)
    pictures["noise 340x225"] = Image.fromarray(noise)
    pictures["black and white 226x227"] = Image.fromarray(
        np.where(noise[:, :226] > 127, 255, 0).astype(np.uint8)
    ).resize((226, 227), Image.Resampling.NEAREST)
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    pictures["ramp 1024x768"] = Image.fromarray(np.stack([np.tile(ramp, (768, 1))] * 3, -1))
    paths = {}
    for name, picture in pictures.items():
        paths[name] = folder / f"{len(paths)}.png"
        picture.save(paths[name])
    return paths


def choose_pairs(pictures: list[str]) -> list[Pair]:
    """The first picture with all prompts, all pictures with the first prompt, and each picture with another one."""
    chosen = [Pair(pictures[0], prompt) for prompt in PROMPTS]
    chosen += [Pair(picture, PROMPTS[0]) for picture in pictures]
    chosen += [Pair(picture, PROMPTS[3 + i % 4]) for i, picture in enumerate(pictures)]
    return list(dict.fromkeys(chosen))


def read_picture(path: Path) -> Tensor:
    """Float32 [1, C, H, W] in [0, 1]."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def our_scores(scorer: Scorer, paths: dict[str, Path], pairs: list[Pair]) -> list[float]:
    """The pictures of one size in one batch."""
    scores: dict[Pair, float] = {}
    images = {pair: read_picture(paths[pair.picture]) for pair in pairs}
    for shape in dict.fromkeys(image.shape for image in images.values()):
        of_shape = [pair for pair in pairs if images[pair].shape == shape]
        prompts = [Prompt(str(i), pair.prompt) for i, pair in enumerate(of_shape)]
        values = scorer(torch.cat([images[pair] for pair in of_shape]), prompts)
        scores |= dict(zip(of_shape, values.tolist(), strict=True))
    return [scores[pair] for pair in pairs]


def odd_texts(count: int) -> Iterator[str]:
    """Texts of letters, signs, blanks and marks of many scripts, none younger than Unicode 3.2: how the package takes a younger mark is up to its Python."""
    rng = np.random.default_rng(0)
    old, new = unicodedata.ucd_3_2_0.category, unicodedata.category
    settled = [c for c in map(chr, range(0x20000)) if old(c) == new(c) not in ("Cs", "Cn")]
    for i in range(count):
        plain = [*"abcdefgh ABC é ,.-'[]#  \n"]
        drawn = rng.choice(plain, 20 + i % 60), rng.choice(settled, i % 20)
        yield "".join(rng.permutation(np.concatenate(drawn)))


# deliberate mistakes: each must show


@contextmanager
def _epsilon(part: nn.Module, epsilon: float) -> Iterator[None]:
    norms = [layer for layer in part.modules() if isinstance(layer, nn.LayerNorm)]
    right = norms[0].eps
    for norm in norms:
        norm.eps = epsilon
    yield
    for norm in norms:
        norm.eps = right


@contextmanager
def _shorter_texts(scorer: Scorer) -> Iterator[None]:
    scorer.model.config["max_length"] -= 1
    yield
    scorer.model.config["max_length"] += 1


@contextmanager
def _rough_gelu(part: nn.Module) -> Iterator[None]:
    layers = [(layer, name) for layer in part.modules() for name in ("activation_fn", "intermediate_act_fn")]
    changed = [(layer, name, getattr(layer, name)) for layer, name in layers if hasattr(layer, name)]
    for layer, name, _ in changed:
        setattr(layer, name, nn.GELU(approximate="tanh"))
    yield
    for layer, name, right in changed:
        setattr(layer, name, right)


@contextmanager
def _resize_of_floats() -> Iterator[None]:
    def resize(images_BCHW: Tensor, size: tuple[int, int], _resample: str) -> Tensor:
        return F.interpolate(images_BCHW, size, mode="bicubic", antialias=True).clamp(0, 1)

    right = imagereward._preprocess.resize
    imagereward._preprocess.resize = resize
    yield
    imagereward._preprocess.resize = right


def mistakes(scorer: Scorer) -> dict[str, Callable[[], object]]:
    """What somebody might get wrong, each as a context in which it is wrong."""
    model = scorer.model
    return {
        "epsilon of the vision transformer 1e-5": lambda: _epsilon(model.vision, 1e-5),
        "epsilon of the text transformer 1e-5": lambda: _epsilon(model.text, 1e-5),
        "texts cut at 34 tokens": lambda: _shorter_texts(scorer),
        "tanh GELU in the vision transformer": lambda: _rough_gelu(model.vision),
        "tanh GELU in the text transformer": lambda: _rough_gelu(model.text),
        "resize without rounding to 8 bit": _resize_of_floats,
    }


def differing(ours: list[float], theirs: list[float]) -> float:
    """The largest difference; NaN where there is one."""
    return float(np.abs(np.subtract(ours, theirs)).max())


# the comparisons: each prints what it finds, and returns a sentence for what is wrong


def scores_agree(pairs: list[Pair], ours: list[float], theirs: list[float], cut: list[int]) -> list[str]:
    """The table, the largest difference, and whether there was anything to find."""
    faults = []
    print(f"{'picture':26} {'prompt':42} {'package':>10} {'here':>10} {'difference':>11} {'tokens cut':>10}")
    for pair, their, our, tokens in zip(pairs, theirs, ours, cut, strict=True):
        prompt = pair.prompt if len(pair.prompt) <= 40 else f"{pair.prompt[:37]}..."
        print(f"{pair.picture:26} {prompt!r:42} {their:10.5f} {our:10.5f} {our - their:11.1e} {tokens:10}")
    largest = differing(ours, theirs)
    print(f"\nlargest difference {largest:.1e} of {len(pairs)} scores, {TOLERANCE:g} allowed")
    if not largest <= TOLERANCE:
        faults.append(f"scores differ by {largest:.1e}")
    scored = list(zip(pairs, theirs, strict=True))
    of_one_picture = [score for pair, score in scored if pair.picture == pairs[0].picture]
    of_one_prompt = [score for pair, score in scored if pair.prompt == PROMPTS[0]]
    for what, chosen in {"prompts": of_one_picture, "pictures": of_one_prompt}.items():
        spread = float(np.std(chosen))
        print(f"standard deviation over {len(chosen)} {what} {spread:.3f}, {DEPENDS:g} needed")
        if not spread >= DEPENDS:
            faults.append(f"scores hardly depend on {what}")
    return faults


def tokens_agree(package: Package, scorer: Scorer) -> list[str]:
    """Of the prompts, and of odd texts."""
    texts = [*PROMPTS, *odd_texts(500)]
    theirs, ours = package("tokens", prompts=texts), scorer.model.tokenizer(texts).input_ids
    other = sum(one != another for one, another in zip(theirs, ours, strict=True))
    print(f"tokens of {len(texts) - other} of {len(texts)} texts are the same")
    return [f"{other} texts have other tokens"] if other else []


def gradients_agree(package: Package, scorer: Scorer, path: Path, prompt: str) -> list[str]:
    """To the pixels of a picture that needs no resize, over the largest value."""
    to = path.with_suffix(".safetensors")
    package("gradient", picture=str(path), prompt=prompt, to=str(to))
    theirs_BCHW = load_file(to)["gradient"]
    images_BCHW = read_picture(path).requires_grad_()
    reward = scorer(images_BCHW, [Prompt("one", prompt)])
    (gradient_BCHW,) = torch.autograd.grad(reward.sum(), images_BCHW)
    ours_BCHW = gradient_BCHW * torch.tensor(CLIP_STD).view(3, 1, 1)  # theirs is that to normalised pixels
    off = float((ours_BCHW - theirs_BCHW).abs().max() / theirs_BCHW.abs().max())
    print(f"gradient to the pixels: largest difference {off:.1e} of the largest value, {TOLERANCE:g} allowed")
    return [] if off <= TOLERANCE else [f"gradients differ by {off:.1e} of their largest value"]


def mistakes_show(scorer: Scorer, paths: dict[str, Path], pairs: list[Pair], ours: list[float]) -> list[str]:
    """Whether this comparison would have found what somebody might get wrong."""
    faults = []
    telling = [next(pair for pair in pairs if pair.prompt == LONG), pairs[1]]
    right = [ours[pairs.index(pair)] for pair in telling]
    for mistake, wrong in mistakes(scorer).items():
        with wrong():
            difference = differing(our_scores(scorer, paths, telling), right)
        print(f"deliberate mistake, {mistake}: a score differs by {difference:.1e}")
        if not difference > TOLERANCE:
            faults.append(f"a mistake goes unnoticed: {mistake}")
    return faults


def main() -> int:
    """Compare, print the table, and return the exit code."""
    faults = []
    with (
        tempfile.TemporaryDirectory() as name,
        Package(Path(name), torch.get_num_threads()) as package,
    ):
        if sha256_of(package.vocabulary) != VOCABULARY.sha256[0]:
            faults.append(f"{package.vocabulary.name} is not BERT's")
        scorer = Scorer()
        scorer.model = scorer.take(
            imagereward.load_package(package.weights, package.med_config, package.vocabulary)
        )
        paths = write_pictures(Path(name))
        pairs = choose_pairs(list(paths))
        pictures, prompts = [str(paths[pair.picture]) for pair in pairs], [pair.prompt for pair in pairs]
        theirs = package("score", pictures=pictures, prompts=prompts)["scores"]
        ours = our_scores(scorer, paths, pairs)
        cut = imagereward.cut_tokens(scorer.model.tokenizer, prompts, MAX_LENGTH)
        faults += scores_agree(pairs, ours, theirs, cut)
        faults += tokens_agree(package, scorer)
        faults += gradients_agree(package, scorer, paths["astronaut, small 224x224"], PROMPTS[3])
        faults += mistakes_show(scorer, paths, pairs, ours)
    for fault in faults:
        print(f"parity fails: {fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
