"""What an experiment is: frozen dataclasses. Every field says what it is in one line, and where its value comes from.

Batches are global numbers; what a process holds at a time (`micro_batch`) is memory only. An experiment is a value: to change
something, `dataclasses.replace` it, or `--set field=value` on the command line, which is `override` below.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evals.diffusion import Reduction, Sampling
from evals.scorers import Domain
from train import methods
from train.methods import Method

Sharding = Literal["none", "fsdp2"]
Mixing = Literal["tasks", "zscores", "gdpo"]


@dataclass(frozen=True)
class Reward:
    """One term of a task's reward."""

    scorer: str
    """Name of a scorer of the experiment's domain, or a file of one's own."""
    weight: float = 1.0
    """Factor before terms of one task are added (ours; the paper's tasks have one term each)."""


@dataclass(frozen=True)
class Task:
    """A prompt set and what we want of it: a task has samples, reward, normalisation and optimiser steps of its own."""

    name: str
    """Names the task in metrics and on the command line."""
    prompts: str
    """Prompt set: a name in prompts/, or a .jsonl or .txt file."""
    rewards: tuple[Reward, ...]
    """Reward terms, added within the task; tasks are never added (paper, sec. 3.3)."""
    batch: int = 2048
    """Images per iteration over all processes (paper: 16 x 128 GPUs; the released yaml has `batch_size: 5`, and the folder it saves to is called batch2048)."""
    images_per_prompt: int = 1
    """Group size G: images drawn of each prompt (paper, sec. 3.2: 16 for the set-level reward; others not stated)."""
    baseline: Literal["batch", "group"] = "batch"
    """Pointwise: an image is compared with the whole batch (paper, Eq 10), or first with the others of its prompt (ours)."""
    shaping: Literal["pointwise", "parity"] = "pointwise"
    """Scores are the reward (Eq 11, 13), or classes whose statistical parity within a group is (Eq 12)."""
    classes: int = 4
    """Number |A| of classes that parity counts (paper, sec. 4.2: 4 skin-tone categories)."""
    root: bool = True
    """Whether Eq 12 takes the root: the prose says L2 norm, the sign was not legible."""
    credit: Literal["shared", "leave_one_out"] = "shared"
    """Every image gets its group's reward (paper), or what the group loses without it (ours)."""
    unusable: Literal["masked", "worst"] = "masked"
    """Parity: images in no class are out of the update (paper: not stated), or get the least credit of their group (ours)."""
    monitors: tuple[str, ...] = ()
    """Scorers that are recorded and never trained on (ours)."""
    max_invalid: float = 0.5
    """Share of images without a score above which the run stops (ours: a broken reward must not train quietly)."""

    @property
    def scorers(self) -> list[str]:
        """Rewards and monitors, each once."""
        return list(dict.fromkeys([*(term.scorer for term in self.rewards), *self.monitors]))

    @property
    def shares_reward(self) -> bool:
        """Whether all images of a prompt have the same reward."""
        return self.shaping == "parity" and self.credit == "shared"

    @property
    def prompts_per_iteration(self) -> int:
        """Number P of prompts, one group of images each."""
        return self.batch // self.images_per_prompt


@dataclass(frozen=True)
class Update:
    """How a batch with advantages changes the policy."""

    lr: float = 2e-6
    """AdamW's learning rate after `warmup` (paper, App. A)."""
    warmup: int = 0
    """Optimiser steps over which the rate rises to `lr` (paper: 0). AdamW's first steps are as long as `lr` allows, in every weight."""
    decay: Literal["constant", "linear"] = "constant"
    """Whether the rate stays (paper, App. A) or falls to 0 at the run's end, so that its noise settles (ours)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments (paper, App. A)."""
    adam_eps: float = 1e-8
    """AdamW's epsilon (paper, App. A)."""
    weight_decay: float = 1e-2
    """AdamW's weight decay (paper, App. A)."""
    clip: float = 1e-4
    """Epsilon of Eq 7, a bound on the ratio (paper, App. A, and released config, which remarks 5e-2 beside it; it belongs to the averaged log-probability)."""
    reduction: Reduction = "mean"
    """Log-probability averaged over latent dimensions (released code) or summed, the density."""
    advantage_clip: float = 10.0
    """Bound on the advantage (released code: ADV_CLIP_MAX)."""
    trained_steps: int = 5
    """Denoising steps drawn per iteration, an optimiser step each (paper, App. A: 5 of 50)."""
    skip_last: int = 0
    """Final denoising steps that are never drawn (paper: 0)."""
    step_weight: Literal["none", "balanced"] = "none"
    """Weight of a step's loss: 1 (paper), or 1/kappa_t with mean 1, so that steps have gradients of one scale (ours)."""
    max_grad_norm: float | None = None
    """Bound on the gradient norm of an optimiser step (released code: none)."""
    theta_old: Literal["task", "iteration"] = "task"
    """When the sampling policy is fixed: right before each task's update, or once for all tasks (sec. 3.3)."""
    micro_batch: int = 16
    """Images per backward pass: memory only (paper: 16 per GPU)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: memory only (released code: on)."""
    compile: bool = False
    """Compile the denoiser, in rollout and update alike: time only, after minutes in which it is compiled (ours)."""
    cuda_graphs: bool = False
    """Record the calls of denoiser and decoder as CUDA graphs, with `gradient_checkpointing` only those of the rollout: time only, where a GPU waits for the CPU, as with
    small models and adapters; recordings lend memory to each other, and to nothing else (ours)."""
    sharding: Sharding = "none"
    """Where weights, gradients and moments lie: whole on every process (DDP; released code), or a share on each (FSDP2): memory only."""


@dataclass(frozen=True)
class Pretraining:
    """The denoising step on pretraining data that ends an iteration (Eq 9, last in Algorithm 1; the released code takes it first, so that its first ratio is not 1)."""

    source: str
    """Pictures with captions (a folder, or WebDataset shards: `train.images`), a folder with latents.safetensors and captions.jsonl, or `miniature`."""
    batch: int = 2048
    """Pairs per iteration over all processes (paper: 16 x 128 GPUs); where --set switches the step on, as many as the largest task has pictures."""
    beta: float = 1.0
    """Factor on the loss (Eq 8 has beta without a value; Algorithm 1's separate step has none, which is 1)."""
    max_unreadable: float = 0.05
    """Share of pictures without a caption, or that cannot be read, above which the run stops (ours: broken data must not train quietly)."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters instead of the full UNet."""

    rank: int = 32
    """Rank of each adapter (paper, Table 6, for DRaFT; the paper's own method trains the full UNet)."""
    alpha: float = 32.0
    """Scale alpha/rank of an adapter's output (ours: 1)."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Modules that get an adapter: the attention projections (diffusers' convention)."""


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of the weights, which is then what the run hands over."""

    decay: float = 0.99
    """Share of the old average kept at each optimiser step (ours; released config: use_ema False)."""


def _papers_method() -> Method:
    return methods.load(methods.PAPERS)()


@dataclass(frozen=True)
class Experiment:
    """A whole run but for its seed."""

    base: str
    """Pipeline to start from: a folder in diffusers layout or a checkpoint in one file (relative to the repository), or a hub id."""
    tasks: tuple[Task, ...] = ()
    """Tasks in order of their updates; none is the base model, handed over as it is."""
    domain: Domain = "photo"
    """What the pictures show, which says by which weights a scorer sees them: `imagereward` has some for each (ours)."""
    iterations: int = 1000
    """Iterations of Algorithm 1 (paper, sec. 4.1: about 1,000 to converge; released config: `max_iterations: 100000`)."""
    revision: str | None = None
    """Revision of a hub id; None for a folder."""
    sampling: Sampling = Sampling()  # noqa: RUF009  frozen
    """How pictures are drawn, in rollout and update alike."""
    update: Update = Update()
    """How the policy is changed."""
    method: Method = dataclasses.field(default_factory=_papers_method)
    """By what (`train.methods`), with its own settings (paper: ppo)."""
    pretraining: Pretraining | None = None
    """The pretraining step, or none."""
    lora: Lora | None = None
    """Adapters, or none: the full UNet (released code)."""
    ema: Ema | None = None
    """Averaged weights, or none (released config)."""
    mixing: Mixing = "tasks"
    """How several rewards are one experiment: tasks take turns (paper, sec. 3.3), or their images are one batch (`train.mixing`; ours)."""
    task_order: Literal["listed", "rotated"] = "listed"
    """Order of tasks in an iteration: as listed (the paper does not say), or starting one later each time."""
    save_every: int = 10
    """Iterations between states to resume from (ours; released config: 200)."""
    samples_every: int = 50
    """Iterations between sheets of samples, the first before training and one at its end (ours); 0 for none."""
    snapshots_every: int = 0
    """Iterations between snapshots, each as large as what is trained, for `python -m evals curve` (ours); 0 for none."""

    @property
    def scorers(self) -> list[str]:
        """Rewards and monitors of all tasks, each once."""
        return list(dict.fromkeys(name for task in self.tasks for name in task.scorers))

    @property
    def optimiser_steps(self) -> int:
        """AdamW steps of the whole run: those of the method for each task, and one on pretraining data."""
        turns = len(self.tasks) if self.mixing == "tasks" else min(1, len(self.tasks))
        each = turns * self.method.optimiser_steps(self) + (self.pretraining is not None)
        return self.iterations * each


_SECTIONS: dict[str, type[Any]] = {
    "sampling": Sampling,
    "update": Update,
    "pretraining": Pretraining,
    "lora": Lora,
    "ema": Ema,
}

MEMORY_FIELDS = (
    "sampling.micro_batch",
    "sampling.decode_batch",
    "update.micro_batch",
    "update.gradient_checkpointing",
    "update.compile",
    "update.cuda_graphs",
    "update.sharding",
    "save_every",
    "samples_every",
    "snapshots_every",
)
"""What a resumed run may change: these cannot change a result beyond rounding."""

LESS_MEMORY = "lower update.micro_batch, sampling.micro_batch or sampling.decode_batch, or `--set update.gradient_checkpointing=true`"
"""Which of them to change where a device has too little."""


# ------------------------------------------------------------------------------------------------------------- geometry


def nearest_multiple(number: int, divisor: int) -> int:
    """The positive multiple of `divisor` that is nearest to `number`, the larger one of two."""
    return max(1, math.floor(number / divisor + 0.5)) * divisor


def check(experiment: Experiment, processes: int) -> None:
    """Refuse an experiment that cannot be run on that many processes.

    Raises:
        ValueError: one sentence that names the field and the nearest value that works.
    """
    _check_values(experiment, Experiment, "")
    _refuse_of_training(experiment)
    for task in experiment.tasks:
        _check_task(task, processes)
    names = [task.name for task in experiment.tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tasks: two tasks are called {name!r}")
    if experiment.tasks:
        _check_optimiser(experiment.update)
        experiment.method.check(experiment)
    _check_pretraining(experiment, processes)
    least_of = {"iterations": 0, "save_every": 1, "samples_every": 0, "snapshots_every": 0}
    for field, least in least_of.items():
        if (value := getattr(experiment, field)) < least:
            raise ValueError(f"{field} is {value}, but it must be at least {least}")
    if experiment.iterations and not experiment.tasks:
        raise ValueError(
            f"iterations is {experiment.iterations}, but this experiment has no task to train on: use 0"
        )
    _check_mixing(experiment)
    if experiment.ema is not None and not 0.0 <= experiment.ema.decay < 1.0:
        raise ValueError(f"ema.decay is {experiment.ema.decay}, but it must lie in [0, 1)")
    if experiment.lora is not None:
        _check_lora(experiment.lora)


def _check_values(value: Any, kind: Any, where: str) -> None:
    """Refuse what a field cannot hold: an experiment's file is anybody's, and Python takes `decay="cosine"` for one that is not linear.

    Args:
        value: of the field, or a whole section.
        kind: its annotated type.
        where: its dotted name.

    Raises:
        ValueError: naming the field, with the choices.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}
    if origin in (types.UnionType, typing.Union):
        if value is not None:
            _check_values(value, options[0], where)
    elif origin is Literal:
        choose(f"value of {where}", str(value), options)
    elif origin is tuple:
        if not isinstance(value, tuple | list):
            raise ValueError(f"{where} is {value!r}, but it must be a tuple: ({value!r},)")
        if ... not in options and len(value) != len(options):
            raise ValueError(f"{where} is {value!r}, but it must have {len(options)} values")
        for item in value:
            _check_values(item, options[0], f"{where}.{item.name}" if isinstance(item, Task) else where)
    elif is_dataclass(kind):
        assert isinstance(kind, type)
        _check_section(value, kind, where)
    elif kind in words and not _holds(kind, value):
        raise ValueError(f"{where} is {value!r}, but it must be {words[kind]}")


def _check_section(section: Any, kind: type, where: str) -> None:
    """`_check_values` of each of its fields."""
    if not isinstance(section, kind):
        raise ValueError(f"{where} has {section!r}, which is no {kind.__name__}")
    hints = typing.get_type_hints(type(section))
    for field in fields(typing.cast(Any, section)):
        _check_values(getattr(section, field.name), hints[field.name], f"{where}.{field.name}".lstrip("."))


def _holds(kind: Any, value: object) -> bool:
    """Whether a field of that type can hold a value; one of a fraction may be a whole number."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    return type(value) is kind


def _refuse_of_training(experiment: Experiment) -> None:
    """Refuse what only training reads, where there is none: the base would carry adapters that nothing has taught, or settings that say what it is not."""
    if experiment.tasks:
        return
    for section in ("pretraining", "lora", "ema"):
        if getattr(experiment, section) is not None:
            raise ValueError(f"{section} is set, but this experiment trains nothing: leave it out")
    for field in fields(Update):
        name, value = f"update.{field.name}", getattr(experiment.update, field.name)
        if name not in MEMORY_FIELDS and value != field.default:
            raise ValueError(
                f"{name} is {value}, but this experiment trains nothing: leave it at {field.default}"
            )


def _check_mixing(experiment: Experiment) -> None:
    mixing, tasks = experiment.mixing, experiment.tasks
    if mixing == "tasks":
        return
    if len(tasks) < 2:
        raise ValueError(
            f"mixing is {mixing}, but there is nothing to mix with fewer than two tasks: use tasks"
        )
    if experiment.task_order != "listed":
        raise ValueError(
            f"task_order is {experiment.task_order}, but with mixing {mixing} tasks take no turns: use listed"
        )
    for task in tasks:
        where = f"tasks.{task.name}"
        if len(task.rewards) != 1:
            raise ValueError(
                f"{where}.rewards has {len(task.rewards)} terms, but mixing {mixing} takes one of each task"
            )
        if mixing == "gdpo" and task.images_per_prompt < 2:
            raise ValueError(
                f"{where}.images_per_prompt is {task.images_per_prompt}, but mixing gdpo compares the images of a prompt: at least 2"
            )
        if mixing == "gdpo" and task.shares_reward:
            raise ValueError(
                f"{where}.credit is shared, so that all images of a prompt are alike to mixing gdpo: use leave_one_out"
            )


def _check_lora(lora: Lora) -> None:
    if lora.rank < 1:
        raise ValueError(f"lora.rank is {lora.rank}, but it must be at least 1")
    if not lora.alpha > 0:
        raise ValueError(f"lora.alpha is {lora.alpha}, but it must be above 0")
    if not lora.targets:
        raise ValueError("lora.targets is empty, but adapters need modules to adapt, such as to_q,to_v")


def _check_pretraining(experiment: Experiment, processes: int) -> None:
    pretraining = experiment.pretraining
    if pretraining is None:
        return
    if not pretraining.source:
        raise ValueError(
            "pretraining.source is not given: say where the pictures are, or leave pretraining out"
        )
    if pretraining.source == "miniature" and experiment.domain != "miniature":
        raise ValueError(
            f"pretraining.source is miniature, but domain is {experiment.domain}: give a folder of pictures or WebDataset shards"
        )
    if pretraining.beta <= 0:
        raise ValueError(f"pretraining.beta is {pretraining.beta}, but it must be above 0")
    if not 0.0 <= pretraining.max_unreadable < 1.0:
        raise ValueError(
            f"pretraining.max_unreadable is {pretraining.max_unreadable}, but it is a share and must lie in [0, 1)"
        )
    if pretraining.batch < 1:
        raise ValueError(f"pretraining.batch is {pretraining.batch}, but it must be at least 1")
    if pretraining.batch % processes:
        nearest = nearest_multiple(pretraining.batch, processes)
        raise ValueError(
            f"pretraining.batch is {pretraining.batch}, which {processes} processes cannot share evenly: "
            f"the nearest that works is {nearest}"
        )


def _check_task(task: Task, processes: int) -> None:
    where, group = f"tasks.{task.name}", task.images_per_prompt
    if group < 1:
        raise ValueError(f"{where}.images_per_prompt is {group}, but at least 1 image is needed")
    if task.batch < 1 or task.batch % group:
        raise ValueError(
            f"{where}.batch is {task.batch} images, which groups of {group} images of one prompt do not divide: "
            f"the nearest that works is {nearest_multiple(task.batch, group * processes)}"
        )
    if task.prompts_per_iteration % processes:
        raise ValueError(
            f"{where}.batch is {task.batch} images = {task.prompts_per_iteration} groups of {group}, which {processes} "
            f"processes cannot share evenly: the nearest that works is {nearest_multiple(task.batch, group * processes)}"
        )
    if not task.rewards:
        raise ValueError(f"{where}.rewards is empty, but a task needs a reward")
    for term in task.rewards:
        if term.weight == 0 or (term.weight < 0 and task.shaping == "parity"):
            does = "trains away from parity" if term.weight else "trains nothing"
            raise ValueError(
                f"{where}.rewards has {term.scorer} with the weight {term.weight:g}, which {does}: use one above 0"
            )
    if task.baseline == "group" and (task.shaping == "parity" or group < 2):
        raise ValueError(
            f"{where}.baseline is group, which compares each image with the others of its prompt: it needs "
            f"{where}.images_per_prompt of at least 2 and {where}.shaping pointwise; or use batch"
        )
    if task.shaping == "parity":
        _check_parity(task, where)
    else:
        _refuse_of_sets(task, where)
    if not 0.0 <= task.max_invalid < 1.0:
        raise ValueError(
            f"{where}.max_invalid is {task.max_invalid}, but it is a share and must lie in [0, 1)"
        )


OF_SETS = ("classes", "root", "credit", "unusable")
"""Fields of a task that the reward of a set reads alone."""


def _refuse_of_sets(task: Task, where: str) -> None:
    """Refuse what would be set for nothing."""
    for field in fields(task):
        value = getattr(task, field.name)
        if field.name in OF_SETS and value != field.default:
            raise ValueError(
                f"{where}.{field.name} is {value}, which only a set's reward reads, but {where}.shaping is pointwise: leave it at {field.default}, "
                "or use parity"
            )


def _check_parity(task: Task, where: str) -> None:
    if task.images_per_prompt < 2:
        raise ValueError(
            f"{where}.images_per_prompt is {task.images_per_prompt}, but parity compares at least 2 images of a prompt"
        )
    if len(task.rewards) != 1:
        raise ValueError(
            f"{where}.rewards has {len(task.rewards)} terms, but parity counts the classes of one"
        )
    if task.unusable == "worst" and task.credit == "shared":
        raise ValueError(
            f"{where}.unusable is worst, but with {where}.credit shared no image has a credit of its own: use "
            "leave_one_out or masked"
        )
    if task.classes < 2:
        raise ValueError(f"{where}.classes is {task.classes}, but parity needs at least 2 classes")


def _check_optimiser(update: Update) -> None:
    for field in ("lr", "clip", "advantage_clip", "max_grad_norm", "adam_eps"):
        value = getattr(update, field)
        if value is not None and not value > 0:
            raise ValueError(f"update.{field} is {value}, but it must be above 0")
    for field in ("trained_steps", "micro_batch"):
        if getattr(update, field) < 1:
            raise ValueError(f"update.{field} is {getattr(update, field)}, but it must be at least 1")
    if not all(0.0 <= beta < 1.0 for beta in update.betas):
        raise ValueError(f"update.betas is {update.betas}, but both must lie in [0, 1)")
    for field in ("warmup", "weight_decay"):
        if getattr(update, field) < 0:
            raise ValueError(f"update.{field} is {getattr(update, field)}, but it must be at least 0")
    if update.cuda_graphs and update.compile:
        raise ValueError(
            "update.cuda_graphs and update.compile are both true, but a compiled denoiser is another program than the one that is recorded: choose one"
        )
    if update.cuda_graphs and update.sharding != "none":
        raise ValueError(
            f"update.cuda_graphs is true and update.sharding is {update.sharding}, but a recording reads weights where they lay, and shared-out ones come and "
            "go: leave out one of them"
        )


# ----------------------------------------------------------------------------------------------------- names and values


def choose(kind: str, given: str, choices: Iterable[str]) -> str:
    """`given` where it is one of the choices.

    Raises:
        ValueError: otherwise, naming the choices and the nearest one.
    """
    known = list(choices)
    if given in known:
        return given
    near = difflib.get_close_matches(given, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
        f"unknown {kind} {given!r}{hint}: choose from {', '.join(known) or 'nothing, there is none'}"
    )


def as_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON holds it: lists for tuples."""
    plain = _plain(asdict(experiment) | {"method": methods.as_json(experiment.method)})
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted field names to values; a task's fields are under tasks.<name>."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key == "tasks":
            flat[f"{prefix}tasks"] = [task["name"] for task in value]
            value = {task["name"]: task for task in value}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment as JSON that was stored before it had some fields, with these: their defaults are what it did then."""
    complete = as_json(Experiment(base="", domain="miniature")) | dict(
        stored
    )  # before `domain` there was nothing else
    complete["tasks"] = [_defaults(Task) | dict(given) for given in complete["tasks"]]
    for name, section in _SECTIONS.items():
        if complete[name] is not None:
            complete[name] = _defaults(section) | dict(complete[name])
    if (method := complete["method"]["name"]) in methods.names():
        complete["method"] = _plain(methods.as_json(methods.load(method)())) | dict(complete["method"])
    return complete


def _defaults(section: type[Any]) -> dict[str, Any]:
    """Defaults of the fields that have one, as JSON holds them."""
    return {f.name: _plain(f.default) for f in fields(section) if f.default is not MISSING}


def chosen_fields(experiment: Experiment) -> dict[str, Any]:
    """What an experiment is beside the defaults, by dotted field: a field that gets into a section or a method later, at a default, changes nothing of it."""
    record = as_json(experiment)
    bare = {
        "tasks": [{"name": task["name"]} for task in record["tasks"]],
        "method": {"name": record["method"]["name"]},
        **{section: {} for section in _SECTIONS if record[section] is not None},
    }
    usual = flatten(with_defaults(bare))
    chosen = {field: value for field, value in flatten(record).items() if usual.get(field, "none") != value}
    return chosen | {
        "tasks": [task["name"] for task in record["tasks"]],
        "method": record["method"]["name"],
        "on": sorted({*_SECTIONS} & {*bare}),
    }


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """Fields of two experiments (as JSON) that differ, each as `field (stored -> now)`."""
    before, after = flatten(with_defaults(stored)), flatten(now)
    return [
        f"{field} ({before.get(field, 'absent')} -> {after.get(field, 'absent')})"
        for field in sorted({*before, *after})
        if field not in but and before.get(field, "absent") != after.get(field, "absent")
    ]


def override(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """Apply `field=value` settings: `update.lr=1e-5`, `tasks.fairness.credit=shared`, or a field's bare name where it is the only one.

    Another method is another experiment (`train.experiments`), as with it change other fields.

    `tasks.batch` or a bare task field changes every task, `classes` and others that only a set's reward reads those of sets. `none` switches off what may be off; setting a field of a
    section that is off (lora, ema) switches it on. A revision is that of one base: another base has none unless that is set too.

    Raises:
        ValueError: not of that form, unknown field, or a value of another type; names the choices.
    """
    before, given = experiment, list(settings)
    for setting in given:
        field, equals, value = setting.partition("=")
        if not equals or not field:
            raise ValueError(f"--set {setting!r} is not of the form field=value")
        if field == "method":
            raise ValueError(
                f"--set {setting}: another method is another experiment, such as imagereward_{value}"
            )
        for path in _resolve(experiment, field):
            experiment = _with(experiment, path, value, field)
    if experiment.base != before.base and not any(setting.startswith("revision=") for setting in given):
        return replace(experiment, revision=None)
    return experiment


def refuse_twice(settings: Iterable[str]) -> None:
    """Refuse a field that is set twice on one command line, of which the last would win without a word.

    Raises:
        ValueError: naming both.
    """
    given: dict[str, str] = {}
    for setting in settings:
        field = setting.partition("=")[0]
        if field in given:
            raise ValueError(f"--set {given[field]} and --set {setting} are both given: leave one out")
        given[field] = setting


def with_reward(experiment: Experiment, given: str) -> Experiment:
    """Train on another scorer, with the task's prompts, batch and shaping.

    Args:
        experiment: with tasks.
        given: `SCORER`, or `TASK=SCORER` where there are several tasks; a scorer is a name or a user's own file.

    Raises:
        ValueError: where there is no such task, or it is not said which.
    """
    task_name, equals, scorer = given.partition("=")
    if not equals or "/" in task_name:  # a path, of which a folder may be called lr=1e-5
        task_name, scorer = "", given
    names = [task.name for task in experiment.tasks]
    if not names:
        raise ValueError(f"--reward {given}: this experiment has no task to train on")
    if not task_name and len(names) > 1:
        raise ValueError(f"--reward {given}: say of which task, TASK={scorer}, one of {', '.join(names)}")
    chosen = choose("task", task_name or names[0], names)
    if scorer.endswith(".py"):
        scorer = str(Path(scorer).resolve())  # the run is resumed from anywhere
    tasks = tuple(
        replace(task, rewards=(Reward(scorer),)) if task.name == chosen else task for task in experiment.tasks
    )
    return replace(experiment, tasks=tasks)


def _paths(experiment: Experiment) -> Iterator[tuple[str, ...]]:
    """Every field that `override` can set, as its dotted path."""
    for field in fields(Experiment):
        if field.name == "tasks":
            for task in experiment.tasks:
                yield from (
                    ("tasks", task.name, inner.name)
                    for inner in fields(Task)
                    if inner.name not in ("name", "rewards")
                )
            continue
        if field.name not in ("sampling", "update", "method"):
            yield (field.name,)
        section = type(experiment.method) if field.name == "method" else _SECTIONS.get(field.name)
        if section is not None:
            yield from ((field.name, inner.name) for inner in fields(section))


def _resolve(experiment: Experiment, field: str) -> list[tuple[str, ...]]:
    """The paths that a name on the command line means: one, or the same field of every task."""
    paths = list(_paths(experiment))
    exact = [path for path in paths if ".".join(path) == field]
    if exact:
        return exact
    inner = field.removeprefix("tasks.")
    found = [path for path in paths if path[-1] == inner and (inner == field or path[0] == "tasks")]
    if inner in OF_SETS and (of_sets := _of_sets(experiment, found)):
        found = of_sets
    if len({path[0] for path in found}) == 1:
        return found
    if found:
        names = ", ".join(sorted({".".join(path) for path in found}))
        raise ValueError(f"--set {field} is ambiguous: choose from {names}")
    choose("field", field, sorted(".".join(path) for path in paths))
    raise AssertionError("unreachable: an exact name was looked up above")


def _of_sets(experiment: Experiment, paths: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Of paths to a field of tasks, those of tasks whose reward is a set's."""
    names = {task.name for task in experiment.tasks if task.shaping == "parity"}
    return [path for path in paths if path[0] == "tasks" and path[1] in names]


def _with(owner: Any, path: Sequence[str], value: str, field: str) -> Any:
    """`owner` with the field at `path` set to a parsed value."""
    head, *rest = path
    if head == "tasks":
        name, *inner = rest
        tasks = tuple(_with(t, inner, value, field) if t.name == name else t for t in owner.tasks)
        return replace(owner, tasks=tasks)
    kind = typing.get_type_hints(type(owner))[head]
    if not rest:
        return replace(owner, **{head: _parse(kind, value, field)})
    section = getattr(owner, head)
    if section is None:
        section = _switched_on(kind, owner)
    return replace(owner, **{head: _with(section, rest, value, field)})


def _switched_on(kind: Any, owner: Any) -> Any:
    """A section of `owner` that was off, with its defaults."""
    (section,) = (option for option in typing.get_args(kind) if is_dataclass(option))
    assert isinstance(section, type)
    if section is not Pretraining:
        return section()
    # as many pairs as pictures, as the paper and each of its rivals have (Table 6); `check` refuses the source until it is set
    pairs = max((task.batch for task in owner.tasks), default=Pretraining.batch)
    return Pretraining(source="", batch=pairs, beta=owner.method.pretraining_beta)


def _parse(kind: Any, value: str, field: str) -> Any:
    """A value of the field's annotated type."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value.lower() in ("none", "off"):
            return None
        (kind,) = (option for option in options if option is not type(None))
        if is_dataclass(kind):
            raise ValueError(
                f"--set {field}={value}: choose none, or set one of its fields ({field}.<field>=value)"
            )
        return _parse(kind, value, field)
    if origin is Literal:
        return choose(f"value of {field}", value, options)
    if origin is tuple:
        nothing = options[-1] is Ellipsis and value.lower() in ("none", "off")
        inner = [] if nothing else [part for part in value.split(",") if part]
        if options[-1] is not Ellipsis and len(inner) != len(options):
            raise ValueError(f"--set {field}={value}: needs {len(options)} values, separated by commas")
        return tuple(_parse(options[0], part, field) for part in inner)
    if kind is bool:
        return choose(f"value of {field}", value.lower(), ("true", "false")) == "true"
    if kind is str:
        if not value:
            raise ValueError(f"--set {field}= gives nothing: write a value behind it")
        return value
    return _number(kind, value, field)


def _number(kind: type[int] | type[float], value: str, field: str) -> int | float:
    try:
        number = kind(value)
    except ValueError:
        word = "a whole number" if kind is int else "a number"
        raise ValueError(f"--set {field}={value}: {value!r} is not {word}") from None
    if not math.isfinite(float(value)):  # of text: a whole number may be too large for a float
        raise ValueError(f"--set {field}={value}: {value!r} is not finite")
    return number
