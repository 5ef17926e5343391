"""`python -m evals score | compare | report | picture | pack | check-scorer | calibrate`: score a checkpoint, print the table, write the page."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals import rows

if TYPE_CHECKING:
    from evals.scorers import Domain

CSV = click.Path(path_type=Path)


class OneSentence(click.Group):
    """A group in which a user's mistake (`ValueError`, or a file that cannot be used) ends in one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            click.echo(f"error: {error}", err=True)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {where}{(error.strerror or str(error)).lower()}", err=True)
        sys.exit(2)


def check_out(out: Path, suffix: str, inputs: Sequence[Path] = ()) -> None:
    """Refuse an --out of another kind, or one that would replace what is read.

    Raises:
        ValueError: naming the option.
    """
    if not out.name.endswith(suffix):
        raise ValueError(f"--out {out} must end in {suffix}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file")
    if any(out.resolve() == path.resolve() for path in inputs):
        raise ValueError(f"--out would write over {out}, which is read: choose another name")


@click.group(cls=OneSentence, help="How good a checkpoint is, and what it cost elsewhere.")
def main() -> None:
    """The command line of the package."""


@main.command()
@click.argument("target", metavar="RUN_OR_MODEL")
@click.option(
    "--out",
    type=CSV,
    required=True,
    help="Score file to write (.csv). Its pictures go to images/ beside its folder.",
)
@click.option(
    "--suite", help="Which prompts, scorers and sampling; that of the domain of a run unless given."
)
@click.option(
    "--accept-terms",
    metavar="REPOSITORY",
    multiple=True,
    help="Use weights of this repository, whose terms are not free for every use; repeatable.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="That share the work, one to a GPU; without a GPU they share the CPU. Hosts that see the folder of --out are given the same command.",
)
@click.option(
    "--pictures",
    is_flag=True,
    help="RUN_OR_MODEL is a folder of somebody's pictures, PROMPT_SET/PROMPT_ID/0.png, or as GenEval has them: nothing is drawn.",
)
@click.option(
    "--name", help="With --pictures: what their rows are called (base: others are compared with them)."
)
@click.option(
    "--model",
    help="With --pictures: what the model is called, that of the rows to compare with; external unless given.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="With --pictures: folder of the base's, for scorers that compare with them.",
)
def score(
    target: str,
    out: Path,
    suite: str | None,
    accept_terms: tuple[str, ...],
    processes: int,
    pictures: bool,
    name: str | None,
    model: str | None,
    base: Path | None,
) -> None:
    """Draw the suite's prompts with a checkpoint and score the pictures, or score somebody's (--pictures).

    RUN_OR_MODEL is a run directory, a diffusers folder, a checkpoint in one file (see evals/families.py), a LoRA file, or a hub id, owner/name or owner/name@revision.
    The same command goes on where it was stopped. X.json beside --out X.csv tells what was scored and counted.
    """
    check_out(out, ".csv")
    if out.is_file() and not rows.begins_as_scores(out):
        raise ValueError(f"--out {out} is there, and no score file: choose another name")
    _check_given(pictures, suite=suite, name=name, model=model, base=base)
    from evals import harness, weights  # here: the deep learning stack, which `compare` does not need

    if processes > 1:
        sys.exit(_share(processes))
    weights.accept_terms(accept_terms)
    if pictures:
        assert suite is not None
        assert name is not None
        harness.score_given(Path(target), out, suite, name, model or "external", base)
    else:
        harness.score(target, out, suite)


def _check_given(pictures: bool, **options: str | Path | None) -> None:
    """Refuse options that say whose pictures are given where none are, and pictures without them.

    Raises:
        ValueError: naming the option.
    """
    if not pictures:
        for option in ("name", "model", "base"):
            if options[option] is not None:
                raise ValueError(f"--{option} goes with --pictures: of a checkpoint its run says it")
        return
    for option in ("suite", "name"):
        if options[option] is None:
            raise ValueError(f"--pictures needs --{option}: nothing else says it")
    for option in ("name", "model"):
        value = options[option]
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]*", str(value)):
            raise ValueError(f"--{option} {value} must be letters, digits, dots and underscores")


def _share(processes: int) -> int:
    """Run this very command in several processes. Returns the exit code."""
    from evals import workers

    environments = workers.environments(processes, workers.visible_gpus())
    # click takes the last of two: the processes do not start others
    return workers.run([sys.executable, *sys.orig_argv[1:], "--processes", "1"], environments)


@main.command()
@click.argument("files", metavar="CSV...", type=CSV, nargs=-1, required=True)
@click.option(
    "--out", type=CSV, required=True, help="Table to write (.md); the numbers go beside it as .csv."
)
def compare(files: tuple[Path, ...], out: Path) -> None:
    """Compare score files with the base's, which must be among them: no GPU, seconds."""
    from evals.compare import at_a_glance, write

    check_out(out, ".md", files)
    check_out(out.with_suffix(".csv"), ".csv", files)
    comparison = write(files, out, command=_command("compare", files, "--out", out))
    for model in comparison.models():
        click.echo(
            f"\n{model}: value [95 % interval], ▲ better ▼ worse ≈ not distinguished from the base, † trained on it\n"
        )
        click.echo(at_a_glance(comparison, model))
    click.echo(f"\nwrote {out} and {out.with_suffix('.csv')}")


@main.command()
@click.argument("files", metavar="CSV...", type=CSV, nargs=-1, required=True)
@click.option(
    "--runs", type=CSV, default=Path("results/runs"), show_default=True, help="Folder of run directories."
)
@click.option(
    "--images",
    type=CSV,
    default=Path("results/images"),
    show_default=True,
    help="Folder of the scored pictures.",
)
@click.option("--out", type=CSV, required=True, help="Page to write (.html).")
def report(files: tuple[Path, ...], runs: Path, images: Path, out: Path) -> None:
    """Write one self-contained HTML page: table, pictures from the same noise, curves, cost."""
    from evals.report import write

    check_out(out, ".html", files)
    write(
        files,
        runs,
        images,
        out,
        command=_command("report", files, "--runs", runs, "--images", images, "--out", out),
    )
    click.echo(f"wrote {out}")


@main.command()
@click.argument("base", type=CSV)
@click.argument("tuned", type=CSV)
@click.option("--out", type=CSV, required=True, help="Picture to write (.png).")
def picture(base: Path, tuned: Path, out: Path) -> None:
    """Draw pairs from two folders under results/images, left BASE, right TUNED, from the same noise."""
    from evals.picture import write

    check_out(out, ".png")
    write(base, tuned, out)
    click.echo(f"wrote {out}")


@main.command()
@click.argument("files", metavar="CSV...", type=CSV, nargs=-1, required=True)
@click.option("--out", type=CSV, required=True, help="Compressed score file to write (.csv.gz).")
def pack(files: tuple[Path, ...], out: Path) -> None:
    """Put score files into one small one, once all of them have been read without a fault."""
    check_out(out, ".csv.gz", files)
    rows.write(rows.read(files), out)
    click.echo(f"wrote {out}")


@main.command()
def licences() -> None:
    """List what is used of others: weights of scorers (repository, revision, licence, SHA-256) and prompt sets."""
    import prompts
    from evals import scorers

    for name in scorers.names("photo"):
        for weights in scorers.weights_of(scorers.load(name, domain="photo", terms=False)):
            terms = "free for every use" if weights.free else f"needs --accept-terms {weights.repository}"
            click.echo(
                f"{name}: {weights.repository} at {weights.revision or 'the newest revision'}; {weights.licence}; {terms}"
            )
            for number, file in enumerate(weights.files):
                digest = weights.sha256[number] if weights.sha256 else "in the card of a run that uses it"
                click.echo(f"    {file}  sha256 {digest}")
    for prompt_set, source, licence in prompts.sources():
        click.echo(f"{prompt_set}: {source}; {licence}")


@main.command("check-scorer")
@click.argument("scorer", metavar="NAME_OR_FILE")
@click.option(
    "--domain",
    type=click.Choice(["photo", "miniature"]),
    default="miniature",
    show_default=True,
    help="Of the scorer of that name, and of the pictures that it is shown.",
)
@click.option(
    "--accept-terms",
    metavar="REPOSITORY",
    multiple=True,
    help="Use weights of this repository, whose terms are not free for every use; repeatable.",
)
def check_scorer(scorer: str, domain: Domain, accept_terms: tuple[str, ...]) -> None:
    """Hold a scorer to its contract, on a few pictures: exit code 1 where it does not keep it."""
    from evals import scorers, weights
    from evals.scorers._contract import faults, pictures

    weights.accept_terms(accept_terms)
    loaded = scorers.load(scorer, domain=domain)
    for one in scorers.weights_of(loaded):
        one.paths()  # what cannot be had is no fault of the scorer's
    images, asked = pictures(domain)
    found = faults(scorer, loaded, images, asked)
    for fault in found:
        click.echo(f"error: {scorer}: {fault}", err=True)
    if found:
        sys.exit(1)
    click.echo(f"{scorer} keeps the contract on {len(asked)} pictures")


@main.command()
@click.argument("what", type=click.Choice(["skin-tone"]))
@click.option(
    "--photographs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of portraits, recoloured in memory, beside the drawn heads and scikit-image's astronaut.",
)
@click.option(
    "--out", type=CSV, required=True, help="Tables to write (.md); the counts go beside them as .csv."
)
def calibrate(what: str, photographs: Path | None, out: Path) -> None:
    """Measure how often a scorer is right where the truth is known: minutes.

    skin-tone: faces in each of the ten Monk tones, in light of several colours and exposures.
    """
    from evals.skin import write

    check_out(out, ".md")
    options = () if photographs is None else ("--photographs", photographs)
    write(photographs, out, command=_command(f"calibrate {what}", (), *options, "--out", out))
    click.echo(f"wrote {out} and {out.with_suffix('.csv')}")


def _command(name: str, files: tuple[Path, ...], *options: object) -> str:
    """The command as typed, for the header of what it makes."""
    return " ".join(["python -m evals", name, *(str(part) for part in (*files, *options))])


if __name__ == "__main__":
    main(prog_name="python -m evals")
