"""A trainer in a process of its own: one JSON request a line on standard input, one answer a line on standard output. Imports the standard library only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-peers"


@dataclass(frozen=True)
class Setting:
    """What both trainers are asked to do."""

    pipeline: str
    """Folder in diffusers layout."""
    prompts: str
    """Name of a prompt set."""
    batch: int
    """Images of an iteration, over all processes."""
    micro_batch: int
    """Images in a forward or backward pass."""
    steps: int
    """Denoising steps."""
    trained_steps: int
    """Of them, those that each image is trained on; as many AdamW steps are taken of the whole batch."""
    guidance: float
    """Weight, above 1: trl's pipeline, on the newest diffusers that it runs with, cannot do without."""
    lora: bool
    """Adapters of the rank that trl has fixed, or all weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    """Here only: trl's trainer has no such option."""
    cuda_graphs: bool = False
    """Here only, likewise."""
    micro_batch_here: int | None = None
    """Images of a pass here, where they are not as many as trl's: more are faster and take more memory. trl takes only what divides an optimiser step's images."""
    lr: float = 6e-5
    clip: float = 3.2e-3
    seed: int = 0
    processes: int = 1

    LORA_RANK = 4  # trl: `DefaultDDPOStableDiffusionPipeline.get_trainable_layers`
    MAX_GRAD_NORM = 1.0  # trl's default
    ADVANTAGE_CLIP = 5.0  # trl's default

    def __post_init__(self) -> None:
        """Raise ValueError for a batch that the trainers cannot cut alike."""
        part = self.micro_batch * self.trained_steps * self.processes
        if self.batch < part or self.batch % part:
            raise ValueError(
                f"--batch is {self.batch}, but trl takes its {self.trained_steps} optimiser steps on equal parts of whole micro-batches: "
                f"a multiple of {part} ({self.micro_batch} images x {self.trained_steps} steps x {self.processes} processes)"
            )


def serve(service: Any) -> None:
    """Answer requests until there are no more: each names a method of `service` and its arguments."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(service, request.pop("do"))(**request)
        answers.write(json.dumps(answer) + "\n")


class Stopwatch:
    """Seconds by the clock and of the processors that this process has used; a GPU's work is waited for."""

    def __init__(self) -> None:
        self.wall, self.cpu = self._now()

    def read(self) -> dict[str, float]:
        """Since it was made."""
        wall, cpu = self._now()
        return {"seconds": wall - self.wall, "cpu_seconds": cpu - self.cpu}

    @staticmethod
    def _now() -> tuple[float, float]:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def python_of(module: str) -> Path:
    """The Python that a worker runs with.

    Raises:
        ValueError: the peer's environment is not there.
    """
    if module != "trl_ddpo":
        return Path(sys.executable)
    python = ENVIRONMENT / "bin" / "python"
    if not ((ENVIRONMENT / ".complete").exists() and python.exists()):
        raise ValueError(f"{ENVIRONMENT.name} with trl's DDPOTrainer is not there: `make peers` makes it")
    return python


class Workers:
    """The processes of one trainer; each answers for itself."""

    def __init__(
        self, module: str, folder: Path, threads: int, processes: int = 1, port: int | None = None
    ) -> None:
        """Start them.

        Args:
            module: `ours` or `trl_ddpo`.
            folder: for their logs.
            threads: that each may use.
            processes: how many.
            port: that several meet at.

        Raises:
            ValueError: the peer's environment is not there.
        """
        python, self.name = python_of(module), module
        self._logs = [folder / f"{module}-{processes}-{rank}.log" for rank in range(processes)]
        self._processes = []
        for rank, path in enumerate(self._logs):
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
            if processes > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                environment |= {name: str(value) for name, value in place.items()}
                environment |= {"MASTER_ADDR": "127.0.0.1"}
            with path.open("w") as log:
                self._processes.append(
                    subprocess.Popen(
                        [python, "-W", "ignore", "-m", f"bench.peers.{module}"],
                        cwd=ROOT,
                        env=environment,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                    )
                )

    @property
    def pids(self) -> list[int]:
        """Of the processes, in order of their rank."""
        return [process.pid for process in self._processes]

    def __call__(self, what: str, **arguments: Any) -> list[Any]:
        """Ask all for something that the module offers; their answers in order of their rank.

        Raises:
            RuntimeError: with the last line of its log, where one has ended.
        """
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended: its log says why
                process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
                process.stdin.flush()
        return [self._answer(process, log) for process, log in zip(self._processes, self._logs, strict=True)]

    def _answer(self, process: subprocess.Popen[str], log: Path) -> Any:
        assert process.stdout is not None
        answer = process.stdout.readline()
        if not answer:
            told: Sequence[str] = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise RuntimeError(f"{self.name} ended: {''.join(told) or 'it left no message'}")
        return json.loads(answer)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with suppress(BrokenPipeError):
                process.communicate()
