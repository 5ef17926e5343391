"""Which cells there are: a method on a reward with a seed and a budget, or the sentence in which the method refuses the reward.

All methods race within one budget, the paper's among them, each with the best settings that were found for it at such a length (`train.methods.chosen`). What they race to is what the paper's
method reaches with the length and the settings of its experiment: it is there a second time, `in full`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import prompts
from bench.methods import POINTS
from bench.methods.questions import QUESTIONS
from evals import suites
from train import experiments, methods
from train.config import Experiment, check, choose, chosen_fields, override
from train.plan import evaluations, within
from train.start import check_names

MODEL = "miniature"
SUITE, TUNING_SUITE = "miniature_methods", "miniature_tuning"
IN_FULL = f"{methods.PAPERS} in full"
KL_PROMPTS = 16
"""Prompts on which the divergence from the base is taken, one image of each."""


@dataclass(frozen=True)
class Cell:
    """One run and its scores."""

    reward: str
    method: str
    seed: int
    budget: int
    """Denoiser evaluations that it may take."""
    experiment: Experiment
    settings: tuple[str, ...]
    """In which it differs from the method's variant, as `--set` has them."""
    suite: str
    asked_points: int
    """Times that it is to be scored; `points` is how often its iterations allow."""
    in_full: bool = False
    """Whether this is the paper's method with the length and settings of its experiment, although the others have less."""

    @property
    def label(self) -> str:
        """As the table calls the method."""
        return IN_FULL if self.in_full else self.method

    @property
    def name(self) -> str:
        """As `python -m train` calls the experiment."""
        return name_of(self.reward, self.method)

    @property
    def run_name(self) -> str:
        """Of the run."""
        return f"{self.name}-{MODEL}-{self.seed}"

    @property
    def key(self) -> str:
        """Its folder: the run's name and 8 hex digits of everything that is chosen, so that other settings are another cell, and a method's new field at its default is not."""
        trained = json.dumps([chosen_fields(self.experiment), self.suite], sort_keys=True)
        return f"{self.run_name}-{hashlib.sha256(trained.encode()).hexdigest()[:8]}"

    @property
    def prompt_set(self) -> str:
        """On which it is scored."""
        question = QUESTIONS[self.reward]
        return question.tuning_set if self.suite == TUNING_SUITE else question.prompt_set

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Iterations after which there is one."""
        every, iterations = self.experiment.snapshots_every, self.experiment.iterations
        return tuple(range(every, iterations, every)) if every else ()

    @property
    def points(self) -> int:
        """Checkpoints of it that are scored, its end among them, the base not."""
        return len(self.snapshots) + 1

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations of training."""
        return evaluations(self.experiment)

    @property
    def scoring_evaluations(self) -> int:
        """Denoiser evaluations of scoring it and its base, of which the divergence takes two a picture and step."""
        suite = suites.load(self.suite)
        (part,) = suites.only(suite, [self.prompt_set]).parts
        pictures = len(prompts.load(self.prompt_set)) * part.images_per_prompt
        return suite.sampling.steps * ((self.points + 1) * pictures + 2 * self.points * KL_PROMPTS)


@dataclass(frozen=True)
class Refusal:
    """A method that cannot train on a reward."""

    reward: str
    method: str
    sentence: str


def name_of(reward: str, method: str) -> str:
    """The experiment of a reward as a method trains it."""
    return reward if method == methods.PAPERS else f"{reward}_{method}"


def seeds_told(seeds: Sequence[int]) -> str:
    """Training seeds as a sentence names them."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def own_budget_of(reward: str) -> int:
    """Denoiser evaluations of the paper's experiment for a reward."""
    return evaluations(experiments.load(reward, MODEL))


def in_order(names: Sequence[str]) -> list[str]:
    """The paper's method in full, then within the budget of the others, then the others by name."""
    return sorted(set(names), key=lambda name: (name != IN_FULL, name != methods.PAPERS, name))


def plan(
    method_names: Sequence[str],
    rewards: Sequence[str],
    seeds: Sequence[int],
    budget: int | None = None,
    points: int = POINTS,
) -> list[Cell | Refusal]:
    """Every cell, or in place of a method's the sentence in which it refuses the reward.

    Args:
        method_names: names of methods; none is all.
        rewards: experiments whose reward is trained on; none is all.
        seeds: training seeds.
        budget: denoiser evaluations of a run, but of the paper's method in full; `train.methods.EVALUATIONS` of each reward unless given.
        points: times that a run is scored, that of the paper's method in full twice as often.

    Raises:
        ValueError: for an unknown method or reward, or a budget below one iteration.
    """
    wanted = in_order([choose("method", name, methods.names()) for name in method_names or methods.names()])
    found: list[Cell | Refusal] = []
    for reward in dict.fromkeys(choose("reward", name, QUESTIONS) for name in rewards or QUESTIONS):
        for method in wanted:
            own, each = own_budget_of(reward), budget or methods.EVALUATIONS[reward]
            if method == methods.PAPERS and each < own:
                in_full = cells(reward, method, seeds, own, 2 * points)
                assert not isinstance(in_full, Refusal), "experiments are written for the paper's method"
                found += [replace(cell, in_full=True) for cell in in_full]
            settings = methods.chosen(method, reward) if (method, each) != (methods.PAPERS, own) else None
            made = cells(reward, method, seeds, each, points, settings or ())
            found += [made] if isinstance(made, Refusal) else made
    return found


def cells(
    reward: str,
    method: str,
    seeds: Sequence[int],
    budget: int,
    points: int = POINTS,
    settings: tuple[str, ...] = (),
    suite: str = SUITE,
) -> list[Cell] | Refusal:
    """A method's cells of a reward, a seed each.

    Args:
        reward: whose experiment is trained.
        method: by which.
        seeds: of training.
        budget: denoiser evaluations of each.
        points: times that each is scored.
        settings: in which it differs from the method's variant, as `--set` has them.
        suite: that it is scored by.

    Raises:
        ValueError: for settings that are none, or a budget below one iteration.
    """
    try:
        experiment = checked(methods.variant(method, experiments.load(reward, MODEL), MODEL))
    except ValueError as refused:
        return Refusal(reward, method, str(refused))
    experiment = scored_along(within(checked(override(experiment, settings)), budget), points)
    return [Cell(reward, method, seed, budget, experiment, settings, suite, points) for seed in seeds]


def checked(experiment: Experiment) -> Experiment:
    """The experiment. Raises ValueError where it cannot be trained."""
    check(experiment, 1)
    check_names(experiment)
    return experiment


def scored_along(experiment: Experiment, points: int) -> Experiment:
    """With snapshots after equal shares of it.

    Args:
        experiment: with its iterations.
        points: times that it is scored, its end among them.
    """
    every = max(1, experiment.iterations // points)
    return replace(experiment, snapshots_every=every if points > 1 else 0, samples_every=0)
