"""Prompts that ImageReward is tested on, Xu et al. 2023, arXiv 2304.05977: real users' prompts, drawn from DiffusionDB.

    imagereward-test     466 prompts whose pictures people ranked (3 texts come twice)
    imagereward-bench    100 prompts on which models are compared

Ids are ImageReward's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

from prompts import Prompt
from prompts.fetched import File, github

COMMIT = "c1392c6dd0fd6ecd6d416c96959ab744a6d0a8fb"
REPOSITORY = "zai-org/ImageReward"
SOURCE = f"{REPOSITORY} at {COMMIT}"
LICENCE = "Apache-2.0, THUDM; the texts, of DiffusionDB, CC0-1.0"

_TEST_SHA256 = "77cff6c2d0522006f52f0b637ef8302db1782b2b761e378c124a012a3c7fc58e"
TEST_FILE = github(
    REPOSITORY,
    COMMIT,
    "data/test.json",
    {"imagereward/test.json": _TEST_SHA256, "imagereward/test_prompts_rankings.json": _TEST_SHA256},
)
BENCH_FILE = github(
    REPOSITORY,
    COMMIT,
    "benchmark/benchmark-prompts.json",
    {
        "imagereward/benchmark-prompts.json": "34682e824ebb3ad8e2531b3cde1b362dc72e1e29946ff6fab77bb49e9edb4b21"
    },
)


def _imagereward(file: File) -> tuple[Prompt, ...]:
    records = json.loads(file.path().read_text(encoding="utf-8"))
    return tuple(Prompt(record["id"], record["prompt"]) for record in records)


SETS: dict[str, Callable[[], Sequence[Prompt]]] = {
    "imagereward-test": partial(_imagereward, TEST_FILE),
    "imagereward-bench": partial(_imagereward, BENCH_FILE),
}
