"""This project's trainer, as a process that `bench.peers` asks."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.memory import gpu_peak_mib
from bench.peers.worker import Setting, Stopwatch, serve


class Trainer:
    """What a request can ask for."""

    run: Any
    bare: Any

    def prepare(self, setting: dict[str, Any]) -> dict[str, str]:
        """Load everything. Returns the versions."""
        import accelerate
        import diffusers
        import peft
        import torch
        import transformers

        from bench.bare import BareCalls

        self.gradient: dict[str, Any] | None = None
        self._begin(experiment_of(Setting(**setting)), setting["seed"])
        self.run.policy.optimiser.register_step_pre_hook(self._remember)
        self.bare_calls = BareCalls
        return {
            each.__name__: each.__version__ for each in (torch, diffusers, transformers, accelerate, peft)
        }

    def prepare_experiment(self, name: str, seed: int, guidance: float) -> None:
        """Load an experiment of the miniature, with guidance."""
        from train import experiments

        experiment = experiments.load(name, "miniature")
        sampling = replace(experiment.sampling, guidance=guidance)
        self._begin(replace(experiment, sampling=sampling), seed)

    def _begin(self, experiment: Any, seed: int) -> None:
        from train.start import new_accelerator, prepare

        self.folder = tempfile.TemporaryDirectory()
        out = Path(self.folder.name) / "run"
        accelerator = new_accelerator(cuda_graphs=experiment.update.cuda_graphs)
        self.run = prepare(experiment, "miniature", seed, out, accelerator)

    def iterate(self) -> dict[str, float]:
        """One iteration: its time, the mean and spread of the rewards of its images, and their mean gold where that is watched."""
        from train.loop import iterate

        watch = Stopwatch()
        iterate(self.run, self.run.progress.iteration)
        told = watch.read()
        return told | self._rewards()

    def _rewards(self) -> dict[str, float]:
        if self.run.log is None:
            return {}
        import json

        line = json.loads((self.run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        gold = line.get("monitors", {}).get("gold_utility")
        worth = {} if gold is None else {"gold_mean": gold}
        return worth | {"reward_mean": line["reward_mean"], "reward_std": line["reward_std"]}

    def bare_iteration(self) -> dict[str, float]:
        """The calls that it cannot do without, and nothing else: `bench.bare`."""
        if not hasattr(self, "bare"):
            self.bare = self.bare_calls(self.run)
        watch = Stopwatch()
        self.bare()
        return watch.read()

    def gpu_peak_mib(self) -> float | None:
        """Most memory of the GPU that it has taken."""
        return gpu_peak_mib()

    def write(self, to: str) -> None:
        """Write the trained weights, and the gradient of the first optimiser step, into one file per process."""
        assert self.gradient is not None
        write(f"{to}.{self.run.rank}", self.run.policy.weights, self.gradient)

    def _remember(self, *_: Any) -> None:
        if self.gradient is None:
            self.gradient = {name: weight.grad.clone() for name, weight in self.run.policy.weights.items()}


def experiment_of(setting: Setting) -> Any:
    """The miniature's preference experiment, as trl can train it: each image compared with the whole batch, no average of the weights."""
    from train import experiments
    from train.config import Lora, Update

    paper = experiments.load("imagereward", "miniature")
    micro_batch = setting.micro_batch_here or setting.micro_batch
    (task,) = paper.tasks
    task = replace(
        task,
        prompts=setting.prompts,
        batch=setting.batch,
        images_per_prompt=1,
        baseline="batch",
        monitors=(),
    )
    update = Update(
        lr=setting.lr,
        clip=setting.clip,
        advantage_clip=setting.ADVANTAGE_CLIP,
        max_grad_norm=setting.MAX_GRAD_NORM,
        trained_steps=setting.trained_steps,
        micro_batch=micro_batch,
        compile=setting.compile,
        cuda_graphs=setting.cuda_graphs,
    )
    sampling = replace(
        paper.sampling,
        steps=setting.steps,
        guidance=setting.guidance,
        micro_batch=micro_batch,
        precision=setting.precision,
    )
    return replace(
        paper,
        base=setting.pipeline,
        tasks=(task,),
        sampling=sampling,
        update=update,
        lora=Lora(rank=setting.LORA_RANK, alpha=float(setting.LORA_RANK)) if setting.lora else None,
        ema=None,
        iterations=10**6,
        save_every=10**6,
        samples_every=0,
    )


def write(path: str, weights: dict[str, Any], gradient: dict[str, Any]) -> None:
    """Weights and a gradient by their names in one file."""
    from safetensors.torch import save_file

    content = {f"weight.{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(
        content | {f"gradient.{name}": value.cpu().contiguous() for name, value in gradient.items()}, path
    )


if __name__ == "__main__":
    serve(Trainer())
