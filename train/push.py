"""`python -m train push RUN OWNER/NAME`: a finished run's weights on the hub, with a model card made of what its files say.

The card has no number that is not in run.json or in the score rows. Weights, card, run.json, metrics.jsonl and sheets of samples go up in
one commit; state/ and the trackers' files never do. What JSON says of places on this machine is left out of it: of a path its name stays.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals import asides
from evals.checkpoints import LORA_FILE, PARTS, ROOT, VOCABULARY, WORDS, Checkpoint, first_line, resolve
from evals.files import write_text
from train import grids
from train.config import with_defaults
from train.model_card import NEEDED, local_base, model_card, without_paths

if TYPE_CHECKING:
    import pandas as pd

    from evals.compare import Comparison

SECONDS_TO_ANSWER = 10
"""Until the hub counts as out of reach, when it is asked for a licence: a firewall may drop what is asked without a word."""


class OutOfReach(ValueError):
    """The hub does not answer."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--scores",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Score file with rows of this run, or of its base, for the card's results; repeatable.",
)
@click.option(
    "--licence", metavar="NAME", help="Of the weights, as the hub names it; the base's unless given."
)
@click.option("--private", is_flag=True, help="Make the repository a private one, where it is new.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write the card there; upload nothing."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the card and the files, without a network too; upload nothing."
)
def push(
    run: Path,
    repository: str,
    scores: tuple[Path, ...],
    licence: str | None,
    private: bool,
    out: Path | None,
    dry_run: bool,
) -> None:
    """Put the finished run of directory RUN on the hub as OWNER/NAME."""
    try:
        checkpoint, record = finished(run)
        names = files(run)
        check_name(repository)
        terms = {"license": licence} if licence else terms_of(record, only_shown=dry_run and out is None)
        results = comparison(scores, checkpoint) if scores else None
        sheet = last_sheet(names, record["experiment"]["iterations"])
        card = model_card(checkpoint, record, repository, terms, results, sheet)
        if out is not None:
            write_card(card, out)
        if dry_run:
            click.echo(card)
        if out is not None or dry_run:
            click.echo("\n".join(["README.md", *names]))
            return
        click.echo(upload(run, repository, names, card, private))
    except ValueError as mistake:
        click.echo(f"error: {' '.join(str(mistake).split())}", err=True)  # the hub's library says it in lines
        sys.exit(2)
    except OSError as error:
        click.echo(f"error: {error.filename or run}: {(error.strerror or str(error)).lower()}", err=True)
        sys.exit(2)


# -------------------------------------------------------------------------------------------------------------- the run


def finished(run: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A run and its record.

    Raises:
        ValueError: no run directory, a run that has not finished or trained nothing, or a record that says too little.
    """
    if not (run / "run.json").is_file() and not (run / "state").is_dir():
        raise ValueError(f"{run} is no run directory: it has no run.json")
    checkpoint = resolve(str(run))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if missing := [name for name in NEEDED if name not in record]:
        raise ValueError(
            f"{run / 'run.json'} was written by an earlier version of this project and does not say {missing[0]}, "
            "of which a card is made"
        )
    record["experiment"] = with_defaults(record["experiment"])
    if not record["experiment"]["iterations"]:
        raise ValueError(f"{run} is the base as it was, with nothing trained: it has its own place already")
    return checkpoint, record


def files(run: Path) -> list[str]:
    """What goes up beside the card, as names below the run directory.

    Raises:
        ValueError: where there are no weights.
    """
    found = [run / LORA_FILE] if (run / LORA_FILE).is_file() else _pipeline(run)
    if not found:
        raise ValueError(f"{run} has no weights: neither model_index.json nor {LORA_FILE}")
    beside = [run / "run.json", run / "metrics.jsonl", *sorted((run / grids.FOLDER).glob("[!.]*"))]
    return [str(path.relative_to(run)) for path in (*found, *beside) if path.is_file()]


def _pipeline(run: Path) -> list[Path]:
    """Files of a pipeline in diffusers layout; none where there is none."""
    index = run / "model_index.json"
    parts = [file for part in PARTS for file in sorted((run / part).rglob("[!.]*"))]
    return [index, *parts] if index.is_file() else []


def last_sheet(names: Sequence[str], iterations: int) -> str | None:
    """The sheet of samples that shows the trained model, and no earlier state of it, below the base, where there is one."""
    base, last = (str(grids.sheet_path(Path(), number)) for number in (0, iterations))
    return last if base in names and last in names else None


def terms_of(record: Mapping[str, Any], only_shown: bool) -> dict[str, str]:
    """`licence_of`; for a card that is only shown nothing, which is said, where only the hub knows it and does not answer.

    Raises:
        ValueError: as `licence_of`.
    """
    try:
        return licence_of(record)
    except OutOfReach as error:
        if not only_shown:
            raise
        click.echo(f"note: {error}; the card below is without it", err=True)
        return {}


def licence_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The base's licence, which its derivatives keep, as a model card's front matter says it.

    Raises:
        OutOfReach: where the hub would say it, and does not answer.
        ValueError: where nothing says it.
    """
    from huggingface_hub import HfApi, ModelCard

    base, revision = record["experiment"]["base"], record["experiment"]["revision"]
    folder = local_base(base)
    why = "its model card does not say"
    silent = False
    stated: Any = None
    if folder is None:
        try:
            with hub_refusals(base):
                stated = HfApi().model_info(base, revision=revision, timeout=SECONDS_TO_ANSWER).card_data
        except ValueError as error:
            why, silent = str(error), isinstance(error, OutOfReach)
    elif folder.resolve().is_relative_to(ROOT / "evals"):
        return {"license": "apache-2.0"}  # a part of this repository: see LICENSE
    elif (folder / "README.md").is_file():
        stated = ModelCard.load(folder / "README.md").data
    else:
        why = "no model card lies in it" if folder.is_dir() else "a path has no model card on the hub"
    found = {name: getattr(stated, name, None) for name in ("license", "license_name", "license_link")}
    if not found["license"]:
        kind = OutOfReach if silent else ValueError
        raise kind(f"the licence of {base} is not known ({why}): say it with --licence")
    return {name: str(value) for name, value in found.items() if value}


def comparison(paths: Sequence[Path], checkpoint: Checkpoint) -> Comparison:
    """The run against its base, from score rows: those of other runs, other seeds among them, are left out.

    Raises:
        ValueError: as `evals.rows.read`; where there is no row of the run, or none of the base, or they are of other weights than these.
    """
    from evals import rows
    from evals.compare import compare

    found = rows.read(paths)
    unseen = [why for path in paths if (why := refuse_other_weights(path, checkpoint))]
    mine = _is(found, checkpoint)
    if not mine.any():
        raise ValueError(f"--scores: no row of {', '.join(map(str, paths))} is of {checkpoint.name}")
    base = (found["experiment"] == rows.BASE) & (found["model"] == checkpoint.model)
    made = compare(found[mine | base])
    for why in unseen:
        click.echo(f"note: {why}", err=True)
    return made


def refuse_other_weights(path: Path, checkpoint: Checkpoint) -> str:
    """Refuse scores of another checkpoint of the same name: of a run in this folder before, or of the base that the variant has where this run has another.

    Returns:
        Why it cannot be seen, where it cannot: nothing beside the file fits its rows, or the base is not on this machine (any more, or as named from this folder);
        "" where it can, or they are of neither.

    Raises:
        ValueError: naming the file, and how to score the right one.
    """
    told = asides.scored(path)
    if "weights" not in told:
        return f"of which weights --scores {path} is cannot be seen: nothing beside it tells it of these rows"
    run = checkpoint.source
    gone = checkpoint.base and (at := local_base(checkpoint.base)) and not at.exists()
    for mine, again in ((checkpoint, run), (checkpoint.its_base(), f"{run}@0")):
        named = (mine.experiment, mine.model, mine.seed)
        whose = (told.get("experiment"), told.get("model"), told.get("seed"))
        if whose != named:
            continue
        if gone or (told["weights"] != mine.digest() and not mine.is_known()):
            return f"whether --scores {path} is of the weights of {mine.name} cannot be seen: their base, {checkpoint.base}, is not on this machine"
        if told["weights"] != mine.digest():
            raise ValueError(
                f"--scores {path} is of other weights than those of {mine.source}, though both are called {mine.name}: score it again, "
                f"python -m evals score {again} --out FILE.csv"
            )
    return ""


def _is(rows: pd.DataFrame, checkpoint: Checkpoint) -> pd.Series[bool]:
    return (
        (rows["experiment"] == checkpoint.experiment)
        & (rows["model"] == checkpoint.model)
        & (rows["seed"] == checkpoint.seed)
    )


# ---------------------------------------------------------------------------------------------------------------- the hub


def check_name(repository: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        ValueError: in one sentence.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository, re.ASCII):
        raise ValueError(
            f"{repository} is no name of a repository: give OWNER/NAME, of letters, digits, dash, dot and underscore"
        )


def write_card(card: str, out: Path) -> None:
    """Write the card into a folder.

    Raises:
        ValueError: where that would replace one.
    """
    path = out / "README.md"
    if path.exists():
        raise ValueError(f"--out {out} has a README.md already: choose another folder")
    write_text(card, path)


def upload(run: Path, repository: str, names: Sequence[str], card: str, private: bool) -> str:
    """Put everything on the hub, in one commit.

    Returns:
        where it is.

    Raises:
        ValueError: not logged in, no network, not allowed, or a repository that holds something else.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with hub_refusals(repository):
        api.whoami()
        place = api.create_repo(repository, private=private or None, exist_ok=True)
        refuse_another(api, repository, run)
        added = [CommitOperationAdd(name, content(run / name)) for name in names]
        added.append(CommitOperationAdd("README.md", card.encode()))
        api.create_commit(repository, added, commit_message=f"Weights and card of {run.resolve().name}")
    return str(place)


def content(path: Path) -> Path | bytes:
    """What goes up of a file: itself, or its JSON where that has paths of this machine, as a run's record and a model's config do.

    Raises:
        ValueError: naming a file that is damaged.
    """
    if path.suffix not in (".json", ".jsonl") or path.name in (VOCABULARY, WORDS):  # tokens are no paths
        return path
    text = path.read_text(encoding="utf-8")
    try:
        records = [json.loads(part) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    told = [without_paths(record) for record in records]
    if told == records:
        return path
    indent = 1 if path.suffix == ".json" else None
    return "".join(json.dumps(record, indent=indent) + "\n" for record in told).encode()


def refuse_another(api: Any, repository: str, run: Path) -> None:
    """Refuse a repository that holds anything but this run.

    Raises:
        ValueError: naming what it holds.
    """
    there = sorted(set(api.list_repo_files(repository)) - {".gitattributes"})
    if not there:
        return
    if "run.json" not in there:
        raise ValueError(f"{repository} holds something else already ({there[0]}): choose another name")
    theirs = json.loads(Path(api.hf_hub_download(repository, "run.json")).read_text(encoding="utf-8"))
    ours = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if any(theirs.get(name) != ours[name] for name in ("name", "finished")):
        told = f"{theirs.get('name')}, finished {theirs.get('finished')}"
        raise ValueError(f"{repository} holds another run already ({told}): choose another name")


@contextmanager
def hub_refusals(repository: str) -> Iterator[None]:
    """One sentence for each way in which the hub says no.

    Raises:
        ValueError: that sentence.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise ValueError("you are not logged in to the hub: `hf auth login`, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        raise ValueError(_refusal(repository, error.response.status_code, error)) from error
    except (errors.OfflineModeIsEnabled, _no_answer()) as error:
        raise OutOfReach(f"the hub cannot be reached ({first_line(error)})") from error


def _no_answer() -> type[Exception]:
    """What the hub library's HTTP library raises where there is no connection or no answer, whichever library that is."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # imported there, and not its own

    kind: type[Exception] = HTTPError
    return kind


def _refusal(repository: str, status: int, error: Exception) -> str:
    told = {
        401: f"the hub does not know your token, or has no {repository} for you: `hf auth login`",
        403: f"you may not write to {repository}: name one of your own, or use a token that may write",
        404: f"the hub has no {repository} that you may see",
    }
    return told.get(status, f"the hub refused {repository}: {first_line(error)}")
