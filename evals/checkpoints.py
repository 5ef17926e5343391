"""Opens what can be scored: a run directory, a diffusers folder, a LoRA file, or a hub id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from evals.conditioning import text_encoders, towers
from evals.hub import hub_file

ROOT = Path(__file__).parent.parent
LORA_FILE = "pytorch_lora_weights.safetensors"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_NAME = re.compile(r"[^A-Za-z0-9_.]+")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")


# what diffusers and transformers raise for a damaged folder is any of these
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    json.JSONDecodeError,
)


def find_base(base: str) -> str:
    """A local folder's path, relative to the repository or to where one is, or a hub id as it stands.

    Raises:
        ValueError: where it is neither.
    """
    for folder in (ROOT / base, Path(base)):
        if folder.is_dir():
            if not (folder / "model_index.json").is_file():
                raise ValueError(
                    f"base: {folder} is no pipeline in diffusers layout, it has no model_index.json"
                )
            return str(folder)
    if base.count("/") == 1 and not base.startswith((".", "/")):
        return base
    raise ValueError(f"base: there is no folder {base}")


def load_pipeline(base: str, revision: str | None = None) -> Any:
    """A `StableDiffusionPipeline` or `StableDiffusionXLPipeline` in float32, from safetensors only, on the CPU.

    The models are opened one by one, because diffusers and transformers fill whatever a weights file lacks with random numbers and
    only log it: weights of another model would be a base of noise.

    Raises:
        ValueError: missing, truncated or foreign files, or a pipeline of another family, in one sentence.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    found = find_base(base)
    if revision is not None and Path(found).is_dir():
        raise ValueError(f"revision is {revision}, but {found} is a folder, which has none: leave it out")
    options = {"revision": revision, "use_safetensors": True, "local_files_only": Path(found).is_dir()}
    try:
        with _quiet(diffusers_logging), _quiet(transformers_logging), _quiet(hub_logging):
            pipeline = _open(found, options)
    except DAMAGE as error:
        raise ValueError(
            f"base: {found} cannot be opened as a Stable Diffusion pipeline: {first_line(error)}"
        ) from error
    for name, (tokenizer, encoder) in zip(("tokenizer", "tokenizer_2"), towers(pipeline), strict=False):
        longest, positions = tokenizer.model_max_length, encoder.config.max_position_embeddings
        if longest > positions:
            raise ValueError(
                f"base: the {name} of {found} is damaged: it allows {longest:g} tokens, the text encoder {positions}"
            )
    return pipeline


def _open(found: str, options: Mapping[str, Any]) -> Any:
    """A pipeline of one of the families that there are.

    Raises:
        ValueError: for another.
    """
    from diffusers import (
        AutoencoderKL,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    models = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    families: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
        "StableDiffusionPipeline": (
            StableDiffusionPipeline,
            models,
            {"safety_checker": None, "requires_safety_checker": False},
        ),
        "StableDiffusionXLPipeline": (
            StableDiffusionXLPipeline,
            models | {"text_encoder_2": CLIPTextModelWithProjection},
            {"add_watermarker": False},
        ),
    }
    here = Path(found) / "model_index.json"
    index = here if here.is_file() else hub_file(found, here.name, options["revision"])
    name = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    if name not in families:
        raise ValueError(f"it is a {name}, and only {' and '.join(families)} can be trained and scored")
    family, kinds, more = families[name]
    parts = {part: _open_part(kind, found, part, options) for part, kind in kinds.items()}
    return family.from_pretrained(found, dtype=torch.float32, **parts, **more, **options)


def _open_part(kind: Any, found: str, part: str, options: Mapping[str, Any]) -> Any:
    """One model of a pipeline, every weight of it from the file.

    Raises:
        ValueError: where the file is that of another model.
    """
    model, report = kind.from_pretrained(
        found, subfolder=part, dtype=torch.float32, output_loading_info=True, **options
    )
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"the weights in {part} are those of another model, {len(wrong)} of this one's are not among them"
        )
    return model


def with_lora(pipeline: Any, lora: Path) -> Any:
    """Put a LoRA file's adapters into a pipeline.

    Raises:
        ValueError: naming the file, where it is damaged, or where not all of its tensors have a place in the pipeline.
    """
    from diffusers.utils import logging as diffusers_logging

    try:
        with safe_open(lora, "pt") as file:
            given = [name for name in file.keys() if not name.endswith((".alpha", ".dora_scale"))]  # noqa: SIM118
        with _quiet(diffusers_logging):
            pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        models = (pipeline.unet, *text_encoders(pipeline))
        placed = sum("lora_" in name for model in models for name, _ in model.named_parameters())
        if placed < len(given):
            raise ValueError(f"{len(given) - placed} of its {len(given)} tensors have no place there")
        if not placed:
            raise ValueError("it holds no tensor")
    except DAMAGE as error:
        raise ValueError(
            f"{lora} is no LoRA of {pipeline.config._name_or_path}: {first_line(error)}"
        ) from error
    return pipeline


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Nothing from a library's log: what goes wrong is raised."""
    before = library.get_verbosity()
    library.set_verbosity(library.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(before)


def first_line(error: BaseException) -> str:
    """The first line of a message that says anything, else the kind of the error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Something that draws, and what is known of it."""

    experiment: str
    model: str
    seed: int
    rewards: tuple[str, ...]
    """Scorers that it was trained on."""
    base: str | None
    """The pipeline that it came from, None where that is not known."""
    weights: Path | None
    """Folder of the pipeline, or the LoRA file; None for a hub id."""
    source: str

    @property
    def name(self) -> str:
        """As its folder under results/runs and results/images."""
        return f"{self.experiment}-{self.model}-{self.seed}"

    def digest(self) -> str:
        """12 hex digits over what decides the pictures: files of the pipeline's models, tokenizer and scheduler, a LoRA's and its base's; the id of what is on a hub.

        The base's own run holds a copy of the base; its digest is that of the original.
        """
        local = Path(find_base(self.base)) if self.experiment == "base" and self.base else self.weights
        sources = [local or self.source, *([self.base] if self._lora_file() and self.base else [])]
        digest = hashlib.sha256()
        for source in sources:
            files = _pipeline_files(source if isinstance(source, Path) else Path(find_base(source)))
            digest.update(b"" if files else str(source).encode())
            for file in files:
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:12]

    def its_base(self) -> Checkpoint:
        """The pipeline that it came from. Raises ValueError where that is not known."""
        if self.base is None:
            raise ValueError(
                f"{self.source}: nothing says what its base is, so drift from it cannot be scored"
            )
        return Checkpoint("base", self.model, 0, (), self.base, None, self.base)

    def pipeline(self) -> Any:
        """Open it."""
        lora = self._lora_file()
        if lora is None:
            return load_pipeline(str(self.weights) if self.weights else self.source)
        if self.base is None:
            raise ValueError(
                f"{lora} is a LoRA, and nothing says of which base: score the run directory that it lies in"
            )
        return with_lora(load_pipeline(self.base), lora)

    def _lora_file(self) -> Path | None:
        if self.weights is None:
            return None
        if self.weights.suffix == ".safetensors":
            return self.weights
        lora = self.weights / LORA_FILE
        return lora if lora.is_file() else None


def _pipeline_files(weights: Path) -> list[Path]:
    """Files of a pipeline's models, tokenizer and scheduler, and of a LoRA; none of what is not there."""
    if weights.is_file():
        return [weights]
    files = [file for part in PARTS for file in sorted(weights.glob(f"{part}/*"))]
    return [file for file in [weights / LORA_FILE, *files] if file.is_file()]


def resolve(target: str) -> Checkpoint:
    """Find out what a target is.

    Raises:
        ValueError: it is nothing that can be scored, or a run that has not finished.
    """
    path = Path(target)
    if (path / "run.json").is_file():
        return _from_run(path)
    if (path / "state").is_dir():
        raise ValueError(
            f"{target} is a run that has not finished: train it to its end first, the same command resumes"
        )
    if path.suffix == ".safetensors" and path.is_file():
        card = path.parent / "run.json"
        return _from_run(path.parent) if card.is_file() else _foreign(path.stem, path, None, target)
    if path.is_dir():
        find_base(target)
        return _foreign(path.name, path, None, target)
    if path.exists() or target.startswith((".", "/")) or target.count("/") != 1:
        raise ValueError(
            f"{target} cannot be scored: give a run directory, a folder in diffusers layout, a LoRA file (.safetensors) or a hub id"
        )
    return _foreign(target, None, target, target)


def _foreign(name: str, weights: Path | None, base: str | None, source: str) -> Checkpoint:
    clean = _NAME.sub("_", name).strip("_") or "model"
    return Checkpoint(clean, "external", 0, (), base, weights, source)


def _from_run(folder: Path) -> Checkpoint:
    try:
        card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        model, seed = card["model"], int(card["seed"])
        experiment = card["name"].removesuffix(f"-{model}-{seed}")
        for part in (experiment, model):  # they name folders
            if not _PART.fullmatch(part):
                raise ValueError(f"{part!r} cannot be part of a run's name")
        if isinstance(card["rewards"], str):
            raise TypeError("rewards is not a list")
        return Checkpoint(experiment, model, seed, tuple(card["rewards"]), card["base"], folder, str(folder))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'run.json'} is damaged or of another program: {first_line(error)}"
        ) from error
