"""What the training loop costs beyond the calls it cannot do without. `make bench`, or `pytest bench -s`.

An iteration of the miniature's compositionality experiment is timed against the bare calls that it makes: every forward of the
denoiser in the rollout, every forward and backward of the update, decoder, reward, of the same shapes. Noise, transition,
log-probability, advantage, AdamW, gates and records are what is above that. The two alternate within one run, so that whatever else
the machine does falls on both; the overhead is the median of the ratios of neighbours.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.bare import BareCalls, now
from bench.memory import forget_own_peak, own_peak_mib
from evals.checkpoints import ROOT
from train import experiments
from train.config import Experiment
from train.loop import iterate, save
from train.run import Run
from train.start import new_accelerator, prepare

ALLOWED = 1.1
ROUNDS = 7

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    """One task's batch, of the shapes that are used in earnest."""
    chosen = experiments.load("compositionality", "miniature")
    if not (ROOT / chosen.base / "model_index.json").is_file():
        pytest.skip("the miniature's weights are not here: the clone is incomplete")
    (task,) = chosen.tasks
    return replace(
        chosen,
        iterations=10**6,
        save_every=10**6,
        tasks=(replace(task, batch=2 * chosen.sampling.micro_batch),),
    )


@pytest.fixture
def run(experiment: Experiment, tmp_path: Path) -> Run:
    """A run that has done its first iteration: embeddings are cached, AdamW's moments are there."""
    ready = prepare(experiment, "miniature", 0, tmp_path / "run", new_accelerator())
    iterate(ready, 0)
    return ready


@pytest.mark.benchmark(group="training")
def test_an_iteration_costs_little_more_than_its_bare_calls(run: Run, benchmark: Any) -> None:
    bare, bare_seconds, seconds = BareCalls(run), [], []
    bare()

    def before() -> None:
        bare_seconds.append(bare().total)

    def iteration() -> None:
        start = now()
        iterate(run, run.progress.iteration)
        seconds.append(now() - start)

    benchmark.pedantic(iteration, setup=before, rounds=ROUNDS, iterations=1)
    overhead = statistics.median(ours / theirs for ours, theirs in zip(seconds, bare_seconds, strict=True))
    (task,) = run.experiment.tasks
    benchmark.extra_info |= {
        "bare_seconds": statistics.median(bare_seconds),
        "overhead": overhead,
        "images_per_second": task.batch / statistics.median(seconds),
        "peak_memory_mib": own_peak_mib(),
        "threads": torch.get_num_threads(),
    }
    print(
        f"\niteration {statistics.median(seconds):.2f} s, bare calls {statistics.median(bare_seconds):.2f} s, ratio {overhead:.3f}"
    )
    assert overhead <= ALLOWED, f"an iteration takes {overhead:.3f} times its bare calls"


@pytest.mark.benchmark(group="training")
def test_memory_stays_level_over_iterations_and_trained_steps(run: Run, benchmark: Any) -> None:
    """Peak memory with every step trained is that with one, but for the latents that each stored step takes."""
    drawable = len(run.drawable)
    run.experiment = replace(run.experiment, update=replace(run.experiment.update, trained_steps=1))
    # each of its own iteration: a peak from before would hide that of either
    forget_own_peak()
    iterate(run, run.progress.iteration)
    one_step = own_peak_mib()
    run.experiment = replace(run.experiment, update=replace(run.experiment.update, trained_steps=drawable))
    forget_own_peak()
    benchmark.pedantic(lambda: iterate(run, run.progress.iteration), rounds=1)
    all_steps = own_peak_mib()
    # three float32 latents of each image and step: before, after, mean
    stored = (
        drawable * run.experiment.tasks[0].batch * 3 * math.prod(run.policy.painter.latent_shape) * 4 / 2**20
    )
    benchmark.extra_info |= {"one_step_mib": one_step, "all_steps_mib": all_steps, "stored_mib": stored}
    print(
        f"\npeak memory {one_step:.0f} MiB with 1 trained step, {all_steps:.0f} MiB with {drawable}, {stored:.0f} MiB of it latents"
    )
    assert all_steps - one_step <= 2 * stored + 64


@pytest.mark.benchmark(group="training")
def test_saving_a_state(run: Run, benchmark: Any) -> None:
    def elsewhere() -> None:
        run.progress.iteration += 1  # a state of the same place is not written twice

    benchmark.pedantic(save, args=(run,), setup=elsewhere, rounds=3, iterations=1)
