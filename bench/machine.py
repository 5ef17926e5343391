"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from train.card import git_commit
from train.records import device_name, file_of, processor


@dataclass(frozen=True)
class Machine:
    """Where and when, as a record has it."""

    device: str
    """`train.records.device_name`: what records are kept apart by."""
    processor: str
    cores: int
    threads: int
    load: float
    """Load average of the last minute as the measurement begins: above a half of `cores` others were at work."""
    date: str
    commit: str
    python: str
    torch: str

    @classmethod
    def here(cls) -> Machine:
        """This one, now."""
        commit, changed = git_commit()
        return cls(
            device=device_name(),
            processor=processor(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            load=round(os.getloadavg()[0], 2),
            date=datetime.now().astimezone().isoformat(timespec="minutes"),
            commit=(commit or "unknown") + (" and changes" if changed else ""),
            python=platform.python_version(),
            torch=torch.__version__,
        )

    def __str__(self) -> str:
        """For a reader."""
        return f"{self.device}, {self.cores} cores, load {self.load}, {self.date}, torch {self.torch}, commit {self.commit[:12]}"


def record_path(folder: Path, ending: str = ".json") -> Path:
    """Where the record of this device lies in a folder: its name, and what the file's ends in."""
    named = file_of(device_name(), folder)
    return named.with_name(named.stem + ending)
