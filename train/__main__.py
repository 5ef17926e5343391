"""`python -m train EXPERIMENT --on MODEL --seed N --out DIR`: trains; the same command again resumes. `python -m train push`: see `push`.

Exit codes: 0 finished; 1 stopped (a broken reward or gate, weights that diverged, a full disk); 2 a mistake in what was asked; 143, 130 or 129
stopped by SIGTERM, Ctrl-C or a closed terminal with the state saved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

PUSH = "push"


class Trainer(click.Command):
    """The command, but for the first word `push`, which is a command of its own."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run the one or the other."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] == [PUSH]:
            from train.push import push

            return push.main(words[1:], **options | {"prog_name": f"python -m train {PUSH}"})
        return super().main(words, *more, **options)


@click.command(cls=Trainer, epilog="`push RUN REPOSITORY` puts a finished run on the hub: see `push --help`.")
@click.argument("experiment")
@click.option(
    "--on",
    "model",
    default="miniature",
    show_default=True,
    metavar="MODEL",
    help="Variant of the experiment.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 10**18 - 1),
    default=0,
    show_default=True,
    help="Seed of everything random.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory; results/runs/EXPERIMENT-MODEL-SEED unless given. NAME-MODEL-SEED is also what the run is called.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the experiment; repeatable.",
)
@click.option(
    "--reward",
    metavar="[TASK=]SCORER",
    help="Train on another scorer: a name, or a file of your own ending in .py.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes on this host: one to a GPU, or sharing the CPU.",
)
@click.option(
    "--hosts",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Hosts that run this command, with as many processes each (train/hosts.sh, train/slurm.sh).",
)
@click.option(
    "--host",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Number of this one among them, from 0.",
)
@click.option(
    "--first", metavar="HOST:PORT", help="Address of the first of several hosts, and a free port there."
)
@click.option(
    "--accept-terms",
    metavar="REPOSITORY",
    multiple=True,
    help="Use weights of this repository, whose terms are not free for every use; repeatable.",
)
@click.option(
    "--tracker",
    "tracker_names",
    metavar="NAME",
    multiple=True,
    default=("tensorboard",),
    show_default=True,
    help="Where curves and samples go beside the run directory: tensorboard, wandb or another that accelerate knows, or none; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be run, and stop.")
@click.option(
    "--fetch",
    "only_fetch",
    is_flag=True,
    help="Fetch base, prompts and scorers' weights, and stop: for hosts that train without internet.",
)
def main(**asked: Any) -> None:
    """Train EXPERIMENT. The same command again resumes, or says that it is finished."""
    from train.command import begin  # here: help and a mistyped option need not wait for torch

    sys.exit(begin(**asked))


if __name__ == "__main__":
    main()
