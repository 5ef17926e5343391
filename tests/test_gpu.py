"""What only a GPU can show, on the tiny pipeline: `pytest -m gpu`. Everything else is tested on the CPU, where equal means to the last bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from evals.arithmetic import Precision, exact_device
from evals.checkpoints import load_pipeline
from evals.conditioning import PromptEncoder
from evals.decoder import DecoderPrecision
from evals.diffusion import Painter, Sampling
from tests import toy
from tests.test_distributed import recorded
from tests.test_fsdp import prepared, two_iterations_and_the_hand_over, write_record
from train.config import Ema, Experiment, Lora
from train.cuda_graphs import Kind, Recorder, Recording
from train.determinism import only_deterministic
from train.loop import iterate, save, train
from train.run import Run
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


Start = Callable[..., Run]


@pytest.fixture
def start(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, toy_scorers: None) -> Start:
    """A run of that name on the GPU, ready to go."""

    def started(
        name: str, precision: Precision, lora: bool, checkpointing: bool, recording: bool = False
    ) -> Run:
        experiment = experiment_of(tiny_pipeline_dir, toy_prompts, precision, lora, checkpointing)
        experiment = with_recordings(experiment) if recording else experiment
        run = prepare(experiment, "toy", 0, tmp_path / name, new_accelerator())
        assert run.accelerator.device.type == "cuda"
        return run

    return started


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


@pytest.mark.parametrize(("precision", "grey_levels"), [("tf32", 1.0), ("bf16", 6.0)])
def test_a_decoder_rounds_by_as_much_as_its_precision(
    precision: DecoderPrecision, grey_levels: float, tiny_pipeline_dir: Path
) -> None:
    exact_device()
    pipeline = load_pipeline(str(tiny_pipeline_dir)).to("cuda")
    pictures = []
    for each in ("fp32", precision, "fp32"):
        painter = Painter.of(pipeline, Sampling(steps=2, guidance=None, decoder_precision=each))
        pictures.append(painter.paint(toy.TEXTS, range(len(toy.TEXTS)), seed=3))
    exact, rounded, again = pictures
    assert torch.equal(again, exact), "the precision outlived its decoder"
    off = (rounded - exact).abs().max() * 255
    assert off < grey_levels
    assert off > 0 or precision == "tf32", "so small a decoder may have no kernel for TF32"


@pytest.mark.parametrize("base", ["tiny_pipeline_dir", "tiny_xl_dir"])
def test_what_is_read_of_a_text_depends_on_none_beside_it(base: str, request: pytest.FixtureRequest) -> None:
    exact_device()
    pipeline = load_pipeline(str(request.getfixturevalue(base))).to("cuda")
    alone = PromptEncoder.of(pipeline)(toy.TEXTS[-1:])
    together = PromptEncoder.of(pipeline)(toy.TEXTS)
    for one, many in zip(alone.columns(), together.columns(), strict=True):
        assert torch.equal(many[-1:], one)


@pytest.mark.parametrize(
    ("precision", "lora", "checkpointing"),
    [("fp32", False, False), ("bf16", False, True), ("bf16", True, False), ("fp16", True, True)],
)
def test_it_trains_and_resumes_bit_for_bit(
    precision: Precision, lora: bool, checkpointing: bool, start: Start
) -> None:
    def started(name: str) -> Run:
        return start(name, precision, lora, checkpointing)

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


def be_a_group_of_one() -> None:
    """Of this process: it meets nobody at the test's port, and is wrapped as where there are several, which accelerate would not."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["PORT_OF_THE_TEST"]}
    Accelerator.use_distributed = property(lambda _: True)


def in_a_group_of_one(base: str, prompts: str, out: str, lora: bool, sharding: str) -> None:
    """NCCL, shares and their gathering, with nobody to share with."""
    be_a_group_of_one()
    run = two_iterations_and_the_hand_over(base, prompts, out, lora, sharding)
    assert "nccl" in str(torch.distributed.get_backend_config())
    assert isinstance(run.policy.module, DistributedDataParallel) == (sharding == "none")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_group_of_one_trains_as_one(
    lora: bool, tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP and FSDP2 on NCCL, against no group at all."""
    records, states = [], []
    for name, work, sharding in (
        ("alone", two_iterations_and_the_hand_over, "none"),
        ("ddp", in_a_group_of_one, "none"),
        ("fsdp2", in_a_group_of_one, "fsdp2"),
    ):
        monkeypatch.setenv("PORT_OF_THE_TEST", str(toy.free_port()))
        out = tmp_path / name
        out.mkdir()
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), lora, sharding)
        assert toy.launch(1, work, *arguments, forked=False) == [0], name
        records += recorded(out, 1)
        states.append(load_file(next((out / "state").rglob("ema.safetensors"))))
    for group, state in zip(records[1:], states[1:], strict=True):
        for name in (name for name in records[0] if name.startswith(("weights.", "gradient."))):
            torch.testing.assert_close(group[name], records[0][name], rtol=1e-3, atol=2e-4)
        assert state.keys() == states[0].keys()


@pytest.mark.parametrize(
    ("precision", "lora", "checkpointing"),
    [("fp32", False, False), ("bf16", True, False), ("fp16", False, False), ("bf16", False, True)],
)
def test_recorded_calls_change_nothing_but_time(
    precision: Precision, lora: bool, checkpointing: bool, start: Start
) -> None:
    runs = []
    for name, recording in (("plain", False), ("recorded", True)):
        runs.append(start(name, precision, lora, checkpointing, recording))
        train(runs[-1])
    usual, ours = runs
    recordings = recordings_of(ours)
    recorded_modules = {kind.recorder.module for kind in recordings}
    unet, decoder = ours.policy.unet, ours.policy.pipeline.vae.decoder
    assert recorded_modules == ({unet} if checkpointing else {unet, decoder})
    assert any(recording.slope is not None for recording, _ in recordings.values()) != checkpointing
    for name, weight in usual.policy.weights.items():
        assert torch.equal(ours.policy.weights[name], weight), name
    with usual.policy.handed_over(), ours.policy.handed_over():
        pictures = [run.policy.painter.paint(toy.TEXTS, range(len(toy.TEXTS)), seed=3) for run in runs]
    assert torch.equal(*pictures)


def with_recordings(experiment: Experiment) -> Experiment:
    return replace(experiment, update=replace(experiment.update, cuda_graphs=True))


def recordings_of(run: Run) -> dict[Kind, tuple[Recording, Any]]:
    recorder: Any = run.policy.unet.forward
    assert isinstance(recorder, Recorder)
    return recorder.recordings.made


def in_a_group_of_one_recorded(base: str, prompts: str, out: str, recording: bool) -> None:
    """DDP, whose gradients are summed as each comes."""
    be_a_group_of_one()
    experiment = experiment_of(Path(base), Path(prompts), "fp32", lora=False, checkpointing=False)
    run = prepared(with_recordings(experiment) if recording else experiment, out)
    train(run)
    assert isinstance(run.policy.module, DistributedDataParallel)
    assert not recording or any(each.slope is not None for each, _ in recordings_of(run).values())
    write_record(run, dict(run.policy.weights), out)


def test_recorded_calls_change_nothing_in_a_group(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for recording in (False, True):
        monkeypatch.setenv("PORT_OF_THE_TEST", str(toy.free_port()))
        out = tmp_path / f"recorded-{recording}"
        out.mkdir()
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), recording)
        assert toy.launch(1, in_a_group_of_one_recorded, *arguments, forked=False) == [0]
        weights += recorded(out, 1)
    for name, weight in weights[0].items():
        assert torch.equal(weights[1][name], weight), name


def test_attention_has_the_same_gradient_each_time() -> None:
    """Of the size and precision that Stable Diffusion's first blocks have."""
    device = exact_device()
    generator = torch.Generator(device).manual_seed(0)
    query, key, value, weight = torch.randn(
        4, 8, 5, 4096, 64, device=device, dtype=torch.bfloat16, generator=generator
    )
    gradients = []
    for _ in range(3):
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        answer = torch.nn.functional.scaled_dot_product_attention(*leaves)
        with only_deterministic(device):
            (answer * weight).float().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for again in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(again, gradients[0], strict=True))
