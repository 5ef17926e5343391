"""Folders and hub ids: weights in several files, in float16 only, in pickles or half there, and what a run card says of its base."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import pytest
import torch
from accelerate.utils import save as pickled  # the form in which others publish some
from diffusers import EDMDPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

from evals import checkpoints, families
from evals.checkpoints import declared, load_pipeline, resolve, weight_files, with_base, with_lora
from tests import toy
from tests.original_layout import save_original
from train.plan import plan

MODELS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PICKLED = MODELS | {"text_encoder": "pytorch_model"}


@pytest.fixture
def folder(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    """A pipeline in diffusers layout that may be changed."""
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))


def in_float16(folder: Path, part: str, keep: bool = False) -> None:
    """Write a model's weights as the variant fp16, beside the main file or instead of it."""
    main = folder / part / f"{MODELS[part]}.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(main).items()}
    save_file(halves, main.with_name(f"{MODELS[part]}.fp16.safetensors"))
    if not keep:
        main.unlink()


def in_a_pickle(folder: Path, part: str, more: dict[str, Any] | None = None) -> Path:
    """Write a model's weights as the libraries' older versions did, in place of the safetensors."""
    main = folder / part / f"{MODELS[part]}.safetensors"
    file = main.with_name(f"{PICKLED[part]}.bin")
    pickled(load_file(main) | (more or {}), file, safe_serialization=False)
    main.unlink()
    return file


def in_shards(folder: Path) -> None:
    """Write every model's weights in several files with an index, as the libraries do."""
    pipeline = load_pipeline(str(folder))
    for part, stem in MODELS.items():
        (folder / part / f"{stem}.safetensors").unlink()
        getattr(pipeline, part).save_pretrained(folder / part, max_shard_size="4KB")
        assert len(list((folder / part).glob(f"{stem}-?????-of-?????.safetensors"))) > 1


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in MODELS
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[name], one[name]) for name in one)


# ----------------------------------------------------------------------------------------------------------------- folders


def test_weights_in_several_files_are_opened(folder: Path) -> None:
    before, digest = weights(load_pipeline(str(folder))), resolve(str(folder)).digest()
    in_shards(folder)
    assert same(weights(load_pipeline(str(folder))), before)
    assert resolve(str(folder)).digest() != digest


def test_one_of_several_files_that_is_missing_is_named(folder: Path) -> None:
    in_shards(folder)
    missing = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(ValueError, match=f"{missing.name} of unet is missing, or was not downloaded"):
        load_pipeline(str(folder))


def test_float16_is_opened_where_there_is_nothing_else_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(load_pipeline(str(folder)))
    in_float16(folder, "vae", keep=True)
    assert same(weights(load_pipeline(str(folder))), before)
    assert capsys.readouterr().err == ""
    for part in ("unet", "text_encoder"):
        in_float16(folder, part)
    after = weights(load_pipeline(str(folder)))
    assert (
        capsys.readouterr().err == f"note: {folder} has the weights of unet, text_encoder in float16 only\n"
    )
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    rounded = {n: t if n.startswith("vae") else t.half().float() for n, t in before.items()}
    assert same(after, rounded)
    monkeypatch.setenv("RANK", "1")
    load_pipeline(str(folder))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("part", MODELS)
def test_a_pickle_of_tensors_is_opened_and_named(
    folder: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(load_pipeline(str(folder)))
    file = in_a_pickle(folder, part)
    assert same(weights(load_pipeline(str(folder))), before)
    assert (
        capsys.readouterr().err == f"note: {file} is a pickle, opened as weights only, which runs no code\n"
    )
    digest = resolve(str(folder)).digest()
    file.write_bytes(file.read_bytes() + b" ")
    assert resolve(str(folder)).digest() != digest
    file.unlink()
    with pytest.raises(ValueError, match=rf"{part} has no {MODELS[part]}\.safetensors, and no {file.name}"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("part", MODELS)
def test_a_pickle_that_holds_more_than_tensors_is_refused(folder: Path, part: str) -> None:
    """Harmless here: whoever wants to open it can convert it where nothing is lost."""
    file = in_a_pickle(folder, part, {"made": PurePosixPath("of")})
    told = (
        rf"{file} is a pickle that holds more than tensors, or is damaged, and is not opened: .* "
        "convert it to safetensors elsewhere, in a sandbox$"
    )
    with pytest.raises(ValueError, match=told) as refused:
        load_pipeline(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", MODELS)
def test_a_pickle_that_is_half_there_is_named(folder: Path, part: str) -> None:
    file = in_a_pickle(folder, part)
    whole = file.read_bytes()
    for kept in (0, 20, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=f"{file} is .*damaged") as refused:
            load_pipeline(str(folder))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", MODELS)
def test_of_both_forms_the_safetensors_are_opened(
    folder: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(load_pipeline(str(folder)))
    main = folder / part / f"{MODELS[part]}.safetensors"
    main.with_name(f"{PICKLED[part]}.bin").write_bytes(b"not looked at")
    assert same(weights(load_pipeline(str(folder))), before)
    assert capsys.readouterr().err == ""
    in_float16(folder, part)
    rounded = {n: t.half().float() if n.startswith(f"{part}.") else t for n, t in before.items()}
    assert same(weights(load_pipeline(str(folder))), rounded)
    main.write_bytes(b"half there")
    with pytest.raises(ValueError, match=f"{main} is damaged, not downloaded to its end"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("part", MODELS)
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_pickle_in_several_files_is_opened(
    folder: Path, part: str, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(load_pipeline(str(folder)))
    main = folder / part / f"{MODELS[part]}.safetensors"
    tensors = {n: t.half() if variant else t for n, t in load_file(main).items()}
    main.unlink()
    files = [f"{PICKLED[part]}-0000{number}-of-00002{variant}.bin" for number in (1, 2)]
    place = {name: files[number % 2] for number, name in enumerate(tensors)}
    for file in files:
        held = {name: tensor for name, tensor in tensors.items() if place[name] == file}
        pickled(held, main.with_name(file), safe_serialization=False)
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    main.with_name(f"{PICKLED[part]}.bin.index{variant}.json").write_text(json.dumps(index))
    of_part = {n: t.half().float() if variant and n.startswith(f"{part}.") else t for n, t in before.items()}
    assert same(weights(load_pipeline(str(folder))), of_part)
    told = capsys.readouterr().err
    assert f"{folder}/{part}/{files[0]}, {folder}/{part}/{files[1]} are pickles, opened as weights" in told
    assert (f"has the weights of {part} in float16 only" in told) == bool(variant)
    main.with_name(files[1]).unlink()
    with pytest.raises(ValueError, match=f"{files[1]} of {part} is missing, or was not downloaded"):
        load_pipeline(str(folder))


def test_a_lora_that_is_a_pickle_is_put_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
    place = tmp_path / "mine"
    place.mkdir()
    save_file(lora, place / "a.safetensors")
    pickled(lora, place / "pytorch_lora_weights.bin", safe_serialization=False)
    plain = with_lora(load_pipeline(str(folder)), place / "a.safetensors").unet.state_dict()
    assert capsys.readouterr().err == ""
    file = place / "pytorch_lora_weights.bin"
    found = with_base(resolve(str(file)), str(folder))
    assert found.experiment == "mine"
    opened = found.pipeline().unet.state_dict()
    assert (
        capsys.readouterr().err == f"note: {file} is a pickle, opened as weights only, which runs no code\n"
    )
    assert any("lora" in name for name in opened)
    assert same(opened, plain)
    pickled(lora | {"made": PurePosixPath("of")}, file, safe_serialization=False)
    with pytest.raises(ValueError, match=f"{file} is a pickle that holds more than tensors"):
        found.pipeline()


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_used_in_another_way_is_refused(folder: Path) -> None:
    rewrite(folder / "vae" / "config.json", latents_mean=[0.1, 0.2, 0.3, 0.4])
    with pytest.raises(
        ValueError, match="its autoencoder has latents_mean, and only latents that are scaled"
    ):
        load_pipeline(str(folder))
    rewrite(folder / "vae" / "config.json", latents_mean=None)
    load_pipeline(str(folder))
    EDMDPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    rewrite(folder / "model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])
    with pytest.raises(ValueError, match="its scheduler, EDMDPMSolverMultistepScheduler, has no beta_start"):
        load_pipeline(str(folder))


def test_a_denoiser_for_inpainting_is_refused(folder: Path) -> None:
    main = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(main)
    save_file(tensors | {"conv_in.weight": torch.zeros(8, 9, 3, 3)}, main)
    rewrite(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(ValueError, match="its denoiser takes 9 channels, as for inpainting or editing"):
        load_pipeline(str(folder))


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("sd", {"cross_attention_dim": 16}, "reads text of width 16 (cross_attention_dim), and its text encoders give 8"),
        ("sd", {"addition_embed_type": "text_time"}, "is not that of a StableDiffusionPipeline: addition_embed_type is text_time, not None"),
        ("sd", {"class_embed_type": "projection"}, "is told a class beside the text, as for variations or upscaling"),
        ("sd", {"num_class_embeds": 1000}, "is told a class beside the text, as for variations or upscaling"),
        ("xl", {"cross_attention_dim": 8}, "reads text of width 8 (cross_attention_dim), and its text encoders give 16"),
        ("xl", {"addition_embed_type": None}, "is not that of a StableDiffusionXLPipeline: addition_embed_type is None, not text_time"),
        ("xl", {"projection_class_embeddings_input_dim": 48}, "is told 48 numbers of text and size (projection_class_embeddings_input_dim), and there are 56"),
    ],
)  # fmt: skip
def test_a_denoiser_of_another_architecture_is_refused_before_anything_is_loaded(
    kind: str, changes: dict[str, Any], told: str, folder: Path, tiny_xl_dir: Path, tmp_path: Path
) -> None:
    if kind == "xl":
        folder = shutil.copytree(tiny_xl_dir, tmp_path / "xl")
    rewrite(folder / "unet" / "config.json", **changes)
    for path in folder.glob("*/*.safetensors"):
        path.write_bytes(b"not looked at")
    with pytest.raises(ValueError, match=re.escape(f": its denoiser {told}")):
        load_pipeline(str(folder))


def test_an_xl_denoiser_in_a_stable_diffusion_is_refused(folder: Path, tiny_xl_dir: Path) -> None:
    shutil.rmtree(folder / "unet")
    shutil.copytree(tiny_xl_dir / "unet", folder / "unet")
    with pytest.raises(ValueError, match="its denoiser is not that of a StableDiffusionPipeline"):
        load_pipeline(str(folder))


def test_the_config_of_a_model_that_is_missing_or_half_there_is_named(folder: Path) -> None:
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text()[:100])
    with pytest.raises(ValueError, match=f"{config} is damaged, or not downloaded to its end"):
        load_pipeline(str(folder))
    config.unlink()
    with pytest.raises(ValueError, match=f"{config.parent} has no config.json"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("part", MODELS)
@pytest.mark.parametrize("kept", [0, 20, 4000])
def test_weights_that_are_half_there_are_named(folder: Path, part: str, kept: int) -> None:
    path = folder / part / f"{MODELS[part]}.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path} is damaged, not downloaded to its end"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json"])
def test_settings_that_are_half_there_are_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=str(path)):
        load_pipeline(str(folder))


def test_a_tokenizer_without_its_settings_is_refused(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer has no tokenizer_config\.json"):
        load_pipeline(str(folder))


def test_why_a_lora_is_not_of_this_base_is_told(folder: Path, tmp_path: Path) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"{layer}.lora_A.weight": torch.zeros(2, 99), f"{layer}.lora_B.weight": torch.zeros(99, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(
        ValueError, match=r"is no LoRA of .*: size mismatch for mid_block\..*to_q\.lora_A"
    ) as refused:
        with_lora(load_pipeline(str(folder)), tmp_path / "lora.safetensors")
    assert "\n" not in str(refused.value)


def in_two_files(folder: Path, name: str = "tokenizer") -> Path:
    """Write a tokenizer as the hub has CLIP's, with a merge, so that there is one to lose."""
    whole = folder / name / "tokenizer.json"
    vocab = json.loads(whole.read_text())["model"]["vocab"] | {"re": 58, "red</w>": 59}
    whole.unlink()
    whole.with_name("vocab.json").write_text(json.dumps(vocab))
    whole.with_name("merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return folder / name


def test_a_tokenizer_is_opened_from_one_file_or_from_two(folder: Path) -> None:
    assert load_pipeline(str(folder)).tokenizer("red").input_ids == [0, 19, 6, 33, 1]
    in_two_files(folder)
    assert load_pipeline(str(folder)).tokenizer("red").input_ids == [0, 59, 1]


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (["tokenizer.json"], "tokenizer has neither tokenizer.json nor vocab.json and merges.txt"),
        (["vocab.json"], "tokenizer has neither tokenizer.json nor vocab.json"),
        (["merges.txt"], "tokenizer has neither tokenizer.json nor merges.txt"),
        ([""], "tokenizer has neither tokenizer.json nor vocab.json and merges.txt"),
    ],
    ids=["in one", "vocab", "merges", "folder"],
)
def test_a_tokenizer_without_its_vocabulary_is_refused(folder: Path, gone: list[str], told: str) -> None:
    """Where transformers makes one up, of two words, to which every prompt is the same."""
    if "tokenizer.json" not in gone:
        in_two_files(folder)
    for name in gone:
        path = folder / "tokenizer" / name
        path.unlink() if name else shutil.rmtree(path)
    with pytest.raises(ValueError, match=f"{folder}/{told}$"):
        load_pipeline(str(folder))


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    known = families.clip_tokenizer("!")
    known.model_max_length = toy.TOKENS
    known.save_pretrained(folder / "tokenizer")
    told = (
        rf"the tokenizer of {folder} is damaged or of another model: it has 49408 words, the text encoder 64"
    )
    with pytest.raises(ValueError, match=told):
        load_pipeline(str(folder))
    tokenizer = in_two_files(folder)
    (tokenizer / "vocab.json").write_text(
        '{"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2}'
    )  # and "!", to fill up with
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="it has 4 words, the text encoder 64"):
        load_pipeline(str(folder))
    rewrite(folder / "model_index.json", tokenizer=["transformers", "CLIPTextModel"])
    with pytest.raises(ValueError, match="its tokenizer is a CLIPTextModel, which is no tokenizer of tr"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.8])
def test_a_file_of_a_tokenizer_that_is_half_there_is_named(folder: Path, name: str, kept: float) -> None:
    if name in ("vocab.json", "merges.txt"):
        in_two_files(folder)
    path = folder / "tokenizer" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=f"{path} is damaged, or not downloaded to its end") as refused:
        load_pipeline(str(folder))
    assert "\n" not in str(refused.value)


def test_merges_that_end_after_a_whole_line_are_half_there(folder: Path) -> None:
    merges = in_two_files(folder) / "merges.txt"
    merges.write_text("#version: 0.2\nr e\n")
    with pytest.raises(
        ValueError, match=rf"{merges} is .*: it never makes 1 words of vocab\.json, such as red"
    ):
        load_pipeline(str(folder))


def test_the_plan_counts_what_is_opened(folder: Path, tmp_path: Path) -> None:
    def told(base: Path) -> str:
        (line,) = (
            line for line in plan(toy.toy_experiment(base, "prompts"), 1).splitlines() if "GiB" in line
        )
        return line

    before = told(folder)
    in_float16(folder, "unet", keep=True)
    main = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(main, main.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert told(folder) == before
    main.unlink()
    assert told(folder) == before  # of float16, the only one now
    assert weight_files(folder, "unet")[0] == "fp16"
    assert told(save_original(toy.build_tiny_pipeline(), tmp_path / "one.safetensors")) == before
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors", main)
    main.with_name("diffusion_pytorch_model.fp16.safetensors").unlink()
    in_a_pickle(folder, "unet")
    assert told(folder) == before
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors", main)
    in_shards(folder)
    assert told(folder) == before


# --------------------------------------------------------------------------------------------------------------------- hub

Fetch = Callable[..., str]


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub with one repository, a/b. Returns what was asked for, and at which revision."""
    cache, asked = tmp_path / "cache", []

    def fetch(name: str, revision: str | None) -> str:
        asked.append((name, revision))
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, cache / name)
        return str(cache / name)

    def one(repository: str, name: str, revision: str | None = None) -> str:
        assert repository == "a/b"
        return fetch(name, revision)

    def several(repository: str, revision: str | None, allow_patterns: Sequence[str], repo_type: str) -> str:
        assert (repository, repo_type) == ("a/b", "model")
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        for name in names:
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                fetch(name, revision)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", several)
    return asked


def test_of_a_repository_only_what_is_opened_is_fetched(
    folder: Path, hub: list[tuple[str, str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(load_pipeline(str(folder)))
    in_float16(folder, "unet", keep=True)
    in_float16(folder, "vae")
    in_a_pickle(folder, "text_encoder")
    rewrite(
        folder / "model_index.json",  # as stable-diffusion-v1-5 has it
        feature_extractor=["transformers", "CLIPImageProcessor"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=None,
    )
    (folder / "safety_checker").mkdir()
    for name in ("unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "v1-5.safetensors"):
        (folder / name).write_bytes(b"gigabytes")
    opened = load_pipeline("a/b", "0123abc")
    assert same(
        {n: t for n, t in weights(opened).items() if not n.startswith("vae")},
        {n: t for n, t in before.items() if not n.startswith("vae")},
    )
    assert {revision for _, revision in hub} == {"0123abc"}
    big = sorted({name for name, _ in hub if not name.endswith((".json", ".txt"))})
    assert big == [
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    told = capsys.readouterr().err
    assert "note: a/b has the weights of vae in float16 only" in told
    assert "note: a/b/text_encoder/pytorch_model.bin is a pickle, opened as weights only" in told
    assert opened.config._name_or_path == "a/b"


def test_weights_in_several_files_are_fetched(folder: Path, hub: list[tuple[str, str | None]]) -> None:
    before = weights(load_pipeline(str(folder)))
    in_shards(folder)
    assert same(weights(load_pipeline("a/b")), before)


def test_a_repository_of_another_family_costs_no_download(
    folder: Path, hub: list[tuple[str, str | None]]
) -> None:
    rewrite(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ValueError, match=r"base: a/b cannot be opened .*: it is a FluxPipeline, and only"):
        load_pipeline("a/b")
    assert hub == [("model_index.json", None)]


# ------------------------------------------------------------------------------------------------------ what a checkpoint is


def card(folder: Path, revision: str | None, name: str = "joint", base: str = "a/b") -> Path:
    folder.mkdir(parents=True)
    record = {
        "name": f"{name}-sd2-3",
        "model": "sd2",
        "seed": 3,
        "rewards": [],
        "base": base,
        "experiment": {"revision": revision},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_run_knows_the_revision_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        checkpoints, "load_pipeline", lambda base, revision=None: opened.append((base, revision))
    )
    monkeypatch.setattr(checkpoints, "with_lora", lambda pipeline, lora: None)
    run = resolve(str(card(tmp_path / "run", "0123abc")))
    assert (run.base, run.revision) == ("a/b", "0123abc")
    run.its_base().pipeline()
    run.pipeline()  # its own folder holds all of it
    save_file({"x.lora_A.weight": torch.zeros(1)}, tmp_path / "run" / checkpoints.LORA_FILE)
    run.pipeline()
    assert opened == [("a/b", "0123abc"), (str(tmp_path / "run"), None), ("a/b", "0123abc")]


def test_another_revision_is_another_base(tmp_path: Path) -> None:
    one, other, newest = (
        resolve(str(card(tmp_path / str(revision), revision))).its_base() for revision in ("1", "2", None)
    )
    assert len({base.digest() for base in (one, other, newest)}) == 3
    assert one.digest() == resolve("a/b@1").digest()
    assert newest.digest() == resolve("a/b").digest()
    # the base's own run holds a copy of it
    copied = resolve(str(card(tmp_path / "base", "1", name="base")))
    assert copied.digest() == one.digest()


def test_a_lora_on_another_revision_draws_other_pictures(tmp_path: Path) -> None:
    run = card(tmp_path / "run", "1")
    save_file({"x.lora_A.weight": torch.zeros(1)}, run / checkpoints.LORA_FILE)
    found = resolve(str(run))
    assert found.digest() != replace(found, revision="2").digest()


def test_somebodys_checkpoint_is_compared_with_the_base_that_is_named(
    tmp_path: Path, tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"nothing says what its base is, .* name it with --base"):
        resolve("owner/tuned@1").its_base()
    tuned = with_base(resolve("owner/tuned@1"), "owner/base@2")
    base = tuned.its_base()
    assert (tuned.source, tuned.revision) == ("owner/tuned", "1")
    assert (base.experiment, base.model, base.source, base.revision) == (
        "base",
        "external",
        "owner/base",
        "2",
    )
    assert base.digest() == replace(resolve("owner/base@2"), experiment="x").digest() != tuned.digest()
    folder = with_base(resolve("owner/tuned"), str(tiny_pipeline_dir)).its_base()
    assert folder.digest() == resolve(str(tiny_pipeline_dir)).digest()

    lora = tmp_path / "lora.safetensors"
    save_file({"x.lora_A.weight": torch.zeros(1)}, lora)
    opened: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        checkpoints, "load_pipeline", lambda base, revision=None: opened.append((base, revision))
    )
    monkeypatch.setattr(checkpoints, "with_lora", lambda pipeline, file: file)
    assert with_base(resolve(str(lora)), "owner/base@2").pipeline() == lora
    assert opened == [("owner/base", "2")]

    run = card(tmp_path / "run", "1")
    for target, given, told in (
        (str(run), "owner/base", "says itself what its base is, a/b"),
        ("owner/tuned", str(run), "is a run or a LoRA"),
        ("owner/tuned", str(lora), "is a run or a LoRA"),
        ("owner/tuned", "nowhere", "--base: nowhere cannot be scored"),
    ):
        with pytest.raises(ValueError, match=told):
            with_base(resolve(target), given)


def test_two_loras_of_one_file_name_are_called_as_their_folders(tmp_path: Path) -> None:
    for where, file, name in (
        ("x", checkpoints.LORA_FILE, "x-external-0"),
        ("y", checkpoints.LORA_FILE, "y-external-0"),
        ("y", "best.safetensors", "best-external-0"),
    ):
        path = tmp_path / where / file
        path.parent.mkdir(exist_ok=True)
        save_file({"x.lora_A.weight": torch.zeros(1)}, path)
        assert resolve(str(path)).name == name
        assert declared(resolve(str(path)), "z", ["pickscore"]).name == "z-external-0"


def test_a_hub_id_may_name_its_revision() -> None:
    found = resolve("owner/na.me@refs/pr/2")
    assert (found.source, found.base, found.revision) == ("owner/na.me", None, "refs/pr/2")
    assert found.experiment == "owner_na.me_refs_pr_2"
    assert resolve("owner/name").revision is None
    for nothing in ("owner/name@", "name@main", "owner/name.safetensors"):
        with pytest.raises(ValueError, match="cannot be scored: give a run directory"):
            resolve(nothing)


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("models/nowhere.safetensors", "base: there is no file models/nowhere.safetensors"),
        ("models/nowhere.ckpt", "base: there is no file models/nowhere.ckpt"),
        ("nowhere", "base: there is no folder nowhere"),
        ("README.md", "README.md is no checkpoint: give a .safetensors file"),
    ],
)
def test_a_base_that_is_none_is_one_sentence(base: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_pipeline(base)
