"""What a run takes of a GPU: memory, from the sizes of its models, and time, from what was measured on such a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from evals.architectures import ARCHITECTURES, REPOSITORIES
from evals.checkpoints import find_base, weight_files
from evals.decoder import SHARE
from evals.families import UNET, Header
from evals.miniature import weights_folder
from train import records
from train.config import Experiment, Lora
from train.mixing import turns
from train.records import Case, Record
from train.scorer_sizes import of_scorers

GIB = 2**30
BYTES = 4
"""Weights, gradients, moments and average are float32."""
Shapes = dict[str, tuple[int, ...]]
"""Of a model's weights, by name."""
UPDATE, DECODING = "in the update", "while it decodes"


def memory(experiment: Experiment, processes: int) -> list[str]:
    """A line on what a process holds when it holds the most, where the base's sizes are known without a download; one that says so where they are not.

    It names the moment, tells the other one's sum, and names what comes on top. Another line tells the scorers' weights, which are in that sum, one by one.
    """
    held = moments(experiment, processes)
    known, unknown = of_scorers(experiment.scorers, experiment.domain)
    of_weights = _of_weights(known, unknown)
    if not held:
        return [f"memory of a process: not known for {experiment.base}", *of_weights]
    if known:  # they are called between the two, and stay
        held = {moment: parts | {"scorers": float(sum(known.values()))} for moment, parts in held.items()}
    (most, parts), *others = sorted(held.items(), key=lambda moment: sum(moment[1].values()), reverse=True)
    told = ", ".join(f"{name} {_short(size / GIB)}" for name, size in parts.items())
    sums = [f"{_short(sum(parts.values()) / GIB)} GiB {most} ({told})"]
    sums += [f"{_short(sum(parts.values()) / GIB)} {name}" for name, parts in others]
    on_top = [f"activations of the scorers {', '.join(experiment.scorers)}"]
    if unknown:
        on_top.insert(0, f"weights of the scorers {', '.join(unknown)}")
    if experiment.base not in REPOSITORIES:
        on_top.insert(0, "text encoders and decoder")
    if not any(name.startswith("activations") for name in held[UPDATE]):
        on_top.insert(0, "the update's activations")
    if experiment.lora is not None and not _counts_adapters(experiment.lora):
        on_top.insert(0, "adapters (not counted for these lora.targets)")
    if experiment.update.cuda_graphs:
        on_top.insert(0, "what update.cuda_graphs keeps")
    if experiment.update.compile:
        on_top.insert(0, "what update.compile needs (3.5 GiB were measured of SD2 with checkpointing)")
    return [
        f"memory of a process: {', '.join(sums)}; on top: {', '.join(on_top)}",
        *_fewer_pictures(experiment),
        *of_weights,
    ]


def _of_weights(known: Mapping[str, int], unknown: Mapping[str, str]) -> list[str]:
    """A line on the weights of scorers, unless they have none."""
    told = []
    if known:
        each = ", ".join(f"{name} {_short(size / GIB)}" for name, size in known.items())
        told.append(f"{_short(sum(known.values()) / GIB)} GiB ({each})")
    if unknown:
        told.append(f"not known of {', '.join(f'{name} ({why})' for name, why in unknown.items())}")
    return [f"scorers' weights on every process: {'; '.join(told)}"] if told else []


def _fewer_pictures(experiment: Experiment) -> list[str]:
    """A line on the GPUs that decode fewer pictures at a time than was counted, where the decoder is known."""
    known = REPOSITORIES.get(experiment.base)
    pictures = experiment.sampling.decode_batch or experiment.sampling.micro_batch
    if known is None or pictures == 1 or experiment.sampling.decoder_precision == "bf16":
        return []
    needed = _of_decoder(known, "decoder", pictures) / SHARE / GIB
    return [
        f"decoder: a GPU of less than {math.ceil(needed)} GiB decodes fewer than {pictures} pictures at a time"
    ]


def _short(number: float) -> str:
    """With one decimal, and where that would be 0 with the first digit that is not."""
    return f"{number:.1f}" if number >= 0.05 or not number else f"{number:.1g}"


def adaptable(experiment: Experiment) -> list[str]:
    """Modules of the base's denoiser that can have adapters, where their names are known without a download; none where they are not.

    A checkpoint in one file has names of its own layout, which are not those that adapters go by.
    """
    if Path(find_base(experiment.base)).is_file():
        return []
    found = (_denoiser_shapes(experiment) or {}).items()
    return [
        name.removesuffix(".weight") for name, shape in found if name.endswith(".weight") and len(shape) > 1
    ]


def moments(experiment: Experiment, processes: int) -> dict[str, dict[str, float]]:
    """What a process holds, in bytes by kind, at the moments at which it may hold the most; empty where the base's sizes are not known.

    In a pass of the update gradients and activations are there; while pictures are decoded neither is, but what the decoder needs
    for each is much. A method that differentiates the reward has both at once, and needs the decoder's activations too. All were counted of published
    architectures, the update's in bf16 and for all weights; a rollout's pass needs less than an update's of as many images.
    """
    shapes, known = _denoiser_shapes(experiment), REPOSITORIES.get(experiment.base)
    if shapes is None:
        return {}
    update = _of_training(experiment, shapes, processes)
    if known is None:
        return {UPDATE: update}
    published = ARCHITECTURES[known].shapes
    others = sum(_numbers(of_model) for name, of_model in published.items() if name != "unet")
    update["text encoders and decoder"] = others * BYTES
    decoding = {name: size for name, size in update.items() if name != "gradients"}
    if (passes := _of_update(experiment, known)) is not None:
        update[f"activations of {_many(experiment.update.micro_batch, 'image')}"] = passes
    pictures = experiment.sampling.decode_batch or experiment.sampling.micro_batch
    decoding[_many(pictures, "picture")] = _of_decoder(known, f"decoder{_rounded(experiment)}", pictures)
    if experiment.method.differentiates_reward:
        pictures = experiment.sampling.decode_batch or experiment.update.micro_batch
        held = _of_decoder(known, f"decoder_{_way(experiment)}{_rounded(experiment)}", pictures)
        update[f"{_many(pictures, 'picture')} with a gradient"] = held
    return {UPDATE: update, DECODING: decoding}


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _of_training(experiment: Experiment, shapes: Shapes, processes: int) -> dict[str, float]:
    """Bytes of the denoiser and of what its training keeps beside it."""
    shares = processes if experiment.update.sharding == "fsdp2" else 1
    count, lora = _numbers(shapes), experiment.lora
    if lora is None:
        return _of_trained(experiment, "trained weights", count, shares)
    frozen = {f"{_short(count / 1e6)} M frozen weights": count * BYTES / shares}
    if not _counts_adapters(lora):
        return frozen
    return frozen | _of_trained(experiment, "adapters", _adapters(lora, shapes), shares)


def _of_trained(experiment: Experiment, what: str, count: int, shares: int) -> dict[str, float]:
    """Bytes of so many numbers that are trained, and of what is kept for each of them."""
    size = count * BYTES / shares
    beside = {"average": experiment.ema is not None, "old policy": experiment.method.needs_old}
    copies = {name: size for name, there in beside.items() if there}
    return {f"{_short(count / 1e6)} M {what}": size, "gradients": size, "AdamW": 2 * size, **copies}


def _counts_adapters(lora: Lora) -> bool:
    """Whether the adapters lie where they usually do: these modules are linear, and have one name in every layout of a checkpoint."""
    return set(lora.targets) == set(Lora().targets)


def _adapters(lora: Lora, shapes: Shapes) -> int:
    """Numbers in the adapters of linear modules: A is rank x inputs, B outputs x rank."""
    endings = tuple(f".{target}.weight" for target in lora.targets)
    return lora.rank * sum(sum(shape) for name, shape in shapes.items() if name.endswith(endings))


def _of_update(experiment: Experiment, known: str) -> float | None:
    """Bytes that a pass of the update holds beside weights and gradients; None in fp32, where they were not counted."""
    if experiment.sampling.precision == "fp32":
        return None
    way = _counted(known)[_way(experiment)]
    evaluations = experiment.update.micro_batch * experiment.sampling.branches * experiment.method.length
    return float(way["bytes"] + way["bytes_per_evaluation"] * evaluations)


def _way(experiment: Experiment) -> str:
    """As the file of activations calls how a gradient is taken."""
    return "checkpointing" if experiment.update.gradient_checkpointing else "plain"


def _rounded(experiment: Experiment) -> str:
    """As that file calls a decoder's precision: TF32's numbers are float32's."""
    return "_bf16" if experiment.sampling.decoder_precision == "bf16" else ""


def _of_decoder(known: str, way: str, pictures: int) -> float:
    """Bytes of so many pictures at a time."""
    counted = _counted(known)[way]
    return float(counted["bytes"] + counted["bytes_per_picture"] * pictures)


def _counted(known: str) -> dict[str, dict[str, int]]:
    """What `bench.activations` has counted of an architecture."""
    counted: dict[str, dict[str, int]] = json.loads(records.ACTIVATIONS.read_text(encoding="utf-8"))[known]
    return counted


def time_needed(experiment: Experiment, processes: int) -> list[str]:
    """A line for every device that was measured with this model: time of an iteration and of the run, without the reward's."""
    miniature = Path(find_base(experiment.base)) == weights_folder("pipeline")
    architecture = REPOSITORIES.get(experiment.base, "miniature" if miniature else None)
    if architecture is None:
        return []
    case = Case.of(experiment, architecture)
    found = ((device, records.nearest(kept, case)) for device, kept in records.everything())
    return [
        f"time on {device}, measured {record.date}: {seconds:.3g} s an iteration and {experiment.iterations * seconds / 3600:.3g} h in all, "
        f"without the reward's{_decoder_told(case, record)}"
        for device, record in found
        if record is not None
        for seconds in [_seconds(experiment, processes, record)]
    ]


def _decoder_told(case: Case, record: Record) -> str:
    """What is to be said where another decoder was measured."""
    return "" if record.case.decoder == case.decoder else f", with the decoder in {record.case.decoder}"


def _seconds(experiment: Experiment, processes: int, record: Record) -> float:
    """Of an iteration: every process does its share of the images, a micro-batch is as slow as a full one."""
    sampling, update = experiment.sampling, experiment.update
    total = 0.0
    for task in turns(experiment):
        method = experiment.method
        share, asked = task.batch // processes, method.evaluations(experiment, task)
        drawn = _padded(share, sampling.micro_batch) * asked.drawn / task.batch
        rows = _padded(method.rows(task, processes), update.micro_batch)
        trained = rows * asked.trained / method.rows(task, 1)
        total += (
            drawn * record.rollout_seconds + trained * record.update_seconds + share * record.decoder_seconds
        )
    if experiment.pretraining is not None:
        total += (
            _padded(experiment.pretraining.batch // processes, update.micro_batch) * record.update_seconds
        )
    return total * record.overhead


def _padded(count: int, size: int) -> int:
    """Images that are evaluated where so many are asked, so many at a time."""
    return math.ceil(count / size) * size


def _denoiser_shapes(experiment: Experiment) -> Shapes | None:
    """Shapes of the base denoiser's weights, from its files, else as published; None for what is neither here nor known, or is damaged."""
    base = Path(find_base(experiment.base))
    try:
        if base.is_file():
            return _shapes(base, UNET)
        files = weight_files(base, "unet")[1]
        return {name: shape for file in files for name, shape in _shapes(file).items()}
    except (OSError, ValueError):
        known = REPOSITORIES.get(experiment.base)
        return None if known is None else ARCHITECTURES[known].shapes["unet"]  # loading it says why


def _shapes(file: Path, beginning: str = "") -> Shapes:
    """Shapes of a file's tensors by name, of those whose names begin so."""
    found = Header.of(file).shapes.items()
    return {name: shape for name, shape in found if name.startswith(beginning)}


def _numbers(shapes: Shapes) -> int:
    """How many there are in tensors of these shapes."""
    return sum(map(math.prod, shapes.values()))
