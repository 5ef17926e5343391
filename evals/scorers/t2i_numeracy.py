"""T2I-CompBench++'s numeracy (Huang et al., arXiv 2307.06350), on an open-vocabulary detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evals.geneval import Detection
from evals.scorers import version_of
from evals.scorers._asked import refuse_none
from evals.scorers._boxes import BOXES, BoxScorer
from evals.scorers._detectors import plain
from evals.t2i_compbench import counts, merged, numeracy
from prompts import Prompt


class Scorer(BoxScorer):
    """Mean over the objects of one half for being there and one half for the exact number; NaN where the prompt names no number of anything.

    The prompt says it: "two books and a cat". Boxes of an object that lie on or in one another by more than nine tenths are one.

    **Numbers are not upstream's.** Its detector is UniDet, some of whose code may not be used freely. OWLv2's threshold is the library's, not one that was chosen
    for counting, and crowded small things are where open-vocabulary detectors miscount. Compare ratios to the base's score, not levels, and hold them to
    the counting task of `geneval`, whose detector is another.
    """

    source = (
        "T2I-CompBench++'s numeracy rules (arXiv 2307.06350) on OWLv2 ViT-B/16 instead of UniDet "
        "(google/owlv2-base-patch16-ensemble, Apache-2.0; arXiv 2306.09683): ratios to the base can be compared, levels cannot"
    )

    @property
    def version(self) -> str:
        return version_of(Path(__file__), *BOXES, *self.weights)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        needs = 'says how many there are of anything, as "two books and a cat" does'
        refuse_none(prompts, lambda prompt: bool(self.names_of(prompt)), needs)

    def names_of(self, prompt: Prompt) -> list[str]:
        """The objects that are to be counted."""
        return [name for name, _ in _asked(prompt)]

    def judge(self, prompt: Prompt, found: dict[str, list[Detection]], longer_side: int) -> float:
        """See the class."""
        return numeracy(_asked(prompt), {name: len(merged(boxes)) for name, boxes in found.items()})


def _asked(prompt: Prompt) -> list[tuple[str, int]]:
    """Objects, by plain names, and how many of each."""
    return [(plain(name), number) for name, number in counts(prompt.text)]
