"""How the miniature is made: the loop that all its parts go through, and every stage for a step or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evals.miniature import measure
from evals.miniature.annotators import parts_of
from evals.miniature.render import Placed
from prompts import Prompt, world
from prompts.world import OBJECTS, Object
from train.miniature import preference, pretrain
from train.miniature.data import draw_portrait_twins, draw_scene_twins, patch_labels
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


def test_twins_differ_in_one_fault_and_the_first_has_none() -> None:
    rng = np.random.default_rng(0)
    worse = 0
    for i in range(60):
        pair = OBJECTS[i % 36], OBJECTS[(i + 7) % 36]
        expect = world.scene_prompt(*pair, "and", ())["expect"]
        one, other = draw_scene_twins(pair, "and", rng)
        good, bad = (parts_of(Prompt("x", "", (), expect), image) for image in (one, other))
        worse += good.utility() > bad.utility() + 0.05
        assert np.abs(one[:6] - other[:6]).max() < 0.35  # the same wall, or a duller one
    assert worse > 50  # a hue may hardly show


def test_twin_portraits_may_be_of_any_tone() -> None:
    rng = np.random.default_rng(1)
    tones = [[measure.face_tone(image) for image in draw_portrait_twins("nurse", rng)] for _ in range(40)]
    read = [pair for pair in tones if None not in pair]
    assert len(read) > 20
    assert sum(one != other for one, other in read) > len(read) / 2


def test_many_false_captions_differ_in_a_shape_alone() -> None:
    rng = np.random.default_rng(2)
    true = OBJECTS[0]
    false = [preference.false_caption(true.text, rng).split() for _ in range(300)]
    only_shape = [words for words in false if len(words) == 3 and words[1] == true.colour]
    assert len(only_shape) > 60
    assert all(words[2] != true.shape for words in only_shape)


def test_words_of_a_caption_are_asked_about_the_picture_that_another_fits() -> None:
    yes, shape, place, colour = preference.QUESTIONS
    asked = preference.asked_of_words("a red circle above a blue star", "a red square left of a blue star")
    assert sorted(asked, key=str) == sorted(
        [
            (2, yes, False),
            (2, shape, "square"),
            (2, place, "left"),
            (6, yes, True),
            (6, shape, "star"),
            (6, place, "right"),
            (1, colour, None),
            (5, colour, "blue"),
        ],
        key=str,
    )
    asked = preference.asked_of_words("a red star right of a red cross", "a red star left of a red cross")
    assert (3, yes, False) in asked  # both are there, the relation is not
    assert not [a for a in asked if a[1] in (shape, place)]  # two things are red: "which" has no one answer
    fitting, other = "a portrait of a nurse", "a portrait of a miner"
    dress = world.dress_of("nurse")
    assert preference.asked_of_words(other, fitting) == [
        (4, yes, False),
        (4, shape, dress.clothes),
        (4, place, dress.hat),
    ]


def test_answers_stand_at_the_tokens_of_their_words(tmp_path: Path) -> None:
    model = preference.new_imagereward(tmp_path)
    tokens = model.tokenizer("a red circle on side of a purple triangle").input_ids
    words = model.tokenizer.convert_ids_to_tokens(tokens)
    assert words == ["[CLS]", "a", "red", "circle", "on", "side", "of", "a", "purple", "triangle", "[SEP]"]
    assert len(words) <= model.config["max_length"]
    drawn = preference.draw_choices(1, 0)
    choices = replace(drawn, captions_N=[["a red circle above a blue star"] * (1 + preference.FALSE)])
    answers = preference._asked_of_tokens(choices, model.config["max_length"])
    assert answers.shape == (1, 1 + preference.FALSE, model.config["max_length"], len(preference.QUESTIONS))
    yes, shape, place, colour = preference.QUESTIONS.values()
    first = answers[0, 0]
    assert first[3].tolist() == [
        yes.index(True),
        shape.index("circle"),
        place.index("above"),
        preference.NOT_ASKED,
    ]
    assert first[2, 3] == colour.index("red")
    assert first[4, 0] == yes.index(True)  # the relation holds
    assert (first[[0, 1, 5, 8]] == preference.NOT_ASKED).all()


def test_patches_are_labelled_with_what_covers_them() -> None:
    square = Object("red", "square")
    labels = patch_labels((Placed(square, 20.0, 44.0, 12.0, 0.0),)).reshape(8, 8)
    rows, columns = np.nonzero(labels)
    assert set(labels[rows, columns]) == {1 + OBJECTS.index(square)}
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 6, 1, 3)
    assert not patch_labels(()).any()


def test_every_stage_of_the_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.checkpoints import load_pipeline

    phases = [replace(phase, steps=2, batch=2) for phase in pretrain.VAE_PHASES[:2]]
    monkeypatch.setattr(pretrain, "VAE_PHASES", phases)
    monkeypatch.setattr(pretrain, "VAE_PICTURES", 8)
    polish = [replace(phase, steps=2, batch=2, pictures=4) for phase in pretrain.POLISH_PHASES]
    monkeypatch.setattr(pretrain, "POLISH_PHASES", polish)
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
    from evals.scorers._imagereward import load_imagereward

    (tmp_path / "pipeline").symlink_to(weights_folder("pipeline"))
    for name in ("NAMES", "CAPTIONS", "REWARD_VOTES", "JUDGE_CAPTIONS", "JUDGE_VOTES"):
        monkeypatch.setattr(preference, name, replace(getattr(preference, name), steps=2, batch=4))
    pairs = [replace(drawn, count=12) for drawn in preference.REWARD_PAIRS]
    monkeypatch.setattr(preference, "REWARD_PAIRS", pairs)
    monkeypatch.setattr(preference, "JUDGE_PAIRS", pairs[0])
    for name, count in {"CHOICES": 16, "CAPTIONS_BESIDE": 2, "HELD_OUT": 8}.items():
        monkeypatch.setattr(preference, name, count)
    monkeypatch.setattr(preference, "REWARD_VOTES", replace(preference.REWARD_VOTES, lr=0.0))
    preference.train_blip(tmp_path)
    made = {
        "imagereward": preference.train_imagereward(tmp_path),
        "judge": preference.train_judge(tmp_path),
    }
    for model in made:
        assert 0 <= made[model]["agreement"]["model"] <= 1
        assert made[model]["votes"]["steps"] == 2
    assert made["imagereward"]["seed"] != made["judge"]["seed"]
    model = load_imagereward(tmp_path / "imagereward")
    taught = load_file(tmp_path / "blip" / "model.safetensors")  # votes without a rate change nothing
    assert all(
        torch.equal(weight, taught[name].half().float()) for name, weight in model.state_dict().items()
    )
    reward = model(torch.rand(2, 3, 64, 64), ["a red circle", "a portrait of a nurse"])
    assert reward.shape == (2,)
    assert torch.isfinite(reward).all()


def test_captions_are_taught_beside_the_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.checkpoints import load_pipeline
    from evals.miniature import weights_folder

    monkeypatch.setattr(preference, "REWARD_VOTES", replace(preference.REWARD_VOTES, steps=2, batch=4))
    for name, count in {"CHOICES": 8, "CAPTIONS_BESIDE": 2}.items():
        monkeypatch.setattr(preference, name, count)
    lesson = preference._start_lesson(tmp_path)
    before = lesson.answerer.weight.detach().clone()
    pairs = preference.Pairs(6, 1)
    preference._teach_votes(
        lesson, preference.draw_votes(load_pipeline(str(weights_folder("pipeline"))), pairs)
    )
    assert not torch.equal(before, lesson.answerer.weight)


def test_a_stage_is_made_once_and_after_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from train.miniature import __main__ as command

    made: list[str] = []

    def build(stage: str, folder: Path) -> dict[str, int]:
        (folder / command.FOLDERS.get(stage, stage)).mkdir(exist_ok=True)
        made.append(stage)
        return {"seconds": 1}

    monkeypatch.setattr(command, "build", build)

    def run(*arguments: str) -> str:
        return str(CliRunner().invoke(command.main, [*arguments, "--out", str(tmp_path / "built")]).output)

    assert "has no denoiser, which judge needs: run `python -m train.miniature denoiser" in run("judge")
    run("autoencoder")
    run("all")
    assert made == list(command.STAGES)  # the first one once
    assert "judge: already made" in run("judge")
    run("judge", "--again")
    assert made[len(command.STAGES) :] == ["judge"]
    (tmp_path / "built" / "blip").rmdir()  # a copy of what ships: the record tells of more than is there
    assert "has no blip" in run("imagereward", "--again")
    made.clear()
    run("denoiser", "--again")
    run("all")
    assert made == ["denoiser", "blip", "imagereward", "judge"]  # what is made of the old base is made again
