"""Human votes: what raters see, the log that loses nothing, the page over HTTP and in a browser, and what the votes are counted to."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import prompts
from evals import ballots, compare, layout, metrics, pictures, rows, stats, tally, vote
from evals.__main__ import main
from evals.ballots import NOISE, Choice, Comparison, Log, Pair, Shown, Votes, schedule
from tests import browser
from tests.synthetic_rows import study

ROOT = Path(__file__).parent.parent
SET, OTHER = "miniature-preference-unseen", "miniature-scenes-unseen"
A, B = "joint-miniature-0", "base-miniature-0"


def draw(folder: Path, count: int = 6, images: int = 1, prompt_set: str = SET) -> Path:
    """A folder of pictures of the first prompts of a set."""
    for prompt in list(prompts.load(prompt_set))[:count]:
        for image in range(images):
            path = folder / prompt_set / prompt.id / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            generator = np.random.default_rng([sum(str(path.relative_to(folder.parent)).encode()), image])
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return draw(tmp_path / A), draw(tmp_path / B)


@pytest.fixture
def comparison(folders: tuple[Path, Path]) -> Comparison:
    return ballots.gather(*folders, checks=0.34)


def made_up(pairs: int, checks: int = 0, images: int = 1, prompt_set: str = SET, seed: int = 0) -> Comparison:
    """A comparison without pictures."""
    listed = [Pair(prompt_set, f"p{i // images:03d}", i % images, f"a{i}", f"b{i}") for i in range(pairs)]
    return Comparison(A, B, ("s", "s"), {prompt_set: "0123456789ab"}, tuple(listed), checks, seed)


def choose(comparison: Comparison, prefers: Mapping[str, Callable[[Pair], str]]) -> Votes:
    """Votes of raters who prefer "A", "B" or "tie" as a function of the pair says, and pass every check."""
    votes = Votes(comparison)
    for rater, wanted in prefers.items():
        votes.choices[rater] = [
            shown.answer or side(shown, wanted(comparison.pairs[shown.pair]))
            for shown in schedule(comparison, rater)
        ]
    return votes


def side(shown: Shown, wanted: str) -> Choice:
    return "tie" if wanted == "tie" else "left" if shown.left == wanted else "right"


# ------------------------------------------------------------------------------------------------- schedule


def test_every_rater_sees_every_pair_once_and_the_checks() -> None:
    comparison = made_up(100, checks=10)
    for rater in ("anna", "bo"):
        shown = schedule(comparison, rater)
        assert sorted(s.pair for s in shown if s.answer is None) == list(range(100))
        assert all({s.left, s.right} == {"A", "B"} for s in shown if s.answer is None)
        assert sum(s.answer is not None for s in shown) == 10


def test_order_sides_and_checks_are_each_raters_own() -> None:
    comparison = made_up(400, checks=40)
    anna, bo = schedule(comparison, "anna"), schedule(comparison, "bo")
    assert schedule(comparison, "anna") == anna
    assert [s.pair for s in anna] != [s.pair for s in bo]
    assert {s.pair for s in anna if s.answer} != {s.pair for s in bo if s.answer}
    sides = [{s.pair: s.left for s in of if s.answer is None} for of in (anna, bo)]
    alike = sum(sides[0][i] == sides[1][i] for i in range(400))
    left = sum(s == "A" for s in sides[0].values())
    assert 160 < alike < 240 and 160 < left < 240  # 200 +- 4 standard deviations
    assert schedule(made_up(400, checks=40, seed=1), "anna") != anna


def test_a_schedule_is_the_same_for_ever() -> None:
    """A log is read with the schedule: if this changes, logs that people made can no longer be read."""
    assert schedule(made_up(3, checks=1), "anna") == (
        Shown(0, "B", "A"),
        Shown(2, "A", "A" + NOISE),
        Shown(2, "B", "A"),
        Shown(1, "A", "B"),
    )


def test_the_known_answer_is_the_picture_without_noise() -> None:
    assert Shown(0, "A", "B").answer is None
    assert Shown(0, "A", "A" + NOISE).answer == "left"
    assert Shown(0, "B" + NOISE, "B").answer == "right"


def test_noise_is_heavy_and_always_the_same() -> None:
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    spoilt = ballots.under_noise(Image.fromarray(ramp))
    assert np.array_equal(np.asarray(spoilt), np.asarray(ballots.under_noise(Image.fromarray(ramp))))
    assert 0.1 < np.corrcoef(ramp.ravel(), np.asarray(spoilt).ravel())[0, 1] < 0.4


@pytest.mark.parametrize("name", ["", " ", "-", "a/b", "a" * 41, "a\nb", "<b>", 7, None, ["a"]])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(ValueError, match="a name is 1 to 40"):
        ballots.rater_name(name)


def test_a_name_is_one_however_it_is_typed() -> None:
    assert ballots.rater_name(" Zoe\u0308 B. ") == ballots.rater_name("zo\u00eb b.") == "zo\u00eb b."
    assert ballots.rater_name("O’Neil") == ballots.rater_name("O'Neil")
    assert ballots.rater_name("\u01f0") == ballots.rater_name("\u01f0".casefold()) == "\u01f0"


@pytest.mark.parametrize("name", ["İlker", "हिन्दी", "தமிழ்", "สมชาย", "李雷"])
def test_names_of_many_scripts_are_names(name: str) -> None:
    """Vowels of some are marks, which are no letters by themselves."""
    kept = ballots.rater_name(name)
    assert kept == ballots.rater_name(kept)
    with pytest.raises(ValueError, match="a name is 1 to 40"):
        ballots.rater_name("\u093f" + name)
    with pytest.raises(ValueError, match="a name is 1 to 40"):
        ballots.rater_name(f"{name}{chr(0x93F) * 40}")


def test_counts_that_come_to_more_than_all_prompts_are_refused(tmp_path: Path) -> None:
    """They were cut to --prompts, whose default is not in the command, without a word."""
    both = tuple(draw(draw(tmp_path / name, 4), 3, prompt_set=OTHER) for name in (A, B))
    with pytest.raises(ValueError, match="come to 6 prompts, but --prompts is 5: give --prompts 6"):
        ballots.gather(*both, [f"{SET}=9", f"{OTHER}=2"], at_most=5)  # there are four of the first
    assert len(ballots.gather(*both, [f"{SET}=3", f"{OTHER}=2"], at_most=5).pairs) == 5
    assert len(ballots.gather(*both, [f"{SET}=3", OTHER], at_most=5).pairs) == 5


# ------------------------------------------------------------------------------------------------- pictures


def test_what_is_compared(folders: tuple[Path, Path]) -> None:
    found = ballots.gather(*folders)
    assert (found.a, found.b, found.suites, found.checks) == (A, B, ("", ""), 1)
    assert [p.prompt_id for p in found.pairs] == sorted(p.id for p in list(prompts.load(SET))[:6])
    assert found.prompts == {SET: prompts.digest(prompts.load(SET))}
    first = found.pairs[0]
    path = layout.Index().path_of(folders[0], SET, first.prompt_id, 0)
    assert first.a == pictures.read(path).digest


def test_more_prompts_than_asked_for_are_drawn_at_random(folders: tuple[Path, Path]) -> None:
    drawn = [ballots.gather(*folders, at_most=3, seed=seed).pairs for seed in range(5)]
    assert [len(pairs) for pairs in drawn] == [3] * 5
    assert len(set(drawn)) > 1
    assert ballots.gather(*folders, at_most=3, seed=0).pairs == drawn[0]


def test_several_images_and_prompt_sets(tmp_path: Path) -> None:
    a, b = (draw(draw(tmp_path / name, 2, 3), 2, 3, OTHER) for name in (A, B))
    pairs = ballots.gather(a, b, images=2).pairs
    assert {p.image for p in pairs} == {0, 1} and len(pairs) == 8
    assert {p.prompt_set for p in ballots.gather(a, b, (OTHER,)).pairs} == {OTHER}
    shares = Counter(p.prompt_set for p in ballots.gather(a, b, (SET, f"{OTHER}=1")).pairs)
    assert shares == {SET: 2, OTHER: 1}
    for given in (f"{OTHER}=0", f"{OTHER}=", f"{OTHER}=x"):
        with pytest.raises(ValueError, match="after = comes how many prompts"):
            ballots.gather(a, b, (given,))


def test_flat_folders_and_other_formats_are_taken_where_it_is_said_of_what(tmp_path: Path) -> None:
    nested = draw(tmp_path / "nested")
    flat = (draw(tmp_path / "drawn") / SET).rename(tmp_path / "flat")
    for path in flat.glob("*/*.png"):
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    found = ballots.gather(nested, flat, (SET,))
    assert (len(found.pairs), found.b) == (6, "flat")
    first = found.pairs[0]
    path = layout.Index().path_of(flat, SET, first.prompt_id, 0)
    assert (path.suffix, first.b) == (".webp", pictures.read(path).digest)
    with pytest.raises(ValueError, match=r"no prompt set in common: .* say of which: --prompt-set NAME"):
        ballots.gather(nested, flat)


@pytest.mark.parametrize("below", ["", SET])
def test_genevals_layout_is_voted_on(folders: tuple[Path, Path], tmp_path: Path, below: str) -> None:
    """The same pairs as in folders of prompt ids, and the same pictures served."""
    plain, theirs = ballots.gather(*folders), tmp_path / "theirs"
    for number, pair in enumerate(plain.pairs):
        samples = theirs / below / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        text = next(p.text for p in prompts.load(SET) if p.id == pair.prompt_id)
        (samples.parent / "metadata.jsonl").write_text(json.dumps({"prompt": text}))
        layout.Index().path_of(folders[1], SET, pair.prompt_id, 0).rename(samples / "0000.png")
    found = ballots.gather(folders[0], theirs, (SET,))
    assert found.pairs == plain.pairs
    for pair in found.pairs:
        path = layout.Index().path_of(theirs, SET, pair.prompt_id, 0)
        assert path.name == "0000.png" and pictures.read(path).digest == pair.b


def test_votes_are_of_the_suite_that_drew_both_sides_or_on_given_pictures() -> None:
    for suites, suite in (
        (("x:1", "x:1"), "x:1"),
        (("x:1", ""), "given"),
        (("x:1", "y:2"), "given"),
        (("", ""), "given"),
    ):
        votes = choose(
            Comparison(A, B, suites, {SET: "0" * 12}, made_up(2).pairs, 0, 0), {"a": lambda p: "A"}
        )
        assert set(tally.rows_of(votes)["suite"]) == {suite}


def test_a_given_folder_is_called_by_its_whole_name_whatever_a_run_is_called() -> None:
    """As `score --pictures --name` calls it: `sd2-tuned-3` beside `sd2-tuned-4` were two seeds of one experiment."""
    pairs = made_up(2).pairs

    def whose(a: str, b: str, suites: tuple[str, str]) -> set[tuple[str, str, int]]:
        votes = choose(Comparison(a, b, suites, {SET: "0" * 12}, pairs, 0, 0), {"a": lambda p: "A"})
        found = tally.rows_of(votes)
        return {*zip(found["experiment"], found["model"], found["seed"], strict=True)}

    given = {("sd2-tuned-3", "external", 0), ("sd2-tuned-4", "external", 0)}
    assert whose("sd2-tuned-3", "sd2-tuned-4", ("", "")) == given
    both = {("a", "external", 0), ("sd2-tuned-3", "external", 0)}
    assert whose("a-external-0", "sd2-tuned-3", ("x:1", "")) == both
    assert whose(A, B, ("x:1", "x:1")) == {("joint", "miniature", 0), ("base", "miniature", 0)}


def test_the_suite_is_told_by_the_mark_that_the_harness_leaves(folders: tuple[Path, Path]) -> None:
    from evals import suites

    suite = suites.load("miniature")
    mark = {"weights": "x", "sampling": repr(suite.sampling), "seed": suite.seed}
    (folders[0] / "source.json").write_text(json.dumps(mark))
    (folders[1] / "source.json").write_text(json.dumps({**mark, "seed": 1}))
    assert ballots.gather(*folders).suites == (suite.drawn, "")
    (folders[1] / "source.json").write_text("{}")
    with pytest.raises(ValueError, match=r"source\.json: does not say how"):
        ballots.gather(*folders)


def _no_a(a: Path, b: Path) -> None:
    a.rename(a.with_name("away"))


def _of_nothing_in_common(a: Path, b: Path) -> None:
    (a / SET).rename(a / OTHER)


def _one_lacks_a_prompt(a: Path, b: Path) -> None:
    next((b / SET).iterdir()).rename(b / "x")


def _one_has_another_index(a: Path, b: Path) -> None:
    picture = next((a / SET).glob("*/0.png"))
    picture.rename(picture.with_name("1.png"))


def _no_prompt_of_that_id(a: Path, b: Path) -> None:
    for folder in (a, b):
        next((folder / SET).iterdir()).rename(folder / SET / "zebra")


def _no_prompt_set_of_that_name(a: Path, b: Path) -> None:
    for folder in (a, b):
        (folder / SET).rename(folder / "zebras")


def _cut_off(a: Path, b: Path) -> None:
    picture = next((b / SET).glob("*/0.png"))
    picture.write_bytes(picture.read_bytes()[:200])


def _empty(a: Path, b: Path) -> None:
    for picture in (a / SET).glob("*/0.png"):
        picture.unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_a, f"there is no folder .*{A}"),
        (_of_nothing_in_common, "have pictures of no prompt set in common"),
        (_one_lacks_a_prompt, f"{B}/{SET} lacks 1 of the 6 pictures of .*{A}/{SET}, the first "),
        (_one_has_another_index, f"{B}/{SET} lacks 1 of the 6 pictures of .*, the first picture 1 of "),
        (_no_prompt_of_that_id, f"{A}/{SET}/zebra: the prompt set {SET} has no prompt zebra"),
        (_no_prompt_set_of_that_name, "no prompt set in common: .* say of which: --prompt-set NAME"),
        (_cut_off, f"{B}/.*/0.png cannot be opened as a picture"),
        (_empty, f"{A}/{SET} holds no pictures"),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
def test_folders_that_do_not_do(
    folders: tuple[Path, Path], spoil: Callable[[Path, Path], None], sentence: str, tmp_path: Path
) -> None:
    spoil(*folders)
    run = CliRunner().invoke(main, ["vote", *map(str, folders), "--out", str(tmp_path / "votes.csv")])
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1)
    assert re.search(sentence, run.stderr), run.stderr
    assert not list(tmp_path.glob("votes*"))


@pytest.mark.parametrize("name", [" joint", "joint ", "jo\nint"])
def test_a_folder_whose_name_no_row_can_have_is_refused_before_anybody_votes(
    folders: tuple[Path, Path], name: str
) -> None:
    theirs = folders[0].rename(folders[0].with_name(name))
    with pytest.raises(ValueError, match="a folder is called " + re.escape(repr(name))):
        ballots.gather(theirs, folders[1])


def test_two_folders_of_one_name_and_too_many_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have one name"):
        ballots.gather(folders[0], draw(tmp_path / "other" / A))
    with pytest.raises(ValueError, match=r"--images 2, but .* holds 1"):
        ballots.gather(*folders, images=2)


# ------------------------------------------------------------------------------------------------------ log


def voted(path: Path, comparison: Comparison) -> bytes:
    """A log with three votes and an undo."""
    log = Log(path, comparison)
    log.vote("anna", "left")
    log.vote("bo", "tie")
    log.undo("anna")
    log.vote("anna", "right")
    log.close()
    return path.read_bytes()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path, comparison = tmp_path / "votes.jsonl", made_up(4, checks=1)
    content = voted(path, comparison)
    assert ballots.read(path) == Votes(comparison, {"anna": ["right"], "bo": ["tie"]})
    again = Log(path, comparison)
    assert (again.count("anna"), again.count("bo"), again.count("cy"), again.repaired) == (1, 1, 0, False)
    again.close()
    assert path.read_bytes() == content
    entry = json.loads(content.splitlines()[-1])
    shown = schedule(comparison, "anna")[0]
    assert (entry["left"], entry["right"], entry["prefers"]) == (shown.left, shown.right, shown.right)


def test_a_log_cut_off_anywhere_is_whole_up_to_the_line_before(tmp_path: Path) -> None:
    path, comparison = tmp_path / "votes.jsonl", made_up(4, checks=1)
    content = voted(path, comparison)
    lines = content.splitlines(keepends=True)
    last = len(content) - len(lines[-1])
    for size in (
        *range(0, len(lines[0]), 97),
        len(lines[0]) - 1,
        *range(last + 1, len(content), 41),
        len(content) - 1,
    ):
        path.write_bytes(content[:size])
        log = Log(path, comparison)
        begun = size > len(lines[0])
        assert (log.count("anna"), log.count("bo"), log.repaired) == (0, int(begun), size > 0)
        log.vote("anna", "right")
        log.close()
        assert ballots.read(path).choices["anna"] == ["right"]
        if begun:
            assert path.read_bytes()[:last] == content[:last]


def test_half_a_line_is_not_counted_and_not_touched_by_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    content = voted(path, made_up(4))[:-5]
    path.write_bytes(content)
    assert ballots.read(path).choices == {"anna": [], "bo": ["tie"]}
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda lines: [*lines[:1], b"{half\n", *lines[1:]],
            "votes.jsonl:2: the log is damaged here, this line is no JSON",
        ),
        (lambda lines: [*lines[:1], *lines[2:]], r"votes.jsonl:3: .* does not follow"),
        (lambda lines: [lines[0], lines[1], lines[1]], r"votes.jsonl:3: .* does not follow"),
        (
            lambda lines: [lines[0], lines[1].replace(b'"left": "', b'"left": "X')],
            r"votes.jsonl:2: .* does not follow",
        ),
        (
            lambda lines: [lines[0], lines[1].replace(b'"rater": "anna"', b'"rater": 7')],
            r"votes.jsonl:2: .* follow",
        ),
        (lambda lines: [lines[0].replace(b'"checks"', b'"cheques"')], "votes.jsonl:1: .* no comparison"),
        (lambda lines: [b'{"rows": 1}\n'], "votes.jsonl is there, and no log of votes"),
        (lambda lines: [], "votes.jsonl is empty"),
    ],
)
def test_a_damaged_log(tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], sentence: str) -> None:
    path, comparison = tmp_path / "votes.jsonl", made_up(4, checks=1)
    content = b"".join(change(voted(path, comparison).splitlines(keepends=True)))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        ballots.read(path)
    if content:
        with pytest.raises(ValueError, match=sentence):
            Log(path, comparison)
    assert path.read_bytes() == content


def test_a_log_of_another_comparison_and_a_second_server(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    log = Log(path, made_up(4))
    with pytest.raises(ValueError, match=r"votes\.jsonl is in use by another server"):
        Log(path, made_up(4))
    log.close()
    for other in (made_up(5), made_up(4, seed=1), made_up(4, checks=1)):
        with pytest.raises(
            ValueError, match=f"log of another comparison, {A} against {B} on 4 pairs with seed 0"
        ):
            Log(path, other)
    Log(path, made_up(4)).close()


def test_a_vote_that_the_disk_refuses_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, comparison = tmp_path / "votes.jsonl", made_up(4)
    voted(path, comparison)
    content, log = path.read_bytes(), Log(path, comparison)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for act in (lambda: log.vote("anna", "left"), lambda: log.undo("anna")):
            with pytest.raises(OSError, match="No space left"):
                act()
            assert log.count("anna") == 1
            assert path.read_bytes() == content
    log.vote("anna", "left")
    log.close()
    assert ballots.read(path).choices["anna"] == ["right", "left"]


# ------------------------------------------------------------------------------------------------- measures


TEXTBOOK = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ],
    dtype=np.float64,
)
"""14 raters, 10 subjects, 5 categories: the example of Fleiss' kappa in textbooks."""


def test_fleiss_kappa_of_the_textbook() -> None:
    assert stats.fleiss_kappa(TEXTBOOK) == pytest.approx(0.2099, abs=5e-5)


def test_pair_agreement_is_counted_pair_by_pair() -> None:
    generator = np.random.default_rng(0)
    ratings = [list(generator.integers(0, 3, size=n)) for n in (5, 2, 1, 4)]
    counts = np.array([[given.count(k) for k in range(3)] for given in ratings], dtype=np.float64)
    alike = [np.mean([x == y for x, y in combinations(given, 2)]) for given in ratings if len(given) > 1]
    assert tally.pair_agreement(counts) == pytest.approx(np.mean(alike))


def test_agreement_where_there_is_nothing_to_agree_on() -> None:
    assert math.isnan(tally.pair_agreement(np.array([[1.0, 0, 0]])))
    assert math.isnan(stats.fleiss_kappa(np.array([[1.0, 0, 0]])))
    assert math.isnan(stats.fleiss_kappa(np.array([[3.0, 0, 0], [2, 0, 0]])))
    assert stats.fleiss_kappa(np.array([[3.0, 0, 0], [0, 0, 3]])) == 1


@pytest.mark.parametrize("votes", [1, 2, 3])
def test_however_few_votes_are_counted(votes: int) -> None:
    few = Votes(made_up(4), {"anna": ["left"] * votes})
    counted = tally.tally(few, resamples=100).results[-1]
    assert (counted.votes, sum(counted.counts)) == (votes, votes)


def test_rates_are_shares_of_votes_also_where_raters_did_unequal_much() -> None:
    comparison = made_up(20, images=2)
    votes = choose(comparison, {"anna": lambda p: "A" if p.image else "tie", "bo": lambda p: "B"})
    votes.choices["bo"] = votes.choices["bo"][:7]
    found = tally.tally(votes, resamples=50).results[0]
    assert (found.votes, found.counts, found.raters, found.prompts, found.pairs) == (
        27,
        (10, 10, 7),
        2,
        10,
        20,
    )
    assert found.half_tie.value == pytest.approx(15 / 27)
    assert found.ties_dropped.value == pytest.approx(10 / 17)
    assert found.positive.value == pytest.approx(10 / 27)


def test_the_interval_resamples_raters_and_prompts_as_owner_of_product_weights() -> None:
    """Against the definition: each vote weighs its rater's weight times its prompt's, in every resample."""
    comparison = made_up(12)
    generator = np.random.default_rng(1)
    votes = choose(comparison, {r: lambda p: ("A", "tie", "B")[generator.integers(3)] for r in "abcd"})
    votes.choices["d"] = votes.choices["d"][:5]
    weight_NR = stats.weights(4, 300, 0, "raters")
    weight_NP = stats.weights(12, 300, 0, f"prompts of {SET}")
    value = {"A": 1.0, "tie": 0.5, "B": 0.0}
    draws = []
    for of_raters, of_prompts in zip(weight_NR, weight_NP, strict=True):
        won = total = 0.0
        for rater, shown, choice in votes.each():
            weight = of_raters["abcd".index(rater)] * of_prompts[shown.pair]
            won, total = won + weight * value[shown.prefers(choice)], total + weight
        draws.append(won / total)
    found = tally.tally(votes, resamples=300).results[0].half_tie
    counts_RPS = tally.counts_RPS(tally.table(votes))
    known = stats.precision_of_raters(
        stats.influence(counts_RPS, tally.half_tie_rate, [SET] * 12), [SET] * 12
    )
    tailed_N = stats.with_tails(found.value, np.array(draws), known)
    assert found[1:] == pytest.approx(tuple(np.quantile(tailed_N, [0.025, 0.975])))


def test_prompts_are_resampled_inside_their_set() -> None:
    weight_NP = tally.prompt_weights(["x"] * 30 + ["y"] * 10, 20, 0)
    assert weight_NP.shape == (20, 40)
    np.testing.assert_allclose(weight_NP[:, :30].sum(axis=1), 0.75)
    np.testing.assert_allclose(weight_NP[:, 30:].sum(axis=1), 0.25)


@pytest.mark.parametrize("raters", [2, 3, 8])
def test_the_interval_covers_where_raters_and_prompts_have_tastes_of_their_own(raters: int) -> None:
    """40 prompts, effects of both: the crossed interval covers the true rate, that of independent votes does not."""
    generator = np.random.default_rng(raters)
    covered, naive, studies = 0, 0, 120
    for _ in range(studies):
        logit = 0.8 * generator.normal(size=(raters, 1)) + 0.8 * generator.normal(size=(1, 40))
        won = generator.random((raters, 40)) < 1 / (1 + np.exp(-logit))
        votes = pd.DataFrame(
            [
                (f"r{r}", p, (SET, f"p{p:02d}"), "A" if won[r, p] else "B")
                for r in range(raters)
                for p in range(40)
            ],
            columns=["rater", "pair", "prompt", "prefers"],
        )
        low, high = tally.result(SET, votes, resamples=400).half_tie[1:]
        covered += low <= 0.5 <= high
        iid = stats.wilson(int(won.sum()), won.size)
        naive += iid.low <= 0.5 <= iid.high
    assert covered / studies > 0.93
    assert naive / studies < 0.85


def test_few_raters_of_few_prompts_prefer_nobody() -> None:
    """Five prompts won and one tied: .06 by the exact sign test."""
    votes = choose(made_up(6), {r: lambda p: "tie" if p.prompt_id == "p005" else "A" for r in "ab"})
    counted = tally.tally(votes, resamples=200)
    assert counted.results[-1].sign_p == pytest.approx(2 / 2**5)
    assert "are not distinguished**" in tally.verdict(counted)
    assert "here 0.062." in tally.markdown(counted, "x")


def test_one_prompt_has_votes_and_no_interval() -> None:
    votes = choose(made_up(2, images=2), {r: lambda p: "A" if p.image else "tie" for r in "abc"})
    counted = tally.tally(votes, resamples=100)
    assert counted.results[-1].half_tie.value == 0.75
    assert math.isnan(counted.results[-1].half_tie.low)
    assert "are not distinguished**" in tally.verdict(counted)
    assert "nan" not in tally.markdown(counted, "x")
    everywhere = choose(made_up(1), {r: lambda p: "A" for r in "abc"})
    counted = tally.tally(everywhere, resamples=100)
    assert counted.results[-1].half_tie.value == 1
    assert all(
        math.isnan(getattr(counted.results[-1], rate).low)
        for rate in ("half_tie", "ties_dropped", "positive")
    )
    assert "A wins 100.0 % of 3 votes" in tally.verdict(counted)


def test_a_set_of_one_prompt_is_resampled_with_others() -> None:
    """By itself it cannot be: two sets of one prompt each had an interval without width."""
    one, other = made_up(1), made_up(1, prompt_set=OTHER)
    both = Comparison(A, B, ("s", "s"), {**one.prompts, **other.prompts}, (*one.pairs, *other.pairs), 0, 0)
    votes = choose(both, {"anna": lambda p: "A" if p.prompt_set == SET else "tie"})
    overall = tally.tally(votes, resamples=1000).results[-1]
    assert overall.half_tie.value == 0.75
    assert overall.half_tie.low < 0.1 and overall.half_tie.high == 1
    weight_NP = tally.prompt_weights(["x+z", "y", "y", "x+z"], 50, 0)
    np.testing.assert_allclose(weight_NP[:, [0, 3]].sum(axis=1), 0.5)


def test_without_ties_only_prompts_with_a_decided_vote_are_counted() -> None:
    """Two prompts of a hundred are decided, for A: no more is known of it than two say."""
    votes = choose(made_up(100), {r: lambda p: "A" if p.prompt_id < "p002" else "tie" for r in "abc"})
    found = tally.tally(votes, resamples=100).results[0]
    assert found.ties_dropped == stats.wilson(2, 2)
    assert found.half_tie.value == pytest.approx(0.51)
    votes = choose(made_up(100), {r: lambda p: "A" if p.prompt_id < "p001" else "tie" for r in "abc"})
    assert math.isnan(tally.tally(votes, resamples=100).results[0].ties_dropped.low)


def test_a_against_a_is_exactly_half_and_not_distinguished() -> None:
    votes = choose(made_up(10), {rater: lambda p: "tie" for rater in "abc"})
    counted = tally.tally(votes, resamples=100)
    assert counted.results[0].half_tie == (0.5, 0.5, 0.5)
    assert counted.results[0].p == 1
    assert "are not distinguished**: A wins 50.0 [50.0, 50.0] %" in tally.verdict(counted)


def test_swapping_a_and_b_mirrors_everything() -> None:
    comparison, generator = made_up(15), np.random.default_rng(2)
    wanted = {(r, i): ("A", "A", "tie", "B")[generator.integers(4)] for r in "abc" for i in range(15)}
    mirror = {"A": "B", "B": "A", "tie": "tie"}

    def cast(swap: bool) -> Votes:
        def of(rater: str) -> Callable[[Pair], str]:
            return lambda p: mirror[w] if (w := wanted[rater, int(p.prompt_id[1:])]) and swap else w

        return choose(comparison, {rater: of(rater) for rater in "abc"})

    one, other = (tally.tally(cast(swap), resamples=200).results[0] for swap in (False, True))
    for rate in ("half_tie", "ties_dropped"):
        x, y = getattr(one, rate), getattr(other, rate)
        assert x == pytest.approx((1 - y.value, 1 - y.high, 1 - y.low))
    assert one.p == pytest.approx(other.p)
    assert one.kappa == pytest.approx(other.kappa)
    assert tally.shares(cast(False)) == pytest.approx([1 - share for share in tally.shares(cast(True))])


def test_a_rate_that_cannot_vary_has_wilsons_interval() -> None:
    counted = tally.tally(choose(made_up(10), {rater: lambda p: "A" for rater in "abc"}), resamples=100)
    assert counted.results[0].half_tie == stats.wilson(10, 10)
    assert f"**{A} is preferred to {B}**" in tally.verdict(counted)


# -------------------------------------------------------------------------------------------- what is printed


def test_failed_checks_are_counted_for_each_rater_and_no_vote_is_left_out(tmp_path: Path) -> None:
    comparison = made_up(20, checks=5)
    votes = choose(comparison, {"anna": lambda p: "A", "bo": lambda p: "A"})
    votes.choices["bo"] = ["left"] * 24
    failed = sum(s.answer == "right" for s in schedule(comparison, "bo")[:24])
    checks = sum(s.answer is not None for s in schedule(comparison, "bo")[:24])
    assert 0 < failed < checks
    anna, bo = tally.tally(votes, resamples=20).raters
    assert (anna.votes, anna.checks, anna.failed) == (20, 5, 0)
    assert (bo.votes, bo.checks, bo.failed, bo.left) == (24 - checks, checks, failed, 24 - checks)
    text = tally.write(votes, tmp_path / "votes.csv", "python -m evals tally votes.jsonl")
    assert f"| {failed} of {checks} |" in text
    assert f"Attention checks: {failed} of {5 + checks} failed; nobody's votes are left out" in text
    assert "Not done with all 25: bo." in text
    assert (tmp_path / "votes.md").read_text() == text


def test_the_histogram_and_what_was_not_voted_on() -> None:
    votes = choose(made_up(4), {r: lambda p: "A" if p.prompt_id < "p002" else "B" for r in "abcde"})
    assert tally.tally(votes, resamples=20).histogram == {(5, 5): 2, (0, 5): 2}
    votes = Votes(made_up(4), {"anna": ["left"]})
    counted = tally.tally(votes, resamples=20)
    assert counted.unvoted == 3
    assert "One rater" in tally.markdown(counted, "x") and "One prompt" in tally.markdown(counted, "x")
    votes = choose(made_up(2), {"anna": lambda p: "A", "bo": lambda p: "B"})
    assert "| −1.000 |" in tally.markdown(tally.tally(votes, resamples=20), "x")
    with pytest.raises(ValueError, match="nobody has voted"):
        tally.tally(Votes(made_up(4)))


def test_each_prompt_set_has_its_line_and_all_the_last() -> None:
    one, other = made_up(6), made_up(3, prompt_set=OTHER)
    both = Comparison(A, B, ("s", "s"), {**one.prompts, **other.prompts}, (*one.pairs, *other.pairs), 0, 0)
    votes = choose(both, {r: lambda p: "A" if p.prompt_set == SET else "B" for r in "ab"})
    found = {r.prompt_set: r.half_tie.value for r in tally.tally(votes, resamples=20).results}
    assert found == {SET: 1.0, OTHER: 0.0, "all": pytest.approx(2 / 3)}


def test_logs_of_one_comparison_are_counted_together(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for path, rater, seed in zip(paths, ("anna", "bo", "anna"), (0, 0, 0), strict=True):
        log = Log(path, made_up(4, seed=seed))
        log.vote(rater, "left")
        log.close()
    assert tally.read(paths[:2]).choices == {"anna": ["left"], "bo": ["left"]}
    with pytest.raises(ValueError, match=r"the rater anna is in .*0\.jsonl and in .*2\.jsonl"):
        tally.read(paths)
    Log(tmp_path / "other.jsonl", made_up(5)).close()
    with pytest.raises(ValueError, match="are logs of two comparisons"):
        tally.read([paths[0], tmp_path / "other.jsonl"])


# ----------------------------------------------------------------------------------------------------- rows


def test_votes_are_rows_like_any_judges(tmp_path: Path) -> None:
    comparison = made_up(5)
    verdicts = dict(zip((f"p{i:03d}" for i in range(5)), ("AAA", "AAB", "ABt", "BBt", "ttt"), strict=True))
    of = {"A": "A", "B": "B", "t": "tie"}
    votes = choose(comparison, {str(r): lambda p, r=r: of[verdicts[p.prompt_id][r]] for r in range(3)})
    tally.write(votes, tmp_path / "votes.csv", "x")
    found = rows.read([tmp_path / "votes.csv"])
    assert set(found["experiment"]) == {"joint", "base"}
    mine, base = (found[found["experiment"] == name].set_index("prompt_id") for name in ("joint", "base"))
    assert mine["value"].tolist() == pytest.approx([1, 2 / 3, 0.5, 1 / 6, 0.5], abs=1e-6)
    np.testing.assert_allclose(mine["value"] + base["value"], 1, atol=1e-6)
    assert (mine["picture"].tolist(), base["picture"].tolist()) == (
        [f"a{i}" for i in range(5)],
        [f"b{i}" for i in range(5)],
    )
    cells = compare.compare(found, resamples=50)
    assert {e.metric for e in cells.of(experiment="joint")} == {"win_rate_human"}
    outcome = cells.outcomes[0]
    assert (outcome.win, outcome.tie, outcome.loss) == pytest.approx((6 / 15, 5 / 15, 4 / 15))
    assert cells.of(experiment="joint")[0].value.value == pytest.approx(8.5 / 15)


def test_compare_has_the_rate_and_the_interval_of_the_tally(tmp_path: Path) -> None:
    comparison, generator = made_up(30), np.random.default_rng(4)
    votes = choose(
        comparison, {r: lambda p: ("A", "A", "tie", "B")[generator.integers(4)] for r in ("x", "y", "z")}
    )
    votes.choices["z"] = votes.choices["z"][:20]  # not done
    tally.write(votes, tmp_path / "votes.csv", "x")
    found = rows.read([tmp_path / "votes.csv"])
    assert rows.begins_as_scores(tmp_path / "votes.csv")
    assert (rows.first_row(tmp_path / "votes.csv") or {})["scorer"] == "human_votes"
    told = tally.tally(votes).results[0]
    cells = compare.compare(found)
    (cell,) = cells.of(experiment="joint")
    assert cell.value.value == pytest.approx(told.half_tie.value)
    assert cell.value[1:] == pytest.approx(told.half_tie[1:])
    assert (cell.p, cell.p_test) == pytest.approx((told.p, max(told.p, told.sign_p)))
    assert (cell.seeds, cell.prompts, cell.images, cell.missing) == (1, 30, 30, 0)
    (note,) = [remark for remark in cells.remarks if remark.startswith("Human votes on joint")]
    assert "of the votes of 3 raters" in note and "raters and prompts are resampled" in note
    # of rows that do not say who voted it is over prompts, and says so
    alone = compare.compare(found.drop(columns=rows.RATERS))
    (note,) = [remark for remark in alone.remarks if remark.startswith("Human votes on joint")]
    assert "raters are no cluster" in note


def test_of_few_prompts_the_exact_test_of_votes_is_kept() -> None:
    """Five prompts won and one tied by all: no resample says otherwise, .06 by the exact sign test."""
    votes = choose(made_up(6), {r: lambda p: "tie" if p.prompt_id == "p005" else "A" for r in "ab"})
    (cell,) = compare.compare(tally.rows_of(votes).assign(file="x"), resamples=200).of(experiment="joint")
    assert (cell.test, cell.p_test) == ("sign", pytest.approx(2 / 2**5))


def test_swapping_the_sides_of_a_vote_negates_the_difference(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    votes = choose(made_up(12), {r: lambda p: ("A", "A", "tie", "B")[generator.integers(4)] for r in "abc"})
    tally.write(votes, tmp_path / "votes.csv", "x")
    found = rows.read([tmp_path / "votes.csv"])
    (one,) = compare.compare(found, resamples=500).of(experiment="joint")
    (other,) = compare.compare(found, resamples=500, against="joint").of(experiment="base")
    assert other.value == pytest.approx((1 - one.value.value, 1 - one.value.high, 1 - one.value.low))
    assert other.p == pytest.approx(one.p)


def test_rows_of_several_comparisons_are_not_told_by_rater(tmp_path: Path) -> None:
    votes = choose(made_up(3), {"anna": lambda p: "A", "bo": lambda p: "tie"})
    found = tally.rows_of(votes)
    by_rater = rows.by_rater(found)
    assert by_rater is not None and (by_rater.seeds, by_rater.raters) == (1, 2)
    mine = by_rater.rows[by_rater.rows["experiment"] == "joint"]
    assert mine.groupby("seed")["value"].mean().to_dict() == {0: 1.0, 1: 0.5}
    other = found.assign(version="01234567")
    assert rows.by_rater(pd.concat([found, other], ignore_index=True)) is None
    assert rows.by_rater(found.assign(raters="")) is None
    assert rows.by_rater(found.drop(columns="raters")) is None
    assert rows.by_rater(found.assign(scorer="clip_judge")) is None
    # seeds of which it is not known that they met
    more = found[found["experiment"] == "joint"].assign(seed=1)
    assert rows.by_rater(pd.concat([found, more], ignore_index=True)) is None
    crossed = pd.concat([found, found.assign(seed=1, raters=found["raters"][::-1].to_list())])
    assert rows.by_rater(crossed.reset_index(drop=True)) is not None
    askew = crossed.assign(raters=crossed["raters"].where(crossed["seed"] == 0, "0a1b2c3d=w"))
    assert rows.by_rater(askew.reset_index(drop=True)) is None
    for said in ("wt", "anna=w", "0a1b2c3d=x", "0a1b2c3d=w;"):
        (tmp_path / "v.csv").write_text(found.assign(raters=said).to_csv(index=False))
        with pytest.raises(
            ValueError, match=r"v.csv: line 2: raters must be RATER=VOTE .*`python -m evals tally`"
        ):
            rows.read([tmp_path / "v.csv"])


def on_seeds(
    folder: Path, prefers: Sequence[Mapping[str, Callable[[Pair], str]]], pairs: int
) -> pd.DataFrame:
    """Rows as read of votes on training seeds 0, 1 ... of joint, each beside the one base."""
    paths = []
    for seed, of_seed in enumerate(prefers):
        votes = choose(replace(made_up(pairs), a=f"joint-miniature-{seed}"), of_seed)
        paths.append(folder / f"votes-{seed}.csv")
        rows.write(tally.rows_of(votes), paths[-1])
    return rows.read(paths)


def code(rater: str) -> str:
    return hashlib.sha256(rater.encode()).hexdigest()[:8]


def test_a_base_that_met_several_training_seeds_is_read(tmp_path: Path) -> None:
    """Its rows of both would be the same row twice; the votes of a file that is given again are."""
    found = on_seeds(tmp_path, [{"anna": lambda p: "A"}, {"anna": lambda p: "tie"}], 3)
    values = found.groupby(["experiment", "seed"])["value"].mean().to_dict()
    assert values == {("joint", 0): 1.0, ("joint", 1): 0.5, ("base", 0): 0.0, ("base", 1): 0.5}
    (tmp_path / "again.csv").write_bytes((tmp_path / "votes-0.csv").read_bytes())
    with pytest.raises(ValueError, match="two human_votes scores of joint seed 0"):
        rows.read([tmp_path / "votes-0.csv", tmp_path / "again.csv"])


def test_raters_of_several_training_seeds_are_known_again(tmp_path: Path) -> None:
    """By name, also where their places differ: bo is the second of the one vote and the first of the other."""
    always = {"A": lambda p: "A", "tie": lambda p: "tie", "B": lambda p: "B"}
    found = on_seeds(
        tmp_path,
        [{"anna": always["A"], "bo": always["tie"]}, {"bo": always["B"], "cy": always["A"]}],
        4,
    )
    voices = rows.by_rater(found)
    assert voices is not None and (voices.seeds, voices.raters) == (2, 3)
    mine = voices.rows[voices.rows["experiment"] == "joint"]
    said = mine.groupby("seed")["value"].mean()
    names = [*sorted(("anna", "bo"), key=code), "cy"]  # both have been first; cy never was
    expected = {("anna", 0): 1.0, ("bo", 0): 0.5, ("bo", 1): 0.0, ("cy", 1): 1.0}
    for seed in range(2):
        for place, name in enumerate(names):
            assert said[seed * 3 + place] == pytest.approx(expected.get((name, seed), math.nan), nan_ok=True)
    assert len(mine) == 2 * 3 * 4
    swapped = rows.by_rater(found[::-1])
    assert swapped is not None  # the order of files changes nobody's number
    other = swapped.rows[swapped.rows["experiment"] == "joint"].groupby("seed")["value"].mean()
    pd.testing.assert_series_equal(said, other)
    assert "anna" not in (tmp_path / "votes-0.csv").read_text()


def test_votes_on_several_training_seeds_keep_their_raters(tmp_path: Path) -> None:
    """Against the definition: a vote weighs its seed's weight times its rater's times its prompt's, in every resample."""
    generator, resamples = np.random.default_rng(8), 300

    def wanted(_: Pair) -> str:
        return ("A", "A", "tie", "B")[generator.integers(4)]

    found = on_seeds(tmp_path, [dict.fromkeys("abc", wanted), dict.fromkeys("abd", wanted)], 12)
    made = compare.compare(found, resamples=resamples)
    (cell,) = made.of(experiment="joint")
    raters = ["a", "b", *sorted("cd", key=code)]
    weight_NR = stats.weights(2, resamples, 0, "seeds of base and joint")
    weight_NK = stats.weights(4, resamples, 0, "raters")
    weight_NP = stats.weights(12, resamples, 0, f"prompts of {SET}")
    counted, cast = np.zeros((resamples, 2)), np.full((2, 4, 12, 3), math.nan)
    for line in found[found["experiment"] == "joint"].itertuples():
        for one in line.raters.split(";"):
            rater, said = [*map(code, raters)].index(one[:8]), one[9:]
            prompt = int(line.prompt_id[1:])
            weight_N = weight_NR[:, line.seed] * weight_NK[:, rater] * weight_NP[:, prompt]
            counted += np.outer(weight_N, [{"w": 1.0, "t": 0.5, "l": 0.0}[said], 1.0])
            cast[line.seed, rater, prompt] = [said == "w", said == "t", said == "l"]
    value = np.nansum(cast[..., 0] + cast[..., 1] / 2) / np.isfinite(cast[..., 0]).sum()
    assert cell.value.value == pytest.approx(value)
    known = stats.precision_of_raters(
        stats.influence(cast.reshape(8, 12, 3), metrics.load("win_rate_human").finish), None, 4
    )
    counted = counted[counted[:, 1] > 0]  # else nobody who voted on that seed was drawn
    tailed_N = stats.with_tails(value, counted[:, 0] / counted[:, 1], known)
    assert cell.value[1:] == pytest.approx(tuple(np.clip(np.quantile(tailed_N, [0.025, 0.975]), 0, 1)))
    assert (cell.seeds, cell.prompts, cell.images) == (2, 12, 12)
    (note,) = [remark for remark in made.remarks if remark.startswith("Human votes on joint")]
    assert "of the votes of 4 raters, on 2 training seeds, " in note
    assert note.endswith("training seeds, raters and prompts are resampled.")
    # of rows that do not say who voted it is of majorities, and says why
    alone = compare.compare(found.drop(columns=rows.RATERS), resamples=resamples)
    assert "some rows do not say who voted" in "".join(alone.remarks)
    (of_majorities,) = alone.of(experiment="joint")
    assert of_majorities.value.value != pytest.approx(value)


def test_votes_are_taken_apart_by_rater_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For cells, panel and foot together."""
    found = tally.rows_of(choose(made_up(6), {r: lambda p: "A" for r in "ab"})).assign(file="x")
    asked, by_rater = [], rows.by_rater
    monkeypatch.setattr(rows, "by_rater", lambda votes: asked.append(len(votes)) or by_rater(votes))
    made = compare.compare(found, resamples=50)
    assert asked == [len(found)]
    assert "of the votes of 2 raters" in "".join(made.remarks)


def test_a_base_that_every_seed_repeats_is_counted_once_beside_votes(tmp_path: Path) -> None:
    """Its votes differ between the training seeds that it met, and its scores do not."""
    votes = on_seeds(tmp_path, [{"anna": lambda p: "A"}, {"anna": lambda p: "tie"}], 8)
    scored = study(prompts=8, images=1, seeds=(0, 1), experiments=("base", "joint")).assign(file="x")
    scored = scored[scored["prompt_set"] == SET]
    base = scored[scored["experiment"] == "base"]
    repeated = [scored, base.assign(seed=1), base.assign(seed=2)]
    once, made = (
        compare.compare(pd.concat([*some, votes], ignore_index=True), resamples=100)
        for some in ([scored], repeated)
    )
    assert [*map(repr, made.estimates)] == [*map(repr, once.estimates)]
    assert repr(made.panel) == repr(once.panel) and made.panel.agreements
    (judge,) = made.of(experiment="joint", metric="win_rate_judge")
    assert judge.seeds == 2


def test_a_judge_beside_people_who_voted_on_two_seeds(tmp_path: Path) -> None:
    """The panel's rate of people is that of the tables."""
    generator = np.random.default_rng(3)
    prefers = [{r: lambda p: ("A", "A", "A", "tie")[generator.integers(4)] for r in "abc"} for _ in range(2)]
    found = on_seeds(tmp_path, prefers, 40)
    judge = found.assign(scorer="imagereward", version="0badc0de", raters="")
    judge["value"] = generator.normal(size=len(judge)) - 3 * (judge["experiment"] == "joint")
    made = compare.compare(pd.concat([found, judge], ignore_index=True), resamples=500)
    (flip,) = made.panel.flips
    assert flip.first == "joint"
    (people,) = flip.for_first
    (cell,) = made.of(experiment="joint", metric="win_rate_human")
    assert people.seeds == 2
    assert people.rate == pytest.approx(cell.value)


@pytest.mark.parametrize("shared", ["all", "some", "none"])
@pytest.mark.parametrize(("seeds", "raters"), [(2, 3), (3, 4)])
def test_intervals_cover_where_seeds_raters_and_prompts_differ(seeds: int, raters: int, shared: str) -> None:
    """The same raters on each seed, half of them, or others; each pair's majority over seeds and prompts alone misses where people are the same."""
    generator, prompts, studies = np.random.default_rng(seeds), 40, 150
    new = {"all": 0, "some": raters // 2, "none": raters}[shared]
    people = raters + new * (seeds - 1)
    voted_RK = np.zeros((seeds, people), dtype=bool)
    for seed in range(seeds):
        voted_RK[seed, : raters - new] = voted_RK[seed, raters - new + new * seed :][:new] = True
    resampler = stats.Resampler(200, 0, {})
    sample = resampler.prompts(SET, [str(prompt) for prompt in range(prompts)])
    covered = naive = 0
    for _ in range(studies):
        logit = 0.3 * generator.normal(size=(seeds, 1, 1)) + 0.8 * generator.normal(size=(1, people, 1))
        logit = logit + 0.8 * generator.normal(size=(1, 1, prompts))
        logit = logit + 0.3 * generator.normal(size=(seeds, 1, prompts))
        won = (generator.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(float)
        won[~voted_RK] = math.nan
        values_UPS = won.reshape(-1, prompts, 1)
        found = stats.resampled(values_UPS, metrics.first, resampler.raters("s", seeds, people), sample)
        rate, _ = stats.relative(replace(found, raters=people), 0.5, share=True)
        covered += rate.low <= 0.5 <= rate.high
        majority_RPS = (np.sign(np.nanmean(won, axis=1) - 0.5) / 2 + 0.5)[:, :, None]
        plain = stats.resampled(majority_RPS, metrics.first, resampler.seeds("s", seeds), sample)
        rate, _ = stats.relative(plain, 0.5, share=True)
        naive += rate.low <= 0.5 <= rate.high
    assert covered / studies > 0.92, (covered, naive)
    assert shared != "all" or naive / studies < 0.88


def test_raters_who_vote_alike_leave_what_seeds_and_prompts_show() -> None:
    """And seeds of which the votes are the same what raters and prompts do: three levels are two where one does not vary."""
    influence_RP = np.random.default_rng(5).normal(size=(3, 20))
    influence_RP -= influence_RP.mean()
    of_two = stats.precision(influence_RP)
    alike = stats.precision_of_raters(np.repeat(influence_RP, 4, axis=0), None, 4)
    assert alike.standard_error == pytest.approx(of_two.standard_error)
    assert (alike.of_raters, alike.seed_degrees) == (pytest.approx(0), 2)
    copies = stats.precision_of_raters(np.tile(influence_RP, (4, 1)), None, 3)
    assert copies.standard_error == pytest.approx(of_two.standard_error)
    assert (copies.of_seeds, copies.rater_degrees) == (pytest.approx(0), 2)
    assert stats.precision_of_raters(influence_RP, None, 1) == of_two
    assert stats.precision_of_raters(influence_RP, None, 3) == stats.precision_of_raters(influence_RP)


def test_what_seeds_raters_and_prompts_show_is_an_analysis_of_variance() -> None:
    """Beside the mean squares of a complete table of three crossed factors, by their textbook sums."""
    generator, (R, K, P) = np.random.default_rng(6), (4, 5, 30)
    x = generator.normal(size=(R, 1, 1)) + generator.normal(size=(1, K, 1)) + generator.normal(size=(1, 1, P))
    x = x + generator.normal(size=(R, K, P))
    grand, n = x.mean(), R * K * P
    square = {}
    for name, axes in {"R": (1, 2), "K": (0, 2), "P": (0, 1), "RK": (2,), "RP": (1,), "KP": (0,)}.items():
        square[name] = float(np.sum((x.mean(axis=axes, keepdims=True) - grand) ** 2)) * np.prod(
            [x.shape[axis] for axis in axes]
        )
    for name in ("RK", "RP", "KP"):
        square[name] -= square[name[0]] + square[name[1]]
    square["RKP"] = float(np.sum((x - grand) ** 2)) - sum(square.values())
    free = {"R": R - 1, "K": K - 1, "P": P - 1}
    mean = {name: square[name] / np.prod([free[one] for one in name]) for name in square}
    # by the expected mean squares of random effects, each over the table's size
    parts = {two: max(mean[two] - mean["RKP"], 0) for two in ("RK", "RP", "KP")}
    known = stats.precision_of_raters(stats.influence(x.reshape(R * K, P, 1), metrics.first), None, K)
    alone = {
        one: max(mean[one] - mean["RKP"] - sum(part for two, part in parts.items() if one in two), 0)
        for one in "RKP"
    }
    whole = sum(alone.values()) + sum(parts.values()) + mean["RKP"]
    assert known.standard_error**2 == pytest.approx(whole / n)
    assert known.of_seeds == pytest.approx((alone["R"] + parts["RP"]) / whole)
    assert known.of_raters == pytest.approx((alone["K"] + parts["RK"] + parts["KP"] + mean["RKP"]) / whole)
    assert known.of_bootstrap == pytest.approx(whole / sum(mean.values()))


def test_packed_votes_say_who_voted(tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    votes = choose(made_up(8), {r: lambda p: ("A", "A", "tie", "B")[generator.integers(4)] for r in "abc"})
    votes.choices["c"] = votes.choices["c"][:5]
    plain, packed = tmp_path / "votes.csv", tmp_path / "all.csv.xz"
    tally.write(votes, plain, "x")
    others = study(prompts=3, images=2, experiments=("base", "joint"), seeds=(0,))
    others = others.assign(suite="s", prompt_id="x" + others["prompt_id"])
    rows.write(others, tmp_path / "scores.csv")
    options = ["pack", str(plain), str(tmp_path / "scores.csv"), "--out", str(packed)]
    assert CliRunner().invoke(main, options).exit_code == 0
    one, other = (
        rows.read(paths).drop(columns="file").sort_values(list(rows.KEY), ignore_index=True)
        for paths in ([plain, tmp_path / "scores.csv"], [packed])
    )
    pd.testing.assert_frame_equal(one, other)
    people = other[other["scorer"] == rows.HUMAN].assign(file="x")
    (unpacked,) = compare.compare(people, resamples=200).of(experiment="joint")
    (apart,) = compare.compare(rows.read([plain]), resamples=200).of(experiment="joint")
    assert unpacked.value == apart.value
    rows.write(others, tmp_path / "without.csv.xz")
    rows.write(others.assign(raters=""), tmp_path / "none.csv.xz")
    assert (tmp_path / "without.csv.xz").read_bytes() == (tmp_path / "none.csv.xz").read_bytes()


def test_compare_covers_where_raters_have_tastes_of_their_own() -> None:
    """As the tally's interval does; that over prompts alone, of each pair's majority, does not."""
    generator, raters = np.random.default_rng(13), "abc"
    covered, naive, studies = 0, 0, 60
    for _ in range(studies):
        logit = 0.8 * generator.normal(size=(len(raters), 1)) + 0.8 * generator.normal(size=(1, 40))
        won = generator.random((len(raters), 40)) < 1 / (1 + np.exp(-logit))
        cast = {
            rater: lambda p, of=won[place]: "A" if of[int(p.prompt_id[1:])] else "B"
            for place, rater in enumerate(raters)
        }
        found = tally.rows_of(choose(made_up(40), cast)).assign(file="x")
        ends = [
            compare.compare(one, resamples=200).of(experiment="joint")[0].value[1:]
            for one in (found, found.drop(columns=rows.RATERS))
        ]
        covered += ends[0][0] <= 0.5 <= ends[0][1]
        naive += ends[1][0] <= 0.5 <= ends[1][1]
    assert covered / studies > 0.92, (covered, naive)
    assert naive / studies < 0.85


def test_people_on_the_panel_are_a_cluster_too(tmp_path: Path) -> None:
    """Two raters who differ do not settle anything; their majorities, over many prompts, would seem to."""
    cast = {"anna": lambda p: "A", "bo": lambda p: "A" if int(p.prompt_id[1:]) % 3 == 0 else "tie"}
    found = tally.rows_of(choose(made_up(60), cast))
    judge = found.assign(scorer="imagereward", version="0badc0de", raters="")
    judge["value"] = np.random.default_rng(6).normal(size=len(judge)) - 3 * (judge["experiment"] == "joint")
    both = pd.concat([found, judge], ignore_index=True).assign(file="x")
    made = compare.compare(both, resamples=500)
    (human,) = made.of(experiment="joint", metric="win_rate_human")
    assert human.value.low < 0.5
    assert human.test == "bootstrap" and human.p_test > 0.05  # the exact test over prompts has 1e-18
    assert not made.panel.flips
    alone = compare.compare(both.drop(columns=rows.RATERS), resamples=500).panel
    (flip,) = alone.flips
    assert [verdict.metric for verdict in flip.for_first] == ["win_rate_human"]
    # pictures are ordered by all raters together, as before
    assert made.panel.agreements == alone.agreements


def test_a_pair_without_votes_is_an_empty_value() -> None:
    found = tally.rows_of(Votes(made_up(3), {"anna": ["tie"]}))
    assert found["value"].notna().sum() == 2
    statistics = metrics.load("win_rate_human").statistics(
        *(found[found["experiment"] == name].reset_index(drop=True) for name in ("joint", "base"))
    )
    assert statistics["tie"].notna().sum() == 1


def test_rows_against_another_opponent_are_not_mixed(tmp_path: Path) -> None:
    votes = choose(made_up(3), {"anna": lambda p: "A"})
    tally.write(votes, tmp_path / "one.csv", "x")
    other = Votes(
        Comparison("x-miniature-0", "y-miniature-0", ("s", "s"), *list(vars(votes.comparison).values())[3:])
    )
    other.choices.update(votes.choices)
    tally.write(other, tmp_path / "two.csv", "x")
    with pytest.raises(ValueError, match=r"scorer human_votes has version .* cannot be compared"):
        rows.read([tmp_path / "one.csv", tmp_path / "two.csv"])


def test_who_is_called_a_is_no_other_judge() -> None:
    assert (
        tally._version("joint", "base") == tally._version("base", "joint") != tally._version("joint", "joint")
    )


def test_a_folder_that_is_no_runs_is_an_experiment_of_that_name() -> None:
    votes = choose(
        Comparison("photos of x", B, ("", "x:1"), {SET: "0" * 12}, made_up(2).pairs, 0, 0),
        {"a": lambda p: "A"},
    )
    assert set(tally.rows_of(votes)["experiment"]) == {"photos of x", "base"}


def test_votes_on_a_snapshot_are_its_runs(tmp_path: Path) -> None:
    """Its pictures lie in joint@40-miniature-0, and its scores are of joint@40: votes are compared beside them."""
    votes = choose(
        Comparison("joint@40-miniature-0", A, ("s", "s"), {SET: "0" * 12}, made_up(4).pairs, 0, 0),
        {"a": lambda p: "A"},
    )
    tally.write(votes, tmp_path / "votes.csv", "x")
    found = rows.read([tmp_path / "votes.csv"])
    runs = found[["experiment", "model", "seed"]].drop_duplicates()
    assert runs.to_numpy().tolist() == [["joint@40", "miniature", 0], ["joint", "miniature", 0]]
    cells = compare.compare(found, resamples=50, against="joint")
    assert cells.of(experiment="joint@40")[0].value.value == 1


# ----------------------------------------------------------------------------------------------------- HTTP


class Client:
    """Asks the server as a page does, or as somebody else would."""

    def __init__(self, server: vote.Server) -> None:
        self.server, self.port = server, server.server_address[1]

    def __call__(
        self, path: str, body: Any = None, headers: Mapping[str, str] = {}, secret: str | None = None
    ) -> tuple[int, Any]:
        address = f"http://127.0.0.1:{self.port}/{self.server.secret if secret is None else secret}/{path}"
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = ({"Content-Type": "application/json"} if body is not None else {}) | dict(headers)
        request = urllib.request.Request(address, data=content, headers=given)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                told = answer.read()
                return answer.status, json.loads(
                    told
                ) if answer.headers.get_content_subtype() == "json" else told
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def join(self, rater: str) -> Any:
        return self("join", {"rater": rater})[1]

    def vote(self, rater: str, position: int, choice: str) -> tuple[int, Any]:
        return self("vote", {"rater": rater, "position": position, "choice": choice})


@pytest.fixture
def server(folders: tuple[Path, Path], comparison: Comparison, tmp_path: Path) -> Iterator[vote.Server]:
    log = Log(tmp_path / "votes.jsonl", comparison)
    with vote.Server(vote.Booth(log, dict(zip("AB", folders, strict=True)))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    log.close()


@pytest.fixture
def ask(server: vote.Server) -> Client:
    return Client(server)


def log_of(server: vote.Server) -> Votes:
    return ballots.read(server.booth.log.path)


def test_voting_from_the_first_pair_to_the_last(server: vote.Server, ask: Client) -> None:
    shown = schedule(server.booth.log.comparison, "anna")
    state = ask.join(" Anna ")
    assert (state["rater"], state["position"], state["total"]) == ("anna", 0, len(shown))
    for position, choice in enumerate(("left", "right", "tie") * 2):
        assert state["text"] in {p.text for p in prompts.load(SET)}
        status, state = ask.vote("anna", position, choice)
        assert (status, state["position"]) == (200, position + 1)
    status, state = ask("undo", {"rater": "anna", "position": 5})
    assert (status, state["position"]) == (200, 5)
    for position in (5, 6, 7):
        _, state = ask.vote("anna", position, "right")
    assert state == {"rater": "anna", "position": 8, "total": 8}
    assert log_of(server).choices == {
        "anna": ["left", "right", "tie", "left", "right", "right", "right", "right"]
    }
    status, told = ask.vote("anna", 8, "left")
    assert (status, told["error"], told["state"]) == (409, "all pairs have your vote", state)


def test_a_vote_counts_once(server: vote.Server, ask: Client) -> None:
    ask.vote("anna", 0, "left")
    status, told = ask.vote("anna", 0, "right")
    assert (status, told["state"]["position"]) == (409, 1)
    status, told = ask("undo", {"rater": "anna", "position": 1})
    assert status == 409
    assert log_of(server).choices == {"anna": ["left"]}
    assert ask("undo", {"rater": "anna", "position": 0})[0] == 200
    status, told = ask("undo", {"rater": "anna", "position": 0})
    assert (status, told["state"]["position"]) == (409, 0)
    assert log_of(server).choices == {"anna": []}


def test_the_pictures_are_those_of_the_schedule(server: vote.Server, ask: Client) -> None:
    booth = server.booth
    comparison = booth.log.comparison
    ask.join("anna")
    key = vote._key("anna")
    noisy = 0
    for position, shown in enumerate(schedule(comparison, "anna")):
        pair = comparison.pairs[shown.pair]
        for side, what in (("left", shown.left), ("right", shown.right)):
            content = ask(f"picture/{key}/{position}/{side}")[1]
            path = layout.Index().path_of(booth.folders[what[0]], SET, pair.prompt_id, 0)
            same = np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(Image.open(path)))
            assert same == (not what.endswith(NOISE))
            noisy += not same
    assert noisy == comparison.checks == 2


def test_nothing_tells_a_rater_which_is_which(
    server: vote.Server, ask: Client, folders: tuple[Path, Path]
) -> None:
    """Neither the page, nor what it is told, nor the metadata of a picture, nor an address."""
    from PIL.PngImagePlugin import PngInfo

    for path in folders[0].rglob("*.png"):
        info = PngInfo()
        info.add_text("parameters", A)
        with Image.open(path) as picture:
            picture.load()
        picture.save(path, pnginfo=info, icc_profile=A.encode())
    seen = ask("")[1] + json.dumps(ask.join("anna")).encode()
    for position in range(8):
        for side in ("left", "right"):
            seen += ask(f"picture/{vote._key('anna')}/{position}/{side}")[1]
    assert A.encode() not in seen and B.encode() not in seen and b"joint" not in seen
    assert b"iCCP" not in seen, "a colour profile, which is compressed"
    states = [ask.join("anna").keys()] + [ask.vote("anna", i, "tie")[1].keys() for i in range(6)]
    assert all(keys == states[0] for keys in states), "a check looks like a pair"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "sentence"),
    [
        ("", None, {"Host": "evil.example"}, 403, "for this machine alone"),
        ("", None, {"Host": "127.0.0.1.evil.example:80"}, 403, "for this machine alone"),
        ("join", {"rater": "a"}, {"Origin": "http://evil.example"}, 403, "another page asks"),
        ("join", {"rater": "a"}, {"Origin": "null"}, 403, "another page asks"),
        ("join", b"x" * 1001, {}, 413, "at most 1000 bytes"),
        ("join", b"x" * 90_000, {}, 413, "at most 1000 bytes"),
        ("join", {"rater": "a"}, {"Content-Type": "text/plain"}, 415, "application/json"),
        ("join", b"{", {}, 400, "is JSON"),
        ("join", b"[" * 999, {}, 400, "is JSON"),
        ("join", b"\xff\xfe", {}, 400, "is JSON"),
        ("join", [], {}, 400, "a JSON object"),
        ("join", {}, {}, 400, "not the keys of join"),
        ("join", {"rater": "a", "x": 1}, {}, 400, "not the keys of join"),
        ("join", {"rater": "../a"}, {}, 400, "a name is 1 to 40"),
        ("vote", {"rater": "a", "position": 0, "choice": "up"}, {}, 400, "one of left, right, tie"),
        ("vote", {"rater": "a", "position": 0, "choice": ["left"]}, {}, 400, "one of left, right, tie"),
        ("vote", {"rater": "a", "position": "0", "choice": "left"}, {}, 400, "a whole number"),
        ("vote", {"rater": "a", "position": True, "choice": "left"}, {}, 400, "a whole number"),
        ("vote", {"rater": "a", "position": -1, "choice": "left"}, {}, 400, "a whole number"),
        (
            "vote",
            {"rater": "a", "position": 7, "choice": "left"},
            {},
            409,
            "number 8 is not what you are asked",
        ),
        ("vote", {"rater": "a", "position": 10**12, "choice": "left"}, {}, 400, "a whole number"),
        ("undo", {"rater": "a", "position": 3}, {}, 409, "number 4 is not your last vote"),
        ("votes", {"rater": "a"}, {}, 404, "nothing here"),
        ("join", None, {}, 404, "nothing here"),
        ("picture/0000000000000000/0/left", None, {}, 404, "no such picture"),
        (f"picture/{vote._key('anna')}/99/left", None, {}, 404, "no such picture"),
        (f"picture/{vote._key('anna')}/0/up", None, {}, 404, "nothing here"),
        (f"picture/{vote._key('anna')}/../../left", None, {}, 404, "nothing here"),
    ],
)
def test_what_is_refused(
    server: vote.Server,
    ask: Client,
    path: str,
    body: Any,
    headers: Mapping[str, str],
    status: int,
    sentence: str,
) -> None:
    ask.join("anna")
    before = server.booth.log.path.read_bytes()
    got, told = ask(path, body, headers)
    assert (got, sentence in told["error"]) == (status, True), told
    assert server.booth.log.path.read_bytes() == before


@pytest.mark.parametrize("secret", ["", "wrong", "é", "..", "A" * 5000])
def test_nothing_is_served_without_the_secret(ask: Client, secret: str) -> None:
    for path, body in (("", None), ("join", {"rater": "a"}), (f"picture/{vote._key('a')}/0/left", None)):
        status, told = ask(path, body, secret=urllib.request.quote(secret))
        assert (status, "not the one that the server printed" in told["error"]) == (403, True)


def test_a_body_without_a_length(ask: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", ask.port, timeout=20)
    for headers in (
        {"Content-Type": "application/json"},
        {"Transfer-Encoding": "chunked", "Content-Length": "2"},
    ):
        connection.putrequest("POST", f"/{ask.server.secret}/join")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 411
        connection.close()


def test_two_servers_have_two_secrets_and_one_port_has_one_server(server: vote.Server) -> None:
    with vote.Server(server.booth) as other:
        assert len(other.secret) >= 32 and other.secret != server.secret
    port = server.server_address[1]
    with pytest.raises(ValueError, match=f"--port {port} is taken: choose another"):
        vote.Server(server.booth, port)


def test_only_this_machine_is_listened_to(server: vote.Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_fetches_nothing_from_elsewhere(server: vote.Server, ask: Client) -> None:
    with urllib.request.urlopen(server.address, timeout=20) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert (
            answer.headers["Referrer-Policy"] == "no-referrer"
            and answer.headers["Cache-Control"] == "no-store"
        )
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert page.count(f'nonce="{nonce}"') == page.count("<script") + page.count("<style") == 2
    assert "://" not in page and 'src="' not in page and re.findall(r'href="(.*?)"', page) == ["data:,"]
    assert nonce.encode() not in ask("")[1], "a nonce is used once"


def test_raters_at_the_same_time(server: vote.Server, ask: Client) -> None:
    def all_of(rater: str) -> None:
        for position in range(8):
            assert ask.vote(rater, position, "left")[0] == 200

    threads = [threading.Thread(target=all_of, args=(f"r{i}",)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log_of(server).choices == {f"r{i}": ["left"] * 8 for i in range(5)}


def test_raters_without_end_are_refused(ask: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vote, "RATERS", 2)
    assert [ask("join", {"rater": name})[0] for name in ("a", "b", "a", "c")] == [200, 200, 200, 409]


def test_a_full_disk_and_a_changed_picture_are_said(
    server: vote.Server, ask: Client, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    ask.join("anna")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, told = ask.vote("anna", 0, "left")
    assert (status, "No space left" in told["error"]) == (500, True)
    assert ask.join("anna")["position"] == 0
    for folder in folders:
        for path in folder.rglob("*.png"):
            Image.new("RGB", (8, 8)).save(path)
    status, told = ask(f"picture/{vote._key('anna')}/0/left")
    assert (status, "is another picture than when the voting began" in told["error"]) == (500, True)
    assert "Traceback" not in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- command line


def start(folders: tuple[Path, Path], out: Path) -> tuple[subprocess.Popen[str], str]:
    """The command in a process of its own, and the address that it prints."""
    command = [sys.executable, "-m", "evals", "vote", *map(str, folders), "--out", str(out), "--checks", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def post(address: str, what: str, body: Any) -> Any:
    request = urllib.request.Request(
        address + what, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_a_killed_server_goes_on_where_it_was_and_a_stopped_one_writes_rows(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "votes.csv"
    process, address = start(folders, out)
    for position in range(3):
        post(address, "vote", {"rater": "anna", "position": position, "choice": "left"})
    process.kill()
    process.communicate()
    with out.with_suffix(".jsonl").open("ab") as log:
        log.write(b'{"rater": "anna", "vote": 3, "prompt')  # what a crash in the middle of a write leaves
    process, address = start(folders, out)
    assert post(address, "join", {"rater": "anna"})["position"] == 3
    for position in range(3, 6):
        post(address, "vote", {"rater": "anna", "position": position, "choice": "left"})
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "# Human votes" in printed and "6 votes by 1 rater" in printed
    assert len(rows.read([out])) == 12
    again = tmp_path / "again.csv"
    run = CliRunner().invoke(main, ["tally", str(out.with_suffix(".jsonl")), "--out", str(again)])
    assert run.exit_code == 0, run.output
    assert again.read_bytes() == out.read_bytes()


def bad(arguments: list[str]) -> str:
    run = CliRunner().invoke(main, arguments)
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1), run.output
    return run.stderr


def test_an_out_of_another_kind(folders: tuple[Path, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    voted(log, made_up(4))
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for arguments in (["vote", *map(str, folders)], ["tally", str(log)]):
        assert "must end in .csv" in bad([*arguments, "--out", str(tmp_path / "x.txt")])
        assert "is there, and no score file" in bad([*arguments, "--out", str(other)])
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        assert "is a folder" in bad([*arguments, "--out", str(tmp_path / "folder.csv")])
        notes = tmp_path / "notes.md"
        notes.write_text("# Notes on human votes\n")
        assert "notes.md is there, where the tables of --out" in bad(
            [*arguments, "--out", str(notes.with_suffix(".csv"))]
        )
        assert notes.read_text() == "# Notes on human votes\n"
        assert not notes.with_suffix(".csv").exists()
        notes.unlink()
    (tmp_path / "notes.jsonl").write_text("{}\n")
    assert "no log of votes" in bad(["vote", *map(str, folders), "--out", str(tmp_path / "notes.csv")])
    assert (tmp_path / "notes.jsonl").read_text() == "{}\n"
    assert "cannot be read" in bad(["tally", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "x.csv")])


def test_votes_replace_no_other_scores(folders: tuple[Path, Path], tmp_path: Path) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "scores.csv"
    voted(log, made_up(4))
    rows.write(study(prompts=1, images=1), out)
    before = out.read_bytes()
    for arguments in (["vote", *map(str, folders)], ["tally", str(log)]):
        assert "holds imagereward scores, and no votes" in bad([*arguments, "--out", str(out)])
    assert out.read_bytes() == before
    out.unlink()
    for _ in range(2):
        assert CliRunner().invoke(main, ["tally", str(log), "--out", str(out)]).exit_code == 0


def test_options_that_contradict_each_other(folders: tuple[Path, Path], tmp_path: Path) -> None:
    vote = ["vote", *map(str, folders), "--out", str(tmp_path / "x.csv")]
    assert "--prompt-set a is given twice" in bad([*vote, "--prompt-set", "a=3", "--prompt-set", "a"])
    run = CliRunner().invoke(main, [*vote, "--checks", "nan"])
    assert run.exit_code == 2
    assert "nan is not in the range" in run.stderr


@pytest.mark.parametrize(
    ("key", "value"), [("prompts", []), ("prompts", {}), ("seed", float("inf")), ("checks", float("inf"))]
)
def test_a_log_whose_first_line_is_no_comparison(tmp_path: Path, key: str, value: object) -> None:
    log = tmp_path / "log.jsonl"
    voted(log, made_up(4))
    first, *votes = log.read_text().splitlines(keepends=True)
    log.write_text(json.dumps(json.loads(first) | {key: value}) + "\n" + "".join(votes))
    with pytest.raises(
        ValueError, match=r"log\.jsonl:1: the log is damaged here, this line is no comparison"
    ):
        ballots.read(log)


# -------------------------------------------------------------------------------------------------- browser


READY = "!document.querySelector('#stage').hidden && !busy"


def at(position: int) -> str:
    return f"state.position === {position} && !busy"


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Browser]:
    with browser.started() as opened:
        yield opened


@pytest.fixture
def opened(page: browser.Browser, server: vote.Server) -> browser.Browser:
    page.viewport(1280, 800)
    page.dark(False)
    page.open("about:blank")
    page.errors.clear()
    page.open(server.address)
    return page


def enter(page: browser.Browser, name: str) -> None:
    page.click("#rater")
    page.type(name)
    page.press("Enter")
    page.wait_for(READY)


def test_a_rater_at_a_keyboard(opened: browser.Browser, server: vote.Server) -> None:
    enter(opened, "Anna")
    for position, key in enumerate("120 "):
        opened.press(key)
        opened.wait_for(at(position + 1))
    assert log_of(server).choices == {"anna": ["left", "right", "tie", "tie"]}
    opened.press("u")
    opened.wait_for(at(3))
    opened.press("Backspace")
    opened.wait_for(at(2))
    assert log_of(server).choices == {"anna": ["left", "right"]}
    opened.reload()
    opened.wait_for("state && " + at(2))
    for position in range(2, 8):
        opened.press("2")
        opened.wait_for(at(position + 1))
    assert opened.wait_for("!document.querySelector('#done').hidden")
    opened.press("u")
    opened.wait_for(at(7))
    opened.press("1")
    opened.wait_for(at(8))
    assert log_of(server).choices == {"anna": ["left", *["right"] * 6, "left"]}
    assert opened.errors == []


def test_a_rater_with_a_mouse_and_one_with_a_phone(opened: browser.Browser, server: vote.Server) -> None:
    enter(opened, "bo")
    opened.click("#left")
    opened.wait_for(at(1))
    opened.click(".choices [data-choice=right]")
    opened.wait_for(at(2))
    opened.click("[data-act=undo]")
    opened.wait_for(at(1))
    opened.press(" ")  # after a click on a button a space is again a tie
    opened.wait_for(at(2))
    opened.click("[data-act=pause]")
    assert opened.evaluate("document.querySelector('#status').textContent").startswith("Paused after 2 of 8")
    opened.press("Enter")
    opened.wait_for(READY)
    opened.viewport(360, 740, phone=True)
    opened.tap("#right")
    opened.wait_for(at(3))
    opened.tap(".choices [data-choice=tie]")
    opened.wait_for(at(4))
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    places = "[...document.querySelectorAll('#stage button')].map(b => b.getBoundingClientRect())"
    assert opened.evaluate(
        f"{places}.every(r => r.right <= innerWidth && r.bottom <= innerHeight && r.height >= 38)"
    )
    assert log_of(server).choices == {"bo": ["left", "tie", "right", "tie"]}
    assert opened.errors == []


def test_two_pictures_of_the_text_side_by_side_in_light_and_dark(
    opened: browser.Browser, server: vote.Server
) -> None:
    enter(opened, "cy")
    left, right = (opened.evaluate(f"(r => [r.x, r.y, r.width, r.height])({box})") for box in boxes())
    assert left[1:] == right[1:] and left[0] + left[2] < right[0] and left[2] > 300
    shown = schedule(server.booth.log.comparison, "cy")[0]
    texts = {p.id: p.text for p in prompts.load(SET)}
    asked = texts[server.booth.log.comparison.pairs[shown.pair].prompt_id]
    assert opened.evaluate("document.querySelector('#text').textContent") == asked
    colours = []
    for dark in (False, True):
        opened.dark(dark)
        colours.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(251, 250, 248)", "rgb(17, 19, 23)"]
    assert opened.errors == []


def boxes() -> list[str]:
    return [f"document.querySelector('#{side}').getBoundingClientRect()" for side in ("left", "right")]


def test_a_name_is_text_and_nothing_else(opened: browser.Browser, server: vote.Server) -> None:
    opened.click("#rater")
    opened.type("<img src=x>")
    opened.press("Enter")
    opened.wait_for("!document.querySelector('#error').hidden")
    assert "a name is 1 to 40" in opened.evaluate("document.querySelector('#said').textContent")
    assert opened.evaluate("document.querySelectorAll('#error img').length") == 0


def test_a_server_that_is_gone_is_said_and_the_vote_can_be_given_again(
    opened: browser.Browser, server: vote.Server
) -> None:
    enter(opened, "di")
    real = server.booth.vote

    def gone(*_: Any) -> Any:
        raise ConnectionResetError

    server.booth.vote = gone  # type: ignore[method-assign]
    opened.press("1")
    opened.wait_for("!document.querySelector('#error').hidden && !busy")
    assert "does not answer" in opened.evaluate("document.querySelector('#said').textContent")
    opened.press("2")  # nothing can be voted on until the page knows where it is
    assert opened.evaluate(at(0))
    server.booth.vote = real  # type: ignore[method-assign]
    opened.click("#again")
    opened.wait_for("document.querySelector('#error').hidden && !busy")
    opened.press("1")
    opened.wait_for(at(1))
    assert log_of(server).choices == {"di": ["left"]}


def test_a_second_page_of_one_rater_is_told_where_the_rater_is(
    opened: browser.Browser, server: vote.Server
) -> None:
    enter(opened, "ed")
    Client(server).vote("ed", 0, "tie")
    opened.press("1")
    opened.wait_for(at(1))
    assert log_of(server).choices == {"ed": ["tie"]}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L"])
def test_raters_see_what_scorers_read(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "0.png")
    seen = ballots.open_picture(tmp_path / "0.png")
    assert (np.asarray(seen) == pictures.read(tmp_path / "0.png").pixels_HWC).all()
    assert ballots.picture_hash(seen) == pictures.read(tmp_path / "0.png").digest
