"""T2I-CompBench's two-dimensional spatial relations (Huang et al., NeurIPS 2023, arXiv 2307.06350), on an open-vocabulary detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evals.geneval import Detection
from evals.scorers import version_of
from evals.scorers._asked import refuse_none
from evals.scorers._boxes import BOXES, BoxScorer
from evals.scorers._detectors import plain
from evals.t2i_compbench import NEAR, SIDE, Related, position, related, spatial
from prompts import Prompt


class Scorer(BoxScorer):
    """A quarter for the confidence in each of two objects, half for how they lie to each other, 0 below one half; NaN where the prompt has no such form.

    The prompt says it: "a cup on the left of a frog". The most confident box of each object is looked at. The rules are upstream's but for two things, both
    named: "on top of" is known (upstream scores 0 for it, whatever there is to see), and nearness is 150 pixels of a picture of 512 and grows with it.

    **Numbers are not upstream's.** Its detector is UniDet, whose confidences are higher than OWLv2's and enter the score; some of its code may not be used
    freely. Compare ratios to the base's score, not levels.
    """

    source = (
        "T2I-CompBench's 2D-spatial rules (arXiv 2307.06350) on OWLv2 ViT-B/16 instead of UniDet "
        "(google/owlv2-base-patch16-ensemble, Apache-2.0; arXiv 2306.09683): ratios to the base can be compared, levels cannot"
    )

    @property
    def version(self) -> str:
        return version_of(Path(__file__), *BOXES, *self.weights)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        needs = 'says how two things lie to each other, as "a cup on the left of a frog" does'
        refuse_none(prompts, lambda prompt: bool(self.names_of(prompt)), needs)

    def names_of(self, prompt: Prompt) -> list[str]:
        """Both objects."""
        asked = _asked(prompt)
        return [asked.first, asked.second] if asked else []

    def judge(self, prompt: Prompt, found: dict[str, list[Detection]], longer_side: int) -> float:
        """See the class."""
        asked = _asked(prompt)
        assert asked is not None, "others are not judged"
        first, second = (next(iter(found[name]), None) for name in (asked.first, asked.second))
        if first is None or second is None:
            return spatial(first, second, 0.0)
        placed = position(asked.relation, first.box, second.box, NEAR * longer_side / SIDE)
        return spatial(first, second, placed)


def _asked(prompt: Prompt) -> Related | None:
    """Both objects, by plain names, and their relation."""
    asked = related(prompt.text)
    return asked and Related(plain(asked.first), asked.relation, plain(asked.second))
