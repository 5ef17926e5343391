"""`python -m evals score | compare | report | picture`: score a checkpoint, print the table, write the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

CSV = click.Path(path_type=Path)


class OneSentence(click.Group):
    """A group in which a user's mistake (`ValueError`) ends in one sentence and exit code 2, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)


@click.group(cls=OneSentence, help="How good a checkpoint is, and what it cost elsewhere.")
def main() -> None:
    """The command line of the package."""


@main.command()
@click.argument("target", metavar="RUN_OR_MODEL")
@click.option(
    "--out",
    type=CSV,
    required=True,
    help="Score file to write (.csv); what is there already is not scored again.",
)
@click.option("--suite", default="miniature", show_default=True, help="Which prompts, scorers and sampling.")
def score(target: str, out: Path, suite: str) -> None:
    """Draw the suite's prompts with a checkpoint and score the pictures.

    RUN_OR_MODEL is a run directory, a diffusers folder, a LoRA file or a hub id.
    """
    from evals import harness  # here, since it imports the deep learning stack, which `compare` does not need

    harness.score(target, out, suite)


@main.command()
@click.argument("files", metavar="CSV...", type=CSV, nargs=-1, required=True)
@click.option(
    "--out", type=CSV, required=True, help="Table to write (.md); the numbers go beside it as .csv."
)
def compare(files: tuple[Path, ...], out: Path) -> None:
    """Compare score files with the base's, which must be among them: no GPU, seconds."""
    from evals.compare import at_a_glance, write

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

    write(base, tuned, out)
    click.echo(f"wrote {out}")


def _command(name: str, files: tuple[Path, ...], *options: object) -> str:
    """The command as typed, for the header of what it makes."""
    return " ".join(["python -m evals", name, *(str(part) for part in (*files, *options))])


if __name__ == "__main__":
    main(prog_name="python -m evals")
