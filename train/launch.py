"""Several processes of this host for one command: one to a GPU; without a GPU they share the CPU.

What torchrun does, but for how it ends: signals are passed on and leave the time to save, the exit code is that of the process that
failed first, and what that one said stays the last word. `torchrun` and `accelerate launch` work as well, and several hosts need one of them.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate.utils import check_cuda_p2p_ib_support

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals on which training saves and stops: asked to end, Ctrl-C, its terminal is closed."""
SECONDS_TO_SPEAK = 30
"""After one process has failed, until the others are killed: they mostly fail of the same, and the first one says why."""


def launch(processes: int) -> int:
    """Run the command that this process was started with once per process, each told its rank.

    Returns:
        the exit code: 0, that of the first to fail, or 128 and the number of the signal that ended it.
    """
    everyone = os.environ | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    # without this each process would start a thread for every core of the host
    everyone.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if torch.cuda.is_available() and not check_cuda_p2p_ib_support():
        everyone |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    workers: list[subprocess.Popen[bytes]] = []
    with _signals_passed_on(workers):
        for rank in range(processes):
            mine = everyone | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # a session of its own: a Ctrl-C of the terminal comes from here only, and once
            workers.append(
                subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=mine, start_new_session=True)
            )
        return _ended(workers)


def speaks() -> bool:
    """Whether this process is the one of several that prints."""
    return os.environ.get("RANK", "0") == "0"


def heeded() -> tuple[signal.Signals, ...]:
    """`STOPS`, but for a hang-up that this process was told to ignore (nohup)."""
    return tuple(n for n in STOPS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)


def leave_terminal() -> None:
    """After a hang-up: what would be said on the terminal goes nowhere, instead of failing; into a pipe too, as its reader went with it.

    Files stay.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if not stat.S_ISREG(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _signals_passed_on(workers: Sequence[subprocess.Popen[Any]]) -> Iterator[None]:
    """The signals of `STOPS` go to the workers, which know what to do; this process waits for them."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(workers: Sequence[subprocess.Popen[Any]]) -> int:
    """Wait for all, or for the first to fail and then a little for the others. Returns the exit code."""
    while True:
        codes = [worker.poll() for worker in workers]
        if not any(code is None for code in codes) or any(codes):
            break
        time.sleep(0.05)
    failed = next((rank for rank, code in enumerate(codes) if code), None)
    if failed is None:
        return 0
    deadline = time.monotonic() + SECONDS_TO_SPEAK
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    spoken = bool(workers[0].poll())  # only the first process speaks
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    code = int(codes[failed] or 0)
    if code < 0:
        print(f"error: process {failed} was killed by signal {-code}", file=sys.stderr)
    elif not spoken:
        print(f"error: process {failed} ended with code {code}", file=sys.stderr)
    return code if code > 0 else 128 - code
