"""How a batch changes the policy: one file per method, and its name is its registration.

Method of the file `<name>.py` is its class `Method`, a frozen dataclass whose fields are the method's own settings (`--set method.<field>=`), with the
source of each number; and its function `variant(experiment, model)` is an experiment as that method trains it. So `python -m train imagereward_grpo`
is the experiment `imagereward`, trained by `grpo`. The loop (`train.loop`) is the same for all.

Families share a file: `_policy_gradient` needs a sampler with noise and what it drew; `_forward_process` clean pictures and rewards alone;
`_reward_gradient` a reward that can be differentiated.

What a method's settings on the miniature are chosen from stands in its file as `TUNING`: `TRIES` tuples of `--set` settings, the same number for each
method, to which `SHORT` is added; `python -m bench.methods tune` tries them. `AGAIN` has, by experiment, as many more as are tried at full length on this one
alone: a method's second try. `BEST` has the best of them by experiment: with it, and with `EVALUATIONS`, the
experiment `imagereward_grpo` on the miniature is the run that is in `results/methods-imagereward.md`.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

if TYPE_CHECKING:
    from train.config import Experiment, Task, Update
    from train.run import Run

PAPERS = "ppo"
"""The method of the paper, which an experiment has unless it names another."""

OF_SOME = ("clip", "reduction", "advantage_clip", "trained_steps", "skip_last", "step_weight", "theta_old")
"""Fields of `update` that mean something to some methods only."""

TRIES = 4
"""Settings that each method may be tried with."""

EVALUATIONS = {"imagereward": 34_560, "compositionality": 34_560, "fairness": 23_040}
"""Denoiser evaluations that a run of a method has on the miniature, by experiment: a tenth of those of the paper's experiment, a fifth, and a quarter."""

SHORT = ("update.warmup=10", "ema.decay=0.95")
"""What every method has in so short a run: the experiments, of the paper's method, warm up in 25 optimiser steps and average over a hundred."""


class Evaluations(NamedTuple):
    """Denoiser evaluations of one latent that an iteration of a task takes, over all processes; two where guided."""

    drawn: int
    """Without a gradient: sampling, and whatever is compared with."""
    trained: int
    """With one."""


class Comparison(NamedTuple):
    """A comparison of the images of a prompt, as a sentence names it."""

    field: str
    """What asks for it, as `field is value`."""
    instead: str
    """What else to use."""


@dataclass(frozen=True)
class Method:
    """What every method offers. `collect` and `update` are called in turn for every task of an iteration."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """Which fields of `OF_SOME` it heeds; another one that is set is refused, not ignored."""
    pools: ClassVar[bool] = True
    """Whether it can be given images of several tasks at once (`train.mixing`)."""
    needs_reference: ClassVar[bool] = False
    """Whether it compares with the base, whose weights then wait on the CPU."""
    pretraining_beta: ClassVar[float] = 1.0
    """Factor on the pretraining loss where an experiment that has none is given some."""
    needs_old: ClassVar[bool] = False
    """Whether it samples from weights of its own that follow the trained ones (`Policy.old`)."""
    differentiates_reward: ClassVar[bool] = False
    """Whether its update goes back through reward and decoder, which then lie beside the denoiser's activations."""

    @property
    def name(self) -> str:
        """That of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def comparison(self) -> Comparison | None:
        """What compares the images of a prompt by their rewards; None where nothing does."""
        return None

    def check(self, experiment: Experiment) -> None:
        """Refuse an experiment that this method cannot train.

        Raises:
            ValueError: one sentence that names the field and the choices.
        """
        if experiment.mixing != "tasks" and not self.pools:
            raise ValueError(
                f"mixing is {experiment.mixing}, but the method {self.name} takes one task at a time: use tasks, or the method {PAPERS}"
            )
        usual = type(experiment.update)()
        for field in OF_SOME:
            value, default = getattr(experiment.update, field), getattr(usual, field)
            if field not in self.reads and value != default:
                heeded = (
                    ", ".join(f"update.{one}" for one in OF_SOME if one in self.reads) or "none of its like"
                )
                raise ValueError(
                    f"update.{field} is {value}, which the method {self.name} does not use: leave it at {default} (it heeds {heeded})"
                )

    def check_model(self, run: Run) -> None:
        """Refuse a model that this method cannot train, once it is loaded.

        Raises:
            ValueError: one sentence.
        """

    def optimiser_steps(self, experiment: Experiment) -> int:
        """AdamW steps of a task in an iteration."""
        raise NotImplementedError

    def averaged(self, images: int) -> int:
        """Numbers of which an optimiser step's loss is the mean, from so many images of a process: what fp16's loss scale starts from."""
        return images

    @property
    def length(self) -> int:
        """Denoising steps that lie behind each other in one pass of the update."""
        return 1

    def rows(self, task: Task, processes: int) -> int:
        """What an optimiser step goes through on each process, a micro-batch at a time: its images, where none is left out and none is there more than once."""
        return task.batch // processes

    @property
    def repeats(self) -> int:
        """How often an optimiser step goes through these rows, each time in micro-batches of their own."""
        return 1

    def evaluations(self, experiment: Experiment, task: Task) -> Evaluations:
        """What an iteration of a task costs."""
        raise NotImplementedError

    def note(self, run: Run) -> str:
        """A sentence on what a user should know before it trains; empty where there is nothing."""
        return ""

    def check_before(self, run: Run) -> None:
        """Before training: what `train.gates` holds a run to.

        Raises:
            GateBroken: where it does not hold.
        """
        raise NotImplementedError

    def collect(self, run: Run, task: Task, iteration: int) -> Any:
        """What `update` is given: samples, scored."""
        raise NotImplementedError

    def update(self, run: Run, batch: Any, on_policy: bool) -> dict[str, Any]:
        """Make the good more likely.

        Args:
            run: with the policy.
            batch: of `collect`.
            on_policy: whether the policy is still the one that sampled.

        Returns:
            what metrics.jsonl records, `reward_mean` and the like among it.
        """
        raise NotImplementedError


def names() -> tuple[str, ...]:
    """Every method: the files of this folder."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))


def load(name: str) -> type[Method]:
    """The method of that name, which is one of `names`."""
    return cast(type[Method], importlib.import_module(f"train.methods.{name}").Method)


def title(name: str) -> str:
    """A sentence on a method and whose it is: the first line of its file."""
    return (importlib.import_module(f"train.methods.{name}").__doc__ or "").partition("\n")[0]


def tuning(name: str) -> tuple[tuple[str, ...], ...]:
    """Settings that a method is tried with.

    Raises:
        ValueError: where its file has none, or not as many as every method has.
    """
    module = importlib.import_module(f"train.methods.{name}")
    tries: tuple[tuple[str, ...], ...] = getattr(module, "TUNING", ())
    if len(tries) != TRIES:
        raise ValueError(
            f"train/methods/{name}.py has {len(tries)} settings in TUNING, but every method is tried with {TRIES}: tuples such as ('update.lr=3e-5',)"
        )
    _check_settings(name, "TUNING", tries)
    return tries


def second_try(name: str, experiment: str) -> tuple[tuple[str, ...], ...]:
    """Settings that a method is tried with again on one experiment, beside those that it has for all; empty where it has none.

    Raises:
        ValueError: where one of them is no tuple of texts.
    """
    again: dict[str, tuple[tuple[str, ...], ...]] = getattr(
        importlib.import_module(f"train.methods.{name}"), "AGAIN", {}
    )
    tries = again.get(experiment, ())
    _check_settings(name, f"AGAIN[{experiment!r}]", tries)
    return tries


def _check_settings(name: str, which: str, tries: object) -> None:
    """Refuse what a missing comma makes of settings: a text in place of a tuple, whose letters would be settings.

    Raises:
        ValueError: naming the file.
    """
    of_texts = (
        [isinstance(one, tuple) and all(isinstance(setting, str) for setting in one) for one in tries]
        if isinstance(tries, tuple)
        else [False]
    )
    if not all(of_texts):
        raise ValueError(
            f"train/methods/{name}.py: {which} has something that is no tuple of settings; write tuples such as ('update.lr=3e-5',), with a comma also behind the last"
        )


def chosen(name: str, experiment: str) -> tuple[str, ...] | None:
    """The settings, for `--set`, that a method has on the miniature in a run of `EVALUATIONS`; None where none have been tried for the experiment."""
    best: dict[str, tuple[str, ...]] = getattr(importlib.import_module(f"train.methods.{name}"), "BEST", {})
    if experiment in best:
        _check_settings(name, f"BEST[{experiment!r}]", (best[experiment],))
    return (*SHORT, *best[experiment]) if experiment in best else None


def variant(name: str, experiment: Experiment, model: str) -> Experiment:
    """An experiment as a method trains it on a model, before `chosen`."""
    return cast("Experiment", importlib.import_module(f"train.methods.{name}").variant(experiment, model))


def only_heeded(update: Update, method: Method) -> Update:
    """An `update` of another method's, of which fields that this one does not heed are at their defaults."""
    usual = type(update)()
    return dataclasses.replace(
        update, **{field: getattr(usual, field) for field in OF_SOME if field not in method.reads}
    )


def as_json(method: Method) -> dict[str, Any]:
    """Its name and its fields."""
    return {"name": method.name, **dataclasses.asdict(method)}
