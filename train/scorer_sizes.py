"""How much memory the weights of scorers take of a process, told before anything is loaded or fetched.

One source for each number: `NUMBERS`, counted of the networks that scorers make of others' weights, or for what is not there the files themselves, where they are on
this machine. Of what is in neither the plan says so. Weights of a kind that only the CPU reads, such as OpenCV's face detector, are no tensors and take nothing of a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evals import order, scorers
from evals.checkpoints import first_line
from evals.families import Header
from evals.miniature import weights_folder
from evals.scorers import Domain, carried_by, weights_of
from evals.weights import TENSORS, Weights

BYTES = 4
"""Every scorer computes in float32, whatever its files are in."""
NUMBERS: Mapping[str, int] = {
    "zai-org/ImageReward": 446_206_689,
    "yuvalkirstain/PickScore_v1": 986_109_441,
    "xswu/HPSv2": 986_109_441,
    "timm/vit_large_patch14_clip_224.openai": 427_616_513,
    "timm/vit_large_patch14_clip_336.openai": 427_944_193,
    "trl-lib/ddpo-aesthetic-predictor": 927_969,
    "timm/vgg16.tv_in1k": 14_714_688,
    "facebook/dinov2-large": 304_368_640,
    "google/owlv2-base-patch16-ensemble": 154_966_792,
    "IDEA-Research/grounding-dino-base": 232_315_264,
}
"""Numbers in the network that is made of a repository's weights: of the scorers' own architectures, and of transformers' where it says how the published weights were converted. `tests/test_resources.py` counts them."""
SHARED = ("timm/vit_large_patch14_clip_224.openai", "facebook/dinov2-large")
"""Repositories of which scorers that work on the same device share one network."""
MINIATURE: Mapping[str, str] = {
    "imagereward": "imagereward",
    "clip_judge": "judge",
    "kid": "judge",
    "pairwise_distance": "judge",
    "vendi": "judge",
}
"""Folder of the shipped weights that a scorer of the miniature opens; the others need none."""


class Part(NamedTuple):
    """Weights that a scorer holds."""

    source: str
    numbers: int | None
    """How many; None where that is not known."""
    shared: bool = False
    """Whether others hold the same, so that it counts once."""


def of_scorers(names: Sequence[str], domain: Domain) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes of the weights of scorers, and of which it is not known.

    Args:
        names: of scorers, or files of a user's own.
        domain: of the pictures.

    Returns:
        bytes by scorer, of those that hold any: what several share is the first one's. And why it is not known, by scorer, all or in part.
    """
    known, unknown, counted = dict[str, int](), dict[str, str](), set[str]()
    for name in names:
        if name.endswith(".py"):
            unknown[name] = "it does not say"
            continue
        try:
            parts = list(_parts(name, domain))
        except (
            ValueError
        ) as error:  # a name that is none, or a file that is half there: what loads it refuses it
            unknown[name] = first_line(error)
            continue
        for part in parts:
            if part.numbers is None:
                unknown[name] = f"{part.source} is not on this machine, --fetch brings it"
            elif part.source not in counted:
                known[name] = known.get(name, 0) + part.numbers * BYTES
            if part.shared:
                counted.add(part.source)
    return known, unknown


def _parts(name: str, domain: Domain) -> Iterator[Part]:
    """What a scorer holds."""
    plain = (order.split(name) or (name,))[0]
    if domain == "miniature":
        if plain in MINIATURE:
            folder = weights_folder(MINIATURE[plain])
            yield Part(
                str(folder), sum(map(_in_file, folder.glob("*.safetensors"))), shared=folder.name == "judge"
            )
        return
    scorer = scorers.load(name, "cpu", domain, terms=False)
    for weights in weights_of(scorer):
        if files := [file for file in weights.files if Path(file).suffix in TENSORS]:
            yield Part(weights.repository, _numbers(weights, files), weights.repository in SHARED)
    for carried in carried_by(scorer):
        if Path(carried.file).suffix in TENSORS:
            yield Part(carried.file, _in_file(carried.path()))


def _numbers(weights: Weights, files: Sequence[str]) -> int | None:
    """In a repository's weights; None where that is not known."""
    if weights.repository in NUMBERS:
        return NUMBERS[weights.repository]
    found = [weights.here(file) for file in files]
    there = [path for path in found if path is not None]
    return sum(map(_in_file, there)) if len(there) == len(found) else None


def _in_file(path: Path) -> int:
    """Numbers in the tensors of a file."""
    return sum(map(math.prod, Header.of(path).shapes.values()))
