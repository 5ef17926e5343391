"""`python -m train.launch PROCESSES EXPERIMENT ...`: what `python -m train EXPERIMENT ...` does, on several processes of this host.

One process to a GPU; without a GPU they share the CPU. This is torchrun's launcher, but for how it ends: the exit code is that of the
process that failed first, which has said in a sentence why, and a signal leaves the processes the time to save.
"""

from __future__ import annotations

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

SECONDS_TO_SAVE = 3600
"""Until processes that were asked to stop are killed: they first end an update, which takes minutes at the paper's batch."""


def launch(processes: int, module: str, arguments: list[str]) -> int:
    """Run a module on several processes.

    Returns:
        the exit code: 0, that of the first to fail, or 128 and the number of the signal that ended it.
    """
    # without this each process would start a thread for every core of the host
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable(logging.ERROR)  # torchrun's account of a process that has already said what was wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: process {rank} was killed by signal {-failure.exitcode}", file=sys.stderr)
            return 128 - failure.exitcode
        return int(failure.exitcode)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def main() -> None:
    """Read the number of processes; the rest is the trainer's."""
    number, *arguments = sys.argv[1:] or [""]
    if not number.isdecimal() or int(number) < 1:
        sys.exit(f"error: {number!r} is no number of processes: python -m train.launch 2 EXPERIMENT ...")
    sys.exit(launch(int(number), "train", arguments))


if __name__ == "__main__":
    main()
