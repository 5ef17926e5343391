"""Toy parts for the tests of training: a tiny pipeline, two scorers, an experiment of milliseconds, and processes to run it in."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.arithmetic import exact_device
from evals.diffusion import Sampling
from prompts import Prompt
from train.config import Experiment, Reward, Task, Update
from train.launch import free_port
from train.plan import plan
from train.run import Run

TOKENS = 12
TEXTS = ("red", "blue", "star", "nurse", "pilot", "a circle", "square")


UNET = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def build_tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> Any:
    """A `StableDiffusionPipeline` of some thirty thousand random parameters: 4x4 latents of 4 channels, 8x8 pictures."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**UNET)
        vae = _tiny_vae()
        text_encoder = CLIPTextModel(_tiny_text_config())
        for module in (unet, vae, text_encoder):
            module.eval()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tiny_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(
            **NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tiny_xl(seed: int = 0) -> Any:
    """A `StableDiffusionXLPipeline` as small: two text encoders, pooled text and picture size among the conditions, Euler's scheduler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    conditions = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 + 6 * 8,
        "cross_attention_dim": 8 + 8,
        "use_linear_projection": True,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "unet": UNet2DConditionModel(**(UNET | conditions)),
            "vae": _tiny_vae(),
            "text_encoder": CLIPTextModel(_tiny_text_config(num_hidden_layers=2)),
            "text_encoder_2": CLIPTextModelWithProjection(_tiny_text_config(num_hidden_layers=2)),
        }
        for module in parts.values():
            module.eval()
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _tiny_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.5,
    )


def _tiny_text_config(num_hidden_layers: int = 1) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=8,
        projection_dim=8,
        intermediate_size=16,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def tiny_tokenizer() -> Any:
    """A CLIP tokenizer over single characters: at most 12 tokens, start and end included."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz,'"
    entries = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(
        vocab={entry: i for i, entry in enumerate(entries)}, merges=[], model_max_length=TOKENS
    )


# --------------------------------------------------------------------------------------------------------------- scorers


class Redness:
    """Toy reward: mean red minus mean green and blue, in [-1, 1]."""

    range = (-1.0, 1.0)
    higher_is_better: bool | None = True
    source = "toy"
    version = "00000000"
    scope = "image"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert len(images_BCHW) == len(prompts)
        return images_BCHW[:, 0].mean((1, 2)) - images_BCHW[:, 1:].mean((1, 2, 3))


class Tone(Redness):
    """Toy classifier: 0 to 3 by how red the picture is, and no class for the brightest."""

    range = (0.0, 3.0)
    higher_is_better = None
    version = "00000001"

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        tone = ((super().__call__(images_BCHW, prompts) + 0.15) / 0.015).floor().clamp(0, 3)
        return torch.where(images_BCHW.mean((1, 2, 3)) > 0.447, torch.nan, tone)


class Raising(Redness):
    """Fails from its third call on."""

    calls = 0

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.calls += 1
        if self.calls >= 3:
            raise RuntimeError("out of ideas")
        return super().__call__(images_BCHW, prompts)


class OfGroups(Redness):
    """Answers for prompts with a group only."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if "group" not in prompt.expect:
                raise ValueError(f"prompt {prompt.id!r} has no group")


class Refusing(Redness):
    """Finds out when it is asked."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise ValueError("these prompts have no group")


class AllNan(Redness):
    """Applies to nothing."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.full((len(prompts),), torch.nan)


class MostlyNan(Redness):
    """Applies to one image in four."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        values = super().__call__(images_BCHW, prompts)
        values[torch.arange(len(values)) % 4 > 0] = torch.nan
        return values


class WrongShape(Redness):
    """Answers for the first image only."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__(images_BCHW, prompts)[:1]


class Writing(Redness):
    """Darkens the pictures that other scorers are given after it."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__(images_BCHW.mul_(0.5), prompts)


class Infinite(Redness):
    """Divides by zero."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__(images_BCHW, prompts) / 0.0


class OutOfRange(Redness):
    """Answers in per cent what it states as a share."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__(images_BCHW, prompts) + 100


class Paired(Redness):
    """Wants the base's pictures."""

    scope = "paired"


class LessIsBetter(Redness):
    """A fault of the picture."""

    higher_is_better = False


class OfPrompt(Redness):
    """Gives all images of a prompt one value."""

    scope = "prompt"


class SharedByPrompt(Redness):
    """Gives all images of a prompt one value, which only its answers tell."""

    scope = "prompt"

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor([float(len(prompt.text)) / 1000 for prompt in prompts])


class NoScope(Redness):
    """Says of itself what nobody knows."""

    scope = "picture"


class Loading(Redness):
    """Builds a network when it is first called, of random numbers that weights would replace."""

    network: Any = None

    def load(self) -> None:
        self.network = self.network or torch.nn.Linear(3, 1)

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.load()
        return super().__call__(images_BCHW, prompts)


class LoadingToRead(Loading):
    """Builds it when it is asked what it does not read of prompts."""

    def cut_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        self.load()
        return [0] * len(prompts)


class Drawing(Redness):
    """Judges by lot."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.rand(len(prompts))


SCORERS: dict[str, type[Redness]] = {
    "redness": Redness,
    "tone": Tone,
    "raising": Raising,
    "of_groups": OfGroups,
    "refusing": Refusing,
    "all_nan": AllNan,
    "mostly_nan": MostlyNan,
    "wrong_shape": WrongShape,
    "writing": Writing,
    "infinite": Infinite,
    "out_of_range": OutOfRange,
    "paired": Paired,
    "less_is_better": LessIsBetter,
    "of_prompt": OfPrompt,
    "shared_by_prompt": SharedByPrompt,
    "no_scope": NoScope,
    "loading": Loading,
    "loading_to_read": LoadingToRead,
    "drawing": Drawing,
}


def load_scorer(
    name: str, device: torch.device | str = "cpu", domain: str = "photo", terms: bool = True
) -> Redness:
    """What `evals.scorers.load` is replaced by."""
    if name not in SCORERS:
        raise ValueError(f"there is no scorer {name!r}")
    return SCORERS[name](device)


# ------------------------------------------------------------------------------------------------------------ experiment


def write_prompts(path: Path) -> Path:
    """A prompt set of seven."""
    lines = (json.dumps({"id": f"p{i}", "text": text}) for i, text in enumerate(TEXTS))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def toy_experiment(base: Path | str, prompts: Path | str, **changes: Any) -> Experiment:
    """Two tasks on the tiny pipeline."""
    redness = Task(
        "redness",
        str(prompts),
        (Reward("redness"),),
        batch=8,
        images_per_prompt=2,
        baseline="group",
        monitors=("tone",),
    )
    tone = Task(
        "tone",
        str(prompts),
        (Reward("tone"),),
        batch=8,
        images_per_prompt=4,
        shaping="parity",
        credit="leave_one_out",
        max_invalid=0.9,
    )
    experiment = Experiment(
        base=str(base),
        tasks=(redness, tone),
        iterations=4,
        sampling=Sampling(steps=4, eta=1.0, guidance=2.0, micro_batch=4),
        update=Update(lr=1e-3, clip=1e-2, trained_steps=2, micro_batch=4),
        save_every=1,
    )
    return replace(experiment, **changes)


def assert_same_on_gpu(
    scorer_on: Callable[[str], Any], images_BCHW: Tensor, prompts: Sequence[Prompt]
) -> None:
    """A scorer's scores on a GPU are those on the CPU, also where a trainer's pictures lie on the GPU."""
    exact_device()
    on_cpu = scorer_on("cpu")(images_BCHW, prompts)
    for images in (images_BCHW, images_BCHW.cuda()):
        on_gpu = scorer_on("cuda")(images, prompts)
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert on_cpu[~on_cpu.isnan()].std() > 0


def backward_passes(run: Run) -> int:
    """How many micro-batches an optimiser step of the first task accumulates its gradient over, as it does so."""
    made, backward, method = 0, run.policy.backward, run.experiment.method

    def counted(loss: Tensor) -> None:
        nonlocal made
        made += 1
        backward(loss)

    run.policy.backward = counted  # type: ignore[method-assign]
    method.update(run, method.collect(run, run.experiment.tasks[0], 0), True)
    each, rest = divmod(made, method.optimiser_steps(run.experiment))
    assert not rest
    return each


def assert_accumulated_as_planned(run: Run) -> None:
    """The plan's micro-batches, of three images each, are those of a real update."""
    run.experiment = replace(run.experiment, update=replace(run.experiment.update, micro_batch=3))
    assert f"gradients accumulated over {backward_passes(run)} x 3" in plan(run.experiment, 1)


# ------------------------------------------------------------------------------------------------------------- processes


def command_line(*arguments: str) -> None:
    """`python -m train` with the toy scorers and the toy experiment, its base and prompts from the environment; ends the process."""
    import evals.scorers
    from train import experiments
    from train.__main__ import main as trainer

    evals.scorers.load = load_scorer  # type: ignore[assignment]
    toy = toy_experiment(os.environ["TOY_BASE"], os.environ["TOY_PROMPTS"])
    experiments.load = lambda experiment, model: toy
    trainer(list(arguments))


def launch(
    world: int, work: Callable[..., None], *arguments: Any, timeout: float = 120, forked: bool = True
) -> list[int]:
    """Run `work(*arguments)` in `world` processes as torchrun would, and return their exit codes.

    The processes are forked from a server that has everything imported, so they start at once; what uses a GPU cannot be forked. When one
    fails the others are killed, as torchrun does.
    """
    context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload(["tests.toy_imports"])
    port = free_port()
    processes = [
        context.Process(target=_work, args=(rank, world, port, work, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes):
        failed = any(process.exitcode for process in processes)
        if failed or time.monotonic() > deadline:
            time.sleep(0.5)  # let the others say why, too
            for process in processes:
                process.kill()
        time.sleep(0.02)
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


def _work(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    work(*arguments)


if __name__ == "__main__":
    command_line(*sys.argv[1:])
