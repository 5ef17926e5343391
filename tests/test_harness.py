"""Scoring: what is drawn, kept, resumed and refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

import prompts
from evals import checkpoints, harness, provenance, scorers, suites
from evals import rows as score_rows
from evals.__main__ import main
from evals.checkpoints import ROOT
from evals.diffusion import Sampling
from evals.miniature import weights_folder
from evals.suites import Part, Suite
from prompts import Prompt
from tests.synthetic_rows import study

SMALL = Suite(
    parts=(Part("miniature-portraits-unseen", 1, ("skin_tone", "gold_utility", "kid")),),
    sampling=Sampling(steps=2, eta=1.0, guidance=None, micro_batch=8),
    seed=3,
    domain="miniature",
)


@pytest.fixture(autouse=True)
def small_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "load", lambda _name: SMALL)


@pytest.fixture
def base_run(tmp_path: Path) -> Path:
    """The run directory of the base, as the trainer leaves it."""
    return write_run(tmp_path / "runs" / "base-miniature-0", "base", [])


def write_run(folder: Path, name: str, rewards: list[str]) -> Path:
    folder.mkdir(parents=True)
    pipeline = weights_folder("pipeline")
    for part in pipeline.iterdir():
        (folder / part.name).symlink_to(part)
    card = {
        "name": f"{name}-miniature-0",
        "model": "miniature",
        "seed": 0,
        "rewards": rewards,
        "base": str(pipeline),
    }
    (folder / "run.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def kept_scorers(out: Path) -> set[str]:
    """The scorers whose answers are kept of a scoring that did not end."""
    (path,) = out.with_name(out.name + ".parts").glob("*.json")
    record = provenance.read(path)
    assert record is not None
    assert all(len(score.values or []) == 25 for score in record.scores.values())
    return {*record.scores}


def test_rows_are_complete_and_scoring_again_changes_nothing(base_run: Path, tmp_path: Path):
    out = tmp_path / "scores" / "base-miniature-0.csv"
    harness.score(str(base_run), out, "small")
    first = out.read_bytes()
    rows = score_rows.read([out])
    assert len(rows) == 25 * 3
    told = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert told["prompt_sets"]["miniature-portraits-unseen"]["pictures"] == 25
    assert told["scorers"]["kid"]["version"] == rows.loc[rows["scorer"] == "kid", "version"].iloc[0]
    assert set(rows["experiment"]) == {"base"}
    assert rows.loc[rows["scorer"] == "kid", "value"].abs().max() == pytest.approx(0, abs=1e-3)
    out.unlink()
    harness.score(str(base_run), out, "small")
    assert out.read_bytes() == first


def test_a_killed_scoring_goes_on_and_gives_the_same_rows(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "scores" / "base-miniature-0.csv"
    harness.score(str(base_run), out, "small")
    straight = out.read_bytes()
    out.unlink()
    picture = next((tmp_path / "images" / "base-miniature-0").rglob("7.png"), None) or next(
        (tmp_path / "images" / "base-miniature-0").rglob("0.png")
    )
    picture.write_bytes(
        picture.read_bytes()[:40]
    )  # as a kill in the middle of a write by another program leaves it

    real = scorers.ask
    calls: list[str] = []

    def killed_at_the_second(name, *arguments):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(name, *arguments)

    shutil.rmtree(out.with_name(out.name + ".parts"))
    monkeypatch.setattr(scorers, "ask", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        harness.score(str(base_run), out, "small")
    assert not out.exists()
    harness.score(str(base_run), out, "small")
    assert out.read_bytes() == straight
    assert calls == ["skin_tone", "gold_utility", "gold_utility"]  # kid goes by its features


def marked(folder: Path, **changes: object) -> None:
    """Let the mark of a folder of pictures say something else."""
    mark = folder / "source.json"
    mark.write_text(json.dumps(json.loads(mark.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_pictures_of_other_weights_are_not_taken_and_it_is_said(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "scores" / "x.csv"
    harness.score(str(base_run), out, "small")
    drawn = tmp_path / "images" / "base-miniature-0"
    marked(drawn, weights="0" * 12)
    foreign = next(drawn.rglob("0.png"))
    before = foreign.stat().st_mtime_ns
    assert "removed" not in capsys.readouterr().err
    harness.score(str(base_run), out, "small")
    assert foreign.stat().st_mtime_ns != before
    note = f"note: the pictures in {drawn} are of other weights, and are removed"
    assert note in capsys.readouterr().err


def test_two_checkpoints_of_one_name_do_not_remove_each_others_pictures(tmp_path: Path):
    """Two trainings have a folder `checkpoint-1000` each; a run of this project that was trained again is another thing."""
    target, options = str(weights_folder("pipeline")), ["--suite", "small", "--base"]
    options += [target, "--name", "c"]
    code, output = run_cli("score", target, *options, "--out", str(tmp_path / "a.csv"))
    assert code == 0, output
    for name, advice in (("c", "give this checkpoint another --name, or "), ("base", "")):
        drawn = tmp_path / "images" / f"{name}-external-0"
        as_it_was = (drawn / "source.json").read_bytes()
        marked(drawn, weights="0" * 12)
        kept = {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()}
        code, output = run_cli("score", target, *options, "--out", str(tmp_path / "b.csv"))
        assert code == 2
        told = f"{drawn} holds what other weights drew under the name {name}: {advice}give --out a folder of its own"
        assert told in output
        assert {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()} == kept
        (drawn / "source.json").write_bytes(as_it_was)


def test_scores_that_are_not_asked_for_again_are_named(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "scores" / "x.csv"
    harness.score(str(base_run), out, "small")
    whole = out.read_bytes()
    harness.score(str(base_run), out, "small")
    assert "does not ask for" not in capsys.readouterr().err
    (part,) = SMALL.parts
    fewer = replace(SMALL, parts=(replace(part, scorers=("gold_utility",)),))
    with monkeypatch.context() as patched:
        patched.setattr(suites, "load", lambda _name: fewer)
        harness.score(str(base_run), out, "small")
    told = f"note: {out} holds scores that this command does not ask for, and is written without them: kid, skin_tone on {part.prompt_set}; "
    assert told in capsys.readouterr().err
    harness.score(str(base_run), out, "small")
    assert out.read_bytes() == whole


def test_what_the_same_weights_drew_for_another_suite_is_not_removed(base_run: Path, tmp_path: Path):
    out = tmp_path / "scores" / "x.csv"
    harness.score(str(base_run), out, "small")
    drawn = tmp_path / "images" / "base-miniature-0"
    marked(drawn, seed=4)
    kept = {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=re.escape(f"{drawn} holds what these weights drew for another suite")
    ):
        harness.score(str(base_run), out, "small")
    assert {path: path.read_bytes() for path in drawn.rglob("*") if path.is_file()} == kept
    harness.score(str(base_run), tmp_path / "other" / "x.csv", "small")  # in a folder of its own


def test_a_kept_picture_of_another_size_is_named(base_run: Path, tmp_path: Path):
    out = tmp_path / "scores" / "x.csv"
    harness.score(str(base_run), out, "small")
    out.unlink()
    first = next(iter(prompts.load("miniature-portraits-unseen"))).id
    picture = tmp_path / "images" / "base-miniature-0" / "miniature-portraits-unseen" / first / "0.png"
    whole = picture.read_bytes()
    Image.new("RGB", (40, 30)).save(picture)
    message = f"{picture} is 40 x 30 pixels, but most are 64 x 64: delete this one, and it is drawn again"
    with pytest.raises(ValueError, match=re.escape(message)):
        harness.score(str(base_run), out, "small")
    picture.unlink()
    harness.score(str(base_run), out, "small")
    assert picture.read_bytes() == whole


def test_prompts_that_the_model_does_not_read_to_their_end_are_counted(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    long = Prompt("long", "a red circle " * 40, (), {"group": "skin_tone", "occupation": "baker"})
    short = Prompt("short", "a portrait of a baker", (), {"group": "skin_tone", "occupation": "baker"})
    monkeypatch.setattr(prompts, "load", lambda _name: (short, long, replace(short, id="again")))
    tuned = write_run(tmp_path / "runs" / "joint-miniature-0", "joint", [])
    harness.score(str(tuned), tmp_path / "scores" / "x.csv", "small")
    note = "note: 1 of the 3 prompts of miniature-portraits-unseen is longer than the"
    assert capsys.readouterr().err.count(note) == 1  # though the base is drawn as well, for KID
    told = json.loads((tmp_path / "scores" / "x.json").read_text(encoding="utf-8"))
    counted = told["prompt_sets"]["miniature-portraits-unseen"]
    assert counted["truncated"] == {
        "model": 1,
        "scorers": {"skin_tone": None, "gold_utility": None, "kid": None},
    }
    assert counted["duplicates"] == {"within_prompts": 0, "across_prompts": 1}  # two prompts of one text


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_pictures_belong_to_every_part_of_the_pipeline(base_run: Path, part: str):
    """A retrained decoder draws other pictures with the same denoiser."""
    run = write_run(base_run.parent / "joint-miniature-0", "joint", [])
    before = checkpoints.resolve(str(run)).digest()
    whole = run / part
    copied = base_run.parent / "copy"
    shutil.copytree(whole.resolve(), copied)
    whole.unlink()
    copied.rename(whole)
    assert checkpoints.resolve(str(run)).digest() == before
    changed = max((f for f in whole.iterdir() if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(changed.read_bytes())
    content[-2] ^= 1
    changed.write_bytes(content)
    assert checkpoints.resolve(str(run)).digest() != before


def test_a_lora_on_another_base_draws_other_pictures(tmp_path: Path):
    lora = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, lora)
    found = checkpoints.resolve(str(lora))
    digests = {
        replace(found, base=base).digest() for base in (None, str(weights_folder("pipeline")), "some/base")
    }
    assert len(digests) == 3


def test_prompts_that_a_scorer_cannot_answer_for_are_refused_before_anything_is_drawn(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = [Prompt(str(number), "a portrait of a cat", expect={"group": "skin_tone"}) for number in range(25)]
    monkeypatch.setattr(prompts, "load", lambda _name: own)
    told = r"scorer \w+ cannot answer for miniature-portraits-unseen: prompt '0' is not of the miniature"
    with pytest.raises(ValueError, match=told):
        harness.score(str(base_run), tmp_path / "scores" / "x.csv", "small")
    with pytest.raises(ValueError, match=told):
        harness.score_given(tmp_path, tmp_path / "scores" / "x.csv", "small", "x")
    assert not (tmp_path / "images").exists()


def test_prompts_that_a_scorer_of_photographs_has_nothing_to_say_of_are_refused_before_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    part = Part("mine", 1, ("objects",))
    suite = Suite((part,), sampling=SMALL.sampling, seed=3, name="own")
    monkeypatch.setattr(suites, "load", lambda _name: suite)
    monkeypatch.setattr(prompts, "load", lambda _name: [Prompt("p0", "a mood"), Prompt("p1", "a cat")])
    told = (
        "^scorer objects cannot answer for mine: none of its 2 prompts names an object, as .* does; the first is 'p0', 'a mood': leave it out of that part of the suite, "
        "or score other prompts with it$"
    )
    with pytest.raises(ValueError, match=told):
        harness.score_given(tmp_path, tmp_path / "scores" / "x.csv", "own", "x")
    assert not (tmp_path / "scores").exists()


def test_weights_of_a_scorer_that_do_not_open_are_one_sentence(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from evals.miniature.scorers import gold_utility

    def cut_off(*_: object) -> torch.Tensor:
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"half a file")
        return load_file(path)["a"]

    monkeypatch.setattr(gold_utility.Scorer, "__call__", cut_off)
    with pytest.raises(ValueError, match="the weights of scorer gold_utility cannot be opened: "):
        harness.score(str(base_run), tmp_path / "scores" / "x.csv", "small")


def test_a_scorer_that_raises_is_named_and_what_was_scored_is_kept(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from evals.miniature.scorers import gold_utility

    def of_another_shape(*_: object) -> torch.Tensor:
        torch.nn.Linear(2, 2).load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})
        raise AssertionError("it has loaded them")

    monkeypatch.setattr(gold_utility.Scorer, "__call__", of_another_shape)
    out = tmp_path / "scores" / "x.csv"
    with pytest.raises(
        ValueError, match=r"scorer gold_utility failed with RuntimeError: .*size mismatch for weight"
    ):
        harness.score(str(base_run), out, "small")
    assert not out.exists()
    assert kept_scorers(out) == {"skin_tone"}


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("evals.diffusion.predict", "this"),
        ("evals.decoder.pixels", "this"),
        ("evals.miniature.scorers.gold_utility.Scorer.__call__", "scorer gold_utility"),
    ],
)
def test_too_little_memory_is_one_sentence(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, what: str
):
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 3 GiB. And so on"
        )

    monkeypatch.setattr(place, refuse)
    code, told = run_cli(
        "score", str(base_run), "--suite", "small", "--out", str(tmp_path / "scores" / "x.csv")
    )
    assert code == 2
    asked = "(CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 3 GiB)"
    assert (
        f"error: {what} needs more memory than there is {asked}: leave the device to this command alone, "
        in told
    )
    assert "a smaller sampling.micro_batch or decode_batch; what was drawn and scored before is kept" in told


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda images: torch.zeros(len(images) - 1), r"answered with \(24,\) for 25 images"),
        (lambda images: [0.0] * len(images), "answered with list for 25 images"),
        (lambda images: torch.full((len(images),), torch.inf), "answered with infinity for 25 of 25 images"),
    ],
)
def test_an_answer_that_is_not_one_number_each_is_refused(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, told: str
):
    from evals.miniature.scorers import gold_utility

    monkeypatch.setattr(gold_utility.Scorer, "__call__", lambda _, images, *__: answer(images))
    with pytest.raises(ValueError, match=f"scorer gold_utility {told}"):
        harness.score(str(base_run), tmp_path / "scores" / "x.csv", "small")


def test_what_a_scorer_says_of_its_input_is_said_as_it_is(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompts, "load", lambda name, load=prompts.load: load(name)[:2])
    with pytest.raises(ValueError, match=r"^miniature-[a-z]+-unseen: the kid scorer needs at least 3 images"):
        harness.score(str(base_run), tmp_path / "scores" / "x.csv", "small")


def test_a_score_out_of_its_scorers_range_is_refused(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from evals.miniature.scorers import gold_utility

    monkeypatch.setattr(gold_utility.Scorer, "range", (0.0, 1.5))
    with pytest.raises(
        ValueError,
        match=r"scorer gold_utility gave [\d.]+ to prompt .*, image 0, but states a range of 0 to 1.5",
    ):
        harness.score(str(base_run), tmp_path / "scores" / "x.csv", "small")
    assert kept_scorers(tmp_path / "scores" / "x.csv") == {"skin_tone"}  # what was scored before is not lost


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("of another model", "is no LoRA of"),
        ("half a pair", "is no LoRA of"),
        ("no tensors", "is no LoRA of"),
        ("partly of another model", "is no LoRA of .*: 2 of its 4 tensors have no place there"),
    ],
)
def test_a_lora_of_another_model_is_named(
    tmp_path: Path, damage: str, message: str, capfd: pytest.CaptureFixture[str]
):
    pipeline = checkpoints.load_pipeline(str(weights_folder("pipeline")))
    names = {name for name, _ in pipeline.unet.named_modules()}
    fits = f"unet.{next(name for name in sorted(names) if name.endswith('attn1.to_q'))}"
    width = pipeline.unet.get_submodule(fits.removeprefix("unet.")).in_features

    def pair(name: str, size: int) -> dict[str, torch.Tensor]:
        return {f"{name}.lora_A.weight": torch.zeros(2, size), f"{name}.lora_B.weight": torch.zeros(size, 2)}

    tensors = {
        "of another model": pair("unet.foreign", 3),
        "half a pair": {f"{fits}.lora_A.weight": torch.zeros(2, width)},
        "no tensors": {},
        "partly of another model": pair(fits, width) | pair("unet.foreign.attn1.to_q", width),
    }[damage]
    lora = tmp_path / checkpoints.LORA_FILE
    save_file(tensors, lora)
    with pytest.raises(ValueError, match=message) as refused:
        checkpoints.with_lora(pipeline, lora)
    assert str(lora) in str(refused.value)
    assert capfd.readouterr().err == ""


def test_a_lora_that_fits_is_put_in(tmp_path: Path):
    pipeline = checkpoints.load_pipeline(str(weights_folder("pipeline")))
    name = next(n for n, _ in pipeline.unet.named_modules() if n.endswith("attn1.to_q"))
    layer = pipeline.unet.get_submodule(name)
    shapes = {"A": (2, layer.in_features), "B": (layer.out_features, 2)}
    lora = tmp_path / checkpoints.LORA_FILE
    save_file({f"unet.{name}.lora_{half}.weight": torch.ones(shape) for half, shape in shapes.items()}, lora)
    with_it = checkpoints.with_lora(pipeline, lora).unet.get_submodule(name)
    x = torch.ones(1, layer.in_features)
    assert torch.allclose(
        with_it(x) - with_it.base_layer(x), torch.full((1, layer.out_features), 2.0 * x.sum())
    )


def test_a_folder_has_no_revision():
    with pytest.raises(ValueError, match=r"revision is main, but .* is a folder"):
        checkpoints.load_pipeline(str(weights_folder("pipeline")), "main")


def test_trained_on_is_marked(tmp_path: Path):
    run = write_run(tmp_path / "runs" / "fairness-miniature-0", "fairness", ["skin_tone"])
    out = tmp_path / "scores" / "f.csv"
    harness.score(str(run), out, "small")
    marks = score_rows.read([out]).groupby("scorer")["trained_on"].max()
    assert marks.to_dict() == {"gold_utility": 0, "kid": 0, "skin_tone": 1}


def test_a_plain_diffusers_folder_can_be_scored(tmp_path: Path):
    found = checkpoints.resolve(str(weights_folder("pipeline")))
    assert (found.experiment, found.model, found.rewards) == ("pipeline", "external", ())
    assert len(found.digest()) == 12


def test_somebodys_checkpoint_is_called_and_judged_as_is_said(tmp_path: Path):
    folder, out = str(weights_folder("pipeline")), tmp_path / "scores" / "a.csv"
    options = ["--suite", "small", "--out", str(out), "--name", "a", "--base", folder]
    code, output = run_cli("score", folder, *options, "--trained-on", "nobodys")
    assert code == 2
    assert "--trained-on nobodys is no scorer; choose from " in output
    assert "gold_utility" in output
    code, output = run_cli("score", folder, *options, "--trained-on", "gold_utility", "--trained-on", "kid")
    assert code == 0, output
    rows = score_rows.read([out])
    assert {*rows["experiment"]} == {"a"}
    marks = rows.groupby("scorer")["trained_on"].max()
    assert marks.to_dict() == {"gold_utility": 1, "kid": 1, "skin_tone": 0}
    assert {f.name for f in (tmp_path / "images").iterdir() if f.name[0] != "."} == {
        "a-external-0",
        "base-external-0",
    }


def test_what_a_checkpoint_drew_can_be_given_beside_pictures_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite = replace(SMALL, name="small", parts=(replace(SMALL.parts[0], scorers=("gold_utility",)),))
    monkeypatch.setattr(suites, "load", lambda _name: suite)
    scores = tmp_path / "scores"
    target = ["score", str(weights_folder("pipeline"))]
    given = ["--pictures", "--suite", "small"]
    code, output = run_cli(*target, "--suite", "small", "--name", "a", "--out", str(scores / "a.csv"))
    assert code == 0, output
    theirs = shutil.copytree(tmp_path / "images" / "a-external-0" / SMALL.parts[0].prompt_set, tmp_path / "b")
    code, output = run_cli("score", str(theirs), *given, "--name", "b", "--out", str(scores / "b.csv"))
    assert code == 0, output
    files = [str(scores / "a.csv"), str(scores / "b.csv")]
    code, output = run_cli("compare", *files, "--against", "b", "--out", str(tmp_path / "t.md"))
    assert code == 2
    # what the sentence says to do
    said = re.search(r"`python -m evals score IMAGES/(\S+) (.*) --out OTHER.csv`", output)
    assert said is not None
    code, output = run_cli(
        "score", str(tmp_path / "images" / said[1]), *said[2].split(), "--out", str(scores / "other.csv")
    )
    assert code == 0, output
    files[0] = str(scores / "other.csv")
    code, output = run_cli("compare", *files, "--against", "b", "--out", str(tmp_path / "t.md"))
    assert code == 0, output


def test_a_part_of_a_suite_is_scored_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    part = replace(SMALL.parts[0], scorers=("gold_utility",))
    more = replace(part, prompt_set="miniature-scenes-unseen")
    suite = replace(SMALL, name="small", parts=(part, more))
    monkeypatch.setattr(suites, "load", lambda _name: suite)
    files, one = [], ["--suite", "small", "--prompt-set", part.prompt_set]
    for name in ("a", "b"):
        files.append(str(tmp_path / f"{name}.csv"))
        code, output = run_cli(
            "score", str(weights_folder("pipeline")), *one, "--name", name, "--out", files[-1]
        )
        assert code == 0, output
    assert {*score_rows.read(files)["prompt_set"]} == {part.prompt_set}
    code, output = run_cli("compare", *files, "--against", "b", "--out", str(tmp_path / "t.md"))
    assert code == 0, output
    (tmp_path / "images" / "a-external-0" / more.prompt_set).mkdir()  # as where the whole was drawn
    given = ["score", str(tmp_path / "images" / "a-external-0"), "--pictures", "--name", "a"]
    code, output = run_cli(*given, *one, "--out", str(tmp_path / "given.csv"))
    assert code == 0, output
    code, output = run_cli(*given, "--suite", "small", "--prompt-set", "x", "--out", str(tmp_path / "x.csv"))
    assert code == 2
    assert "has no prompt set 'x'; choose from miniature-portraits-unseen, miniature-scenes-unseen" in output


def test_the_order_of_a_vendi_score_is_chosen_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    part = replace(SMALL.parts[0], images_per_prompt=3, scorers=("vendi", "gold_utility"))
    suite = replace(SMALL, name="small", parts=(part,))
    monkeypatch.setattr(suites, "load", lambda _name: suite)
    monkeypatch.setattr(prompts, "load", lambda name, load=prompts.load: load(name)[:2])
    out = tmp_path / "a.csv"
    arguments = [
        "score",
        str(weights_folder("pipeline")),
        "--suite",
        "small",
        "--name",
        "a",
        "--out",
        str(out),
    ]
    assert run_cli(*arguments)[0] == 0
    plain = score_rows.read([out])
    code, output = run_cli(*arguments, "--vendi-order", "2", "--vendi-order", "inf")
    assert code == 0, output
    rows = score_rows.read([out])
    assert {*rows["scorer"]} == {"vendi", "gold_utility", "vendi_q2", "vendi_qinf"}
    key = ["scorer", "prompt_id", "image"]
    of_both = rows.set_index(key).loc[plain.set_index(key).index]
    assert (of_both["value"].to_numpy() == plain["value"].to_numpy()).all()
    assert (of_both["version"].to_numpy() == plain["version"].to_numpy()).all()
    mean = rows.groupby("scorer")["value"].mean()
    assert 3 > mean["vendi"] > mean["vendi_q2"] > mean["vendi_qinf"] > 1  # it falls with the order
    given = [
        "score",
        str(tmp_path / "images" / "a-external-0"),
        "--pictures",
        "--suite",
        "small",
        "--name",
        "b",
    ]
    other = tmp_path / "b.csv"
    code, output = run_cli(*given, "--model", "external", "--vendi-order", "2", "--out", str(other))
    assert code == 0, output
    of_given = score_rows.read([other])
    q2 = (rows["scorer"] == "vendi_q2", of_given["scorer"] == "vendi_q2")
    assert rows[q2[0]]["value"].to_list() == of_given[q2[1]]["value"].to_list()
    other.write_text(other.read_text().replace("small:given", suite.drawn))
    code, output = run_cli("compare", str(out), str(other), "--against", "a", "--out", str(tmp_path / "t.md"))
    assert code == 0, output
    assert "diversity (Vendi, order 2)" in (tmp_path / "t.md").read_text()


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ("0", "--vendi-order 0: an order of a Vendi score is a number above 0"),
        ("1", "--vendi-order 1: an order of a Vendi score is a number above 0"),
        ("nan", "--vendi-order nan: an order of a Vendi score is a number above 0"),
        ("2", "--vendi-order: suite  has no Vendi score on miniature-portraits-unseen"),
    ],
)
def test_an_order_that_cannot_be_is_one_sentence(base_run: Path, tmp_path: Path, order: str, told: str):
    code, output = run_cli("score", str(base_run), "--out", str(tmp_path / "x.csv"), "--vendi-order", order)
    assert code == 2
    assert told in output
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("option", ["--name", "--trained-on"])
def test_a_run_says_itself_what_it_is_called_and_was_trained_on(base_run: Path, tmp_path: Path, option: str):
    code, output = run_cli("score", str(base_run), "--out", str(tmp_path / "x.csv"), option, "kid")
    assert code == 2
    assert f"error: {option} kid: {base_run} is a run of this project, whose card says its name" in output


def run_cli(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize("target", ["nothing_there", "./nowhere"])
def test_a_target_that_is_none_is_one_sentence(target: str, tmp_path: Path):
    with pytest.raises(ValueError, match="give a run directory"):
        checkpoints.resolve(target)
    code, output = run_cli("score", target, "--out", str(tmp_path / "s" / "x.csv"))
    assert code == 2
    assert "Traceback" not in output


def test_an_unfinished_run_is_refused(tmp_path: Path):
    (tmp_path / "run" / "state").mkdir(parents=True)
    with pytest.raises(ValueError, match="has not finished"):
        checkpoints.resolve(str(tmp_path / "run"))


def test_a_damaged_card_is_named(tmp_path: Path):
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        checkpoints.resolve(str(tmp_path))


def test_truncated_weights_are_one_sentence(tmp_path: Path):
    import shutil

    folder = tmp_path / "pipeline"
    shutil.copytree(weights_folder("pipeline"), folder)
    weights = next(folder.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be opened as a Stable Diffusion pipeline"):
        checkpoints.load_pipeline(str(folder))


def test_the_shipped_base_opens_with_diffusers_alone():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(weights_folder("pipeline"), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    made = pipeline.to(torch.float32)(
        "a red circle left of a blue star", num_inference_steps=2, generator=generator, output_type="pt"
    ).images
    assert made.shape == (1, 3, 64, 64)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (weights_folder("pipeline") / "tokenizer" / name).is_file()


def test_what_is_no_folder_of_pictures_is_left_alone(base_run: Path, tmp_path: Path):
    thesis = tmp_path / "images" / "base-miniature-0" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("three years of work")
    code, output = run_cli("score", str(base_run), "--out", str(tmp_path / "scores" / "x.csv"))
    assert code == 2
    assert "holds something else" in output
    assert thesis.read_text() == "three years of work"


def test_two_scorings_share_the_pictures_of_the_base(base_run: Path, tmp_path: Path):
    """Both find none of the base's and claim its folder: what one has drawn the other must not remove."""
    runs = [write_run(tmp_path / "runs" / f"joint-miniature-{seed}", "joint", []) for seed in (1, 2)]
    code = (
        "import sys; from pathlib import Path; from evals import harness, suites; from tests.test_harness import SMALL; "
        "suites.load = lambda name: SMALL; harness.score(sys.argv[1], Path(sys.argv[2]), 'small')"
    )
    outs = [tmp_path / "scores" / f"{seed}.csv" for seed in (1, 2)]
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(run), str(out)], cwd=ROOT, stderr=subprocess.PIPE)
        for run, out in zip(runs, outs, strict=True)
    ]
    for process in started:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-2000:]
    assert all(len(score_rows.read([out])) == 25 * 3 for out in outs)


def test_pictures_stay_where_the_new_weights_do_not_open(base_run: Path, tmp_path: Path):
    harness.score(str(base_run), tmp_path / "scores" / "x.csv", "small")
    before = sorted((tmp_path / "images").rglob("*.png"))
    run = write_run(tmp_path / "other" / "base-miniature-0", "base", [])
    card = json.loads((run / "run.json").read_text(encoding="utf-8")) | {"base": None}
    (run / "run.json").write_text(json.dumps(card), encoding="utf-8")
    weights = next((run / "unet").resolve().glob("*.safetensors"))
    config = (run / "unet").resolve() / "config.json"
    (run / "unet").unlink()
    (run / "unet").mkdir()
    (run / "unet" / "config.json").write_bytes(config.read_bytes())
    (run / "unet" / weights.name).write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be opened"):
        harness.score(str(run), tmp_path / "scores" / "y.csv", "small")
    assert sorted((tmp_path / "images").rglob("*.png")) == before


@pytest.mark.parametrize(
    "changes", [{"name": "../../victim-miniature-0"}, {"model": ".."}, {"rewards": "objects"}, {"name": 5}]
)
def test_a_card_names_no_folder_but_its_own(base_run: Path, changes: dict[str, object]):
    card = json.loads((base_run / "run.json").read_text(encoding="utf-8")) | changes
    (base_run / "run.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        checkpoints.resolve(str(base_run))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["compare", "{in}", "--out", "{dir}/in.md"], "would write over"),
        (["compare", "{in}", "--out", "{dir}/table.txt"], "must end in .md"),
        (["report", "{in}", "--out", "{in}"], "must end in .html"),
        (["pack", "{in}", "--out", "{dir}/all.csv"], "must end in .csv.xz"),
        (["score", "x/y", "--out", "{dir}/note.csv"], "note.csv"),
        (["score", "x/y", "--out", "{dir}/note.txt"], "must end in .csv"),
        (["picture", "{dir}", "{dir}", "--out", "{dir}/p.jpg"], "must end in .png"),
        (["picture", "{dir}/no", "{dir}", "--out", "{dir}/p.png"], "there is no folder"),
        (["compare", "{in}", "--out", "{in}/below/t.md"], "in.csv"),
        (["compare", "{in}", "--out", "/proc/nope/t.md"], "/proc/nope"),
    ],
)
def test_an_out_that_cannot_be_is_one_sentence_and_loses_nothing(
    tmp_path: Path, arguments: list[str], part: str
):
    scores = tmp_path / "in.csv"
    score_rows.write(study(prompts=3, images=2), scores)
    (tmp_path / "note.csv").write_text("my notes", encoding="utf-8")
    before = scores.read_bytes()
    code, output = run_cli(*(a.format(**{"in": scores, "dir": tmp_path}) for a in arguments))
    assert code == 2, output
    assert output.count("error: ") == 1
    assert part in output
    assert scores.read_bytes() == before
    assert (tmp_path / "note.csv").read_text(encoding="utf-8") == "my notes"


def test_packed_scores_are_the_same_rows(tmp_path: Path):
    rows = study(prompts=3, images=2)
    files = [tmp_path / f"{name}.csv" for name in sorted(set(rows["experiment"]))]
    for path in files:
        score_rows.write(rows[rows["experiment"] == path.stem], path)
    packed = tmp_path / "all.csv.xz"
    code, output = run_cli("pack", *map(str, files), "--out", str(packed))
    assert code == 0, output
    one, other = (
        score_rows.read(paths).drop(columns="file").sort_values(list(score_rows.KEY), ignore_index=True)
        for paths in (files, [packed])
    )
    assert one.equals(other)
    files[0].write_bytes(files[0].read_bytes()[:-3])  # cut off: a number would be another
    before = packed.read_bytes()
    assert run_cli("pack", *map(str, files), "--out", str(packed))[0] == 2
    assert packed.read_bytes() == before


def test_unknown_suite_names_the_choices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"choose from .*miniature, .*paper"):
        suites.load("big")


def test_a_run_is_scored_on_the_suite_of_its_domain_and_others_must_be_told(base_run: Path, tmp_path: Path):
    assert suites.of_domain(checkpoints.resolve(str(base_run)).domain, "") == "miniature"
    assert suites.of_domain("photo", "") == "paper"
    with pytest.raises(
        ValueError, match=r"pipeline is no run of this project, .*: --suite .*miniature or .*paper"
    ):
        harness.score("evals/miniature/weights/pipeline", tmp_path / "scores" / "x.csv", None)


def test_suites_name_prompt_sets_and_scorers_that_are_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the real ones
    for name in suites.names():
        suite = suites.load(name)
        for part in suite.parts:
            assert part.prompt_set in prompts.names()
            assert {*part.scorers} <= {*scorers.names(suite.domain)}
    assert {*suites.DEFAULTS.values()} <= {*suites.names()}


def test_a_suite_of_another_domain_is_refused(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(suites, "load", lambda _name: replace(SMALL, domain="photo"))
    with pytest.raises(
        ValueError,
        match=r"suite paper looks at pictures of the domain photo, but .* draws those of miniature",
    ):
        harness.score(str(base_run), tmp_path / "scores" / "x.csv", "paper")


def test_a_checkpoint_of_another_family_than_its_base_is_one_sentence(
    tmp_path: Path, tiny_pipeline_dir: Path, tiny_xl_dir: Path
):
    """Before anything is drawn."""
    run = tmp_path / "runs" / "joint-tiny-0"
    shutil.copytree(tiny_xl_dir, run)
    card = {"name": "joint-tiny-0", "model": "tiny", "seed": 0, "rewards": [], "base": str(tiny_pipeline_dir)}
    (run / "run.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"joint-tiny-0 is of another family than its base .*: cross_attention_dim of"
    ):
        harness.score(str(run), tmp_path / "scores" / "x.csv", "small")
    assert not (tmp_path / "images").exists()


def test_a_base_that_draws_another_size_is_one_sentence(tmp_path: Path, tiny_pipeline_dir: Path):
    """Denoisers of one family may still draw pictures of two sizes."""
    run = tmp_path / "runs" / "joint-tiny-0"
    shutil.copytree(tiny_pipeline_dir, run)
    config = json.loads((run / "unet" / "config.json").read_text(encoding="utf-8"))
    (run / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 8}), encoding="utf-8")
    card = {"name": "joint-tiny-0", "model": "tiny", "seed": 0, "rewards": [], "base": str(tiny_pipeline_dir)}
    (run / "run.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ValueError, match=r"0.png is 16 x 16 pixels, but the base's .*0.png is 8 x 8"):
        harness.score(str(run), tmp_path / "scores" / "x.csv", "small")


@pytest.mark.parametrize("content", ["nothing", "a lora"])
def test_a_folder_without_a_run_card_is_one_sentence(tmp_path: Path, content: str):
    run = tmp_path / "joint-miniature-0"
    run.mkdir()
    if content == "a lora":
        save_file({"a": torch.zeros(1)}, run / checkpoints.LORA_FILE)
    code, output = run_cli("score", str(run), "--out", str(tmp_path / "s" / "x.csv"), "--suite", "small")
    assert (code, output.count("error: ")) == (2, 1)
    assert f"error: {run} is no pipeline in diffusers layout, it has no model_index.json; " in output
    assert "pictures are scored with --pictures" in output


def test_what_lies_where_the_provenance_goes_is_left_alone(base_run: Path, tmp_path: Path):
    notes = tmp_path / "scores" / "x.json"
    notes.parent.mkdir()
    notes.write_text('{"my": "notes"}')
    with pytest.raises(ValueError, match=r"x\.json is there, .* and is something else"):
        harness.score(str(base_run), tmp_path / "scores" / "x.csv", "small")
    assert notes.read_text() == '{"my": "notes"}'


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "a"], "--model goes with --pictures"),
        (["--name", "a/b"], "--name a/b must be letters"),
        (["--name", "base", "--base", "b"], "--base goes with another --name: this checkpoint is"),
        (["--pictures", "--suite", "small"], "--pictures needs --name"),
        (["--pictures", "--name", "a"], "--pictures needs --suite"),
        (["--pictures", "--name", "a/b", "--suite", "small"], "--name 'a/b' must have no slash"),
        (["--pictures", "--name", "a\nb", "--suite", "small"], "--name 'a\\nb' must have no slash, no line"),
        # as `vote` calls a folder: its votes and these scores are of one experiment
        (["--pictures", "--name", "thé a-b (2)", "--suite", "small"], "there is no folder of pictures"),
        (["--pictures", "--name", "a", "--suite", "small"], "there is no folder of pictures"),
    ],
)
def test_options_for_pictures_that_do_not_go_together(tmp_path: Path, options: list[str], told: str):
    code, output = run_cli("score", str(tmp_path / "no"), "--out", str(tmp_path / "x.csv"), *options)
    assert code == 2
    assert told in output


@pytest.mark.parametrize(
    "change", [{"base": 3}, {"seed": float("inf")}, {"seed": -1, "name": "base-miniature--1"}]
)
def test_a_run_card_with_what_rows_cannot_hold_is_refused_before_anything_is_drawn(
    base_run: Path, change: dict[str, Any]
):
    card = json.loads((base_run / "run.json").read_text(encoding="utf-8"))
    (base_run / "run.json").write_text(json.dumps(card | change), encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json is damaged or of another program"):
        checkpoints.resolve(str(base_run))


@pytest.mark.parametrize(
    ("out", "images"),
    [
        ("results/scores/a.csv", "results/images"),
        ("results/curves/a.csv", "results/images"),
        ("mine/a.csv", "mine/images"),
        ("/mine/a.csv", "/mine/images"),
    ],
)
def test_pictures_go_beside_their_scores(out: str, images: str) -> None:
    assert harness.images_of(Path(out)) == Path(images)


def test_pictures_of_a_bare_name_are_those_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores").mkdir()
    for folder in (tmp_path, tmp_path / "scores"):
        monkeypatch.chdir(folder)
        assert harness.images_of(Path("a.csv")) == harness.images_of(folder / "a.csv") == tmp_path / "images"
