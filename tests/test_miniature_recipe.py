"""How the miniature is made: the loop that all its parts go through, and every stage for a step or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from train.miniature import preference, pretrain
from train.miniature.fitting import Schedule, fit


def test_rate_rises_then_falls_to_a_fiftieth() -> None:
    schedule = Schedule(steps=100, batch=1, lr=0.5, warmup=10)
    assert schedule.lr_at(0) == pytest.approx(0.05)
    assert schedule.lr_at(9) == schedule.lr_at(10) == 0.5
    assert schedule.lr_at(55) == pytest.approx(0.5 * 0.51)
    assert schedule.lr_at(100) == pytest.approx(0.01)


def test_fit_finds_a_minimum_and_hands_over_the_average() -> None:
    last, mean = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    schedule = Schedule(steps=300, batch=1, lr=0.1)

    def noisy_distance(weight: nn.Parameter):  # type: ignore[no-untyped-def]
        return lambda g: (weight - 2 - torch.randn(3, generator=g)).square().sum()

    fit([last], noisy_distance(last), schedule, 0, "last")
    fit([mean], noisy_distance(mean), replace(schedule, average=0.99), 0, "mean")
    assert last.detach() == pytest.approx(torch.full((3,), 2.0), abs=0.5)
    assert mean.detach() == pytest.approx(torch.full((3,), 2.0), abs=0.5)
    assert not torch.equal(last, mean)


def test_every_stage_of_the_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.checkpoints import load_pipeline

    phases = [replace(phase, steps=2, batch=2) for phase in pretrain.VAE_PHASES[:2]]
    monkeypatch.setattr(pretrain, "VAE_PHASES", phases)
    monkeypatch.setattr(pretrain, "VAE_PICTURES", 8)
    monkeypatch.setattr(pretrain, "POLISH", replace(pretrain.POLISH, steps=2, batch=2, pictures=4))
    monkeypatch.setattr(pretrain, "TEXT", replace(pretrain.TEXT, steps=2, batch=4))
    one = replace(pretrain.DENOISER_PHASES[-1], steps=2, batch=2, pictures=8)
    monkeypatch.setattr(pretrain, "DENOISER_PHASES", [one])
    made = pretrain.train_vae(tmp_path / "autoencoder")
    assert len(made["final_losses"]) == len(made["phases"])
    made = pretrain.train_denoiser(tmp_path / "pipeline", tmp_path / "autoencoder")
    assert len(made["final_losses"]) == len(made["phases"]) == 1
    pipeline = load_pipeline(str(tmp_path / "pipeline"))
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_both_preference_models_are_made_of_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.miniature import weights_folder
    from evals.scorers.imagereward import load_imagereward

    (tmp_path / "pipeline").symlink_to(weights_folder("pipeline"))
    for name in ("NAMES", "CAPTIONS"):
        monkeypatch.setattr(preference, name, replace(getattr(preference, name), steps=2, batch=4))
    phases = [replace(phase, steps=2, batch=4, pairs=12) for phase in preference.REWARD_VOTES]
    monkeypatch.setattr(preference, "REWARD_VOTES", phases)
    monkeypatch.setattr(preference, "JUDGE_VOTES", phases[0])
    for name, count in {"CHOICES": 16, "HELD_OUT": 8}.items():
        monkeypatch.setattr(preference, name, count)
    made = preference.train_both(tmp_path)
    for model in ("reward model", "judge"):
        assert 0 <= made[model]["agreement"]["model"] <= 1
        assert made[model]["votes"][0]["steps"] == 2
    assert made["reward model"]["seed"] != made["judge"]["seed"]
    model = load_imagereward(tmp_path / "imagereward")
    reward = model(torch.rand(2, 3, 64, 64), ["a red circle", "a portrait of a nurse"])
    assert reward.shape == (2,)
    assert torch.isfinite(reward).all()
