"""Checkpoints that a kill or a full disk cannot break, and exact resuming. Safetensors and JSON, never pickle.

    <run>/state/latest.json         names the folder that counts; replaced atomically, after that folder is safe on disk
    <run>/state/<iteration>-<phase>/
        progress.json               where training stands, and of what experiment
        weights.safetensors, optimiser.safetensors, ema.safetensors, old.safetensors (methods that have one), loss_scale.safetensors (fp16), random.safetensors

A checkpoint is written to a temporary folder, synchronised, renamed, and only then named in `latest.json`; the one before is
deleted last. Whatever interrupts this, `latest.json` names a complete checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evals.files import as_the_umask_leaves, disk_errors, sync_folder, write_text

FORMAT = 1
_CHECKPOINT = re.compile(r"\d{6,}-\d+")
_OURS = re.compile(r"latest\.json|\.latest\.json\..*\.part|\.?\d{6,}-\d+(\.tmp)?")


@dataclass
class Progress:
    """Where training stands. The iteration and phase are the whole prompt cursor: see `data`."""

    iteration: int = 0
    """Iterations completed."""
    phase: int = 0
    """Tasks completed in the iteration after those."""
    images: int = 0
    """Images drawn, over all processes."""
    denoiser_evaluations: int = 0
    """Denoiser evaluations of one latent, over all processes: rollout, update and pretraining, two where guided."""
    seconds: float = 0.0
    """Wall-clock time of training, over all resumes; what a kill has cost is in none of these."""
    gpu_seconds: float = 0.0
    """The same times the number of GPUs, which a resume may change."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl: what was written after this is written again."""
    gates: dict[str, Any] = field(default_factory=dict)
    """What the run has checked about itself: see `gates`."""
    scorer_versions: dict[str, str] = field(default_factory=dict)
    """Of rewards and monitors, by name; none in a state stored before there was this field."""
    prompt_versions: dict[str, str] = field(default_factory=dict)
    """Digests of the tasks' prompts, by set or file; none in a state stored before there was this field."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the method remembers from iteration to iteration, as JSON holds it."""


@dataclass(frozen=True)
class Identity:
    """What run a checkpoint belongs to."""

    experiment: dict[str, Any]
    """The experiment as JSON."""
    model: str
    seed: int


def save(
    folder: Path, progress: Progress, identity: Identity, tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write a checkpoint under `folder`, and delete the one before.

    Raises:
        OSError: full disk and the like; the previous checkpoint is then untouched, and what was written is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{progress.iteration:06d}-{progress.phase}"
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for file, values in tensors.items():
            _save_tensors(temporary / f"{file}.safetensors", values)
        as_the_umask_leaves(temporary)
        record = {"format": FORMAT, "progress": asdict(progress), "identity": asdict(identity)}
        write_text(json.dumps(record, indent=1), temporary / "progress.json")
        if latest(folder) == folder / name:  # the same place reached again after a resume: nothing to add
            return
        shutil.rmtree(folder / name, ignore_errors=True)  # left by a kill before it was named
        temporary.replace(folder / name)
        sync_folder(folder)
        write_text(json.dumps({"folder": name}), folder / "latest.json")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints(folder):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    for half in folder.glob(".latest.json.*.part"):  # left by a kill
        half.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint, whether it counts or not."""
    return sorted(path for path in folder.glob("*-*") if path.is_dir() and _CHECKPOINT.fullmatch(path.name))


def is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what `save` writes."""
    return all(_OURS.fullmatch(path.name) for path in folder.iterdir())


def latest(folder: Path) -> Path | None:
    """The checkpoint that counts, or None where there is none.

    Raises:
        ValueError: where latest.json is damaged, or missing among several.
    """
    pointer = folder / "latest.json"
    if pointer.exists():
        found = folder / str(_read_json(pointer, "folder"))
        if not found.is_dir():
            raise ValueError(
                f"{pointer} names {found.name}, which is missing: delete {folder} to start this run again"
            )
        return found
    there = checkpoints(folder)
    if len(there) > 1:
        raise ValueError(
            f"{pointer} is missing, and there are {len(there)} checkpoints: delete {folder} to start this run again"
        )
    return there[0] if there else None  # the first of a run, killed before it was named


def read(folder: Path) -> tuple[Progress, Identity]:
    """Progress and identity of a checkpoint.

    Raises:
        ValueError: one sentence naming the file that is missing, damaged or of another format.
    """
    path = folder / "progress.json"
    if _read_json(path, "format") != FORMAT:
        raise ValueError(f"{path}: written by another version of this project (format is not {FORMAT})")
    at, of = _read_json(path, "progress"), _read_json(path, "identity")
    try:
        progress, identity = Progress(**at), Identity(**of)
        _check_counts(progress, identity)
        return progress, identity
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project ({error})") from None


def _check_counts(progress: Progress, identity: Identity) -> None:
    """Refuse a place in training that no run can be at."""
    iterations, tasks = identity.experiment["iterations"], identity.experiment["tasks"]
    counts = {
        "iteration": (progress.iteration, iterations),
        "phase": (progress.phase, max(0, len(tasks) - 1)),
    }
    for name, (value, most) in counts.items():
        if not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r}, but must lie between 0 and {most}")
    if not isinstance(progress.metrics_bytes, int) or progress.metrics_bytes < 0:
        raise ValueError(f"metrics_bytes is {progress.metrics_bytes!r}")
    for name in ("scorer_versions", "prompt_versions"):
        if not isinstance(versions := getattr(progress, name), dict):
            raise ValueError(f"{name} is {versions!r}")


def read_tensors(folder: Path, also: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint, by file.

    Args:
        folder: of the checkpoint.
        also: files that there must be beside those of every run.

    Raises:
        ValueError: one sentence naming the file that is missing or damaged.
    """
    for required in ("weights", "optimiser", "random", *also):
        if not (folder / f"{required}.safetensors").is_file():
            raise ValueError(
                f"{folder / required}.safetensors is missing: delete {folder.parent} to start this run again"
            )
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            files[path.stem] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete {folder.parent} to start this run again"
            ) from None
    return files


def _read_json(path: Path, key: str) -> Any:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: delete {path.parent} to start this run again") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete {path.parent} to start this run again"
        ) from None
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{path} is no checkpoint file of this project: it has no {key!r}")
    return record[key]


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with disk_errors():
        save_file(dict(tensors), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


class MetricsLog:
    """metrics.jsonl: one JSON object a line, appended; a resumed run first drops what its checkpoint does not know."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self.path = path
        path.touch()
        if path.stat().st_size < keep_bytes:
            raise ValueError(f"{path} is shorter than its checkpoint says: it was changed from outside")
        os.truncate(path, keep_bytes)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def synced_bytes(self) -> int:
        """Length of the file, once it is safe on disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size
