"""Tiny pipelines of each family with random weights, and the reverse of what diffusers does to a checkpoint in one file: tensors by the names of CompVis and Stability AI.

Written from the original modules' structure (`openaimodel.UNetModel`, `autoencoder.AutoencoderKL`, open_clip's text tower), so that opening such a file is tested
against something else than the function that opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from evals import families
from evals.architectures import Architecture
from evals.families import Family

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
UNET, VAE = "model.diffusion_model.", "first_stage_model."


def tiny(family: Family) -> Family:
    """The family with models as deep as they are, but a fortieth as wide, and with two layers in its text encoders."""
    xl = len(family.padding) == 2

    def narrow(whole: Architecture) -> tuple[dict[str, Any], dict[str, Any]]:
        unet = {
            "sample_size": 8,
            "block_out_channels": tuple(width // 40 for width in whole.unet["block_out_channels"]),
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "cross_attention_dim": 8 + 16 * xl,
        }
        if xl:
            unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 6 * 8}
        return unet, {"sample_size": 64, "block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4}

    text = [
        {
            "hidden_size": width,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "projection_dim": width,
        }
        for width in (8, 16)
    ]
    small = {}
    for prediction, whole in family.architectures.items():
        unet, vae = narrow(whole)
        small[prediction] = replace(
            whole,
            unet=whole.unet | unet,
            vae=whole.vae | vae,
            text_encoders=tuple(config | text[i] for i, config in enumerate(whole.text_encoders)),
            pixels=64,
        )
    return replace(family, architectures=small)


def build(family: Family, prediction: str = "epsilon") -> Any:
    """A pipeline of it with random weights."""
    architecture = family.architectures[prediction]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts: dict[str, Any] = architecture.models()
    for name, filling in zip(("tokenizer", "tokenizer_2"), family.padding, strict=False):
        parts[name] = families.clip_tokenizer(filling)
    parts["scheduler"] = diffusers.DDIMScheduler(**families.noise_levels(architecture, prediction, False))
    if len(family.padding) == 2:
        return diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    off = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **off)


def models(pipeline: Any) -> dict[str, Any]:
    """Its models by their parts' names."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def save_original(
    pipeline: Any,
    path: Path,
    metadata: dict[str, str] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a pipeline as one file in the original layout."""
    save_file(original_tensors(pipeline) | dict(more or {}), path, metadata)
    return path


def original_tensors(pipeline: Any) -> dict[str, Tensor]:
    """Every tensor of a pipeline's models, by its original name."""
    xl = getattr(pipeline, "text_encoder_2", None) is not None
    tensors = _unet(pipeline.unet) | _vae(pipeline.vae)
    if xl:
        tensors |= _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.text_model.")
        tensors |= _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    elif pipeline.unet.config.use_linear_projection:  # Stable Diffusion 2
        tensors |= _open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        tensors |= _clip(pipeline.text_encoder, "cond_stage_model.transformer.text_model.")
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _named(module: nn.Module, prefix: str, names: dict[str, str] | None = None) -> dict[str, Tensor]:
    """A module's tensors under a prefix, its children under other names."""
    found = {}
    for name, tensor in module.state_dict().items():
        child, _, parameter = name.rpartition(".")
        found[f"{prefix}{(names or {}).get(child, child)}.{parameter}".replace("..", ".")] = tensor
    return found


def _unet(unet: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    embedding = {"linear_1": "0", "linear_2": "2"}
    found |= _named(unet.time_embedding, f"{UNET}time_embed.", embedding)
    if unet.config.addition_embed_type == "text_time":
        found |= _named(unet.add_embedding, f"{UNET}label_emb.0.", embedding)
    found |= _named(unet.conv_in, f"{UNET}input_blocks.0.0")
    place = 1
    for block in unet.down_blocks:
        for layer, resnet in enumerate(block.resnets):
            found |= _named(resnet, f"{UNET}input_blocks.{place}.0.", RESNET)
            if hasattr(block, "attentions"):
                found |= _named(block.attentions[layer], f"{UNET}input_blocks.{place}.1.")
            place += 1
        for downsampler in block.downsamplers or ():
            found |= _named(downsampler.conv, f"{UNET}input_blocks.{place}.0.op")
            place += 1
    middle = unet.mid_block
    found |= _named(middle.resnets[0], f"{UNET}middle_block.0.", RESNET)
    found |= _named(middle.attentions[0], f"{UNET}middle_block.1.")
    found |= _named(middle.resnets[1], f"{UNET}middle_block.2.", RESNET)
    place = 0
    for block in unet.up_blocks:
        for layer, resnet in enumerate(block.resnets):
            found |= _named(resnet, f"{UNET}output_blocks.{place}.0.", RESNET)
            if hasattr(block, "attentions"):
                found |= _named(block.attentions[layer], f"{UNET}output_blocks.{place}.1.")
            place += 1
        for upsampler in block.upsamplers or ():  # the last module of the block's last layer
            found |= _named(
                upsampler.conv, f"{UNET}output_blocks.{place - 1}.{1 + hasattr(block, 'attentions')}.conv"
            )
    found |= _named(unet.conv_norm_out, f"{UNET}out.0")
    found |= _named(unet.conv_out, f"{UNET}out.2")
    return found


def _vae(vae: Any) -> dict[str, Tensor]:
    shortcut = {"conv_shortcut": "nin_shortcut"}
    found = _named(vae.quant_conv, f"{VAE}quant_conv") | _named(vae.post_quant_conv, f"{VAE}post_quant_conv")
    for half, blocks in (("encoder", vae.encoder.down_blocks), ("decoder", vae.decoder.up_blocks)):
        module, prefix = getattr(vae, half), f"{VAE}{half}."
        for name in ("conv_in", "conv_out"):
            found |= _named(getattr(module, name), f"{prefix}{name}")
        found |= _named(module.conv_norm_out, f"{prefix}norm_out")
        for number, resnet in enumerate(module.mid_block.resnets, start=1):
            found |= _named(resnet, f"{prefix}mid.block_{number}.", shortcut)
        attention = _named(module.mid_block.attentions[0], f"{prefix}mid.attn_1.", ATTENTION)
        # linear layers here, convolutions of one pixel there
        found |= {n: t[:, :, None, None] if t.ndim == 2 else t for n, t in attention.items()}
        for place, block in enumerate(blocks):
            at = f"{prefix}down.{place}." if half == "encoder" else f"{prefix}up.{len(blocks) - 1 - place}."
            for number, resnet in enumerate(block.resnets):
                found |= _named(resnet, f"{at}block.{number}.", shortcut)
            for sampler in getattr(block, "downsamplers" if half == "encoder" else "upsamplers") or ():
                found |= _named(sampler.conv, f"{at}{'down' if half == 'encoder' else 'up'}sample.conv")
    return found


def _text(encoder: Any) -> dict[str, Tensor]:
    """A text encoder's tensors, whether transformers keeps them under `text_model` or not."""
    return {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}


def _clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in _text(encoder).items()}


def _open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    given = _text(encoder)
    found = {
        "positional_embedding": given["embeddings.position_embedding.weight"],
        "token_embedding.weight": given["embeddings.token_embedding.weight"],
    }
    if "text_projection.weight" in given:
        found["text_projection"] = given["text_projection.weight"].T
    for kind in ("weight", "bias"):
        found[f"ln_final.{kind}"] = given[f"final_layer_norm.{kind}"]
        for layer in range(encoder.config.num_hidden_layers):
            at, to = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            qkv = [given[f"{at}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{to}attn.in_proj_{kind}"] = torch.cat(qkv)
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{to}{theirs}.{kind}"] = given[f"{at}{ours}.{kind}"]
    return {prefix + name: tensor for name, tensor in found.items()}
