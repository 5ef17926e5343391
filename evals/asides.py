"""What is told beside score files, for the foot of a table: `X.json` beside `X.csv`, as `python -m evals score` leaves it.

Rows hold what was scored. What could not be, and what no row shows (a prompt that is not read to its end, a picture that is all black or there
twice), is counted when pictures are scored, under `prompt_sets`; here it is put into words. Of a file without one, as packed ones are, it is said that it is not known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def beside(path: Path | str) -> Path:
    """The file that tells of a score file."""
    return Path(path).with_suffix(".json")


def read(paths: Sequence[Path | str]) -> list[str]:
    """A sentence for every score file and prompt set of which something is to be told, one for the files of which nothing is, and what is not known."""
    told: list[str] = []
    clean: list[str] = []
    given: list[str] = []
    unknown: list[str] = []
    for path in map(Path, paths):
        if path.suffix != ".csv" or not beside(path).is_file():
            unknown.append(str(path))  # packed files hold rows of several scorings
            continue
        content = _content(path)
        found = _of_file(path, content)
        told += found
        if _is_given(content):
            given.append(str(path))
        if not found:
            clean.append(str(path))
    if clean:
        by = " by a scorer" if {*clean} & {*given} else ""
        told.append(
            f"No picture failed to decode, is all black or is there twice, and no prompt was cut{by}, as was counted for "
            f"{', '.join(clean)}."
        )
    if given:
        told.append(
            f"Whether what drew the pictures read their prompts to the end is not known for {', '.join(given)}."
        )
    if unknown:
        told.append(
            "How many prompts were cut, and how many pictures failed to decode, are all black or are there twice, is not known for "
            f"{', '.join(unknown)}."
        )
    return told


def folders(paths: Sequence[Path | str]) -> dict[str, Path]:
    """Where pictures that were given lie, by the name of their run."""
    found = {}
    for path in (p for p in map(Path, paths) if p.suffix == ".csv"):
        model = _mapping(_mapping(_content(path)).get("model"))
        if isinstance(model.get("pictures"), str):
            found[_run_name(model)] = Path(model["pictures"])
    return found


def weights(paths: Sequence[Path | str]) -> dict[str, set[str]]:
    """Digests of the weights that drew what was scored (`evals.checkpoints.Checkpoint.digest`), by the name of the run; of no run of which that is not known."""
    found: dict[str, set[str]] = {}
    for model in map(scored, map(Path, paths)):
        if isinstance(model.get("weights"), str):
            found.setdefault(_run_name(model), set()).add(model["weights"])
    return found


def _run_name(model: Mapping[str, Any]) -> str:
    return f"{model.get('experiment')}-{model.get('model')}-{model.get('seed')}"


def refuse_two_sizes(paths: Sequence[Path | str]) -> None:
    """Refuse checkpoints of one model that drew pictures of two sizes: their latents differ, so they are of two families and share no noise.

    Of given pictures and of files with nothing beside them that fits their rows nothing is said.

    Raises:
        ValueError: naming both files.
    """
    first: dict[tuple[str, str], tuple[Path, list[Any]]] = {}
    for path in (p for p in map(Path, paths) if p.suffix == ".csv" and p.is_file()):
        content = _mapping(_content(path))
        drawn = content.get("sampling") is not None
        if not drawn or content.get("rows_sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
            continue
        for name, counts in _mapping(content.get("prompt_sets")).items():
            size = _mapping(counts).get("size")
            if not isinstance(size, list):  # as asides once were, or damaged
                continue
            model = str(_mapping(content.get("model")).get("model"))
            other, theirs = first.setdefault((model, name), (path, size))
            if theirs != size:
                raise ValueError(
                    f"the pictures of {name} are {' x '.join(map(str, theirs))} pixels in {other} but {' x '.join(map(str, size))} in {path}: "
                    "checkpoints of two families do not draw from the same noise, so score the pictures of both with --pictures, or compare with --force"
                )


def scored(path: Path) -> Mapping[str, Any]:
    """Whose pictures a score file is of, with the digest of the weights that drew them; nothing where that is not known, or told of other rows."""
    if path.suffix != ".csv":  # packed ones hold rows of several scorings
        return {}
    content = _mapping(_content(path))
    fits = content.get("rows_sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    return _mapping(content.get("model")) if fits else {}


def _content(path: Path) -> Any:
    """What stands beside a score file, None where it cannot be read."""
    try:
        return json.loads(beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_given(content: Any) -> bool:
    """Whether some of the pictures were given: of their model it is not known what it reads."""
    sets = _mapping(_mapping(content).get("prompt_sets")).values()
    truncated = (_mapping(_mapping(counts).get("truncated")) for counts in sets)
    return any("model" in one and one["model"] is None for one in truncated)


def _of_file(path: Path, content: Any) -> list[str]:
    aside = beside(path)
    sets = content.get("prompt_sets") if isinstance(content, dict) else None
    if not isinstance(sets, dict):
        return [f"{aside} cannot be read, so what was cut or could not be decoded for {path} is not known."]
    if content.get("rows_sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
        return [f"{aside} tells of other rows than those of {path}, so its counts are left out."]
    sentences = [(name, _of_set(counts)) for name, counts in sets.items() if isinstance(counts, dict)]
    return [f"{path}, {name}: {sentence}." for name, sentence in sentences if sentence]


def _of_set(counts: Mapping[str, Any]) -> str:
    """What was counted on one prompt set; empty where all of it is 0."""
    duplicates = _mapping(counts.get("duplicates"))
    truncated = _mapping(counts.get("truncated"))
    pictures = [
        *_some(counts.get("failed_decodes"), "could not be decoded"),
        *[part for why, n in _mapping(counts.get("unfit")).items() for part in _some(n, str(why))],
        *_some(counts.get("black"), "all black"),
        *_some(duplicates.get("within_prompts"), "the same as another of their prompt"),
        *_some(duplicates.get("across_prompts"), "the same as one of another prompt"),
        *[part for how, n in _mapping(counts.get("converted")).items() for part in _some(n, str(how))],
    ]
    cut = [
        *_some(truncated.get("model"), "by the model"),
        *[part for name, n in _mapping(truncated.get("scorers")).items() for part in _some(n, f"by {name}")],
    ]
    parts = []
    if pictures:
        parts.append(f"of {counts.get('pictures')} pictures {', '.join(pictures)}")
    if cut:
        parts.append(f"of {counts.get('prompts_count')} prompts not read to their end {', '.join(cut)}")
    return "; ".join(parts)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _some(count: object, what: str) -> list[str]:
    return [f"{count} {what}"] if isinstance(count, int) and count > 0 else []
