"""Score rows with one line a picture and one column a scorer, as the repository keeps them (.csv.xz): half as large as compressed rows.

A line has the columns of `PICTURE`, and for each scorer one that is called by its name and its version. A cell is a value as in `evals.rows`;
empty is NaN; `-` where there is no such score. `trained_on` has of each scorer, in the order of their columns, what its row has, `-` where there is none.
"""

from __future__ import annotations

import pandas as pd

PICTURE = ("experiment", "model", "seed", "suite", "prompt_set", "prompts", "prompt_id", "image", "picture")
TRAINED_ON = "trained_on"
NO_SCORE = "-"


def pack(rows: pd.DataFrame) -> pd.DataFrame:
    """Score rows as lines of text, pictures and scorers in the order in which they come first.

    Args:
        rows: with the columns of `evals.rows.COLUMNS`, `value` as text; no row twice.
    """
    picture = rows.groupby(list(PICTURE), sort=False).ngroup().to_numpy()
    column = (rows["scorer"] + " " + rows["version"]).to_numpy()
    cells = rows[["value", TRAINED_ON]].astype(str).set_axis(pd.MultiIndex.from_arrays([picture, column]))
    wide = cells.unstack(fill_value=NO_SCORE)
    order = list(dict.fromkeys(column))
    lines = rows.drop_duplicates(list(PICTURE))[list(PICTURE)].reset_index(drop=True)
    lines[TRAINED_ON] = ["".join(line) for line in wide[TRAINED_ON][order].to_numpy()]
    return lines.join(wide["value"][order])


def unpack(lines: pd.DataFrame) -> pd.DataFrame:
    """Lines as score rows, all as text, the scores of a line together and with its index.

    Raises:
        ValueError: a column is missing, or names no scorer and version; or trained_on is not of so many scorers.
    """
    missing = [name for name in (*PICTURE, TRAINED_ON) if name not in lines.columns]
    if missing:
        raise ValueError(
            f"lacks the column {missing[0]}; packed scores have {', '.join((*PICTURE, TRAINED_ON))}"
        )
    columns = [name for name in lines.columns if name not in (*PICTURE, TRAINED_ON)]
    if any(lines[TRAINED_ON].str.len() != len(columns)):
        raise ValueError(f"trained_on must have a letter for each of the {len(columns)} scorers")
    parts = [lines[list(PICTURE)].assign(scorer="", version="", trained_on="", value="").iloc[:0]]
    for place, column in enumerate(columns):
        scorer, _, version = column.rpartition(" ")
        if not scorer:
            raise ValueError(f"the column {column} names no scorer and its version, with a space between")
        part = lines[list(PICTURE)].assign(
            scorer=scorer, version=version, trained_on=lines[TRAINED_ON].str[place], value=lines[column]
        )
        parts.append(part[part["value"] != NO_SCORE])
    return pd.concat(parts).sort_index(kind="stable")
