"""`python -m bench.methods`: trains every method on every reward at one budget, scores it along the way and writes a page of each reward. `tune METHOD`: tries its settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bench.methods import POINTS, ROOT, SEEDS
from evals.__main__ import OneSentence, check_out, check_table

FILE = click.Path(path_type=Path)
DIGITS = 18
"""Of a training seed, at most, as `python -m train` has it."""
IDLE = 0.5
"""Load average below which nothing else is taken to run."""


def options(*of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator."""

    def decorate(command: Any) -> Any:
        for option in reversed(of):
            command = option(command)
        return command

    return decorate


AT_WORK = options(
    click.option(
        "--budget",
        type=click.IntRange(1),
        help="Denoiser evaluations of a run: a tenth of those of the paper's method for imagereward, a fifth for compositionality and a quarter for fairness unless given.",
    ),
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each."),
    click.option(
        "--root",
        type=FILE,
        default=ROOT,
        show_default=True,
        help="Folder of runs, pictures and score rows.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be run and what it costs, and stop."),
)


@click.group(cls=OneSentence, invoke_without_command=True, help=__doc__)
@click.option(
    "--methods",
    "method_names",
    help="What to train, names with commas between; all unless given. Pages have what is done of the others too.",
)
@click.option(
    "--rewards", help="Names with commas between; imagereward,compositionality,fairness unless given."
)
@click.option(
    "--seeds",
    default=",".join(map(str, SEEDS)),
    show_default=True,
    help="Training seeds with commas between.",
)
@click.option(
    "--points",
    type=click.IntRange(1),
    default=POINTS,
    show_default=True,
    help="Times that a run is scored; that of the paper's method in full twice as often.",
)
@click.option(
    "--out",
    type=FILE,
    default=ROOT.parent,
    show_default=True,
    help="Folder of the pages: methods-<reward>.md, with .csv and .svg.",
)
@click.option("--only-table", is_flag=True, help="Train nothing: the pages of what is there.")
@AT_WORK
@click.pass_context
def main(
    context: click.Context,
    method_names: str | None,
    rewards: str | None,
    seeds: str,
    points: int,
    out: Path,
    only_table: bool,
    budget: int | None,
    jobs: int,
    threads: int,
    root: Path,
    dry_run: bool,
) -> None:
    """The pages; or a command of its own."""
    if context.invoked_subcommand is not None:
        refuse_stray(context, context.invoked_subcommand)
        return
    from bench.methods import pages, work
    from bench.methods.cells import Cell, Refusal, plan
    from bench.methods.questions import QUESTIONS
    from bench.methods.table import standing

    of_rewards, of_seeds = named("--rewards", rewards), numbers(seeds)
    planned = plan(named("--methods", method_names), of_rewards, of_seeds, budget, points)
    if out.suffix:
        raise ValueError(f"--out {out} must be a folder: its pages are methods-<reward>.md")
    wanted = {one.reward: pages.page_of(out, one.reward) for one in planned}
    for page in wanted.values():
        check_table(page)
    cells = [cell for cell in planned if isinstance(cell, Cell)]
    say_plan(planned, root, jobs)
    of_all = plan([], of_rewards, of_seeds, budget, points)
    refusals = [refusal for refusal in of_all if isinstance(refusal, Refusal)]
    asked = {cell.key for cell in cells}
    on_pages = [c for c in of_all if isinstance(c, Cell) and (c.key in asked or work.is_done(c, root))]
    mine = {reward: [c for c in on_pages if c.reward == reward] for reward in wanted}
    if only_table:
        say_missing(cells, root)
    else:
        say_other_code(on_pages, root)
    if dry_run:
        return
    for reward, page in wanted.items():
        pages.refuse_loss(pages.planned_runs(mine[reward]), page, "this command leaves out")
    command = typed()
    failed = [] if only_table else at_work(cells, root, jobs, threads, command)
    say_failed(failed)
    for reward, page in wanted.items():
        refused = [refusal for refusal in refusals if refusal.reward == reward]
        try:
            found = standing(QUESTIONS[reward], mine[reward], refused, root)
            click.echo(f"wrote {', '.join(map(str, pages.write(found, page, command)))}")
        except ValueError as error:  # the other rewards have pages of their own
            say_failed([str(error)])
            failed = [*failed, str(error)]
    end(failed)


@main.command()
@click.argument("method")
@click.option("--reward", required=True, help="imagereward, compositionality or fairness.")
@click.option(
    "--out",
    type=FILE,
    default=Path("results/methods-tuning.csv"),
    show_default=True,
    help="File of all tries (.csv).",
)
@click.option(
    "--finalists-of",
    "other",
    help="Another reward: the settings that were tried on it at full length, and no other, at once at full length.",
)
@click.option(
    "--again",
    is_flag=True,
    help="The settings that METHOD's file has for this reward alone (AGAIN), at once at full length, beside those that were tried.",
)
@AT_WORK
def tune(
    method: str,
    reward: str,
    out: Path,
    other: str | None,
    again: bool,
    budget: int | None,
    jobs: int,
    threads: int,
    root: Path,
    dry_run: bool,
) -> None:
    """Try the settings in METHOD's own file, with seed 11, on prompts of which nothing is reported: all with --budget evaluations each, five eighths of the table's unless given, then the best two with eight fifths of that."""
    check_out(out, ".csv")
    from bench.methods.questions import QUESTIONS
    from bench.methods.tune import FINALISTS, check_tries, finals, finals_of, second, tries
    from train import methods
    from train.config import choose

    choose("method", method, methods.names())
    choose("reward", reward, QUESTIONS)
    if again and (other is not None or budget is not None):
        raise ValueError(
            "--again tries its own settings at full length: leave --finalists-of and --budget out"
        )
    check_tries(out)
    if again or other is not None:
        length = budget or methods.EVALUATIONS[reward]
        if other is None:
            at_once = second(method, reward, length)
        else:
            choose("--finalists-of", other, [name for name in QUESTIONS if name != reward])
            at_once = finals_of(method, reward, other, length, out)
        _, failed = _tried(at_once, out, root, jobs, threads, dry_run)
        end(failed)
        return
    first = tries(method, reward, budget or methods.EVALUATIONS[reward] * 5 // 8)
    found, failed = _tried(first, out, root, jobs, threads, dry_run)
    last = budget * 8 // 5 if budget else methods.EVALUATIONS[reward]
    if dry_run:
        click.echo(f"Then the best {FINALISTS} of them, with {last:,} evaluations each.")
    if found is not None and not failed:
        _, failed = _tried(finals(first, found, last), out, root, jobs, threads, dry_run)
    end(failed)


def _tried(
    cells: Sequence[Any], out: Path, root: Path, jobs: int, threads: int, dry_run: bool
) -> tuple[Any, list[str]]:
    """Try settings, and where all of them are done keep what came of it and tell it: the best of some of them is none.

    Returns:
        what `found_of` finds, None where not all is done; and a sentence for each that failed.
    """
    from bench.methods.tune import found_of, keep

    say_plan(cells, root, jobs)
    say_other_code(cells, root)
    failed = [] if dry_run else at_work(cells, root, jobs, threads, typed())
    say_failed(failed)
    if dry_run or failed:
        return None, failed
    found = found_of(cells, root)
    for _, row in keep(found, out).iterrows():
        gain = "stopped by itself" if row["held_out"] != row["held_out"] else f"{row['held_out']:+.4f}"
        click.echo(f"{row['settings']}: held-out gain {gain}{' (best)' if row['best'] else ''}")
    click.echo(f"wrote {out}")
    return found, failed


@main.command(hidden=True)
@click.argument("key")
@click.option("--reward", required=True)
@click.option("--method", required=True)
@click.option("--seed", type=int, required=True)
@click.option("--budget", type=int, required=True)
@click.option("--points", type=int, required=True)
@click.option("--set", "settings", multiple=True)
@click.option("--suite", required=True)
@click.option("--root", type=FILE, required=True)
@click.option("--jobs", type=int, required=True)
@click.option("--command", required=True)
def cell(
    key: str,
    reward: str,
    method: str,
    seed: int,
    budget: int,
    points: int,
    settings: tuple[str, ...],
    suite: str,
    root: Path,
    jobs: int,
    command: str,
) -> None:
    """Do one cell, in this process."""
    from bench.methods.cells import Refusal, cells
    from bench.methods.work import do

    made = cells(reward, method, [seed], budget, points, settings, suite)
    assert not isinstance(made, Refusal), "a refused method has no cell"
    if made[0].key != key:
        raise ValueError(f"the files of {method} have changed since this began: give the command again")
    sys.exit(do(made[0], root, jobs, command))


def at_work(cells: Sequence[Any], root: Path, jobs: int, threads: int, command: str) -> list[str]:
    """Do what is left to do of cells, the longest, of the paper's method in full, last. Returns a sentence for each that failed."""
    from bench.methods import work

    def arguments(cell: Any) -> list[str]:
        given = {
            "--reward": cell.reward,
            "--method": cell.method,
            "--seed": cell.seed,
            "--budget": cell.budget,
            "--points": cell.asked_points,
            "--suite": cell.suite,
            "--root": root,
            "--jobs": jobs,
            "--command": command,
        }
        words = [sys.executable, "-m", "bench.methods", "cell", cell.key]
        words += [str(word) for pair in given.items() for word in pair]
        return words + [word for setting in cell.settings for word in ("--set", setting)]

    todo = sorted((cell for cell in cells if not work.is_done(cell, root)), key=lambda cell: cell.in_full)
    if todo and (load := os.getloadavg()[0]) > IDLE:
        click.echo(
            f"note: before anything is begun the load average is {load:.1f}, so the seconds of these runs will be too many",
            err=True,
        )
    return work.Crew(arguments, root, threads).run(todo, jobs) if todo else []


def say_plan(planned: Sequence[Any], root: Path, jobs: int) -> None:
    """Say what would be run and what it costs.

    Args:
        planned: cells and refusals.
        root: folder of all cells.
        jobs: cells at a time.
    """
    from bench.methods import pages, work
    from bench.methods.cells import Cell

    cells = [cell for cell in planned if isinstance(cell, Cell)]
    click.echo(
        pages.planned(planned, lambda cell: work.is_done(cell, root), work.seconds_each(cells, root), jobs)
    )


def say_other_code(cells: Sequence[Any], root: Path) -> None:
    """Say where cells that stand beside each other were trained by different code, or would be."""
    from bench.methods import work

    for reward in dict.fromkeys(cell.reward for cell in cells):
        for sentence in work.by_other_code([cell for cell in cells if cell.reward == reward], root):
            click.echo(f"note: {reward}: {sentence} A cell whose folder is deleted is trained again.")


def say_missing(cells: Sequence[Any], root: Path) -> None:
    """Say which cells pages will be without, and why where there is something of them."""
    from bench.methods import work
    from bench.methods.cells import seeds_told

    lines: dict[tuple[str, str, str], list[int]] = {}
    for cell in cells:
        if not work.is_done(cell, root):
            lines.setdefault((cell.reward, cell.label, work.why_missing(cell, root)), []).append(cell.seed)
    for (reward, label, why), seeds in lines.items():
        click.echo(f"not in {root}: {reward}, {label}, {seeds_told(seeds)}{f' ({why})' if why else ''}")


def say_failed(failed: Sequence[str]) -> None:
    """Say what could not be done."""
    for sentence in failed:
        click.echo(f"error: {sentence}", err=True)


def end(failed: Sequence[str]) -> None:
    """End with exit code 1 where something could not be done."""
    if failed:
        sys.exit(1)


def refuse_stray(context: click.Context, command: str) -> None:
    """Refuse options before a command's name, where they would mean nothing.

    Raises:
        ValueError: naming them.
    """
    stray = [
        parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if stray:
        raise ValueError(f"{', '.join(stray)} before {command} means nothing: give options after {command}")


def between_commas(given: str) -> list[str]:
    """What stands between commas, without what is empty."""
    return [one.strip() for one in given.split(",") if one.strip()]


def named(option: str, given: str | None) -> list[str]:
    """Names with commas between, each once; none where the option is not given, which is all.

    Raises:
        ValueError: it is given and has none.
    """
    if given is None:
        return []
    found = list(dict.fromkeys(between_commas(given)))
    if not found:
        raise ValueError(
            f"{option} is {given!r}, but it must be names with commas between; leave it out for all"
        )
    return found


def numbers(given: str) -> list[int]:
    """Whole numbers with commas between, each once.

    Raises:
        ValueError: where they are none, or no seeds.
    """
    found = between_commas(given)
    if not found or not all(one.isascii() and one.isdecimal() and len(one) <= DIGITS for one in found):
        raise ValueError(
            f"--seeds is {given!r}, but it must be whole numbers of at most {DIGITS} digits with commas between, such as 0,1,2"
        )
    return sorted({int(one) for one in found})


def typed() -> str:
    """The command as typed, for the record."""
    return " ".join(["python -m bench.methods", *sys.argv[1:]])


if __name__ == "__main__":
    main()
