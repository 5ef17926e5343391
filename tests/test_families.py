"""Stable Diffusion 1, 2 and XL as published: noise levels against diffusers, and checkpoints in one file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import open_clip
import pytest
import torch
from accelerate.utils import save as pickled  # the form in which others publish some
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from evals import families
from evals.architectures import ARCHITECTURES
from evals.checkpoints import ALIGNMENT, freeze, load_pipeline, resolve
from evals.diffusion import Painter, Sampling, Schedule, log_prob, transition
from evals.families import FAMILIES, SD1, SD2, SDXL
from tests import toy
from tests.original_layout import build, models, original_tensors, save_original, tiny
from train.config import Lora
from train.loop import train
from train.start import hand_over, new_accelerator, prepare

# scheduler/scheduler_config.json of the repositories on the hub
_LATENT = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "stable-diffusion-v1-5": (PNDMScheduler, _LATENT),
    "stable-diffusion-2-base": (PNDMScheduler, {**_LATENT, "prediction_type": "epsilon"}),
    "stable-diffusion-2-1": (DDIMScheduler, {**_LATENT, "prediction_type": "v_prediction"}),
    "stable-diffusion-xl-base-1.0": (
        EulerDiscreteScheduler,
        {
            **_LATENT,
            "prediction_type": "epsilon",
            "interpolation_type": "linear",
            "sample_max_value": 1.0,
            "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        },
    ),
    # of no repository of the families' own: what those that end without signal have beside them
    "zero-snr": (
        DDIMScheduler,
        {
            **_LATENT,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_step_is_that_of_ddim_from_the_published_config(name: str, eta: float, steps: int) -> None:
    kind, config = PUBLISHED[name]
    schedule = Schedule.of(kind.from_config(config), steps)
    ddim = DDIMScheduler.from_config(config)
    ddim.set_timesteps(steps)
    ddim.alphas_cumprod = ddim.alphas_cumprod.double()  # the root of a rounding error below 0 is no number
    assert schedule.timesteps == tuple(ddim.timesteps.tolist())
    for step, timestep in enumerate(schedule.timesteps):
        x, output, z = (randn(2, 4, 4, 4, seed=3 * step + k) for k in range(3))
        mean, sigma = transition(schedule, x, output, step, eta)
        assert mean.isfinite().all()
        theirs = ddim.step(output, timestep, x, eta=eta, variance_noise=z).prev_sample
        if theirs.isnan().any():  # in double as well
            assert (name, step) == ("zero-snr", 0)
            continue
        torch.testing.assert_close(mean + sigma * z, theirs, rtol=1e-5, atol=2e-5)
        if eta:
            assert log_prob(mean + sigma * z, mean, sigma).isfinite().all()


def test_the_first_step_from_no_signal_is_the_limit_of_those_from_little() -> None:
    """Where diffusers has no number: alpha is 0, so the picture is -v, and all that is left of x is noise."""
    schedule = Schedule.of(DDIMScheduler.from_config(PUBLISHED["zero-snr"][1]), 20)
    assert schedule.alpha[0] == 0.0
    x, v = randn(2, 4, 4, 4), randn(2, 4, 4, 4, seed=1)
    mean, sigma = transition(schedule, x, v, 0, eta=1.0)
    # DDPM's posterior at alpha 0 forgets x: mean is sqrt(alpha_prev) x_0, variance 1 - alpha_prev
    torch.testing.assert_close(mean, -(schedule.alpha_prev[0] ** 0.5) * v, rtol=1e-4, atol=1e-4)
    assert sigma**2 == pytest.approx(1 - schedule.alpha_prev[0], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "prediction", "zero_snr"),
    [
        ("stable-diffusion-v1-5", "epsilon", False),
        ("stable-diffusion-2-base", "epsilon", False),
        ("stable-diffusion-2-1", "v_prediction", False),
        ("stable-diffusion-xl-base-1.0", "epsilon", False),
        ("zero-snr", "v_prediction", True),
    ],
)
def test_a_single_file_is_drawn_as_its_repository(name: str, prediction: str, zero_snr: bool) -> None:
    kind, config = PUBLISHED[name]
    family = {"stable-diffusion-v1-5": SD1, "stable-diffusion-xl-base-1.0": SDXL}.get(name, SD2)
    ours = DDIMScheduler(**families.noise_levels(family.architectures[prediction], prediction, zero_snr))
    assert Schedule.of(ours, 50) == Schedule.of(kind.from_config(config), 50)


# -------------------------------------------------------------------------------------------------------- what is published


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("sd15", {"unet": 859.520964, "vae": 83.653863, "text_encoder": 123.060480}),
        ("sd2", {"unet": 865.910724, "vae": 83.653863, "text_encoder": 340.387840}),
        ("sd2v", {"unet": 865.910724, "vae": 83.653863, "text_encoder": 340.387840}),
        (
            "sdxl",
            {
                "unet": 2567.463684,
                "vae": 83.653863,
                "text_encoder": 123.060480,
                "text_encoder_2": 694.659840,
            },
        ),
    ],
)
def test_models_have_the_published_number_of_weights(name: str, millions: dict[str, float]) -> None:
    assert ARCHITECTURES[name].weights() == {part: round(count * 1e6) for part, count in millions.items()}
    assert ARCHITECTURES[name].pixels == 8 * ARCHITECTURES[name].unet["sample_size"]


@pytest.mark.parametrize(
    ("architecture", "number", "name", "left_out"),
    [
        ("sd15", 0, "ViT-L-14", 0),
        ("sd2", 0, "ViT-H-14", 1),
        ("sdxl", 0, "ViT-L-14", 0),
        ("sdxl", 1, "ViT-bigG-14", 0),
    ],
)
def test_text_encoders_are_those_of_clip(architecture: str, number: int, name: str, left_out: int) -> None:
    theirs = open_clip.get_model_config(name)["text_cfg"]
    ours = families._TEXT | ARCHITECTURES[architecture].text_encoders[number]
    assert (ours["hidden_size"], ours["num_attention_heads"]) == (theirs["width"], theirs["heads"])
    assert ours["num_hidden_layers"] + left_out == theirs["layers"]
    assert ours["vocab_size"] == theirs["vocab_size"] == families.WORDS
    assert ours["max_position_embeddings"] == theirs["context_length"]
    assert (ours["hidden_act"] == "quick_gelu") == (name == "ViT-L-14")  # OpenAI's, the others are LAION's


def test_the_tokenizer_is_clips() -> None:
    texts = ["A red Circle left of a blue star, 3 cats' hats", "café 日本", "", "word " * 100]
    theirs = open_clip.SimpleTokenizer()(texts)
    zeros, ends = (
        families.clip_tokenizer(filling)(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        for filling in ("!", "<|endoftext|>")
    )
    assert torch.equal(zeros, theirs)
    for text, row in zip(ends, theirs, strict=True):  # the same up to the end, and then the end again
        length = int(row.argmax()) + 1
        assert torch.equal(text[:length], row[:length])
        assert text[length:].eq(49407).all()


# ------------------------------------------------------------------------------------------------------------- single files


@pytest.fixture(autouse=True)
def tiny_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", tuple(map(tiny, FAMILIES)))


SAID = {"sd1": {}, "sd2": {"modelspec.prediction_type": "epsilon"}, "sdxl": {}}
BY_NAME = {"sd1": tiny(SD1), "sd2": tiny(SD2), "sdxl": tiny(SDXL)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint in one file of each family; read-only."""
    folder = tmp_path_factory.mktemp("files")
    return {
        name: save_original(build(family), folder / f"{name}.safetensors", SAID[name])
        for name, family in BY_NAME.items()
    }


def frozen(pipeline: Any) -> Any:
    freeze(pipeline)
    return pipeline


def assert_frozen(pipeline: Any) -> None:
    weights = [weight for model in models(pipeline).values() for weight in model.parameters()]
    assert not any(weight.requires_grad for weight in weights)
    assert {weight.data_ptr() % ALIGNMENT for weight in weights} == {0}


def drawn(pipeline: Any) -> torch.Tensor:
    sampling = Sampling(steps=3, eta=1.0, guidance=3.0, micro_batch=2)
    return Painter.of(pipeline, sampling).paint(["a red circle", "nurse"], [0, 1], seed=0)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_single_file_is_the_pipeline_it_was_made_of(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = frozen(build(BY_NAME[name]))
    opened = load_pipeline(str(files[name]))
    assert models(opened).keys() == models(whole).keys()
    assert_frozen(opened)
    for part, model in models(whole).items():
        before, after = model.state_dict(), models(opened)[part].state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items()), part
    picture = drawn(opened)
    assert torch.equal(picture, drawn(whole))
    opened.save_pretrained(tmp_path / "run")  # as a run hands it over
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    again = kind.from_pretrained(tmp_path / "run")
    assert torch.equal(drawn(frozen(again)), picture)


def test_a_single_file_is_scored_by_itself_and_is_a_lora_only_where_it_is_one(
    files: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = resolve(str(files["sd1"]))
    assert (checkpoint.experiment, checkpoint.model, checkpoint.base) == ("sd1", "external", None)
    assert torch.equal(drawn(checkpoint.pipeline()), drawn(frozen(build(BY_NAME["sd1"]))))
    other = tmp_path / "other.safetensors"
    save_file({"unet.mid_block.attentions.0.lora_A.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(ValueError, match="is a LoRA, and nothing says of which base"):
        resolve(str(other)).pipeline()
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="is neither a LoRA nor a Stable Diffusion with denoiser"):
        resolve(str(other)).pipeline()


@pytest.mark.usefixtures("toy_scorers")
def test_a_run_starts_from_a_single_file(files: dict[str, Path], toy_prompts: Path, tmp_path: Path) -> None:
    experiment = toy.toy_experiment(
        files["sd1"], toy_prompts, iterations=1, sampling=Sampling(steps=2, guidance=None, micro_batch=4)
    )
    experiment = replace(experiment, tasks=experiment.tasks[:1], lora=Lora(rank=2))
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    train(run)
    hand_over(run, "toy-toy-0")
    tuned = resolve(str(tmp_path / "run"))
    assert (tuned.base, tuned.revision) == (str(files["sd1"]), None)
    assert tuned.its_base().digest() == resolve(str(files["sd1"])).digest() != tuned.digest()
    assert_frozen(tuned.pipeline())  # with its adapters
    base, after = drawn(tuned.its_base().pipeline()), drawn(tuned.pipeline())
    assert torch.equal(base, drawn(frozen(build(BY_NAME["sd1"]))))
    assert (after - base).abs().max() > 1e-5


def test_a_single_file_and_what_stands_beside_it_decide_the_pictures(
    files: dict[str, Path], tmp_path: Path
) -> None:
    (path := tmp_path / "a.safetensors").symlink_to(files["sd1"])
    before = resolve(str(path)).digest()
    assert before == resolve(str(files["sd1"])).digest()
    assert before != resolve(str(files["sd2"])).digest()
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert resolve(str(path)).digest() != before


@pytest.mark.parametrize(
    ("name", "metadata", "tensors", "yaml", "prediction", "zero_snr"),
    [
        ("sd1", {}, (), None, "epsilon", False),
        ("sd1", {}, (), 'model:\n  params:\n    parameterization: "v"\n', "v_prediction", False),
        ("sd2", {}, (), "model:\n  params:\n    linear_start: 0.00085\n", "epsilon", False),
        (
            "sd2",
            {},
            (),
            "model:\n  params:\n    # parameterization: eps\n    parameterization: v\n",
            "v_prediction",
            False,
        ),
        ("sd2", {"modelspec.prediction_type": "v"}, (), None, "v_prediction", False),
        ("sdxl", {}, ("v_pred", "ztsnr"), None, "v_prediction", True),
        ("sdxl", {}, ("v_pred",), "model:\n  params:\n    parameterization: eps\n", "epsilon", False),
    ],
)
def test_what_is_predicted_is_told_by_the_file_or_beside_it(
    name: str,
    metadata: dict[str, str],
    tensors: tuple[str, ...],
    yaml: str | None,
    prediction: str,
    zero_snr: bool,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(load_file(files[name]) | {extra: torch.zeros(1) for extra in tensors}, path, metadata)
    if yaml is not None:
        path.with_suffix(".yaml").write_text(yaml)
    scheduler = load_pipeline(str(path)).scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == (prediction, zero_snr)


def test_the_stable_diffusion_2_that_predicts_v_draws_768_pixels(tmp_path: Path) -> None:
    for prediction, side in (("epsilon", 512), ("v_prediction", 768)):
        (folder := tmp_path / prediction).mkdir()
        families.write_configs(SD2, SD2.architectures[prediction], folder)
        assert UNet2DConditionModel.load_config(folder / "unet")["sample_size"] * 8 == side


def test_averaged_weights_go_before_live_ones(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["sd1"])
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith(families.UNET)}
    averaged = {
        "model_ema." + "".join(name.split(".")[1:]): tensor + 1 for name, tensor in unet.items()
    }  # as LitEma names them
    save_file(tensors | averaged, tmp_path / "both.safetensors")
    opened = load_pipeline(str(tmp_path / "both.safetensors")).unet.state_dict()
    whole = build(BY_NAME["sd1"]).unet.state_dict()
    assert all(torch.equal(opened[name], tensor + 1) for name, tensor in whole.items())


def test_the_last_layer_but_one_of_open_clip_is_what_stable_diffusion_2_reads(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """Against open_clip's own text tower, as Stability AI's FrozenOpenCLIPEmbedder calls it: `layer="penultimate"`."""
    from open_clip.transformer import TextTransformer

    torch.manual_seed(1)
    tower = TextTransformer(width=8, heads=2, layers=3, mlp_ratio=2.0, output_dim=8).eval()
    text = {f"cond_stage_model.model.{name}": tensor for name, tensor in tower.state_dict().items()}
    rest = {n: t for n, t in load_file(files["sd2"]).items() if not n.startswith("cond_stage_model.")}
    path = tmp_path / "model.safetensors"
    save_file(rest | {name: tensor.clone() for name, tensor in text.items()}, path, SAID["sd2"])
    ours = Painter.of(load_pipeline(str(path)), Sampling()).encoder(["a red circle"]).text_BLD
    with torch.no_grad():
        x = tower.token_embedding(open_clip.SimpleTokenizer()(["a red circle"])) + tower.positional_embedding
        for block in tower.transformer.resblocks[:-1]:
            x = block(x, attn_mask=tower.attn_mask)
        torch.testing.assert_close(ours, tower.ln_final(x), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- refused


def changed(tensors: dict[str, torch.Tensor], damage: str) -> dict[str, torch.Tensor]:
    """A Stable Diffusion 1 that is none any more."""
    first = f"{families.UNET}input_blocks.0.0.weight"
    without = {
        "denoiser": f"{families.UNET}out.2.bias",
        "autoencoder": "first_stage_model.quant_conv.bias",
        "text": "cond_stage_model.transformer.text_model.encoder.layers.1.layer_norm1.bias",
    }
    if damage in without:
        return {name: tensor for name, tensor in tensors.items() if name != without[damage]}
    if damage == "no text encoder":
        return {name: tensor for name, tensor in tensors.items() if name.startswith(families.UNET)}
    if damage == "inpainting":
        return tensors | {first: torch.zeros(8, 9, 3, 3)}
    if damage == "other shape":
        return tensors | {f"{families.UNET}time_embed.0.weight": torch.zeros(3, 3)}
    if damage == "unclip":
        return tensors | {f"{families.UNET}label_emb.0.0.weight": torch.zeros(3, 3)}
    if damage == "refiner":
        return {"conditioner.embedders.0.model.text_projection": torch.zeros(3, 3), first: tensors[first]}
    if damage == "edm":
        return tensors | {"edm_mean": torch.zeros(4)}
    if damage == "sd3":
        return {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(2)}
    if damage == "flux":
        return {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(2)}
    assert damage == "lora"
    return {"lora_unet_mid_block.lora_up.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("denoiser", "for a Stable Diffusion 1 it lacks tensors"),
        ("autoencoder", "for a Stable Diffusion 1 it lacks tensors"),
        (
            "text",
            "for a Stable Diffusion 1 it lacks 1 tensors of the text_encoder, such as encoder.layers.1.",
        ),
        (
            "no text encoder",
            "it is no Stable Diffusion 1, Stable Diffusion 2, Stable Diffusion XL with denoiser",
        ),
        ("inpainting", "its denoiser takes 9 channels, as for inpainting or editing"),
        ("other shape", "time_embedding.linear_1.weight"),
        ("unclip", "its denoiser has 1 tensors more than a Stable Diffusion 1 has"),
        ("refiner", "it is the refiner of Stable Diffusion XL"),
        ("edm", "its noise levels are those of EDM"),
        ("sd3", "it has tensors such as model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
        ("flux", "it has tensors such as double_blocks"),
        ("lora", "it has tensors such as lora_unet"),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(
    damage: str, told: str, files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(changed(load_file(files["sd1"]), damage), path)
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        load_pipeline(str(path))
    assert str(refused.value).startswith(f"base: {path} cannot be opened as a Stable Diffusion pipeline: ")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_a_stable_diffusion_2_that_is_not_said_to_predict_something_is_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(load_file(files["sd2"]), path)
    with pytest.raises(ValueError, match=r"nothing says which this is: .* as model\.yaml, with the line"):
        load_pipeline(str(path))
    path.with_suffix(".yaml").write_text("vae: none\n")
    with pytest.raises(ValueError, match=r"model\.yaml is no config of a model in the original layout"):
        load_pipeline(str(path))
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: x0\n")
    with pytest.raises(ValueError, match="it is said to predict 'x0', which is neither epsilon nor v"):
        load_pipeline(str(path))


def test_a_file_that_was_cut_off_is_one_sentence(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = files["sd1"].read_bytes()
    for size in (len(whole) - 1, 1000, 3, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is damaged, not downloaded to its end, or no safetensors file"):
            load_pipeline(str(path))
        with pytest.raises(ValueError, match="is damaged, not downloaded to its end, or no safetensors file"):
            resolve(str(path)).digest()


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_a_single_file_may_be_a_pickle_of_tensors(
    name: str, suffix: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the families were first published: what was trained beside numbers of the training, and the config beside it where it must be told."""
    path = tmp_path / f"model{suffix}"
    pickled({"state_dict": load_file(files[name]), "global_step": 3}, path, safe_serialization=False)
    if name == "sd2":
        with pytest.raises(ValueError, match=r"nothing says which this is: .* as model\.yaml"):
            load_pipeline(str(path))
        path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: eps\n")
    capsys.readouterr()
    checkpoint = resolve(str(path))
    opened, plain = checkpoint.pipeline(), load_pipeline(str(files[name]))
    assert (
        capsys.readouterr().err == f"note: {path} is a pickle, opened as weights only, which runs no code\n"
    )
    assert_frozen(opened)
    assert torch.equal(drawn(opened), drawn(plain))
    digest = checkpoint.digest()
    pickled({"state_dict": load_file(files[name]), "global_step": 4}, path, safe_serialization=False)
    assert checkpoint.digest() != digest


def test_a_single_file_that_is_more_than_tensors_or_half_there_is_one_sentence(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    more = {"state_dict": load_file(files["sd1"]), "callbacks": {PurePosixPath("a"): 1}}
    pickled(more, path, safe_serialization=False)
    whole, told = path.read_bytes(), f"{path} is a pickle that holds more than tensors, .* in a sandbox"
    half = f"{path} is .*damaged"
    for content, said in ((whole, told), (files["sd1"].read_bytes(), half), (whole[:-1], half), (b"", half)):
        path.write_bytes(content)
        for opens in (load_pipeline, lambda file: resolve(file).digest()):
            with pytest.raises(ValueError, match=said) as refused:
                opens(str(path))
            assert "\n" not in str(refused.value)


def test_the_layout_covers_every_tensor_of_the_models() -> None:
    """Of the helper that the others rest on: no tensor is lost or named twice."""
    for family in BY_NAME.values():
        pipeline = build(family)
        fused = sum(3 * name.count(".attn.in_proj_") for name in original_tensors(pipeline)) * 2 // 3
        count = sum(len(model.state_dict()) for model in models(pipeline).values())
        unet = sum(name.startswith(families.UNET) for name in original_tensors(pipeline))
        assert unet == (1680 if family.name.endswith("XL") else 686)  # as in the published files
        assert len(original_tensors(pipeline)) + fused == count
