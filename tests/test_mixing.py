"""Several rewards in one batch: against their definitions, and on the tiny pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import toy
from train.config import Experiment, Mixing, check, override
from train.mixing import Pool, added, correlations, group_of, mixed, part_of, shares, turns
from train.plan import plan

NAN = float("nan")


def experiment_of(base: Any, prompts: Any, mixing: Mixing = "gdpo", **changes: Any) -> Experiment:
    """Eight images of redness, two of each prompt, and sixteen of tone, four of each."""
    experiment = toy.toy_experiment(base, prompts, iterations=2, mixing=mixing)
    redness, tone = experiment.tasks
    return replace(experiment, tasks=(redness, replace(tone, batch=16)), **changes)


def pool() -> Pool:
    (found,) = turns(experiment_of("", ""))
    assert isinstance(found, Pool)
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_images_of_a_prompt_are_one_group_wherever_they_were_drawn(world: int) -> None:
    part_B = part_of(pool(), world)
    expected = ([0] * (8 // world) + [1] * (16 // world)) * world
    assert part_B.tolist() == expected
    group_B = group_of(pool(), part_B)
    assert group_B[part_B == 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert group_B[part_B == 1].tolist() == [4] * 4 + [5] * 4 + [6] * 4 + [7] * 4


def test_zscores_are_of_the_images_that_a_reward_applies_to() -> None:
    credit = torch.tensor([[1.0, NAN], [2.0, 10.0], [6.0, 30.0], [NAN, 50.0], [NAN, NAN]])
    part = mixed(credit, torch.tensor([1.0, 0.5]), torch.arange(5), "zscores")
    for column, weight in ((0, 1.0), (1, 0.5)):
        values = credit[:, column].numpy()
        wanted = weight * (values - np.nanmean(values)) / np.nanstd(values, ddof=1)
        np.testing.assert_allclose(part[:, column], wanted, rtol=1e-5)
    total = added(part)
    torch.testing.assert_close(total[1], part[1].sum())
    torch.testing.assert_close(total[0], part[0, 0])  # what does not apply takes nothing away
    assert total[4].isnan()


def test_gdpo_is_each_reward_relative_to_its_prompt() -> None:
    generator = torch.Generator().manual_seed(0)
    credit, group = torch.randn(12, 2, generator=generator), torch.arange(12) // 4
    part = mixed(credit, torch.ones(2), group, "gdpo")
    for number in range(3):
        mine = credit[group == number].numpy()
        np.testing.assert_allclose(
            part[group == number], (mine - mine.mean(0)) / mine.std(0, ddof=1), rtol=1e-3
        )


@pytest.mark.parametrize("mixing", ["zscores", "gdpo"])
def test_the_scale_of_a_reward_does_not_decide(mixing: Mixing) -> None:
    credit, group = torch.randn(16, 2, generator=torch.Generator().manual_seed(1)), torch.arange(16) // 4
    scaled = credit * torch.tensor([100.0, 1.0]) + 3
    ones = torch.ones(2)
    torch.testing.assert_close(
        mixed(scaled, ones, group, mixing), mixed(credit, ones, group, mixing), rtol=1e-3, atol=1e-4
    )


def test_gdpo_tells_apart_what_a_sum_of_raw_rewards_does_not() -> None:
    """The paper's figure 2: of two answers with two passes or fails, (0, 1) and (0, 2) are the same advantage to GRPO."""
    group = torch.zeros(2, dtype=torch.long)
    one, both = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    ones = torch.ones(2)
    assert added(mixed(both, ones, group, "gdpo"))[1] == 2 * added(mixed(one, ones, group, "gdpo"))[1]


def test_shares_and_correlations_are_what_they_say() -> None:
    part = torch.tensor([[1.0, -3.0], [-1.0, 3.0], [2.0, -6.0], [NAN, 3.0]])
    sizes = np.array([4 / 4, 15 / 4])
    np.testing.assert_allclose(shares(part), sizes / sizes.sum(), rtol=1e-6)
    assert correlations(part)[0, 1] == pytest.approx(-1.0)
    assert correlations(torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])) == {(0, 1): None}
    assert shares(torch.zeros(3, 2)) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["mixing=gdpo", "tasks.redness.images_per_prompt=1", "tasks.redness.baseline=batch"], "at least 2"),
        (["mixing=gdpo", "tasks.tone.credit=shared"], "use leave_one_out"),
        (["mixing=zscores", "task_order=rotated"], "tasks take no turns: use listed"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check(override(toy.toy_experiment("", ""), settings), 1)


def test_one_task_has_nothing_to_mix() -> None:
    experiment = experiment_of("", "")
    with pytest.raises(ValueError, match="nothing to mix with fewer than two tasks"):
        check(replace(experiment, tasks=experiment.tasks[:1]), 1)


def test_the_plan_counts_one_batch() -> None:
    experiment = experiment_of("owner/name", "prompts")
    assert experiment.optimiser_steps == 2 * 2
    told = plan(experiment, 1)
    assert "redness+tone, mixed by gdpo: 4 prompts x 2 images and 4 prompts x 4 images, 288 denoiser" in told
    assert plan(replace(experiment, mixing="tasks"), 1).count("optimiser steps an iteration") == 2


def two_iterations(base: str, prompts: str, out: str, mixing: Mixing) -> None:
    """Record the advantages of a batch, and the weights after two iterations; one file per process."""
    import evals.scorers
    from train.loop import train
    from train.start import new_accelerator, prepare

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    run = prepare(experiment_of(base, prompts, mixing), "toy", 0, Path(out), new_accelerator())
    batch = run.experiment.method.collect(run, *turns(run.experiment), 0)
    redness, tone = batch.advantage_B.split([8 // run.world, 16 // run.world])
    record = {"redness": redness, "tone": tone}
    train(run)
    record |= {f"weights.{name}": weight.detach() for name, weight in run.policy.weights.items()}
    save_file({name: t.clone() for name, t in record.items()}, Path(out) / f"rank{run.rank}.safetensors")
    run.accelerator.wait_for_everyone()


@pytest.mark.parametrize("mixing", ["zscores", "gdpo"])
def test_two_processes_do_what_one_does(
    mixing: Mixing, tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    records: dict[int, list[dict[str, torch.Tensor]]] = {}
    for world in (1, 2):
        out = tmp_path / str(world)
        given = (str(tiny_pipeline_dir), str(toy_prompts), str(out), mixing)
        assert toy.launch(world, two_iterations, *given) == [0] * world
        records[world] = [load_file(out / f"rank{rank}.safetensors") for rank in range(world)]
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [line["task"] for line in lines] == ["redness+tone"] * 2
        assert lines[-1]["images"] == 2 * 24
        assert sum(lines[0]["shares"].values()) == pytest.approx(1)
        assert set(lines[0]["task_rewards"]) == {"redness", "tone"}
        assert set(lines[0]["correlations"]) == {"redness~tone"}
    (alone,), several = records[1], records[2]
    for name in ("redness", "tone"):
        together = torch.cat([record[name] for record in several])
        torch.testing.assert_close(together, alone[name], rtol=1e-5, atol=1e-6)
        assert alone[name].abs().sum() > 0
    for name in (name for name in alone if name.startswith("weights.")):
        torch.testing.assert_close(several[0][name], alone[name], rtol=0, atol=2e-4)
        assert torch.equal(several[0][name], several[1][name])
