"""Recorded calls are the denoiser's own: answers, gradients, and which calls are made as usual. That of a GPU: `tests/test_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests import toy
from tests.test_fsdp import experiment_of, prepared, write_record
from train.config import Lora, check
from train.cuda_graphs import USUAL_CALLS, Recorder, record_calls
from train.loop import train
from train.start import new_accelerator, prepare


class Remade:
    """Behaves as a GPU's recording does, on a CPU: reads and writes where it did the first time, and is made of what lies there now."""

    def __init__(
        self, call: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> None:
        self.call, self.weights = call, weights
        self.inputs: Sequence[Tensor] = [tensor.clone() for tensor in inputs]
        self.with_gradient = torch.is_grad_enabled()
        self.output = call(*self.inputs).detach().fill_(torch.nan)
        self.slope: Tensor | None = torch.empty_like(self.output) if self.with_gradient else None
        self.gradients: Sequence[Tensor | None] = [torch.empty_like(weight) for weight in weights]
        self.left: list[Tensor] = [tensor.clone() for tensor in self.inputs]
        self.forwards = self.backwards = 0

    def forward(self) -> None:
        self.forwards += 1
        torch._foreach_copy_(self.left, list(self.inputs))
        with torch.no_grad():
            self.output.copy_(self.call(*self.inputs))

    def backward(self) -> None:
        self.backwards += 1
        with torch.enable_grad():
            found = torch.autograd.grad(self.call(*self.left), self.weights, self.slope, allow_unused=True)
        for kept, gradient in zip(self.gradients, found, strict=True):
            assert kept is not None
            kept.copy_(torch.zeros_like(kept) if gradient is None else gradient)


class Denoiser(nn.Module):
    """Of two inputs, one of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.usual_calls = 0

    def forward(self, x: Tensor, *, text: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        self.usual_calls += 1
        return (self.second(torch.tanh(self.first(x + text))) * self.frozen,)


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser()


def recorded(denoiser: Denoiser) -> Recorder:
    """In its place, and so far along that the next call of either kind is recorded."""
    recorder = Recorder(denoiser, Remade)
    for _ in range(USUAL_CALLS):
        answer(recorder, 9.0).sum().backward()
        with torch.no_grad():
            answer(recorder, 9.0)
    denoiser.zero_grad()
    assert not recorder.recordings
    return recorder


def answer(call: Callable[..., tuple[Tensor]], of: float, rows: int = 2) -> Tensor:
    x = torch.arange(rows * 3.0).view(rows, 3)
    (found,) = call(x * of, text=torch.full((rows, 3), 0.1 * of), return_dict=False)
    return found


def gradients(denoiser: nn.Module) -> list[Tensor]:
    found = [weight.grad.clone() for weight in denoiser.parameters() if weight.grad is not None]
    denoiser.zero_grad()
    return found


def test_answers_are_the_usual_ones_and_none_is_overwritten(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    with torch.no_grad():
        usual = [answer(denoiser, of) for of in (1.0, 2.0, 3.0)]
        found = [answer(recorder, of) for of in (1.0, 2.0, 3.0)]
    (recording,) = recorder.recordings.values()
    assert recording.forwards == 3  # type: ignore[attr-defined]
    for ours, theirs in zip(found, usual, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_add_up_as_usual(denoiser: Denoiser) -> None:
    """The first gradient of a weight is kept as it is given: were it the recording's own tensor, the second call would overwrite it."""
    recorder = recorded(denoiser)
    for of in (1.0, -2.0, 0.5):
        (answer(denoiser, of) ** 2).sum().backward()
    usual = gradients(denoiser)
    for of in (1.0, -2.0, 0.5):
        (answer(recorder, of) ** 2).sum().backward()
    (recording,) = recorder.recordings.values()
    assert recording.backwards == 3  # type: ignore[attr-defined]
    found = gradients(denoiser)
    assert len(found) == len(usual) == 4
    for ours, theirs in zip(found, usual, strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_have_changed_in_their_place_are_seen(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    with torch.no_grad():
        before = answer(recorder, 1.0)
        denoiser.first.weight.mul_(2)
        after = answer(recorder, 1.0)
        assert torch.equal(after, answer(denoiser, 1.0))
    assert not torch.equal(after, before)


def test_answers_of_one_loss_are_right_though_only_one_can_be_recorded(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    (answer(denoiser, 1.0) * answer(denoiser, 2.0)).sum().backward()
    usual = gradients(denoiser)
    before = denoiser.usual_calls
    first, second = answer(recorder, 1.0), answer(recorder, 2.0)
    (first * second).sum().backward()
    assert (
        denoiser.usual_calls == before + 1 + 2 + 1
    )  # the recording: made, forward, backward; the second answer: as usual
    for ours, theirs in zip(gradients(denoiser), usual, strict=True):
        assert torch.equal(ours, theirs)


def test_an_answer_that_nobody_differentiates_blocks_nothing(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    answer(recorder, 1.0)
    loss = answer(recorder, 2.0).sum()
    loss.backward()
    answer(recorder, 3.0)  # while the one before is still there, but answered
    (recording,) = recorder.recordings.values()
    assert recording.forwards == 3  # type: ignore[attr-defined]


def test_a_gradient_is_taken_once(denoiser: Denoiser) -> None:
    loss = answer(recorded(denoiser), 1.0).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        loss.backward()


def test_weights_stay_until_the_gradient_is_taken(denoiser: Denoiser) -> None:
    loss = answer(recorded(denoiser), 1.0).sum()
    with torch.no_grad():
        denoiser.first.weight.mul_(2)
    with pytest.raises(RuntimeError, match="weights have changed"):
        loss.backward()


def test_what_is_recorded_in_inference_serves_inference(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    with torch.inference_mode():
        found = [answer(recorder, 1.0) for _ in range(USUAL_CALLS + 1)]
    with torch.no_grad():
        found.append(answer(recorder, 1.0))
    assert len(recorder.recordings) == 2
    assert torch.equal(found[-2], found[-1])


def test_only_calls_without_a_gradient_are_recorded_where_it_computes_them_again(denoiser: Denoiser) -> None:
    record_calls(denoiser, checkpointing=True)
    call: Any = denoiser.forward
    call.recording = Remade
    for _ in range(USUAL_CALLS + 1):
        answer(denoiser, 1.0).sum().backward()
        with torch.no_grad():
            answer(denoiser, 1.0)
    (recording,) = call.recordings.values()
    assert recording.slope is None


def test_an_input_that_wants_a_gradient_gets_it(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    x = torch.ones(2, 3, requires_grad=True)
    recorder(x, text=torch.zeros(2, 3), return_dict=False)[0].sum().backward()
    assert x.grad is not None
    assert not recorder.recordings


def test_kinds_have_recordings_of_their_own(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    with torch.no_grad():
        answer(recorder, 1.0)
    answer(recorder, 1.0)
    assert len(recorder.recordings) == 2
    with torch.no_grad():
        for time in range(USUAL_CALLS + 1):
            assert len(recorder.recordings) == 2, time
            assert torch.equal(answer(recorder, 1.0, rows=5), answer(denoiser, 1.0, rows=5))
    assert len(recorder.recordings) == 3


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_a_run_is_the_same(
    lora: Lora | None,
    tiny_pipeline_dir: Path,
    toy_prompts: Path,
    tmp_path: Path,
    toy_scorers: None,
) -> None:
    """Rollout, update, what lends other weights, and checks before training: all but the GPU."""
    experiment = toy.toy_experiment(tiny_pipeline_dir, toy_prompts, iterations=2, lora=lora)
    plain, ours = (
        prepare(experiment, "toy", 0, tmp_path / name, new_accelerator()) for name in ("plain", "recorded")
    )
    unet = ours.policy.unet
    recorder = unet.forward = Recorder(unet, Remade)
    for run in (plain, ours):
        train(run)
    made = list(recorder.recordings.values())
    assert any(each.slope is not None and each.backwards for each in made)  # type: ignore[attr-defined]
    assert any(each.slope is None and each.forwards for each in made)  # type: ignore[attr-defined]
    assert ours.progress.gates["identity"]["holds"]
    for name, weight in plain.policy.weights.items():
        assert torch.equal(ours.policy.weights[name], weight), name


def two_iterations(base: str, prompts: str, out: str, recording: bool) -> None:
    """DDP, which gathers a weight's gradients as each comes."""
    run = prepared(experiment_of(base, prompts, lora=False, sharding="none"), out)
    unet = run.policy.unet
    if recording:
        unet.forward = Recorder(unet, Remade)
    train(run)
    assert isinstance(run.policy.module, nn.parallel.DistributedDataParallel)
    assert not recording or len(unet.forward.recordings) == 2
    write_record(run, dict(run.policy.weights), out)


def test_two_processes_train_the_same(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    found = []
    for recording in (False, True):
        out = tmp_path / f"recording-{recording}"
        out.mkdir()
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), recording)
        assert toy.launch(2, two_iterations, *arguments) == [0, 0]
        found += [load_file(out / f"rank{rank}.safetensors") for rank in (0, 1)]
    first, *others = found
    for other in others:
        for name, weight in first.items():
            assert torch.equal(other[name], weight), name


def test_a_machine_without_a_gpu_is_told_before_anything_loads(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path / "no-base", tmp_path / "no-prompts.jsonl")
    experiment = replace(experiment, update=replace(experiment.update, cuda_graphs=True))
    with pytest.raises(ValueError, match=r"update\.cuda_graphs is true, but .* on the CPU.*: leave it out"):
        prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())


def test_what_cannot_be_recorded_is_refused(tiny_pipeline_dir: Path, toy_prompts: Path) -> None:
    experiment = toy.toy_experiment(tiny_pipeline_dir, toy_prompts)
    for other in ({"compile": True}, {"sharding": "fsdp2"}):
        update = replace(experiment.update, cuda_graphs=True, **other)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"update\.cuda_graphs .*update\.{next(iter(other))}"):
            check(replace(experiment, update=update), 1)
