"""Whether anything has become slower: every operation against the last record of this hardware. `make bench-check`, or `python -m bench.check rollout update`.

What is compared are ratios to a reference operation, measured in the same run, pass by pass (`bench.operations`): those of now with those of the record. An operation is slower where

- its ratios of the processor's time lie above the record's times 1 + `LEAST`, told by a one-sided rank test (Mann and Whitney): how much ratios differ from pass to pass where nothing has
  changed is thus part of the question, on both sides, and a single pass that went wrong decides nothing. Of the processor's time, because who shares a processor with others waits by the clock;
- in the passes in which the machine was as quick as in the record, by the reference's own time. What slows a machine slows an operation more or less than its reference, so that busy passes
  say nothing of it; where all are busy nothing is told;
- and by the clock too, in the median: what does the same work with more threads is not slower. What only waits longer, for a disk, is not noticed;
- and all of that again where it is measured a second time, when all others are through, alone with what else seemed slower, in twice the passes.

So noise does not decide. In the simulation of `tests/test_bench.py` (spells in which something else runs, jitter, single readings gone wrong, an operation and its reference that feel them
differently) fewer than one of a thousand unchanged operations is called slower, also where the machine is busy all the time and was not when the record was made, and more than nine of ten that
take 1.3 times as long are found. Where a difference above `LEAST` cannot be told from noise, that is said (`not told`): give the command again when less else runs.

Exit code 1 where one is slower, 0 where none is; 2 where there is nothing to compare with.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from scipy import stats as scipy_stats

from bench.machine import Machine
from bench.operations import PASSES, Operation, Timed, Workbench, kept, makers, measured, path_here
from train.records import device_name

LEAST = 0.15
"""Share by which a ratio has to be above the record's: half-way to the 1.3 times that must be found. Where code and data lie in memory alone moves a ratio by a few hundredths from one process to the next."""
BUSY = 1.1
"""Times the record's least that a reference may take in a pass that counts."""
SEEMS, ALPHA = 0.05, 0.01
"""Of the rank test, in the first measurement and in the second."""


def verdict(name: str, before: Timed, after: Timed, again: bool = False) -> str:
    """One line on an operation.

    Args:
        name: of the operation.
        before: the record.
        after: what was measured last.
        again: whether that was a second time.
    """
    busy = len(after.passes) - len(quiet(after, before))
    return (
        f"{outcome(before, after):9} {name}: {_range(after)} times its reference, {_range(before)} on {before.date[:10]} at {before.commit[:12]}: "
        f"{change_of(before, after):+.0%}{', measured again' if again else ''}"
        f"{f', the machine busier than then in {busy} of {len(after.passes)} passes' if busy else ''}"
    )


def _range(of: Timed) -> str:
    return f"{of.ratio:.3g} ({of.least:.3g} to {of.most:.3g})"


def outcome(before: Timed, after: Timed) -> Literal["SLOWER", "faster", "not told", "as before"]:
    """What there is to say of it."""
    if is_slower(before, after):
        return "SLOWER"
    if is_slower(after, before):
        return "faster"
    return "not told" if abs(change_of(before, after)) > LEAST else "as before"


def is_slower(before: Timed, after: Timed, alpha: float = ALPHA) -> bool:
    """Whether its ratios lie above those of before, by more than is tolerated and, of the processor's time, than chance does."""
    if change_of(before, after) <= LEAST:
        return False
    above = [ratio / (1 + LEAST) for ratio in quiet(after, before)]
    return _p(quiet(before, before), above) <= alpha


def quiet(of: Timed, before: Timed) -> list[float]:
    """Ratios, of the processor's time, of the passes in which the machine was no busier, by its reference, than in the quietest of before."""
    least = min(each.reference.cpu for each in before.passes)
    return [each.ratio.cpu for each in of.passes if each.reference.cpu <= BUSY * least]


def _p(before: Sequence[float], after: Sequence[float]) -> float:
    """Probability, were the two alike, of ranks as much in favour of `after`; 1 where there are none."""
    if not before or not after:
        return 1.0
    return float(scipy_stats.mannwhitneyu(after, before, alternative="greater", method="exact").pvalue)


def change_of(before: Timed, after: Timed) -> float:
    """By what share it takes longer (below 0: shorter) by both clocks: the smaller change of the two, 0 where they disagree."""
    changes = (after.ratio / before.ratio - 1, after.cpu_ratio / before.cpu_ratio - 1)
    if min(changes) > 0:
        return min(changes)
    return min(max(changes), 0.0)


def why_not(name: str, record: Mapping[str, Timed], kind: str = "") -> str:
    """A line on an operation that cannot be compared; empty where it can be.

    Args:
        name: of the operation.
        record: what was kept.
        kind: of its reference today, where it is known yet.
    """
    if name not in record:
        return f"{'new':9} {name}: not in the record, `make bench` takes it up"
    before = record[name]
    anew = f"on {before.date[:10]}, `make bench` makes its record anew"
    if not before.passes:
        return f"{'older':9} {name}: no passes were kept to compare with {anew}"
    if kind and kind != before.kind:
        return f"{'older':9} {name}: it was timed beside another reference ({before.kind}, now {kind}) {anew}"
    return ""


def checked(
    names: Sequence[str],
    record: Mapping[str, Timed],
    measure: Callable[[Sequence[str], int], Mapping[str, Timed]],
    say: Callable[[str], None] = print,
) -> list[str]:
    """Measure operations, those that seem slower again, and say how each compares.

    Args:
        names: of the operations.
        record: what was kept.
        measure: names and a number of passes to what each takes now.
        say: takes a line.

    Returns:
        those that are slower.
    """
    to_measure = [name for name in names if not why_not(name, record)]
    found = dict(measure(to_measure, PASSES)) if to_measure else {}
    known = list[str]()
    for name in names:
        if told := why_not(name, record, found[name].kind if name in found else ""):
            say(told)
        else:
            known.append(name)
    seem = [name for name in known if is_slower(record[name], found[name], SEEMS)]
    if seem:
        say(f"measuring again: {', '.join(seem)}")
        found |= measure(seem, 2 * PASSES)
    for name in known:
        say(verdict(name, record[name], found[name], name in seem))
    return [name for name in seem if is_slower(record[name], found[name])]


def main(names: Sequence[str]) -> int:
    """Compare, and return the exit code.

    Raises:
        ValueError: for an operation that there is none of, and where this hardware has no record, or only one that nothing can be compared with.
    """
    known = makers()
    for name in names:
        if name not in known:
            raise ValueError(f"there is no operation {name!r}: choose from {', '.join(known)}")
    path = path_here()
    record = kept(path)
    if not record:
        raise ValueError(f"there is no record of {device_name()} in {path.parent}: `make bench` makes it")
    if not any(each.passes for each in record.values()):
        raise ValueError(
            f"{path} is of an older form, without the passes that tell how far ratios differ where nothing has changed: `make bench` makes it anew"
        )
    machine = Machine.here()
    print(f"{machine}; tolerated: {LEAST:.0%}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(Path(folder))

        @cache
        def make(name: str) -> Operation:
            return known[name](bench, name)

        slower = checked(names or list(known), record, lambda of, passes: measured(of, make, machine, passes))
    print(f"slower: {', '.join(slower) or 'none'}")
    return int(bool(slower))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
