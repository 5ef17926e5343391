"""Several processes of one host for one command: one to a GPU; without a GPU they share the CPU.

They need not know of each other: what they share lies on disk, behind locks (see `evals.harness`). So hosts that share a folder are just given the same command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from evals import signals

LAUNCHER = "T2I_LAUNCHER"
"""Variable that tells a process who started it, here or in `train.launch`."""
SECONDS_TO_END = 10
"""After one process has failed, until the others are killed."""


def environments(processes: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """What each process is told: its number, its GPU, or its share of the CPU's cores.

    Args:
        processes: how many.
        gpus: names of the GPUs, as CUDA_VISIBLE_DEVICES has them.

    Raises:
        ValueError: fewer GPUs than processes, and at least one.
    """
    if gpus and processes > len(gpus):
        raise ValueError(f"--processes is {processes}, but there are {len(gpus)} GPUs, and each takes one")
    cores = max(1, (os.cpu_count() or 1) // processes)
    return [
        {
            "RANK": str(rank),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores)),
            **({"CUDA_VISIBLE_DEVICES": gpus[rank]} if gpus else {}),
        }
        for rank in range(processes)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def run(command: Sequence[str], environments: Sequence[dict[str, str]]) -> int:
    """Run a command once per environment, until all have ended or one has failed; the first alone speaks, unless another fails.

    Signals that ask to end are passed on.

    Returns:
        the exit code: 0, or that of the first to fail; 128 and the number of the signal that ended it.
    """
    with ExitStack() as stack:
        heard = [stack.enter_context(tempfile.TemporaryFile()) for _ in environments]
        workers: list[subprocess.Popen[bytes]] = []
        stack.enter_context(signals.passed_on(workers))
        for rank, environment in enumerate(environments):
            told = heard[rank] if rank else None
            # a session of its own: a Ctrl-C of the terminal comes from here only, and once
            workers.append(
                subprocess.Popen(
                    command,
                    env=os.environ | environment | {LAUNCHER: str(os.getpid())},
                    start_new_session=True,
                    stdout=told,
                    stderr=told,
                )
            )
        failed = _first_to_fail(workers)
        if failed is None:
            return 0
        code = workers[failed].returncode
        _end(workers)
        if failed:
            print(
                _last_line(heard[failed]) or f"error: process {failed} ended with code {code}",
                file=sys.stderr,
            )
        return code if code > 0 else 128 - code


def is_orphaned() -> bool:
    """Whether the launcher that started this process is no more: it can pass nothing on, and nobody waits."""
    return LAUNCHER in os.environ and os.getppid() != int(os.environ[LAUNCHER])


def end_with_launcher() -> None:
    """End this process once the one that started it is no more; nothing where `run` has not started it.

    Killed, that one could pass nothing on, and the same command given again would put a second process on each GPU.
    """
    if LAUNCHER not in os.environ:
        return

    def watch() -> None:
        while not is_orphaned():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _first_to_fail(workers: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended or one has failed: its place, or None."""
    while True:
        codes = [worker.poll() for worker in workers]
        if any(codes):
            return next(place for place, code in enumerate(codes) if code)
        if None not in codes:
            return None
        time.sleep(0.05)


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the others to end, then make them."""
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _last_line(heard: IO[bytes]) -> str:
    heard.seek(0)
    lines = heard.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
