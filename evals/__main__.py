"""`python -m evals score | compare | report | fairness | curve | plan | vote | tally | calibrate | ...`: score checkpoints, say which is better, write the page."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals import rows

if TYPE_CHECKING:
    from evals.scorers import Domain

CSV = click.Path(path_type=Path)
ACCEPT_TERMS = click.option(
    "--accept-terms",
    metavar="REPOSITORY",
    multiple=True,
    help="Use weights of this repository, whose terms are not free for every use; repeatable.",
)

AGAINST = click.option(
    "--against",
    default="base",
    show_default=True,
    metavar="EXPERIMENT",
    help="What everything is compared with: an experiment in the rows.",
)
FORCE = click.option(
    "--force",
    is_flag=True,
    help="Compare scores of different scorer versions, suites or prompts of the same ids, and mark every cell concerned.",
)


class OneSentence(click.Group):
    """A group in which a user's mistake (`ValueError`, or a file that cannot be used) ends in one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            click.echo(f"error: {error}", err=True)
        except BrokenPipeError:
            raise  # who reads the output, as `head` does, has had enough: click ends quietly
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {where}{(error.strerror or str(error)).lower()}", err=True)
        sys.exit(2)


class Share(click.FloatRange):
    """A number from 0 to 1. NaN is none: it passes the comparisons of click's range."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; fails for any other."""
        share = float(super().convert(value, param, ctx))
        return self.fail("nan is not in the range 0<=x<=1.", param, ctx) if math.isnan(share) else share


def check_out(out: Path, suffix: str, inputs: Sequence[Path] = (), option: str = "--out") -> None:
    """Refuse an --out, or another option that names a file, of another kind, or one that would replace what is read.

    Raises:
        ValueError: naming the option.
    """
    if not out.name.endswith(suffix):
        raise ValueError(f"{option} {out} must end in {suffix}")
    if out.is_dir():
        raise ValueError(f"{option} {out} is a folder: name a file")
    if any(out.resolve() == path.resolve() for path in inputs):
        raise ValueError(f"{option} would write over {out}, which is read: choose another name")
    there = next(folder for folder in out.absolute().parents if folder.exists() or folder.is_symlink())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is a file, not a folder"
        raise ValueError(f"{option} {out} cannot be made: {there} {what}")


def check_table(out: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse an --out that is no .md, or whose numbers, which go beside it as .csv, would replace what is read or somebody's scores.

    Raises:
        ValueError: naming the option.
    """
    check_out(out, ".md", inputs)
    numbers = out.with_suffix(".csv")
    check_out(numbers, ".csv", inputs)
    if rows.first_row(numbers) is not None:
        raise ValueError(
            f"--out {out} would write its numbers over {numbers}, which holds scores: choose another name"
        )


@click.group(cls=OneSentence, help="How good a checkpoint is, and what it cost elsewhere.")
def main() -> None:
    """The command line of the package."""


@main.command()
@click.argument("target", metavar="RUN_OR_MODEL")
@click.option(
    "--out",
    type=CSV,
    required=True,
    help="Score file to write (.csv). Its pictures go to images/ beside it, or beside a folder called scores.",
)
@click.option(
    "--suite", help="Which prompts, scorers and sampling; that of the domain of a run unless given."
)
@click.option(
    "--prompt-set",
    "prompt_sets",
    metavar="NAME",
    multiple=True,
    help="Only this prompt set of the suite; repeatable. All unless given.",
)
@ACCEPT_TERMS
@click.option(
    "--vendi-order",
    "orders",
    metavar="Q",
    type=float,
    multiple=True,
    help="Score the suite's Vendi scores of order Q too, as vendi_qQ (0.5, 2, inf; they have order 1); repeatable.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="That share the work, one to a GPU; without a GPU they share the CPU (OMP_NUM_THREADS threads each, if that is set). Hosts that see the folder of --out are given the same command.",
)
@click.option(
    "--pictures",
    is_flag=True,
    help="RUN_OR_MODEL is a folder of somebody's pictures, PROMPT_SET/PROMPT_ID/0.png, or as GenEval has them: nothing is drawn.",
)
@click.option(
    "--skip-unfit",
    is_flag=True,
    help="With --pictures: those that are missing, or too large, too small, of 16 bits or of another size to be scored, have rows without a value, and are counted; they are refused otherwise.",
)
@click.option(
    "--name",
    help="What the rows and pictures of a checkpoint without a run card are called, as its file or folder unless given; --pictures needs it (base: others are compared with it).",
)
@click.option(
    "--trained-on",
    metavar="SCORER",
    multiple=True,
    help="A scorer that a checkpoint without a run card, or what drew the pictures, was trained on: no held-out judge of it; repeatable.",
)
@click.option(
    "--model",
    help="With --pictures: what the model is called, that of the rows to compare with; external unless given.",
)
@click.option(
    "--base",
    help="What somebody's checkpoint came from, for scorers that compare with it, and for a LoRA: a diffusers folder, one file or a hub id. With --pictures: folder of the base's.",
)
def score(
    target: str,
    out: Path,
    suite: str | None,
    prompt_sets: tuple[str, ...],
    orders: tuple[float, ...],
    accept_terms: tuple[str, ...],
    processes: int,
    pictures: bool,
    skip_unfit: bool,
    name: str | None,
    trained_on: tuple[str, ...],
    model: str | None,
    base: str | None,
) -> None:
    """Draw the suite's prompts with a checkpoint and score the pictures, or score somebody's (--pictures).

    RUN_OR_MODEL is a run directory, a diffusers folder, a checkpoint in one file (see evals/families.py), a LoRA file, or a hub id, owner/name or owner/name@revision.
    The same command goes on where it was stopped. X.json beside --out X.csv tells what was scored and counted; pictures go to images/ beside it, or beside a
    folder called scores.
    """
    check_out(out, ".csv")
    if out.is_file() and not rows.begins_as_scores(out):
        raise ValueError(f"--out {out} is there, and no score file: choose another name")
    if skip_unfit and not pictures:
        raise ValueError("--skip-unfit goes with --pictures: what a checkpoint draws is drawn again")
    _check_given(pictures, suite=suite, name=name, model=model, base=base)
    # here: the deep learning stack, which `compare` does not need
    from evals import harness, weights, workers

    if processes > 1:
        sys.exit(_share(processes))
    workers.end_with_launcher()
    weights.accept_terms(accept_terms)
    if pictures:
        assert suite is not None
        assert name is not None
        folder = Path(base) if base else None
        harness.score_given(
            Path(target),
            out,
            suite,
            name,
            model or "external",
            folder,
            trained_on,
            prompt_sets,
            orders,
            skip_unfit,
        )
    else:
        harness.score(target, out, suite, base, prompt_sets, name, trained_on, orders)


def _check_given(pictures: bool, **options: str | None) -> None:
    """Refuse names that rows and folders cannot have, a model where no pictures are given, and pictures of which it is not said what they are.

    Raises:
        ValueError: naming the option.
    """
    if not pictures and options["model"] is not None:
        raise ValueError("--model goes with --pictures: of a checkpoint its run says it")
    for option in ("suite", "name") if pictures else ():
        if options[option] is None:
            raise ValueError(f"--pictures needs --{option}: nothing else says it")
    if options["name"] == "base" and options["base"] is not None:
        these = (
            "these pictures are the base's themselves" if pictures else "this checkpoint is the base itself"
        )
        raise ValueError(f"--base goes with another --name: {these}")
    name = options["name"]
    if pictures and name is not None and ("/" in name or not rows.is_name(name)):
        raise ValueError(f"--name {name!r} must have no slash, no line break and no spaces around it")
    # a checkpoint's is that of a folder too, in which dashes part it from model and seed
    for option in ("model",) if pictures else ("name", "model"):
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
@click.option("--latex", type=CSV, help="The table at a glance, for LaTeX with booktabs (.tex).")
@click.option("--json", "json_out", type=CSV, help="Every number, with where it comes from (.json).")
@AGAINST
@FORCE
def compare(
    files: tuple[Path, ...],
    out: Path,
    latex: Path | None,
    json_out: Path | None,
    against: str,
    force: bool,
) -> None:
    """Compare score files with the base's, or with those of --against, which must be among them: no GPU, seconds."""
    from evals.asides import beside
    from evals.tables import at_a_glance, write
    from evals.unscored import left_out_notes, unequal_notes

    check_table(out, files)
    options: list[object] = ["--out", out]
    if latex is not None:
        check_out(latex, ".tex", files, "--latex")
        options += ["--latex", latex]
    if json_out is not None:
        check_out(json_out, ".json", [*files, *map(beside, files)], "--json")
        if rows.first_row(json_out.with_suffix(".csv")) is not None:
            raise ValueError(
                f"--json {json_out} is where it is told what {json_out.with_suffix('.csv').name} was made of: choose another name"
            )
        options += ["--json", json_out]
    options += _compared(against, force)
    comparison = write(
        files,
        out,
        command=_command("compare", files, *options),
        against=against,
        force=force,
        latex_out=latex,
        json_out=json_out,
    )
    for model in comparison.models():
        click.echo(
            f"\n{model}: value [95 % interval], ▲ better ▼ worse ≈ not distinguished from {_the(against)}, △ ▽ not after Holm's "
            "correction, † trained on it\n"
        )
        click.echo(at_a_glance(comparison, model))
    for note in (*left_out_notes(comparison), *unequal_notes(comparison)):
        click.echo(f"\n{note}")
    made = [out, out.with_suffix(".csv"), *(path for path in (latex, json_out) if path is not None)]
    click.echo(f"\nwrote {', '.join(map(str, made[:-1]))} and {made[-1]}")


def _compared(against: str, force: bool) -> list[str]:
    """The options with which it was compared, as typed."""
    return [*([] if against == "base" else ["--against", against]), *(["--force"] if force else [])]


def _the(against: str) -> str:
    return "the base" if against == "base" else against


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
@AGAINST
@FORCE
def report(files: tuple[Path, ...], runs: Path, images: Path, out: Path, against: str, force: bool) -> None:
    """Write one self-contained HTML page: table, pictures from the same noise, curves, cost."""
    from evals.report import write

    check_out(out, ".html", files)
    options = ["--runs", runs, "--images", images, "--out", out, *_compared(against, force)]
    command = _command("report", files, *options)
    write(files, runs, images, out, command, against=against, force=force)
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
@click.option(
    "--out",
    type=CSV,
    required=True,
    help="Packed score file to write (.csv.xz).",
)
def pack(files: tuple[Path, ...], out: Path) -> None:
    """Put score files into one small one, once all of them have been read without a fault."""
    check_out(out, ".csv.xz", files)
    rows.write(rows.by_picture(rows.read(files)), out)
    click.echo(f"wrote {out}")


@main.command()
def licences() -> None:
    """List what is used of others: weights of scorers (repository, revision, licence, SHA-256) and prompt sets."""
    import prompts
    from evals import scorers
    from evals.weights import sha256_of

    for name in scorers.names("photo"):
        scorer = scorers.load(name, domain="photo", terms=False)
        for weights in scorers.weights_of(scorer):
            terms = "free for every use" if weights.free else f"needs --accept-terms {weights.repository}"
            click.echo(
                f"{name}: {weights.repository} at {weights.revision or 'the newest revision'}; {weights.licence}; {terms}"
            )
            for number, file in enumerate(weights.files):
                digest = weights.sha256[number] if weights.sha256 else "in the card of a run that uses it"
                click.echo(f"    {file}  sha256 {digest}")
        for carried in scorers.carried_by(scorer):
            click.echo(f"{name}: the package {carried.package}; {carried.licence}; free for every use")
            click.echo(f"    {carried.file}  sha256 {sha256_of(carried.path())}")
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
@ACCEPT_TERMS
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
@click.argument("what", type=click.Choice(["skin-tone", "geneval", "miniature"]))
@click.option(
    "--photographs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="skin-tone: folder of portraits, recoloured in memory, beside the drawn heads and scikit-image's astronaut.",
)
@click.option(
    "--images",
    metavar="FOLDER|fetched",
    help="geneval: the judged pictures, as <model>/<prompt>/samples/<picture>.png, or have them fetched.",
)
@ACCEPT_TERMS
@click.option(
    "--out", type=CSV, required=True, help="Tables to write (.md); the counts go beside them as .csv."
)
def calibrate(
    what: str, photographs: Path | None, images: str | None, accept_terms: tuple[str, ...], out: Path
) -> None:
    """Measure how often a scorer is right where the truth is known.

    skin-tone: faces in each of the ten Monk tones, in light of several colours and exposures: minutes.

    geneval: the 1,200 pictures that people have judged for it, in agreement, kappa and confusion, beside how far people agree.

    miniature: every scorer of the miniature, on what its renderer and its base draw, held to what was drawn and to the hidden utility: minutes.
    """
    check_table(out)
    if what == "skin-tone":
        _refuse({"--images": images, "--accept-terms": accept_terms}, what)
        from evals import skin

        options = () if photographs is None else ("--photographs", photographs)
        skin.write(photographs, out, command=_command(f"calibrate {what}", (), *options, "--out", out))
    elif what == "miniature":
        _refuse({"--photographs": photographs, "--images": images, "--accept-terms": accept_terms}, what)
        from evals.miniature import calibration

        click.echo(calibration.write(out, _command(f"calibrate {what}", (), "--out", out)) + "\n")
    else:
        _refuse({"--photographs": photographs}, what)
        from evals import geneval_people, weights

        if images is None:
            raise ValueError(f"calibrate {what} needs --images: {geneval_people.HOW_TO_GET_PICTURES}")
        weights.accept_terms(accept_terms)
        accepted = [part for repository in accept_terms for part in ("--accept-terms", repository)]
        command = _command(f"calibrate {what}", (), "--images", images, *accepted, "--out", out)
        click.echo(geneval_people.write(images, out, command) + "\n")
    click.echo(f"wrote {out} and {out.with_suffix('.csv')}")


def _refuse(options: dict[str, object], what: str) -> None:
    """Refuse options that mean nothing to what is calibrated.

    Raises:
        ValueError: naming the first one given.
    """
    for name, given in options.items():
        if given:
            raise ValueError(f"{name} has no meaning for calibrate {what}: leave it out")


@main.command()
@click.argument("files", metavar="CSV...", type=CSV, nargs=-1, required=True)
@click.option(
    "--confusion",
    type=CSV,
    help="CSV of `calibrate skin-tone`: the gap of the true tones is estimated from it.",
)
@click.option("--root/--no-root", default=True, show_default=True, help="The square root in Eq 12.")
@click.option(
    "--limit",
    type=Share(),
    default=0.5,
    show_default=True,
    help="Share of pictures without a usable face above which a gap is refused.",
)
@click.option(
    "--out", type=CSV, required=True, help="Report to write (.md); the counts go beside it as .csv."
)
def fairness(files: tuple[Path, ...], confusion: Path | None, root: bool, limit: float, out: Path) -> None:
    """Say who is drawn: gaps of skin tones with floor and correction, shares of groups and tones, prompts ranked."""
    from evals.fairness import write

    check_table(out, (*files, *([confusion] if confusion else [])))
    options: list[object] = [
        *(("--confusion", confusion) if confusion else ()),
        *(() if root else ("--no-root",)),
    ]
    options += [*(() if limit == 0.5 else ("--limit", limit)), "--out", out]
    found = write(files, out, confusion, root, limit, _command("fairness", files, *options))
    click.echo(f"wrote {out} and {out.with_suffix('.csv')}: {len(found)} runs and prompt sets")


def _command(name: str, files: tuple[Path, ...], *options: object) -> str:
    """The command as typed, quoted as a shell needs it, for the header of what it makes."""
    return " ".join(["python -m evals", name, *(shlex.quote(str(part)) for part in (*files, *options))])


@main.command()
@click.argument("run", type=CSV)
@click.option(
    "--out", type=CSV, required=True, help="Table to write (.md); the numbers go beside it as .csv."
)
@click.option("--suite", help="Which prompts, scorers and sampling; that of the run's domain unless given.")
@click.option(
    "--every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Take only snapshots of iterations that this number divides.",
)
@click.option(
    "--kl-prompts",
    type=click.IntRange(2),
    default=16,
    show_default=True,
    help="Prompts of each prompt set on which the divergence from the base is taken.",
)
@click.option(
    "--kl-images", type=click.IntRange(1), default=1, show_default=True, help="Images of each of them."
)
@ACCEPT_TERMS
def curve(
    run: Path,
    out: Path,
    suite: str | None,
    every: int,
    kl_prompts: int,
    kl_images: int,
    accept_terms: tuple[str, ...],
) -> None:
    """Score the snapshots of RUN and say where its reward and the held-out judges part, and which checkpoint to keep.

    Snapshots are kept by `python -m train ... --set snapshots_every=10`. Score files go to curves/ beside the table, pictures to images/.
    """
    check_table(out)
    from evals import weights
    from evals.curve import verdicts, write

    weights.accept_terms(accept_terms)
    options: list[object] = ["--out", out]
    options += ["--suite", suite] if suite else []
    options += ["--every", every] if every > 1 else []
    options += ["--kl-prompts", kl_prompts, "--kl-images", kl_images]
    found = write(run, out, _command("curve", (run,), *options), suite, every, kl_prompts, kl_images)
    for sentence in verdicts(found):
        click.echo(sentence.replace("**", ""))
    click.echo(f"wrote {out} and {out.with_suffix('.csv')}")


@main.command()
@click.argument("a", type=CSV)
@click.argument("b", type=CSV)
@click.option(
    "--out",
    type=CSV,
    required=True,
    help="Score rows to write when the voting ends (.csv); the tables go beside it as .md, the log of all votes as .jsonl.",
)
@click.option(
    "--prompt-set",
    "prompt_sets",
    multiple=True,
    metavar="NAME[=COUNT]",
    help="Ask about this one, and about COUNT of its prompts at most; repeatable. All that both folders hold, unless given.",
)
@click.option(
    "--prompts",
    "at_most",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    help="At most this many in all, drawn at random where there are more.",
)
@click.option(
    "--images", type=click.IntRange(min=1), default=1, show_default=True, help="Pairs of each prompt."
)
@click.option(
    "--checks",
    type=Share(),
    default=0.05,
    show_default=True,
    help="Attention checks, as a share of the pairs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts drawn, order and sides.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on 127.0.0.1; any free one unless given.",
)
def vote(
    a: Path,
    b: Path,
    out: Path,
    prompt_sets: tuple[str, ...],
    at_most: int,
    images: int,
    checks: float,
    seed: int,
    port: int,
) -> None:
    """Let people vote, on a page on this machine, which of two checkpoints draws better.

    A and B are folders of pictures: results/images/RUN, or anybody's as `score --pictures` takes them. Blind, side by side, from the same prompt and noise; each rater sees
    each pair once. Given again, the command goes on where it was; Ctrl-C ends it and writes what there is. Rows call somebody's folder by its name: `score --pictures --name` with
    that one has its scores beside the votes.
    """
    import signal

    from evals import ballots
    from evals.vote import serve

    _check_votes(out)
    comparison = ballots.gather(a, b, prompt_sets, at_most, images, checks, seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    log = out.with_suffix(".jsonl")
    serve(comparison, (a, b), log, port)
    from evals import tally  # here: the page need not wait for it

    votes = tally.read([log])
    if not any(votes.choices.values()):
        click.echo("nobody has voted")
        return
    click.echo(tally.write(votes, out, command=_command("tally", (log,), "--out", out)))
    click.echo(f"wrote {out} and {out.with_suffix('.md')}")


@main.command("tally")
@click.argument("logs", metavar="LOG...", type=CSV, nargs=-1, required=True)
@click.option(
    "--out", type=CSV, required=True, help="Score rows to write (.csv); the tables go beside it as .md."
)
def tally_votes(logs: tuple[Path, ...], out: Path) -> None:
    """Count the votes in the logs of one comparison: rates with intervals over prompts and raters, agreement, attention checks."""
    from evals import tally

    _check_votes(out)
    click.echo(tally.write(tally.read(logs), out, command=_command("tally", logs, "--out", out)))
    click.echo(f"wrote {out} and {out.with_suffix('.md')}")


def _check_votes(out: Path) -> None:
    """Refuse an --out that votes cannot go to.

    Raises:
        ValueError: naming the option.
    """
    check_out(out, ".csv")
    if out.is_file() and not rows.begins_as_scores(out):
        raise ValueError(f"--out {out} is there, and no score file: choose another name")
    held = rows.first_row(out)
    if held is not None and held["scorer"] != rows.HUMAN:
        raise ValueError(f"--out {out} holds {held['scorer']} scores, and no votes: choose another name")
    from evals.ballots import TITLE

    tables = out.with_suffix(".md")
    if tables.exists() and not (tables.is_file() and tables.read_bytes().startswith(TITLE.encode())):
        raise ValueError(
            f"{tables} is there, where the tables of --out {out} go, and is something else: choose another name"
        )


@main.command()
@click.option("--prompts", type=int, help="Prompts of the design; those of --from unless given.")
@click.option("--images", type=int, help="Images of each prompt; 1, or those of --from, unless given.")
@click.option(
    "--metric",
    type=click.Choice(["win-rate", "score"]),
    default="win-rate",
    show_default=True,
    help="What two checkpoints are compared by.",
)
@click.option("--icc", type=float, help="Correlation of two images of a prompt; 0.4 unless given.")
@click.option(
    "--sd", type=float, help="score: standard deviation of an image's difference between the checkpoints."
)
@click.option("--ties", type=float, help="win-rate: share of ties; 0, the worst case, unless given.")
@click.option("--budget", type=float, metavar="IMAGES", help="What may be spent; the design unless given.")
@click.option(
    "--prompt-cost",
    type=float,
    default=0.0,
    show_default=True,
    metavar="IMAGES",
    help="What one more prompt costs beside its images.",
)
@click.option("--most-prompts", type=int, help="How many prompts there are; no limit unless given.")
@click.option(
    "--from",
    "files",
    metavar="CSV",
    type=CSV,
    multiple=True,
    help="Score files of a run and its base, or what --against names, on which ICC, ties and deviation are measured; repeatable.",
)
@AGAINST
@click.option("--model", help="Of --from; the first unless given, and so with the next three.")
@click.option("--experiment", help="Of --from, another than --against.")
@click.option("--scorer", help="Of --from.")
@click.option("--prompt-set", help="Of --from.")
def plan(
    files: tuple[Path, ...],
    sd: float | None,
    model: str | None,
    experiment: str | None,
    scorer: str | None,
    prompt_set: str | None,
    against: str,
    **options: Any,
) -> None:
    """Say, before anything is drawn, what a comparison will be able to tell, and how best to split an image budget."""
    from evals import plan as planner

    choice = planner.Choice(model, experiment, scorer, prompt_set, against)
    click.echo(planner.plan(files=files, deviation=sd, choice=choice, **options))


if __name__ == "__main__":
    main(prog_name="python -m evals")
