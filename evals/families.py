"""Checkpoints in one file: Stable Diffusion 1, 2 and XL in the layout of CompVis and Stability AI.

Such a file has tensors and little else. Architecture and noise levels are the family's as published (`evals.architectures`), and open_clip carries the vocabulary, so that
opening one asks no hub. The sampler is DDIM's, which this project trains, whatever sampler a family ships: the noise levels are the same.

What the denoiser predicts is not in the tensors. It is taken from, in this order,

1. `NAME.yaml` beside `NAME.safetensors` or `NAME.ckpt`, the model's original config: `model.params.parameterization` is `v`, or `eps`, which is also meant where the line is missing;
2. the file's own word: metadata `modelspec.prediction_type`, or tensors called `v_pred` and, for noise levels that end without signal, `ztsnr`;
3. the noise, as published, for Stable Diffusion 1 and XL. Of Stable Diffusion 2 there are both kinds (512 pixels predict noise, 768 predict v), so it must be told.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evals.architectures import ARCHITECTURES, Architecture
from evals.weights import PICKLES, read_tensors

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
    padding: tuple[str, ...]
    """What each tokenizer fills up with."""
    architectures: Mapping[str, Architecture]
    """By what the denoiser predicts."""
    prediction: str | None
    """What every published denoiser of the family predicts, None where there are both kinds."""


_END = "<|endoftext|>"

SD1 = Family(
    name="Stable Diffusion 1",
    pipeline="StableDiffusionPipeline",
    text="cond_stage_model.transformer.",
    padding=(_END,),
    architectures={EPSILON: ARCHITECTURES["sd15"], V: ARCHITECTURES["sd15"]},
    prediction=EPSILON,
)
SD2 = Family(
    name="Stable Diffusion 2",
    pipeline="StableDiffusionPipeline",
    text="cond_stage_model.model.",
    padding=("!",),
    architectures={EPSILON: ARCHITECTURES["sd2"], V: ARCHITECTURES["sd2v"]},
    prediction=None,
)
SDXL = Family(
    name="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    text="conditioner.embedders.1.model.",
    padding=(_END, "!"),
    architectures={EPSILON: ARCHITECTURES["sdxl"], V: ARCHITECTURES["sdxl"]},
    prediction=EPSILON,
)
FAMILIES = (SD1, SD2, SDXL)

WORDS = 49408
_TEXT = {
    "model_type": "clip_text_model",
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "eos_token_id": 2,  # as published: transformers reads it as "the token of the largest number"
    "pad_token_id": 1,
}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Noise levels that end without signal (arXiv 2305.08891), drawn from the last timestep on."""


@dataclass(frozen=True)
class Header:
    """What a file of tensors says of them: a safetensors file before they come, a pickle in its place for them, which only the reader of weights alone opens."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    """Of the tensors by name."""
    metadata: Mapping[str, str]
    """A pickle has none."""

    @classmethod
    def of(cls, path: Path) -> Header:
        """Read a file's.

        Raises:
            ValueError: naming the file, where it is damaged, or a pickle that holds more than tensors.
        """
        if path.suffix in PICKLES:
            held = read_tensors(path, mapped=True)
            return cls(path, {name: tuple(tensor.shape) for name, tensor in held.items()}, {})
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                return cls(path, shapes, file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged, not downloaded to its end, or no safetensors file ({error})"
            ) from error

    @cached_property
    def names(self) -> frozenset[str]:
        """Of the tensors."""
        return frozenset(self.shapes)

    @property
    def channels(self) -> int:
        """Of the denoiser's input; 0 where there is none."""
        first = self.shapes.get(f"{UNET}input_blocks.0.0.weight")
        return first[1] if first else 0

    def has(self, prefix: str) -> bool:
        """Whether there are tensors of such names."""
        return any(name.startswith(prefix) for name in self.names)


def is_checkpoint(path: Path) -> bool:
    """Whether a file of tensors holds a denoiser in the original layout, as no LoRA does.

    Raises:
        ValueError: as `Header.of`.
    """
    return Header.of(path).has(UNET)


def is_lora(path: Path) -> bool:
    """Whether a file of tensors holds LoRA adapters, by any of the names that are in use for them.

    Raises:
        ValueError: as `Header.of`.
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
    prediction = prediction_of(header, family)
    architecture = family.architectures[prediction]
    noise = noise_levels(architecture, prediction, "ztsnr" in header.names)
    given: dict[str, Any] = {"scheduler": diffusers.DDIMScheduler(**noise)}
    for name, filling in zip(("tokenizer", "tokenizer_2"), family.padding, strict=False):
        given[name] = clip_tokenizer(filling)
    if len(family.padding) == 2:  # SDXL
        given["add_watermarker"] = False
    else:
        given |= {"safety_checker": None, "requires_safety_checker": False}
    averaged = sum(name.startswith("model_ema.") for name in header.names) > 100  # diffusers' own measure
    try:
        with TemporaryDirectory() as folder:
            write_configs(family, architecture, Path(folder))
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
    for part in ("unet", "vae", "text_encoder", "text_encoder_2")[: 2 + len(family.padding)]:
        weights = getattr(pipeline, part).named_parameters()
        missing = [name for name, weight in weights if weight.is_meta]
        if missing:
            raise ValueError(
                f"for a {family.name} it lacks {len(missing)} tensors of the {part}, such as {missing[0]}"
            )
    strange = sum(name.startswith(UNET) for name in header.names) - len(pipeline.unet.state_dict())
    if strange > 0:
        raise ValueError(f"its denoiser has {strange} tensors more than a {family.name} has")
    pipeline.register_to_config(_name_or_path=str(path))
    return pipeline


def noise_levels(architecture: Architecture, prediction: str, zero_snr: bool) -> dict[str, Any]:
    """Config of the sampler."""
    return architecture.scheduler | {"prediction_type": prediction} | (ZERO_SNR if zero_snr else {})


def write_configs(family: Family, architecture: Architecture, folder: Path) -> None:
    """A folder in diffusers layout with the models' configs, as diffusers wants them."""
    parts: dict[str, tuple[str, str, dict[str, Any]]] = {
        "unet": ("diffusers", "UNet2DConditionModel", architecture.unet),
        "vae": ("diffusers", "AutoencoderKL", architecture.vae),
    }
    kinds = zip(
        ("text_encoder", "text_encoder_2"), ("CLIPTextModel", "CLIPTextModelWithProjection"), strict=True
    )
    for (part, kind), config in zip(kinds, architecture.text_encoders, strict=False):
        parts[part] = ("transformers", kind, _TEXT | config)
    index: dict[str, Any] = {"_class_name": family.pipeline, "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {
        name: ["transformers", "CLIPTokenizer"]
        for name in ("tokenizer", "tokenizer_2")[: len(family.padding)]
    }
    for part, (library, kind, config) in parts.items():
        index[part] = [library, kind]
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(
            json.dumps({"_class_name": kind, **config}), encoding="utf-8"
        )
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def clip_tokenizer(padding: str) -> Any:
    """CLIP's tokenizer as the families ship it, from the vocabulary that open_clip carries."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    count = WORDS - 2 * len(letters) - 2  # the file has more than CLIP uses
    merges = [tuple(line.split()) for line in lines[1 : count + 1]]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", _END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=padding)
