"""`python -m train push`: the card, the files, the ten lines that use them, and every way in which the hub says no. No hub is reached."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import errors
from safetensors.torch import save_file

from evals import asides, bases, compare, rows, tables
from evals.checkpoints import LORA_FILE, ROOT, Checkpoint, resolve
from evals.decoder import decode
from evals.diffusion import Painter, sample
from evals.weights import Weights
from tests import toy
from tests.synthetic_rows import study
from train import experiments, methods, push
from train.__main__ import main
from train.card import ddim_options, origin
from train.config import Experiment, Lora, as_json
from train.loop import train
from train.model_card import usage
from train.push import content
from train.start import hand_over, new_accelerator, prepare

RUN, XL, LORA = "toy-miniature-1", "toy-xl-0", "toy-lora-0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_prompts: Path) -> Path:
    """Finished runs: the whole of a pipeline that comes with PNDM's scheduler as Stable Diffusion does, of an SDXL, and a LoRA."""
    from diffusers import PNDMScheduler

    place = tmp_path_factory.mktemp("push")
    pipeline = toy.build_tiny_pipeline()
    pipeline.scheduler = PNDMScheduler(**toy.NOISE, skip_prk_steps=True, set_alpha_to_one=False)
    pipeline.save_pretrained(place / "base")
    toy.build_tiny_xl().save_pretrained(place / "xl")
    experiment = toy.toy_experiment(place / "base", toy_prompts, iterations=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("evals.scorers.load", toy.load_scorer)
        for name, changes in {
            RUN: {},
            XL: {"base": str(place / "xl")},
            LORA: {"lora": Lora(rank=2, alpha=2.0)},
        }.items():
            _, model, seed = name.split("-")
            chosen = replace(experiment, **changes)
            run = prepare(chosen, model, int(seed), place / name, new_accelerator())
            train(run)
            hand_over(run, name)
    (place / RUN / "tensorboard").mkdir()
    (place / RUN / "tensorboard" / "events").touch()
    return place


@pytest.fixture
def finished(runs: Path, tmp_path: Path) -> Path:
    """A finished run of one's own, to change."""
    return Path(shutil.copytree(runs / RUN, tmp_path / RUN))


def record_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def change(run: Path, **values: Any) -> None:
    (run / "run.json").write_text(json.dumps(record_of(run) | values))


def pushed(run: Path, *options: str, name: str = "me/model") -> Result:
    return CliRunner().invoke(main, ["push", str(run), name, *options])


def card(run: Path, *options: str) -> str:
    done = pushed(run, "--licence", "openrail++", "--dry-run", *options)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(done: Result, *parts: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.output


# ------------------------------------------------------------------------------------------------------------ the ten lines


def drawn_here(run: Path, seed: int) -> np.ndarray[Any, Any]:
    """The picture of this project's sampler, from noise in the order in which diffusers asks a generator for it."""
    record = record_of(run)
    sampling = toy.toy_experiment("", "").sampling
    painter = Painter.of(resolve(str(run)).pipeline(), sampling)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack(
        [torch.randn(painter.latent_shape, generator=generator) for _ in range(1 + sampling.steps)]
    )
    cond, uncond = painter.encoder([record["example"]]), painter.unconditional()
    drawn = sample(painter.unet, painter.schedule, cond, uncond, lambda _: noise[None], sampling)
    image = decode(painter.vae, drawn.latents_BCHW, sampling.micro_batch)[0]
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(int)


def drawn_by(lines: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """The picture that the lines leave."""
    from PIL import Image

    monkeypatch.chdir(folder)
    exec(compile(lines, "quick start", "exec"), {})
    return np.asarray(Image.open(folder / "image.png")).astype(int)


@pytest.mark.parametrize("name", [RUN, XL, LORA])
def test_ten_lines_of_plain_diffusers_draw_what_training_drew(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = runs / name
    lines = usage(record_of(run), str(run))
    (tmp_path / "base").symlink_to(runs / "base")  # a LoRA's base, at hand
    assert len([line for line in lines.splitlines() if line]) <= 10
    assert max(map(len, lines.splitlines())) <= 180 + len(str(run))
    found, expected = drawn_by(lines, tmp_path, monkeypatch), drawn_here(run, 0)
    assert np.abs(found - expected).max() <= 1
    assert expected.std() > 1


def test_the_sampler_in_these_lines_matters(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDIM's defaults clip latents, where a config does not say that they must not be; so would the pipeline's own sampler draw otherwise."""
    run = runs / RUN
    lines, expected = usage(record_of(run), str(run)), drawn_here(run, 0)
    for left_out in (", clip_sample=False, set_alpha_to_one=False", "eta=1.0, "):
        assert lines.count(left_out) == 1
        found = drawn_by(lines.replace(left_out, ""), tmp_path, monkeypatch)
        assert np.abs(found - expected).max() > 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"clip_sample": False, "set_alpha_to_one": False}),
        ({"clip_sample": True, "set_alpha_to_one": True}, {"clip_sample": True, "set_alpha_to_one": True}),
    ],
)
def test_options_of_the_sampler_are_what_the_config_says_else_off(
    config: dict[str, bool], expected: dict[str, bool]
) -> None:
    assert ddim_options(SimpleNamespace(config=config)) == expected


def test_the_lines_of_a_lora_open_its_base_at_its_revision(runs: Path) -> None:
    record = record_of(runs / LORA)
    record["experiment"] |= {"base": "they/base", "revision": "abc"}
    lines = usage(record, "me/lora")
    assert 'DiffusionPipeline.from_pretrained("they/base", revision="abc")\n' in lines
    assert 'pipe.load_lora_weights("me/lora")\n' in lines


def test_the_lines_of_a_lora_on_one_file_open_that_file(runs: Path, tmp_path: Path) -> None:
    for text, kind in (
        ("cond_stage_model.transformer.x", "StableDiffusionPipeline"),
        ("conditioner.embedders.1.model.x", "StableDiffusionXLPipeline"),
    ):
        names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x", text)
        save_file({name: torch.zeros(1, 4) for name in names}, tmp_path / "own.safetensors")
        record = record_of(runs / LORA)
        record["experiment"] |= {"base": str(tmp_path / "own.safetensors")}
        lines = usage(record, "me/lora")
        assert f"import DDIMScheduler, {kind}\n" in lines
        assert f'pipe = {kind}.from_single_file("own.safetensors")\n' in lines
        assert "must be at hand" in lines
        assert str(tmp_path) not in lines


@pytest.mark.parametrize("there", [True, False])
def test_a_local_base_is_no_base_on_the_hub_and_its_place_is_not_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    file = tmp_path / "own.safetensors"
    if there:
        file.touch()
    change(finished, base=str(file), experiment=record_of(finished)["experiment"] | {"base": str(file)})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raising(AssertionError("the hub was asked")))
    refused(pushed(finished, "--dry-run"), "own.safetensors is not known", "--licence")
    told = card(finished)
    assert "base_model" not in told
    assert "`own.safetensors` after 1 iterations" in told
    assert str(tmp_path) not in told
    assert str(Path(record_of(finished)["experiment"]["tasks"][0]["prompts"]).parent) not in told


# ------------------------------------------------------------------------------------------------------------------ card


def test_card_says_what_run_json_says(runs: Path) -> None:
    record, told = record_of(runs / RUN), card(runs / RUN)
    assert told.startswith("---\n")
    assert yaml.safe_load(told.split("---")[1]) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "openrail++",
        "tags": ["text-to-image", "diffusers", "reinforcement-learning", "arxiv:2401.12244"],
    }
    cost = record["cost"]
    for part in (
        f"# {RUN}\n",
        "after 1 iterations of training on rewards: *redness* (redness) and *tone* (parity of tone). ",
        "Method, `ppo`: The paper's method: clipped policy gradient (Eq 7) on",
        "Here is the whole pipeline.",
        "![Samples](samples/000001.png)",
        usage(record, "me/model"),
        "DDIM with 4 steps and eta 1, guidance 2;",
        f"| redness | toy | {next(iter(record['prompt_sets'].values()))} | 1 x redness | 8 |",
        "| 1 x tone, as parity | 8 |",
        "- **redness** (reward, version 00000000): toy",
        "| update.lr | `0.001` |",
        '| tasks.tone.rewards | `[{"scorer": "tone", "weight": 1.0}]` |',
        f"{cost['images']} images and {cost['denoiser_evaluations']} evaluations of the denoiser",
        "no GPU. It ended on 1 process:",
        "says nothing about persons",
        "No scores were given when this card was made",
        f"Seed 1, commit {record['commit']}",
        f"torch {record['versions']['torch']}",
    ):
        assert part in told, part
    assert str(runs) not in told.replace(record["base"], "").replace(
        record["experiment"]["tasks"][0]["prompts"], ""
    )


def test_card_of_a_lora_from_the_hub(finished: Path, runs: Path) -> None:
    shutil.copy(runs / LORA / "run.json", finished)
    shutil.copy(runs / LORA / "pytorch_lora_weights.safetensors", finished)
    record = record_of(finished)
    change(
        finished,
        base="they/base",
        experiment=record["experiment"] | {"base": "they/base", "revision": "abc"},
        cost=record["cost"] | {"gpu_hours": 12.34},
    )
    told = card(finished)
    head = yaml.safe_load(told.split("---")[1])
    assert head["base_model"] == "they/base"
    assert head["base_model_relation"] == "adapter"
    assert "lora" in head["tags"]
    assert "`they/base` at revision abc" in told
    assert "a LoRA of rank 2 for it" in told
    assert "12.3 GPU-hours" in told


@pytest.mark.parametrize("name", methods.names())
def test_card_says_by_which_method_and_whose_that_is(finished: Path, name: str) -> None:
    method = methods.as_json(methods.load(name)())
    change(finished, experiment=record_of(finished)["experiment"] | {"method": method})
    told = card(finished)
    (line,) = (line for line in told.splitlines() if line.startswith(f"Method, `{name}`: "))
    sentence = line.partition(": ")[2].partition(" The paper is ")[0]
    assert sentence.endswith(".")
    assert name == methods.PAPERS or "arXiv " in sentence
    assert ("policy gradient" in told) == ("policy gradient" in sentence)


def test_card_opens_with_the_rewards_as_they_are(finished: Path) -> None:
    experiment = record_of(finished)["experiment"]
    terms = [{"scorer": "/home/me/red.py", "weight": 1.0}, {"scorer": "blur", "weight": -0.5}]
    tasks = [experiment["tasks"][0] | {"name": "imagereward", "rewards": terms}]
    change(finished, experiment=experiment | {"tasks": tasks})
    assert "training on rewards: *imagereward* (red + -0.5 x blur). Here is" in card(finished)


def test_rewards_are_told_with_revision_and_licence(finished: Path) -> None:
    weights = Weights("they/reward", ("a.bin",), "CC-BY-NC-4.0", free=False, revision="f00", sha256=("ab",))
    source = origin(SimpleNamespace(source="A reward, paper", weights=(weights,)))
    assert source["weights"][0]["sha256"] == {"a.bin": "ab"}
    assert origin(SimpleNamespace(source="its own")) == {"source": "its own", "weights": []}
    change(finished, scorer_sources=record_of(finished)["scorer_sources"] | {"redness": source})
    told = card(finished)
    assert "version 00000000): A reward, paper\n  - weights of they/reward, f00: CC-BY-NC-4.0\n" in told
    assert (
        "- The weights of they/reward, which redness uses, are not free for every use: CC-BY-NC-4.0." in told
    )


def test_results_are_those_of_compare_for_this_run_alone(finished: Path, tmp_path: Path) -> None:
    frame = study(prompts=6, images=2, experiments=("base", "imagereward", "fairness"))
    frame["experiment"] = frame["experiment"].replace({"fairness": "toy"})
    base = frame["experiment"] == "base"
    rows.write(frame[base], tmp_path / "base.csv")
    rows.write(frame[~base], tmp_path / "others.csv")
    told = card(finished, "--scores", str(tmp_path / "base.csv"), "--scores", str(tmp_path / "others.csv"))
    mine = (frame["experiment"] == "toy") & (frame["seed"] == 1)
    expected = compare.compare(
        rows.read([tmp_path / "base.csv", tmp_path / "others.csv"])[(mine | base).to_numpy()]
    )
    table = [line for line in told.splitlines() if "-unseen |" in line]
    estimates = expected.of(experiment="toy")
    assert len(table) == len(estimates) > 5
    for e in estimates:
        metric = compare.metrics.load(e.metric)
        value = f"| {tables.interval(metric, e.value)}{'†' if e.trained_on else ''} |"
        difference = (
            f"| {tables.interval(metric, e.difference, signed=True)} | {tables.SIGNS[e.mark]} {e.mark} |"
        )
        start = f"| {tables.heading(metric)} | {e.prompt_set} | "
        assert any(
            line.startswith(start) and line.endswith(f"{value[:-2]} {difference}") for line in table
        ), e
    assert "imagereward" not in " ".join(table)
    assert "One training seed only: toy." in told
    assert "- Worse than the base: " in told


def test_a_sheet_is_shown_only_with_the_bases_row(finished: Path) -> None:
    (finished / "samples" / "000000.png").unlink()
    assert "![Samples]" not in card(finished)


def test_a_sheet_of_an_earlier_state_is_not_shown_as_this_model(finished: Path) -> None:
    """Where samples were switched off on the way; nor does a picture of somebody's own stop anything."""
    change(finished, experiment=record_of(finished)["experiment"] | {"iterations": 7})
    (finished / "samples" / "cover.png").touch()
    assert "![Samples]" not in card(finished)


def test_guidance_that_diffusers_does_not_do_is_told(finished: Path) -> None:
    experiment = record_of(finished)["experiment"]
    for guidance, told in (
        (None, "without guidance"),
        (1.0, "without guidance"),
        (0.5, "guide above 1 only"),
    ):
        change(
            finished, experiment=experiment | {"sampling": experiment["sampling"] | {"guidance": guidance}}
        )
        assert told in card(finished)


# ----------------------------------------------------------------------------------------------------------------- files


def test_weights_record_curves_and_samples_go_up_and_nothing_else(runs: Path) -> None:
    names = card(runs / RUN).rsplit("\n\n", 1)[1].split()
    assert set(names) == {
        *("README.md", "model_index.json", "run.json", "metrics.jsonl", "scheduler/scheduler_config.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        *("text_encoder/config.json", "text_encoder/model.safetensors"),
        *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        *("tokenizer/vocab.json", "tokenizer/merges.txt"),
        *("samples/000000.png", "samples/000001.png", "samples/prompts.txt"),
    }
    of_lora = card(runs / LORA).rsplit("\n\n", 1)[1].split()
    assert "pytorch_lora_weights.safetensors" in of_lora
    assert not [name for name in of_lora if "unet" in name or "state" in name]


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_vocabulary_goes_up_as_it_is(tmp_path: Path, name: str) -> None:
    (path := tmp_path / name).write_text('{"/</w>": 269, "//": 270}')
    assert content(path) == path


def test_out_writes_the_card_and_lists_the_files(finished: Path, tmp_path: Path) -> None:
    done = pushed(finished, "--licence", "mit", "--out", str(tmp_path / "card"))
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == ["README.md", "model_index.json"]
    assert "license: mit" in (tmp_path / "card" / "README.md").read_text()
    refused(pushed(finished, "--licence", "mit", "--out", str(tmp_path / "card")), "has a README.md already")


# --------------------------------------------------------------------------------------------------------------- licence


def test_the_licence_of_a_base_is_never_made_up(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(record_of(finished)["base"])
    refused(pushed(finished, "--dry-run"), f"the licence of {base} is not known", "--licence")
    with_card = finished.parent / "base"
    shutil.copytree(base, with_card)
    (with_card / "README.md").write_text(
        "---\nlicense: other\nlicense_name: own\nlicense_link: https://x.example\n---\n"
    )
    change(finished, experiment=record_of(finished)["experiment"] | {"base": str(with_card)})
    told = pushed(finished, "--dry-run").stdout
    assert "license: other\nlicense_name: own\nlicense_link: https://x.example\n" in told
    miniature = "evals/miniature/weights/pipeline"
    change(finished, experiment=record_of(finished)["experiment"] | {"base": miniature})
    assert "license: apache-2.0\n" in pushed(finished, "--dry-run").stdout
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_licence_of_a_base_on_the_hub_is_looked_up(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(
        finished,
        experiment=record_of(finished)["experiment"] | {"base": "they/base", "revision": "abc"},
    )
    asked: list[Any] = []

    def model_info(_: Any, name: str, revision: str | None, timeout: float) -> Any:
        assert timeout
        asked.append((name, revision))
        return SimpleNamespace(card_data=huggingface_hub.ModelCardData(license="creativeml-openrail-m"))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert "license: creativeml-openrail-m\n" in pushed(finished, "--dry-run").stdout
    assert asked == [("they/base", "abc")]


@pytest.mark.parametrize("silence", ["offline", "no connection"])
def test_a_dry_run_needs_no_hub(finished: Path, monkeypatch: pytest.MonkeyPatch, silence: str) -> None:
    """What is to be uploaded is not made without the licence, and what is only looked at is."""
    changed = record_of(finished)["experiment"] | {"base": "they/base", "revision": None}
    change(finished, experiment=changed)
    error = errors.OfflineModeIsEnabled("offline") if silence == "offline" else no_connection()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raising(error))
    told = "the licence of they/base is not known (the hub cannot be reached"
    for options in ((), ("--out", str(finished.parent / "card")), ("--dry-run", "--out", str(finished))):
        refused(pushed(finished, *options), told, "--licence")
    done = pushed(finished, "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(f"note: {told}")
    assert done.stderr.endswith(": say it with --licence; the card below is without it\n")
    assert "license" not in done.stdout.split("---")[1]
    assert "base_model: they/base\n" in done.stdout
    assert "license: mit\n" in pushed(finished, "--dry-run", "--licence", "mit").stdout
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raising(answer(404)))
    refused(pushed(finished, "--dry-run"), "the hub has no they/base that you may see", "--licence")


# ------------------------------------------------------------------------------------------------------------------- hub


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def answer(status: int) -> errors.HfHubHTTPError:
    """An error of the hub's client as it is with that answer."""
    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    error.args = ("told by the hub\nin two lines",)
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


class Hub:
    """A hub with one repository."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
        self.place, self.calls = place, list[tuple[str, Any]]()
        self.files: dict[str, bytes] = {}
        self._patched = monkeypatch
        for name in ("whoami", "create_repo", "list_repo_files", "hf_hub_download", "create_commit"):
            monkeypatch.setattr(
                huggingface_hub.HfApi, name, lambda _, *a, __n=name, **o: getattr(self, __n)(*a, **o)
            )

    def fails(self, name: str, error: Exception) -> None:
        setattr(self, name, raising(error))

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def create_repo(self, name: str, private: bool | None, exist_ok: bool) -> str:
        self.calls.append((name, private))
        assert exist_ok
        return f"https://hub.example/{name}"

    def list_repo_files(self, name: str) -> list[str]:
        return [".gitattributes", *self.files]

    def hf_hub_download(self, name: str, file: str) -> str:
        path = self.place / file
        path.write_bytes(self.files[file])
        return str(path)

    def create_commit(self, name: str, operations: Any, commit_message: str) -> None:
        self.calls.append((name, commit_message))
        for operation in operations:
            with operation.as_file() as content:
                self.files[operation.path_in_repo] = content.read()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    (tmp_path / "cache").mkdir()
    return Hub(monkeypatch, tmp_path / "cache")


def test_everything_goes_up_in_one_commit_and_again_where_it_is_the_same_run(
    hub: Hub, finished: Path
) -> None:
    done = pushed(finished, "--licence", "mit")
    assert (done.exit_code, done.stdout) == (0, "https://hub.example/me/model\n")
    assert hub.calls == [("me/model", None), ("me/model", f"Weights and card of {RUN}")]
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files[unet] == (finished / unet).read_bytes()
    assert hub.files["README.md"].startswith(b"---\n")
    assert not [name for name in hub.files if name.startswith(("state", "tensorboard"))]
    assert pushed(finished, "--licence", "apache-2.0").exit_code == 0
    assert b"license: apache-2.0" in hub.files["README.md"]


def test_what_goes_up_says_nothing_of_places_on_this_machine(hub: Hub, finished: Path) -> None:
    record = record_of(finished)
    prompts = record["experiment"]["tasks"][0]["prompts"]
    assert Path(prompts).is_absolute()
    versions = {**record["scorer_versions"], "/home/me/red.py": "01234567"}
    change(finished, scorer_versions=versions, rewards=["/home/me/red.py", "tone"])
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    with (finished / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"rewards": {"/home/me/red.py": 0.5}}) + "\n")
    source = record["scorer_sources"]["redness"]
    change(finished, scorer_sources=record["scorer_sources"] | {"/home/me/red.py": source})
    assert pushed(finished, "--licence", "mit").exit_code == 0
    places = ("/home/me", str(Path(prompts).parent), str(Path(record["base"]).parent))
    for name, held in hub.files.items():
        assert not [place for place in places if place.encode() in held], name
    theirs = json.loads(hub.files["run.json"])
    assert theirs["scorer_versions"] == record["scorer_versions"] | {"red.py": "01234567"}
    assert (theirs["base"], theirs["rewards"]) == (Path(record["base"]).name, ["red.py", "tone"])
    sent = [json.loads(line) for line in hub.files["metrics.jsonl"].splitlines()]
    assert sent == [*map(json.loads, lines), {"rewards": {"red.py": 0.5}}]
    assert "/home/me" in (finished / "run.json").read_text()  # the run's own record stays as it is


def test_a_private_repository(hub: Hub, finished: Path) -> None:
    assert pushed(finished, "--licence", "mit", "--private").exit_code == 0
    assert hub.calls[0] == ("me/model", True)


def test_a_repository_with_something_else_is_left_alone(hub: Hub, finished: Path) -> None:
    hub.files = {"thesis.pdf": b""}
    refused(pushed(finished, "--licence", "mit"), "me/model holds something else already (thesis.pdf)")
    theirs = record_of(finished) | {"finished": "2020-01-01"}
    hub.files = {"run.json": json.dumps(theirs).encode()}
    refused(pushed(finished, "--licence", "mit"), f"holds another run already ({RUN}, finished 2020-01-01)")
    assert set(hub.files) == {"run.json"}


def no_connection() -> Exception:
    """As the hub library's HTTP library has it, whichever library that is."""
    http = import_module(errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0])
    error: Exception = http.ConnectError("Name or service not known")
    return error


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        (
            "whoami",
            errors.LocalTokenNotFoundError("no token"),
            "you are not logged in to the hub: `hf auth login`",
        ),
        (
            "whoami",
            errors.OfflineModeIsEnabled("HF_HUB_OFFLINE"),
            "the hub cannot be reached (HF_HUB_OFFLINE)",
        ),
        ("whoami", no_connection(), "the hub cannot be reached (Name or service not known)"),
        ("whoami", answer(401), "the hub does not know your token"),
        ("create_repo", answer(403), "you may not write to me/model: name one of your own"),
        ("create_commit", answer(403), "you may not write to me/model: name one of your own"),
        ("list_repo_files", answer(404), "the hub has no me/model that you may see"),
        ("create_commit", answer(500), "the hub refused me/model: told by the hub"),
        (
            "create_commit",
            ValueError('Invalid metadata in README.md.\n- Error: "license" must be one of'),
            'Invalid metadata in README.md. - Error: "license" must be one of',
        ),
        ("create_commit", OSError(28, "No space left on device"), "no space left on device"),
    ],
)
def test_each_refusal_of_the_hub_is_one_sentence(
    hub: Hub, finished: Path, where: str, error: Exception, told: str
) -> None:
    hub.fails(where, error)
    refused(pushed(finished, "--licence", "mit"), told)


# ------------------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_finished_run_is_refused(finished: Path, tmp_path: Path) -> None:
    refused(pushed(tmp_path / "nothing"), "is no run directory: it has no run.json")
    change(finished, experiment=record_of(finished)["experiment"] | {"iterations": 0})
    refused(pushed(finished), "is the base as it was")
    record = record_of(finished)
    del record["scorer_sources"]
    (finished / "run.json").write_text(json.dumps(record))
    refused(pushed(finished), "run.json was written by an earlier version", "scorer_sources")
    (finished / "run.json").write_text("{")
    refused(pushed(finished), "run.json is damaged or of another program")
    (finished / "run.json").unlink()
    refused(pushed(finished), "is a run that has not finished: train it to its end first")


def test_a_run_without_weights_is_refused(finished: Path) -> None:
    (finished / "model_index.json").unlink()
    refused(pushed(finished), "has no weights: neither model_index.json nor pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("name", ["model", "me/my/model", "me/", "me/a model", "../x"])
def test_names_that_the_hub_cannot_have(finished: Path, name: str) -> None:
    refused(pushed(finished, name=name), f"{name} is no name of a repository: give OWNER/NAME")


def test_scores_of_other_runs_are_refused(finished: Path, tmp_path: Path) -> None:
    rows.write(study(prompts=2, images=2, experiments=("base", "joint")), tmp_path / "scores.csv")
    options = ("--licence", "mit", "--dry-run", "--scores", str(tmp_path / "scores.csv"))
    refused(pushed(finished, *options), f"is of {RUN}")
    alone = study(prompts=2, images=2, experiments=("joint",)).assign(experiment="toy")
    rows.write(alone, tmp_path / "scores.csv")
    refused(pushed(finished, *options), "there are no base scores for the model miniature")
    refused(
        pushed(finished, *options[:-1], str(tmp_path / "no.csv")), "no.csv: the score file cannot be read"
    )


def told_beside(path: Path, experiment: str, seed: int, weights: str) -> None:
    """What `python -m evals score` tells beside a score file."""
    model = {"experiment": experiment, "model": "miniature", "seed": seed, "weights": weights}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    asides.beside(path).write_text(json.dumps({"model": model, "rows_sha256": digest}))


def test_scores_of_other_weights_of_the_same_name_are_refused(finished: Path, tmp_path: Path) -> None:
    """A run that was trained again, and a variant's base where the run has another."""
    frame = study(prompts=2, images=2, experiments=("base", "joint"))
    frame = frame.assign(experiment=frame["experiment"].replace({"joint": "toy"}))
    mine, base = tmp_path / "mine.csv", tmp_path / "base.csv"
    rows.write(frame[(frame["experiment"] == "toy") & (frame["seed"] == 1)], mine)
    rows.write(frame[frame["experiment"] == "base"], base)
    options = ("--scores", str(mine), "--scores", str(base))
    ours = resolve(str(finished))
    told_beside(mine, "toy", 1, ours.digest())
    told_beside(base, "base", 0, ours.its_base().digest())
    assert "| difference |" in card(finished, *options)
    told_beside(base, "base", 0, "0" * 12)
    done = pushed(finished, "--licence", "mit", "--dry-run", *options)
    refused(done, f"--scores {base} is of other weights than those of ", f"score {finished}@0 --out FILE.csv")
    told_beside(mine, "toy", 1, "0" * 12)
    done = pushed(finished, "--licence", "mit", "--dry-run", *options)
    refused(done, f"--scores {mine} is of other weights than", f"score {finished} --out FILE.csv")
    rows.write(rows.read([mine])[::-1], mine)  # not the rows that were told of: of these nothing is known
    told_beside(base, "base", 0, ours.its_base().digest())
    done = pushed(finished, "--licence", "mit", "--dry-run", *options)
    assert "| difference |" in done.stdout
    told = f"note: of which weights --scores {mine} is cannot be seen: nothing beside it tells it of these rows\n"
    assert done.stderr == told


def test_a_base_that_is_named_from_another_folder_refuses_no_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models/sd` reads as a hub's id from there, and of the weights that were scored nothing is known."""
    scores, folder = tmp_path / "mine.csv", tmp_path / "run"
    scores.write_text("rows\n")
    folder.mkdir()
    (folder / LORA_FILE).write_bytes(b"adapters")
    run = Checkpoint("toy", "miniature", 1, (), "models/sd", folder, str(folder))
    told_beside(scores, "toy", 1, "0" * 12)
    told = f"whether --scores {scores} is of the weights of toy-miniature-1 cannot be seen: their base, models/sd, is not on this machine"
    assert push.refuse_other_weights(scores, run) == told
    told_beside(scores, "other", 1, "0" * 12)
    assert push.refuse_other_weights(scores, run) == "", "another run's are left out"
    told_beside(scores, "toy", 1, "0" * 12)
    monkeypatch.setattr(bases, "is_kept", lambda *of: True)  # it is one, and was fetched once
    with pytest.raises(ValueError, match="is of other weights than those of"):
        push.refuse_other_weights(scores, run)


# ------------------------------------------------------------------------------------------------------------ two commands


def test_push_is_no_experiment() -> None:
    assert "push" not in experiments.names()


def test_the_other_command_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*given: str) -> Experiment:
        asked.append(given)
        raise ValueError("stop here")

    monkeypatch.setattr(experiments, "load", load)
    for words in (
        ["joint", "--on", "push"],
        ["--on", "push", "joint"],
        ["--seed", "3", "--on=push", "joint"],
    ):
        done = CliRunner().invoke(main, words)
        refused(done, "stop here")
    assert asked == [("joint", "push")] * 3
    monkeypatch.setattr("sys.argv", ["train", "joint", "--on", "x"])
    with pytest.raises(SystemExit):
        main()
    assert asked[-1] == ("joint", "x")
    assert "push RUN" in CliRunner().invoke(main, ["--help"]).output
    assert (
        "Usage: python -m train push [OPTIONS] RUN OWNER/NAME"
        in CliRunner().invoke(main, ["push", "--help"]).output
    )


def test_readme_has_these_lines() -> None:
    text = "".join((ROOT / "README.md").read_text(encoding="utf-8").split())  # a formatter may break lines
    for on in ("sd2", "sd2_1gpu"):
        record = {
            "experiment": as_json(experiments.load("imagereward", on)),
            "scheduler": {"clip_sample": False, "set_alpha_to_one": False},
            "example": "a red cube on a blue sphere",
        }
        for line in usage(record, f"results/runs/imagereward-{on}-0").splitlines():
            assert "".join(line.split()) in text
