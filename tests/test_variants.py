"""The paper's experiments on Stable Diffusion, on pipelines of each family with small random weights: trained, resumed, scored, opened by diffusers alone."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

import prompts
from evals import harness, suites
from evals import rows as score_rows
from evals.checkpoints import resolve
from evals.diffusion import Painter, Sampling, noise
from evals.suites import Part, Suite
from tests import toy
from train import experiments
from train.config import Experiment, check
from train.experiments._stable_diffusion import BASES
from train.loop import Stopped, train
from train.start import hand_over, new_accelerator, prepare

EXPERIMENTS = ("imagereward", "compositionality", "fairness", "joint")
FAMILIES = {
    "sd15": "sd15",
    "sd2": "sd2",
    "sd2v": "sd2",
    "sdxl": "sdxl",
    "sd2-lora": "sd2_1gpu",
    "sdxl-lora": "sdxl_1gpu",
}
"""What is tried, and the variant that it is tried with."""
STAND_INS = {
    "imagereward": "redness",
    "objects": "redness",
    "hpsv2": "redness",
    "skin_tone": "tone",
    "monk_tone": "tone",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline of each family, with the scheduler that it ships."""
    made = {
        "sd15": toy.build_tiny_pipeline(),
        "sd2": toy.build_tiny_pipeline(),
        "sd2v": toy.build_tiny_pipeline(prediction_type="v_prediction"),
        "sdxl": toy.build_tiny_xl(),
    }
    made["sd15"].scheduler = PNDMScheduler(**toy.NOISE, skip_prk_steps=True, set_alpha_to_one=False)
    folders = {}
    for name, pipeline in made.items():
        folders[name] = tmp_path_factory.mktemp(name)
        pipeline.save_pretrained(folders[name])
    return folders


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scorers whose weights cannot be had, in whose place others answer."""
    monkeypatch.setattr(
        "evals.scorers.load", lambda name, device="cpu", domain="photo": toy.load_scorer(STAND_INS[name])
    )
    suite = Suite(
        parts=(Part("composition-unseen", 1, ("objects",)),),
        sampling=Sampling(steps=2, guidance=3.0, micro_batch=8),
        seed=3,
    )
    monkeypatch.setattr(suites, "load", lambda _name: suite)
    whole = prompts.load
    monkeypatch.setattr(
        "prompts.load", lambda name: whole(name)[:4] if name == "composition-unseen" else whole(name)
    )


def small(experiment: Experiment, base: Path, own: Path) -> Experiment:
    """The variant, but for its size and for the prompts that would have to be fetched."""
    tasks = tuple(
        replace(
            task,
            batch=2 * task.images_per_prompt if task.images_per_prompt > 1 else 4,
            prompts=str(own) if task.prompts.startswith("diffusiondb") else task.prompts,
            max_invalid=0.9,
        )
        for task in experiment.tasks
    )
    return replace(
        experiment,
        base=str(base),
        revision=None,
        tasks=tasks,
        iterations=2,
        sampling=replace(experiment.sampling, steps=4, micro_batch=4),
        update=replace(experiment.update, lr=1e-3, trained_steps=2, micro_batch=4),
        save_every=1,
    )


def in_diffusers(run: Path, base: Path, xl: bool, lora: bool) -> Any:
    """What was trained, opened without this project."""
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    more = {"add_watermarker": False} if xl else {"safety_checker": None}
    pipeline = kind.from_pretrained(base if lora else run, **more)
    if lora:
        pipeline.load_lora_weights(run)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


QUICK = {("joint", "sd15"), ("joint", "sd2"), ("joint", "sdxl-lora")}
CASES = [
    pytest.param(name, family, marks=[] if (name, family) in QUICK else [pytest.mark.slow])
    for name in EXPERIMENTS
    for family in FAMILIES
]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_trains_resumes_is_scored_and_opens_in_diffusers(
    name: str, family: str, bases: dict[str, Path], toy_prompts: Path, tmp_path: Path
) -> None:
    base, lora, xl = bases[family.removesuffix("-lora")], family.endswith("-lora"), family.startswith("sdxl")
    experiment = small(experiments.load(name, FAMILIES[family]), base, toy_prompts)
    out = tmp_path / "results" / "runs" / f"{name}-tiny-0"
    straight = prepare(experiment, "tiny", 0, tmp_path / "straight", new_accelerator())
    train(straight)
    stopped = prepare(experiment, "tiny", 0, out, new_accelerator(), stop_requested=lambda: signal.SIGTERM)
    with pytest.raises(Stopped):
        train(stopped)
    again = prepare(experiment, "tiny", 0, out, new_accelerator())
    assert (again.progress.iteration, again.progress.phase) < (2, 0)
    train(again)
    for weight, kept in straight.policy.weights.items():
        assert torch.equal(again.policy.weights[weight], kept)
    assert any(not torch.equal(stopped.policy.weights[w], kept) for w, kept in again.policy.weights.items())
    hand_over(again, f"{name}-tiny-0")
    assert again.progress.gates["identity"]["holds"]

    harness.score(str(out), tmp_path / "results" / "scores" / "run.csv", None)
    rows = score_rows.read([tmp_path / "results" / "scores" / "run.csv"])
    assert len(rows) == 4
    assert bool(rows["value"].notna().all())

    latents = noise(5, "nurse", 0, (4, 4, 4), 0)
    theirs = in_diffusers(out, base, xl, lora)(
        "nurse", num_inference_steps=3, guidance_scale=3.0, latents=latents, output_type="pt"
    ).images
    sampling = Sampling(steps=3, eta=0.0, guidance=3.0, micro_batch=1)
    ours = Painter.of(resolve(str(out)).pipeline(), sampling).paint(["nurse"], [0], seed=5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert json.loads((out / "run.json").read_text())["experiment"]["domain"] == "photo"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_can_be_run_on_the_gpus_that_it_is_for(name: str) -> None:
    for base in BASES:
        for size, processes in (("", (1, 8, 128)), ("_8gpus", (1, 8)), ("_1gpu", (1,))):
            for count in processes:
                check(experiments.load(name, base + size), count)


def test_on_128_gpus_it_is_the_papers_setting() -> None:
    (task,) = (paper := experiments.load("fairness", "sd2")).tasks
    assert (task.batch // 128, task.images_per_prompt, task.prompts_per_iteration) == (16, 16, 128)
    assert (paper.update.lr, paper.update.clip, paper.update.trained_steps) == (2e-6, 1e-4, 5)
    assert (paper.sampling.steps, paper.sampling.guidance, paper.sampling.eta) == (50, 7.0, 1.0)
    # so that bf16 rounds alike in rollout and update
    assert paper.sampling.micro_batch == paper.update.micro_batch == 16
