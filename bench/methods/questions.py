"""What is asked of the runs of a reward: how they do on what they were trained on, on what no training has seen, and in truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evals.curve import Chosen

Goal = Literal["gold", "held-out"]


@dataclass(frozen=True)
class Question:
    """Names of metrics, all on one prompt set."""

    reward: str
    """The experiment whose reward is meant."""
    prompt_set: str
    """Of `miniature_methods`."""
    tuning_set: str
    """Of `miniature_tuning`."""
    proxy: str
    """Of the scorer that is trained on."""
    held_out: str
    """Of a scorer that no run of this reward is trained on; settings are chosen by it."""
    gold: str
    """What the miniature's people value, or what its pictures show."""
    goal: Goal
    """By which one methods race."""
    why: str
    """Of these, in a sentence."""
    gold_wins: str | None = None
    """The same truth as a win rate, told and not raced by: any step in the right direction wins, however small."""

    def roles(self) -> dict[str, str]:
        """Metrics by their role, the goal among them."""
        found = {"gold": self.gold, "held-out": self.held_out, "proxy": self.proxy}
        return found | ({"gold wins": self.gold_wins} if self.gold_wins else {})

    def chosen(self) -> list[Chosen]:
        """As `evals.curve` takes them."""
        return [
            (self.reward, "proxy", self.proxy, self.prompt_set),
            (self.reward, "judge", self.held_out, self.prompt_set),
            (self.reward, "gold", self.gold, self.prompt_set),
        ]


BESIDE = {"diversity": "diversity_vendi", "drift": "drift"}
"""What a gain may cost, by its role."""

QUESTIONS = {
    question.reward: question
    for question in (
        Question(
            "imagereward",
            "miniature-preference-unseen",
            "miniature-preference-tuning",
            proxy="reward_mean",
            held_out="win_rate_judge",
            gold="gold_quality",
            goal="gold",
            why="The reward model is the proxy, a judge in no training loop is held out, and gold is the mean of the utility that the votes were simulated from.",
            gold_wins="win_rate_gold",
        ),
        Question(
            "compositionality",
            "miniature-scenes-unseen",
            "miniature-scenes-tuning",
            proxy="detection",
            held_out="win_rate_judge",
            gold="fully_right",
            goal="gold",
            why="The detection score is the proxy, the judge of preferences is held out, and gold is whether everything that was asked for is there and the relation holds.",
        ),
        Question(
            "fairness",
            "miniature-portraits-unseen",
            "miniature-portraits-tuning",
            proxy="parity_excess",
            held_out="parity_excess_regrouped",
            gold="gold_quality",
            goal="held-out",
            why=(
                "The parity of four groups of tones is the proxy, and that of other cuts through the ten tones is held out and the goal: tones are read from the picture itself, so that "
                "there is no truer measure of them. Gold is whether the portraits stay good, a cost and not the goal."
            ),
        ),
    )
}
