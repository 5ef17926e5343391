"""How fast a GPU was: one file per device in `results/bench`, written by `make bench`, read by the plan of a run."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from evals.checkpoints import ROOT
from evals.files import write_text
from train.config import Experiment

FOLDER = ROOT / "results" / "bench"
ACTIVATIONS = FOLDER / "activations.json"
"""Counted by `python -m bench.activations`."""


@dataclass(frozen=True)
class Case:
    """What decides the speed of a run, beside the device."""

    architecture: str
    """A name in `evals.architectures`, or `miniature`."""
    precision: str
    lora: bool
    gradient_checkpointing: bool
    compiled: bool
    micro_batch: int
    """Images in a pass of the update."""
    decoder: str = "fp32"
    """Precision of the decoder."""
    cuda_graphs: bool = False

    @classmethod
    def of(cls, experiment: Experiment, architecture: str) -> Case:
        """That of an experiment."""
        update = experiment.update
        return cls(
            architecture,
            experiment.sampling.precision,
            experiment.lora is not None,
            update.gradient_checkpointing,
            update.compile,
            update.micro_batch,
            experiment.sampling.decoder_precision,
            update.cuda_graphs,
        )


@dataclass(frozen=True)
class Record:
    """A measurement of a case on a device."""

    case: Case
    rollout_seconds: float
    """Of a denoiser evaluation of one latent, without gradient."""
    update_seconds: float
    """Of one with its backward pass."""
    decoder_seconds: float
    """Of an image."""
    overhead: float
    """An iteration's time, divided by that of these calls and the reward's."""
    images_per_second: float
    """Of the iteration that was measured: `iteration` says of what."""
    iteration: str
    mfu: float | None
    """Share of the device's peak arithmetic that the iteration's matrix products use; None where the peak is not known."""
    peak_gib: float
    """Most memory in use, of the GPU, or of the process; where calls are recorded (`cuda_graphs`), taken of the GPU."""
    ratio_off: float
    """Largest |ratio - 1| before any update, at the step where it comes closest to `ratio_granted`."""
    ratio_granted: float
    """What rounding may do there (`train.gates`); 0 where nothing is rounded differently."""
    date: str
    commit: str
    torch: str


def device_name() -> str:
    """The GPU of this process, or the processor and how many threads work on it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def file_of(device: str, folder: Path = FOLDER) -> Path:
    """Where a device's records lie."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def read(device: str, folder: Path = FOLDER) -> list[Record]:
    """The records of a device; none where it was never measured.

    Raises:
        ValueError: naming the file, where it is damaged.
    """
    path = file_of(device, folder)
    return _opened(path)[1] if path.is_file() else []


def _opened(path: Path) -> tuple[str, list[Record]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kept = [Record(**(record | {"case": Case(**record["case"])})) for record in stored["records"]]
        return str(stored["device"]), kept
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or of another version ({error}): delete it, `make bench` makes it again"
        ) from error


def everything(folder: Path = FOLDER) -> list[tuple[str, list[Record]]]:
    """Every device that was measured, with its records.

    Raises:
        ValueError: naming the file, where one is damaged.
    """
    return [_opened(path) for path in sorted(folder.glob("*.json")) if path.name != ACTIVATIONS.name]


def add(device: str, record: Record, folder: Path = FOLDER) -> Path:
    """Keep a record in place of an earlier one of its case. Returns the file."""
    others = [kept for kept in read(device, folder) if kept.case != record.case]
    content = {"device": device, "records": [asdict(kept) for kept in (*others, record)]}
    path = file_of(device, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(content, indent=1) + "\n", path)
    return path


def nearest(records: list[Record], case: Case) -> Record | None:
    """The record of a case; where there is none, of another micro-batch, as that matters least, or with another decoder, which is a part of the time that the record names."""
    alike = [r for r in records if _but_for_what_matters_least(r.case, case) == case]
    return min(
        alike,
        key=lambda r: (r.case.decoder != case.decoder, abs(r.case.micro_batch - case.micro_batch)),
        default=None,
    )


def _but_for_what_matters_least(case: Case, other: Case) -> Case:
    """The case with the micro-batch and the decoder of the other."""
    return replace(case, micro_batch=other.micro_batch, decoder=other.decoder)
