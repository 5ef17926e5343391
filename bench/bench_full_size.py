"""An iteration of Stable Diffusion at full size, with random weights, on a GPU; and of the miniature on whatever there is. `make bench`.

Timed against its bare calls, as in `bench_overhead`, with a reward that costs nothing: what a reward takes is the reward's. Every measurement is
kept in `results/bench`, and the plan of a run is told from there. Goal: at most 1.05 times the bare calls, on a GPU.
"""

from __future__ import annotations

import datetime
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.bare import BareCalls, now
from bench.bench_overhead import peak_memory_mib
from evals.architectures import ARCHITECTURES, Architecture
from evals.diffusion import micro_batches
from evals.miniature import weights_folder
from train import experiments, records
from train.card import git_commit
from train.config import Experiment, Lora, Reward, Task
from train.loop import Run, iterate
from train.records import Case, Record
from train.start import new_accelerator, prepare

GOAL = 1.05
ROUNDS = 3
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}
"""Dense matrix products in bf16 with sums in float32, as the makers state them."""

FREE = '''
class Scorer:
    """The mean of a picture."""

    range = (0.0, 1.0)
    higher_is_better = True
    source = "a benchmark's own"
    scope = "image"
    version = "00000000"

    def __init__(self, device="cpu"):
        self.device = device

    def __call__(self, images_BCHW, prompts):
        return images_BCHW.mean((1, 2, 3))
'''

pytestmark = pytest.mark.timeout(3000)

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="full size needs a GPU")
CASES = [
    pytest.param("miniature", (), id="miniature"),
    pytest.param("sd2", (), id="sd2", marks=on_gpu),
    pytest.param("sd2", ("plain",), id="sd2-without-checkpointing", marks=on_gpu),
    pytest.param("sd2", ("compile",), id="sd2-compiled", marks=on_gpu),
    pytest.param("sd2", ("lora",), id="sd2-lora", marks=on_gpu),
    pytest.param("sd15", (), id="sd15", marks=on_gpu),
    pytest.param("sdxl", (), id="sdxl", marks=on_gpu),
    pytest.param("sdxl", ("lora",), id="sdxl-lora", marks=on_gpu),
]


def experiment_of(model: str, ways: tuple[str, ...], reward: Path) -> Experiment:
    """The preference experiment on two micro-batches, with a reward that costs nothing."""
    paper = experiments.load("imagereward", model)
    task = Task("free", "miniature-scenes-unseen", (Reward(str(reward)),), batch=2 * paper.update.micro_batch)
    update = replace(
        paper.update,
        gradient_checkpointing=paper.update.gradient_checkpointing and "plain" not in ways,
        compile="compile" in ways,
    )
    return replace(
        paper,
        tasks=(task,),
        update=update,
        lora=Lora() if "lora" in ways else None,
        iterations=10**6,
        save_every=10**6,
    )


def random_pipeline(architecture: Architecture, device: torch.device) -> Any:
    """A pipeline of that size with random weights; its tokenizer is the miniature's, as for the time any will do."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    with device:
        parts: dict[str, Any] = dict(architecture.models())
    tokenizer = CLIPTokenizer.from_pretrained(weights_folder("pipeline") / "tokenizer", model_max_length=77)
    parts |= {"tokenizer": tokenizer, "scheduler": DDIMScheduler(**architecture.scheduler)}
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizer, add_watermarker=False)
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@pytest.mark.parametrize(("model", "ways"), CASES)
@pytest.mark.benchmark(group="full size")
def test_an_iteration(model: str, ways: tuple[str, ...], benchmark: Any, tmp_path: Path) -> None:
    reward = tmp_path / "free.py"
    reward.write_text(FREE)
    experiment, accelerator = experiment_of(model, ways, reward), new_accelerator()
    pipeline = random_pipeline(ARCHITECTURES[model], accelerator.device) if model in ARCHITECTURES else None
    run = prepare(experiment, model, 0, tmp_path / "run", accelerator, pipeline=pipeline)
    bare, parts, seconds = BareCalls(run), [], []
    iterate(run, 0)  # compiles, and makes AdamW's moments
    bare()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def iteration() -> None:
        start = now()
        iterate(run, run.progress.iteration)
        seconds.append(now() - start)

    benchmark.pedantic(iteration, setup=lambda: parts.append(bare()), rounds=ROUNDS, iterations=1)
    if benchmark.disabled:
        return
    overhead = statistics.median(ours / theirs.total for ours, theirs in zip(seconds, parts, strict=True))
    device = records.device_name()
    record = _record(run, model, bare, parts, statistics.median(seconds), overhead)
    benchmark.extra_info |= {
        "device": device,
        "overhead": overhead,
        "mfu": record.mfu,
        "peak_gib": record.peak_gib,
    }
    print(
        f"\n{device}: {statistics.median(seconds):.2f} s for {record.iteration}, {overhead:.3f} times its bare calls "
        f"(goal {GOAL}), {record.images_per_second:.2f} images/s, MFU {record.mfu}, {record.peak_gib:.1f} GiB; "
        f"kept in {records.add(device, record)}"
    )
    assert overhead <= GOAL or not torch.cuda.is_available(), (
        f"an iteration takes {overhead:.3f} times its bare calls"
    )


def _record(
    run: Run, model: str, bare: BareCalls, parts: list[Any], seconds: float, overhead: float
) -> Record:
    (task,), sampling, update = run.experiment.tasks, run.experiment.sampling, run.experiment.update
    drawn = task.batch * sampling.branches * sampling.steps
    trained = task.batch * sampling.branches * update.trained_steps
    commit, _ = git_commit()
    return Record(
        case=Case.of(run.experiment, model),
        rollout_seconds=statistics.median(part.rollout for part in parts) / drawn,
        update_seconds=statistics.median(part.update for part in parts) / trained,
        decoder_seconds=statistics.median(part.decoder for part in parts) / task.batch,
        overhead=overhead,
        images_per_second=task.batch / seconds,
        iteration=f"{task.batch} images, {sampling.steps} steps, {update.trained_steps} of them trained, {sampling.branches} branches",
        mfu=_mfu(run, bare, seconds),
        peak_gib=peak_memory_mib() / 1024,
        date=datetime.date.today().isoformat(),
        commit=commit or "unknown",
        torch=torch.__version__,
    )


def _mfu(run: Run, bare: BareCalls, seconds: float) -> float | None:
    """Matrix products of the denoiser that the algorithm asks for, over what the device could do in the time; recomputed ones are not asked for."""
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in records.device_name()), None)
    experiment = run.experiment
    # compiled calls cannot be counted, and the peaks are those of 16 bits
    if peak is None or experiment.update.compile or experiment.sampling.precision == "fp32":
        return None
    (task,), update = experiment.tasks, experiment.update
    rows = next(iter(micro_batches(task.batch, update.micro_batch)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bare.denoise(run.policy.painter.unet, rows, run.policy.painter.schedule.timesteps[0])
    each = counter.get_total_flops() / (rows.stop - rows.start)
    # a backward pass is two forward ones, of which an adapter needs that to its input only
    passes = experiment.sampling.steps + (2 if experiment.lora is not None else 3) * update.trained_steps
    asked = task.batch * each * passes
    return float(asked / (peak * 1e12 * seconds))
