"""From names to a run that is ready to go, and from a trained policy to a finished run directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor

import prompts
from evals import decoder
from evals.arithmetic import exact_device
from evals.bases import pipeline_index
from evals.checkpoints import SNAPSHOTS, find_base, load_pipeline, refuse_revision
from evals.files import write_text
from evals.memory import keep_what_is_freed
from evals.scorers import weights_of
from train import card, cuda_graphs, grids, trackers
from train import state as states
from train.config import MEMORY_FIELDS, Experiment, Sharding, as_json, check, differences
from train.data import pretraining_source
from train.gates import transition_gate
from train.launch import has_lost_another
from train.plan import refuse_steps
from train.policy import Policy
from train.rewards import check_prompts, check_rewards, load_scorers
from train.run import Run, on_main_process

HANDING_OVER = ".handing-over.tmp"
"""Folder in a run directory in which the trained model is written before it is moved to its place; there until the run is finished."""

LOCK = ".lock"
"""In a run directory beside which nothing can be written: what is locked while it is trained in."""

BEGUN = ("state", "metrics.jsonl", grids.FOLDER, SNAPSHOTS, trackers.ID_FILE, *trackers.NAMES)
"""What a run directory may hold before the first checkpoint."""


def no_bar(_progress: states.Progress, _task: str, _reward: float | None) -> None:
    """Show nothing."""


SHARDED = ("BasicTransformerBlock", "ResnetBlock2D")
"""Parts of a denoiser whose weights come together for their turn only; what is beside them is little."""


def new_accelerator(sharding: Sharding = "none", cuda_graphs: bool = False) -> Accelerator:
    """One process, or this one of those that were launched together: CUDA where there is one, else gloo on CPUs.

    Args:
        sharding: whether several processes share out the weights. One has nobody to share with.
        cuda_graphs: whether calls are to be recorded: what they write is then of memory that grows by the page, unless PYTORCH_CUDA_ALLOC_CONF says how.
    """
    if cuda_graphs and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    on_gpu = exact_device().type == "cuda"
    if on_gpu:
        # cuBLAS has scratch memory, 32 MiB on some GPUs, for each thread that asks; a process waits for each gradient, and needs no second thread for it
        torch.autograd.set_multithreading_enabled(False)
    else:
        keep_what_is_freed()
    # the main process alone writes, and a dead one is the launcher's matter
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # gradients need no second copy
    if sharding == "none":
        return Accelerator(cpu=not on_gpu, mixed_precision="no", kwargs_handlers=[ddp, patience])
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(SHARDED),
        cpu_ram_efficient_loading=False,  # every process has loaded the base
    )
    accelerator = Accelerator(
        cpu=not on_gpu, mixed_precision="no", fsdp_plugin=plugin, kwargs_handlers=[patience]
    )
    if not on_gpu and accelerator.num_processes > 1:
        # accelerate takes the plugin on GPUs only; on a CPU torch shards as well
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def finished_card(out: Path, identity: states.Identity) -> dict[str, Any] | None:
    """run.json of a run that is already finished, or None.

    Of prompts those in files of one's own are compared: only they can be changed under a run, and no others are fetched for a run that has no more use of them.

    Raises:
        ValueError: where it is damaged, or that of another run.
    """
    path = out / "run.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stored = states.Identity(record["experiment"], record["model"], record["seed"])
        digests = {**record.get("prompt_sets", {})}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is no run card of this project ({error!r})") from None
    refuse_another_run(out, stored, identity)
    own = own_prompts(task["prompts"] for task in identity.experiment["tasks"])
    refuse_other_prompts(out, digests, prompt_versions(own))
    return dict(record)


def refuse_another_run(out: Path, stored: states.Identity, identity: states.Identity) -> None:
    """Refuse to go on with a run that was started as another.

    Raises:
        ValueError: naming the fields that differ.
    """
    differ = differences(stored.experiment, identity.experiment, but=MEMORY_FIELDS)
    for name in ("model", "seed"):
        before, now = getattr(stored, name), getattr(identity, name)
        if before != now:
            differ.append(f"{name} ({before} -> {now})")
    if differ:
        raise ValueError(
            f"{out} holds a run with other settings, {'; '.join(differ)}: choose another --out, or the same settings"
        )


def refuse_other_rewards(
    out: Path, experiment: Experiment, stored: Mapping[str, str], now: Mapping[str, str]
) -> None:
    """Refuse to go on with a reward that is not what it was; a scorer that is only watched may change.

    Args:
        out: run directory.
        experiment: with the rewards.
        stored: versions of its scorers in the checkpoint, by name; one that is not there is not compared.
        now: versions of its scorers as they are.

    Raises:
        ValueError: naming the first that differs.
    """
    for name in dict.fromkeys(term.scorer for task in experiment.tasks for term in task.rewards):
        before = stored.get(name, now[name])
        if before != now[name]:
            raise ValueError(
                f"{out} was trained on version {before} of the reward {name}, which is now version {now[name]}: "
                "choose another --out, or bring back the scorer and weights of before"
            )


def refuse_other_prompts(out: Path, stored: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with prompts that are not what they were under the same name.

    Args:
        out: run directory.
        stored: digests in the checkpoint or run.json, by set or file; one that is not there is not compared.
        now: digests as they are.

    Raises:
        ValueError: naming the first that differs.
    """
    for name, digest in now.items():
        before = stored.get(name, digest)
        if before != digest:
            raise ValueError(
                f"{out} was trained on the prompts {name} with the digest {before}, which is now {digest}: "
                "choose another --out, or bring back the prompts of before"
            )


def prompt_versions(prompt_sets: Mapping[str, Sequence[prompts.Prompt]]) -> dict[str, str]:
    """Digests of prompt sets, by name."""
    return {name: prompts.digest(prompt_set) for name, prompt_set in prompt_sets.items()}


def own_prompts(names: Iterable[str]) -> dict[str, Sequence[prompts.Prompt]]:
    """Of prompt sets those in files of one's own, by name; no other is fetched.

    Raises:
        ValueError: for a name that is neither a set nor a file that can be read.
    """
    known = prompts.names()
    return {name: prompts.load(name) for name in names if name not in known}


def check_out(out: Path) -> None:
    """Refuse a folder that is something else.

    Raises:
        ValueError: for a file, or a folder with other things in it than a run's.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file")
    state = out / "state"
    strange = sorted(path.name for path in out.iterdir() if path.name != LOCK) if out.is_dir() else []
    if state.is_dir() and states.is_ours(state):
        # killed before the first checkpoint, a run has no more than these; one without iterations never has a checkpoint
        begun = states.latest(state) is not None or HANDING_OVER in strange
        strange = [] if begun else [name for name in strange if name not in BEGUN]
    if strange:
        raise ValueError(
            f"--out {out} is not empty and no run directory (it holds {strange[0]}): choose another"
        )


def check_names(experiment: Experiment) -> None:
    """Refuse prompt sets and scorers that are not there, rewards that are not for their task, prompts of one's own that a scorer cannot answer for, and a revision of a folder, while nothing is fetched or loaded.

    Raises:
        ValueError: naming the choices.
    """
    if experiment.revision is not None:
        refuse_revision(find_base(experiment.base), experiment.revision)
    own = own_prompts(task.prompts for task in experiment.tasks)
    loaded = load_scorers(experiment.scorers, "cpu", experiment.domain)
    check_rewards(experiment, loaded)
    check_prompts(experiment, loaded, own)


def ask_for_base(experiment: Experiment) -> None:
    """Fetch of a base on the hub what says which one it is, before prompts and scorers' weights of some gigabytes: it may be gone, or gated.

    Raises:
        ValueError: where it cannot be had, with what to take instead.
    """
    found = find_base(experiment.base)
    if not Path(found).exists():
        try:
            pipeline_index(found, experiment.revision, "`--set base=` takes")
        except ValueError as error:
            raise ValueError(f"base: {error}") from error


def named_inputs(
    experiment: Experiment, device: torch.device | str
) -> tuple[dict[str, Sequence[prompts.Prompt]], dict[str, Any]]:
    """Prompt sets and scorers that the tasks name, by name; no weights are loaded for it.

    Raises:
        ValueError: for one that is not there, or prompts that a scorer of their task cannot answer for.
    """
    prompt_sets = {task.prompts: prompts.load(task.prompts) for task in experiment.tasks}
    scorers = load_scorers(experiment.scorers, device, experiment.domain)
    check_prompts(experiment, scorers, prompt_sets)
    return prompt_sets, scorers


def fetch_weights(scorers: Mapping[str, Any]) -> None:
    """Weights of scorers onto this machine.

    Raises:
        ValueError: for those that cannot be had.
    """
    for scorer in scorers.values():
        for weights in weights_of(scorer):
            weights.paths()


def fetch(experiment: Experiment) -> None:
    """Everything that a run needs of others onto this machine: base, prompts, prepared, and scorers' weights. So it can be trained without a network.

    Raises:
        ValueError: for what cannot be had, or does not open.
    """
    ask_for_base(experiment)
    _, scorers = named_inputs(experiment, "cpu")
    fetch_weights(scorers)
    load_pipeline(experiment.base, experiment.revision)


def prepare(
    experiment: Experiment,
    model: str,
    seed: int,
    out: Path,
    accelerator: Accelerator,
    show: Callable[[states.Progress, str, float | None], None] = no_bar,
    stop_requested: Callable[[], int] = int,
    pipeline: Any | None = None,
) -> Run:
    """Load everything, resume where there is something to resume.

    Args:
        experiment: to be run.
        model: name of its variant.
        seed: of everything random.
        out: run directory.
        accelerator: of this process.
        show: takes progress, task and its mean reward.
        stop_requested: the signal that asks to stop, 0 for none.
        pipeline: to be trained in place of the experiment's base.

    Raises:
        ValueError: one sentence, for whatever the user can mend.
        GateBroken: where the transition is not diffusers'.
    """
    check(experiment, accelerator.num_processes)
    decoder.check(experiment.sampling.decoder_precision, accelerator.device)
    if experiment.update.cuda_graphs:
        cuda_graphs.check_device(accelerator.device)
        cuda_graphs.leave_default_stream(accelerator.device)
    check_out(out)
    identity = states.Identity(as_json(experiment), model, seed)
    checkpoint = states.latest(out / "state")
    progress = states.Progress()
    if checkpoint is not None:
        progress, stored = states.read(checkpoint)
        refuse_another_run(out, stored, identity)
    if pipeline is None:
        ask_for_base(experiment)
    prompt_sets, scorers = named_inputs(experiment, accelerator.device)
    versions = {name: scorer.version for name, scorer in scorers.items()}
    refuse_other_rewards(out, experiment, progress.scorer_versions, versions)
    progress.scorer_versions = versions
    asked = prompt_versions(prompt_sets)
    refuse_other_prompts(out, progress.prompt_versions, asked)
    progress.prompt_versions = asked

    fetch_weights(scorers)  # what cannot be had is said before hours have gone into it
    pipeline = pipeline or load_pipeline(experiment.base, experiment.revision)
    refuse_steps(pipeline.scheduler.config, experiment.sampling.steps)
    policy = Policy(pipeline, experiment, accelerator, seed)
    source = None
    if experiment.pretraining is not None:
        source = pretraining_source(experiment.pretraining, policy.painter, seed)
    (out / "state").mkdir(parents=True, exist_ok=True)
    run = Run(
        out=out,
        experiment=experiment,
        identity=identity,
        seed=seed,
        accelerator=accelerator,
        policy=policy,
        prompt_sets=prompt_sets,
        scorers=scorers,
        source=source,
        log=states.MetricsLog(out / "metrics.jsonl", progress.metrics_bytes)
        if accelerator.is_main_process
        else None,
        progress=progress,
        show=show,
        stop_requested=stop_requested,
    )
    if experiment.tasks:
        experiment.method.check_model(run)
        painter = policy.painter
        gate = transition_gate(policy.pipeline.scheduler, painter.schedule, experiment.sampling.eta)
        progress.gates["transition"] = gate
    if checkpoint is not None:
        restore(run, checkpoint)
    return run


def restore(run: Run, checkpoint: Path) -> None:
    """Put a checkpoint's tensors back: weights, moments, average, and this process's random states.

    Raises:
        ValueError: one sentence naming the checkpoint, where they are not this run's.
    """
    averages = {"ema": run.policy.ema, "old": run.policy.old}
    files = states.read_tensors(checkpoint, [name for name, there in averages.items() if there is not None])
    try:
        run.policy.load_state(files)
        restore_random(run, files["random"])
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and has_lost_another(error)
        ):
            raise  # the checkpoint may well be
        raise ValueError(
            f"{checkpoint} is not of this run ({error}): delete {checkpoint.parent} to start it again"
        ) from None


def restore_random(run: Run, random: dict[str, Tensor]) -> None:
    """Put this process's random states back; with more processes than before, the new ones keep the state they have."""
    if "cpu.0" not in random:
        raise ValueError("random.safetensors holds no state of a generator")
    if f"cpu.{run.rank}" in random:
        torch.set_rng_state(random[f"cpu.{run.rank}"])
    if run.accelerator.device.type == "cuda" and f"cuda.{run.rank}" in random:
        torch.cuda.set_rng_state(random[f"cuda.{run.rank}"])


def hand_over(run: Run, name: str) -> None:
    """Write the trained model into the run directory, and then run.json, which means finished.

    Raises:
        OSError: where the disk refuses; the state to resume from is untouched.
    """
    weights = run.policy.weights_to_hand_over()

    def write() -> None:
        temporary = run.out / HANDING_OVER
        empty(temporary)
        try:
            run.policy.save(temporary, weights)
            for made in sorted(temporary.iterdir()):
                replace_path(made, run.out / made.name)
        except OSError:
            empty(temporary)  # half a model, on a disk that may be full
            raise
        record = card.card(
            name,
            run.experiment,
            run.identity.model,
            run.seed,
            run.progress,
            run.prompt_sets,
            run.scorers,
            run.world,
            run.accelerator.device,
            run.policy.pipeline.scheduler,
        )
        write_text(json.dumps(record, indent=1) + "\n", run.out / "run.json")
        shutil.rmtree(temporary, ignore_errors=True)

    on_main_process(run, write)


def empty(folder: Path) -> None:
    """Make a folder, or what is in it go."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace_path(source: Path, target: Path) -> None:
    """Move a file or folder to where an older one may be."""
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)
