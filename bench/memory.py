"""How much memory a process takes, of the machine and of a GPU.

Imports the standard library only, and torch where it is asked for a GPU: the environment of `bench.peers`, in which the rest of the project cannot be imported, reads it too.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_mib(pid: int | str = "self") -> float | None:
    """Most resident memory of a process since it began or `forget_peak`, MiB; None where the system does not say, which only Linux does.

    Not `getrusage`: its number is inherited, so that a small process started by a large one has the large one's.
    """
    return _status(pid, "VmHWM")


def resident_mib(pid: int | str = "self") -> float | None:
    """Resident memory of a process now, MiB; None where the system does not say."""
    return _status(pid, "VmRSS")


def _status(pid: int | str, field: str) -> float | None:
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def forget_peak(pid: int | str = "self") -> None:
    """From here on the peak is that of what comes; without effect where the system does not say one."""
    switch = Path(f"/proc/{pid}/clear_refs")
    if switch.is_file():
        switch.write_text("5")


def gpu_peak_mib() -> float | None:
    """Most memory of the GPU that this process has taken, MiB; None without one. Also what it keeps for later, and what recordings keep: nobody else can have it."""
    import torch

    return torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_available() else None


def own_peak_mib() -> float:
    """Most memory that this process has held since `forget_own_peak`, MiB: of the GPU where there is one, what it keeps for later aside, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if (resident := peak_mib()) is not None:
        return resident
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def forget_own_peak() -> None:
    """From here on the peak of this process, and of the GPU where there is one, is that of what comes; without effect on the CPU of a system that does not say one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    forget_peak()
