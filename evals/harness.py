"""Draws a suite's prompts with a checkpoint, or takes somebody's pictures, and turns them into score rows.

Pictures are kept as files and read back before they are scored, so that a score can always be had again from what is on disk. Work goes in units, chunks of whole prompts of
a part: of each, the pictures are decoded once for all scorers, so that memory does not grow with their number. What a unit gave lies in `<out>.parts/`, with a hash of every
picture: the same command goes on where it was killed, and does again only what is of another picture, scorer version or prompt set.

Several processes share the work, of one host (`--processes`) or of several that see the folder and are given the same command. A unit is done behind a lock, which the system frees
when its process ends, however it does. Where a file system carries no locks between hosts, or shows a new file late, a unit may be done twice: its rows are the same, and written
whole. All processes wait for the last unit; the first that is through puts the rows together, in the suite's order, which are the same byte for byte however many there were (of a CPU, with as many threads each: some
products of small batches differ in the last bit between one thread and two).

Beside `X.csv` lies `X.json`: see `evals.provenance`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import prompts
from evals import provenance, scorers, suites
from evals import rows as score_rows
from evals.arithmetic import exact_device
from evals.asides import beside
from evals.checkpoints import Checkpoint, declared, find_base, first_line, resolve, say, with_base
from evals.files import EXTERNAL, write_bytes, write_text
from evals.memory import keep_what_is_freed, too_little
from evals.pictures import (
    Given,
    Item,
    Pictures,
    Read,
    Source,
    and_more,
    bar,
    items_of,
    refuse_other_sizes,
    stacked,
)
from evals.provenance import Record, Score, Seen
from evals.scorers import Scorer
from evals.suites import Part, Suite
from prompts.lock import locked

SHOWN = 128
"""Pictures of a unit: 0.4 GB at 512 pixels. Scorers go through them in parts of 32, 64 or 128, which divide it, so that no picture's part depends on where a unit ends."""


@dataclass(frozen=True)
class Unit:
    """Whole prompts of a part, scored at once."""

    part: Part
    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.part.prompt_set}-{self.number:05d}"


def units_of(part: Part) -> list[Unit]:
    """The units of a part: about `SHOWN` pictures each, whoever does them."""
    items = items_of(part)
    size = max(1, SHOWN // part.images_per_prompt) * part.images_per_prompt
    starts = range(0, len(items), size)
    return [Unit(part, number, tuple(items[start : start + size])) for number, start in enumerate(starts)]


@dataclass(frozen=True)
class Scored:
    """Whose pictures are scored, as rows say it."""

    experiment: str
    model: str
    seed: int
    suite: str
    rewards: tuple[str, ...] = ()


def score(
    target: str,
    out: Path,
    suite: str | None,
    base: str | None = None,
    prompt_sets: Sequence[str] = (),
    name: str | None = None,
    trained_on: Sequence[str] = (),
    orders: Sequence[float] = (),
) -> None:
    """Score a checkpoint on a suite into a CSV file; pictures go to `images_of` it.

    Args:
        target: what `evals.checkpoints.resolve` takes.
        out: the file.
        suite: its name; None takes that of the domain of a run.
        base: what it came from, where nothing else says it: see `evals.checkpoints.with_base`.
        prompt_sets: which of its parts; all unless given.
        name: what the rows and pictures of a checkpoint without a run card are called; as its file or folder unless given.
        trained_on: scorers that such a checkpoint was trained on.
        orders: of its Vendi scores, beside order 1.

    Raises:
        ValueError: the target or the suite is none, or it is not said which; the pictures, a scorer or the base cannot be used; in one sentence.
    """
    checkpoint = declared(resolve(target), name, trained_on)
    if base is not None:
        checkpoint = with_base(checkpoint, base)
    chosen = suites.only(suites.load(suite or suites.of_domain(checkpoint.domain, target)), prompt_sets)
    if checkpoint.domain not in (None, chosen.domain):
        raise ValueError(
            f"suite {suite} looks at pictures of the domain {chosen.domain}, but {target} draws those of {checkpoint.domain}"
        )
    chosen = suites.with_orders(chosen, orders)
    _refuse_no_scorers(trained_on, chosen)
    whose = Scored(checkpoint.experiment, checkpoint.model, checkpoint.seed, chosen.drawn, checkpoint.rewards)
    _refuse_anothers(out, whose)
    device = _device()
    # of all parts before any picture is drawn: what is refused here is refused at once
    loaded = _load(chosen, device)
    _refuse_unanswerable(chosen, loaded)
    if any(scorer.scope == "paired" for scorer in loaded.values()) and checkpoint.experiment != "base":
        _refuse_another_family(checkpoint, checkpoint.its_base())
    pictures = Pictures(checkpoint, chosen, images_of(out), device)
    told = checkpoint.told.source if checkpoint.told is not None else None
    weights = {"weights": pictures.digest, "base": checkpoint.base or told}
    Scoring(chosen, whose, pictures, loaded, out, device, weights).run()


def _device() -> str:
    """What scorers and model are on."""
    device = exact_device()
    if device.type == "cpu":
        keep_what_is_freed()
    return str(device)


def images_of(out: Path) -> Path:
    """Where pictures of a score file go: `images/` beside it, or beside its folder where that is one of score files, as results/scores is."""
    folder = out.parent if out.parent != Path() else out.absolute().parent
    return (folder.parent if folder.name in ("scores", "curves") else folder) / "images"


def score_given(
    folder: Path,
    out: Path,
    suite: str,
    name: str,
    model: str = EXTERNAL,
    base: Path | None = None,
    trained_on: Sequence[str] = (),
    prompt_sets: Sequence[str] = (),
    orders: Sequence[float] = (),
    skip_unfit: bool = False,
) -> None:
    """Score somebody's pictures on a suite's prompts into a CSV file, without a model.

    Args:
        folder: as `evals.pictures.Given` takes it.
        out: the file.
        suite: its name.
        name: what the rows call them; "base" for those that others are compared with.
        model: what the rows call the model.
        base: folder of the base's pictures, for scorers that compare with them. Without it those are left out, and it is said.
        trained_on: scorers that what drew them was trained on.
        prompt_sets: which of the suite's parts; all unless given. Folders of others are left alone.
        orders: of its Vendi scores, beside order 1.
        skip_unfit: whether pictures that cannot be scored, or are missing, have rows without a value; they are refused otherwise.

    Raises:
        ValueError: see `evals.pictures.Given`, and `score`.
    """
    whole = suites.load(suite)
    chosen = suites.only(whole, prompt_sets)
    others = [part.prompt_set for part in whole.parts if part not in chosen.parts]
    chosen = suites.with_orders(chosen, orders)
    _refuse_no_scorers(trained_on, chosen)
    whose = Scored(name, model, 0, f"{chosen.name}:{score_rows.GIVEN}", tuple(trained_on))
    _refuse_anothers(out, whose)
    device = _device()
    loaded = _load(chosen, device)
    _refuse_unanswerable(chosen, loaded)
    theirs = Given(base, chosen, "base", others=others, skip_unfit=skip_unfit) if base else None
    pictures = Given(folder, chosen, name, theirs, others, skip_unfit)
    if pictures.base() is None:
        alone = [scorer for scorer, one in loaded.items() if one.scope == "paired"]
        if alone:
            say(f"note: without --base no {' and no '.join(alone)}, which compares with the base's pictures")
        chosen = _without(chosen, alone)
    Scoring(chosen, whose, pictures, loaded, out, device, {"pictures": str(folder)}).run()


def _refuse_no_scorers(trained_on: Sequence[str], suite: Suite) -> None:
    """Refuse what is no scorer of the suite's domain. Raises ValueError, with the choices."""
    choices = scorers.names(suite.domain)
    if unknown := [name for name in trained_on if not scorers.is_one(name, suite.domain)]:
        raise ValueError(f"--trained-on {unknown[0]} is no scorer; choose from {', '.join(choices)}")


def _refuse_anothers(out: Path, whose: Scored) -> None:
    """Refuse to write over what is none of ours, or the scores of another.

    Raises:
        ValueError: naming it.
    """
    provenance.refuse_foreign(out)
    held = score_rows.first_row(out)
    if held is None:
        return
    theirs, ours = (
        f"{experiment}-{model}-{seed}"
        for experiment, model, seed in (
            (held["experiment"], held["model"], held["seed"]),
            (whose.experiment, whose.model, whose.seed),
        )
    )
    if theirs != ours:
        raise ValueError(
            f"--out {out} holds the scores of {theirs}, and these are of {ours}: choose another name, or move it away"
        )


def _load(suite: Suite, device: str) -> dict[str, Scorer]:
    return {name: scorers.load(name, device, suite.domain) for part in suite.parts for name in part.scorers}


def _refuse_unanswerable(suite: Suite, loaded: Mapping[str, Scorer]) -> None:
    """Refuse prompts that a scorer of their part says it cannot answer for.

    Raises:
        ValueError: naming scorer and prompt set.
    """
    for part in suite.parts:
        for name in part.scorers:
            check = getattr(loaded[name], "check_prompts", None)
            if check is not None:
                try:
                    check(prompts.load(part.prompt_set))
                except ValueError as error:
                    raise ValueError(
                        f"scorer {name} cannot answer for {part.prompt_set}: {error}: leave it out of that part of the suite, or score other prompts with it"
                    ) from error


def _without(suite: Suite, names: Sequence[str]) -> Suite:
    """A suite without some scorers, and without parts that have no other. Raises ValueError where nothing is left."""
    rest = [
        replace(part, scorers=tuple(name for name in part.scorers if name not in names))
        for part in suite.parts
    ]
    if not any(part.scorers for part in rest):
        raise ValueError(
            f"every scorer of suite {suite.name} compares with the base's pictures: give them with --base"
        )
    return replace(suite, parts=tuple(part for part in rest if part.scorers))


DENOISER = (
    "cross_attention_dim",
    "in_channels",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)
"""What the denoisers of a family have in common, and those of two have not."""


def _refuse_another_family(checkpoint: Checkpoint, base: Checkpoint) -> None:
    """Refuse a checkpoint that cannot have come from its base, where both are in diffusers layout.

    Raises:
        ValueError: naming both.
    """
    sources = (checkpoint.weights, find_base(base.source))
    configs = [Path(source) / "unet" / "config.json" for source in sources if source is not None]
    if len(configs) < 2 or not all(config.is_file() for config in configs):
        return
    ours, theirs = (json.loads(config.read_text(encoding="utf-8")) for config in configs)
    for field in DENOISER:
        if ours.get(field) != theirs.get(field):
            raise ValueError(
                f"{checkpoint.source} is of another family than its base {base.source}: {field} of its denoiser is {ours.get(field)}, of the base's "
                f"{theirs.get(field)}, so drift from it means nothing"
            )


LESS_MEMORY = (
    "leave the device to this command alone, or score by a suite of your own (evals/suites) with a smaller sampling.micro_batch or decode_batch; "
    "what was drawn and scored before is kept, and the same command goes on"
)
"""What helps where a device has too little."""


class Scoring:
    """One command's work, and what is there of it."""

    def __init__(
        self,
        suite: Suite,
        whose: Scored,
        pictures: Source,
        loaded: Mapping[str, Scorer],
        out: Path,
        device: str,
        model: Mapping[str, str | None],
    ) -> None:
        self.suite, self.whose, self.pictures, self.loaded, self.out = suite, whose, pictures, loaded, out
        self.device, self.model = device, model
        # once: a version reads weights
        self.versions = {name: scorer.version for name, scorer in loaded.items()}
        self.parts = out.with_name(out.name + ".parts")
        self.units = {part: units_of(part) for part in suite.parts}
        self.asked = {part: prompts.load(part.prompt_set) for part in suite.parts}
        self.digests = {part: prompts.digest(asked) for part, asked in self.asked.items()}

    def run(self) -> None:
        """Do what others do not, then wait for them and do what they have not; put all together.

        Raises:
            ValueError: see `score`; what was scored before is kept.
        """
        self._say_what_is_cut()
        self._say_what_is_not_asked_for()
        try:
            for wait in (False, True):
                for part, units in self.units.items():
                    self._work(part, units, wait)
        except torch.OutOfMemoryError as error:
            raise ValueError(f"{too_little(error)}: {LESS_MEMORY}") from error
        records = {unit.name: self._done(unit) for units in self.units.values() for unit in units}
        self._merge(records)
        self._say_what_was_found(records)

    def _work(self, part: Part, units: Sequence[Unit], wait: bool) -> None:
        """A part: its pictures, then its units. Without `wait`, what no other process is at."""
        sources = [self.pictures, *([base] if (base := self._base(part)) else [])]
        items = [item for unit in units for item in unit.items]
        for source in sources:
            source.make(part, items, wait)
        with bar(f"scoring {part.prompt_set}", len(items)) as told:
            for unit in units:
                if wait or all(source.are_there(part, unit.items) for source in sources):
                    with locked(self.parts / f"{unit.name}.lock", wait) as taken:
                        if taken:
                            self._score(unit)
                told.update(len(unit.items))

    def _base(self, part: Part) -> Source | None:
        """The base's pictures, where a scorer of the part compares with them."""
        is_paired = any(self.loaded[name].scope == "paired" for name in part.scorers)
        return self.pictures.base() if is_paired else None

    # -------------------------------------------------------------------------------------------------------------- a unit

    def _record(self, unit: Unit) -> Record | None:
        """What is kept of a unit; None where there is nothing, or it is of other prompts or another suite."""
        record = provenance.read(self.parts / f"{unit.name}.json")
        of = (self.whose.suite, self.digests[unit.part], len(unit.items))
        return record if record and (record.suite, record.prompts, len(record.pictures)) == of else None

    def _done(self, unit: Unit) -> Record:
        """What is kept of a unit once all are done, or waited for.

        Raises:
            ValueError: it is of other pictures: another command puts its own there.
        """
        record = self._record(unit)
        if record is None or not self._is_current(unit, record, self._base(unit.part)):
            raise ValueError(
                f"{self.parts} is changed by another command, or pictures were while they were scored: give each command an --out of its own, "
                "then give this one again"
            )
        return record

    def _score(self, unit: Unit) -> None:
        """Ask every scorer that has not yet answered for these very pictures, and keep the answers, also where one of them fails."""
        kept, base = self._record(unit), self._base(unit.part)
        names = [name for name in unit.part.scorers if not self._is_asked_at_the_end(name)]
        if kept and self._is_current(unit, kept, base):
            kept.scores = {name: kept.scores[name] for name in names if self._has(unit, name, kept, kept)}
            if len(kept.scores) == len(names):
                return
        pictures = self.pictures.read(unit.part, unit.items)
        theirs = base.read(unit.part, unit.items) if base and base is not self.pictures else None
        if base:
            self._refuse_other_sizes(unit, base, pictures, theirs or pictures)
        seen = self._seen(self.pictures, unit, pictures)
        record = Record(
            suite=self.whose.suite,
            prompts=self.digests[unit.part],
            pictures=seen,
            base=(seen if theirs is None else self._seen(base, unit, theirs)) if base else None,
        )
        if kept and record.shows_the_same(kept):
            record.scores = {name: kept.scores[name] for name in names if self._has(unit, name, kept, record)}
            record.seconds = kept.seconds
        try:
            self._ask(unit, record, [name for name in names if name not in record.scores], pictures, theirs)
        finally:
            record.machine = provenance.machine(self.device)
            record.seconds = provenance.added(record.seconds, self.pictures.clock.drained())
            provenance.write(record, self.parts / f"{unit.name}.json")

    def _is_asked_at_the_end(self, name: str) -> bool:
        """A scorer that wants all pictures at once."""
        scorer = self.loaded[name]
        return scorer.scope == "paired" and not scorers.has_stages(scorer)

    def _is_current(self, unit: Unit, kept: Record, base: Source | None) -> bool:
        """Whether the files are those that were read, by their size and time, and as fit: then they need not be read again."""
        return all(
            [one.stat for one in seen]
            == [provenance.stat(file) for file in source.files(unit.part, unit.items)]
            and [one.unfit for one in seen] == source.unfit(unit.part, unit.items)
            for source, seen in ((self.pictures, kept.pictures), *([(base, kept.base or [])] if base else []))
        )

    def _has(self, unit: Unit, name: str, kept: Record, now: Record) -> bool:
        """Whether a scorer's answers are kept, of its version and the base's pictures of today."""
        score = kept.scores.get(name)
        if score is None or score.version != self.versions[name]:
            return False
        return score.values is not None or self._features(unit, name, now) is not None

    def _seen(self, source: Source, unit: Unit, pictures: Sequence[Read | None]) -> list[Seen]:
        files, unfit = source.files(unit.part, unit.items), source.unfit(unit.part, unit.items)
        return [
            Seen.of(picture, provenance.stat(file), why)
            for file, picture, why in zip(files, pictures, unfit, strict=True)
        ]

    def _refuse_other_sizes(
        self, unit: Unit, base: Source, ours: Sequence[Read | None], theirs: Sequence[Read | None]
    ) -> None:
        """Refuse pictures of another size than the base's: they are of another family.

        Raises:
            ValueError: naming one of each.
        """
        for item, one, other in zip(unit.items, ours, theirs, strict=True):
            if one and other and one.size != other.size:
                raise ValueError(
                    f"{self.pictures.path(unit.part, item)} is {one.size[0]} x {one.size[1]} pixels, but the base's {base.path(unit.part, item)} is "
                    f"{other.size[0]} x {other.size[1]}: two models of one family draw one size"
                )

    def _ask(
        self,
        unit: Unit,
        record: Record,
        names: Sequence[str],
        pictures: Sequence[Read | None],
        theirs: Sequence[Read | None] | None,
    ) -> None:
        """Put the answers of some scorers into a record, each as soon as it is there."""
        decoded = [place for place, one in enumerate(pictures) if one]
        images = _stacked(pictures, decoded)
        for name in names:
            scorer = self.loaded[name]
            with self.pictures.clock.of(f"{provenance.SCORER}{name}"):
                if scorer.scope == "paired":
                    both = [place for place in decoded if theirs is None or theirs[place]]
                    ours = images if both == decoded else _stacked(pictures, both)
                    self._keep_features(unit, record, name, ours, _stacked(theirs, both) if theirs else None)
                    continue
                places = decoded if scorer.scope == "image" else _of_whole_prompts(unit.items, decoded)
                shown = images if places == decoded else _stacked(pictures, places)
                values = torch.full((len(unit.items),), torch.nan)
                if places:
                    values[places] = _asked(name, scorer, [unit.items[place] for place in places], shown)
                record.scores[name] = Score(self.versions[name], values.tolist())

    # ----------------------------------------------------------------------------------------------- features of a unit

    def _keep_features(
        self, unit: Unit, record: Record, name: str, images: Tensor, base: Tensor | None
    ) -> None:
        """Keep the first stage's answers for some pictures and the base's; without those they are the same pictures, and are not asked about twice."""
        scorer = self.loaded[name]

        def features(side: Tensor) -> Tensor:
            return (
                _answer(name, lambda: scorers.ask_features(name, scorer, side))
                if len(side)
                else torch.empty(0, 1)
            )

        ours = features(images)
        kept = {"ours": ours, "base": ours.clone() if base is None else features(base)}
        content = save(kept, {"of": self._features_of(name, record)})
        # what a power cut takes of a unit is done again
        write_bytes(content, self._features_file(unit, name), durable=False)
        record.scores[name] = Score(self.versions[name], None)

    def _features_file(self, unit: Unit, name: str) -> Path:
        return self.parts / f"{unit.name}.{Path(name).stem}.safetensors"

    def _features_of(self, name: str, record: Record) -> str:
        """What features depend on: pictures, the base's, scorer version."""
        of = [self.versions[name], record.digests(), [seen.digest for seen in record.base or []]]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def _features(self, unit: Unit, name: str, record: Record) -> tuple[Tensor, Tensor] | None:
        """Features of a unit's pictures and of the base's; None where they are not there, or of others."""
        path = self._features_file(unit, name)
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() != {"of": self._features_of(name, record)}:
                    return None
                return file.get_tensor("ours"), file.get_tensor("base")
        except (OSError, SafetensorError):
            return None

    # -------------------------------------------------------------------------------------------------- all of them

    def _merge(self, records: Mapping[str, Record]) -> None:
        """Write rows and provenance, unless that is what is there."""
        key = self._key(records)
        with locked(self.parts / "merge.lock"):
            if provenance.is_of(self.out, key):
                self.out.touch()  # make goes by its time
                return
            self._refuse_several_sizes(records)
            values = {
                (part, name): self._values(part, name, records)
                for part in self.suite.parts
                for name in part.scorers
            }
            table = score_rows.table(
                row
                for part in self.suite.parts
                for name in part.scorers
                for row in self._rows(part, name, records, values[part, name])
            )
            score_rows.write(table, self.out)
            told = {
                "suite": self.whose.suite,
                **provenance.drawing(self.suite, drawn=self.whose.suite == self.suite.drawn),
                "model": {
                    "experiment": self.whose.experiment,
                    "model": self.whose.model,
                    "seed": self.whose.seed,
                    **self.model,
                },
                "scorers": {
                    name: {"version": self.versions[name], "source": self.loaded[name].source}
                    for name in sorted({name for part in self.suite.parts for name in part.scorers})
                },
                "prompt_sets": {
                    part.prompt_set: self._counts(part, records, values) for part in self.suite.parts
                },
                "made_of": key,
                "rows_sha256": provenance.sha256(self.out),
                "machine": provenance.machines(list(records.values()), self.pictures.clock.drained()),
            }
            write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", beside(self.out))

    def _key(self, records: Mapping[str, Record]) -> str:
        """What the rows depend on, as a hash."""
        of = [
            repr(self.whose),
            {
                part.prompt_set: {name: self.versions[name] for name in part.scorers}
                for part in self.suite.parts
            },
            {
                name: [record.prompts, record.digests(), record.base_digests(), *record.unfit()]
                for name, record in records.items()
            },
        ]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def _refuse_several_sizes(self, records: Mapping[str, Record]) -> None:
        """Refuse a part whose units have pictures of several sizes. Raises ValueError, naming one."""
        for part, units in self.units.items():
            files = [file for unit in units for file in self.pictures.files(part, unit.items)]
            seen = [seen for unit in units for seen in records[unit.name].pictures]
            sized = [(file, one.size) for file, one in zip(files, seen, strict=True) if one.size]
            refuse_other_sizes(
                [file for file, _ in sized], [size for _, size in sized], "and it is made again"
            )

    def _values(self, part: Part, name: str, records: Mapping[str, Record]) -> list[float]:
        """A scorer's answers for all pictures of a part, in order."""
        scorer, units = self.loaded[name], self.units[part]
        if scorer.scope != "paired":
            kept = [records[unit.name].scores[name].values for unit in units]
            return [value for values in kept for value in values or []]
        items = [item for unit in units for item in unit.items]
        whole = [
            place
            for place, (ours, theirs) in enumerate(
                (ours, theirs)
                for unit in units
                for ours, theirs in zip(
                    records[unit.name].pictures, records[unit.name].base or [], strict=True
                )
            )
            if ours.digest and theirs.digest
        ]
        values = torch.full((len(items),), torch.nan)
        asked = [items[place] for place in whole]
        if not asked:
            return values.tolist()
        with self.pictures.clock.of(f"{provenance.SCORER}{name}"):
            if scorers.has_stages(scorer):
                found = [self._features(unit, name, records[unit.name]) for unit in units]
                ours, theirs = (
                    torch.cat([pair[side] for pair in found if pair and len(pair[side])]) for side in (0, 1)
                )
                values[whole] = _answer(
                    name,
                    lambda: scorers.ask_from_features(name, scorer, ours, theirs, _whose(asked)),
                    part.prompt_set,
                )
            else:
                base = self._base(part)
                assert base is not None, "who has no base is not asked"
                ours_BCHW = stacked([one for one in self.pictures.read(part, asked) if one])
                is_own = base is self.pictures
                theirs_BCHW = ours_BCHW if is_own else stacked([one for one in base.read(part, asked) if one])
                values[whole] = _asked(name, scorer, asked, ours_BCHW, theirs_BCHW)
        return values.tolist()

    def _rows(
        self, part: Part, name: str, records: Mapping[str, Record], values: Sequence[float]
    ) -> list[score_rows.Row]:
        seen = [
            (item, seen)
            for unit in self.units[part]
            for item, seen in zip(unit.items, records[unit.name].pictures, strict=True)
        ]
        trained = int(name in self.whose.rewards)
        return [
            score_rows.Row(
                experiment=self.whose.experiment,
                model=self.whose.model,
                seed=self.whose.seed,
                suite=self.whose.suite,
                prompt_set=part.prompt_set,
                prompts=self.digests[part],
                prompt_id=item.prompt.id,
                image=item.image,
                picture=one.digest or "",
                scorer=name,
                version=self.versions[name],
                trained_on=trained,
                value=value,
            )
            for (item, one), value in zip(seen, values, strict=True)
        ]

    def _counts(
        self, part: Part, records: Mapping[str, Record], values: Mapping[tuple[Part, str], Sequence[float]]
    ) -> dict[str, object]:
        """See `evals.provenance`."""
        seen = [
            (item.prompt.id, one)
            for unit in self.units[part]
            for item, one in zip(unit.items, records[unit.name].pictures, strict=True)
        ]
        asked = self.asked[part]
        cut = {name: scorers.how_many_are_cut(self.loaded[name], asked) for name in part.scorers}
        return {
            "prompts": self.digests[part],
            "prompts_count": len(asked),
            "images_per_prompt": part.images_per_prompt,
            **provenance.counts(seen),
            "truncated": {"model": self.pictures.truncated(part), "scorers": cut},
            "not_applicable": {
                name: sum(value != value for value in values[part, name]) for name in part.scorers
            },
        }

    # ---------------------------------------------------------------------------------------------------------- said

    def _say_what_is_cut(self) -> None:
        """Name scorers that do not read prompts to their end."""
        for part, asked in self.asked.items():
            for name in part.scorers:
                if note := scorers.what_is_cut(name, self.loaded[name], part.prompt_set, asked):
                    say(note)

    def _say_what_is_not_asked_for(self) -> None:
        """Name what the file holds and will not hold any more."""
        asked = {(part.prompt_set, name) for part in self.suite.parts for name in part.scorers}
        gone: dict[str, list[str]] = {}
        for prompt_set, name in sorted(score_rows.scorings(self.out) - asked):
            gone.setdefault(prompt_set, []).append(name)
        if gone:
            told = "; ".join(f"{', '.join(names)} on {prompt_set}" for prompt_set, names in gone.items())
            say(
                f"note: {self.out} holds scores that this command does not ask for, and is written without them: {told}; the command that made them gives them again"
            )

    def _say_what_was_found(self, records: Mapping[str, Record]) -> None:
        """Name pictures that could not be decoded, are black, or had to be made RGB."""
        for part, units in self.units.items():
            found: dict[str, list[Path]] = {}
            for unit in units:
                for item, one in zip(unit.items, records[unit.name].pictures, strict=True):
                    if one.remark:
                        found.setdefault(one.remark, []).append(self.pictures.path(part, item))
            for remark, paths in found.items():
                say(f"note: {paths[0]}: {remark}{and_more(len(paths))}")


def _of_whole_prompts(items: Sequence[Item], decoded: Sequence[int]) -> list[int]:
    """Places of pictures of whose prompt all were decoded: what is said of a group depends on its size."""
    broken = {item.prompt.id for item in (items[place] for place in {*range(len(items))} - {*decoded})}
    return [place for place in decoded if items[place].prompt.id not in broken]


def _stacked(pictures: Sequence[Read | None], places: Sequence[int]) -> Tensor:
    return stacked([one for place in places if (one := pictures[place])]) if places else torch.empty(0)


def _asked(
    name: str, scorer: Scorer, items: Sequence[Item], images: Tensor, base: Tensor | None = None
) -> Tensor:
    """A scorer's answers [B], held to the contract. Raises ValueError, see `_answer`."""
    asked = [item.prompt for item in items]
    return _answer(name, lambda: scorers.ask(name, scorer, images, asked, _whose(items), base))


def _whose(items: Sequence[Item]) -> Callable[[int], str]:
    return lambda place: f"prompt {items[place].prompt.id}, image {items[place].image}"


def _answer(name: str, ask: Callable[[], Tensor], prompt_set: str = "") -> Tensor:
    """What a scorer answers, of pictures or of a whole prompt set, which its sentence is then told with.

    Raises:
        ValueError: where its weights do not open, it raises, or its answer is not one number in its range for each picture.
    """
    try:
        return ask()
    except scorers.ScorerFailed as failure:
        cause = failure.__cause__
        if isinstance(cause, torch.OutOfMemoryError):
            raise ValueError(f"{too_little(cause, f'scorer {name}')}: {LESS_MEMORY}") from failure
        if isinstance(cause, OSError | SafetensorError):
            raise ValueError(
                f"the weights of scorer {name} cannot be opened: {first_line(cause)}"
            ) from failure
        if isinstance(cause, ValueError):  # a sentence of its own, on what it was given
            raise ValueError(f"{prompt_set}: {cause}" if prompt_set else str(cause)) from failure
        raise ValueError(f"{failure}: mend the scorer or its weights") from failure
