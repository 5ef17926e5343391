"""What the scorers on CLIP share: its two towers, filled with others' weights, and the cosine of a picture and its prompt (Radford et al., arXiv 2103.00020).

Nothing is downloaded but the files that `Weights` names, and a tower takes them only where every tensor of it is there, and no other.
Pictures and prompts go through it in bounded parts, a prompt that several pictures have once. The towers are frozen: a gradient, where one is
asked for, is that of the pictures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.scorers import Scope, _preprocess, version_of
from evals.scorers._preprocess import preprocess
from evals.weights import Weights, read_tensors

CONTEXT = 77
"""Tokens that a text tower reads, the first and the last of a text among them; what is longer is cut."""

PART = 32
"""Pictures or prompts that go through a tower at once: 32 pictures take the largest tower here, ViT-H/14, 0.2 GiB for its widest activation."""

OPENAI_VIT_L_14 = Weights(
    "timm/vit_large_patch14_clip_224.openai",
    ("open_clip_model.safetensors",),
    licence="unclear: MIT as OpenAI's code, Apache-2.0 on the page of this copy, while OpenAI's model card has any deployed use out of scope",
    free=False,
    revision="18d0535469bb561bf468d76c1d73aa35156c922b",
    sha256=("9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",),
)
"""OpenAI's CLIP ViT-L/14 in open_clip's form. It was trained with QuickGELU: its architecture is "ViT-L-14-quickgelu"."""


def clip_version(file: str, weights: Sequence[Weights]) -> str:
    """Version of a scorer that works on a CLIP."""
    return version_of(Path(file), Path(__file__), Path(str(_preprocess.__file__)), *weights)


Prepare = Callable[[Tensor, int], Tensor]
"""Pictures in [0, 1] of any size and the side that the tower takes, to what it is shown."""


class Clip(Protocol):
    """Two towers on a device, in float32, frozen."""

    device: torch.device | str
    size: int
    """Side of the pictures that it takes, in pixels."""

    def __init__(self, architecture: Any, path: Path, device: torch.device | str) -> None: ...

    def see(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings [B, D] of prepared pictures."""

    def read(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of texts, cut to the tokens that fit."""


def cosine(clip: Clip, images_BCHW: Tensor, texts: Sequence[str], prepare: Prepare = preprocess) -> Tensor:
    """Cosine of each picture's embedding and its text's, float32 [B] on the CPU."""
    read_BD = text_features(clip, texts)
    return (image_features(clip, images_BCHW, prepare) * read_BD).sum(-1).float().cpu()


def image_features(clip: Clip, images_BCHW: Tensor, prepare: Prepare = preprocess) -> Tensor:
    """Embeddings of unit length, [B, D]."""
    parts = [
        clip.see(prepare(part.to(clip.device, torch.float32), clip.size)) for part in images_BCHW.split(PART)
    ]
    return F.normalize(torch.cat(parts), dim=-1)


def text_features(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Embeddings of unit length, [B, D]; equal texts are encoded once."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    unique = list(place)
    parts = [clip.read(unique[i : i + PART]) for i in range(0, len(unique), PART)]
    return F.normalize(torch.cat(parts), dim=-1)[[place[text] for text in texts]]


class OpenClip:
    """A CLIP of open_clip's, by the name of its configuration there."""

    def __init__(self, architecture: str, path: Path, device: torch.device | str) -> None:
        import open_clip
        from accelerate import init_empty_weights

        with init_empty_weights():
            model = open_clip.CLIP(**open_clip.get_model_config(architecture))
        self.model = fill(model, path, architecture).to(device)
        self.device = device
        self.size: int = model.visual.image_size[0]

    def see(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings [B, D] of prepared pictures."""
        seen: Tensor = self.model.encode_image(pixels_BCHW)
        return seen

    def read(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of texts, cut to the tokens that fit."""
        read: Tensor = self.model.encode_text(tokenizer()(list(texts)).to(self.device))
        return read


@cache
def tokenizer() -> Any:
    """The one of open_clip, which OpenAI's, LAION's and HPSv2's weights were trained with."""
    from open_clip import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT)


def cut_tokens(texts: Sequence[str]) -> list[int]:
    """How many tokens of each text do not fit and are not read; needs no weights."""
    return [max(0, len(tokenizer().encode(text)) + 2 - CONTEXT) for text in texts]


AnyClip = TypeVar("AnyClip", bound=Clip)
_in_use: WeakValueDictionary[tuple[type, str, Path, str], Any] = WeakValueDictionary()


def load_clip(
    kind: type[AnyClip], architecture: Any, weights: Weights, device: torch.device | str
) -> AnyClip:
    """Fetch and open a CLIP; scorers that work on the same one at the same time share it.

    Args:
        kind: whose form the weights have.
        architecture: as that takes it.
        weights: one file.
        device: where it is to work.

    Raises:
        ValueError: see `Weights.paths` and `fill`.
    """
    (path,) = weights.paths()
    key = (kind, str(architecture), path, str(device))
    clip: AnyClip | None = _in_use.get(key)
    if clip is None:
        clip = _in_use[key] = kind(architecture, path, device)
    return clip


class ClipScorer:
    """What the scorers on a CLIP have in common; the first of their weights are the CLIP's."""

    higher_is_better: bool | None = True
    scope: Scope = "image"
    weights: tuple[Weights, ...]
    kind: type[Any] = OpenClip
    """Whose form those weights have."""
    architecture: Any
    """As `kind` takes it."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        return clip_version(inspect.getfile(type(self)), self.weights)

    @cached_property
    def clip(self) -> Any:
        return load_clip(self.kind, self.architecture, self.weights[0], self.device)


def fill(model: nn.Module, path: Path, architecture: str) -> Any:
    """Give a model that was made without values those of a file: float32, frozen, in evaluation mode.

    Args:
        model: its parameters may be on the device "meta".
        path: of a file of tensors.
        architecture: what a message calls the model.

    Raises:
        ValueError: the file is damaged, no file of tensors, or of another model.
    """
    kept = model.state_dict()
    computed = {name for name, _ in model.named_buffers()} - kept.keys()  # older libraries stored those too
    tensors = {name: value for name, value in read_tensors(path).items() if name not in computed}
    if differences := _differences(kept, tensors):
        raise ValueError(f"{path} does not hold the weights of {architecture}: {differences}")
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps tensors from being a model's, with an example of each kind; empty where nothing does."""
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "foreign": [name for name in found if name not in wanted],
        "of another shape": [
            name for name in wanted if name in found and found[name].shape != wanted[name].shape
        ],
    }
    more = {kind: f" and {len(names) - 1} more" if len(names) > 1 else "" for kind, names in kinds.items()}
    return "; ".join(f"{kind}: {names[0]}{more[kind]}" for kind, names in kinds.items() if names)
