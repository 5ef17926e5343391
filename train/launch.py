"""Several processes for one command, on one host or several: one to a GPU; without a GPU they share the CPU.

What torchrun does, but for how it ends: signals are passed on and leave the time to save, the exit code is that of the process that
failed first, and what that one said stays the last word. `torchrun` and `accelerate launch` work as well.

Several hosts run the same command, each told its number; `train/hosts.sh` and `train/slurm.sh` do that. They train in one folder, which all of
them see. Their launchers keep a line to each other through the first host, so that all stop within a minute of a process, or a host, that dies.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate.utils import check_cuda_p2p_ib_support
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from evals import signals
from evals.checkpoints import first_line
from evals.workers import LAUNCHER

SECONDS_TO_SPEAK = 30
"""After one process has failed, until the others are killed: they mostly fail of the same, and the first one says why."""
SECONDS_OF_SILENCE = 20
"""Until a host of which nothing is heard counts as dead."""
SECONDS_TO_PART = 5
"""For which the first host waits for the others to hear of a failure."""
SECONDS_TO_MEET = 600
"""Until a host that has not come at all counts as dead."""
GONE = "host 0 has fallen silent"


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run, and which of them this one is."""

    count: int = 1
    number: int = 0
    address: str = "127.0.0.1"
    """Of the first host."""
    port: int = 0
    """Port on the first host that processes meet at; launchers meet at the next one. 0 on a single host: any that is free."""

    @classmethod
    def of(cls, count: int, number: int, first: str | None) -> Hosts:
        """From what the command line says.

        Args:
            count: of hosts.
            number: of this one, from 0.
            first: address and port of the first, `HOST:PORT`; None on a single host.

        Raises:
            ValueError: naming the option.
        """
        if number >= count:
            raise ValueError(f"--host is {number}, but of --hosts {count} the last is {count - 1}")
        if count == 1:
            return cls()
        address, _, port = (first or "").rpartition(":")
        if not address or not port.isdecimal() or not 0 < int(port) < 65535:
            raise ValueError(
                f"--first is {first or 'not given'}, but {count} hosts need the first one's address and a free port: HOST:PORT"
            )
        return cls(count, number, address, int(port))


def launch(processes: int, hosts: Hosts = Hosts()) -> int:
    """Run the command that this process was started with once per process of this host, each told its rank.

    Args:
        processes: on each host.
        hosts: that do the same.

    Returns:
        the exit code: 0, that of the first to fail, 128 and the number of the signal that ended it, or 1 where another host failed.
    """
    everyone = os.environ | {
        "WORLD_SIZE": str(processes * hosts.count),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": hosts.address,
        "MASTER_PORT": str(hosts.port or free_port()),
        LAUNCHER: str(os.getpid()),
    }
    # without this each process would start a thread for every core of the host
    everyone.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if torch.cuda.is_available() and not check_cuda_p2p_ib_support():
        everyone |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        line = Line(hosts) if hosts.count > 1 else None
    except DistError as error:
        print(
            f"error: the first host, {hosts.address}, did not answer at port {hosts.port + 1}: {first_line(error)}",
            file=sys.stderr,
        )
        return 1
    with signals.passed_on(workers):
        for local in range(processes):
            rank = hosts.number * processes + local
            mine = everyone | {"RANK": str(rank), "LOCAL_RANK": str(local)}
            # a session of its own: a Ctrl-C of the terminal comes from here only, and once
            workers.append(
                subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=mine, start_new_session=True)
            )
        return _ended(workers, hosts.number * processes, line)


class Line:
    """What launchers of several hosts tell each other through a store on the first: that they live, that one has failed, that one is done."""

    def __init__(self, hosts: Hosts) -> None:
        """Meet.

        Raises:
            DistError: where the first host does not answer.
        """
        self.hosts = hosts
        self.store = TCPStore(
            hosts.address,
            hosts.port + 1,
            is_master=hosts.number == 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=SECONDS_TO_MEET),
        )
        self.gone = False
        self.asked = time.monotonic()
        self.beats = dict.fromkeys(range(1, hosts.count), 0)
        self.heard = dict.fromkeys(self.beats, self.asked)

    def trouble(self) -> str:
        """Why this host has to stop, empty where it has not to; asks once a second."""
        now = time.monotonic()
        if now - self.asked < 1:
            return ""
        self.asked = now
        return (
            self._answer(self._trouble)
            if self.hosts.number
            else self._answer(self._trouble) or self._silent()
        )

    def _trouble(self) -> str:
        self.store.add(f"beat {self.hosts.number}", 1)
        return self.store.get("failed").decode() if self.store.check(["failed"]) else ""

    def _silent(self) -> str:
        """On the first host: one that lives no more, and all are told."""
        now = time.monotonic()
        for number, before in self.beats.items():
            beats = self.store.add(f"beat {number}", 0)
            if beats > before or self.store.check([f"done {number}"]):
                self.beats[number], self.heard[number] = beats, now
            if now - self.heard[number] > (SECONDS_OF_SILENCE if beats else SECONDS_TO_MEET):
                why = f"host {number} has fallen silent" if beats else f"host {number} has not come"
                self.tell(why, is_cause=True)
                return why
        return ""

    def tell(self, why: str, is_cause: bool) -> str:
        """Let all know that something has failed. A process that was killed, or a silent host, is a cause; one that ended may be its consequence.

        Returns:
            the first cause, empty where none is known.
        """

        def ask() -> str:
            if is_cause:
                self.store.compare_set("cause", "", why)
            self.store.compare_set("failed", "", why)
            return self.store.get("cause").decode() if self.store.check(["cause"]) else ""

        return self._answer(ask)

    def leave(self, in_trouble: bool = False) -> str:
        """This host is done. The first stays until all are, as they ask it; in trouble for a little only.

        Returns:
            why the run failed after all, empty where it has not.
        """

        def ask() -> str:
            self.store.set(f"done {self.hosts.number}", "")
            others = [f"done {number}" for number in self.beats]
            return "" if self.hosts.number or self.store.check(others) else "not yet"

        deadline = time.monotonic() + (SECONDS_TO_PART if in_trouble else math.inf)
        while (
            (said := self._answer(ask)) == "not yet" and not self.hosts.number and time.monotonic() < deadline
        ):
            if (why := self.trouble()) and not in_trouble:
                return why
            time.sleep(0.1)
        return said if said == GONE else ""

    def _answer(self, ask: Callable[[], str]) -> str:
        """What is asked of the store, or `GONE`: a host that lost its power closes no connection, and a call to it would never return."""
        said: list[str] = []

        def call() -> None:
            try:
                said.append(ask())
            except DistError:
                said.append(GONE)

        if not self.gone:
            thread = threading.Thread(target=call, daemon=True)
            thread.start()
            thread.join(SECONDS_OF_SILENCE)
            self.gone = said in ([], [GONE])
        return GONE if self.gone else said[0]


def has_lost_another(error: RuntimeError) -> bool:
    """Whether an error means that another process of the run has ended, whose launcher names it: what all do together cannot be done. Gloo says it in words only."""
    return LAUNCHER in os.environ and (isinstance(error, DistError) or "gloo" in str(error))


def speaks() -> bool:
    """Whether this process is the one of several that prints."""
    return os.environ.get("RANK", "0") == "0"


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ended(workers: Sequence[subprocess.Popen[Any]], first_rank: int, line: Line | None) -> int:
    """Wait for all, or for the first to fail, here or elsewhere, and then a little for the others. Returns the exit code."""
    failed, trouble = _until_failure(workers, line)
    if failed is None and not trouble:
        trouble = line.leave() if line else ""
        return _stopped(trouble) if trouble else 0
    code = 0 if failed is None else int(workers[failed].returncode)
    why = trouble if failed is None else _why(first_rank + failed, code)
    is_cause = code < 0
    if line:
        line.tell(why, is_cause)
    _end(workers)
    if failed is None and (saved := _asked_to_stop(workers)) is not None:
        # as those of another host were, of which was heard a moment before
        failed, code = saved, int(workers[saved].returncode)
        why = _why(first_rank + saved, code)
    cause = line.tell(why, is_cause) if line else ""  # by now the others have told what they know
    if line:
        line.leave(in_trouble=True)
    if failed is None:
        return _stopped(cause or trouble)
    spoken = first_rank == 0 and workers[0].returncode > 0  # only the first process of all speaks
    if cause and cause != why:
        _stopped(cause)
    elif code < 0 or not spoken:
        print(f"error: {why}", file=sys.stderr)
    return code if code > 0 else 128 - code


def _until_failure(workers: Sequence[subprocess.Popen[Any]], line: Line | None) -> tuple[int | None, str]:
    """Wait until all have ended. Returns the place of the first that failed, and what has failed on another host; None and empty where nothing has."""
    while True:
        codes = [worker.poll() for worker in workers]
        trouble = line.trouble() if line else ""
        if trouble or any(codes) or None not in codes:
            failed = [place for place, code in enumerate(codes) if code]
            # one that was killed, code below 0, has made the others fail
            return min(failed, key=lambda place: codes[place] or 0, default=None), trouble
        time.sleep(0.05)


def _end(workers: Sequence[subprocess.Popen[Any]]) -> None:
    """Leave the others the time to say why they fail, too, then kill them."""
    deadline = time.monotonic() + SECONDS_TO_SPEAK
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
            worker.wait()


def _asked_to_stop(workers: Sequence[subprocess.Popen[Any]]) -> int | None:
    """The place of the first that has saved and ended by itself, since a signal asked it to; None where none has."""
    return next((place for place, worker in enumerate(workers) if worker.returncode > 128), None)


def _why(rank: int, code: int) -> str:
    """How a process ended, by its name."""
    return (
        f"process {rank} was killed by signal {-code}"
        if code < 0
        else f"process {rank} ended with code {code}"
    )


def _stopped(why: str) -> int:
    """Say that this host stops because of another. Returns the exit code."""
    print(f"error: stopped, since {why}", file=sys.stderr)
    return 1
