"""GenEval, Ghosh et al. 2023, arXiv 2310.11513: 553 prompts on objects, counts, colours and positions; and 256 with objects that were kept out of others' training.

`expect` has GenEval's own `tag` (the task), `include` and `exclude` (class, count, color, position of an item relative to another), and in
`objects` the names that are to be there. Ids are those of GenEval's own folders. `geneval-unseen` is from Flow-GRPO, without the repeated lines of its
file; 42 of its prompts are in `geneval` too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prompts import Prompt
from prompts.fetched import File, github

COMMIT = "af4902f24d3ca90ebbb446dd9891a59e0f82725f"
UNSEEN_COMMIT = "ac4c86e8cae021841f1fde853d340e0db67690dd"
SOURCE = f"djghosh13/geneval at {COMMIT}; the unseen ones yifan123/flow_grpo at {UNSEEN_COMMIT}"
LICENCE = "MIT, (c) 2023 Dhruba Ghosh; the unseen ones MIT, (c) 2025 Jie Liu"

FILE = github(
    "djghosh13/geneval",
    COMMIT,
    "prompts/evaluation_metadata.jsonl",
    {"geneval/evaluation_metadata.jsonl": "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"},
)
UNSEEN_FILE = github(
    "yifan123/flow_grpo",
    UNSEEN_COMMIT,
    "dataset/geneval_unseen_objects/test_metadata.jsonl",
    {
        "geneval-unseen/test_metadata.jsonl": "174536b49af23b0e2abc4e3215fce5d375de13d6040a50642709240a76dc1a24",
        # the same without its repeated lines
        "geneval-unseen/test_metadata_unique.jsonl": "a4614e4ffb1a6b797344c705ccefc908f26389df3643c5737bf517465354bc62",
    },
)


def _geneval(file: File) -> tuple[Prompt, ...]:
    lines = dict.fromkeys(file.path().read_text(encoding="utf-8").splitlines())  # each once, in order
    return tuple(_prompt(number, json.loads(line)) for number, line in enumerate(lines))


def _prompt(number: int, record: dict[str, Any]) -> Prompt:
    text = record.pop("prompt")
    objects = [{"name": item["class"]} for item in record["include"]]
    return Prompt(f"{number:05d}", text, (record["tag"],), {"objects": objects, **record})


SETS: dict[str, Callable[[], Sequence[Prompt]]] = {
    "geneval": partial(_geneval, FILE),
    "geneval-unseen": partial(_geneval, UNSEEN_FILE),
}
