"""How the memory of a CPU is used, and what is told where a device has too little."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`, as its malloc.h numbers them."""
MOST_KEPT = 2**31 - 1
MMAPPED_ABOVE = (2**30, 2**25)
"""Bytes: what is wanted, and the most that older releases take."""


def keep_what_is_freed() -> None:
    """Have the C library keep freed memory for what comes next, where it would give it to the system and ask for it again, page by page.

    By itself glibc maps every block above 32 MiB anew and gives back what is free at the end of its heap, so that activations of one micro-batch after the other cost
    page faults: an iteration of 96 images in micro-batches of 48 on a CPU had 155,000, and takes .92 of the processor's time without them, at the same peak. A process then
    does not shrink after its peak. Nothing is done where the environment says how (MALLOC_..., GLIBC_TUNABLES), and of other C libraries.
    """
    is_told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_told or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
    for size in MMAPPED_ABOVE:
        if library.mallopt(M_MMAP_THRESHOLD, size):
            break


def too_little(error: torch.OutOfMemoryError, what: str = "") -> str:
    """The beginning of a sentence: that it was too little, and how much was asked of how much.

    Args:
        error: of torch, which says more: where the rest of the memory is, sentence by sentence.
        what: needed it, where that is known.
    """
    said = ". ".join(" ".join(str(error).split()).split(". ")[:3]).rstrip(".")
    return f"{what or 'this'} needs more memory than there is ({said})"
