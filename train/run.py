"""What training works on, and what its processes tell one another.

Shapes: B images of all processes (or of this one, where a docstring says local).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from evals.diffusion import derive_seed
from prompts import Prompt
from train import state as states
from train.config import Experiment
from train.data import PretrainingSource
from train.gates import Rounding
from train.objective import drawable_steps
from train.policy import Policy

if TYPE_CHECKING:
    from train.trackers import Trackers

Found = TypeVar("Found")

MESSAGE_BYTES = 2000
"""Of what a process says of its failure, so many go to the others."""


@dataclass
class Run:
    """Everything that training needs, ready to go."""

    out: Path
    experiment: Experiment
    identity: states.Identity
    seed: int
    accelerator: Accelerator
    policy: Policy
    prompt_sets: dict[str, Sequence[Prompt]]
    scorers: dict[str, Any]
    source: PretrainingSource | None
    log: states.MetricsLog | None
    """On the main process."""
    progress: states.Progress
    show: Callable[[states.Progress, str, float | None], None]
    """Progress bar: takes progress, task and its mean reward."""
    stop_requested: Callable[[], int] = int
    """The signal that has asked this process to stop, 0 for none."""
    trackers: Trackers | None = None
    """On the main process, where there are any."""
    started: float = field(default_factory=time.monotonic)

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def drawable(self) -> tuple[int, ...]:
        """Denoising steps that can be trained on: those with a density, but for the last `skip_last` of all."""
        sampling, update = self.experiment.sampling, self.experiment.update
        return drawable_steps(self.policy.painter.schedule, sampling.eta, update.skip_last)

    @property
    def rounding(self) -> Rounding:
        """How far rollout and update may be apart: see `gates`."""
        sampling, update, painter = self.experiment.sampling, self.experiment.update, self.policy.painter
        return Rounding(
            schedule=painter.schedule,
            sampling=sampling,
            reduction=update.reduction,
            clip=update.clip,
            dims=math.prod(painter.latent_shape),
            longest_sum=self.policy.longest_sum,
            same_kernels=sampling.micro_batch == update.micro_batch,
            on_cpu=self.accelerator.device.type == "cpu",
        )


def synchronised(run: Run, last: bool) -> AbstractContextManager[Any]:
    """Context of a forward and backward pass: DDP averages gradients over processes after the last of an optimiser step only."""
    return nullcontext() if last else run.accelerator.no_sync(run.policy.module)


def accumulated(run: Run, accumulate: Callable[[], Found]) -> Found:
    """The gradient of one optimiser step, and what `accumulate` finds on the way; in fp16 taken again for as long as it overflows."""
    while True:
        found = accumulate()
        if run.policy.gradients_fit():
            return found


@contextmanager
def own_stream(run: Run, scorer: str) -> Iterator[None]:
    """Torch's generators as a scorer finds them where it is called: seeded for its place in training, and afterwards as they were.

    A scorer loads its weights when it is first called, and to build a network draws random numbers; in a resumed run it does so again. Here it moves no
    stream that a state keeps, and one that draws in its calls finds the numbers there that it would have found had the run not been stopped; but for one that does
    both in its first call.
    """
    progress, device = run.progress, run.accelerator.device
    place = (run.rank, progress.iteration, progress.phase)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed("scorer", run.seed, scorer, *place))
        yield


def gather(run: Run, local: Tensor) -> Tensor:
    """Rows of all processes in order of their rank, on the CPU."""
    everywhere: Tensor = run.accelerator.gather(local.to(run.accelerator.device))
    return everywhere.cpu()


def failed_first(run: Run, failure: Exception | None) -> tuple[int, str] | None:
    """Number and message of the first process that has failed, on every process; None where none has. All must ask.

    Only the main process speaks, and it is seldom the one that failed.

    Args:
        run: of this process.
        failure: of this process, None where there is none.
    """
    failed = gather(run, torch.tensor([int(failure is not None)]))
    if not failed.any():
        return None
    first, content = int(failed.argmax()), bytearray(str(failure or "").encode()[:MESSAGE_BYTES])
    message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    message[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
    sent = bytes(gather(run, message[None])[first].tolist()).rstrip(b"\0")
    return first, f"on process {first}: {sent.decode(errors='ignore')}"


def on_main_process(run: Run, work: Callable[[], None]) -> None:
    """Write something on the main process; the others wait for it, and stop with it where it fails.

    Raises:
        OSError: on every process, where the disk refuses the main one.
    """
    failure: OSError | None = None
    if run.accelerator.is_main_process:
        try:
            work()
        except OSError as error:
            failure = error
    failed = gather(run, torch.tensor([int(failure is not None)])).any()
    if failure is not None:
        raise failure
    if failed:
        raise OSError("the main process could not write")
