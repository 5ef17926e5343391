"""The real classes of the detectors, built small from their configurations with random weights, as folders of weights; and pictures.

No pretrained detector is small enough for a test, so these show the path from picture and name to number, not that a cat is found.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Owlv2Config,
    Owlv2ForObjectDetection,
)
from transformers.models.grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2 import Owlv2ImageProcessorPil

from evals import weights as the_weights
from evals.miniature import weights_folder
from evals.scorers._clip import OPENAI_VIT_L_14
from evals.scorers._detectors import GROUNDING_DINO, MASK2FORMER, OWLV2, Mask2Former
from evals.weights import Weights

CLIP = "tiny-geneval"

SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 64}


def save_owlv2(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = weights_folder("pipeline") / "tokenizer"
    for name in ("vocab.json", "merges.txt"):  # as on the hub, without a tokenizer.json
        shutil.copy(tokens / name, folder / name)
    words = {"vocab_size": 489, "bos_token_id": 487, "eos_token_id": 488, "max_position_embeddings": 32}
    size = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={"hidden_size": 16, **words, **size},
        vision_config={"hidden_size": 24, "image_size": 48, "patch_size": 8, **size},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config)
    loosen(model, 1.0)
    torch.nn.init.normal_(model.owlv2.text_model.embeddings.token_embedding.weight, std=3)  # words differ
    torch.nn.init.normal_(model.owlv2.vision_model.embeddings.patch_embedding.weight, std=0.5)  # patches too
    for part, bias in ((model.class_head.logit_scale, 7.0), (model.class_head.logit_shift, -0.1)):
        torch.nn.init.normal_(part.weight, std=0.02)  # so that confidences spread about the threshold
        torch.nn.init.constant_(part.bias, bias)
    model.save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "!"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 32, **special})
    )


# fmt: off
WORDS = ["cat", "dog", "ball", "base", "##ball", "bat", "fire", "truck", "rifle", "apple", "ham", "##i", "melon"]
# fmt: on


def save_grounding_dino(folder: Path) -> None:
    torch.manual_seed(0)
    vocabulary = [f"[unused{i}]" for i in range(1050)]
    # where BERT's vocabulary has them, and the model expects them
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
    for place, token in special.items():
        vocabulary[place] = token
    vocabulary[200 : 200 + len(WORDS)] = WORDS
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config={"model_type": "swin", "out_indices": [2, 3, 4], **SWIN},
        text_config={
            "model_type": "bert", "vocab_size": 1050, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32
        },
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=12, max_text_len=32,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config)
    loosen(model, 0.2)
    model.save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 128}).save_pretrained(folder)


def save_mask2former(folder: Path) -> None:
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config={"model_type": "swin", "out_features": ["stage1", "stage2", "stage3", "stage4"], **SWIN},
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=2,
        decoder_layers=3, num_attention_heads=2, num_queries=12, num_labels=80,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    loosen(model, 0.5)
    module = model.model.transformer_module
    for part in (module.queries_features, module.queries_embedder, model.class_predictor):
        torch.nn.init.normal_(part.weight, std=2)  # so that queries differ and some are certain of a class
    for layer in module.decoder.layers:
        torch.nn.init.normal_(layer.cross_attn.out_proj.weight, std=0.02)
        torch.nn.init.normal_(layer.self_attn.out_proj.weight, std=0.02)
    model.save_pretrained(folder)


def loosen(model: torch.nn.Module, scale: float) -> None:
    """Add noise to all weights: as they are made, many are 0 or so small that nothing depends on them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 1
            weight += torch.randn(weight.shape, generator=generator) * scale / fan_in**0.5


def save_clip(folder: Path) -> None:
    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
    }
    (folder / f"{CLIP}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{CLIP}.json")
    model = open_clip.CLIP(**open_clip.get_model_config(CLIP))
    with torch.no_grad():
        for weight in model.parameters():  # so much that pictures differ in what they are said to be
            weight += 0.3 * torch.randn(weight.shape)
    save_file(model.state_dict(), folder / OPENAI_VIT_L_14.files[0])


def save_all(root: Path) -> None:
    """Lay them out as T2I_WEIGHTS_DIR."""
    makers = {
        OWLV2: save_owlv2,
        GROUNDING_DINO: save_grounding_dino,
        MASK2FORMER: save_mask2former,
        OPENAI_VIT_L_14: save_clip,
    }
    for weights, save in makers.items():
        (root / weights.repository).mkdir(parents=True)
        save(root / weights.repository)
        assert all((root / weights.repository / file).is_file() for file in weights.files)


def use(root: Path, monkeypatch: pytest.MonkeyPatch, *more: Weights) -> None:
    """Have scorers find them and those in `more`, whatever hashes are expected, and nothing elsewhere; all terms are accepted for the time of a test."""
    for weights in (OWLV2, GROUNDING_DINO, *more):
        monkeypatch.setitem(vars(weights), "sha256", ())
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(the_weights, "_accepted", {MASK2FORMER.repository, OPENAI_VIT_L_14.repository})
    monkeypatch.setattr(Mask2Former, "short", 64)
    monkeypatch.setattr(Mask2Former, "long", 96)


def pictures(count: int, height: int = 40, width: int = 40) -> torch.Tensor:
    """8-bit pictures of blotches."""
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(s).resize((width, height), Image.Resampling.NEAREST)) for s in small]
    return torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() / 255


def as_pil(image_CHW: torch.Tensor) -> Image.Image:
    return Image.fromarray((image_CHW * 255).round().byte().permute(1, 2, 0).numpy())
