"""Where a folder has the picture of a prompt, in either of the layouts that are read: `score --pictures`, `vote` and the page look here.

`<prompt set>/<prompt id>/<index>.png`, as everything that is drawn here lies, without the first where all is of one set; or, for any of these folders of prompts,
GenEval's, `00000/metadata.jsonl` and `00000/samples/0000.png`, where the prompt is known by its text. .jpg, .jpeg and .webp do as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import prompts
from evals.files import PICTURES
from prompts import Prompt

GENEVAL = "metadata.jsonl"


def subfolders(folder: Path) -> dict[str, Path]:
    """By name, hidden ones left out."""
    return {f.name: f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")}


def of_set(folder: Path, prompt_set: str) -> Path:
    """Where the pictures of a prompt set lie: in a folder of its name, or, where there is none, straight in theirs."""
    inside = folder / prompt_set
    return inside if inside.is_dir() else folder


def by_prompt(folder: Path, prompt_set: str) -> dict[str, Path]:
    """The folder of each prompt's pictures, by what it calls the prompt: its id, where the layout is GenEval's.

    Args:
        folder: of a prompt set (`of_set`).
        prompt_set: whose prompts a text is looked for in.

    Raises:
        ValueError: in GenEval's layout a folder does not say its prompt, or it is none of the set's.
    """
    there = subfolders(folder)
    if any((one / GENEVAL).is_file() for one in there.values()):
        return _by_text(there, prompts.load(prompt_set), prompt_set)
    return there


def _by_text(there: Mapping[str, Path], asked: Sequence[Prompt], prompt_set: str) -> dict[str, Path]:
    """A text that several prompts have is theirs in the order of the set and of the folders."""
    ids: dict[str, list[str]] = {}
    for prompt in asked:
        ids.setdefault(prompt.text.strip(), []).append(prompt.id)
    found = {}
    for folder in there.values():
        path = folder / GENEVAL
        try:
            text = str(json.loads(path.read_text(encoding="utf-8"))["prompt"]).strip()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not say a prompt: {error}") from error
        if not ids.get(text):
            raise ValueError(f"{path} is of the prompt {text!r}, which {prompt_set} has not, or not as often")
        found[ids[text].pop(0)] = folder / "samples"
    return found


def numbered(folder: Path) -> dict[int, Path]:
    """The pictures of a prompt by their number.

    Raises:
        ValueError: a picture has no number, or that of another.
    """
    found: dict[int, Path] = {}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (f for f in files if f.suffix.lower() in PICTURES and not f.name.startswith(".")):
        if not path.stem.isdecimal():
            raise ValueError(f"{path} has no number for a name: a prompt's pictures are 0.png, 1.png, ...")
        number = int(path.stem)
        if number in found:
            raise ValueError(f"{found[number]} and {path.name} are both picture {number}: keep one")
        found[number] = path
    return found


class Index:
    """The pictures of some folders; a folder is looked through once."""

    def __init__(self) -> None:
        self.found: dict[tuple[Path, str], dict[tuple[str, int], Path]] = {}

    def of(self, folder: Path, prompt_set: str) -> dict[tuple[str, int], Path]:
        """By prompt and number; none where there is no folder.

        Raises:
            ValueError: see `by_prompt` and `numbered`.
        """
        key, where = (folder, prompt_set), of_set(folder, prompt_set)
        if key not in self.found:
            of_prompts = by_prompt(where, prompt_set) if where.is_dir() else {}
            self.found[key] = {
                (prompt_id, number): path
                for prompt_id, inside in of_prompts.items()
                for number, path in numbered(inside).items()
            }
        return self.found[key]

    def path_of(self, folder: Path, prompt_set: str, prompt_id: str, image: int) -> Path:
        """Where a picture lies, or would if there were one.

        Raises:
            ValueError: see `of`.
        """
        usual = of_set(folder, prompt_set) / prompt_id / f"{image}.png"
        return self.of(folder, prompt_set).get((prompt_id, image), usual)
