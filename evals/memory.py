"""What is told where a device has too little memory."""

from __future__ import annotations

import torch


def too_little(error: torch.OutOfMemoryError, what: str = "") -> str:
    """The beginning of a sentence: that it was too little, and how much was asked of how much.

    Args:
        error: of torch, which says more: where the rest of the memory is, sentence by sentence.
        what: needed it, where that is known.
    """
    said = ". ".join(" ".join(str(error).split()).split(". ")[:3]).rstrip(".")
    return f"{what or 'this'} needs more memory than there is ({said})"
