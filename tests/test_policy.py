"""Pipeline in, pipeline out: full UNet and LoRA, averaged weights, and what diffusers opens afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import save as pickled  # the form in which others publish some
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.package import ENVIRONMENT
from evals.arithmetic import Precision
from evals.checkpoints import LORA_FILE, find_base, freeze, load_pipeline, with_lora
from evals.diffusion import Painter, Sampling, predict
from tests.test_diffusion import randn
from tests.toy import toy_experiment
from train import state as states
from train.config import Ema, Experiment, Lora, Update
from train.policy import AveragedWeights, Policy, learning_rate
from train.start import new_accelerator
from train.state import Identity, Progress

SAMPLING = Sampling(steps=3, eta=1.0, guidance=None, micro_batch=2)


def policy_of(base: Path, **changes: Any) -> Policy:
    experiment: Experiment = toy_experiment(base, "unused", **changes)
    return Policy(load_pipeline(str(base)), experiment, new_accelerator(), seed=0)


def push(policy: Policy, seed: int = 0) -> None:
    """One optimiser step on made-up gradients."""
    for number, weight in enumerate(policy.weights.values()):
        weight.grad = randn(*weight.shape, seed=1000 * seed + number)
    policy.optimiser_step()


def copies(weights: dict[str, Any]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def pictures(unet: Any, pipeline: Any) -> Tensor:
    painter = Painter.of(pipeline, SAMPLING)
    painter.unet = unet
    return painter.paint(["red", "nurse"], [0, 1], seed=3)


# --------------------------------------------------------------------------------------------------------------- average


def test_average_has_its_closed_form() -> None:
    """After n steps: d^n w_0 + (1 - d) sum_k d^(n - k) w_k."""
    decay, history = 0.9, [randn(3, 2, seed=k) for k in range(6)]
    average = AveragedWeights({"w": history[0]}, decay)
    for weight in history[1:]:
        average.step({"w": weight})
    expected = decay**5 * history[0] + sum((1 - decay) * decay ** (5 - k) * history[k] for k in range(1, 6))
    torch.testing.assert_close(average.average["w"], expected)


def test_average_is_taken_once_per_optimiser_step(tiny_pipeline_dir: Path) -> None:
    policy = policy_of(tiny_pipeline_dir, ema=Ema(decay=0.5))
    start = copies(policy.weights)
    push(policy)
    assert policy.ema is not None
    for name, weight in policy.weights.items():
        torch.testing.assert_close(policy.ema.average[name], (start[name] + weight) / 2)


def test_average_is_handed_over_and_the_live_weights_stay(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    policy = policy_of(tiny_pipeline_dir, ema=Ema(decay=0.9))
    push(policy)
    live = copies(policy.weights)
    policy.save(tmp_path / "run", policy.weights_to_hand_over())
    assert policy.ema is not None
    saved = dict(load_pipeline(str(tmp_path / "run")).unet.named_parameters())
    assert all(torch.equal(saved[name], average) for name, average in policy.ema.average.items())
    assert all(torch.equal(policy.weights[name], weight) for name, weight in live.items())
    assert not all(torch.equal(saved[name], weight) for name, weight in live.items())


# --------------------------------------------------------------------------------------------------------------- warm-up


def test_rate_rises_over_the_warm_up_and_stays() -> None:
    warmed = Update(lr=0.4, warmup=4)
    rates = [learning_rate(warmed, taken, 100) for taken in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert learning_rate(Update(lr=0.4), 99, 100) == 0.4


def test_rate_falls_to_nothing_at_the_end() -> None:
    falling = Update(lr=0.4, warmup=2, decay="linear")
    rates = [learning_rate(falling, taken, 4) for taken in range(4)]
    assert rates == pytest.approx([0.2, 0.3, 0.2, 0.1])


def test_warm_up_goes_on_where_a_resumed_run_was(tiny_pipeline_dir: Path) -> None:
    update = toy_experiment(tiny_pipeline_dir, "unused").update
    changes = {"update": replace(update, lr=1e-3, warmup=10)}
    policy = policy_of(tiny_pipeline_dir, **changes)
    push(policy, 1)
    push(policy, 2)
    resumed = policy_of(tiny_pipeline_dir, **changes)
    resumed.load_state(policy.state())
    assert resumed.steps_taken == 2
    for each in (policy, resumed):
        push(each, 3)
        assert each.optimiser.param_groups[0]["lr"] == pytest.approx(3e-4)
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in policy.weights.items())


# -------------------------------------------------------------------------------------------------------- full and LoRA


def test_full_fine_tuning_is_saved_as_a_pipeline(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    policy = policy_of(tiny_pipeline_dir)
    untouched = {name: weight.clone() for name, weight in policy.pipeline.vae.named_parameters()}
    before = pictures(policy.unet, policy.pipeline)
    push(policy)
    freeze(policy.pipeline)  # as the opened one will be
    after = pictures(policy.unet, policy.pipeline)
    assert not torch.equal(before, after)
    policy.save(tmp_path / "run", policy.weights_to_hand_over())
    opened = DiffusionPipeline.from_pretrained(tmp_path / "run")
    freeze(opened)
    assert torch.equal(pictures(opened.unet, opened), after)
    assert all(torch.equal(untouched[name], weight) for name, weight in opened.vae.named_parameters())


def saved(policy: Policy, folder: Path) -> Path:
    policy.save(folder, policy.weights_to_hand_over())
    return folder


def as_on_the_hub(base: Path, folder: Path) -> Path:
    """A pipeline as version 4 of transformers wrote it: vocabulary in two files, a prefix before the text encoder's names."""
    shutil.copytree(base, folder)
    whole = folder / "tokenizer" / "tokenizer.json"
    (folder / "tokenizer" / "vocab.json").write_text(
        json.dumps(json.loads(whole.read_text())["model"]["vocab"])
    )
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    whole.unlink()
    file = folder / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{name}": tensor for name, tensor in load_file(file).items()}, file)
    return folder


def test_what_training_does_not_change_is_handed_over_as_the_base_has_it(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    base = as_on_the_hub(tiny_pipeline_dir, tmp_path / "base")
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"of another library")
    policy = policy_of(base)
    push(policy)
    run = saved(policy, tmp_path / "run")
    frozen = sorted(path.relative_to(base) for path in base.glob("*/*") if path.parent.name != "unet")
    frozen.remove(Path("vae/diffusion_pytorch_model.bin"))
    assert frozen == sorted(path.relative_to(run) for path in run.glob("*/*") if path.parent.name != "unet")
    assert all((run / name).read_bytes() == (base / name).read_bytes() for name in frozen)


@pytest.mark.parametrize("kind", ["version 5", "half", "gone", "one file", "pickles"])
def test_a_text_encoder_is_handed_over_as_every_version_reads_it(
    tiny_pipeline_dir: Path, tmp_path: Path, kind: str
) -> None:
    """Version 4 of transformers draws weights at random whose names have no prefix, and reads a vocabulary from two files."""
    base = tiny_pipeline_dir
    if kind in ("half", "gone"):
        base = as_on_the_hub(base, tmp_path / "base")
    if kind == "half":  # plain diffusers would open it in half precision, in which it was not trained with
        file = base / "text_encoder" / "model.safetensors"
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    if kind == "pickles":
        base = shutil.copytree(base, tmp_path / "base")
        for part, stem in (("text_encoder", "pytorch_model"), ("vae", "diffusion_pytorch_model")):
            (file,) = (base / part).glob("*.safetensors")
            pickled(load_file(file), file.with_name(f"{stem}.bin"), safe_serialization=False)
            file.unlink()
    policy = policy_of(base)
    if kind == "gone":
        shutil.rmtree(base)
    if kind == "one file":
        del policy.pipeline.opened_from
    after = pictures(policy.unet, policy.pipeline)
    run = saved(policy, tmp_path / "run")
    assert not list(run.rglob("*.bin"))
    tensors = load_file(run / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    words = json.loads((run / "tokenizer" / "vocab.json").read_text())
    assert words == policy.pipeline.tokenizer.get_vocab()
    assert (run / "tokenizer" / "merges.txt").read_text().startswith("#version")
    for opened in (StableDiffusionPipeline.from_pretrained(run), load_pipeline(str(run))):
        assert opened.text_encoder.dtype == torch.float32
        freeze(opened)
        assert torch.equal(pictures(opened.unet, opened), after)


OLD = """
import sys, torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
stored = load_file(sys.argv[1] + "/text_encoder/model.safetensors")
opened = pipeline.text_encoder.state_dict()
assert all(torch.equal(opened[name], tensor) for name, tensor in stored.items())
print(pipeline.tokenizer("red").input_ids)
"""


@pytest.mark.skipif(not (ENVIRONMENT / ".complete").is_file(), reason="`make parity` makes it")
def test_version_4_of_transformers_opens_what_is_handed_over(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    policy = policy_of(tiny_pipeline_dir)
    run = saved(policy, tmp_path / "run")
    command = [ENVIRONMENT / "bin" / "python", "-c", OLD, run]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == policy.pipeline.tokenizer("red").input_ids


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=2.0)])
def test_weights_have_the_permissions_of_the_umask(
    tiny_pipeline_dir: Path, tmp_path: Path, lora: Lora | None
) -> None:
    policy = policy_of(tiny_pipeline_dir, lora=lora)
    before = os.umask(0o027)
    try:
        policy.save(tmp_path / "run", policy.weights_to_hand_over())
        policy.save_trained(tmp_path / "snapshot", policy.weights_to_hand_over())
        identity = Identity({}, "toy", 0)
        states.save(tmp_path / "state", Progress(), identity, policy.state() | {"random": {}})
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o640}
    assert {path.suffix for path in written} >= {".safetensors", ".json"}


@pytest.mark.parametrize("alpha", [2.0, 1.0, 10.0], ids="alpha{}".format)
def test_adapters_start_as_the_base_and_are_saved_for_diffusers(
    tiny_pipeline_dir: Path, tmp_path: Path, alpha: float
) -> None:
    """In the strength in which they were trained, whatever alpha is: a file of tensors does not say it."""
    base = load_pipeline(str(tiny_pipeline_dir))
    policy = policy_of(tiny_pipeline_dir, lora=Lora(rank=2, alpha=alpha))
    start = pictures(policy.unet, policy.pipeline)
    assert torch.equal(start, pictures(base.unet, base))
    assert all("lora" in name for name in policy.weights)
    push(policy)
    after = pictures(policy.unet, policy.pipeline)
    assert not torch.equal(after, start)
    policy.save(tmp_path / "run", policy.weights_to_hand_over())
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").is_file()
    opened = load_pipeline(str(tiny_pipeline_dir))
    opened.load_lora_weights(tmp_path / "run")
    torch.testing.assert_close(pictures(opened.unet, opened), after, rtol=0, atol=1e-5)
    ours = with_lora(load_pipeline(str(tiny_pipeline_dir)), tmp_path / "run" / LORA_FILE)
    torch.testing.assert_close(pictures(ours.unet, ours), after, rtol=0, atol=1e-5)


def test_adapters_are_drawn_from_the_seed_and_leave_the_global_generator_alone(
    tiny_pipeline_dir: Path,
) -> None:
    state = torch.get_rng_state()
    first, second = (policy_of(tiny_pipeline_dir, lora=Lora(rank=2)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())


def test_adapters_that_fit_nowhere_are_refused(tiny_pipeline_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"lora\.targets"):
        policy_of(tiny_pipeline_dir, lora=Lora(targets=("nowhere",)))


def test_nothing_in_the_policy_drops_out(tiny_pipeline_dir: Path) -> None:
    for lora in (None, Lora(rank=2)):
        policy = policy_of(tiny_pipeline_dir, lora=lora)
        assert not policy.unet.training
        assert not any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in policy.unet.modules())


def test_gradient_norm_is_bounded_only_where_asked(tiny_pipeline_dir: Path) -> None:
    from dataclasses import replace

    update = toy_experiment("unused", "unused").update
    policy = policy_of(tiny_pipeline_dir, update=replace(update, max_grad_norm=0.5))
    for weight in policy.weights.values():
        weight.grad = torch.ones_like(weight)
    total = sum(weight.numel() for weight in policy.weights.values()) ** 0.5
    seen: list[float] = []
    policy.optimiser.register_step_pre_hook(
        lambda *_: seen.append(
            float(torch.stack([w.grad.norm() for w in policy.weights.values() if w.grad is not None]).norm())
        )
    )
    assert policy.optimiser_step().item() == pytest.approx(total, rel=1e-4)
    assert seen == [pytest.approx(0.5, rel=1e-3)]


# ---------------------------------------------------------------------------------------------------------------- memory


def gradients_held(
    policy: Policy, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], int, int]:
    """Gradients of a made-up loss, numbers that autograd kept for them, and how often a late block of the denoiser ran."""
    held, ran = 0, 0
    block = policy.unet.up_blocks[0].resnets[
        -1
    ]  # behind the first adapter: what is before it needs no gradient
    forward = block.forward

    def counted(*arguments: Any) -> Any:
        nonlocal ran
        ran += 1
        return forward(*arguments)

    def keep(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel()
        return tensor

    monkeypatch.setattr(block, "forward", counted)
    told = policy.painter.encoder(["red", "nurse"])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = predict(policy.module, randn(2, 4, 4, 4), 500, told, None, None, precision)
        loss = (output * randn(2, 4, 4, 4, seed=1)).sum()
    policy.backward(loss)
    return {n: w.grad.clone() for n, w in policy.weights.items() if w.grad is not None}, held, ran


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_checkpointing_changes_memory_and_nothing_else(
    tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora | None, precision: Precision
) -> None:
    """The denoiser is in eval mode, in which libraries have left checkpointing out."""
    found = {}
    for checkpointed in (False, True):
        update = Update(gradient_checkpointing=checkpointed)
        policy = policy_of(tiny_pipeline_dir, lora=lora, update=update)
        assert not policy.unet.training
        found[checkpointed] = gradients_held(policy, precision, monkeypatch)
    (plain, held, ran), (recomputed, held_less, ran_twice) = found[False], found[True]
    assert plain.keys() == recomputed.keys()
    assert len(plain) > 4
    assert all(torch.equal(gradient, recomputed[name]) for name, gradient in plain.items())
    assert any(bool(gradient.any()) for gradient in plain.values())
    assert (ran, ran_twice) == (1, 2)
    assert held_less < 0.7 * held


# ----------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_state_round_trip_continues_bit_for_bit(tiny_pipeline_dir: Path, lora: Lora | None) -> None:
    straight, stopped = (policy_of(tiny_pipeline_dir, lora=lora, ema=Ema(decay=0.9)) for _ in range(2))
    for policy in (straight, stopped):
        push(policy, 0)
    resumed = policy_of(tiny_pipeline_dir, lora=lora, ema=Ema(decay=0.9))
    resumed.load_state(stopped.state())
    for policy in (straight, resumed):
        push(policy, 1)
    for file, tensors in straight.state().items():
        assert all(torch.equal(tensor, resumed.state()[file][name]) for name, tensor in tensors.items())


def test_state_of_another_model_is_refused(tiny_pipeline_dir: Path) -> None:
    full, adapters = policy_of(tiny_pipeline_dir), policy_of(tiny_pipeline_dir, lora=Lora(rank=2))
    with pytest.raises(ValueError, match="another model"):
        full.load_state(adapters.state())


# ------------------------------------------------------------------------------------------------------------- bad bases


def test_base_is_looked_up_as_folder_or_hub_id(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    assert find_base(str(tiny_pipeline_dir)) == str(tiny_pipeline_dir)
    assert find_base("stabilityai/stable-diffusion-2-base") == "stabilityai/stable-diffusion-2-base"
    with pytest.raises(ValueError, match="there is no folder some/where/else"):
        find_base("some/where/else")
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        find_base(str(tmp_path))
