"""Score rows: one image, one scorer, one value. Every table is a pure function of such rows.

A file is CSV with the columns of `COLUMNS`. A row says by whom: `experiment`, `model`, training `seed`; of what: `suite`, `prompt_set` and `prompts`, a hash of
all its prompts, `prompt_id`, `image`, the index of the image within its prompt (image i of a prompt is drawn from the same noise for every checkpoint of a
model), and `picture`, a hash of its pixels; and how: `scorer` and `version`, a hash of its code, weights and arithmetic, with `trained_on` 1 where the scorer was a
reward of that run. An empty `value` is NaN: the scorer does not apply (no clear face). An empty `picture` is not known: the row was written before pictures were
hashed, or the picture could not be decoded. A value keeps six significant digits. Rows of human votes have one more column, `raters` (see `VOTES`). A file may hold several runs, and may be compressed (.csv.gz)
or packed (.csv.xz, see `evals.packed`).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import lzma
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from evals.files import EXTERNAL, write_bytes
from evals.packed import RATERS as RATERS
from evals.packed import pack, unpack


class Row(NamedTuple):
    """One score; the fields are the columns of the file, in order."""

    experiment: str
    model: str
    seed: int
    suite: str
    prompt_set: str
    prompts: str
    prompt_id: str
    image: int
    picture: str
    scorer: str
    version: str
    trained_on: int
    value: float


COLUMNS: tuple[str, ...] = Row._fields
HUMAN = "human_votes"
"""The scorer of people's votes."""
VOTES = {"w": 1.0, "t": 0.5, "l": 0.0, ".": np.nan}
"""What a rater says of a picture beside the other one: it wins, ties or loses; a dot is no vote. `RATERS` has it of every rater, `1f3a9c07=w;77e0b21d=t`, and calls a rater the same in all comparisons."""
OTHER_SIDE = str.maketrans("wl", "lw")
"""Votes as they are of the other picture; no letter of a rater's is one of these."""
_CAST = re.compile(r"[0-9a-f]{8}=[wtl.](?:;[0-9a-f]{8}=[wtl.])*|")
LARGEST = 1e50
"""A score's size: beyond single precision, and the fourth powers that an interval is made of can be added up."""
KEY: tuple[str, ...] = ("experiment", "model", "seed", "prompt_set", "prompt_id", "image", "scorer")
NAMES: tuple[str, ...] = ("experiment", "model", "prompt_set", "prompt_id", "scorer")
"""Columns that say of what a score is: never empty."""
IMAGE: tuple[str, ...] = ("prompt_set", "prompt_id", "image")
PROMPT: tuple[str, ...] = ("seed", "prompt_set", "prompt_id")
GIVEN = "given"
"""The suite of votes on pictures of which nothing says how they were drawn; scores of such pictures are of `<suite>:given`."""
BASE = "base"
"""The experiment that was not trained, and that all others of its model are compared with."""


def table(records: Iterable[Row]) -> pd.DataFrame:
    """The rows as a frame with the columns of `COLUMNS`."""
    return pd.DataFrame(list(records), columns=list(COLUMNS))


def read(paths: Sequence[Path | str], refuse: bool = True) -> pd.DataFrame:
    """All rows of the files, with one more column `file` that says where each came from.

    Args:
        paths: of the files.
        refuse: what cannot be compared; False leaves it to the caller to say what differs.

    Raises:
        ValueError: one sentence that names the file, where a file is missing, is not such a CSV or repeats a row; where two
            files hold the same row, or scores of two pictures as of one; where a prompt set was scored on two suites or is not the same prompts everywhere; or where a scorer's
            version is not the same everywhere.
    """
    if not paths:
        raise ValueError("no score files were given: name at least the base's and one experiment's CSV")
    _refuse_twice([Path(path) for path in paths])
    frames = [_read_one(Path(path)) for path in paths]
    rows = pd.concat(frames, ignore_index=True)
    if RATERS in rows.columns:
        rows[RATERS] = rows[RATERS].fillna("")
    rows = _by_opponent(rows)
    _refuse_repeats(rows)
    _refuse_two_pictures(rows)
    if refuse:
        refuse_unlike(rows)
    return rows


def refuse_unlike(rows: pd.DataFrame) -> None:
    """Refuse rows that cannot be compared.

    Args:
        rows: with the column `file`.

    Raises:
        ValueError: where a prompt set was scored on two suites or is not the same prompts everywhere; or where a scorer's version is
            not the same everywhere.
    """
    _refuse_two_suites(rows)
    _refuse_two_files(rows)
    versions(rows)


def write(rows: pd.DataFrame, path: Path | str) -> None:
    """Write the rows as CSV, packed where the name ends in .xz; at once or not at all."""
    packed = Path(path).suffix == ".xz"
    lines = rows.loc[:, list(COLUMNS if RATERS not in rows.columns else (*COLUMNS, RATERS))]
    if packed:
        lines = pack(
            lines.assign(value=lines["value"].map(lambda value: "" if value != value else f"{value:.6g}"))
        )
    content = lines.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode("utf-8")
    write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME) if packed else content, path)


def picture_hash(size: tuple[int, int], rgb: bytes) -> str:
    """12 hex characters of the SHA-256 of a picture's width, height and RGB pixels: the same for the same picture in another file format."""
    return hashlib.sha256(repr(size).encode() + rgb).hexdigest()[:12]


def by_picture(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with all scores of a picture together, in the order of their runs, prompt sets and prompts: compressed a third smaller."""
    run = pd.factorize(pd.MultiIndex.from_frame(rows[["experiment", "model", "seed"]]))[0]
    place = {
        "run": run,
        "set": pd.factorize(rows["prompt_set"])[0],
        "prompt": pd.factorize(rows["prompt_id"])[0],
    }
    order = pd.DataFrame(place | {"image": rows["image"].to_numpy()}).sort_values(
        [*place, "image"], kind="stable"
    )
    return rows.iloc[order.index.to_numpy()].reset_index(drop=True)


def begins_as_scores(path: Path) -> bool:
    """Whether a file is a score file, whole or cut off, or empty: one that may be made anew. A spreadsheet may have saved it since."""
    headers = [",".join(columns).encode() + b"\n" for columns in (COLUMNS, (*COLUMNS, RATERS))]
    with path.open("rb") as file:
        begins = file.read(len(BOM_UTF8) + len(headers[-1]) + 1)
    begins = begins.removeprefix(BOM_UTF8).replace(b"\r\n", b"\n")
    return any(header.startswith(begins[: len(header)]) for header in headers)


def first_row(path: Path) -> dict[str, str] | None:
    """The first row of a score file by column, to know whose it is; None where there is no such file, or no whole row."""
    if not path.is_file() or not begins_as_scores(path):
        return None
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = csv.reader(file)
        next(lines, None)
        cells = next(lines, [])
    if len(cells) not in (len(COLUMNS), len(COLUMNS) + 1):
        return None
    return dict(zip(COLUMNS, cells, strict=False))


def scorings(path: Path) -> set[tuple[str, str]]:
    """The prompt sets and scorers of a score file, whole or cut off; none where there is no such file."""
    if not path.is_file() or not begins_as_scores(path):
        return set()
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return {(line["prompt_set"], line["scorer"]) for line in csv.DictReader(file) if line["scorer"]}


def versions(rows: pd.DataFrame, refuse: bool = True) -> dict[str, str]:
    """The version of every scorer; with the models beside them where another model has another, as the miniature has beside photographs, and with whom it scored where one model has several.

    Args:
        rows: score rows.
        refuse: two versions of one scorer for one model; False tells both.

    Raises:
        ValueError: two versions of one scorer for one model, whose numbers cannot be compared; names both, and a file of each.
    """
    where = "file" if "file" in rows.columns else "experiment"
    columns = list(dict.fromkeys(["model", "scorer", "version", "experiment", where]))
    found = rows[columns].drop_duplicates(["model", "scorer", "version", "experiment"])
    for (_, scorer), group in found.groupby(["model", "scorer"], sort=True):
        one_each = group.drop_duplicates("version")
        if refuse and len(one_each) > 1:
            first, second = one_each.iloc[0], one_each.iloc[1]
            raise ValueError(
                f"scorer {scorer} has version {first.version} in {first[where]} but {second.version} in "
                f"{second[where]}; scores of different versions cannot be compared: score both again"
            )
    return {str(scorer): _version_by_whom(group) for scorer, group in found.groupby("scorer", sort=False)}


NAMED = 3
"""How many of those that have a version are named."""


def _version_by_whom(found: pd.DataFrame) -> str:
    """The version of a scorer, or those that there are, each with its models; where a model has several, with the experiments."""
    if found["version"].nunique() == 1:
        return str(found["version"].iloc[0])
    whose = "experiment" if (found.groupby("model")["version"].nunique() > 1).any() else "model"
    several = whose == "experiment" and found["model"].nunique() > 1
    told = []
    for version, part in found.groupby("version", sort=False):
        names = [
            f"{one} ({model})" if several else str(one)
            for one, model in part[[whose, "model"]]
            .drop_duplicates(whose if not several else None)
            .to_numpy()
        ]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        told.append(f"{version} ({', '.join(names[:NAMED])}{more})")
    return " and ".join(told)


def without_copies(base: pd.DataFrame) -> pd.DataFrame:
    """The base's rows without those that say again what its lowest seed says (`is_copy`)."""
    return base[~is_copy(base)]


def is_copy(base: pd.DataFrame) -> pd.Series[bool]:
    """Which of the base's rows are of another than its lowest seed, where all seeds say the same: of a base that was not trained a seed is a copy.

    A vote is none, and says nothing of it: it is of a pair, under the seed that the base met.
    """
    voted = base["scorer"] == HUMAN
    scored = base[~voted]
    values = scored.groupby(["scorer", *IMAGE])["value"]
    copies = values.nunique(dropna=False).eq(1) & values.size().eq(scored["seed"].nunique())
    again: pd.Series[bool] = ~voted & (base["seed"] != scored["seed"].min()) & bool(copies.all())
    return again


class Voices(NamedTuple):
    """Human votes with a row for each rater's."""

    rows: pd.DataFrame
    """`value` is the rater's, NaN without a vote, and `seed` says whose: rater k of K on the r-th training seed is r K + k."""
    seeds: int
    """Training seeds that were voted on."""
    raters: int
    """Of all seeds together; a rater need not have voted on each."""


def by_rater(rows: pd.DataFrame) -> Voices | None:
    """The human votes among some rows of one model, rater by rater.

    None where there is no vote; where a row of one does not say who voted (`RATERS`); where they are of several comparisons; and where the training seeds of
    the two that were compared are not as many on both sides, or not the same votes seen from either side: of such rows it is not known which seeds met.
    """
    votes = rows[rows["scorer"] == HUMAN]
    if RATERS not in votes.columns or votes.empty or (votes[RATERS] == "").any():
        return None
    order = votes.groupby("experiment")["seed"].rank("dense").astype(int) - 1
    seeds = order.groupby(votes["experiment"]).max() + 1
    if votes["version"].nunique() > 1 or seeds.nunique() > 1 or not _is_mirrored(votes, order):
        return None
    cast = {cell: dict(vote.split("=") for vote in cell.split(";")) for cell in votes[RATERS].unique()}
    raters = _raters(cast.values())
    each = [
        votes.assign(
            seed=order * len(raters) + place,
            value=[VOTES[cast[cell].get(rater, ".")] for cell in votes[RATERS]],
        )
        for place, rater in enumerate(raters)
    ]
    return Voices(pd.concat(each, ignore_index=True), int(seeds.iloc[0]), len(raters))


def _is_mirrored(votes: pd.DataFrame, order: pd.Series[int]) -> bool:
    """Whether several training seeds of two checkpoints have the same votes, seen from either side; of one seed each they can be no others."""
    if not order.any():
        return True
    images = votes.assign(order=order).sort_values(["order", *IMAGE], kind="stable")
    first, *others = (list(part[RATERS]) for _, part in images.groupby("experiment"))
    return all([seen.translate(OTHER_SIDE) for seen in first] == other for other in others)


def _raters(cast: Iterable[dict[str, str]]) -> list[str]:
    """All raters, in the order of their places where these are the same in all votes."""
    places: dict[str, int] = {}
    for said in cast:
        for place, rater in enumerate(said):
            places[rater] = min(place, places.get(rater, place))
    return sorted(places, key=lambda rater: (places[rater], rater))


class SeedPairs(NamedTuple):
    """The training seeds of two checkpoints as they are set beside each other."""

    pairs: tuple[tuple[int, int], ...]
    """One seed of each, ascending."""
    stream: str
    """The name of what resamples them."""


def seeds_of(rows: pd.DataFrame) -> tuple[int, ...]:
    """The training seeds, ascending."""
    return tuple(sorted(map(int, rows["seed"].unique())))


def seed_pairs(
    first: str, of_first: Sequence[int], second: str, of_second: Sequence[int]
) -> SeedPairs | None:
    """Which training seeds of two experiments are set beside each other; None where both have several, and not the same.

    A side of one seed is set beside every seed of the other; where both have several, seed beside seed. Both are the same from either
    side, so that swapping the two negates every difference.

    Args:
        first: the one experiment.
        of_first: its seeds, ascending.
        second: the other experiment.
        of_second: its seeds, ascending.
    """
    if len(of_second) == 1:
        return SeedPairs(tuple((seed, of_second[0]) for seed in of_first), f"seeds of {first}")
    if len(of_first) == 1:
        return SeedPairs(tuple((of_first[0], seed) for seed in of_second), f"seeds of {second}")
    if tuple(of_first) != tuple(of_second):
        return None
    return SeedPairs(
        tuple((seed, seed) for seed in of_first), f"seeds of {' and '.join(sorted((first, second)))}"
    )


def same_images(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """The base's rows beside `rows`: same scorer, prompt and image index, hence same noise; same index as `rows`.

    Each training seed is set beside the base of the same seed where there is one, otherwise beside the base's lowest seed. The
    result carries the seed of `rows`, so that both are grouped alike.

    Raises:
        ValueError: a row has no partner, on either side; nothing is ever dropped.
    """
    parts = [
        _partners_of_seed(part, _base_of(base, int(str(seed))))
        for seed, part in rows.groupby("seed", sort=False)
    ]
    return pd.concat(parts).loc[rows.index] if parts else rows


def _base_of(base: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The base's rows for a training seed."""
    seeds = set(base["seed"])
    return base[base["seed"] == (seed if seed in seeds else min(seeds))]


def _partners_of_seed(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """The partner of each row of one training seed."""
    key = ["scorer", *IMAGE]
    mine = pd.MultiIndex.from_frame(rows[key])
    theirs = pd.MultiIndex.from_frame(base[key])
    ours, other = (str(side["experiment"].iloc[0]) for side in (rows, base))
    _refuse_missing(mine.difference(theirs), len(mine), ours, other, rows)
    used = theirs.get_level_values("prompt_set").isin(rows["prompt_set"].unique())
    _refuse_missing(theirs[used].difference(mine), int(used.sum()), other, ours, rows)
    partner = rows.copy()
    partner["value"] = base["value"].to_numpy()[theirs.get_indexer(mine)]
    return partner


def _refuse_missing(missing: pd.MultiIndex, of: int, whose: str, who: str, rows: pd.DataFrame) -> None:
    if len(missing) == 0:
        return
    scorer, prompt_set, prompt_id, image = missing[0]
    raise ValueError(
        f"{who} lacks {len(missing)} of the {of} {scorer} scores that {whose} has (seed {rows['seed'].iloc[0]}), the first "
        f"of {prompt_set}, prompt {prompt_id}, image {image}: score both on the same prompts and images"
    )


def _from_xz(stored: bytes) -> bytes:
    """What a whole xz file holds; `lzma.decompress` ignores what follows the first stream, and takes formats without a checksum.

    Raises:
        lzma.LZMAError: for anything else.
    """
    opened = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    content = opened.decompress(stored)
    if not opened.eof or opened.unused_data:
        raise lzma.LZMAError("it ends too early" if not opened.eof else "something follows its end")
    return content


DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": _from_xz}


def _read_one(path: Path) -> pd.DataFrame:
    text = _cells(path)
    if not text.columns.is_unique:
        twice = text.columns[text.columns.duplicated()][0]
        raise ValueError(f"{path}: has the column {twice} twice")
    if path.suffix == ".xz":
        try:
            text = unpack(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    missing = [name for name in COLUMNS if name not in text.columns]
    if missing:
        raise ValueError(f"{path}: lacks the column {missing[0]}; a score file has {', '.join(COLUMNS)}")
    if text.empty:
        raise ValueError(f"{path}: holds no score")
    rows = text.loc[:, list(COLUMNS)].copy()
    rows["suite"] = rows["suite"].replace("", GIVEN)  # as votes once had it
    for name in NAMES:
        _refuse_no_name(rows[name], name, path)
    for name in ("seed", "image", "trained_on"):
        rows[name] = _whole_numbers(text[name], name, path)
    rows["value"] = _values(text["value"], path)
    if not rows["trained_on"].isin([0, 1]).all():
        raise ValueError(f"{path}: trained_on must be 0 or 1")
    if RATERS in text.columns:
        _refuse_no_votes(text[RATERS], path)
        rows[RATERS] = text[RATERS]
    return rows.assign(file=str(path))


def _cells(path: Path) -> pd.DataFrame:
    """The file as strings; a line with a cell too few or too many is an error, since a cut-off file would else read as NaN."""
    try:
        stored = path.read_bytes()
        content = DECOMPRESS.get(path.suffix, bytes)(stored).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: is not a whole {path.suffix[1:]} file ({error})") from error
    except OSError as error:
        hint = "; make it with `python -m evals score`" if isinstance(error, FileNotFoundError) else ""
        raise ValueError(
            f"{path}: the score file cannot be read ({(error.strerror or 'error').lower()}){hint}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8, so it is not a score file") from error
    if not content.endswith("\n"):
        raise ValueError(
            f"{path}: does not end with a whole line, so it is empty or was cut off: score again"
        )
    try:
        header, *lines = csv.reader(io.StringIO(content), strict=True)
    except csv.Error as error:
        raise ValueError(f"{path}: is not a CSV file ({error})") from error
    if len(header) == 1 and ";" in header[0]:
        raise ValueError(
            f"{path}: its cells are parted by semicolons: save it with commas, and numbers with a point"
        )
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise ValueError(f"{path}: line {number} has {len(line)} cells, but the header has {len(header)}")
    return pd.DataFrame(lines, columns=header, dtype=str)


def is_name(value: str) -> bool:
    """Whether tables can tell something by it: it is not empty, has no spaces around it, and nothing in it that cannot be printed, such as a line break."""
    return value.isprintable() and value == value.strip() != ""


def _refuse_no_name(column: pd.Series[str], name: str, path: Path) -> None:
    """Refuse what tables cannot tell by name (`is_name`)."""
    unfit = {value for value in column.unique() if not is_name(value)}
    if unfit:
        bad = column[column.isin(unfit)]
        raise ValueError(
            f"{path}: line {_line(bad)}: {name} must be a name without spaces around it or line breaks, not {bad.iloc[0]!r}"
        )


def _whole_numbers(column: pd.Series[str], name: str, path: Path) -> pd.Series[int]:
    bad = column[~column.str.fullmatch(r"\d{1,18}")]
    if len(bad):
        raise ValueError(f"{path}: line {_line(bad)}: {name} must be a whole number, not {bad.iloc[0]!r}")
    return column.astype(np.int64)


def _refuse_no_votes(column: pd.Series[str], path: Path) -> None:
    bad = column[~column.str.fullmatch(_CAST)]
    if len(bad):
        raise ValueError(
            f"{path}: line {_line(bad)}: {RATERS} must be RATER=VOTE for each rater, with a semicolon between, where RATER is 8 hex characters and VOTE one of "
            f"{', '.join(VOTES)}, not {bad.iloc[0]!r}; `python -m evals tally` makes these rows from the log of the votes"
        )


def _values(column: pd.Series[str], path: Path) -> pd.Series[float]:
    number = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = column[(number.isna() & (column != "")) | np.isinf(number)]
    if len(bad):
        raise ValueError(
            f"{path}: line {_line(bad)}: value must be a finite number or empty, not {bad.iloc[0]!r}"
        )
    huge = column[number.abs() > LARGEST]
    if len(huge):
        raise ValueError(
            f"{path}: line {_line(huge)}: value must be a number of at most {LARGEST:.0e} in size, of whose powers sums can be made, or empty, not {huge.iloc[0]!r}"
        )
    return number


def _line(bad: pd.Series[str]) -> int:
    """The line of the file that holds the first bad cell; line 1 is the header."""
    return int(str(bad.index[0])) + 2


def _refuse_two_suites(rows: pd.DataFrame) -> None:
    """Refuse a prompt set of a model that was scored on two suites, and name a file of each. Votes on given pictures name none, and go with any that was given them."""
    told = ["experiment", "model", "seed", "suite", "prompt_set", "file"]
    found = rows[told].drop_duplicates(["model", "prompt_set", "suite"])
    for (_, prompt_set), group in found.groupby(["model", "prompt_set"], sort=True):
        named = group["suite"].str.endswith(f":{GIVEN}")
        if named.any():
            group = group[group["suite"] != GIVEN]
        if len(group) == 1:
            continue
        first, second = group.iloc[0], group.iloc[1]
        given = [one.suite.rpartition(":")[2] == GIVEN for one in (first, second)]
        then = "score both on one" if all(given) else "they draw differently, score both on one"
        if given[0] != given[1]:
            then = _how_to_give(first if given[1] else second)
        raise ValueError(
            f"prompt set {prompt_set} was scored on the suite {first.suite} in {first.file} but on {second.suite} in {second.file}: {then}"
        )


def _how_to_give(drawn: Any) -> str:
    """How pictures that were drawn are scored as given ones are, from one of their rows."""
    model = "" if drawn.model == EXTERNAL else f" --model {drawn.model}"
    return (
        f"pictures that were given do not share the noise of those that {drawn.experiment} drew, so score these as pictures too: "
        f"`python -m evals score IMAGES/{drawn.experiment}-{drawn.model}-{drawn.seed} --pictures --suite {drawn.suite.partition(':')[0]} "
        f"--name {drawn.experiment.replace('@', '_')}{model} --out OTHER.csv`, where IMAGES is the folder into which {drawn.file} drew them"
    )


def _refuse_two_files(rows: pd.DataFrame) -> None:
    """Refuse a prompt set of a model that is not the same prompts everywhere, and name a score file of each."""
    found = rows[["model", "prompt_set", "prompts", "file"]].drop_duplicates(
        ["model", "prompt_set", "prompts"]
    )
    for (_, prompt_set), group in found.groupby(["model", "prompt_set"], sort=True):
        if len(group) > 1:
            first, second = group.iloc[0], group.iloc[1]
            raise ValueError(
                f"prompt set {prompt_set} is the prompts {first['prompts']} in {first['file']} but {second['prompts']} in {second['file']}: "
                "its file has changed in between, score both again"
            )


def _refuse_twice(paths: Sequence[Path]) -> None:
    first: dict[Path, Path] = {}
    for path in paths:
        if (before := first.setdefault(path.resolve(), path)) is not path:
            also = "" if str(before) == str(path) else f", also as {before}"
            raise ValueError(f"{path} is given twice{also}: once is enough")


def _by_opponent(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the votes on a checkpoint that met several training seeds of another, as the one base does, under the seeds that it met: a vote is of a pair."""
    votes = rows[rows["scorer"] == HUMAN]
    again = votes[votes.duplicated(list(KEY))]
    met = set(zip(again["model"], again["experiment"], strict=True))
    seeds = rows["seed"].copy()
    for (_, model), part in votes.groupby(["file", "model"], sort=False) if met else ():
        is_met = np.array([(model, experiment) in met for experiment in part["experiment"]])
        others = part.loc[~is_met, "seed"].unique()
        if len(others) == 1:
            seeds[part.index[is_met]] = others[0]
    return rows.assign(seed=seeds) if met else rows


def _refuse_repeats(rows: pd.DataFrame) -> None:
    repeat = rows.duplicated(list(KEY))
    if not repeat.any():
        return
    second = rows[repeat].iloc[0]
    first = rows[(rows[list(KEY)] == second[list(KEY)]).all(axis=1)].iloc[0]
    where = second.file if first.file == second.file else f"{first.file} and {second.file}"
    # a run has its name from its card
    other = second.model == EXTERNAL and first.file != second.file
    raise ValueError(
        f"{where}: two {second.scorer} scores of {second.experiment} seed {second.seed}, {second.prompt_set}, prompt "
        f"{second.prompt_id}, image {second.image}{': score one of the two under another --name' if other else ''}"
    )


def _refuse_two_pictures(rows: pd.DataFrame) -> None:
    """Refuse an image that is one picture to one scorer and another to the next, as where votes are on pictures that were since drawn again."""
    image = ["experiment", "model", "seed", *IMAGE]
    found = rows.loc[rows["picture"] != "", [*image, "picture", "scorer", "file"]]
    found = found.drop_duplicates([*image, "picture"])
    second = found[found.duplicated(image)]
    if second.empty:
        return
    other = second.iloc[0]
    first = found[(found[image] == other[image]).all(axis=1)].iloc[0]
    where = other.file if first.file == other.file else f"{first.file} and {other.file}"
    raise ValueError(
        f"{where}: {first.scorer} and {other.scorer} have scored two different pictures as {other.experiment} seed {other.seed}, {other.prompt_set}, prompt "
        f"{other.prompt_id}, image {other.image}: pictures were drawn again in between, so score or vote again"
    )
