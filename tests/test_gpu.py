"""What only a GPU can show, on the tiny pipeline: `pytest -m gpu`. Everything else is tested on the CPU, where equal means to the last bit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evals.checkpoints import load_pipeline
from evals.diffusion import Painter, Precision, Sampling
from tests import toy
from tests.test_distributed import recorded
from tests.test_fsdp import two_iterations_and_the_hand_over
from train.config import Ema, Experiment, Lora
from train.loop import Run, iterate, save, train
from train.start import new_accelerator, prepare

pytestmark = pytest.mark.gpu

LORA = Lora(rank=2, alpha=2.0)


def experiment_of(
    base: Path, prompts: Path, precision: Precision, lora: bool, checkpointing: bool
) -> Experiment:
    experiment = toy.toy_experiment(
        base, prompts, iterations=3, lora=LORA if lora else None, ema=Ema(decay=0.5)
    )
    return replace(
        experiment,
        sampling=replace(experiment.sampling, precision=precision),
        # wide enough for what 16 bits round, where a GPU takes other kernels for another size of batch
        update=replace(experiment.update, gradient_checkpointing=checkpointing, clip=1.0, skip_last=1),
    )


@pytest.mark.parametrize("base", ["tiny_pipeline_dir", "tiny_xl_dir"])
def test_a_gpu_draws_the_pictures_of_a_cpu(base: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(base)
    sampling = Sampling(steps=6, guidance=3.0, micro_batch=4)
    new_accelerator()  # float32 means float32
    pictures = []
    for device in ("cpu", "cuda"):
        pipeline = load_pipeline(str(folder)).to(device)
        pictures.append(Painter.of(pipeline, sampling).paint(toy.TEXTS, range(len(toy.TEXTS)), seed=3))
    on_cpu, on_gpu = pictures
    assert on_gpu.device.type == "cpu"
    assert on_cpu.std() > 0.01
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("precision", "lora", "checkpointing"),
    [("fp32", False, False), ("bf16", False, True), ("bf16", True, False), ("fp16", True, True)],
)
def test_it_trains_and_resumes_bit_for_bit(
    precision: Precision,
    lora: bool,
    checkpointing: bool,
    tiny_pipeline_dir: Path,
    toy_prompts: Path,
    tmp_path: Path,
    toy_scorers: None,
) -> None:
    def started(name: str) -> Run:
        experiment = experiment_of(tiny_pipeline_dir, toy_prompts, precision, lora, checkpointing)
        run = prepare(experiment, "toy", 0, tmp_path / name, new_accelerator())
        assert run.accelerator.device.type == "cuda"
        return run

    straight, stopped = started("straight"), started("stopped")
    before = {name: weight.detach().clone() for name, weight in straight.policy.weights.items()}
    train(straight)
    assert all(gate["holds"] for gate in straight.progress.gates.values())
    iterate(stopped, 0)
    save(stopped)
    resumed = started("stopped")
    assert resumed.progress.iteration == 1
    train(resumed)
    for name, weight in straight.policy.weights.items():
        assert not torch.equal(weight, before[name])
        assert torch.equal(resumed.policy.weights[name], weight), name


def in_a_group_of_one(base: str, prompts: str, out: str, lora: bool, sharding: str) -> None:
    """NCCL, shares and their gathering, with nobody to share with."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["PORT_OF_THE_TEST"]}
    two_iterations_and_the_hand_over(base, prompts, out, lora, sharding)
    assert torch.distributed.get_backend() == "nccl"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_group_of_one_trains_as_one(
    sharding: str,
    lora: bool,
    tiny_pipeline_dir: Path,
    toy_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT_OF_THE_TEST", str(toy.free_port()))
    records: list[Any] = []
    for name, work, way in (
        ("alone", two_iterations_and_the_hand_over, "none"),
        ("group", in_a_group_of_one, sharding),
    ):
        out = tmp_path / name
        out.mkdir()
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), lora, way)
        assert toy.launch(1, work, *arguments) == [0]
        records += recorded(out, 1)
    alone, group = records
    for name in (name for name in alone if name.startswith(("weights.", "gradient."))):
        torch.testing.assert_close(group[name], alone[name], rtol=1e-3, atol=2e-4)
    files = [
        load_file(next((tmp_path / name / "state").rglob("ema.safetensors"))) for name in ("alone", "group")
    ]
    assert files[0].keys() == files[1].keys()
