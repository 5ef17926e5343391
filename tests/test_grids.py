"""Sheets of samples: what they show, when, and that training does not notice them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evals.checkpoints import resolve
from evals.diffusion import Painter
from prompts import Prompt
from tests import toy
from train import grids
from train.config import Ema, Experiment, Lora, Reward, Task
from train.grids import COLUMNS, GAP, SEED, is_due, sheet_path
from train.loop import Stopped, train
from train.run import Run
from train.start import hand_over, new_accelerator, prepare

pytestmark = pytest.mark.usefixtures("toy_scorers")

SIDE = 8  # of the tiny pipeline's pictures
Start = Callable[..., Run]


@pytest.fixture
def start(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> Start:
    """A run of the toy experiment, begun or gone on with in a folder."""

    def begin(out: str = "run", **changes: Any) -> Run:
        given = {"samples_every": 2, "ema": Ema(decay=0.9)} | changes
        experiment = toy.toy_experiment(tiny_pipeline_dir, toy_prompts, **given)
        return prepare(experiment, "tiny", 0, tmp_path / out, new_accelerator())

    return begin


def sheet(run: Run, iteration: int) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(sheet_path(run.out, iteration)))


def row(sheet_HWC: np.ndarray[Any, Any], number: int) -> np.ndarray[Any, Any]:
    """The pictures of a row, [COLUMNS, H, W, C]."""
    top = number * (SIDE + GAP)
    lefts = [column * (SIDE + GAP) for column in range(COLUMNS)]
    return np.stack([sheet_HWC[top : top + SIDE, left : left + SIDE] for left in lefts])


def drawn_from(target: Path, run: Run) -> np.ndarray[Any, Any]:
    """What a checkpoint that was handed over draws of the toy's prompts, as 8-bit pictures."""
    painter = Painter.of(resolve(str(target)).pipeline(), run.experiment.sampling)
    images = painter.paint(list(toy.TEXTS), [0] * len(toy.TEXTS), SEED)
    return (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)


def everything(run: Run) -> dict[str, torch.Tensor]:
    """All tensors that training changes."""
    tensors = {f"{file}/{name}": t for file, ts in run.policy.state().items() for name, t in ts.items()}
    return tensors | {"random": torch.get_rng_state()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


@pytest.mark.parametrize(
    ("iterations", "every", "expected"),
    [
        (7, 3, [0, 3, 6, 7]),
        (6, 3, [0, 3, 6]),
        (2, 50, [0, 2]),
        (5, 1, [0, 1, 2, 3, 4, 5]),
        (4, 0, []),
        (0, 5, []),
    ],
)
def test_the_first_every_nth_and_the_last(iterations: int, every: int, expected: list[int]) -> None:
    experiment = Experiment(base="", iterations=iterations, samples_every=every)
    assert [i for i in range(iterations + 1) if is_due(experiment, i)] == expected


def test_prompts_are_the_first_of_each_set_and_sets_are_shown_once() -> None:
    task = Task("one", "a", (Reward("redness"),))
    experiment = Experiment(base="", tasks=(task, replace(task, name="two"), Task("three", "b", ())))
    sets = {name: tuple(Prompt(str(i), f"{name} {i}") for i in range(n)) for name, n in (("a", 20), ("b", 3))}
    rows = grids.shown(experiment, sets)
    assert {name: [prompt.id for prompt in prompts] for name, prompts in rows.items()} == {
        "a": ["0", "1", "2", "3", "4", "5", "6", "7"],
        "b": ["0", "1", "2"],
    }
    told = grids.legend({"my/own/set.jsonl": rows["b"]})
    assert told == "set, from left to right\n  b 0\n  b 1\n  b 2\n"


def test_base_above_policy_and_the_policy_is_what_is_handed_over(
    start: Start, tiny_pipeline_dir: Path
) -> None:
    run = start()
    train(run)
    assert sorted(path.name for path in (run.out / "samples").iterdir()) == [
        *("000000.png", "000002.png", "000004.png", "prompts.txt"),
    ]
    width = COLUMNS * (SIDE + GAP) - GAP
    assert sheet(run, 0).shape == (SIDE, width, 3)  # the two tasks share a prompt set
    assert sheet(run, 4).shape == (2 * SIDE + GAP, width, 3)
    hand_over(run, "toy-tiny-0")
    shown = len(toy.TEXTS)
    base, tuned = drawn_from(tiny_pipeline_dir, run), drawn_from(run.out, run)
    assert np.array_equal(row(sheet(run, 0), 0)[:shown], base)
    assert np.array_equal(row(sheet(run, 4), 0)[:shown], base)
    assert np.array_equal(row(sheet(run, 4), 1)[:shown], tuned)
    assert (base != tuned).mean() > 0.5  # it has learnt, and the average is no copy of the base
    assert (row(sheet(run, 4), 1)[shown:] == 255).all()  # seven prompts, eight columns


def test_a_lora_starts_as_the_base_and_shows_what_it_has_learnt(
    start: Start, tiny_pipeline_dir: Path
) -> None:
    run = start(lora=Lora(rank=2, alpha=2.0), ema=None, iterations=2)
    train(run)
    hand_over(run, "toy-tiny-0")
    shown = len(toy.TEXTS)
    assert np.array_equal(row(sheet(run, 2), 0)[:shown], drawn_from(tiny_pipeline_dir, run))
    handed_over = row(sheet(run, 2), 1)[:shown].astype(int)
    assert np.abs(handed_over - drawn_from(run.out, run).astype(int)).max() <= 1


def test_two_prompt_sets_are_two_pairs_of_rows(start: Start, tmp_path: Path) -> None:
    run = start(iterations=1)
    rows = {"a": [Prompt("1", "red")], "b": [Prompt("2", "blue"), Prompt("3", "star")]}
    levels = iter(range(0, 250, 10))

    def images() -> torch.Tensor:
        return torch.stack([torch.full((3, SIDE, SIDE), next(levels) / 255) for _ in range(3)])

    grids.write(images(), rows, run.out, 0)
    grids.write(images(), rows, run.out, 1)
    found = [row(sheet(run, 1), number)[:, 0, 0, 0].tolist() for number in range(4)]
    white = [255] * COLUMNS
    assert found == [[level, *white[1:]] for level in (0, 30)] + [
        [*pair, *white[2:]] for pair in ([10, 20], [40, 50])
    ]


def test_without_the_bases_sheet_the_policy_stands_alone(start: Start) -> None:
    run = start(iterations=2)
    train(run)
    with_base = sheet(run, 2)
    sheet_path(run.out, 0).unlink()
    sheet_path(run.out, 2).unlink()
    again = start(iterations=2)
    train(again)
    assert np.array_equal(sheet(again, 2), with_base[SIDE + GAP :])


def test_large_pictures_are_reduced_and_keep_their_shape(tmp_path: Path) -> None:
    rows = {"a": [Prompt("1", "red")]}
    grids.write(torch.full((1, 3, 512, 1024), 0.5), rows, tmp_path, 0)
    assert Image.open(sheet_path(tmp_path, 0)).size == (COLUMNS * (256 + GAP) - GAP, 128)


# ---------------------------------------------------------------------------------------------------------- no trace left


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=2.0)])
def test_training_with_and_without_samples_is_the_same_bit_for_bit(start: Start, lora: Lora | None) -> None:
    found = []
    for out, every in (("with", 1), ("without", 0)):
        torch.manual_seed(5)
        run = start(out, iterations=2, samples_every=every, lora=lora)
        train(run)
        found.append((everything(run), run.progress.denoiser_evaluations, run.progress.images))
        assert (run.out / "samples").is_dir() == bool(every)
    assert_same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_drawing_puts_the_live_weights_back_also_where_it_fails(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(iterations=1)
    train(run)
    before = {name: tensor.clone() for name, tensor in everything(run).items()}
    rows = grids.shown(run.experiment, run.prompt_sets)
    grids.paint(run.policy, rows)
    assert_same(everything(run), before)

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run.policy.painter, "paint", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        grids.paint(run.policy, rows)
    assert_same(everything(run), before)


def test_noise_is_neither_trainings_nor_evaluations() -> None:
    from evals import suites
    from train.data import noise_seed

    task = Task("one", "a", (Reward("redness"),))
    others = {noise_seed(task, seed) for seed in range(50)} | {suites.load(n).seed for n in suites.names()}
    assert SEED not in others


# ------------------------------------------------------------------------------------------------------------- resuming


def interrupted(run: Run, after: int) -> None:
    """Train until that many tasks are done, and stop there with the state saved, as on SIGTERM."""
    done = [0]

    def count(*_: Any) -> None:
        done[0] += 1

    run.show = count
    run.stop_requested = lambda: 15 if done[0] >= after else 0
    with pytest.raises(Stopped):
        train(run)


def test_a_resumed_run_has_the_sheets_of_one_that_was_never_stopped(start: Start) -> None:
    """Stopped inside an iteration, and between two, where the sheet of that state is not drawn yet."""
    straight = start("straight", iterations=2, samples_every=1)
    train(straight)
    for tasks in (1, 2):
        out = f"stopped-{tasks}"
        interrupted(start(out, iterations=2, samples_every=1), tasks)
        resumed = start(out, iterations=2, samples_every=1)
        train(resumed)
        for iteration in (0, 1, 2):
            assert np.array_equal(sheet(resumed, iteration), sheet(straight, iteration)), (tasks, iteration)


def test_sheets_that_a_resumed_run_has_not_reached_again_are_removed(start: Start) -> None:
    run = start(iterations=2)
    train(run)
    for iteration in (1, 2, 3, 1000000):
        sheet_path(run.out, iteration).touch()
    (run.out / "samples" / "mine.png").touch()
    grids.forget_after(run.out, 2)
    left = sorted(path.name for path in (run.out / "samples").iterdir())
    assert left == ["000000.png", "000001.png", "000002.png", "mine.png", "prompts.txt"]
    grids.forget_after(run.out, -1)
    assert sorted(path.name for path in (run.out / "samples").iterdir()) == ["mine.png", "prompts.txt"]


def test_a_run_that_begins_again_does_not_keep_anothers_base(start: Start, tmp_path: Path) -> None:
    run = start(iterations=1)
    path = sheet_path(run.out, 0)
    path.parent.mkdir()
    Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, SIDE)).save(path)  # killed before its first checkpoint
    again = start(iterations=1)
    train(again)
    assert sheet(again, 0).max() > 0


def test_how_often_may_change_when_a_run_goes_on(start: Start) -> None:
    interrupted(start(iterations=2, samples_every=0), 2)
    run = start(iterations=2, samples_every=1)
    train(run)
    assert {path.name for path in (run.out / "samples").glob("*.png")} == {"000001.png", "000002.png"}


def test_a_negative_number_is_refused() -> None:
    from train.config import check

    with pytest.raises(ValueError, match=r"^samples_every is -1, but it must be at least 0$"):
        check(Experiment(base="", iterations=0, samples_every=-1), 1)


# ---------------------------------------------------------------------------------------------------- several processes


def one_iteration(base: str, prompts: str, out: str) -> None:
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    experiment = toy.toy_experiment(base, prompts, iterations=1, ema=Ema(decay=0.9))
    run = prepare(experiment, "tiny", 0, Path(out), new_accelerator())
    train(run)
    run.accelerator.wait_for_everyone()


@pytest.mark.slow
def test_two_processes_draw_the_sheets_of_one(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    for world in (1, 2):
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path / str(world)))
        assert toy.launch(world, one_iteration, *arguments) == [0] * world
    one, two = (SimpleNamespace(out=tmp_path / str(world)) for world in (1, 2))
    assert np.array_equal(sheet(one, 0), sheet(two, 0))  # type: ignore[arg-type]
    difference = sheet(one, 1).astype(int) - sheet(two, 1).astype(int)  # type: ignore[arg-type]
    assert np.abs(difference).max() <= 1  # float tolerance of the updates between them
