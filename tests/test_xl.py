"""SDXL: two text encoders, the whole text and the picture's size among the conditions, and all else as for the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from evals.checkpoints import load_pipeline, resolve
from evals.diffusion import Painter, Sampling, noise, predict
from tests import toy
from train.config import Lora
from train.loop import train
from train.start import hand_over, new_accelerator, prepare

TEXTS = ["a red circle", "nurse"]


def with_ddim(pipeline: Any) -> Any:
    """The pipeline with the sampler that is trained, at the noise levels of its own."""
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_diffusers(pipeline: Any, guidance: float = 3.0) -> torch.Tensor:
    latents = torch.stack([noise(0, text, 1, (4, 4, 4), 0)[0] for text in TEXTS])
    images: torch.Tensor = with_ddim(pipeline)(
        TEXTS, num_inference_steps=5, guidance_scale=guidance, eta=0.0, latents=latents, output_type="pt"
    ).images
    return images


def drawn(pipeline: Any, guidance: float | None = 3.0, micro_batch: int = 2) -> torch.Tensor:
    sampling = Sampling(steps=5, eta=0.0, guidance=guidance, micro_batch=micro_batch)
    return Painter.of(pipeline, sampling).paint(TEXTS, [1, 1], seed=0)


@pytest.mark.parametrize("zeros", [True, False])
def test_prompts_are_encoded_as_by_diffusers(zeros: bool) -> None:
    pipeline = toy.build_tiny_xl()
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    encoder = Painter.of(pipeline, Sampling(steps=1)).encoder
    text, no_text, pooled, no_pooled = pipeline.encode_prompt(TEXTS, device="cpu")
    ours, empty = encoder(TEXTS), encoder.unconditional()
    torch.testing.assert_close(ours.text_BLD, text)
    torch.testing.assert_close(ours.pooled_BD, pooled)
    torch.testing.assert_close(empty.text_BLD, no_text[:1])
    torch.testing.assert_close(empty.pooled_BD, no_pooled[:1])
    assert ours.size_BK is not None
    assert ours.size_BK.tolist() == [[8, 8, 0, 0, 8, 8]] * 2
    assert bool(empty.text_BLD.abs().sum() == 0) == zeros


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_drawing_is_that_of_the_diffusers_pipeline(guidance: float) -> None:
    theirs = drawn_by_diffusers(toy.build_tiny_xl(), guidance)
    ours = drawn(toy.build_tiny_xl(), guidance)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours[0] - ours[1]).abs().max() > 0.01


def test_every_condition_reaches_the_denoiser() -> None:
    pipeline = toy.build_tiny_xl()
    painter = Painter.of(pipeline, Sampling(steps=1, guidance=None, micro_batch=2))
    told = painter.encoder(TEXTS)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    as_it_is = predict(pipeline.unet, x, 500, told, None, None)
    assert told.pooled_BD is not None
    assert told.size_BK is not None
    for changed in (
        told._replace(text_BLD=told.text_BLD.flip(0)),
        told._replace(pooled_BD=told.pooled_BD.flip(0)),
        told._replace(size_BK=told.size_BK + 100),
    ):
        assert (predict(pipeline.unet, x, 500, changed, None, None) - as_it_is).abs().max() > 1e-4


def test_an_image_is_the_same_in_any_batch() -> None:
    pipeline = toy.build_tiny_xl()
    sampling = Sampling(steps=3, eta=1.0, guidance=3.0, micro_batch=2)
    painter = Painter.of(pipeline, sampling)
    together = painter.paint([*TEXTS, "star"], [0, 1, 2], seed=5)
    assert torch.equal(painter.paint(["star"], [2], seed=5), together[2:])


@pytest.mark.usefixtures("toy_scorers")
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_trains_resumes_and_is_opened_by_diffusers_alone(
    lora: Lora | None, tiny_xl_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    experiment = toy.toy_experiment(tiny_xl_dir, toy_prompts, iterations=2, lora=lora)
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    train(run)
    again = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    assert again.progress.iteration == 2
    for name, weight in run.policy.weights.items():
        assert torch.equal(again.policy.weights[name], weight)
    hand_over(run, "toy-toy-0")
    assert run.progress.gates["identity"]["holds"]
    checkpoint = resolve(str(tmp_path / "run"))
    ours = drawn(checkpoint.pipeline())
    if lora is None:
        theirs = StableDiffusionXLPipeline.from_pretrained(tmp_path / "run", add_watermarker=False)
    else:
        theirs = StableDiffusionXLPipeline.from_pretrained(tiny_xl_dir, add_watermarker=False)
        theirs.load_lora_weights(tmp_path / "run")
    torch.testing.assert_close(ours, drawn_by_diffusers(theirs), rtol=0, atol=1e-4)
    assert (ours - drawn(load_pipeline(str(tiny_xl_dir)))).abs().max() > 1e-4, "training has moved it"


def test_a_pipeline_of_another_family_is_refused(tiny_xl_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_xl_dir, base)
    index = base / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "FluxPipeline"))
    with pytest.raises(
        ValueError, match="it is a FluxPipeline, and only StableDiffusionPipeline and StableDiff"
    ):
        load_pipeline(str(base))


def test_weights_of_another_second_text_encoder_are_refused(tiny_xl_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_xl_dir, base)
    shutil.copy(
        base / "vae" / "diffusion_pytorch_model.safetensors", base / "text_encoder_2" / "model.safetensors"
    )
    with pytest.raises(ValueError, match="the weights in text_encoder_2 are those of another model"):
        load_pipeline(str(base))
