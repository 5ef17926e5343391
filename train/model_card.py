"""The README of a repository on the hub: what a finished run's run.json and score rows say, and no number that they do not have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.checkpoints import Checkpoint, find_base
from evals.families import Header, family_of
from evals.weights import TENSORS
from train import grids, methods
from train.config import flatten

if TYPE_CHECKING:
    from evals.compare import Comparison, Estimate

NEEDED = (
    *("experiment", "seed", "prompt_sets", "scorer_versions", "scorer_sources", "scheduler", "example"),
    *("cost", "hardware", "versions", "commit", "dirty", "finished"),
)
"""What a card is made of, in run.json."""


def model_card(
    checkpoint: Checkpoint,
    record: Mapping[str, Any],
    repository: str,
    terms: Mapping[str, str],
    results: Comparison | None,
    sheet: str | None,
) -> str:
    """README.md of the repository on the hub.

    Args:
        checkpoint: the run.
        record: its run.json.
        repository: where it will be.
        terms: the licence, as front matter has it.
        results: of the run's score rows with the base's, or None.
        sheet: name of the sheet of samples to show, or None.
    """
    parts = [
        front_matter(record, terms),
        _opening(checkpoint, record, sheet),
        f"## Use\n\n```python\n{usage(record, repository)}```\n\n{_as_in_training(record)}",
        _training(record),
        _results(results),
        _cost(record),
        _limits(record, results),
        _origin(record),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(record: Mapping[str, Any], terms: Mapping[str, str]) -> str:
    """The YAML head, by which the hub files a model."""
    from huggingface_hub import ModelCardData

    experiment, lora = record["experiment"], record["experiment"]["lora"]
    more: dict[str, Any] = dict(terms)
    if local_base(experiment["base"]) is None:
        more |= {
            "base_model": experiment["base"],
            "base_model_relation": "adapter" if lora else "finetune",
        }
    tags = ["text-to-image", "diffusers", "reinforcement-learning", "arxiv:2401.12244"]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*tags, "lora"] if lora else tags,
        **more,
    )
    return f"---\n{data.to_yaml()}\n---"


def local_base(base: str) -> Path | None:
    """A base's folder or file, whether it is still there or not; None for a hub id."""
    try:
        found = find_base(base)
    except ValueError:  # it is no hub id either: a path to what has gone since
        return Path(base)
    return Path(found) if Path(found).exists() else None


def usage(record: Mapping[str, Any], source: str) -> str:
    """Ten lines of plain diffusers that draw with a trained checkpoint as training did.

    Args:
        record: run.json.
        source: a repository on the hub, or a run directory.
    """
    experiment, sampling = record["experiment"], record["experiment"]["sampling"]
    revision = f", revision={json.dumps(experiment['revision'])}" if experiment["revision"] else ""
    kind, method, opened, adapter = "DiffusionPipeline", "from_pretrained", json.dumps(source), ""
    if experiment["lora"]:
        base, adapter = experiment["base"], f"pipe.load_lora_weights({opened})\n"
        local = local_base(base)
        opened = json.dumps(_base_name(base)) + revision
        if local is not None:
            what = "file" if local.suffix in TENSORS else "folder"
            adapter = f"{adapter.rstrip()}  # onto its base, a {what} of one's own that must be at hand\n"
        if local is not None and local.suffix in TENSORS:
            kind, method = _pipeline_class(local), "from_single_file"
    options = ", ".join(f"{name}={value}" for name, value in record["scheduler"].items())
    guidance = 1.0 if sampling["guidance"] is None else sampling["guidance"]
    return (
        "import torch\n"
        f"from diffusers import DDIMScheduler, {kind}\n\n"
        f"pipe = {kind}.{method}({opened})\n"
        f"{adapter}"
        f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, {options})\n"
        'pipe.to("cuda" if torch.cuda.is_available() else "cpu")\n'
        f"settings = dict(num_inference_steps={sampling['steps']}, eta={sampling['eta']}, guidance_scale={guidance})\n"
        f"image = pipe({json.dumps(record['example'])}, generator=torch.Generator().manual_seed(0), **settings).images[0]\n"
        'image.save("image.png")\n'
    )


def _opening(checkpoint: Checkpoint, record: Mapping[str, Any], sheet: str | None) -> str:
    experiment = record["experiment"]
    lora = experiment["lora"]
    what = f"a LoRA of rank {lora['rank']} for it" if lora else "the whole pipeline"
    tasks = _listed([f"*{task['name']}* ({_rewarded(task)})" for task in experiment["tasks"]])
    lines = [
        f"# {checkpoint.name}",
        f"{_base(experiment)} after {experiment['iterations']} iterations of training on rewards: {tasks}. Here is {what}.",
        _method(experiment["method"]["name"]),
    ]
    if sheet is not None:
        lines += [
            f"![Samples]({sheet})",
            "*Of each prompt set the first prompts, from fixed noise, chosen by nobody: the base's row above, this model's below "
            f"([the prompts]({grids.FOLDER}/prompts.txt)).*",
        ]
    return "\n\n".join(lines)


def _rewarded(task: Mapping[str, Any]) -> str:
    """The terms of a task's reward, each with its weight unless that is 1."""
    terms = [
        grids.short_name(term["scorer"])
        if term["weight"] == 1
        else f"{term['weight']:g} x {grids.short_name(term['scorer'])}"
        for term in task["rewards"]
    ]
    return f"{'parity of ' if task['shaping'] == 'parity' else ''}{' + '.join(terms)}"


def _method(name: str) -> str:
    """By what it was trained, in the words of the method's file, and the paper that these refer to."""
    told = methods.title(name) if name in methods.names() else "none that this version of the project has."
    return (
        f"Method, `{name}`: {told} The paper is "
        '"Large-scale Reinforcement Learning for Diffusion Models" ([arXiv 2401.12244](https://arxiv.org/abs/2401.12244)); this is an independent implementation.'
    )


def _base(experiment: Mapping[str, Any]) -> str:
    revision = f" at revision {experiment['revision']}" if experiment["revision"] else ""
    return f"`{_base_name(experiment['base'])}`{revision}"


def _base_name(base: str) -> str:
    """A hub id, or a path as the card says it."""
    return base if local_base(base) is None else _told_path(base)


def _told_path(path: str) -> str:
    """A path that says nothing of the machine it is on: an absolute one is its name alone."""
    return Path(path).name if Path(path).is_absolute() else path


def without_paths(value: Any) -> Any:
    """What JSON holds, with `_told_path` of every text and name in it that is an absolute path."""
    if isinstance(value, str):
        return _told_path(value)
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    return (
        {_told_path(name): without_paths(one) for name, one in value.items()}
        if isinstance(value, dict)
        else value
    )


def _pipeline_class(file: Path) -> str:
    """Class of diffusers that opens a checkpoint in one file.

    Raises:
        ValueError: where the file is not there any more, or is no checkpoint.
    """
    if not file.is_file():
        raise ValueError(f"base: there is no file {file}, by which the card would say how it is opened")
    return family_of(Header.of(file)).pipeline


def _as_in_training(record: Mapping[str, Any]) -> str:
    sampling = record["experiment"]["sampling"]
    guidance = sampling["guidance"]
    told = f"DDIM with {sampling['steps']} steps and eta {sampling['eta']:g}, " + (
        f"guidance {guidance:g}" if guidance not in (None, 1.0) else "without guidance"
    )
    text = f"It was trained as it is drawn here: {told}; with another sampler or guidance it may do less of what it was trained for."
    if guidance is not None and 0.0 < guidance < 1.0:
        text += " (diffusers' pipelines guide above 1 only, so they cannot draw quite as training did.)"
    return text


def _training(record: Mapping[str, Any]) -> str:
    from evals.tables import markdown_table

    experiment = record["experiment"]
    tasks = [["task", "prompts", "their digest", "reward", "images an iteration"]]
    for task in experiment["tasks"]:
        terms = [f"{term['weight']:g} x {grids.short_name(term['scorer'])}" for term in task["rewards"]]
        shaping = ", as parity" if task["shaping"] == "parity" else ""
        digest = record["prompt_sets"][task["prompts"]]
        tasks.append(
            [
                task["name"],
                grids.short_name(task["prompts"]),
                digest,
                f"{' + '.join(terms)}{shaping}",
                str(task["batch"]),
            ]
        )
    fields = [["setting", "value"]]
    fields += [
        [name, f"`{json.dumps(without_paths(value))}`"]
        for name, value in flatten(experiment).items()
        if name != "tasks"
    ]
    return (
        f"## Training\n\nBase: {_base(experiment)}.\n\n{markdown_table(tasks)}\n\nScorers, rewards and those that were only watched:\n\n"
        f"{_scorers(record)}\n\n<details><summary>All settings</summary>\n\n{markdown_table(fields)}\n\n</details>"
    )


def _scorers(record: Mapping[str, Any]) -> str:
    """Every scorer with its source, and the weights of others in it with revision and licence."""
    trained = {term["scorer"] for task in record["experiment"]["tasks"] for term in task["rewards"]}
    lines = []
    for name, version in record["scorer_versions"].items():
        source = record["scorer_sources"][name]
        role = "reward" if name in trained else "watched"
        lines.append(f"- **{grids.short_name(name)}** ({role}, version {version}): {source['source']}")
        lines += [
            f"  - weights of {w['repository']}, {w['revision'] or 'the newest revision'}: {w['licence']}"
            for w in source["weights"]
        ]
    return "\n".join(lines)


def _cost(record: Mapping[str, Any]) -> str:
    cost, on = record["cost"], record["hardware"]
    hours = f"{cost['gpu_hours']:.3g} GPU-hours" if cost["gpu_hours"] else "no GPU"
    return (
        f"## Cost\n\n{cost['images']:,} images and {cost['denoiser_evaluations']:,} evaluations of the denoiser for one latent, in "
        f"{cost['seconds'] / 3600:.3g} hours; {hours}. It ended on {on['processes']} "
        f"process{'es' if on['processes'] > 1 else ''}: {on['device']}."
    )


def _limits(record: Mapping[str, Any], results: Comparison | None) -> str:
    experiment = record["experiment"]
    sets = _listed(sorted({grids.short_name(task["prompts"]) for task in experiment["tasks"]}))
    lines = [
        f"- It was trained on the prompts of {sets}; what it does with others was not an aim.",
        "- It draws what its rewards prefer, and has their faults: a reward can be satisfied without its purpose. What the base gets "
        "wrong, it may still get wrong.",
    ]
    if any(task["shaping"] == "parity" for task in experiment["tasks"]):
        lines.append(
            "- Parity was trained on classes that a scorer reads from pictures, over the prompts above: that says nothing about persons, "
            "and is no proof of fairness elsewhere."
        )
    if experiment["domain"] == "miniature":
        lines.append(
            "- It draws a small synthetic world, at that world's size. Its numbers say nothing about pictures of the real one."
        )
    for name, source in record["scorer_sources"].items():
        lines += [
            f"- The weights of {w['repository']}, which {grids.short_name(name)} uses, are not free for every use: {w['licence']}."
            for w in source["weights"]
            if not w["free"]
        ]
    if results is not None:
        worse = [_cell_name(e) for e in results.estimates if e.mark == "worse"]
        lines.append(f"- Worse than the base: {'; '.join(worse) if worse else 'nothing that was measured'}.")
    return "## Limits\n\n" + "\n".join(lines)


def _origin(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    commit = f"commit {record['commit']}" if record["commit"] else "outside of git"
    dirty = " with changes that are not in it" if record["dirty"] else ""
    return f"## Origin\n\nSeed {record['seed']}, {commit}{dirty}, finished {record['finished']}; {versions}. `run.json` has all of it."


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _results(results: Comparison | None) -> str:
    """Every metric with its interval, beside the base's, and how to read them."""
    if results is None:
        return "## Results\n\nNo scores were given when this card was made: how good it is, is not said here."
    from evals.metrics import load
    from evals.rows import BASE
    from evals.tables import (
        SIGNS,
        count_notes,
        dagger,
        interval,
        markdown_table,
        method_notes,
        metric_order,
    )

    base = {(e.metric, e.prompt_set): e for e in results.of(experiment=BASE)}
    lines = [["metric", "prompt set", "base", "this model", "difference", ""]]
    mine = [e for e in results.estimates if e.experiment != BASE]
    for e in sorted(mine, key=lambda e: (e.prompt_set, metric_order(e.metric))):
        metric, beside = load(e.metric), base.get((e.metric, e.prompt_set))
        lines.append(
            [
                _heading(e.metric),
                e.prompt_set,
                interval(metric, beside.value) if beside is not None else "–",
                f"{interval(metric, e.value)}{dagger(e)}",
                interval(metric, e.difference, signed=True),
                f"{SIGNS[e.mark]} {e.mark}".strip(),
            ]
        )
    notes = "\n".join(f"- {note}" for note in (*method_notes(results), *count_notes(results)))
    return f"## Results\n\n{markdown_table(lines)}\n\n{notes}"


def _heading(metric: str) -> str:
    from evals.metrics import load
    from evals.tables import heading

    return heading(load(metric))


def _cell_name(estimate: Estimate) -> str:
    return f"{_heading(estimate.metric)} on {estimate.prompt_set}"
