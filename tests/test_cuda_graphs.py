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
from train.cuda_graphs import USUAL_CALLS, Recorder, Recordings, add_gradients, record_calls
from train.loop import train
from train.policy import Policy
from train.start import new_accelerator, prepare


class Remade:
    """Behaves as a GPU's recording does, on a CPU: reads and writes where it did the first time, is made of what lies there now, and overwrites all others."""

    def __init__(
        self,
        call: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        others: list[Remade],
    ) -> None:
        self.call, self.weights, self.others = call, weights, others
        self.inputs: Sequence[Tensor] = [tensor.clone() for tensor in inputs]
        output = call(*self.inputs)
        self.output = output.detach().clone().fill_(torch.nan)
        self.slope: Tensor | None = None
        self.reached: Sequence[bool] = ()
        if output.requires_grad:
            self.slope = torch.empty_like(self.output)
            found = torch.autograd.grad(output.sum(), weights, allow_unused=True)
            self.reached = [gradient is not None for gradient in found]
        self.left: list[Tensor] = [tensor.clone() for tensor in self.inputs]
        self.forwards = self.backwards = 0

    def _overwrite_others(self) -> None:
        with torch.inference_mode():  # what was made in it is changed in it alone
            for other in self.others:
                if other is not self:
                    for tensor in (other.output, *other.left):
                        tensor.fill_(torch.nan if tensor.is_floating_point() else -1)

    def forward(self) -> None:
        self.forwards += 1
        self._overwrite_others()
        torch._foreach_copy_(self.left, list(self.inputs))
        with torch.no_grad():
            self.output.copy_(self.call(*self.inputs))

    def backward(self) -> None:
        self.backwards += 1
        assert self.slope is not None
        self._overwrite_others()
        with torch.enable_grad():
            reached = add_gradients(self.call(*self.left), self.slope, self.weights)
        assert reached == self.reached


class Tape(Recordings):
    """Of a CPU; keeps those that gave way too."""

    def __init__(self) -> None:
        super().__init__(self._remade)
        self.all: list[Remade] = []

    def _remade(self, *given: Any) -> Remade:
        *given, _pool = given
        self.all.append(Remade(*given, self.all))
        return self.all[-1]


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


def recorded(denoiser: Denoiser) -> Any:
    """In its place, and so far along that the next call of either kind is recorded."""
    recorder = Recorder(denoiser, Tape())
    for _ in range(USUAL_CALLS):
        answer(recorder, 9.0).sum().backward()
        with torch.no_grad():
            answer(recorder, 9.0)
    denoiser.zero_grad()
    assert not recorder.recordings.made
    return recorder


def recorded_of_both_kinds(denoiser: Denoiser) -> Any:
    """With a recording of a call without a gradient, and of one with it, whose answer nobody has kept."""
    recorder = recorded(denoiser)
    with torch.no_grad():
        answer(recorder, 1.0)
    answer(recorder, 1.0)
    assert len(recorder.recordings.made) == 2
    return recorder


def only(recorder: Any) -> Any:
    """The recording that there is."""
    ((recording, _),) = recorder.recordings.made.values()
    return recording


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
    recording = only(recorder)
    assert recording.forwards == 3
    for ours, theirs in zip(found, usual, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_add_up_as_usual(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    for of in (1.0, -2.0, 0.5):
        (answer(denoiser, of) ** 2).sum().backward()
    usual = gradients(denoiser)
    for of in (1.0, -2.0, 0.5):
        (answer(recorder, of) ** 2).sum().backward()
    recording = only(recorder)
    assert recording.backwards == 3
    found = gradients(denoiser)
    assert len(found) == len(usual) == 4
    for ours, theirs in zip(found, usual, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_added_to_those_that_are_there_and_stay_where_they_are(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    places = []
    for usual_first in (False, True, False):
        for of in (1.0, 2.0):
            (answer(denoiser, of) ** 2).sum().backward()
        usual = gradients(denoiser)
        (answer(denoiser if usual_first else recorder, 1.0) ** 2).sum().backward()
        (answer(recorder, 2.0) ** 2).sum().backward()
        weight = denoiser.first.weight
        assert weight.grad is not None
        places.append(weight.grad.data_ptr())
        for ours, theirs in zip(gradients(denoiser), usual, strict=True):
            assert torch.equal(ours, theirs)
    assert len(set(places)) == 1


def test_a_weight_without_a_gradient_has_none(denoiser: Denoiser) -> None:
    """AdamW would let it decay: zeros are no None."""
    denoiser.idle = nn.Parameter(torch.ones(2))
    recorder = recorded(denoiser)
    for _ in range(2):
        answer(recorder, 1.0).sum().backward()
    assert only(recorder).backwards == 2
    assert denoiser.idle.grad is None
    assert denoiser.first.weight.grad is not None


def test_who_waits_for_a_gradient_is_given_it(denoiser: Denoiser) -> None:
    """As DDP is, which adds it up where it wants: the first one is kept as it is given, and must not be the recording's own tensor, on which the second is written."""
    recorder = Recorder(denoiser, Tape(), copied=True)
    told: list[Tensor] = []
    denoiser.first.weight.register_hook(told.append)
    for of in (9.0, 9.0, 1.0, 2.0):
        (answer(recorder, of) ** 2).sum().backward()
    assert only(recorder).backwards == 2
    weight = denoiser.first.weight
    assert weight.grad is not None
    assert torch.equal(weight.grad, ((told[0] + told[1]) + told[2]) + told[3])
    assert not torch.equal(told[2], told[3])


def test_nothing_is_overwritten_while_a_gradient_is_awaited(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    with torch.no_grad():
        answer(recorder, 1.0)
    for of in (1.0, 2.0):
        (answer(denoiser, of) ** 2).sum().backward()
    usual = gradients(denoiser)
    for of in (1.0, 2.0):
        found = answer(recorder, of)
        with torch.no_grad():
            beside = answer(recorder, 5.0)
            assert torch.equal(beside, answer(denoiser, 5.0))
        (found**2).sum().backward()
    assert [each.backwards for each in recorder.recordings.all] == [0, 2]
    for ours, theirs in zip(gradients(denoiser), usual, strict=True):
        assert torch.equal(ours, theirs)


def test_usual_calls_with_a_gradient_are_not_made_beside_recordings(denoiser: Denoiser) -> None:
    recorder = recorded_of_both_kinds(denoiser)
    for usual in range(USUAL_CALLS):
        answer(recorder, 1.0, rows=5)
        assert not recorder.recordings.made, usual
        assert all(alias.grad is None for alias in recorder.gradients.aliases), "a second set of gradients"
    answer(recorder, 1.0, rows=5)
    with torch.no_grad():
        assert torch.equal(answer(recorder, 1.0), answer(denoiser, 1.0))
    assert len(recorder.recordings.made) == 2


def test_weights_that_have_changed_in_their_place_are_seen(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    with torch.no_grad():
        before = answer(recorder, 1.0)
        denoiser.first.weight.mul_(2)
        after = answer(recorder, 1.0)
        assert torch.equal(after, answer(denoiser, 1.0))
    assert not torch.equal(after, before)


def test_an_answer_has_its_own_form(denoiser: Denoiser) -> None:
    """Of two kinds of call, one whose answer is a tensor, another that has it in a tuple."""
    inside = denoiser.forward

    def forward(x: Tensor, *, text: Tensor, return_dict: bool = False) -> Any:
        (found,) = inside(x, text=text)
        return found if return_dict else (found,)

    denoiser.forward = forward
    recorder, x = Recorder(denoiser, Tape()), torch.ones(2, 3)
    with torch.no_grad():
        for _ in range(USUAL_CALLS + 2):
            alone = recorder(x, text=x, return_dict=True)
            (in_a_tuple,) = recorder(x, text=x, return_dict=False)
            assert torch.equal(alone, in_a_tuple)
    assert len(recorder.recordings.made) == 2


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
    recording = only(recorder)
    assert recording.forwards == 3


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
    assert len(recorder.recordings.made) == 2
    assert torch.equal(found[-2], found[-1])


def test_only_calls_without_a_gradient_are_recorded_where_it_computes_them_again(denoiser: Denoiser) -> None:
    tape = Tape()
    decoder = nn.Linear(3, 3)
    record_calls(denoiser, decoder, tape, gradients=False, wrapped=False)
    assert not isinstance(decoder.forward, Recorder)
    for _ in range(USUAL_CALLS + 1):
        answer(denoiser, 1.0).sum().backward()
        with torch.no_grad():
            answer(denoiser, 1.0)
    ((recording, _),) = tape.made.values()
    assert recording.slope is None


def test_an_input_that_wants_a_gradient_gets_it(denoiser: Denoiser) -> None:
    recorder = recorded(denoiser)
    x = torch.ones(2, 3, requires_grad=True)
    recorder(x, text=torch.zeros(2, 3), return_dict=False)[0].sum().backward()
    assert x.grad is not None
    assert not recorder.recordings.made


def test_kinds_have_recordings_of_their_own(denoiser: Denoiser) -> None:
    recorder = recorded_of_both_kinds(denoiser)
    with torch.no_grad():
        for time in range(USUAL_CALLS + 1):
            assert len(recorder.recordings.made) == 2, time
            assert torch.equal(answer(recorder, 1.0, rows=5), answer(denoiser, 1.0, rows=5))
    assert len(recorder.recordings.made) == 3


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
    tape = record(ours.policy)
    for run in (plain, ours):
        train(run)
    assert any(each.slope is not None and each.backwards for each in tape.all)
    assert any(each.slope is None and each.forwards and each.weights for each in tape.all)
    assert any(each.slope is None and each.forwards and not each.weights for each in tape.all), "the decoder"
    assert ours.progress.gates["identity"]["holds"]
    for name, weight in plain.policy.weights.items():
        assert torch.equal(ours.policy.weights[name], weight), name


def record(policy: Policy) -> Tape:
    """What `update.cuda_graphs` does on a GPU."""
    tape = Tape()
    wrapped = policy.module is not policy.unet
    record_calls(policy.unet, policy.pipeline.vae.decoder, tape, gradients=True, wrapped=wrapped)
    return tape


def two_iterations(base: str, prompts: str, out: str, recording: bool) -> None:
    """DDP, which gathers a weight's gradients as each comes."""
    run = prepared(experiment_of(base, prompts, lora=False, sharding="none"), out)
    tape = record(run.policy) if recording else None
    train(run)
    assert isinstance(run.policy.module, nn.parallel.DistributedDataParallel)
    assert tape is None or any(each.backwards for each in tape.all)
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
