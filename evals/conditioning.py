"""What a denoiser is told of a prompt: the text encoders of Stable Diffusion 1 and 2, and SDXL's two with the picture's size.

Tested equal to `encode_prompt` of diffusers' pipelines. Shapes: `B` images, `L D` text tokens and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evals.cut import what_is_cut
from prompts import Prompt

EMBEDDING_CACHE_BYTES = 256 * 2**20
"""Prompts repeat and the text encoders are frozen: a bounded cache of what they say."""
READ_AT_ONCE = {"cpu": 1, "cuda": 16}
"""Texts that a text encoder reads at once: a GPU is not busy with one."""


class Conditioning(NamedTuple):
    """What the denoiser is told of B prompts. Without the last two it is Stable Diffusion 1 or 2, with them SDXL."""

    text_BLD: Tensor
    """Embedding of every token, of both text encoders side by side where there are two."""
    pooled_BD: Tensor | None = None
    """Embedding of the whole text (SDXL)."""
    size_BK: Tensor | None = None
    """Height and width of the picture as if it were of training data, where it is cut, and its height and width again: K = 6 (SDXL)."""

    def columns(self) -> tuple[Tensor, ...]:
        """The tensors that there are, one row per image; `Conditioning(*columns)` is the same again."""
        return tuple(column for column in self if column is not None)

    def part(self, rows: slice) -> Conditioning:
        """Some of the images."""
        return Conditioning(*(column[rows] for column in self.columns()))


class PromptEncoder:
    """Texts to what a pipeline's frozen text encoders make of them, cached.

    They read as many at once each time, the last one again for those that are missing: an embedding cannot depend on how many
    others are asked for, or on which.
    """

    def __init__(
        self, towers: Sequence[tuple[Any, nn.Module]], size: tuple[int, int] | None, zero_empty: bool = False
    ) -> None:
        """Keep the text encoders.

        Args:
            towers: tokenizer and text encoder, one pair (Stable Diffusion 1 and 2) or two (SDXL).
            size: height and width of a picture in pixels, which SDXL's denoiser is told; None where it is not.
            zero_empty: whether the empty prompt is all zeros (SDXL: `force_zeros_for_empty_prompt`).
        """
        self.towers = list(towers)
        self.size = size
        self.zero_empty = zero_empty
        self._cache: dict[str, tuple[Tensor, ...]] = {}
        self._bytes = 0

    @classmethod
    def of(cls, pipeline: Any) -> PromptEncoder:
        """Take tokenizers and text encoders of a `StableDiffusionPipeline` or a `StableDiffusionXLPipeline`."""
        if not is_xl(pipeline):
            return cls(towers(pipeline), None)
        height, width = (pipeline.vae_scale_factor * side for side in latent_shape(pipeline.unet)[1:])
        zero_empty = bool(pipeline.config.force_zeros_for_empty_prompt)
        return cls(towers(pipeline), (height, width), zero_empty)

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Of B texts, float32 on the encoders' device; longer texts are cut at the tokenizer's length."""
        found = {text: self._cache[text] for text in texts if text in self._cache}
        if missing := [text for text in dict.fromkeys(texts) if text not in found]:
            found |= self._read(missing)
        columns = zip(*(found[text] for text in texts), strict=True)
        return Conditioning(*(torch.stack(column) for column in columns))

    def unconditional(self) -> Conditioning:
        """Of the empty prompt that guidance leads away from, one row."""
        empty = self([""])
        if not self.zero_empty:
            return empty
        assert empty.pooled_BD is not None
        return empty._replace(
            text_BLD=torch.zeros_like(empty.text_BLD), pooled_BD=torch.zeros_like(empty.pooled_BD)
        )

    def what_is_cut(self, name: str, prompts: Sequence[Prompt]) -> str:
        """A sentence on prompts of a set that are longer than the tokenizer's length (see `evals.cut`); empty where there is none."""
        limit = self.towers[0][0].model_max_length
        return what_is_cut(name, prompts, self.is_cut, f"the {limit} tokens that the model reads")

    def is_cut(self, prompts: Sequence[Prompt]) -> list[bool]:
        """For each prompt whether it is longer than the tokenizer's length."""
        tokenizer = self.towers[0][0]
        tokens = tokenizer([prompt.text for prompt in prompts], truncation=False, verbose=False).input_ids
        return [len(one) > tokenizer.model_max_length for one in tokens]

    def _read(self, texts: list[str]) -> dict[str, tuple[Tensor, ...]]:
        """The columns of each text's `Conditioning`, without the batch; kept, for as long as there is room."""
        at_once = READ_AT_ONCE.get(next(self.towers[0][1].parameters()).device.type, 1)
        found: dict[str, tuple[Tensor, ...]] = {}
        for start in range(0, len(texts), at_once):
            part = texts[start : start + at_once]
            columns = self._encode([*part, *part[-1:] * (at_once - len(part))])
            # clones: a row of a batch would keep the whole batch
            found |= {text: tuple(column[row].clone() for column in columns) for row, text in enumerate(part)}
        for text, columns in found.items():
            self._bytes += _bytes_of(columns)
            while self._bytes > EMBEDDING_CACHE_BYTES and self._cache:
                self._bytes -= _bytes_of(self._cache.pop(next(iter(self._cache))))
            self._cache[text] = columns
        return found

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """The columns of a `Conditioning`."""
        if self.size is None:
            return (_last_hidden_state(*self.towers[0], texts),)
        read = [_penultimate_and_pooled(*tower, texts) for tower in self.towers]
        tokens = torch.cat([hidden for hidden, _ in read], -1)
        # as StableDiffusionXLPipeline by default: a picture that was neither resized nor cut
        size = torch.tensor([*self.size, 0, 0, *self.size], dtype=torch.float32, device=tokens.device)
        return tokens, read[-1][1], size.expand(len(texts), -1)


def is_xl(pipeline: Any) -> bool:
    """Whether the pipeline has SDXL's second text encoder."""
    return getattr(pipeline, "text_encoder_2", None) is not None


def towers(pipeline: Any) -> list[tuple[Any, Any]]:
    """Tokenizer and text encoder: one pair, or SDXL's two."""
    first = (pipeline.tokenizer, pipeline.text_encoder)
    return [first, (pipeline.tokenizer_2, pipeline.text_encoder_2)] if is_xl(pipeline) else [first]


def text_encoders(pipeline: Any) -> list[Any]:
    """The one, or SDXL's two."""
    return [encoder for _, encoder in towers(pipeline)]


def latent_shape(unet: Any) -> tuple[int, int, int]:
    """(C, H, W) of one latent of a denoiser."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(unet.config.in_channels), int(height), int(width)


def _bytes_of(columns: Sequence[Tensor]) -> int:
    return sum(column.numel() * column.element_size() for column in columns)


def _tokens(tokenizer: Any, text_encoder: nn.Module, texts: Sequence[str]) -> Any:
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens.to(next(text_encoder.parameters()).device)


def _last_hidden_state(tokenizer: Any, text_encoder: nn.Module, texts: Sequence[str]) -> Tensor:
    """As StableDiffusionPipeline: padding is attended to, unless the encoder's config says otherwise. [B, L, D]."""
    tokens = _tokens(tokenizer, text_encoder, texts)
    masked = getattr(getattr(text_encoder, "config", None), "use_attention_mask", False)
    embedding: Tensor = text_encoder(
        tokens.input_ids, attention_mask=tokens.attention_mask if masked else None
    )[0]
    return embedding.float()


def _penultimate_and_pooled(
    tokenizer: Any, text_encoder: nn.Module, texts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """As StableDiffusionXLPipeline: the last layer but one [B, L, D], and the texts' own embeddings [B, D], of which it uses the second encoder's."""
    output = text_encoder(_tokens(tokenizer, text_encoder, texts).input_ids, output_hidden_states=True)
    return output.hidden_states[-2].float(), output[0].float()
