"""Opens what can be scored: a run directory, its snapshots, a diffusers folder, a checkpoint in one file, a LoRA file, or a hub id."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from evals.bases import is_here, pipeline_index
from evals.conditioning import text_encoders, towers
from evals.families import Header, is_checkpoint, is_lora, open_single_file
from evals.files import EXTERNAL
from evals.hub import hub_folder
from evals.weights import PICKLES, TENSORS

ROOT = Path(__file__).parent.parent
LORA_FILE = "pytorch_lora_weights.safetensors"
SNAPSHOTS = "snapshots"
"""Folder of a run's snapshots (see `train.snapshots`), one for each iteration that is kept."""
SNAPSHOT_CARD = "snapshot.json"
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
"""What the files of a model's weights are called."""
FORMS = ((None, ".safetensors"), ("fp16", ".safetensors"), (None, ".bin"), ("fp16", ".bin"))
"""Variant and ending of the files in which a model's weights may come; the first of these that is there is opened. The last two are pickles."""
PARTS = (*STEMS, "tokenizer", "tokenizer_2", "scheduler")
VOCABULARY = "tokenizer.json"
"""A tokenizer in one file."""
WORDS, MERGES = "vocab.json", "merges.txt"
"""A tokenizer in two files, as the hub has CLIP's."""
ALIGNMENT = 64
"""Bytes: where torch's memory on the CPU starts is a multiple of it."""
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
    """A local folder's or file's path, relative to the repository or to where one is, or a hub id as it stands.

    Raises:
        ValueError: where it is neither.
    """
    for path in (ROOT / base, Path(base)):
        if path.is_dir():
            if not (path / "model_index.json").is_file():
                raise ValueError(
                    f"base: {path} is no pipeline in diffusers layout, it has no model_index.json"
                )
            return str(path)
        if path.is_file():
            if path.suffix not in TENSORS:
                raise ValueError(
                    f"base: {path} is no checkpoint: give a .safetensors file (or one of {', '.join(PICKLES)}, which are opened where they hold "
                    "nothing but tensors), a folder in diffusers layout or a hub id"
                )
            return str(path)
    if "@" in base:
        raise ValueError(f"base: {base} names a revision: give it as revision, `--set revision=...`")
    is_file_name = Path(base).suffix in TENSORS
    if base.count("/") == 1 and not base.startswith((".", "/")) and not is_file_name:
        return base
    raise ValueError(f"base: there is no {'file' if is_file_name else 'folder'} {base}")


def refuse_revision(found: str, revision: str | None) -> None:
    """Refuse a revision of what is on this machine.

    Args:
        found: from `find_base`.
        revision: as given, if any.

    Raises:
        ValueError: naming the path.
    """
    if revision is not None and (path := Path(found)).exists():
        kind = "folder" if path.is_dir() else "file"
        raise ValueError(
            f"revision is {revision}, but {found} is a {kind}, which has none: leave it out, or `--set revision=none`"
        )


def say_pickled(files: Sequence[str]) -> None:
    """Tell which of the files that are opened are pickles; nothing where none is."""
    if pickled := [file for file in files if Path(file).suffix in PICKLES]:
        are = "is a pickle" if len(pickled) == 1 else "are pickles"
        say(f"note: {', '.join(pickled)} {are}, opened as weights only, which runs no code")


def load_pipeline(base: str, revision: str | None = None, unet: Path | None = None) -> Any:
    """A `StableDiffusionPipeline` or `StableDiffusionXLPipeline` in float32, on the CPU.

    The models are opened one by one, because diffusers and transformers fill whatever a weights file lacks with random numbers and
    only log it: weights of another model would be a base of noise. Where a model comes in float16 only, that is opened, and said; so is a pickle where
    there are no safetensors, by the reader of weights alone, which runs no code of it.

    Where the files lie, the hub's in the cache of downloads, is its `opened_from`; one file has none.

    Args:
        base: folder in diffusers layout, checkpoint in one file (see `evals.families`) or hub id.
        revision: of a hub id; None takes the newest.
        unet: folder whose `unet/` is opened in place of that of `base`, a folder too.

    Raises:
        ValueError: missing, truncated or foreign files, a pickle that holds more than tensors, or a pipeline of another family, in one sentence.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    found = find_base(base)
    path = Path(found)
    refuse_revision(found, revision)
    try:
        with quiet(diffusers_logging), quiet(transformers_logging), quiet(hub_logging):
            pipeline = _open_file(path) if path.is_file() else _open(found, revision, unet)
            _refuse_another_diffusion(pipeline)
            freeze(pipeline)
    except DAMAGE as error:
        what = found if unet is None else f"{found} with the denoiser of {unet}"
        raise ValueError(
            f"base: {what} cannot be opened as a Stable Diffusion pipeline: {first_line(error)}"
        ) from error
    for name, (tokenizer, encoder) in zip(("tokenizer", "tokenizer_2"), towers(pipeline), strict=False):
        longest, positions = tokenizer.model_max_length, encoder.config.max_position_embeddings
        if longest > positions:
            raise ValueError(
                f"base: the {name} of {found} is damaged: it allows {longest:g} tokens, the text encoder {positions}"
            )
        words, known = len(tokenizer), encoder.config.vocab_size
        if not known / 2 <= words <= known:  # the text encoder may have room for words that nobody gave it
            raise ValueError(
                f"base: the {name} of {found} is damaged or of another model: it has {words} words, the text encoder {known}"
            )
    return pipeline


def freeze(pipeline: Any) -> None:
    """Make the pictures of a pipeline those of its weights alone, to the last bit, wherever they came from; before anything else holds its weights.

    Two things else decide in which order a product is summed. A safetensors file is mapped, not read, so that its weights lie
    wherever its header ends: they are copied to where an allocation starts. And torch multiplies by a weight that could have a
    gradient in another way, even where no gradient is kept: none can have one, until `train.policy` says which.
    """
    for model in pipeline.components.values():
        if isinstance(model, torch.nn.Module):
            model.requires_grad_(False)
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.data_ptr() % ALIGNMENT:
                    tensor.data = tensor.data.clone()


def _open_file(path: Path) -> Any:
    """A pipeline of a checkpoint in one file."""
    pipeline = open_single_file(path)
    say_pickled([str(path)])
    return pipeline


def _open(found: str, revision: str | None, unet: Path | None = None) -> Any:
    """A pipeline in diffusers layout of one of the families that there are, from a folder or the hub.

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
    folder = Path(found)
    components = _read_json(pipeline_index(found, revision))
    name = components["_class_name"]
    if name not in families:
        raise ValueError(f"it is a {name}, and only {' and '.join(families)} can be trained and scored")
    family, kinds, more = families[name]
    if not folder.is_dir():
        folder = _fetched(found, list(kinds), revision)
    place = dict.fromkeys(kinds, folder) | ({} if unet is None else {"unet": unet})
    held = {part: weight_files(place[part], part) for part in kinds}
    if halves := [part for part, (variant, _) in held.items() if variant]:
        say(f"note: {found} has the weights of {', '.join(halves)} in float16 only")
    more |= {
        "feature_extractor": None,
        "image_encoder": None,
    }  # of the safety checker, and of prompts that are images
    _refuse_another_architecture(
        name, {part: _read_json(place[part] / part / "config.json") for part in kinds}
    )
    for _, files in held.values():
        for file in files:
            Header.of(file)  # which names it, where it is damaged or more than tensors
    say_pickled([f"{found}/{part}/{file.name}" for part, (_, files) in held.items() for file in files])
    parts = {part: _open_part(kind, place[part], part, *held[part]) for part, kind in kinds.items()}
    for part in ("tokenizer", "tokenizer_2")[: len(kinds) - 2]:
        parts[part] = _open_tokenizer(folder / part, components[part][1])
    pipeline = family.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, **parts, **more
    )
    pipeline.register_to_config(_name_or_path=found)  # not where the hub's files are kept
    pipeline.opened_from = folder
    return pipeline


def _fetched(repository: str, models: Sequence[str], revision: str | None) -> Path:
    """The folder of a pipeline from the hub: of all that lies there only what is opened."""
    rest = [part for part in PARTS if part not in STEMS]
    small = [f"{part}/*.{ending}" for part in (*models, *rest) for ending in ("json", "txt")]
    folder = hub_folder(repository, ["model_index.json", *small, *_weights(models, *FORMS[0])], revision)
    lacking = list(models)
    for before, form in pairwise(FORMS):
        lacking = [part for part in lacking if not _in_form(folder / part, part, *before)]
        if not lacking:
            break
        folder = hub_folder(repository, _weights(lacking, *form), revision)
    return folder


def _weights(models: Sequence[str], variant: str | None, ending: str) -> list[str]:
    """Patterns of the names of models' weights in one of `FORMS`, in one file or several."""
    kinds = [ending, f"-?????-of-?????{ending}"]
    if variant:  # the place of its name in that of one of several files has changed over time
        kinds = [
            f".{variant}{ending}",
            f".{variant}-?????-of-?????{ending}",
            f"-?????-of-?????.{variant}{ending}",
        ]
    return [f"{part}/{_stem(part, ending)}{kind}" for part in models for kind in kinds]


def _stem(part: str, ending: str) -> str:
    """What the files of a model's weights are called in that form; transformers has another name where they are pickles."""
    return "pytorch_model" if ending == ".bin" and part.startswith("text_encoder") else STEMS[part]


def _in_form(folder: Path, part: str, variant: str | None, ending: str) -> list[Path]:
    """The files of a model in a folder of its own, in one of `FORMS`: one, or several that an index names; none where there are none.

    Raises:
        ValueError: where one that the index names is missing.
    """
    stem, of_variant = _stem(part, ending), f".{variant}" if variant else ""
    one, index = folder / f"{stem}{of_variant}{ending}", folder / f"{stem}{ending}.index{of_variant}.json"
    if one.is_file():
        return [one]
    if not index.is_file():
        return []
    named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    files = [folder / name for name in sorted(set(named))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} of {part} is missing, or was not downloaded")
    return files


def weight_files(folder: Path, part: str) -> tuple[str | None, list[Path]]:
    """The files of a model in a pipeline's folder that diffusers and transformers open.

    Returns:
        variant, None for full precision or `fp16` where there is no other, and the files: one, or several that an index names. Pickles only where there is nothing else.

    Raises:
        ValueError: where there is none, or one that the index names is missing.
    """
    for variant, ending in FORMS:
        if files := _in_form(folder / part, part, variant, ending):
            return variant, files
    raise ValueError(f"{part} has no {STEMS[part]}.safetensors, and no {_stem(part, '.bin')}.bin")


def _open_part(kind: Any, folder: Path, part: str, variant: str | None, files: Sequence[Path]) -> Any:
    """One model of a pipeline, every weight of it from its files; of pickles both libraries read weights only.

    Args:
        kind: its class.
        folder: of the pipeline.
        part: its name there.
        variant: of `weight_files`, as the files.
        files: of its weights.

    Raises:
        ValueError: where the file is that of another model.
    """
    model, report = kind.from_pretrained(
        folder,
        subfolder=part,
        variant=variant,
        use_safetensors=files[0].suffix not in PICKLES,
        local_files_only=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"the weights in {part} are those of another model, {len(wrong)} of this one's are not among them"
        )
    return model


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of a pipeline's settings says.

    Raises:
        ValueError: naming the file, where it is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or not downloaded to its end ({first_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__}, not settings by name")
    return found


def _open_tokenizer(folder: Path, kind: str) -> Any:
    """A tokenizer of a pipeline, its whole vocabulary from files: transformers makes up one of two words where there is none.

    Args:
        folder: its own.
        kind: its class in transformers.

    Raises:
        ValueError: naming folder and file, where one is missing or damaged.
    """
    import transformers

    opens = getattr(transformers, kind, None)
    is_one = isinstance(opens, type) and issubclass(opens, transformers.PreTrainedTokenizerFast)
    if opens is None or not is_one:
        raise ValueError(f"its {folder.name} is a {kind}, which is no tokenizer of transformers")
    in_one = (folder / VOCABULARY).is_file()
    missing = [name for name in (WORDS, MERGES) if not (in_one or (folder / name).is_file())]
    if missing:
        raise ValueError(f"{folder} has neither {VOCABULARY} nor {' and '.join(missing)}")
    for file in sorted({*folder.glob("*.json"), folder / "tokenizer_config.json"}):
        _read_json(file)
    try:
        tokenizer = opens.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no kind of its own
        name = VOCABULARY if in_one else MERGES
        raise ValueError(
            f"{folder / name} is damaged, or not downloaded to its end ({first_line(error)})"
        ) from error
    if not in_one and (unmade := _unmade(tokenizer)):
        raise ValueError(
            f"{folder / MERGES} is damaged, or not downloaded to its end: it never makes {len(unmade)} words of {WORDS}, such as {unmade[0]}"
        )
    return tokenizer


def _unmade(tokenizer: Any) -> list[str]:
    """Words of a byte-pair vocabulary of more than a letter that no merge makes: none, unless merges are missing."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        return []
    special, end = {*tokenizer.all_special_tokens}, model["end_of_word_suffix"] or ""
    made = {one + other for one, other in model["merges"]}
    return [
        word
        for word in model["vocab"]
        if len(word.removesuffix(end)) > 1 and word not in made and word not in special
    ]


def _refuse_another_architecture(family: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse models that do not fit together as the family's do, before any of them is loaded.

    Args:
        family: the pipeline's class.
        configs: of its models, by part, as they are stored.

    Raises:
        ValueError: a denoiser that reads text of another width, or that is told more or less than the family's.
    """
    from transformers import CLIPTextConfig

    unet = configs["unet"]
    texts = [CLIPTextConfig(**config) for part, config in configs.items() if part.startswith("text_encoder")]
    told = "text_time" if len(texts) == 2 else None
    given = unet.get("addition_embed_type")
    if given != told:
        raise ValueError(
            f"its denoiser is not that of a {family}: addition_embed_type is {given}, not {told}"
        )
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        raise ValueError("its denoiser is told a class beside the text, as for variations or upscaling")
    width = sum(text.hidden_size for text in texts)
    read = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)  # diffusers' default
    if {*(read if isinstance(read, list) else [read])} != {width}:
        raise ValueError(
            f"its denoiser reads text of width {read} (cross_attention_dim), and its text encoders give {width}"
        )
    if told is None:
        return
    conditions = texts[-1].projection_dim + 6 * (unet.get("addition_time_embed_dim") or 0)
    if (read := unet.get("projection_class_embeddings_input_dim")) != conditions:
        raise ValueError(
            f"its denoiser is told {read} numbers of text and size (projection_class_embeddings_input_dim), and there are {conditions}"
        )


def _refuse_another_diffusion(pipeline: Any) -> None:
    """Refuse a pipeline of a known class that is used in another way than Stable Diffusion.

    Raises:
        ValueError: a denoiser that is given more than latents, latents that are shifted, or noise levels of another kind.
    """
    unet, vae, scheduler = pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config
    if unet.in_channels != vae.latent_channels:
        raise ValueError(
            f"its denoiser takes {unet.in_channels} channels, as for inpainting or editing, but a latent has {vae.latent_channels}"
        )
    shifts = [name for name in ("shift_factor", "latents_mean", "latents_std") if vae.get(name) is not None]
    if shifts:
        raise ValueError(
            f"its autoencoder has {shifts[0]}, and only latents that are scaled alone can be used"
        )
    if "beta_start" not in scheduler:
        raise ValueError(
            f"its scheduler, {type(pipeline.scheduler).__name__}, has no beta_start: only noise levels given by betas can be used"
        )


def say(note: str) -> None:
    """Tell the user something, on the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(note, file=sys.stderr)


def with_lora(pipeline: Any, lora: Path) -> Any:
    """Put a LoRA file's adapters into a pipeline.

    Raises:
        ValueError: naming the file, where it is damaged, or where not all of its tensors have a place in the pipeline.
    """
    from diffusers.utils import logging as diffusers_logging

    try:
        given = [name for name in Header.of(lora).names if not name.endswith((".alpha", ".dora_scale"))]
        with quiet(diffusers_logging):
            pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        models = (pipeline.unet, *text_encoders(pipeline))
        placed = sum("lora_" in name for model in models for name, _ in model.named_parameters())
        if placed < len(given):
            raise ValueError(f"{len(given) - placed} of its {len(given)} tensors have no place there")
        if not placed:
            raise ValueError("it holds no tensor")
        say_pickled([str(lora)])
        freeze(pipeline)
    except DAMAGE as error:
        raise ValueError(
            f"{lora} is no LoRA of {pipeline.config._name_or_path}: {first_line(error)}"
        ) from error
    return pipeline


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Nothing from a library's log: what goes wrong is raised."""
    before = library.get_verbosity()
    library.set_verbosity(library.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(before)


def first_line(error: BaseException) -> str:
    """The first line of a message that says anything, rather than one that announces others, else the kind of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), next(iter(lines), type(error).__name__))


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
    """Folder of the pipeline, its one file, or the LoRA file; None for a hub id."""
    source: str
    revision: str | None = None
    """Of the base, where that is a hub id; of itself, where it is one."""
    domain: str | None = None
    """What its pictures show (see `evals.scorers`), None where that is not known."""
    iterations: int | None = None
    """How long it was trained, None where that is not known."""
    unet: Path | None = None
    """Folder of its denoiser where that is not in `weights`: a run's snapshot."""
    told: Checkpoint | None = None
    """Its base, where nothing but a user says what that is: see `with_base`."""

    @property
    def name(self) -> str:
        """As its folder under results/runs and results/images."""
        return f"{self.experiment}-{self.model}-{self.seed}"

    def digest(self) -> str:
        """12 hex digits over what decides the pictures: files of the pipeline's models, tokenizer and scheduler, a LoRA's and its base's; id and revision of what is on a hub.

        The base's own run holds a copy of the base; its digest is that of the original.
        """
        local = Path(find_base(self.base)) if self.experiment == "base" and self.base else self.weights
        sources = [local or self.source, *([self.base] if self._lora_file() and self.base else [])]
        digest = hashlib.sha256()
        for source in sources:
            files = _pipeline_files(
                source if isinstance(source, Path) else Path(find_base(source)), self.unet
            )
            digest.update(b"" if files else _on_hub(str(source), self.revision).encode())
            for file in files:
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:12]

    def is_known(self) -> bool:
        """Whether its digest is of files: that of a LoRA, and of the base's own run, is of a base that may be a folder as named from elsewhere (`evals.bases.is_here`).

        Raises:
            ValueError: the base has gone.
        """
        elsewhere = self.base if self.experiment == "base" or self._lora_file() else None
        return elsewhere is None or is_here(find_base(elsewhere), self.revision)

    def its_base(self) -> Checkpoint:
        """The pipeline that it came from. Raises ValueError where that is not known."""
        if self.told is not None:
            return self.told
        if self.base is None:
            raise ValueError(
                f"{self.source}: nothing says what its base is, so drift from it cannot be scored: name it with --base"
            )
        return Checkpoint("base", self.model, 0, (), self.base, None, self.base, self.revision, self.domain)

    def pipeline(self) -> Any:
        """Open it."""
        lora = self._lora_file()
        if self.unet is not None:
            return load_pipeline(str(self.weights), unet=self.unet)
        if lora is None and self.weights is not None:
            return load_pipeline(str(self.weights))
        if lora is None:
            return load_pipeline(self.source, self.revision)
        if self.base is not None:
            return with_lora(load_pipeline(self.base, self.revision), lora)
        if not is_lora(lora):
            raise ValueError(
                f"{lora} is neither a LoRA nor a Stable Diffusion with denoiser, autoencoder and text encoder in one file"
            )
        raise ValueError(
            f"{lora} is a LoRA, and nothing says of which base: name it with --base, or score the run directory that it lies in"
        )

    def _lora_file(self) -> Path | None:
        if self.weights is None:
            return None
        if self.weights.suffix in TENSORS:
            return None if is_checkpoint(self.weights) else self.weights
        lora = self.weights / LORA_FILE
        return lora if lora.is_file() else None


def _on_hub(repository: str, revision: str | None) -> str:
    return f"{repository}@{revision}" if revision else repository


def _pipeline_files(weights: Path, unet: Path | None = None) -> list[Path]:
    """Files of a pipeline's models, tokenizer and scheduler, and of a LoRA; none of what is not there. Its denoiser may lie elsewhere."""
    if weights.is_file():
        return [path for path in (weights, weights.with_suffix(".yaml")) if path.is_file()]
    place = dict.fromkeys(PARTS, weights) | ({} if unet is None else {"unet": unet})
    files = [file for part in PARTS for file in sorted(place[part].glob(f"{part}/*"))]
    return [file for file in [weights / LORA_FILE, *files] if file.is_file()]


def resolve(target: str) -> Checkpoint:
    """Find out what a target is: also a run's snapshot, `results/runs/joint-miniature-0@40`, whose experiment is then `joint@40`.

    Raises:
        ValueError: it is nothing that can be scored, or a run that has not finished.
    """
    path = Path(target)
    if (path / "run.json").is_file():
        return _from_run(path)
    run, _, iteration = target.rpartition("@")
    if run and not path.exists() and any((Path(run) / part).exists() for part in ("run.json", "state")):
        return _of_iteration(run, iteration)
    if (path / "state").is_dir():
        raise ValueError(
            f"{target} is a run that has not finished: train it to its end first, the same command resumes"
        )
    if path.suffix in TENSORS and path.is_file():
        card = path.parent / "run.json"
        return _from_run(path.parent) if card.is_file() else _foreign(_name_of(path), path, target)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(
                f"{target} is no pipeline in diffusers layout, it has no model_index.json; pictures are scored with --pictures"
            )
        return _foreign(path.name, path, target)
    repository, at, revision = target.partition("@")
    no_id = repository.startswith((".", "/")) or repository.count("/") != 1 or (at and not revision)
    if path.exists() or path.suffix in TENSORS or no_id:
        raise ValueError(
            f"{target} cannot be scored: give a run directory, RUN@ITERATION, a folder in diffusers layout, a checkpoint in one file or a LoRA "
            f"({', '.join(TENSORS)}), or a hub id, owner/name or owner/name@revision"
        )
    return replace(_foreign(target, None, repository), revision=revision or None)


def with_base(checkpoint: Checkpoint, given: str) -> Checkpoint:
    """Somebody's checkpoint, and the pipeline that it is to be compared with; a LoRA is put on that one.

    Args:
        checkpoint: of `resolve`.
        given: a diffusers folder, a checkpoint in one file, or a hub id, with or without revision.

    Raises:
        ValueError: where the checkpoint says itself what its base is, or `given` is no pipeline by itself.
    """
    if checkpoint.base is not None:
        raise ValueError(
            f"--base {given}: {checkpoint.source} says itself what its base is, {checkpoint.base}"
        )
    try:
        base = resolve(given)
    except ValueError as error:
        raise ValueError(f"--base: {error}") from None
    if base.model != EXTERNAL or base._lora_file():
        raise ValueError(
            f"--base {given} is a run or a LoRA: give a folder in diffusers layout, a checkpoint in one file or a hub id"
        )
    name = str(base.weights or base.source)
    told = Checkpoint("base", checkpoint.model, 0, (), name, None, name, base.revision)
    if checkpoint._lora_file():
        return replace(checkpoint, told=told, base=name, revision=base.revision)
    return replace(checkpoint, told=told)


def declared(checkpoint: Checkpoint, name: str | None, trained_on: Sequence[str]) -> Checkpoint:
    """Somebody's checkpoint with what a user says of it; as it was where nothing is said.

    Args:
        checkpoint: of `resolve`.
        name: what its rows and pictures are called.
        trained_on: scorers that it was trained on.

    Raises:
        ValueError: where it is a run of this project, which says both itself.
    """
    for option, given in (("--name", name), ("--trained-on", ", ".join(trained_on))):
        if given and checkpoint.model != EXTERNAL:
            raise ValueError(
                f"{option} {given}: {checkpoint.source} is a run of this project, whose card says its name and what it was trained on: "
                "leave the option out"
            )
    return replace(
        checkpoint, experiment=name or checkpoint.experiment, rewards=tuple(trained_on) or checkpoint.rewards
    )


def _name_of(file: Path) -> str:
    """What a file is called: a LoRA as diffusers names all of them is called as its folder."""
    return file.absolute().parent.name if file.stem == Path(LORA_FILE).stem else file.stem


def _foreign(name: str, weights: Path | None, source: str) -> Checkpoint:
    clean = _NAME.sub("_", name).strip("_") or "model"
    return Checkpoint(clean, EXTERNAL, 0, (), None, weights, source)


def snapshot_folder(run: Path, iteration: int) -> Path:
    """Where a run's snapshot after that many iterations lies."""
    return run / SNAPSHOTS / f"{iteration:06d}"


def snapshots_of(run: Path) -> list[int]:
    """Iterations of a run of which there is a snapshot, in order."""
    cards = (run / SNAPSHOTS).glob(f"*/{SNAPSHOT_CARD}")
    return sorted(int(card.parent.name) for card in cards if re.fullmatch(r"\d{6,}", card.parent.name))


def _of_iteration(run: str, iteration: str) -> Checkpoint:
    """What RUN@ITERATION is: the base, a snapshot, or the finished run.

    Raises:
        ValueError: it is none of them.
    """
    finished, there = resolve(run), snapshots_of(Path(run))
    number = int(iteration) if re.fullmatch(r"\d{1,9}", iteration) else -1
    if number == finished.iterations:
        return finished
    if number == 0:
        return finished.its_base()
    if number not in there:
        kept = f"it has {', '.join(map(str, there))}" if there else "it has none"
        raise ValueError(
            f"{run}@{iteration}: {run} has no snapshot of that iteration, {kept}: `--set snapshots_every=10` keeps some while a run is trained"
        )
    folder = snapshot_folder(Path(run), number)
    snapshot = replace(
        finished,
        experiment=f"{finished.experiment}@{number}",
        source=f"{run}@{number}",
        iterations=number,
    )
    if (folder / LORA_FILE).is_file():
        return replace(snapshot, weights=folder)
    return replace(snapshot, unet=folder)  # the rest of the pipeline stands in the run directory


def _from_run(folder: Path) -> Checkpoint:
    try:
        card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        model, seed = card["model"], int(card["seed"])
        experiment = card["name"].removesuffix(f"-{model}-{seed}")
        for part in (experiment, model):  # they name folders
            if not _PART.fullmatch(part):
                raise ValueError(f"{part!r} cannot be part of a run's name")
        if seed < 0:
            raise ValueError(f"seed is {seed}, and rows have one from 0 on")
        if isinstance(card["rewards"], str):
            raise TypeError("rewards is not a list")
        if not isinstance(card["base"], str | None):
            raise TypeError(f"base is {card['base']!r}, and no text")
        rewards, settings = tuple(card["rewards"]), card.get("experiment", {})
        domain = settings.get("domain", "miniature")  # before `domain` there was nothing else
        return Checkpoint(
            experiment,
            model,
            seed,
            rewards,
            card["base"],
            folder,
            str(folder),
            settings.get("revision"),
            domain,
            settings.get("iterations"),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{folder / 'run.json'} is damaged or of another program: {first_line(error)}"
        ) from error
