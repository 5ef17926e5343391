"""Pictures per second of the imagereward scorer against the authors' package, on the same weights. `make bench`, or `pytest bench -s`.

The package looks at one picture after the other, whatever it is given; of its calls the one for several pictures of one prompt is the fastest, and it is
timed without a graph, from decoded pictures to numbers. The scorer is timed from a batch of tensors to numbers. The two alternate within one run, so that
whatever else the machine does falls on both; the speed-up is the median of the ratios of neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from scipy.stats import kendalltau
from torch import Tensor

from bench.package import ENVIRONMENT, Package
from evals.scorers.imagereward import Scorer, load_package
from prompts import Prompt

BATCH_CPU, BATCH_GPU = 8, 32
ROUNDS = 5
SIDE = 512
PROMPT = "a red bowl of ripe tomatoes on a wooden table, oil painting"
OTHERS = ("a cat", "an astronaut who rides a horse, photograph", "")
"""Prompts for which the ranks of pictures are compared beside `PROMPT`'s."""

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """The package with random weights."""
    if not ENVIRONMENT.is_dir():
        pytest.skip(f"there is no {ENVIRONMENT.name} with the image-reward package: `make parity` makes it")
    with Package(tmp_path_factory.mktemp("package"), torch.get_num_threads()) as started:
        yield started


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Squares out of photographs, of the size that SD2-base draws."""
    folder, data = tmp_path_factory.mktemp("pictures"), Path(skimage.__file__).parent / "data"
    rng = np.random.default_rng(0)
    paths = []
    for i in range(BATCH_GPU):
        photograph = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")[i % 4]
        with Image.open(data / photograph) as opened:
            side = int(rng.integers(128, min(opened.size)))
            left, top = (int(rng.integers(0, length - side)) for length in opened.size)
            square = opened.convert("RGB").resize((SIDE, SIDE), box=(left, top, left + side, top + side))
        paths.append(folder / f"{i}.png")
        square.save(paths[-1])
    return paths


def as_batch(pictures: list[Path]) -> Tensor:
    arrays = [np.asarray(Image.open(path), dtype=np.float32) / 255 for path in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def scorer_of(package: Package, device: str, dtype: torch.dtype) -> Scorer:
    scorer = Scorer(device, dtype)
    scorer.model = scorer.take(load_package(package.weights, package.med_config, package.vocabulary))
    return scorer


def score(scorer: Scorer, images_BCHW: Tensor, text: str = PROMPT) -> list[float]:
    scores: list[float] = scorer(images_BCHW, [Prompt("one", text)] * len(images_BCHW)).tolist()
    return scores


def speed_up(package: Package, scorer: Scorer, pictures: list[Path], benchmark: Any) -> float:
    """How many times as many pictures per second, measured alternately and recorded."""
    images = as_batch(pictures)
    names = [str(path) for path in pictures]
    package("rank", pictures=names[:1] * 2, prompt=PROMPT)
    ours, theirs = [], []

    def their_turn() -> None:
        theirs.append(package("rank", pictures=names, prompt=PROMPT)["seconds"])

    def our_turn() -> None:
        start = time.perf_counter()
        score(scorer, images)
        ours.append(time.perf_counter() - start)

    benchmark.pedantic(our_turn, setup=their_turn, rounds=ROUNDS, warmup_rounds=1)
    ratio: float = statistics.median(their / our for their, our in zip(theirs[1:], ours[1:], strict=True))
    per_second = {
        who: len(pictures) / statistics.median(s[1:]) for who, s in (("package", theirs), ("here", ours))
    }
    benchmark.extra_info |= {
        "speed_up": ratio,
        "images_per_second": per_second["here"],
        "images_per_second_of_the_package": per_second["package"],
        "batch": len(pictures),
        "threads": torch.get_num_threads(),
    }
    print(
        f"\n{scorer.dtype} on {scorer.device}, batch {len(pictures)}, {torch.get_num_threads()} threads: {per_second['here']:.2f} images/s,"
        f" the package {per_second['package']:.2f}, median ratio {ratio:.2f}"
    )
    return ratio


def agreement(package: Package, scorer: Scorer, pictures: list[Path], benchmark: Any) -> float:
    """Kendall's tau of pictures within prompts against the package, mean over prompts; also records the errors."""
    images, names = as_batch(pictures), [str(path) for path in pictures]
    errors, taus, spreads = [], [], []
    for text in (PROMPT, *OTHERS):
        theirs = np.array(package("rank", pictures=names, prompt=text)["scores"])
        ours = np.array(score(scorer, images, text))
        errors.append(np.abs(ours - theirs))
        spreads.append(theirs.std())
        taus.append(kendalltau(ours, theirs).statistic)
    told: dict[str, float] = {
        "largest_error": float(np.max(errors)),
        "mean_error": float(np.mean(errors)),
        "standard_deviation_of_scores": float(np.mean(spreads)),
        "kendall_tau": float(np.mean(taus)),
    }
    benchmark.extra_info |= told
    print("\n" + ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in told.items()))
    return told["kendall_tau"]


@pytest.mark.benchmark(group="imagereward")
def test_float32_on_the_cpu(package: Package, pictures: list[Path], benchmark: Any) -> None:
    ratio = speed_up(package, scorer_of(package, "cpu", torch.float32), pictures[:BATCH_CPU], benchmark)
    assert ratio >= 1.1


@pytest.mark.benchmark(group="imagereward")
def test_bfloat16_on_the_cpu(package: Package, pictures: list[Path], benchmark: Any) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no instructions for bfloat16")
    scorer = scorer_of(package, "cpu", torch.bfloat16)
    ratio = speed_up(package, scorer, pictures[:BATCH_CPU], benchmark)
    tau = agreement(package, scorer, pictures[:BATCH_CPU], benchmark)
    assert ratio >= 3
    assert tau >= 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.benchmark(group="imagereward")
def test_gpu(package: Package, pictures: list[Path], benchmark: Any, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    package("move", device="cuda")
    scorer = scorer_of(package, "cuda", dtype)
    ratio = speed_up(package, scorer, pictures, benchmark)
    tau = agreement(package, scorer, pictures, benchmark)
    benchmark.extra_info["gpu"] = torch.cuda.get_device_name()
    assert tau >= 0.9
    assert ratio >= 5 or dtype == torch.float32
