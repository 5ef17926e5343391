"""Whether anything has become slower: every operation against the last record of this hardware. `make bench-check`, or `python -m bench.check rollout update`.

What is compared are ratios to a reference operation, measured in the same run (`bench.operations`). An operation is slower where its ratio is more than
`TOLERANCE` above the record's, by the clock and by the processor's time, and again when it is measured a second time with twice the rounds: so neither other
processes nor a moment's noise decide. What only waits longer, for a disk, is not noticed. Exit code 1 where one is slower, 0 where none is; 2 where there is
nothing to compare with.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.machine import Machine
from bench.operations import ROUNDS, Operation, Timed, Workbench, kept, makers, path_here, timed
from train.records import device_name

TOLERANCE = 0.2
"""Share by which a ratio may be above the record's. Beside three other busy processes on two cores, seven operations of unchanged code came out up to 11 % above."""


def verdict(name: str, before: Timed, after: Timed) -> str:
    """One line on an operation."""
    change = change_of(before, after)
    what = "SLOWER" if change > TOLERANCE else "faster" if change < -TOLERANCE else "as before"
    return (
        f"{what:9} {name}: {after.ratio:.3g} times its reference ({after.least:.3g} to {after.most:.3g}), {before.ratio:.3g} on "
        f"{before.date[:10]} at {before.commit[:12]}: {change:+.0%}"
    )


def is_slower(before: Timed, after: Timed) -> bool:
    """By more than is tolerated."""
    return change_of(before, after) > TOLERANCE


def change_of(before: Timed, after: Timed) -> float:
    """By what share it takes longer (below 0: shorter) by both clocks: the smaller change of the two, 0 where they disagree."""
    changes = (after.ratio / before.ratio - 1, after.cpu_ratio / before.cpu_ratio - 1)
    if min(changes) > 0:
        return min(changes)
    return min(max(changes), 0.0)


def checked(
    names: Sequence[str],
    record: Mapping[str, Timed],
    measure: Callable[[str, int], Timed],
    say: Callable[[str], None] = print,
) -> list[str]:
    """Measure operations and say how each compares.

    Args:
        names: of the operations.
        record: what was kept.
        measure: name and rounds to what it takes now.
        say: takes a line.

    Returns:
        those that are slower.
    """
    slower = []
    for name in names:
        if name not in record:
            say(f"{'new':9} {name}: not in the record, `make bench` takes it up")
            continue
        after = measure(name, ROUNDS)
        if is_slower(record[name], after):
            after = measure(name, 2 * ROUNDS)
        if is_slower(record[name], after):
            slower.append(name)
        say(verdict(name, record[name], after))
    return slower


def main(names: Sequence[str]) -> int:
    """Compare, and return the exit code.

    Raises:
        ValueError: for an operation that there is none of, and where this hardware has no record.
    """
    known = makers()
    for name in names:
        if name not in known:
            raise ValueError(f"there is no operation {name!r}: choose from {', '.join(known)}")
    record = kept(path_here())
    if not record:
        raise ValueError(
            f"there is no record of {device_name()} in {path_here().parent}: `make bench` makes it"
        )
    machine = Machine.here()
    print(f"{machine}; tolerated: {TOLERANCE:.0%}")
    with tempfile.TemporaryDirectory() as folder:
        bench, made = Workbench(Path(folder)), dict[str, Operation]()

        def measure(name: str, rounds: int) -> Timed:
            if name not in made:
                made[name] = known[name](bench, name)
            return timed(made[name], machine, rounds)

        slower = checked(names or list(known), record, measure)
    print(f"slower: {', '.join(slower) or 'none'}")
    return int(bool(slower))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
