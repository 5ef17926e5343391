"""What the last bits of a model's numbers depend on beside its weights and inputs: the device's settings, the precision, and the shape of the batch.

A model that is given one image alone and the same among others may answer differently in the last bit. So every call has one shape: micro-batches of a fixed
size, the last one padded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def exact_device() -> torch.device:
    """The GPU where there is one, set such that the same command gives the same numbers, and that float32 means float32, not TF32.

    A scorer may need an operation that has no deterministic form, hence only a warning; `train.policy` is strict with the denoiser's gradient.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # PyTorch would overwrite all new memory first: 10 to 20 % of the time, for programs that read what they have not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)  # its gradient is another one each time
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """Context in which a float32 model's matrix products and convolutions are of that precision."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def micro_batches(size: int, micro_batch: int) -> Iterator[slice]:
    """Slices of at most `micro_batch` rows that cover `size` rows."""
    for start in range(0, size, micro_batch):
        yield slice(start, min(start + micro_batch, size))


def padded(call: Callable[..., Any], rows: int, *tensors: Tensor) -> Any:
    """Call a function of batches on exactly `rows` rows, the last one again for those that are missing; the caller cuts the result.

    Again, not zero: what is far from all that is ever drawn can overflow.
    """
    return call(
        *(
            t if len(t) == rows else torch.cat([t, t[-1:].expand(rows - len(t), *t.shape[1:])])
            for t in tensors
        )
    )
