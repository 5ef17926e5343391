"""What human raters are shown, and the log of what they answered: pure functions, and one file that only grows.

A comparison is a list of pairs: the picture of A and the picture of B for one prompt and one noise. Every rater sees every pair
once, in an order and on sides of the rater's own, with attention checks in between: a picture against itself under heavy noise,
where the answer is known. Order, sides and checks follow from the comparison's seed and the rater's name, so that nothing of
them need be remembered, and everything can be told afterwards.

The log is JSON lines: the comparison, then one line for each vote and each undo. A vote is on the disk before it is
acknowledged; a line that a crash cut off is no vote, and is removed when the log is opened again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

import prompts
from evals import layout, rows
from evals.files import MARK, sync_folder
from evals.rgb import as_rgb

KIND = "human votes, protocol 1"
"""Changes whenever what raters are asked does: votes under two protocols are not one judge's."""
Choice = Literal["left", "right", "tie"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
TITLE = "# Human votes: "
"""What the tables of a comparison begin with."""
NOISE = " under noise"
GRAIN = 0.8
"""Share of noise in a spoilt picture: what it shows can be guessed at, but nobody takes it for the better one."""
LONGEST = 40
"""Characters of a rater's name."""
_RATER = re.compile(r"\w[\w .'-]*")


class Pair(NamedTuple):
    """The two pictures of one prompt and one noise; `a` and `b` are hashes of their pixels."""

    prompt_set: str
    prompt_id: str
    image: int
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """Everything that decides what raters are shown: the first line of a log."""

    a: str
    """Name of A's folder."""
    b: str
    suites: tuple[str, str]
    """What drew A's and B's pictures, as score rows call it; empty where it is not known."""
    prompts: Mapping[str, str]
    """Hash of each prompt set."""
    pairs: tuple[Pair, ...]
    checks: int
    """Attention checks for each rater."""
    seed: int

    @property
    def suite(self) -> str:
        """As its score rows have it: that which drew both, else both are as pictures that were given."""
        return self.suites[0] if self.suites[0] and self.suites[0] == self.suites[1] else rows.GIVEN


class Shown(NamedTuple):
    """What a rater has before the eyes: "A" or "B", or one of them under noise."""

    pair: int
    left: str
    right: str

    @property
    def answer(self) -> Choice | None:
        """The known answer of an attention check, None for a pair."""
        if self.left.endswith(NOISE):
            return "right"
        return "left" if self.right.endswith(NOISE) else None

    def prefers(self, choice: Choice) -> str:
        """What a choice is for: "A", "B" or "tie"."""
        return {"left": self.left, "right": self.right, "tie": "tie"}[choice]


@lru_cache(maxsize=64)
def _cached(seed: int, pairs: int, checks: int, rater: str) -> tuple[Shown, ...]:
    def number(*what: object) -> int:
        """A random number with a name, the same on every machine and for ever."""
        text = "/".join(str(part) for part in (seed, rater, *what))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def sides(first: str, second: str, *what: object) -> tuple[str, str]:
        return (first, second) if number("side", *what) % 2 else (second, first)

    shown = [Shown(i, *sides("A", "B", "pair", i)) for i in range(pairs)]
    for i in sorted(range(pairs), key=lambda i: number("check", i))[:checks]:
        good = "A" if number("whose", i) % 2 else "B"
        shown.append(Shown(i, *sides(good, good + NOISE, "check", i)))
    return tuple(sorted(shown, key=lambda s: number("order", s.pair, s.answer is None)))


def schedule(comparison: Comparison, rater: str) -> tuple[Shown, ...]:
    """All that a rater is shown, in order: every pair once, and the attention checks."""
    return _cached(comparison.seed, len(comparison.pairs), comparison.checks, rater)


def rater_name(given: object) -> str:
    """The name as it is kept: spaces around it and upper case are nobody's identity.

    Raises:
        ValueError: it is none.
    """
    name = given.replace("’", "'") if isinstance(given, str) else ""
    # again after folding, which takes some letters apart; marks, as the vowels of many scripts are, belong to their letters
    name = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().casefold())
    letters = "".join(c for c in name if not unicodedata.category(c).startswith("M"))
    if len(name) > LONGEST or name[:1] != letters[:1] or not _RATER.fullmatch(letters):
        raise ValueError(
            f"a name is 1 to {LONGEST} letters, digits, spaces, dots, dashes, apostrophes or underscores, and begins with a letter, digit or underscore"
        )
    return name


# ------------------------------------------------------------------------------------------------- pictures


def gather(
    a: Path,
    b: Path,
    prompt_sets: Sequence[str] = (),
    at_most: int = 400,
    images: int = 1,
    checks: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """The comparison of two folders of pictures, in either layout of `evals.layout`; every picture in it is opened once.

    Without folders of prompt sets where `prompt_sets` names the one that they are of.

    Args:
        a: folder of one checkpoint's pictures.
        b: of the other's.
        prompt_sets: which to ask about, NAME or NAME=COUNT for that many prompts at most; none given, all that both folders hold.
        at_most: prompts in all; where there are more, that many are drawn at random. The paper has 400, 300 of them of DiffusionDB and
            100 of PartiPrompts (Fig 2, App. C).
        images: pairs of each prompt, from index 0 on.
        checks: attention checks as a share of the pairs.
        seed: of every random choice.

    Raises:
        ValueError: in one sentence, where the folders do not match, or a picture or a prompt set cannot be read.
    """
    _refuse_folders(a, b)
    limits = _limits(prompt_sets) or dict.fromkeys(_common(a, b))
    texts, index = {name: {p.id for p in prompts.load(name)} for name in limits}, layout.Index()
    found: dict[tuple[str, str], list[int]] = {}
    for name in limits:
        for prompt_id, image in _matching(a, b, name, index):
            if prompt_id not in texts[name]:
                raise ValueError(
                    f"{layout.of_set(a, name) / prompt_id}: the prompt set {name} has no prompt {prompt_id}"
                )
            found.setdefault((name, prompt_id), []).append(image)
    _refuse_more(found, limits, at_most)
    pairs = tuple(
        Pair(
            *key,
            image,
            *(picture_hash(open_picture(index.path_of(folder, *key, image))) for folder in (a, b)),
        )
        for key in _drawn(found, limits, at_most, seed)
        for image in _first(found[key], images, f"{a} holds {len(found[key])} of {key[1]}")
    )
    return Comparison(
        a=_name(a),
        b=_name(b),
        suites=(_suite(a), _suite(b)),
        prompts={name: prompts.digest(prompts.load(name)) for name in sorted({p.prompt_set for p in pairs})},
        pairs=pairs,
        checks=min(len(pairs), max(1, round(checks * len(pairs)))) if checks else 0,
        seed=seed,
    )


def _limits(given: Sequence[str]) -> dict[str, int | None]:
    """The prompt sets that are asked for, with how many prompts of each at most."""
    limits = [_limit(one) for one in given]
    names = [name for name, _ in limits]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--prompt-set {name} is given twice: once says how many prompts")
    return dict(limits)


def _limit(given: str) -> tuple[str, int | None]:
    """NAME, or NAME=COUNT."""
    name, equals, count = given.partition("=")
    if equals and not re.fullmatch(r"[1-9][0-9]{0,8}", count):
        raise ValueError(f"--prompt-set {given}: after = comes how many prompts, a whole number from 1 on")
    return name, int(count) if equals else None


def _refuse_more(keys: Iterable[tuple[str, str]], limits: Mapping[str, int | None], at_most: int) -> None:
    """Refuse counts of prompt sets that come to more than all prompts that are asked about: some would be left out, and nobody had said which."""
    there = Counter(name for name, _ in keys)
    wanted = sum(min(limit, there[name]) for name, limit in limits.items() if limit is not None)
    if wanted > at_most:
        raise ValueError(
            f"the counts of --prompt-set come to {wanted} prompts, but --prompts is {at_most}: give --prompts {wanted}, or smaller counts"
        )


def _drawn(
    keys: Iterable[tuple[str, str]], limits: Mapping[str, int | None], at_most: int, seed: int
) -> list[tuple[str, str]]:
    """The (prompt set, prompt id) that are asked about: the first in a random order, within the limit of each set and that of all."""
    drawn: list[tuple[str, str]] = []
    taken: Counter[str] = Counter()
    for key in sorted(keys, key=lambda key: hashlib.sha256(f"{seed}/{'/'.join(key)}".encode()).digest()):
        limit = limits[key[0]]
        if len(drawn) < at_most and (limit is None or taken[key[0]] < limit):
            drawn.append(key)
            taken[key[0]] += 1
    return sorted(drawn)


def open_picture(path: Path) -> Image.Image:
    """A picture as RGB, as scorers read it.

    Raises:
        ValueError: it is none, or not a whole one.
    """
    try:
        with Image.open(path) as picture:
            return as_rgb(picture)[0].copy()  # read before the file is closed
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be opened as a picture: draw it again") from error


def picture_hash(rgb: Image.Image) -> str:
    """12 hex characters of the SHA-256 of a picture's size and pixels, as score rows have it."""
    return rows.picture_hash(rgb.size, rgb.tobytes())


def under_noise(rgb: Image.Image) -> Image.Image:
    """The picture under heavy noise, the same at every call."""
    pixels = np.asarray(rgb, dtype=np.float64)
    generator = np.random.default_rng(int(picture_hash(rgb), 16))
    mixed = (1 - GRAIN) * pixels + GRAIN * generator.uniform(0, 255, pixels.shape)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _name(folder: Path) -> str:
    return folder.resolve().name


def _refuse_folders(a: Path, b: Path) -> None:
    for folder in (a, b):
        if not folder.is_dir():
            raise ValueError(
                f"there is no folder {folder}: score that checkpoint first, which draws its pictures"
            )
        if not rows.is_name(_name(folder)):
            raise ValueError(
                f"a folder is called {_name(folder)!r}, and rows of votes call what drew its pictures so: give it a name without spaces around it or line breaks"
            )
    if _name(a) == _name(b):
        raise ValueError(
            f"{a} and {b} have one name, by which rows tell them apart: give two folders of two names"
        )


def _common(a: Path, b: Path) -> tuple[str, ...]:
    """The prompt sets that both folders hold."""
    held = set(prompts.names()).intersection(*(layout.subfolders(folder) for folder in (a, b)))
    if not held:
        raise ValueError(
            f"{a} and {b} have pictures of no prompt set in common: score both on one suite, or, where they hold <prompt id>/<index>.png or are as GenEval has them, "
            "say of which: --prompt-set NAME"
        )
    return tuple(sorted(held))


def _matching(a: Path, b: Path, prompt_set: str, index: layout.Index) -> list[tuple[str, int]]:
    """Prompt id and index of every picture of a prompt set, the same in both folders."""
    held = {folder: index.of(folder, prompt_set).keys() for folder in (a, b)}
    for folder in (a, b):
        if not held[folder]:
            where = layout.of_set(folder, prompt_set)
            raise ValueError(
                f"{where} holds no pictures, <prompt id>/<index>.png: score that checkpoint first"
            )
    for one, other in ((a, b), (b, a)):
        if missing := sorted(held[one] - held[other]):
            prompt_id, image = missing[0]
            raise ValueError(
                f"{layout.of_set(other, prompt_set)} lacks {len(missing)} of the {len(held[one])} pictures of {layout.of_set(one, prompt_set)}, "
                f"the first picture {image} of {prompt_id}: draw both on the same prompts and images"
            )
    return sorted(held[a])


def _first(indices: Sequence[int], images: int, held: str) -> Sequence[int]:
    if len(indices) < images:
        raise ValueError(f"--images {images}, but {held}")
    return indices[:images]


def _suite(folder: Path) -> str:
    """The suite whose way of drawing the folder's mark tells of, as score rows call it; "" where there is no mark, or no such suite any more."""
    if not (folder / MARK).is_file():
        return ""
    from evals import suites  # here: the deep learning stack, which nothing else of the voting needs

    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        drawn = (mark["sampling"], mark["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MARK}: does not say how the pictures were drawn") from error
    loaded = (suites.load(name) for name in suites.names())
    return next((suite.drawn for suite in loaded if (repr(suite.sampling), suite.seed) == drawn), "")


# ------------------------------------------------------------------------------------------------------ log


@dataclass
class Votes:
    """A log as read: the comparison, and each rater's choices in the order of the rater's schedule."""

    comparison: Comparison
    choices: dict[str, list[Choice]] = field(default_factory=dict)

    def each(self) -> Iterator[tuple[str, Shown, Choice]]:
        """Every vote that stands: rater, what was shown, what was chosen."""
        for rater, choices in self.choices.items():
            for shown, choice in zip(schedule(self.comparison, rater), choices, strict=False):
                yield rater, shown, choice


def read(path: Path) -> Votes:
    """The votes of a log, which may be in use; a line that a crash cut off at the end is not counted.

    Raises:
        ValueError: it is no log of votes, or damaged; names the line.
    """
    return _parse(_whole_lines(_content(path), path)[0], path)


class Log:
    """A log open for voting: by one process at a time, every entry on the disk before the call returns."""

    def __init__(self, path: Path, comparison: Comparison) -> None:
        """Open it, or begin it.

        Raises:
            ValueError: it is another comparison's, no log at all, damaged, or in use.
        """
        self.path, self.repaired = path, False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by close()
        try:
            self._votes = self._open(comparison)
        except BaseException:
            self._file.close()
            raise

    def _open(self, comparison: Comparison) -> Votes:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is in use by another server: stop that one, or give another --out"
            ) from error
        content = _content(self.path)
        lines, self._size = _whole_lines(content, self.path)
        if self._size != len(content):
            self.repaired = True
            os.ftruncate(self._file.fileno(), self._size)
        if not lines:
            self._append(_header(comparison))
            sync_folder(self.path.parent)
            return Votes(comparison)
        votes = _parse(lines, self.path)
        if votes.comparison != comparison:
            held = votes.comparison
            raise ValueError(
                f"{self.path} is the log of another comparison, {held.a} against {held.b} on {len(held.pairs)} pairs with seed "
                f"{held.seed} and {held.checks} checks, or of other pictures: give another --out"
            )
        return votes

    @property
    def comparison(self) -> Comparison:
        """What is compared."""
        return self._votes.comparison

    def count(self, rater: str) -> int:
        """Votes of a rater that stand, which is also the position of what comes next."""
        return len(self._votes.choices.get(rater, ()))

    def raters(self) -> list[str]:
        """Those who have an entry."""
        return list(self._votes.choices)

    def vote(self, rater: str, choice: Choice) -> None:
        """Add a rater's next vote. Raises OSError where the disk refuses; it is then not counted."""
        shown = schedule(self.comparison, rater)[self.count(rater)]
        self._append(_vote_record(self.comparison, rater, self.count(rater), shown, choice))
        self._votes.choices.setdefault(rater, []).append(choice)

    def undo(self, rater: str) -> None:
        """Take back a rater's last vote. Raises OSError where the disk refuses; the vote then stands."""
        self._append({"rater": rater, "undo": self.count(rater) - 1, "time": _now()})
        self._votes.choices[rater].pop()

    def _append(self, record: Mapping[str, Any]) -> None:
        line = _line(record)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"{self.path}: {written} of {len(line)} bytes written")
            os.fsync(self._file.fileno())
        except OSError:
            # what was not acknowledged must not come back later
            os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _header(comparison: Comparison) -> dict[str, Any]:
    return {"kind": KIND, **asdict(comparison), "pairs": [list(pair) for pair in comparison.pairs]}


def _vote_record(
    comparison: Comparison, rater: str, position: int, shown: Shown, choice: Choice
) -> dict[str, Any]:
    """What a line says of a vote: more than a replay needs, so that it can be read without the schedule."""
    prompt_set, prompt_id, image, _, _ = comparison.pairs[shown.pair]
    return {
        "rater": rater,
        "vote": position,
        "prompt_set": prompt_set,
        "prompt_id": prompt_id,
        "image": image,
        "left": shown.left,
        "right": shown.right,
        "choice": choice,
        "prefers": shown.prefers(choice),
        "time": _now(),
    }


_BEGINNING = _line({"kind": KIND})[:-2]


def _content(path: Path) -> bytes:
    """The bytes of a log.

    Raises:
        ValueError: it is no log, so that nothing else is ever repaired.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the log cannot be read ({(error.strerror or 'error').lower()})") from error
    if not content.startswith(_BEGINNING[: len(content)]):
        raise ValueError(f"{path} is there, and no log of votes under this protocol: choose another name")
    return content


def _whole_lines(content: bytes, path: Path) -> tuple[list[Any], int]:
    """The records of all whole lines, and how many bytes they take: a crash can leave half a line behind them.

    Raises:
        ValueError: a whole line is no JSON.
    """
    size = content.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(content[:size].split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: the log is damaged here, this line is no JSON") from error
    return records, size


def _parse(records: Sequence[Any], path: Path) -> Votes:
    """The votes that stand after all entries.

    Raises:
        ValueError: an entry does not follow from those before; names the line.
    """
    if not records:
        raise ValueError(f"{path} is empty: nobody has begun to vote")
    try:
        votes = Votes(_comparison(records[0]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}:1: the log is damaged here, this line is no comparison") from error
    for number, record in enumerate(records[1:], start=2):
        if not _replay(votes, record):
            raise ValueError(
                f"{path}:{number}: the log is damaged here, this line does not follow from those before"
            )
    return votes


def _comparison(record: Any) -> Comparison:
    first, second = record["suites"]
    found = Comparison(
        a=str(record["a"]),
        b=str(record["b"]),
        suites=(str(first), str(second)),
        prompts={str(name): str(digest) for name, digest in record["prompts"].items()},
        pairs=tuple(Pair(str(s), str(p), int(i), str(a), str(b)) for s, p, i, a, b in record["pairs"]),
        checks=int(record["checks"]),
        seed=int(record["seed"]),
    )
    if lacking := {pair.prompt_set for pair in found.pairs} - found.prompts.keys():
        raise ValueError(f"it has pairs of {', '.join(sorted(lacking))}, and no hash of its prompts")
    return found


def _replay(votes: Votes, record: Any) -> bool:
    """Apply an entry; False where it cannot be one."""
    if not isinstance(record, dict) or not isinstance(record.get("rater"), str):
        return False
    rater = record["rater"]
    choices = votes.choices.setdefault(rater, [])
    if "undo" in record:
        if not choices or record["undo"] != len(choices) - 1:
            return False
        choices.pop()
        return True
    shown = schedule(votes.comparison, rater)
    if record.get("choice") not in CHOICES or len(choices) >= len(shown):
        return False
    said = _vote_record(votes.comparison, rater, len(choices), shown[len(choices)], record["choice"])
    if {**said, "time": None} != {**record, "time": None}:
        return False
    choices.append(record["choice"])
    return True
