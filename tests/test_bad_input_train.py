"""Mistakes on the trainer's command line: one sentence that names field and choices, exit code 2, nothing lost."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import errors

from evals import scorers
from evals.checkpoints import resolve
from evals.diffusion import Sampling, Schedule
from evals.signals import STOPS
from prompts import Prompt
from prompts.lock import locked
from tests import toy
from train import experiments, start
from train.__main__ import main
from train.command import run_name
from train.config import (
    MEMORY_FIELDS,
    Ema,
    Experiment,
    Lora,
    Pretraining,
    Reward,
    Task,
    Update,
    as_json,
    check,
    chosen_fields,
    differences,
    nearest_multiple,
    override,
    with_reward,
)
from train.methods import load as load_method
from train.plan import check_targets, refuse_steps
from train.resources import adaptable
from train.rewards import check_rewards
from train.state import latest

pytestmark = pytest.mark.usefixtures("toy_scorers")

Run = Callable[..., Result]

LOAD = scorers.load
"""Before the toys take its place."""


@pytest.fixture
def run(
    tiny_pipeline_dir: Path, toy_prompts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Run]:
    """The command line on the toy experiment."""
    toy_one = toy.toy_experiment(tiny_pipeline_dir, toy_prompts, iterations=1)
    monkeypatch.setattr(experiments, "load", lambda _experiment, _model: toy_one)
    before = {number: signal.getsignal(number) for number in STOPS}

    def invoke(*arguments: str, out: Path = tmp_path / "run") -> Result:
        return CliRunner().invoke(main, ["toy", "--on", "tiny", "--out", str(out), *arguments])

    yield invoke
    for number, handler in before.items():
        signal.signal(number, handler)


def refused(result: Result, *parts: str) -> None:
    """Exit code 2 and one sentence with these parts, no traceback."""
    assert result.exit_code == 2, result.output
    message = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(message) == 1
    assert "Traceback" not in result.output
    for part in parts:
        assert part in message[0]


# ------------------------------------------------------------------------------------------------------- unknown things


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fairnes"], ["unknown experiment 'fairnes'", "did you mean fairness?", "compositionality"]),
        (["fairness_ppo"], ["experiment fairness is trained by ppo as it is: leave _ppo out"]),
        (["joint_gdpo_grp"], ["unknown method 'grp' (did you mean grpo?): choose from awm, "]),
        (["fairness", "--on", "miniatur"], ["unknown model", "did you mean miniature?"]),
        (["fairness", "--set", "update.lrr=1"], ["unknown field 'update.lrr'", "did you mean update.lr?"]),
        (
            ["fairness", "--set", "update.step_weight=balance"],
            ["unknown value of update.step_weight", "none, balanced"],
        ),
        (["fairness", "--set", "iterations=many"], ["iterations=many", "is not a whole number"]),
        (["fairness", "--set", "lr=fast"], ["'fast' is not a number"]),
        (["fairness", "--set", "lr=nan"], ["is not finite"]),
        (["fairness", "--set", "lr"], ["not of the form field=value"]),
        (["fairness", "--set", "micro_batch=4"], ["ambiguous", "sampling.micro_batch, update.micro_batch"]),
        (["fairness", "--set", "tasks.root=maybe"], ["unknown value", "true, false"]),
        (["fairness", "--set", "update.betas=0.9"], ["needs 2 values"]),
        (["fairness", "--set", "lora=yes"], ["choose none, or set one of its fields"]),
        (["fairness", "--set", "sampling.steps=0"], ["sampling.steps is 0"]),
        (["fairness", "--set", "base="], ["--set base= gives nothing"]),
        (
            ["fairness", "--set", "iterations=3", "--set", "lr=1e-5", "--set", "iterations=5"],
            ["--set iterations=3 and --set iterations=5 are both given: leave one out"],
        ),
    ],
)
def test_what_is_unknown_is_named_with_its_choices(arguments: list[str], parts: list[str]) -> None:
    refused(CliRunner().invoke(main, [*arguments, "--dry-run"]), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--reward", "redness=less_is_better"], ["tasks.redness.rewards has scorer less_is_better", "negative weight"]),
        (["--reward", "redness=tone"], ["scorer tone", "higher_is_better is None", "shaping is parity"]),
        (["--reward", "redness=no_scope"], ["no_scope has the scope 'picture': choose from image, prompt"]),
        (
            ["--reward", "redness=of_prompt", "--set", "tasks.redness.baseline=batch", "--set", "tasks.redness.images_per_prompt=1"],
            ["scorer of_prompt", "tasks.redness.images_per_prompt is 1: use at least 2"],
        ),
        (["--set", "tasks.classes=5"], ["tasks.tone.classes is 5, but scorer tone answers 0 to 3: use 4"]),
        (["--set", "tasks.classes=3"], ["tasks.tone.classes is 3", "use 4"]),
        (["--reward", "tone=redness"], ["tasks.tone.shaping is parity", "scorer redness answers -1 to 1"]),
    ],
)  # fmt: skip
def test_a_reward_that_is_not_for_its_task_is_refused_before_anything_loads(
    run: Run, arguments: list[str], parts: list[str]
) -> None:
    refused(run(*arguments, "--dry-run"), *parts)


def test_less_of_a_fault_is_trained_on_with_a_negative_weight() -> None:
    experiment = toy.toy_experiment("base", "prompts")
    first = replace(experiment.tasks[0], rewards=(Reward("less_is_better", -1.0),))
    loaded = {name: toy.load_scorer(name) for name in ("less_is_better", "tone")}
    check_rewards(replace(experiment, tasks=(first, experiment.tasks[1])), loaded)


@pytest.mark.parametrize(
    ("experiment", "arguments", "parts"),
    [
        ("fairness", ["--set", "tasks.classes=5"], ["scorer skin_tone answers 0 to 3: use 4"]),
        ("fairness", ["--reward", "monk_tone"], ["classes is 4, but scorer monk_tone answers 0 to 9: use 10"]),
        ("imagereward", ["--reward", "skin_tone"], ["higher_is_better is None"]),
        (
            "imagereward",
            ["--processes", "8", "--set", "sampling.steps=1000"],
            ["sampling.steps is 1000", "steps_offset of 1", "use at most 999"],
        ),
    ],
)  # fmt: skip
def test_stable_diffusion_is_refused_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, experiment: str, arguments: list[str], parts: list[str]
) -> None:
    monkeypatch.setattr("evals.scorers.load", LOAD)
    refused(CliRunner().invoke(main, [experiment, "--on", "sd2", *arguments, "--dry-run"]), *parts)


@pytest.mark.parametrize(
    ("experiment", "settings", "within"),
    [
        ("imagereward", [], "tasks.imagereward.baseline is group, which compares them with each other: use batch"),
        ("imagereward_grpo", [], "the method is grpo, which compares them with each other: use the method ppo"),
        ("imagereward_window", [], "the method is window"),
        ("imagereward_ddpo", [], "the method is ddpo"),
        ("imagereward_nft", ["method.relative_to=group"], "method.relative_to is group, which compares them with each other: use batch"),
        ("imagereward_awm", ["method.relative_to=group"], "method.relative_to is group"),
        ("imagereward_raft", ["method.rank=prompt", "method.candidates=4"], "method.rank is prompt"),
        ("joint_gdpo", [], "mixing is gdpo, which compares them with each other: use zscores or tasks"),
    ],
)  # fmt: skip
def test_a_reward_that_all_images_of_a_prompt_share_is_refused_where_they_are_compared(
    experiment: str, settings: list[str], within: str
) -> None:
    reward = "imagereward=vendi" if experiment == "joint_gdpo" else "vendi"
    chosen = with_reward(override(experiments.load(experiment, "miniature"), settings), reward)
    loaded = {name: LOAD(name, "cpu", "miniature") for name in chosen.scorers}
    check(chosen, 1)
    with pytest.raises(ValueError) as refusal:
        check_rewards(chosen, loaded)
    told = f"tasks.imagereward.rewards has scorer vendi, which gives all images of a prompt one value, but {within}"
    assert str(refusal.value).startswith(told)
    assert str(refusal.value).endswith(", or a scorer that tells them apart")


def test_a_reward_that_all_images_of_a_prompt_share_is_trained_on_where_the_batch_is_compared() -> None:
    for name, settings in (("imagereward", ["baseline=batch"]), ("imagereward_nft", ["baseline=batch"])):
        chosen = with_reward(override(experiments.load(name, "miniature"), settings), "vendi")
        check_rewards(chosen, {scorer: LOAD(scorer, "cpu", "miniature") for scorer in chosen.scorers})
    each = with_reward(experiments.load("imagereward_grpo", "miniature"), "pairwise_distance")
    check_rewards(each, {scorer: LOAD(scorer, "cpu", "miniature") for scorer in each.scorers})


@pytest.mark.parametrize(
    ("experiment", "needs"),
    [("compositionality", "scorer objects cannot answer for {}: none of its 2 prompts names an object, as "), ("fairness", "scorer skin_tone cannot answer for {}: none of its 2 prompts is a portrait")],
)  # fmt: skip
def test_stable_diffusion_is_refused_prompts_that_its_reward_has_nothing_to_say_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, experiment: str, needs: str
) -> None:
    """In the plan: it was said once the first pictures were drawn."""
    monkeypatch.setattr("evals.scorers.load", LOAD)
    mine = tmp_path / "mine.txt"
    mine.write_text("a cat\na dog\n")
    refused(
        CliRunner().invoke(main, [experiment, "--on", "sd2", "--set", f"tasks.prompts={mine}", "--dry-run"]),
        needs.format(mine),
        "; the first is '00001', 'a cat': ",
        f"tasks.{experiment}.rewards needs it, so give tasks.{experiment}.prompts that it can answer for, or train on another scorer",
    )


def test_a_set_of_this_project_is_held_to_its_scorer_before_weights_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evals.scorers.load", LOAD)
    chosen = override(experiments.load("compositionality", "sd2"), ["tasks.prompts=occupations"])
    with pytest.raises(
        ValueError,
        match="scorer objects cannot answer for occupations: none of its 100 prompts names an object",
    ):
        start.named_inputs(chosen, "cpu")


@pytest.mark.parametrize("target", ["to_q", "attn1.to_out.0", "conv1", "net.2"])
def test_what_can_have_adapters_is_not_refused(target: str) -> None:
    chosen = override(experiments.load("imagereward", "sd2"), [f"lora.targets={target}"])
    check_targets(chosen)
    assert any(f".{module}".endswith(f".{target}") for module in adaptable(chosen))
    mistaken = override(chosen, [f"lora.targets={target},foo"])
    with pytest.raises(ValueError, match=r"unknown module in lora.targets 'foo': .* to_k, to_out.0, to_q, "):
        check_targets(mistaken)


@pytest.mark.parametrize("bounds", [None, "0-1", (0, 1, 2), (0.0, None)])
def test_a_reward_whose_range_is_none_is_refused_before_anything_is_drawn(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: object
) -> None:
    class Scorer:
        range, higher_is_better, source, scope, version = bounds, True, "own", "image", "0" * 8

    monkeypatch.setattr(
        "evals.scorers.load",
        lambda name, *given: Scorer() if name == "own" else toy.load_scorer(name, *given),
    )
    refused(run("--reward", "redness=own", "--dry-run"), f"scorer own has the range {bounds!r}, but")


# ------------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["tasks.redness.batch=9"], ["groups of 2", "the nearest that works is 10"]),
        (["tasks.tone.batch=0"], ["tasks.tone.batch is 0", "nearest that works is 4"]),
        (["tasks.tone.images_per_prompt=1"], ["parity compares at least 2"]),
        (["update.trained_steps=5"], ["update.trained_steps is 5", "only 4 denoising steps"]),
        (["update.trained_steps=3", "update.skip_last=2"], ["only 2 denoising steps"]),
        (["update.skip_last=4"], ["0 to 3 of 4 steps"]),
        (["sampling.eta=0"], ["no log-probability"]),
        (["sampling.eta=1e-320"], ["sampling.eta is 1e-320, but below 1e-07", "rounding of a latent"]),
        (["update.clip=0"], ["update.clip is 0.0"]),
        (["update.betas=0.9,1"], ["update.betas is (0.9, 1.0)"]),
        (["update.adam_eps=-1"], ["update.adam_eps is -1.0"]),
        (["update.weight_decay=-1"], ["update.weight_decay is -1.0"]),
        (["pretraining.batch=4"], ["pretraining.source is not given"]),
        (["pretraining.source=miniature"], ["pretraining.source is miniature, but domain is photo"]),
        (["pretraining.source=data", "pretraining.batch=0"], ["pretraining.batch is 0", "at least 1"]),
        (["pretraining.source=data", "pretraining.beta=-1"], ["pretraining.beta is -1.0"]),
        (["lora.alpha=0"], ["lora.alpha is 0.0, but it must be above 0"]),
        (["lora.targets="], ["lora.targets is empty"]),
        (["lora.targets=to_kv"], ["unknown module in lora.targets 'to_kv' (did you mean to_v?)"]),
        (["base=owner/name@main"], ["base: owner/name@main names a revision"]),
        (
            ["pretraining.source=data", "max_unreadable=1"],
            ["pretraining.max_unreadable is 1.0", "[0, 1)"],
        ),
        (["iterations=-1"], ["iterations is -1"]),
        (["ema.decay=1"], ["ema.decay is 1.0"]),
        (["tasks.tone.max_invalid=1"], ["tasks.tone.max_invalid"]),
        (
            ["tasks.redness.images_per_prompt=1", "tasks.redness.baseline=group"],
            ["tasks.redness.baseline is group", "images_per_prompt of at least 2"],
        ),
        (["tasks.tone.baseline=group"], ["tasks.tone.baseline is group", "shaping pointwise"]),
        (["tasks.tone.unusable=worst", "tasks.tone.credit=shared"], ["unusable is worst", "leave_one_out"]),
        (
            ["tasks.redness.classes=9"],
            ["tasks.redness.classes is 9", "pointwise: leave it at 4, or use parity"],
        ),
        (
            ["tasks.redness.credit=leave_one_out"],
            ["tasks.redness.credit is leave_one_out", "leave it at shared"],
        ),
        (["sampling.steps=2000"], ["1000 timesteps"]),
    ],
)
def test_impossible_geometry_is_refused_with_the_nearest_that_works(
    run: Run, settings: list[str], parts: list[str]
) -> None:
    refused(run(*[f"--set={setting}" for setting in settings]), *parts)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("lora.rank=4", "lora is set, but this experiment trains nothing: leave it out"),
        ("ema.decay=.5", "ema is set, but this experiment trains nothing: leave it out"),
        ("pretraining.source=miniature", "pretraining is set, but this experiment trains nothing: leave it out"),
        ("update.lr=1e-3", "update.lr is 0.001, but this experiment trains nothing: leave it at 2e-06"),
    ],
)  # fmt: skip
def test_the_base_takes_no_settings_of_training(setting: str, sentence: str) -> None:
    result = CliRunner().invoke(main, ["base", "--set", setting, "--dry-run"])
    refused(result, f"error: {sentence}")


def test_every_variant_of_the_base_can_be_handed_over() -> None:
    for variant in experiments.models("base").values():
        check(variant, 1)
        check(override(variant, ["update.sharding=fsdp2", "update.micro_batch=1"]), 8)


def test_a_revision_of_a_folder_is_refused_in_the_plan(run: Run, tiny_pipeline_dir: Path) -> None:
    for words in (["--dry-run"], []):
        refused(run("--set=revision=main", *words), f"revision is main, but {tiny_pipeline_dir} is a folder")


@pytest.mark.parametrize(("batch", "processes", "nearest"), [(8, 3, 6), (10, 4, 8), (8, 5, 10), (2, 2, 4)])
def test_batches_that_processes_cannot_share_are_refused(batch: int, processes: int, nearest: int) -> None:
    experiment = toy.toy_experiment("base", "prompts")
    task = replace(experiment.tasks[0], batch=batch)
    with pytest.raises(
        ValueError, match=f"{processes} processes cannot share evenly: the nearest that works is {nearest}$"
    ):
        check(replace(experiment, tasks=(task,)), processes)
    check(replace(experiment, tasks=(replace(task, batch=nearest),)), processes)


@pytest.mark.parametrize(
    ("number", "divisor", "expected"),
    [(9, 2, 10), (7, 4, 8), (5, 4, 4), (1, 16, 16), (0, 3, 3), (32, 16, 32)],
)
def test_nearest_multiple(number: int, divisor: int, expected: int) -> None:
    assert nearest_multiple(number, divisor) == expected


# ------------------------------------------------------------------------------------------------------------- settings


def test_settings_reach_their_fields() -> None:
    experiment = toy.toy_experiment("base", "prompts")
    changed = override(
        experiment,
        [
            "lr=3e-5",
            "update.betas=0.8,0.9",
            "tasks.tone.credit=shared",
            "tasks.batch=16",
            "sampling.guidance=none",
            "lora.rank=3",
        ],
    )
    assert changed.update.lr == 3e-5
    assert changed.update.betas == (0.8, 0.9)
    assert [task.credit for task in changed.tasks] == ["shared", "shared"]
    assert [task.batch for task in changed.tasks] == [16, 16]
    assert changed.sampling.guidance is None
    assert changed.lora == Lora(rank=3)
    assert override(changed, ["lora=none"]).lora is None
    assert override(experiment, ["tasks.redness.root=false"]).tasks[0].root is False
    # of the reward of a set, and so of no other task's
    assert [task.root for task in override(experiment, ["root=false"]).tasks] == [True, False]
    assert [task.classes for task in override(experiment, ["tasks.classes=3"]).tasks] == [4, 3]


def test_another_reward_takes_the_place_of_a_tasks_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = toy.toy_experiment("base", "prompts")
    changed = with_reward(experiment, "redness=tone")
    assert [task.rewards for task in changed.tasks] == [(Reward("tone"),), experiment.tasks[1].rewards]
    one = replace(experiment, tasks=experiment.tasks[:1])
    monkeypatch.chdir(tmp_path)
    assert with_reward(one, "mine.py").tasks[0].rewards == (Reward(str(tmp_path / "mine.py")),)
    for refuse, given, told in (
        (experiment, "tone", "say of which task, TASK=tone, one of redness, tone"),
        (experiment, "rednes=tone", "unknown task 'rednes' .did you mean redness"),
        (replace(experiment, tasks=()), "tone", "has no task to train on"),
    ):
        with pytest.raises(ValueError, match=told):
            with_reward(refuse, given)


def test_another_base_leaves_the_revision_of_the_first_behind() -> None:
    pinned = experiments.load("imagereward", "sd2_1gpu")
    assert pinned.revision is not None
    assert override(pinned, ["base=/somewhere"]).revision is None
    for settings in (["base=me/own", "revision=abc"], ["revision=abc", "base=me/own"]):
        assert override(pinned, settings).revision == "abc"
    assert override(pinned, [f"base={pinned.base}"]).revision == pinned.revision


def test_monitors_can_be_none() -> None:
    watched = toy.toy_experiment("base", "prompts")
    assert [task.monitors for task in override(watched, ["tasks.monitors=none"]).tasks] == [(), ()]


@pytest.mark.parametrize(
    ("out", "changed", "name"),
    [
        (None, False, "imagereward-sd2-0"),
        (None, True, "imagereward-sd2-0"),  # in the experiment's own folder there is one run only
        ("runs/redness-sd2-0", True, "redness-sd2-0"),
        ("runs/again-sd2-0", False, "again-sd2-0"),
        ("runs/my-own.red-sd2-0/", True, "my_own.red-sd2-0"),  # what `evals` can read a name from
        ("elsewhere/first", False, "imagereward-sd2-0"),
        ("elsewhere/first", True, "first-sd2-0"),
        ("runs/redness-sd2-1", True, "redness_sd2_1-sd2-0"),
    ],
)  # fmt: skip
def test_a_run_of_ones_own_is_called_as_its_folder(out: str | None, changed: bool, name: str) -> None:
    place = None if out is None else Path(out)
    assert run_name("imagereward", "sd2", 0, place, ["update.lr"] * changed) == name


def test_the_base_is_called_so_and_nothing_else_is() -> None:
    assert run_name("base", "sd2", 0, Path("runs/first-sd2-0"), ["base"]) == "base-sd2-0"
    with pytest.raises(ValueError, match="--out runs/base-sd2-0 would call a trained model the base"):
        run_name("imagereward", "sd2", 0, Path("runs/base-sd2-0"), [])


def test_scores_of_a_run_with_another_reward_are_its_own(run: Run, tmp_path: Path) -> None:
    """The same command is still the same run."""
    out = tmp_path / "less-tiny-0"
    for told in ("less-tiny-0 is finished: ", "nothing to do"):
        done = run("--reward", "tone=tone", "--set", "tasks.batch=4", out=out)
        assert done.exit_code == 0, done.output
        assert told in done.output
    assert resolve(str(out)).name == "less-tiny-0"


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"steps_offset": 1}, 999),
        ({"steps_offset": 1, "num_train_timesteps": 50}, 49),
        ({}, 1000),
        ({"steps_offset": 1, "timestep_spacing": "trailing"}, 1000),
    ],
)
def test_as_many_steps_as_a_schedule_has_are_let_through(config: dict[str, Any], most: int) -> None:
    """What is refused cannot be made a schedule of, and what is let through can."""
    trained = config.get("num_train_timesteps", 1000)
    scheduler = SimpleNamespace(config=config)
    refuse_steps(config, most)
    assert len(Schedule.of(scheduler, most)) == most
    if most < trained:
        with pytest.raises(ValueError, match=f"use at most {most}$"):
            refuse_steps(config, trained)
        with pytest.raises(IndexError):
            Schedule.of(scheduler, trained)


def test_differences_are_named_by_field() -> None:
    one = toy.toy_experiment("base", "prompts")
    two = override(one, ["lr=1", "tasks.tone.batch=16", "sampling.micro_batch=2"])
    found = differences(as_json(one), as_json(two), but=("sampling.micro_batch",))
    assert found == ["tasks.tone.batch (8 -> 16)", "update.lr (0.001 -> 1.0)"]


def test_a_run_that_was_stored_before_a_field_existed_goes_on() -> None:
    now = as_json(toy.toy_experiment("base", "prompts"))
    stored = as_json(toy.toy_experiment("base", "prompts"))
    del stored["task_order"], stored["update"]["theta_old"], stored["tasks"][1]["baseline"]
    assert differences(stored, now) == []
    del stored["update"]["clip"]  # 1e-4 unless it says otherwise, and this one does
    assert differences(stored, now) == ["update.clip (0.0001 -> 0.01)"]


def test_a_new_field_at_its_default_leaves_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from train.methods import ppo

    @dataclass(frozen=True)
    class Longer(ppo.Method):
        """With a field that ppo has not today."""

        added: int = 5

    now = toy.toy_experiment("base", "prompts")
    before = chosen_fields(now)
    monkeypatch.setattr(Longer, "__module__", ppo.__name__)
    monkeypatch.setattr(ppo, "Method", Longer)
    assert chosen_fields(replace(now, method=Longer())) == before
    assert chosen_fields(replace(now, method=Longer(6))) == before | {"method.added": 6}


def test_whatever_differs_from_a_default_is_chosen() -> None:
    now = toy.toy_experiment("base", "prompts")
    found = chosen_fields(now)
    assert found["update.lr"] == 1e-3
    assert "update.theta_old" not in found
    assert (found["method"], found["tasks"]) == ("ppo", ["redness", "tone"])
    # a section that is on with every default is not one that is off
    with_lora = chosen_fields(override(now, ["lora.rank=4"]))
    on = replace(now, lora=Lora())
    assert chosen_fields(on) != found
    assert with_lora != chosen_fields(on)
    # and it tells apart what `differences` does
    for setting in ("tasks.tone.batch=16", "iterations=7", "task_order=rotated", "update.lr=1e-3"):
        other = override(now, [setting])
        assert bool(differences(as_json(now), as_json(other))) == (chosen_fields(other) != found)


def test_every_field_has_a_docstring_of_one_line() -> None:
    import ast
    import inspect

    from train import config

    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(after, ast.Expr), f"{node.name}: {ast.unparse(field)}"
                    assert isinstance(after.value, ast.Constant)


# ----------------------------------------------------------------------------------------------------------- experiments


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_possible_on_one_and_two_processes(name: str) -> None:
    import prompts

    for model, experiment in experiments.models(name).items():
        for processes in (1, 2):
            check(experiment, processes)
        if model == "miniature":
            for task in experiment.tasks:
                assert task.prompts in prompts.names()


def test_joint_is_the_union_of_the_three() -> None:
    for model, joint in experiments.models("joint").items():
        three = [experiments.load(name, model) for name in ("imagereward", "compositionality", "fairness")]
        tasks = [task for experiment in three for task in experiment.tasks]
        assert len(joint.tasks) == 3
        # preference is compared with the whole batch, as in the paper
        tasks[0] = replace(tasks[0], images_per_prompt=1, baseline="batch")
        for mine, task in zip(joint.tasks, tasks, strict=True):
            assert mine == replace(task, batch=mine.batch)


def test_preference_is_compared_within_its_prompts() -> None:
    (task,) = experiments.load("imagereward", "miniature").tasks
    assert (task.baseline, task.images_per_prompt) == ("group", 4)


def test_dry_run_says_what_it_would_cost(run: Run, tmp_path: Path) -> None:
    result = run("--dry-run", "--set=update.skip_last=1", "--set=update.step_weight=balanced")
    assert result.exit_code == 0
    # 8 images x 2 branches x (4 sampled + 2 trained steps)
    assert (
        "redness: 4 prompts x 2 images, 96 denoiser evaluations and 2 optimiser steps an iteration"
        in result.output
    )
    assert "never drawn" in result.output
    assert "192 denoiser evaluations and 4 optimiser steps in all" in result.output
    assert json.loads(result.output[result.output.index("{") :])["tasks"][1]["credit"] == "leave_one_out"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("processes", "share"), [(1, "8 images, drawn in 2 x 4"), (2, "4 images, drawn in 1 x 4")]
)
def test_plan_says_what_each_process_does(run: Run, processes: int, share: str) -> None:
    result = run("--dry-run", f"--processes={processes}", "--set=update.micro_batch=3")
    assert result.exit_code == 0
    accumulated = {1: "3 x 3", 2: "2 x 3"}[processes]
    assert f"on a process {share}, gradients accumulated over {accumulated}" in result.output


def test_the_papers_setting_is_planned_on_any_machine(tiny_pipeline_dir: Path) -> None:
    """128 GPUs of 16 images, 50 steps with guidance, 5 of them trained (paper, App. A)."""
    from train.plan import evaluations, plan

    task = Task("imagereward", "prompts", (Reward("imagereward"),))
    sampling = Sampling(steps=50, eta=1.0, guidance=7.5, micro_batch=16)
    paper = Experiment(base=str(tiny_pipeline_dir), tasks=(task,), sampling=sampling)
    check(paper, 128)
    told = plan(paper, 128)
    assert "1000 iterations" in told
    assert "2048 prompts x 1 images" in told
    assert "on a process 16 images, drawn in 1 x 16, gradients accumulated over 1 x 16" in told
    assert evaluations(paper) == 1000 * 2048 * 2 * 55


def test_the_plan_says_where_pretraining_pictures_are_not_here(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    """Told, not refused: a plan for a cluster may be made on a laptop."""
    from train.plan import plan

    def told(source: str) -> str:
        experiment = toy.toy_experiment(tiny_pipeline_dir, "prompts")
        lines = plan(replace(experiment, pretraining=Pretraining(source, 8)), 1).splitlines()
        return next(line for line in lines if "pretraining" in line)

    shards = f"{tmp_path}/{{00..01}}.tar"
    absent = ", which is not on this machine"
    (tmp_path / "00.tar").touch()
    assert absent in told(f"{tmp_path}/laion")
    assert absent in told(shards)
    (tmp_path / "01.tar").touch()
    assert not any(absent in told(source) for source in ("miniature", str(tmp_path), shards))


def test_plan_counts_the_weights_that_are_trained(
    tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import resources
    from train.plan import plan

    count = sum(p.numel() for p in toy.build_tiny_pipeline().unet.parameters())
    experiment = toy.toy_experiment(tiny_pipeline_dir, "prompts")
    assert sum(map(math.prod, (resources._denoiser_shapes(experiment) or {}).values())) == count
    monkeypatch.setattr(resources, "_denoiser_shapes", lambda _: {"weight": (2**28,)})
    told = plan(experiment, 1)
    assert (
        "memory of a process: 4.0 GiB in the update (268.4 M trained weights 1.0, gradients 1.0, AdamW 2.0)"
        in told
    )
    (line,) = (line for line in told.splitlines() if line.startswith("memory of a process: "))
    assert "on top: the update's activations, text encoders and decoder, " in line
    assert line.endswith(", activations of the scorers redness, tone")
    assert "AdamW 2.0, average 1.0)" in plan(replace(experiment, ema=Ema()), 1)
    assert "1.0 GiB in the update (268.4 M frozen weights 1.0, " in plan(replace(experiment, lora=Lora()), 1)


def test_plan_knows_published_architectures_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight counts as published; SD2's text encoder and decoder are 424 M weights."""
    from train.plan import plan

    paper = experiments.load("imagereward", "sd2")
    told = plan(paper, 128)
    assert "865.9 M trained weights 3.2, AdamW 6.5" in told
    assert "text encoders and decoder 1.6" in told
    assert "frozen weights 9.6" in plan(experiments.load("imagereward", "sdxl_1gpu"), 1)


def test_plan_tells_the_time_where_such_a_device_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import records
    from train.plan import plan

    paper = experiments.load("imagereward", "sd2")
    monkeypatch.setattr(records, "everything", partial(records.everything, tmp_path))
    assert "time on" not in plan(paper, 128)
    case = records.Case.of(paper, "sd2")
    record = records.Record(
        case, 0.01, 0.03, 0.1, 1.1, 1.0, "made up", None, 40.0, 0.0, 1e-5, "2026-01-01", "c", "t"
    )
    path = records.add("A GPU", record, tmp_path)
    # 16 images on each: (2 branches x (50 x .01 + 5 x .03) + .1) x 16 x 1.1
    told = f"time on A GPU, measured 2026-01-01: {16 * (2 * (0.5 + 0.15) + 0.1) * 1.1:.3g} s an iteration and 6.84 h in all"
    assert told in plan(paper, 128)
    assert "time on" not in plan(experiments.load("imagereward", "sd15"), 128)
    assert "time on" not in plan(replace(paper, update=replace(paper.update, compile=True)), 128)
    path.write_text("{}")
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        plan(paper, 128)


# ------------------------------------------------------------------------------------------------- run directories, bases


def test_finished_run_says_so_and_another_is_refused(run: Run, tmp_path: Path) -> None:
    assert run().exit_code == 0
    again = run()
    assert again.exit_code == 0
    assert "is finished" in again.output
    refused(run("--set=lr=0.5", "--seed=1"), "update.lr (0.001 -> 0.5)", "seed (0 -> 1)")
    assert run("--set=sampling.micro_batch=2").exit_code == 0


def test_an_unfinished_run_with_other_settings_is_refused(run: Run, tmp_path: Path) -> None:
    assert run().exit_code == 0
    (tmp_path / "run" / "run.json").unlink()
    refused(run("--set=tasks.redness.batch=4"), "tasks.redness.batch (8 -> 4)")
    assert run().exit_code == 0


def test_the_same_command_at_once_is_refused_and_goes_on_when_the_other_has_ended(
    run: Run, tmp_path: Path
) -> None:
    with locked(tmp_path / ".run.lock"):  # what the other holds
        refused(run(), "run is being trained by another command: wait for its end, or choose another --out")
        assert not (tmp_path / "run").exists()
    assert run().exit_code == 0


@pytest.mark.parametrize(
    ("of_task", "changes", "told"),
    [
        ({"shaping": "Parity"}, {}, r"tasks.redness.shaping 'Parity' \(did you mean parity\?\): choose from"),
        ({"baseline": "prompt"}, {}, "tasks.redness.baseline 'prompt': choose from batch, group"),
        ({"batch": 8.0}, {}, "tasks.redness.batch is 8.0, but it must be a whole number"),
        ({"monitors": "tone"}, {}, r"tasks.redness.monitors is 'tone', but it must be a tuple: \('tone',\)"),
        ({"rewards": ("redness",)}, {}, "tasks.redness.rewards has 'redness', which is no Reward"),
        ({"rewards": (Reward("redness", math.nan),)}, {}, "rewards.weight is nan, but it must be a finite"),
        (
            {"rewards": (Reward("redness", 0.0),)},
            {},
            "redness with the weight 0, which trains nothing",
        ),
        ({}, {"update": Update(decay="cosine")}, "update.decay 'cosine': choose from constant, linear"),  # type: ignore[arg-type]
        (
            {},
            {"update": Update(weight_decay=math.nan)},
            "update.weight_decay is nan, but it must be a finite",
        ),
        ({}, {"pretraining": Pretraining("x", beta=math.nan)}, "pretraining.beta is nan"),
        (
            {},
            {"method": replace(load_method("awm")(), timesteps="all")},
            "method.timesteps 'all': choose from",
        ),
        ({}, {"ema": 0.9}, "ema has 0.9, which is no Ema"),
        ({}, {"iterations": True}, "iterations is True, but it must be a whole number"),
    ],
)
def test_what_a_field_cannot_hold_is_refused_in_an_experiment_of_ones_own(
    of_task: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    """Python takes any text for a field of choices, and code that asks for the other one does not see it."""
    experiment = toy.toy_experiment("base", "prompts")
    check(experiment, 1)
    task = replace(experiment.tasks[0], **of_task)
    with pytest.raises(ValueError, match=told):
        check(replace(experiment, tasks=(task, *experiment.tasks[1:]), **changes), 1)


def test_parity_cannot_be_trained_against() -> None:
    experiment = toy.toy_experiment("base", "prompts")
    tone = replace(experiment.tasks[1], rewards=(Reward("tone", -1.0),))
    with pytest.raises(
        ValueError, match=r"tasks\.tone\.rewards has tone with the weight -1, which trains away from parity"
    ):
        check(replace(experiment, tasks=(tone,)), 1)


def test_a_finished_run_is_said_to_be_where_nothing_can_be_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path, wait: bool) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    assert run().exit_code == 0
    monkeypatch.setattr("train.command.locked", refuses)
    result = run()
    assert result.exit_code == 0, result.output
    assert "nothing to do" in result.output
    refused(run("--seed=1"), "other settings, seed")


def test_a_folder_that_is_trained_in_by_another_name_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with locked(tmp_path / ".run.lock"):
        refused(run(out=tmp_path / "link"), "link is being trained by another command")


def test_a_reward_may_lie_in_a_folder_with_an_equals_sign(tmp_path: Path) -> None:
    experiment = toy.toy_experiment("base", "prompts")
    file = tmp_path / "lr=1e-5" / "redness.py"
    changed = with_reward(experiment, f"redness={file}")
    assert changed.tasks[0].rewards == (Reward(str(file)),)
    alone = with_reward(replace(experiment, tasks=experiment.tasks[:1]), str(file))
    assert alone.tasks[0].rewards == (Reward(str(file)),)


def test_a_folder_beside_which_nothing_can_be_written_is_locked_in_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a volume that is mounted for a user who is not root."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder / ".lock"):
        refused(run(), "run is being trained by another command")
    assert run().exit_code == 0
    assert not (tmp_path / ".run.lock").exists()


def test_foreign_folders_and_files_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years of work")
    refused(run(out=tmp_path / "home"), "no run directory", "thesis.txt")
    refused(run(out=tmp_path / "home" / "thesis.txt"), "is a file")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "three years of work"
    (tmp_path / "paper" / "state").mkdir(parents=True)
    (tmp_path / "paper" / "state" / "of the art.txt").write_text("chapter two")
    (tmp_path / "paper" / "unet").mkdir()
    refused(run(out=tmp_path / "paper"), "no run directory", "state")
    assert (tmp_path / "paper" / "state" / "of the art.txt").is_file()
    (tmp_path / "paper" / "state" / "of the art.txt").unlink()
    refused(run(out=tmp_path / "paper"), "no run directory", "unet")


def test_processes_that_cannot_share_a_batch_are_refused_before_they_start(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("--processes", "2", "--set", "tasks.redness.batch=7"), "tasks.redness.batch is 7 images")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(run("--processes", "3", "--set", "tasks.batch=12"), "--processes is 3", "2 GPUs")


def test_a_dry_run_refuses_what_the_run_would(run: Run, tmp_path: Path) -> None:
    refused(run("--dry-run", f"--set=tasks.prompts={tmp_path / 'nowhere.jsonl'}"), "nowhere.jsonl")


def test_a_first_checkpoint_that_was_not_named_yet_is_taken_up(run: Run, tmp_path: Path) -> None:
    assert run().exit_code == 0
    (tmp_path / "run" / "run.json").unlink()
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "state" / "latest.json").unlink()
    assert run().exit_code == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (tmp_path / "run" / "run.json").unlink()
    shutil.copytree(tmp_path / "run" / "state" / "000001-0", tmp_path / "run" / "state" / "000000-1")
    (tmp_path / "run" / "state" / "latest.json").unlink(missing_ok=True)
    refused(run(), "latest.json is missing", "2 checkpoints")


@pytest.mark.parametrize(
    ("field", "value"),
    [("iteration", 7), ("iteration", -1), ("iteration", "x"), ("phase", 9), ("metrics_bytes", -5)],
)
def test_a_place_that_no_run_can_be_at_is_refused(
    run: Run, tmp_path: Path, field: str, value: int | str
) -> None:
    assert run().exit_code == 0
    (tmp_path / "run" / "run.json").unlink()
    path = tmp_path / "run" / "state" / "000001-0" / "progress.json"
    record = json.loads(path.read_text())
    record["progress"][field] = value
    path.write_text(json.dumps(record))
    refused(run(), "progress.json", field)


def test_tensors_of_another_run_are_refused(run: Run, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    assert run().exit_code == 0
    (tmp_path / "run" / "run.json").unlink()
    for name in ("random", "weights", "optimiser"):
        path = tmp_path / "run" / "state" / "000001-0" / f"{name}.safetensors"
        kept = path.read_bytes()
        save_file({"foreign|x": torch.zeros(3)}, path)
        refused(run(), str(path.parent), "is not of this run")
        path.write_bytes(kept)
    assert run().exit_code == 0


def test_weights_that_diverge_are_never_handed_over(run: Run, tmp_path: Path) -> None:
    for rate in ("1e300", "1e18"):
        result = run(f"--set=lr={rate}", "--set=iterations=3", out=tmp_path / rate)
        assert result.exit_code == 1, result.output
        (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert "lower update.lr" in message
        assert not (tmp_path / rate / "run.json").exists()
        assert not (tmp_path / rate / "unet").exists()


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("run.json", "{", ["run.json", "no run card"]),
        ("state/latest.json", "[]", ["latest.json"]),
        ("state/000001-0/progress.json", '{"format": 1, "progress": {}, "iden', ["progress.json is damaged"]),
        ("state/000001-0/progress.json", '{"format": 99}', ["another version"]),
        ("state/000001-0/weights.safetensors", None, ["weights.safetensors is missing"]),
        ("state/000001-0/weights.safetensors", "half", ["weights.safetensors is damaged"]),
        ("metrics.jsonl", "", ["metrics.jsonl is shorter"]),
    ],
)
def test_damaged_state_is_named(
    run: Run, tmp_path: Path, file: str, content: str | None, parts: list[str]
) -> None:
    assert run().exit_code == 0
    if file != "run.json":
        (tmp_path / "run" / "run.json").unlink()
    path = tmp_path / "run" / file
    if content is None:
        path.unlink()
    elif content == "half":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_text(content)
    refused(run(), *parts)


@pytest.mark.parametrize(
    "damage",
    ["missing", "empty", "truncated", "foreign", "foreign text", "config", "text_encoder", "tokenizer"],
)
def test_damaged_bases_are_named(run: Run, tiny_pipeline_dir: Path, tmp_path: Path, damage: str) -> None:
    base = tmp_path / "base"
    if damage != "missing":
        shutil.copytree(tiny_pipeline_dir, base)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "empty":
        (base / "model_index.json").unlink()
    elif damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "foreign":
        shutil.copy(base / "vae" / "diffusion_pytorch_model.safetensors", weights)
    elif damage == "foreign text":
        shutil.copy(
            base / "vae" / "diffusion_pytorch_model.safetensors", base / "text_encoder" / "model.safetensors"
        )
    elif damage == "config":
        (base / "unet" / "config.json").write_text("{")
    elif damage == "text_encoder":
        os.truncate(base / "text_encoder" / "model.safetensors", 1000)
    elif damage == "tokenizer":
        shutil.rmtree(base / "tokenizer")
    refused(run(f"--set=base={base}"), "base: ", str(base))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["no prompts"]),
        (b"\xff\xfe\n", ["UTF-8"]),
        (b'{"id": "a", "text": "x"}\n{"id"', [":2"]),
        (None, ["nowhere"]),
    ],
)
def test_bad_prompt_files_are_named(
    run: Run, tmp_path: Path, content: bytes | None, parts: list[str]
) -> None:
    path = tmp_path / ("nowhere.jsonl" if content is None else "bad.jsonl")
    if content is not None:
        path.write_bytes(content)
    refused(run(f"--set=tasks.prompts={path}"), *parts)


@pytest.mark.parametrize(
    ("captions", "parts"),
    [
        (None, ["captions.jsonl is missing"]),
        ('"red"\n', ["1 captions for 2 latents"]),
        ('"red"\nblue\n', ["captions.jsonl:2"]),
    ],
)
def test_bad_pretraining_data_is_named(
    run: Run, tmp_path: Path, captions: str | None, parts: list[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"latents": torch.zeros(2, 4, 4, 4, dtype=torch.float16)}, tmp_path / "latents.safetensors")
    if captions is not None:
        (tmp_path / "captions.jsonl").write_text(captions)
    refused(run(f"--set=pretraining.source={tmp_path}", "--set=pretraining.batch=2"), *parts)
    save_file({"latents": torch.zeros(2, 4, 8, 8)}, tmp_path / "latents.safetensors")
    if captions is not None:
        refused(
            run(f"--set=pretraining.source={tmp_path}", "--set=pretraining.batch=2"), "(4, 8, 8)", "(4, 4, 4)"
        )


def test_pretraining_from_files_works(run: Run, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"latents": torch.zeros(2, 4, 4, 4, dtype=torch.float16)}, tmp_path / "latents.safetensors")
    (tmp_path / "captions.jsonl").write_text('"red"\n"blue"\n')
    result = run(f"--set=pretraining.source={tmp_path}", "--set=pretraining.batch=2")
    assert result.exit_code == 0, result.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["pretrain_loss"] > 0


def test_pretraining_on_pictures_works_and_stops_where_they_are_damaged(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    (folder := tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (9, 8), (80 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("red")
    settings = [f"--set=pretraining.source={folder}", "--set=pretraining.batch=2", "--set=iterations=2"]
    assert run(*settings, "--set=save_every=1").exit_code == 0
    (tmp_path / "run" / "run.json").unlink()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"gone")
    assert run(*settings, "--set=save_every=1").exit_code == 0, "it has nothing more to learn"
    result = run(*settings, out=tmp_path / "another")
    assert result.exit_code == 1
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "20 pictures in a row cannot be read, the last is " in message
    assert message.endswith("the state saved before is intact, and the same command resumes")
    assert "Traceback" not in result.output
    nowhere = f"--set=pretraining.source={tmp_path / 'nowhere'}"
    refused(run(nowhere, out=tmp_path / "third"), "pretraining.source: there is no folder")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            errors.RepositoryNotFoundError,
            "you may read: others keep its weights at stable-diffusion-v1-5/stable-diffusion-v1-5; "
            "`--set base=` takes another hub id, ",
        ),
        (errors.GatedRepoError, "runwayml/stable-diffusion-v1-5 is gated: accept its terms"),
    ],
)
def test_a_base_that_is_gone_is_told_before_prompts_and_weights_are_fetched(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[Exception], told: str
) -> None:
    fetched: list[str] = []

    def gone(repository: str, name: str, **_: Any) -> str:
        fetched.append(name)
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gone)
    monkeypatch.setattr(start, "named_inputs", lambda *_: fetched.append("prompts and scorers"))
    refused(run("--set=base=runwayml/stable-diffusion-v1-5"), "error: base: ", told)
    assert fetched == ["model_index.json"]


def test_what_a_run_needs_can_be_fetched_without_training(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The base is opened, so that half of one is told where there is a network still."""
    fetched: list[str] = []
    load, needed = start.load_pipeline, SimpleNamespace(paths=lambda: fetched.append("weights"))
    monkeypatch.setattr(start, "weights_of", lambda _: (needed,))
    monkeypatch.setattr(start, "load_pipeline", lambda *given: (fetched.append("base"), load(*given))[1])
    result = run("--fetch")
    assert result.exit_code == 0, result.output
    assert result.stdout == "base, prompts and scorers' weights of toy on tiny are on this machine\n"
    assert set(fetched) == {"weights", "base"}
    assert not (tmp_path / "run").exists()
    refused(run("--fetch", f"--set=tasks.redness.prompts={tmp_path / 'no.txt'}"), "cannot be read")
    fetched.clear()
    refused(run("--fetch", "--dry-run"), "--dry-run fetches nothing, and --fetch makes no plan")
    assert not fetched


def test_an_out_that_cannot_be_made_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run(out=tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert "cannot be prepared" in result.output
    assert "Traceback" not in result.output
    assert (tmp_path / "file").read_text() == "mine"


# --------------------------------------------------------------------------------------------------------- broken rewards


@pytest.mark.parametrize(
    ("scorer", "sentence"),
    [
        ("raising", "scorer raising failed with RuntimeError: out of ideas"),
        ("all_nan", "scorer all_nan answered NaN (not applicable) for all 8 images"),
        ("mostly_nan", "scorer mostly_nan answered NaN (not applicable) for 6 of 8 images"),
        ("wrong_shape", "scorer wrong_shape answered with (1,) for 8 images"),
        ("infinite", "scorer infinite answered with infinity"),
        ("out_of_range", "states a range of -1 to 1"),
    ],
)
def test_a_broken_reward_stops_the_run_with_its_state_saved(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: str, sentence: str
) -> None:
    whole: Experiment = experiments.load("toy", "tiny")
    broken = replace(
        whole, iterations=4, tasks=(replace(whole.tasks[0], rewards=(Reward(scorer),)), whole.tasks[1])
    )
    monkeypatch.setattr(experiments, "load", lambda _experiment, _model: broken)
    result = run()
    assert result.exit_code == 1
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert sentence in message
    assert "saved" in message
    assert "Traceback" not in result.output
    checkpoint = latest(tmp_path / "run" / "state")
    assert checkpoint is not None
    completed = 2 if scorer == "raising" else 0
    assert checkpoint.name == f"{completed:06d}-0"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2 * completed


TOO_MUCH = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.00 GiB is free. "
    "Including non-PyTorch memory, this process has 78.00 GiB memory in use."
)


@pytest.mark.parametrize(
    "place", ["evals.diffusion.predict", "evals.decoder.pixels", "tests.toy.Redness.__call__"]
)
def test_too_little_memory_is_one_sentence_with_the_settings_that_help(
    run: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """In the denoiser, the decoder, and a reward."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise TOO_MUCH

    with monkeypatch.context() as patched:
        patched.setattr(place, refuse)
        result = run()
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (
        "needs more memory than there is (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
        in message
    )
    for name in (
        "update.micro_batch",
        "sampling.micro_batch",
        "sampling.decode_batch",
        "update.gradient_checkpointing=true",
    ):
        assert name in message
        assert name.partition("=")[0] in MEMORY_FIELDS
    assert message.endswith("the same command resumes")
    assert ("scorer redness needs" in message) == place.startswith("tests")
    assert run("--set=update.micro_batch=1", "--set=sampling.micro_batch=1").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "tasks.redness.monitors=tone,of_groups"], "leave it out of tasks.redness.monitors, --set tasks.redness.monitors=tone"),
        (["--set", "tasks.redness.monitors=of_groups"], "--set tasks.redness.monitors=none"),
        (["--reward", "redness=of_groups"], "tasks.redness.rewards needs it, so give tasks.redness.prompts that it can answer for"),
    ],
)  # fmt: skip
def test_prompts_that_a_scorer_cannot_answer_for_are_refused_in_the_plan(
    run: Run, toy_prompts: Path, arguments: list[str], told: str
) -> None:
    refused(
        run(*arguments, "--dry-run"),
        f"of_groups cannot answer for {toy_prompts}: prompt 'p0' has no group",
        told,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "tasks.redness.monitors=refusing"], "leave it out of tasks.redness.monitors, --set tasks.redness.monitors=none"),
        (["--reward", "redness=refusing"], "tasks.redness.rewards needs it"),
    ],
)  # fmt: skip
def test_a_scorer_that_refuses_its_prompts_is_not_said_to_be_mended_by_the_same_command(
    run: Run, arguments: list[str], told: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "scorer refusing failed with ValueError: these prompts have no group" in message
    assert told in message
    assert "another --out" in message
    assert "resumes" not in message


def test_the_miniatures_gold_says_which_prompts_it_cannot_answer_for() -> None:
    gold = LOAD("gold_utility", domain="miniature")
    known = [Prompt("a", "a nurse", expect={"occupation": "nurse"})]
    gold.check_prompts(known)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="prompt 'b' is not of the miniature world"):
        gold.check_prompts([*known, Prompt("b", "a cat"), Prompt("c", "a dog")])  # type: ignore[attr-defined]


def test_a_mended_reward_goes_on_where_it_stopped(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run as one whose reward never failed, bit for bit."""
    whole: Experiment = experiments.load("toy", "tiny")
    renamed = replace(
        whole, iterations=4, tasks=(replace(whole.tasks[0], rewards=(Reward("raising"),)), whole.tasks[1])
    )
    monkeypatch.setattr(experiments, "load", lambda _experiment, _model: renamed)
    assert run().exit_code == 1
    monkeypatch.setitem(toy.SCORERS, "raising", toy.Redness)
    assert run().exit_code == 0
    assert run(out=tmp_path / "straight").exit_code == 0
    weights = [
        (tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("run", "straight")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("unusable", ["masked", "worst"])
def test_missing_scores_are_counted_whatever_is_done_with_them(
    run: Run, tmp_path: Path, unusable: str
) -> None:
    assert run(f"--set=tasks.tone.unusable={unusable}", "--set=iterations=2").exit_code == 0
    found: list[Any] = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {line["invalid"] for line in found if line["task"] == "redness"} == {0}
    assert any(line["invalid"] > 0 for line in found if line["task"] == "tone")
