"""Checkpoints in one file: Stable Diffusion 1, 2 and XL in the layout of CompVis and Stability AI.

Such a file has tensors and little else. Architecture, noise levels and tokenizer are the family's as published (the configs beside the weights of
stable-diffusion-v1-5, stable-diffusion-2-base, stable-diffusion-2-1 and stable-diffusion-xl-base-1.0 on the hub) and stand here, so that opening one asks no hub.
The sampler is DDIM's, which this project trains, whatever sampler a family ships: the noise levels are the same.

What the denoiser predicts is not in the tensors. It is taken from, in this order,

1. `NAME.yaml` beside `NAME.safetensors`, the model's original config: `model.params.parameterization` is `v`, or `eps`, which is also meant where the line is missing;
2. the file's own word: metadata `modelspec.prediction_type`, or tensors called `v_pred` and, for noise levels that end without signal, `ztsnr`;
3. the noise, as published, for Stable Diffusion 1 and XL. Of Stable Diffusion 2 there are both kinds (512 pixels predict noise, 768 predict v), so it must be told.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

UNET = "model.diffusion_model."
"""What the names of a denoiser's tensors begin with."""
EPSILON, V = "epsilon", "v_prediction"
_SAID = {"eps": EPSILON, "epsilon": EPSILON, "v": V, "v_prediction": V}


@dataclass(frozen=True)
class Family:
    """What is published of a family beside its weights."""

    name: str
    pipeline: str
    """Class of diffusers."""
    text: str
    """What the names of the (last) text encoder's tensors begin with."""
    configs: Mapping[str, Mapping[str, Any]]
    """Of each model, in the words of diffusers and transformers."""
    padding: tuple[str, ...]
    """What each tokenizer fills up with."""
    prediction: str | None
    """What every published denoiser of the family predicts, None where there are both kinds."""
    of_v: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """In what the published one that predicts v differs."""


_DOWN = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
_UP = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": _DOWN,
    "up_block_types": _UP,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_CLIP_L: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 2,  # as published: transformers reads it as "the token of the largest number"
    "pad_token_id": 1,
}
_CLIP_H = {  # the last of 24 layers is not used
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
_CLIP_G = {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_END, _ZERO = "<|endoftext|>", "!"

SD1 = Family(
    name="Stable Diffusion 1",
    pipeline="StableDiffusionPipeline",
    text="cond_stage_model.transformer.",
    configs={
        "unet": {**_UNET, "cross_attention_dim": 768, "attention_head_dim": 8},
        "vae": _VAE,
        "text_encoder": _CLIP_L,
    },
    padding=(_END,),
    prediction=EPSILON,
)
SD2 = Family(
    name="Stable Diffusion 2",
    pipeline="StableDiffusionPipeline",
    text="cond_stage_model.model.",
    configs={
        "unet": {
            **_UNET,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
        "vae": _VAE,
        "text_encoder": {**_CLIP_L, **_CLIP_H},
    },
    padding=(_ZERO,),
    prediction=None,
    of_v={"unet": {"sample_size": 96, "upcast_attention": True}, "vae": {"sample_size": 768}},
)
SDXL = Family(
    name="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    text="conditioner.embedders.1.model.",
    configs={
        "unet": {
            **_UNET,
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": {**_CLIP_L, **_CLIP_G},
    },
    padding=(_END, _ZERO),
    prediction=EPSILON,
)
FAMILIES = (SD1, SD2, SDXL)

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
    "set_alpha_to_one": False,
}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Noise levels that end without signal (arXiv 2305.08891), drawn from the last timestep on."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its tensors."""

    path: Path
    names: frozenset[str]
    metadata: Mapping[str, str]
    channels: int
    """Of the denoiser's input; 0 where there is none."""

    @classmethod
    def of(cls, path: Path) -> Header:
        """Read a file's.

        Raises:
            ValueError: naming the file, where it is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                names, metadata, first = (
                    frozenset(file.keys()),
                    file.metadata(),
                    f"{UNET}input_blocks.0.0.weight",
                )
                channels = file.get_slice(first).get_shape()[1] if first in names else 0
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged, not downloaded to its end, or no safetensors file ({error})"
            ) from error
        return cls(path, names, metadata or {}, channels)

    def has(self, prefix: str) -> bool:
        """Whether there are tensors of such names."""
        return any(name.startswith(prefix) for name in self.names)


def is_checkpoint(path: Path) -> bool:
    """Whether a safetensors file holds a denoiser in the original layout, as no LoRA does.

    Raises:
        ValueError: where it is damaged.
    """
    return Header.of(path).has(UNET)


def is_lora(path: Path) -> bool:
    """Whether a safetensors file holds LoRA adapters, by any of the names that are in use for them.

    Raises:
        ValueError: where it is damaged.
    """
    return any("lora" in name.lower() for name in Header.of(path).names)


def family_of(header: Header) -> Family:
    """The family of a checkpoint.

    Raises:
        ValueError: for a model of another kind.
    """
    found = next((family for family in FAMILIES if header.has(family.text)), None)
    if header.has("conditioner.embedders.0.model."):  # SDXL's first text encoder is another
        raise ValueError("it is the refiner of Stable Diffusion XL, which draws nothing by itself")
    if header.names & {"edm_mean", "edm_vpred.sigma_max"}:
        raise ValueError("its noise levels are those of EDM, and only those of Stable Diffusion can be drawn")
    if found is None or not header.channels:
        raise ValueError(
            f"it is no {', '.join(family.name for family in FAMILIES)} with denoiser, autoencoder and text encoder: "
            f"it has tensors such as {min(header.names, default='none')}"
        )
    if header.channels != 4:
        raise ValueError(
            f"its denoiser takes {header.channels} channels, as for inpainting or editing, and only 4, for drawing from a text, can be used"
        )
    return found


def prediction_of(header: Header, family: Family) -> str:
    """What the denoiser of a checkpoint predicts: see the module's docstring.

    Raises:
        ValueError: where nothing says it, or what is said is neither.
    """
    beside = header.path.with_suffix(".yaml")
    said: str | None
    if beside.is_file():
        said = _parameterization(beside)
    else:
        said = "v" if "v_pred" in header.names else header.metadata.get("modelspec.prediction_type")
    if said is None and family.prediction is None:
        raise ValueError(
            f"of {family.name} there are models that predict noise and models that predict v, and nothing says which this is: put its original config "
            f"beside it, as {beside.name}, with the line parameterization: eps or v under model, params"
        )
    if said is not None and said not in _SAID:
        raise ValueError(f"it is said to predict {said!r}, which is neither {EPSILON} nor v")
    return _SAID[said] if said is not None else str(family.prediction)


def _parameterization(path: Path) -> str:
    """Of an original config; noise where there is no such line, as in `ldm.models.diffusion.ddpm.DDPM`.

    Raises:
        ValueError: for another file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = ""
    if not re.search(r"^model:", text, re.MULTILINE):
        raise ValueError(f"{path} is no config of a model in the original layout: it has no section model")
    line = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", text, re.MULTILINE)
    return line[1] if line else "eps"


def open_single_file(path: Path) -> Any:
    """The pipeline in a checkpoint, in float32; of averaged and live weights the averaged ones, as in the published pipelines.

    Raises:
        ValueError: another kind of model, tensors that are missing or of another shape, or nothing that says what is predicted.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    header = Header.of(path)
    family = family_of(header)
    scheduler = diffusers.DDIMScheduler(
        **noise_levels(prediction_of(header, family), "ztsnr" in header.names)
    )
    given: dict[str, Any] = {"scheduler": scheduler}
    for name, filling in zip(("tokenizer", "tokenizer_2"), family.padding, strict=False):
        given[name] = clip_tokenizer(filling)
    if len(family.padding) == 2:  # SDXL
        given["add_watermarker"] = False
    else:
        given |= {"safety_checker": None, "requires_safety_checker": False}
    averaged = sum(name.startswith("model_ema.") for name in header.names) > 100  # diffusers' own measure
    try:
        with TemporaryDirectory() as folder:
            write_configs(family, scheduler.config.prediction_type, Path(folder))
            pipeline = getattr(diffusers, family.pipeline).from_single_file(
                str(path),
                config=folder,
                dtype=torch.float32,
                local_files_only=True,
                extract_ema=averaged,
                **given,
            )
    except (SingleFileComponentError, NotImplementedError, TypeError, AttributeError, LookupError) as error:
        # diffusers met a hole where it wanted a tensor
        raise ValueError(f"for a {family.name} it lacks tensors") from error
    for part in family.configs:
        model = getattr(pipeline, part)
        missing = [name for name, weight in model.named_parameters() if weight.is_meta]
        if missing:
            raise ValueError(
                f"for a {family.name} it lacks {len(missing)} tensors of the {part}, such as {missing[0]}"
            )
    strange = sum(name.startswith(UNET) for name in header.names) - len(pipeline.unet.state_dict())
    if strange > 0:
        raise ValueError(f"its denoiser has {strange} tensors more than a {family.name} has")
    pipeline.register_to_config(_name_or_path=str(path))
    return pipeline


def noise_levels(prediction: str, zero_snr: bool) -> dict[str, Any]:
    """Config of the sampler."""
    return NOISE | {"prediction_type": prediction} | (ZERO_SNR if zero_snr else {})


def write_configs(family: Family, prediction: str, folder: Path) -> None:
    """A folder in diffusers layout with the models' configs, as diffusers wants them."""
    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    index: dict[str, Any] = {"_class_name": family.pipeline, "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {
        name: ["transformers", "CLIPTokenizer"]
        for name in ("tokenizer", "tokenizer_2")[: len(family.padding)]
    }
    for part, published in family.configs.items():
        config = {**published, **(family.of_v.get(part, {}) if prediction == V else {})}
        index[part] = ["transformers", kinds[part]] if part in kinds else ["diffusers", config["_class_name"]]
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def clip_tokenizer(padding: str) -> Any:
    """CLIP's tokenizer as the families ship it, from the vocabulary that open_clip carries."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    count = _CLIP_L["vocab_size"] - 2 * len(letters) - 2  # the file has more than CLIP uses
    merges = [tuple(line.split()) for line in lines[1 : count + 1]]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", _END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=padding)
