"""What we ask: prompts and prompt sets.

The map of this package
    __init__.py     `Prompt`, and `load`, `names`, `digest` for prompt sets
    <name>.jsonl    one prompt set: one JSON object with id, text, tags, expect to a line
    world.py        the vocabulary of the miniature world, and the sets that are sampled from it

The file name is the registry: a new `prompts/<name>.jsonl` is a new prompt set. This module needs the standard
library only, so that reading prompts never waits for a deep learning framework.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEYS = ("id", "text", "tags", "expect")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Prompt:
    """One thing that a model is asked to draw."""

    id: str
    """Unique in its set; also a folder name under results/images, hence letters, digits, dot, dash, underscore."""
    text: str
    """What the model reads."""
    tags: tuple[str, ...] = ()
    """Free labels, by which a metric may choose its prompts."""
    expect: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What can be checked in the picture: objects, counts, colours, relation; or the group, for fairness."""


def names() -> tuple[str, ...]:
    """The prompt sets that ship with the repository, in alphabetical order."""
    return tuple(sorted(path.stem for path in HERE.glob("*.jsonl")))


def load(name: str | Path) -> tuple[Prompt, ...]:
    """The prompts of a set, in file order.

    Args:
        name: a name out of `names()`, or a path to a .jsonl file (id, text and optionally tags, expect per line) or
            to a .txt file (one prompt a line, whose id is its line number). Blank lines are skipped.

    Raises:
        ValueError: unknown name, unreadable, empty or non-UTF-8 file, broken line, unknown key, duplicate id. The
            message is one sentence that names the file and, where there is one, the line.
    """
    path = _resolve(name)
    text = _read(path)
    parse = _from_text if path.suffix == ".txt" else _from_json
    # split("\n"), not splitlines(): U+2028 and its like are legal inside a JSON string
    lines = [
        (f"{path}:{number}", number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)
    ]
    prompts = tuple(parse(line, number, where) for where, number, line in lines if line)
    if not prompts:
        raise ValueError(f"{path}: no prompts in this file")
    _check_unique(prompts, path)
    return prompts


def digest(prompts: Iterable[Prompt]) -> str:
    """12 hex characters of the SHA-256 of the prompts as canonical JSON: equal if and only if the prompts are equal."""
    records = [{"id": p.id, "text": p.text, "tags": list(p.tags), "expect": dict(p.expect)} for p in prompts]
    canonical = json.dumps(records, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _resolve(name: str | Path) -> Path:
    """The file of a prompt set: anything with a folder or a suffix is a path, the rest is a name."""
    path = Path(name)
    if path.suffix in (".jsonl", ".txt"):
        return path
    if str(name) in names():
        return HERE / f"{name}.jsonl"
    choices = ", ".join(names()) or "none ship yet"
    raise ValueError(
        f"unknown prompt set {str(name)!r}: give one of {choices}, or a path to a .jsonl or .txt file"
    )


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ValueError(f"{path}: the prompt file cannot be read ({reason})") from error
    try:
        return data.decode("utf-8-sig")  # -sig: a byte order mark is not part of the first prompt
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x})") from error


def _from_text(line: str, number: int, where: str) -> Prompt:
    del where  # any non-blank line is a prompt
    return Prompt(id=f"{number:05d}", text=line)


def _from_json(line: str, number: int, where: str) -> Prompt:
    del number
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON object ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a JSON object but a {type(record).__name__}")
    if unknown := sorted(set(record) - set(KEYS)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}, the keys are {', '.join(KEYS)}")
    return Prompt(
        id=_id(record.get("id"), where),
        text=_text(record.get("text"), where),
        tags=_tags(record.get("tags", []), where),
        expect=_expect(record.get("expect", {}), where),
    )


def _id(value: object, where: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(
            f"{where}: 'id' must be 1 to 100 letters, digits, dots, dashes or underscores, and begin with a letter "
            f"or digit, but is {value!r}"
        )
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: 'text' must be a string that is not blank, but is {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: 'text' holds half a character ({value[error.start]!r})") from error
    return value


def _tags(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise ValueError(f"{where}: 'tags' must be a list of strings, but is {value!r}")
    return tuple(value)


def _expect(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: 'expect' must be a JSON object, but is {value!r}")
    return value


def _check_unique(prompts: tuple[Prompt, ...], path: Path) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ValueError(f"{path}: the id {prompt.id!r} is there more than once")
        seen.add(prompt.id)
