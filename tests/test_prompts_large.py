"""Prompt sets of millions in training: what is asked when, what is too long, what the run card says, at no cost that grows with the set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prompts
from evals import cut
from evals.conditioning import PromptEncoder
from prompts import LazyPrompts, Prompt
from tests import toy
from train.data import _generator, positions, prompts_of
from train.loop import train
from train.start import hand_over, new_accelerator, prepare


def test_positions_are_those_of_a_shuffled_list() -> None:
    """As they were when a pass was kept as a tuple: earlier runs resume with the same prompts."""
    size, start, count = 23, 40, 30
    passes = [torch.randperm(size, generator=_generator("a", 5, number)).tolist() for number in range(4)]
    endless = [item for one in passes for item in one]
    assert positions(size, start, count, "a", 5) == endless[start : start + count]
    assert all(type(at) is int for at in positions(size, start, count, "a", 5))


def test_an_iteration_makes_only_the_prompts_that_it_asks() -> None:
    made: list[int] = []

    def make(number: int) -> Prompt:
        made.append(number)
        return Prompt(str(number), "text")

    (task, _) = toy.toy_experiment("", "").tasks
    task = replace(task, batch=4096, images_per_prompt=2)
    asked = prompts_of(task, LazyPrompts(make, 1_500_000, "many"), 0, 300)
    assert len(made) == len(set(made)) == len(asked) == 2048
    assert max(made) > 1_000_000


class OneTokenAWord:
    """A tokenizer that counts what it is given."""

    model_max_length = 3

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, texts: list[str], **_: Any) -> Any:
        self.read += len(texts)
        return type("Encoding", (), {"input_ids": [text.split() for text in texts]})


def every(nth: int, count: int, offset: int = 0) -> LazyPrompts:
    """Every nth prompt is too long."""
    return LazyPrompts(
        lambda number: Prompt(str(number), "a b c" + " d" * (number % nth == offset)),
        count,
        f"{nth} {offset}",
    )


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (every(7, 7), "1 of the 7 prompts of set is"),
        (every(5, 10), "2 of the 10 prompts of set are"),
        (every(5, 100), "about 20 of the 100 prompts of set are"),
        (every(4, 10_000_000), "about 2500000 of the 10000000 prompts of set are"),
    ],
    ids=["one", "two", "some", "many"],
)
def test_of_many_prompts_some_are_counted(
    monkeypatch: pytest.MonkeyPatch, asked: LazyPrompts, count: str
) -> None:
    monkeypatch.setattr(cut, "COUNTED", 99)
    tokenizer = OneTokenAWord()
    encoder = PromptEncoder([(tokenizer, torch.nn.Identity())], None)
    assert encoder.what_is_cut("set", asked) == f"note: {count} longer than the 3 tokens that the model reads"
    assert tokenizer.read == min(len(asked), 99)


def test_nothing_is_said_where_nothing_is_cut() -> None:
    encoder = PromptEncoder([(OneTokenAWord(), torch.nn.Identity())], None)
    assert encoder.what_is_cut("set", every(100, 50, 99)) == ""


@pytest.mark.usefixtures("toy_scorers")
def test_a_run_on_a_million_prompts(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tiny_pipeline_dir, toy_prompts)
    (task, _) = experiment.tasks
    experiment = replace(experiment, tasks=(replace(task, prompts="composition-train"),), iterations=2)
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    assert isinstance(run.prompt_sets["composition-train"], LazyPrompts)
    train(run)
    hand_over(run, "run")
    card = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert card["prompt_sets"] == {"composition-train": prompts.digest(prompts.load("composition-train"))}
