"""Signals that ask a command to stop: which, and what is done of them for as long as a block lasts."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Asked to end, Ctrl-C, its terminal is closed."""


def heeded() -> tuple[signal.Signals, ...]:
    """`STOPS`, but for a hang-up that this process was told to ignore (nohup)."""
    return tuple(n for n in STOPS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)


@contextmanager
def caught(handle: Callable[[int], None]) -> Iterator[None]:
    """Give the number of every signal that is heeded to `handle`; afterwards they do what they did before."""

    def call(number: int, _frame: FrameType | None) -> None:
        handle(number)

    before = {number: signal.signal(number, call) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def passed_on(workers: Sequence[subprocess.Popen[Any]]) -> AbstractContextManager[None]:
    """Signals go to the workers, which know what to do; this process waits for them."""

    def pass_on(number: int) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        for worker in workers:
            worker.send_signal(number)  # nothing to one that has ended

    return caught(pass_on)


def leave_terminal() -> None:
    """After a hang-up: what would be said on the terminal goes nowhere, instead of failing; into a pipe too, as its reader went with it.

    Files stay.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if not stat.S_ISREG(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
