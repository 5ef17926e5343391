"""PartiPrompts (P2), Yu et al. 2022, arXiv 2206.10789: 1,632 prompts, out of domain for the paper's preference runs (section 4.1).

Tags are the prompt's category and challenge.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence

from prompts import Prompt
from prompts.fetched import github

COMMIT = "5a657978134374ce28973948331b319adef164bd"
SOURCE = f"google-research/parti at {COMMIT}"
LICENCE = "Apache-2.0, Google"

FILE = github(
    "google-research/parti",
    COMMIT,
    "PartiPrompts.tsv",
    {"parti/PartiPrompts.tsv": "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb"},
)


def _parti() -> tuple[Prompt, ...]:
    with FILE.path().open(encoding="utf-8", newline="") as file:
        # quotation marks are parts of prompts
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return tuple(
        Prompt(f"{number:04d}", row["Prompt"], (row["Category"], row["Challenge"]))
        for number, row in enumerate(rows)
    )


SETS: dict[str, Callable[[], Sequence[Prompt]]] = {"parti": _parti}
