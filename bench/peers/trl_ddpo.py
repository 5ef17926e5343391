"""trl's DDPOTrainer, as a process that `bench.peers` asks, in the environment that `make peers` makes.

It is used as its documentation says: a pipeline, a function for prompts and one for rewards, and `step` once an epoch. The reward is this project's own
scorer, the same code on both sides; nothing else of this project is imported but `bench.peers.worker` and `bench.memory`.
"""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

from bench.memory import gpu_peak_mib
from bench.peers.worker import Setting, Stopwatch, serve


class Trainer:
    """What a request can ask for."""

    trainer: Any
    epoch = 0
    steps_taken = 0

    def prepare(self, setting: dict[str, Any], gold: bool = False) -> dict[str, str]:
        """Load everything; with gold pictures are also measured by it. Returns the versions."""
        import accelerate
        import diffusers
        import peft
        import torch
        import transformers
        import trl  # type: ignore[import-not-found]  # it is in another environment

        asked = Setting(**setting)
        on_cpu = not torch.cuda.is_available()
        accelerate.PartialState(cpu=on_cpu)  # its log needs one before the trainer makes it
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32 there as well
        self.gradient: dict[str, Any] | None = None
        self.rewards: list[Any] = []
        self.gold: list[Any] = []
        self.pipeline = trl.DefaultDDPOStableDiffusionPipeline(asked.pipeline, use_lora=asked.lora)
        self.trainer = trl.DDPOTrainer(
            trl.DDPOConfig(
                seed=asked.seed,
                mixed_precision="no" if asked.precision == "fp32" else asked.precision,
                allow_tf32=False,
                save_freq=10**6,
                accelerator_kwargs={"cpu": on_cpu},
                sample_num_steps=asked.steps,
                sample_eta=1.0,
                sample_guidance_scale=asked.guidance,
                sample_batch_size=asked.micro_batch,
                sample_num_batches_per_epoch=asked.batch // asked.micro_batch // asked.processes,
                train_batch_size=asked.micro_batch,
                train_gradient_accumulation_steps=asked.batch
                // asked.micro_batch
                // asked.processes
                // asked.trained_steps,
                train_learning_rate=asked.lr,
                train_max_grad_norm=asked.MAX_GRAD_NORM,
                train_cfg=True,
                train_adv_clip_max=asked.ADVANTAGE_CLIP,
                train_clip_range=asked.clip,
                # it takes the whole part of steps x fraction
                train_timestep_fraction=(asked.trained_steps + 0.5) / asked.steps,
            ),
            self._reward_function(asked.prompts if gold else None),
            self._prompt_function(asked),
            self.pipeline,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.trainer.optimizer.optimizer.register_step_pre_hook(self._remember)
        modules = (torch, diffusers, transformers, accelerate, peft, trl)
        return {each.__name__: each.__version__ for each in modules}

    def iterate(self) -> dict[str, float]:
        """One epoch: its time, and the mean and spread of the rewards of this process's images."""
        import torch

        self.rewards.clear()
        self.gold.clear()
        watch = Stopwatch()
        self.steps_taken = self.trainer.step(self.epoch, self.steps_taken)
        told = watch.read()
        self.epoch += 1
        rewards = torch.cat(self.rewards)
        worth = {"gold_mean": float(torch.cat(self.gold).mean())} if self.gold else {}
        return told | worth | {"reward_mean": float(rewards.mean()), "reward_std": float(rewards.std())}

    def gpu_peak_mib(self) -> float | None:
        """Most memory of the GPU that it has taken."""
        return gpu_peak_mib()

    def write(self, to: str) -> None:
        """Write the trained weights, and the gradient of the first optimiser step, into one file per process."""
        from safetensors.torch import save_file

        assert self.gradient is not None
        content = {f"weight.{name}": weight.detach() for name, weight in self._weights().items()}
        content |= {f"gradient.{name}": value for name, value in self.gradient.items()}
        save_file(
            {name: value.cpu().contiguous() for name, value in content.items()},
            f"{to}.{os.environ.get('RANK', '0')}",
        )

    def _weights(self) -> dict[str, Any]:
        return {name: p for name, p in self.pipeline.unet.named_parameters() if p.requires_grad}

    def _remember(self, *_: Any) -> None:
        if self.gradient is None:
            self.gradient = {name: weight.grad.clone() for name, weight in self._weights().items()}

    def _prompt_function(self, asked: Setting) -> Any:
        """The prompts of the set in a random order, another one for each process, again and again."""
        import prompts

        texts = [prompt.text for prompt in prompts.load(asked.prompts)]
        random.Random(f"{asked.seed} {os.environ.get('RANK', '0')}").shuffle(texts)
        endless = itertools.cycle(texts)
        return lambda: (next(endless), {})

    def _reward_function(self, prompt_set: str | None) -> Any:
        """This project's scorer, as the trainer wants it; with a set of prompts also gold, which wants to know what can be checked of each."""
        import torch

        import prompts
        from evals.miniature.scorers import gold_utility, imagereward

        device = "cuda" if torch.cuda.is_available() else "cpu"
        scorer, gold = imagereward.Scorer(device), gold_utility.Scorer(device)
        by_text = {prompt.text: prompt for prompt in prompts.load(prompt_set)} if prompt_set else {}

        def reward(images: Any, texts: Any, _metadata: Any) -> tuple[Any, dict[str, Any]]:
            found = scorer(images.float(), [prompts.Prompt("asked", text) for text in texts])
            self.rewards.append(found)
            if by_text:
                self.gold.append(gold(images.float(), [by_text[text] for text in texts]))
            return found, {}

        return reward


if __name__ == "__main__":
    serve(Trainer())
