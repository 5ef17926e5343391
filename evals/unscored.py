"""What a comparison lacks: scores that one checkpoint has and another has not, in sentences for the foot of a table, with the command that would make them.

What a run has and the checkpoint that all are compared with has not is in no number (`evals.compare.Comparison.left_out`); what a run has not is an empty cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from shlex import quote

from evals import metrics, order
from evals.compare import Comparison, OriginKey, parts_of
from evals.files import EXTERNAL
from evals.rows import BASE, GIVEN, HUMAN


def why_empty(comparison: Comparison, model: str, experiment: str, metric: str, prompt_set: str) -> str:
    """What stands in the place of a change that there is none of."""
    key = (model, experiment, prompt_set, metrics.load(metric).scorer)
    if key in comparison.unequal:
        return "refused"
    return f"{comparison.against} not scored" if key in comparison.left_out else "not scored"


def left_out_lines(comparison: Comparison, model: str) -> set[tuple[str, str]]:
    """Metric and prompt set of all that would be there, were it not left out or refused."""
    return {
        (name, prompt_set)
        for of, _, prompt_set, scorer in (*comparison.left_out, *comparison.unequal)
        if of == model
        for name in _that_read(scorer)
    }


def _that_read(scorer: str) -> list[str]:
    """The metrics of a scorer's rows."""
    return [name for name in metrics.names([scorer]) if metrics.load(name).scorer == scorer]


def left_out_notes(comparison: Comparison) -> list[str]:
    """A sentence or two for every model of which scores are left out."""
    notes, against = [], comparison.against
    for model in comparison.models():
        keys = [key for key in comparison.left_out if key[0] == model]
        people = list(dict.fromkeys(experiment for _, experiment, _, scorer in keys if scorer == HUMAN))
        if people:
            notes.append(
                f"LEFT OUT: {model}: people voted on {_and(people)} and not on {against}; {' or '.join(f'`--against {quote(name)}`' for name in people)} "
                "compares these votes."
            )
        keys = [key for key in keys if key[3] != HUMAN]
        if keys:
            quiet = any(order.is_vendi(scorer) for *_, scorer in keys)
            alarm = ", and no alarm for lost variety can sound" if quiet else ""
            wanted = [(prompt_set, scorer) for _, _, prompt_set, scorer in keys]
            notes.append(
                f"LEFT OUT: {model}: {against} has no scores of {'; '.join(_told(keys))}. They are in no table, no test and no correction{alarm}. "
                f"{' '.join(_commands(comparison, model, against, wanted))}"
            )
    return notes


def unequal_notes(comparison: Comparison) -> list[str]:
    """A sentence for each reason for which scores of variety are refused, with whose they are."""
    refused: dict[tuple[str, str, str, str], list[str]] = {}
    for (model, experiment, prompt_set, scorer), why in comparison.unequal.items():
        refused.setdefault((model, prompt_set, scorer, why), []).append(experiment)
    notes = []
    for (model, prompt_set, scorer, why), experiments in refused.items():
        alarm = ", and sound no alarm for lost variety" if order.is_vendi(scorer) else ""
        titles = ", ".join(metrics.load(name).title for name in _that_read(scorer))
        notes.append(
            f"REFUSED: {model}: {titles} on {prompt_set} for {_and(experiments)}: {why}. They are in no table, no test and no correction{alarm}."
        )
    return notes


def _told(keys: Iterable[OriginKey]) -> Iterator[str]:
    """The scorers that the same runs have on the same prompt sets together, with both."""
    runs: dict[tuple[str, str], list[str]] = {}
    for _, experiment, prompt_set, scorer in keys:
        runs.setdefault((scorer, prompt_set), []).append(experiment)
    sets: dict[tuple[str, str], list[str]] = {}
    for (scorer, prompt_set), experiments in runs.items():
        have = f"{_and(experiments)} {'have' if len(experiments) > 1 else 'has'}"
        sets.setdefault((scorer, have), []).append(prompt_set)
    alike: dict[tuple[str, str], list[str]] = {}
    for (scorer, have), of in sets.items():
        alike.setdefault((", ".join(of), have), []).append(scorer)
    for (of_sets, have), scorers in alike.items():
        yield f"{', '.join(scorers)} on {of_sets}, which {have}"


def _and(names: Sequence[str]) -> str:
    """The names as a sentence lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def not_scored_notes(comparison: Comparison) -> list[str]:
    """A sentence or two for every experiment that lacks a metric that another of its model has."""
    notes = []
    for model in comparison.models():
        cells = {(e.experiment, e.metric, e.prompt_set) for e in comparison.of(model=model)}
        for experiment in dict.fromkeys(e.experiment for e in comparison.of(model=model)):
            absent = [
                (metrics.load(metric), prompt_set)
                for metric, prompt_set in sorted({(m, s) for _, m, s in cells})
                if (experiment, metric, prompt_set) not in cells
                and (model, experiment, prompt_set, metrics.load(metric).scorer) not in comparison.unequal
                and not (experiment == BASE and metrics.load(metric).reference is not None)
            ]
            if absent:
                told = "; ".join(f"{metric.title} on {prompt_set}" for metric, prompt_set in absent)
                wanted = [(prompt_set, metric.scorer) for metric, prompt_set in absent]
                sentences = [
                    f"{model}: not scored for {experiment}: {told}.",
                    *_commands(comparison, model, experiment, wanted),
                ]
                notes.append(" ".join(sentences))
    return notes


def _commands(
    comparison: Comparison, model: str, experiment: str, wanted: Iterable[tuple[str, str]]
) -> list[str]:
    """A sentence for every suite that gives a checkpoint what it lacks: the command, and what its capital letters stand for.

    Votes are not among it: those on another pair of checkpoints are another judge's (`evals.tally`).

    Args:
        comparison: what lacks it.
        model: of the checkpoint.
        experiment: its name.
        wanted: prompt sets and scorers, that another experiment of the model has.
    """
    of_suites: dict[str, list[tuple[str, str]]] = {}
    for prompt_set, scorer in dict.fromkeys(wanted):
        if scorer != HUMAN:
            suites = (
                origin.suite[0]
                for (of, _, there, by), origin in comparison.origins.items()
                if (of, there, by) == (model, prompt_set, scorer)
            )
            of_suites.setdefault(next(suites), []).append((prompt_set, scorer))
    return [_command(comparison, model, experiment, suite, lacking) for suite, lacking in of_suites.items()]


def _command(
    comparison: Comparison, model: str, experiment: str, suite: str, lacking: list[tuple[str, str]]
) -> str:
    """The command that scores a checkpoint on a suite: all that it has been scored by, and what it lacks, so that its file can be written anew."""
    there = [
        (prompt_set, scorer)
        for (of, name, prompt_set, scorer), origin in comparison.origins.items()
        if (of, name) == (model, experiment) and suite in origin.suite
    ]
    name, is_given = suite.partition(":")[0], suite.rpartition(":")[2] == GIVEN
    parts = ["python -m evals score", "PICTURES --pictures" if is_given else "CHECKPOINT", f"--suite {name}"]
    if is_given or model == EXTERNAL:
        parts.append(f"--name {quote(experiment)}")
    if is_given and model != EXTERNAL:
        parts.append(f"--model {quote(model)}")
    known, sets = parts_of(name), dict.fromkeys(prompt_set for prompt_set, _ in (*there, *lacking))
    if known and not {*known} <= {*sets}:
        parts += [f"--prompt-set {quote(prompt_set)}" for prompt_set in sets]
    parts += [f"--vendi-order {q:g}" for q in _orders(name, (*there, *lacking))]
    files = _files(comparison, model, experiment, suite)
    parts.append(f"--out {quote(files[0]) if len(files) == 1 else 'FILE.csv'}")
    what = f"{'PICTURES are those' if is_given else 'CHECKPOINT is that'} of {experiment}"
    turn = f", and FILE.csv in turn {_and(files)}" if len(files) > 1 else ""
    return f"`{' '.join(parts)}` scores {'them' if len(lacking) > 1 else 'it'}, where {what}{turn}."


def _orders(suite: str, scored: Iterable[tuple[str, str]]) -> list[float]:
    """The orders of Vendi scores that the suite does not have by itself."""
    known = parts_of(suite)
    found = {
        ordered[1]
        for prompt_set, scorer in scored
        if (ordered := order.split(scorer)) is not None
        and (prompt_set not in known or scorer not in known[prompt_set].scorers)
    }
    return sorted(found)


def _files(comparison: Comparison, model: str, experiment: str, suite: str) -> list[str]:
    """The score files of a checkpoint on a suite that hold nothing else, and so may be written anew."""
    mine: dict[str, None] = {}
    others: set[str] = set()
    for (of, name, _, _), origin in comparison.origins.items():
        if (of, name) == (model, experiment) and origin.suite == (suite,):
            mine |= dict.fromkeys(file for file in origin.file if file.endswith(".csv"))
        else:
            others |= {*origin.file}
    return [file for file in mine if file not in others]
