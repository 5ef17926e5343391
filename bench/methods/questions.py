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
    wins: tuple[tuple[str, str], ...] = ()
    """Roles and metrics of the same as win rates, told and neither raced nor chosen by: any step in the right direction wins, however small."""

    def roles(self) -> dict[str, str]:
        """Metrics by their role, the goal among them."""
        return {"gold": self.gold, "held-out": self.held_out, "proxy": self.proxy, **dict(self.wins)}

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
            held_out="judge_mean",
            gold="gold_quality",
            goal="gold",
            why="The reward model is the proxy, the score of a judge in no training loop is held out, and gold is the mean of the utility that the votes were simulated from.",
            wins=(("held-out wins", "win_rate_judge"), ("gold wins", "win_rate_gold")),
        ),
        Question(
            "compositionality",
            "miniature-scenes-unseen",
            "miniature-scenes-tuning",
            proxy="detection",
            held_out="judge_mean",
            gold="fully_right",
            goal="gold",
            why="The detection score is the proxy, the score of the judge of preferences is held out, and gold is whether everything that was asked for is there and the relation holds.",
            wins=(("held-out wins", "win_rate_judge"),),
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
