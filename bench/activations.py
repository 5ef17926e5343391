"""What a forward and backward pass of each full-size denoiser needs of memory beside its weights: `python -m bench.activations`.

Counted, not measured: PyTorch's own tracker follows every allocation of the pass on tensors without content, on any machine. It counts for the CPU's kernels in bf16
autocast, whose attention, like a GPU's, keeps no matrix of all pairs; a GPU's workspaces come on top. Two micro-batches give the slope, which is
what a micro-batch takes for each denoiser evaluation, and the constant, which is mostly the copy of the weights in bf16. Written to
`results/bench/activations.json`, from which `train.resources` tells the memory of a run.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from tqdm import tqdm

from evals.architectures import ARCHITECTURES, Architecture
from evals.files import write_text
from train.records import ACTIVATIONS


def peak_bytes(architecture: Architecture, evaluations: int, checkpointing: bool) -> int:
    """Most memory that a pass holds at once beside weights and gradients.

    Args:
        architecture: whose denoiser it is.
        evaluations: latents in the batch, both branches of guidance counted.
        checkpointing: whether activations are computed again in the backward pass.
    """
    from diffusers import UNet2DConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    config = architecture.unet
    side = config["sample_size"]
    with FakeTensorMode():
        unet = UNet2DConditionModel(**config)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        for (
            weight
        ) in unet.parameters():  # those of an earlier micro-batch: the peak is that of what comes on top
            weight.grad = torch.zeros_like(weight)
        tracker = MemTracker()
        tracker.track_external(unet)
        told: dict[str, Any] = {
            "encoder_hidden_states": torch.randn(evaluations, 77, config["cross_attention_dim"])
        }
        if "addition_embed_type" in config:
            pooled = torch.randn(evaluations, 1280)
            told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.randn(evaluations, 6)}
        latents = torch.randn(evaluations, 4, side, side)
        with tracker:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = unet(latents, torch.tensor(500), return_dict=False, **told)[0]
            output.float().sum().backward()
        (kinds,) = tracker.get_tracker_snapshot("peak").values()
    count = {str(kind): size for kind, size in kinds.items()}
    weights = sum(size for kind, size in count.items() if kind.endswith((".PARAM", ".BUFFER", ".GRAD")))
    return int(count["Total"] - weights)


def main() -> None:
    """Count what is not in the file yet."""
    found: dict[str, Any] = (
        json.loads(ACTIVATIONS.read_text(encoding="utf-8")) if ACTIVATIONS.is_file() else {}
    )
    cases = [(name, way) for name in ARCHITECTURES for way in ("plain", "checkpointing")]
    for name, way in tqdm(cases, file=sys.stderr):
        if way in found.get(name, {}):
            continue
        one, two = (peak_bytes(ARCHITECTURES[name], n, way == "checkpointing") for n in (2, 4))
        each = (two - one) / 2
        found.setdefault(name, {})[way] = {
            "bytes": round(one - 2 * each),
            "bytes_per_evaluation": round(each),
        }
        ACTIVATIONS.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n", ACTIVATIONS)


if __name__ == "__main__":
    main()
