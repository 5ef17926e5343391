"""Score rows with one line a picture and one column a scorer: compressed (.csv.xz), half as large as compressed rows.

A line has the columns of `PICTURE`, and for each scorer one that is called by its name and its version. A cell is a value as in `evals.rows`;
empty is NaN; `-` where there is no such score. `trained_on` has of each scorer, in the order of their columns, what its row has, `-` where there is none.
Votes have one column more, called `raters` and then as their scorer's: what `evals.rows.RATERS` has of them.
"""

from __future__ import annotations

import pandas as pd

PICTURE = ("experiment", "model", "seed", "suite", "prompt_set", "prompts", "prompt_id", "image", "picture")
TRAINED_ON = "trained_on"
RATERS = "raters"
"""The column of rows that votes alone have, and before its scorer's the name of a column here."""
NO_SCORE = "-"


def pack(rows: pd.DataFrame) -> pd.DataFrame:
    """Score rows as lines of text: pictures and scorers in the order in which they come first, so that those of a picture all have one order.

    Args:
        rows: with the columns of `evals.rows.COLUMNS`, `value` as text, and `RATERS` where there are votes; no row twice.

    Raises:
        ValueError: a version has a space in it, so that it cannot be told from the scorer's name.
    """
    if (spaced := rows["version"].str.contains(" ")).any():
        row = rows[spaced].iloc[0]
        raise ValueError(
            f"scorer {row.scorer} has the version {row.version!r}, with a space in it, which cannot be packed"
        )
    picture = rows.groupby(list(PICTURE), sort=False, dropna=False).ngroup().to_numpy()
    column = (rows["scorer"] + " " + rows["version"]).to_numpy()
    cells = pd.DataFrame(
        {"value": rows["value"].to_numpy(), TRAINED_ON: rows[TRAINED_ON].astype(int).astype(str).to_numpy()},
        index=pd.MultiIndex.from_arrays([picture, column]),
    )
    wide = cells.unstack(fill_value=NO_SCORE)
    order = list(dict.fromkeys(column))
    lines = rows.drop_duplicates(list(PICTURE))[list(PICTURE)].reset_index(drop=True)
    lines[TRAINED_ON] = ["".join(line) for line in wide[TRAINED_ON][order].to_numpy()]
    lines = lines.join(wide["value"][order])
    if RATERS not in rows.columns or not (voted := (rows[RATERS].fillna("") != "").to_numpy()).any():
        return lines
    who = pd.Series(
        rows[RATERS].to_numpy()[voted], pd.MultiIndex.from_arrays([picture[voted], column[voted]])
    )
    letters = who.unstack(fill_value="").reindex(lines.index, fill_value="")
    return lines.join(letters[[name for name in order if name in letters]].add_prefix(f"{RATERS} "))


def unpack(lines: pd.DataFrame) -> pd.DataFrame:
    """Lines as score rows, all as text, the scores of a line together and with its index; with the column `RATERS` where some are votes that say who voted.

    Raises:
        ValueError: it is no packed file; a column names no scorer and version; or `trained_on` does not go with the scores of a line.
    """
    if missing := [name for name in (*PICTURE, TRAINED_ON) if name not in lines.columns]:
        raise ValueError(
            f"lacks the column {missing[0]}; packed scores have {', '.join((*PICTURE, TRAINED_ON))}"
        )
    others = [name for name in lines.columns if name not in (*PICTURE, TRAINED_ON)]
    if "scorer" in others:
        raise ValueError("holds rows, not packed scores: `python -m evals pack` packs a .csv or .csv.gz")
    who = {name: f"{RATERS} {name}" for name in others if f"{RATERS} {name}" in others}
    columns = [name for name in others if name not in who.values()]
    _refuse_other_letters(lines, columns)
    parts = [lines[list(PICTURE)].assign(scorer="", version="", trained_on="", value="").iloc[:0]]
    for place, column in enumerate(columns):
        scorer, _, version = column.rpartition(" ")
        if not scorer:
            raise ValueError(f"the column {column} names no scorer and its version, with a space between")
        part = lines[list(PICTURE)].assign(
            scorer=scorer, version=version, trained_on=lines[TRAINED_ON].str[place], value=lines[column]
        )
        if who:
            part[RATERS] = lines[who[column]] if column in who else ""
        parts.append(part[part["value"] != NO_SCORE])
    return pd.concat(parts).sort_index(kind="stable")


def _refuse_other_letters(lines: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a line whose `trained_on` says of another number of scorers, or that one has a score that has none, or none that has one; or that has no score."""
    for number, (letters, *values) in enumerate(lines[[TRAINED_ON, *columns]].to_numpy(), start=2):
        scored = [value != NO_SCORE for value in values]
        if [letter != NO_SCORE for letter in letters] != scored or not any(scored):
            raise ValueError(
                f"line {number}: {TRAINED_ON} must have 0 or 1 for each of the {len(columns)} scorers that scored the picture, and - for the others, not {letters!r}"
            )
