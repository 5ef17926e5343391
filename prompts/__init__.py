"""What we ask: prompts and prompt sets.

The map of this package
    __init__.py         `Prompt`, and `load`, `names`, `sources`, `digest` for prompt sets
    <name>.jsonl        one prompt set: one JSON object with id, text, tags, expect to a line
    sets/<family>.py    prompt sets that are computed, or fetched from those who wrote them
    fetched.py          files of others: their commit and SHA-256, the folder T2I_PROMPTS_DIR, the cache
    lock.py             one process at a time
    world.py            the vocabulary of the miniature world, and the sets that are sampled from it

The listing is the registry: a new `prompts/<name>.jsonl` is a new prompt set, a new `prompts/sets/<family>.py` is as many as its `SETS`
has. To import this package takes the standard library only, so that reading prompts never waits for a deep learning framework.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, overload
from unicodedata import category, normalize

HERE = Path(__file__).parent
KEYS = ("id", "text", "tags", "expect")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NO_WORD = re.compile(r"[\W_\u02bb\u02bc]+")
"""Between words; the two are apostrophes that Unicode counts among the letters."""
_UNSEEN = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Unicode's Default_Ignorable_Code_Point: what is there and shows nothing, soft hyphens, joiners, zero-width spaces, choices of a glyph."""


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


class LazyPrompts(Sequence[Prompt]):
    """Prompts that are made when they are asked for: a set of millions takes no memory, and any of them is at hand by its number."""

    def __init__(
        self, make: Callable[[int], Prompt], count: int, recipe: str, numbers: range | None = None
    ) -> None:
        """Keep how they are made.

        Args:
            make: the prompt of a number in [0, count), always the same one.
            count: how many there are.
            recipe: all that `make` depends on, in words and hashes: equal recipes give equal prompts.
            numbers: those that are in this part of the set; all unless given.
        """
        self._make, self._count, self._recipe = make, count, recipe
        self._numbers = range(count) if numbers is None else numbers

    @property
    def digest(self) -> str:
        """12 hex characters of the SHA-256 of the recipe, and of the part taken."""
        return hashlib.sha256(f"{self._recipe} {self._numbers}".encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> LazyPrompts: ...

    def __getitem__(self, index: int | slice) -> Prompt | LazyPrompts:
        if isinstance(index, slice):
            return LazyPrompts(self._make, self._count, self._recipe, self._numbers[index])
        return self._make(self._numbers[index])


class Source(NamedTuple):
    """Where a prompt set comes from."""

    prompt_set: str
    source: str
    """Who wrote it: this project, or a repository with its commit."""
    licence: str


def names() -> tuple[str, ...]:
    """The prompt sets that there are, in alphabetical order."""
    return tuple(sorted([*_files(), *_families()]))


def sources() -> Iterator[Source]:
    """Where each prompt set comes from and under which licence, in alphabetical order. Fetches nothing."""
    families = _families()
    for name in names():
        if name in families:
            yield Source(name, families[name].SOURCE, families[name].LICENCE)
        else:
            yield Source(name, "written for this project", "Apache-2.0")


def load(name: str | Path) -> Sequence[Prompt]:
    """The prompts of a set, in file order; a tuple, or `LazyPrompts` where there are very many.

    Args:
        name: a name out of `names()`, or a path to a .jsonl file (id, text and optionally tags, expect per line) or
            to a .txt file (one prompt a line, whose id is its line number). Blank lines are skipped.

    Raises:
        ValueError: unknown name, unreadable, empty or non-UTF-8 file, broken line, unknown key, duplicate id, and whatever keeps a set
            of others from being had (see `prompts.fetched`). The message is one sentence that names the file and, where there is one,
            the line.
    """
    path = Path(name)
    if path.suffix in (".jsonl", ".txt"):
        return _read_set(path)
    if str(name) in _files():
        return _read_set(HERE / f"{name}.jsonl")
    families = _families()
    if str(name) in families:
        prompts: Sequence[Prompt] = families[str(name)].SETS[str(name)]()
        return prompts
    if path.is_file():
        raise ValueError(
            f"{name} is no file of prompts: give a .jsonl (id and text a line) or a .txt (one prompt a line)"
        )
    raise ValueError(
        f"unknown prompt set {str(name)!r}: give one of {', '.join(names())}, or a path to a .jsonl or .txt file"
    )


def digest(prompts: Iterable[Prompt]) -> str:
    """12 hex characters of the SHA-256 of the prompts as canonical JSON: equal if and only if the prompts are equal.

    Of `LazyPrompts`, that of the recipe that they are made by: to make millions for it would take minutes.
    """
    if isinstance(prompts, LazyPrompts):
        return prompts.digest
    records = [{"id": p.id, "text": p.text, "tags": list(p.tags), "expect": dict(p.expect)} for p in prompts]
    canonical = json.dumps(records, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def normalised(text: str) -> str:
    """What makes two prompts the same question: their words, in the form in which Unicode compares them (NFKC_Casefold, UAX 31), with single blanks between.

    - Letters are those that a reader sees, however they are typed: é in one piece or in two, ａ and a, capitals, and nothing of what shows nothing (a soft
      hyphen, a zero-width space, a byte order mark). Such a text is copied from a page, and leaks from a test into training unseen.
    - A mark is part of the letter that it stands on, whether or not Unicode has the two in one piece: a vowel of Hindi, Thai or Arabic is a mark, and words that
      differ in it are other words. So an accent counts: café is not cafe.
    - All else is between words, and alike: dashes, apostrophes straight or curled, quotation marks, blanks of any width, punctuation, symbols. A mark that stands on no letter is nothing.
    """
    folded = normalize("NFKC", normalize("NFKC", _UNSEEN.sub("", text)).casefold())
    return _NO_WORD.sub(" " if folded.isascii() else _between, folded).strip()


def _between(found: re.Match[str]) -> str:
    """What becomes of characters that are no letters: marks of the letter before them stay with it."""
    others = "" if found.start() == 0 else found[0]
    marks = "".join(takewhile(lambda character: category(character).startswith("M"), others))
    return marks if marks == found[0] else f"{marks} "


def _files() -> list[str]:
    """The prompt sets that are files here."""
    return [path.stem for path in HERE.glob("*.jsonl")]


def _families() -> dict[str, Any]:
    """The module of each prompt set that is written in Python."""
    files = sorted((HERE / "sets").glob("[!_]*.py"))
    modules = [import_module(f"prompts.sets.{path.stem}") for path in files]
    return {name: module for module in modules for name in module.SETS}


def _read_set(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a .jsonl or .txt file."""
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
