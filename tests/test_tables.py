"""The tables as printed: Markdown, CSV, LaTeX and JSON, their foot, and the command that writes them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from evals import asides, compare, metrics, panel, report, report_data, rows, stats, tables, unscored
from evals.__main__ import main
from evals.compare import Comparison
from evals.stats import Interval
from tests.synthetic_rows import SETS, study

PREFERENCE, SCENES, PORTRAITS = SETS


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return study(prompts=6, images=4, seeds=(0, 1))


@pytest.fixture(scope="module")
def comparison(frame: pd.DataFrame) -> Comparison:
    return compare.compare(frame, resamples=300)


def test_a_markdown_table_has_a_rule_and_no_cell_that_splits() -> None:
    lines = [["a", "width"], ["x|y", "1"]]
    assert tables.markdown_table(lines) == "| a | width |\n| --- | --- |\n| x\\|y | 1 |"
    assert tables.markdown_table(lines, padded=True) == (
        "| a    | width |\n|------|-------|\n| x\\|y | 1     |"
    )


def test_files_are_written_whole_and_are_the_same_again(frame: pd.DataFrame, tmp_path: Path) -> None:
    rows.write(frame, tmp_path / "all.csv")
    tables.write([tmp_path / "all.csv"], tmp_path / "table.md", "make compare", resamples=200)
    text, numbers = (tmp_path / "table.md").read_text(), (tmp_path / "table.csv").read_text()
    tables.write([tmp_path / "all.csv"], tmp_path / "table.md", "make compare", resamples=200)
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "table.csv").read_text() == numbers
    header = text.split("## miniature")[0]
    for told in ("make compare", "200 resamples", "tie", "imagereward 0.1", "gold_utility 0a1b2c3d"):
        assert told in header
    assert "Holm" in text.split("## Counted")[1]
    tidy = pd.read_csv(tmp_path / "table.csv")
    assert {
        "value_low",
        "difference_high",
        "mark",
        "trained_on",
        "p_holm",
        "seeds",
        "prompts",
        "images",
    } <= set(tidy)
    with pytest.raises(ValueError, match=r"--out must be a \.md file"):
        tables.write([tmp_path / "all.csv"], tmp_path / "table.csv", "x")


def test_numbers_as_printed(comparison: Comparison) -> None:
    text = tables.markdown(comparison, "x")
    assert "nan" not in text.lower().replace("(nan)", "")
    section = text.split("### " + SCENES)[1].split("###")[0]
    widths = {len(line) for line in section.splitlines() if line.startswith("|")}
    assert len(widths) == 1  # padded, so that it reads in a terminal


def test_a_ratio_below_0_has_a_minus_as_other_numbers(comparison: Comparison) -> None:
    """A gap over its floor may be below it."""
    below = tuple(
        replace(e, ratio=e.ratio if math.isnan(e.ratio.value) else Interval(-0.25, -0.3, -0.2))
        for e in comparison.estimates
    )
    made = replace(comparison, estimates=below)
    assert "(×−0.25)" in tables.at_a_glance(made, "miniature")
    assert r"($\times$$-$0.25)" in tables.latex(made, "x")


def test_a_test_of_very_many_prompts_has_no_p_of_0(
    comparison: Comparison, frame: pd.DataFrame, tmp_path: Path
) -> None:
    """The exact p of 1,632 prompts won of 1,632 is 2^-1631."""
    p = stats.mcnemar_exact(1632, 0)
    assert (p, tables.p_told(p), tables.p_told(0.00123)) == (0.0, "<1e-300", "0.0012")
    certain = replace(
        comparison,
        estimates=tuple(replace(e, p_holm=p if e.p_holm <= 1 else e.p_holm) for e in comparison.estimates),
        outcomes=tuple(replace(o, sign_p=p) for o in comparison.outcomes),
    )
    text = tables.markdown(certain, "x")
    page = report.render(frame, certain, tmp_path, tmp_path, "x")
    assert "| <1e-300 sign" in text and re.search(r"\| <1e-300 +\|", text)
    assert not re.search(r"\| 0( sign| wilcoxon| mcnemar| resamples)? +\|", text)
    assert re.search(r'<td><a class="cell"[^>]*>&lt;1e-300</a></td>', page) and re.search(
        r"<td>&lt;1e-300 <small>\w+</small></td>", page
    )
    told = [report_data.told(e) for e in certain.estimates if not math.isnan(e.p_holm)]
    assert told and all("; p <1e-300 (" in sentence for sentence in told)


# ------------------------------------------------------------------------------------------------------ markdown


def test_the_first_judge_read_is_held_out_and_a_trained_one_has_no_number(comparison: Comparison) -> None:
    glance = tables.at_a_glance(comparison, "miniature").splitlines()
    gold, judge, reward, mean = glance[2:6]
    assert gold.startswith("| win rate (gold)")
    assert judge.startswith("| win rate (held-out judge)")
    assert reward.startswith("| win rate (reward model)")
    assert mean.startswith("| reward model score")
    assert [line.count("†") for line in (gold, judge, reward, mean)] == [0, 0, 2, 2]
    header = [cell.strip() for cell in glance[0].split("|")]
    cells = [cell.strip() for cell in reward.split("|")]
    assert [cells[header.index(name)] for name in ("imagereward", "joint")] == ["†", "†"]
    text = tables.markdown(comparison, "x")
    assert re.search(
        r"\| imagereward† +\| miniature-preference-unseen +\| joint ", text
    )  # its number is below


def test_what_is_kept_is_marked_where_one_of_the_two_was_trained_on_the_scorer(
    comparison: Comparison,
) -> None:
    section = tables.markdown(comparison, "x").split("### What the joint run keeps")[1].split("###")[0]
    assert "† one of the two was trained on this very scorer." in section
    lines = [
        [cell.strip() for cell in line.split("|")] for line in section.splitlines() if "| joint |" in line
    ]
    daggers = {line[3]: [cell.endswith("†") for cell in line[5:7]] for line in lines}
    assert len(daggers) == len(comparison.retentions)
    for title in ("reward model score", "win rate (reward model)", "detection score"):
        assert daggers[title] == [True, True]
    assert daggers["win rate (gold)"] == daggers["win rate (held-out judge)"] == [False, False]


def test_a_judge_that_is_trained_on_stands_after_those_that_are_not(frame: pd.DataFrame) -> None:
    trained = frame["trained_on"].where(
        frame["scorer"] != "gold_utility", (frame["experiment"] == "joint") * 1
    )
    made = compare.compare(frame.assign(trained_on=trained), resamples=50)
    names = [name for name, _ in tables.headline_columns(made, "miniature")]
    assert names[:3] == ["win_rate_judge", "win_rate_gold", "win_rate_reward"]


def test_what_does_not_survive_holm_is_hollow(comparison: Comparison) -> None:
    marked = [e for e in comparison.estimates if e.mark in ("better", "worse", "changed")]
    weak = [e for e in marked if not e.survives]
    assert weak
    assert len(weak) < len(marked)
    assert {tables.sign(e) for e in weak} <= set("△▽◇")
    assert {tables.sign(e) for e in marked if e.survives} <= set("▲▼◆")
    assert f"{len(weak)} of {len(marked)} marks do not survive" in "".join(tables.count_notes(comparison))


def test_the_matrix_of_changes_has_every_metric_and_run_in_its_unit(comparison: Comparison) -> None:
    section = tables.markdown(comparison, "x").split("### What every run changed")[1].split("###")[0]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"
    ]
    header, body = lines[0], lines[2:]
    assert header == ["metric", "prompt set", "in", "imagereward", "compositionality", "fairness", "joint"]
    assert len(body) == len({(e.metric, e.prompt_set) for e in comparison.estimates})
    cells = {(line[0], line[1]): dict(zip(header, line, strict=True)) for line in body}

    def cell(metric: str) -> tuple[compare.Estimate, dict[str, str]]:
        (e,) = comparison.of(experiment="joint", metric=metric, prompt_set=SCENES)
        loaded = metrics.load(metric)
        arrow = {True: " ↑", False: " ↓", None: ""}[loaded.higher_is_better]
        return e, cells[loaded.title + arrow, SCENES]

    gold, printed = cell("gold_quality")
    assert printed["in"] == "SD"
    assert printed["joint"].startswith(f"{gold.difference.value / gold.base_sd:+.2f} {tables.sign(gold)}")
    right, printed = cell("fully_right")
    assert printed["in"] == "points"
    assert printed["joint"].startswith(f"{100 * right.difference.value:+.1f}".replace("-", "−"))
    assert cell("drift")[1]["in"] == "raw"
    assert cell("detection")[1]["joint"].endswith("†")


def test_what_is_left_out_is_told_with_the_command_that_scores_it(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    """The base lacks a scorer of variety and a prompt set, a run another scorer: in the foot, on the terminal, in the matrix and in the JSON."""
    of_base = frame["experiment"] == "base"
    lost = of_base & ((frame["scorer"] == "vendi") | (frame["prompt_set"] == PORTRAITS))
    lost |= (frame["experiment"] == "joint") & (frame["scorer"] == "clip_judge")
    files = []
    for (experiment, seed), part in frame[~lost].groupby(["experiment", "seed"], sort=False):
        files.append(tmp_path / f"{experiment}-miniature-{seed}.csv")
        rows.write(part, files[-1])
    out = tmp_path / "table.md"
    called = CliRunner().invoke(
        main, ["compare", *map(str, files), "--out", str(out), "--json", str(tmp_path / "t.json")]
    )
    assert called.exit_code == 0, called.output
    text, told = out.read_text(), json.loads((tmp_path / "t.json").read_text())
    (note,) = [line[2:] for line in text.splitlines() if line.startswith("- LEFT OUT")]
    assert note in called.output and note in told["notes"]["counted"]
    four = "imagereward, compositionality, fairness and joint"
    assert f"base has no scores of vendi on {PREFERENCE}, {SCENES}, {PORTRAITS}, which {four} have; " in note
    assert (
        f"; imagereward, gold_utility, pairwise_distance, skin_tone, monk_tone on {PORTRAITS}, which {four} have"
        in note
    )
    assert f"clip_judge on {PORTRAITS}, which imagereward, compositionality and fairness have" in note
    assert "kid" not in note  # of which the base's is 0 by definition
    assert "They are in no table, no test and no correction, and no alarm for lost variety can sound." in note
    assert note.endswith(
        f" `python -m evals score CHECKPOINT --suite miniature --out {tmp_path}/base-miniature-0.csv` scores them, where CHECKPOINT is that of base."
    )
    (of_joint,) = [line for line in text.splitlines() if line.startswith("- miniature: not scored for joint")]
    assert "win rate (held-out judge)" in of_joint
    assert of_joint.endswith(
        f"`python -m evals score CHECKPOINT --suite miniature --out FILE.csv` scores them, where CHECKPOINT is that of joint, and FILE.csv in turn "
        f"{tmp_path}/joint-miniature-0.csv and {tmp_path}/joint-miniature-1.csv."
    )
    section = text.split("### What every run changed")[1].split("###")[0]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"
    ]
    of = {(line[0], line[1]): line[2:] for line in lines}
    assert of["diversity (Vendi) ↑", SCENES] == ["", *["base not scored"] * 4]
    assert of["win rate (held-out judge) ↑", SCENES][4] == "not scored"
    assert of["win rate (held-out judge) ↑", SCENES][1] not in ("not scored", "")
    left_out = {(one["experiment"], one["prompt_set"], one["scorer"]) for one in told["left_out"]}
    # of four runs vendi on two sets, and all seven but kid on the third; joint has no clip_judge
    assert ("joint", SCENES, "vendi") in left_out and len(left_out) == 4 * (2 + 7) - 1
    page = report.render(
        rows.read(files), compare.compare(rows.read(files), resamples=50), tmp_path, tmp_path, "x"
    )
    assert note.split("`")[0].strip() in page.replace("&#39;", "'")
    assert ">base not scored</td>" in page and ">not scored</td>" in page


def test_the_command_has_what_was_asked_for(frame: pd.DataFrame) -> None:
    """Another order, a part of the suite, pictures that were given; files of several runs are not written anew."""
    ordered = frame[(frame["scorer"] == "vendi") & (frame["prompt_set"] == SCENES)].assign(scorer="vendi_q2")
    ordered = ordered[ordered["experiment"] != "base"]
    some = pd.concat([frame[frame["prompt_set"] == SCENES], ordered]).assign(file="all.csv")
    command = "CHECKPOINT --suite miniature --prompt-set {} --vendi-order 2 --out FILE.csv` scores it, where CHECKPOINT is that of base."
    (note,) = unscored.left_out_notes(compare.compare(some, resamples=20))
    assert note.endswith(f"`python -m evals score {command.format(SCENES)}")
    given = some.assign(suite="miniature:given", model="external", file=some["experiment"] + ".csv")
    (note,) = unscored.left_out_notes(compare.compare(given, resamples=20))
    assert note.endswith(
        f"`python -m evals score PICTURES --pictures --suite miniature --name base --prompt-set {SCENES} --vendi-order 2 --out base.csv` "
        "scores it, where PICTURES are those of base."
    )


def test_what_all_is_compared_with_is_named(frame: pd.DataFrame) -> None:
    made = compare.compare(frame[frame["scorer"] != "kid"], resamples=50, against="fairness")
    text = tables.markdown(made, "x")
    assert "difference to fairness [95 %]" in text
    assert "### Win, tie and loss against fairness" in text
    assert "not distinguished from fairness" in text
    assert "the base" not in text


def test_forced_cells_have_a_mark_and_a_footnote_with_both_hashes(frame: pd.DataFrame) -> None:
    other = (frame["experiment"] == "joint") & (frame["scorer"] == "objects")
    changed = frame.assign(version=frame["version"].where(~other, "ffffffff"))
    made = compare.compare(changed, resamples=50, force=True)
    text = tables.markdown(made, "x")
    assert "- ‡1 scorer objects ffffffff in joint, 0a1b2c3d in base." in text
    marked = [line for line in text.splitlines() if "‡1" in line and line.startswith("|")]
    assert marked
    assert all("detection" in line for line in marked)
    assert any("| joint | compositionality | detection" in re.sub(" +", " ", line) for line in marked)
    glance = tables.glance(made, "miniature")
    (line,) = [line for line in glance if line[0].startswith("detection")]
    assert [("‡1" in cell) for cell in line[2:]] == [name == "joint" for name in glance[0][2:]]
    assert "% ddagger 1, forced: scorer objects ffffffff in joint, 0a1b2c3d in base." in tables.latex(
        made, "x"
    )
    plain = tables.markdown(compare.compare(frame, resamples=50), "x")
    assert "‡" not in plain
    assert "## Forced" not in plain


def test_forced_judges_have_their_mark_wherever_they_speak(frame: pd.DataFrame) -> None:
    """In wins, agreement and order, and beside the dagger that stands for a number."""
    other = (frame["experiment"] == "joint") & (frame["scorer"] == "imagereward")
    made = compare.compare(
        frame.assign(version=frame["version"].where(~other, "ffffffff")), resamples=50, force=True
    )
    verdict = panel.Verdict("win_rate_reward", Interval(0.8, 0.7, 0.9), True)
    flip = panel.Flip("miniature", SETS[1], "joint", "fairness", (verdict,), (verdict,))
    made = replace(made, panel=replace(made.panel, flips=(flip,)))
    text = tables.markdown(made, "x")
    for title in ("Win, tie and loss", "Do the judges agree", "Where judges order two"):
        (section,) = re.findall(rf"### {title}.*?(?=\n###)", text, re.DOTALL)
        lines = [line for line in section.splitlines() if line.startswith("|")]
        marked = [line for line in lines if "imagereward†‡1" in line]
        assert marked
        assert all(("‡1" in line) == ("joint" in line and "imagereward" in line) for line in lines)
    assert any("†‡1" in cell for line in tables.glance(made, "miniature") for cell in line[2:])


# --------------------------------------------------------------------------------------------------------- LaTeX


def read_tex(text: str) -> str:
    """What LaTeX would print, by its rules for special characters; fails where it would stop or mistake one for its own."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textbar": "|"}
    names |= {"textless": "<", "textgreater": ">"}
    maths = {"blacktriangle": "▲", "blacktriangledown": "▼", "blacklozenge": "◆", "approx": "≈", "tau": "τ"}
    maths |= {
        "vartriangle": "△",
        "triangledown": "▽",
        "lozenge": "◇",
        "times": "×",
        "uparrow": "↑",
        "downarrow": "↓",
    }
    maths |= {"^\\dagger": "†", "^\\ddagger": "‡", "-": "−"}
    told, rest = [], text.replace("--", "–")
    while rest:
        if found := re.match(r"\\(text[a-z]+)\{\}", rest):
            told.append(names[found[1]])
        elif found := re.match(r"\\([&%$#_{}])", rest):
            told.append(found[1])
        elif found := re.match(r"\$\\?([^$]+)\$", rest):
            told.append(maths[found[1]])
        elif found := re.match(r"\{([\[\]])\}", rest):
            told.append(found[1])
        else:
            found = re.match(r"[^\\&%$#_{}~^|<>\[\]]", rest)
            assert found, f"LaTeX would stop at {rest[:20]!r}"
            told.append(found[0])
        rest = rest[found.end() :]
    return "".join(told)


def test_escaping_prints_every_character_and_lets_none_act() -> None:
    for text in (
        r"a\b & 100 % of $x_1$ {set} #2 ~ ^ | <b> [0, 1]",
        r"\input{/etc/passwd}",
        "▲▼◆≈△▽◇τ†‡×−↑↓–",
        "80.3 [78.5, 82.0] ▲†",
    ):
        escaped = tables.escaped(text)
        assert escaped.isascii()
        assert read_tex(escaped) == text
    assert tables.escaped("two\nlines\there") == "two lines here"
    assert tables.escaped("猫") == "U+732B"


def test_letters_keep_their_accents_in_latex() -> None:
    told = {
        "modèle é": r"mod\`{e}le \'{e}",
        "Zürich": r"Z\"{u}rich",
        "naïve": r"na\"{\i}ve",
        "Çelik Łódź": r"\c{C}elik \L{}\'{o}d\'{z}",
        "straße": r"stra\ss{}e",
        "smørrebrød på æ": r"sm\o{}rrebr\o{}d p\r{a} \ae{}",
    }
    assert {name: tables.escaped(name) for name in told} == told
    assert tables.escaped("e\u0301") == tables.escaped("é"), "however it was typed"


def test_the_latex_table_is_the_one_at_a_glance(frame: pd.DataFrame) -> None:
    strange = frame.replace({"experiment": {"joint": "50%_of&all"}})
    made = compare.compare(strange, resamples=50)
    text = tables.latex(made, "python -m evals compare a_b.csv\n\\end")
    lines = text.splitlines()
    code = [line for line in lines if not line.startswith("%")]
    assert [line for line in code if not line.endswith(r"\\")] == [
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    cells = [[read_tex(cell) for cell in line[:-3].split(" & ")] for line in code if line.endswith(r"\\")]
    assert cells == tables.glance(made, "miniature")
    assert "50%_of&all" in cells[0]


# ---------------------------------------------------------------------------------------------------------- JSON


def test_the_json_has_every_cell_and_where_it_comes_from(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    rows.write(frame, path)
    out = tmp_path / "table.json"
    made = tables.write([path], tmp_path / "t.md", "make compare", resamples=100, json_out=out)
    told = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (told["schema"], told["command"], told["against"]) == (2, "make compare", "base")
    assert told["left_out"] == []
    assert (told["resamples"], told["seed"], told["files"]) == (100, 0, [str(path)])
    assert told["family"] == {"correction": "Holm", "differences": made.family}
    assert told["tie_margins"]["win_rate_reward"] == 0.1
    assert len(told["cells"]) == len(made.estimates)
    for cell, e in zip(told["cells"], made.estimates, strict=True):
        assert cell["value"]["value"] == pytest.approx(e.value.value, nan_ok=True)
        assert (cell["mark"], cell["trained_on"], cell["test"]) == (e.mark, e.trained_on, e.test)
        assert cell["p_holm"] == (None if math.isnan(e.p_holm) else e.p_holm)
        assert cell["n"]["prompts"] == e.prompts
        assert cell["provenance"]["versions"] == ["0a1b2c3d"]
        assert cell["provenance"]["suites"] == ["miniature:012345"]
        assert cell["provenance"]["prompts"] == ["0123456789ab"]
        assert cell["provenance"]["files"] == [str(path)]
    left_out = {(c["metric"], c["experiment"]) for c in told["cells"] if c["left_out_at_a_glance"]}
    assert left_out == {(m, e) for m in ("reward_mean", "win_rate_reward") for e in ("imagereward", "joint")}
    assert {c["left_out_at_a_glance"] for c in told["cells"] if not c["headline"]} == {False}
    (tax,) = told["tax"]
    assert tax["runs"] == ["imagereward", "compositionality", "fairness", "joint"]
    assert {len(line["cells"]) for line in tax["lines"]} == {4}
    assert told["agreements"]
    assert told["notes"]["counted"]


def test_the_json_says_what_rests_on_rows_that_differ_and_on_what_was_trained_on(frame: pd.DataFrame) -> None:
    other = (frame["experiment"] == "joint") & (frame["scorer"] == "imagereward")
    changed = frame.assign(version=frame["version"].where(~other, "ffffffff"))
    made = compare.compare(changed, resamples=50, force=True)
    verdict = panel.Verdict("win_rate_reward", Interval(0.8, 0.7, 0.9), True)
    flip = panel.Flip("miniature", SCENES, "joint", "fairness", (verdict,), (verdict,))
    told = tables.machine(replace(made, panel=replace(made.panel, flips=(flip,))), "x")
    (conflict,) = told["conflicts"]
    assert told["flips"][0]["conflict"] == conflict
    for kind in ("outcomes", "retentions", "agreements"):
        for line in told[kind]:
            scorers = line["judges"] if kind == "agreements" else [metrics.load(line["metric"]).scorer]
            differs = line["experiment"] == "joint" and "imagereward" in scorers
            assert line["conflict"] == (conflict if differs else ""), line
    trained = {line["metric"] for line in told["retentions"] if line["trained_on"]}
    assert {"reward_mean", "detection"} <= trained and not trained & {"win_rate_gold", "fully_right"}
    (tax,) = told["tax"]
    (line,) = [
        line for line in tax["lines"] if (line["metric"], line["prompt_set"]) == ("reward_mean", PREFERENCE)
    ]
    cells = dict(zip(tax["runs"], line["cells"], strict=True))
    assert {run: cell["trained_on"] for run, cell in cells.items()} == {
        run: run in ("imagereward", "joint") for run in tax["runs"]
    }
    assert {run for run, cell in cells.items() if cell["conflict"]} == {"joint"}


# ------------------------------------------------------------------------------------------------------ the foot


def scored(folder: Path, name: str, **counts: object) -> Path:
    """A score file with what was counted beside it."""
    path = folder / f"{name}.csv"
    rows.write(study(prompts=2, images=2, experiments=("base",)), path)
    nothing = {"failed_decodes": 0, "black": 0, "duplicates": {"within_prompts": 0, "across_prompts": 0}}
    of_set = {"pictures": 480, "prompts_count": 120, **nothing, **counts}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    asides.beside(path).write_text(json.dumps({"prompt_sets": {SCENES: of_set}, "rows_sha256": digest}))
    return path


def test_what_was_counted_beside_the_scores_is_told(tmp_path: Path) -> None:
    bad = scored(
        tmp_path,
        "bad",
        failed_decodes=3,
        black=2,
        duplicates={"within_prompts": 4, "across_prompts": 0},
        truncated={"model": 7, "scorers": {"imagereward": 9, "vendi": None}},
    )
    clean, other = scored(tmp_path, "clean"), tmp_path / "no_aside.csv"
    assert asides.read([bad, clean, other]) == [
        f"{bad}, {SCENES}: of 480 pictures 3 could not be decoded, 2 all black, 4 the same as another of their prompt; of 120 prompts "
        "not read to their end 7 by the model, 9 by imagereward.",
        f"No picture failed to decode, is all black or is there twice, and no prompt was cut, as was counted for {clean}.",
        "How many prompts were cut, and how many pictures failed to decode, are all black or are there twice, is not known for "
        f"{other}.",
    ]
    given = scored(tmp_path, "given", truncated={"model": None, "scorers": {"imagereward": 0}})
    packed = tmp_path / "all.csv.xz"
    first, second, third = asides.read([packed, given])
    assert f"no prompt was cut by a scorer, as was counted for {given}." in first
    assert second == f"Whether what drew the pictures read their prompts to the end is not known for {given}."
    assert third.endswith(f"is not known for {packed}.")
    tables.write([bad], tmp_path / "t.md", "x", resamples=10)
    assert "3 could not be decoded" in (tmp_path / "t.md").read_text().split("## Counted")[1]


def test_checkpoints_of_two_families_are_not_compared(tmp_path: Path) -> None:
    files = [scored(tmp_path, name, size=size) for name, size in (("a", [512, 512]), ("b", [1024, 1024]))]

    def tell(**more: object) -> None:
        for file in files:
            told = json.loads(asides.beside(file).read_text())
            asides.beside(file).write_text(json.dumps({**told, "model": {"model": "external"}, **more}))

    tell(sampling=None)
    asides.refuse_two_sizes(files)
    tell(sampling={"steps": 50})
    asides.refuse_two_sizes(files[:1])
    with pytest.raises(
        ValueError, match=r"512 x 512 pixels in .*a\.csv but 1024 x 1024 in .*b\.csv: .* two families"
    ):
        tables.write(files, tmp_path / "t.md", "x", resamples=10)
    tell(sampling={"steps": 50}, model={"model": []})  # damaged, and of two sizes still
    with pytest.raises(ValueError, match="two families"):
        asides.refuse_two_sizes(files)
    files[1].write_text(files[1].read_text() + "\n")  # rows of which it does not tell
    asides.refuse_two_sizes(files)


def test_counts_of_other_rows_or_none_that_can_be_read_are_said_to_be(tmp_path: Path) -> None:
    stale, damaged = scored(tmp_path, "stale"), scored(tmp_path, "damaged")
    stale.write_text(stale.read_text() + "\n")
    asides.beside(damaged).write_text("{")
    first, second = asides.read([stale, damaged])
    assert "stale.json tells of other rows" in first
    assert "damaged.json cannot be read" in second


# --------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_all_forms_and_says_how(frame: pd.DataFrame, tmp_path: Path) -> None:
    lean = frame[frame["scorer"].isin(["objects", "fully_right"]) & (frame["experiment"] != "base")]
    paths = [str(tmp_path / f"{name}.csv") for name in ("joint", "fairness")]
    for name, path in zip(("joint", "fairness"), paths, strict=True):
        rows.write(lean[lean["experiment"] == name], path)
    names = {form: str(tmp_path / f"t.{form}") for form in ("md", "tex", "json")}
    options = [
        "--out",
        names["md"],
        "--latex",
        names["tex"],
        "--json",
        names["json"],
        "--against",
        "fairness",
    ]
    result = CliRunner().invoke(main, ["compare", *paths, *options])
    assert result.exit_code == 0, result.output
    assert "not distinguished from fairness" in result.output
    told = json.loads(Path(names["json"]).read_text())
    assert told["command"] == f"python -m evals compare {' '.join(paths)} {' '.join(options)}"
    assert "toprule" in Path(names["tex"]).read_text()

    newer = pd.read_csv(paths[0], dtype=str).assign(version="ffffffff", suite="miniature:ffffff")
    newer.to_csv(paths[0], index=False)
    refused = CliRunner().invoke(main, ["compare", *paths, *options])
    assert refused.exit_code == 2
    assert "was scored on the suite miniature:" in refused.output
    forced = CliRunner().invoke(main, ["compare", *paths, *options, "--force"])
    assert forced.exit_code == 0, forced.output
    assert "--force" in json.loads(Path(names["json"]).read_text())["command"]
    text = Path(names["md"]).read_text()
    assert (
        "ffffffff in joint, 0a1b2c3d in fairness; suite miniature:ffffff in joint, miniature:012345 in fairness"
        in text
    )


def test_the_command_in_the_head_can_be_given_again(frame: pd.DataFrame, tmp_path: Path) -> None:
    scores, table = tmp_path / "my scores" / "it's.csv", tmp_path / "my table.md"
    rows.write(frame, scores)
    assert CliRunner().invoke(main, ["compare", str(scores), "--out", str(table)]).exit_code == 0
    told = re.search(r"Generated by `(.*)`\. Do not edit", table.read_text(encoding="utf-8"))
    assert told is not None
    given = ["python", "-m", "evals", "compare", str(scores), "--out", str(table)]
    assert shlex.split(told[1]) == given


def test_the_json_does_not_replace_what_is_told_of_the_scores(tmp_path: Path) -> None:
    path = scored(tmp_path, "base")
    arguments = ["compare", str(path), "--out", str(tmp_path / "t.md"), "--json", str(tmp_path / "base.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "would write over" in result.output


@pytest.mark.parametrize("command", [["compare"], ["fairness"]])
def test_numbers_beside_the_table_replace_no_scores(tmp_path: Path, command: list[str]) -> None:
    made = study(prompts=3, images=2, seeds=(0,), experiments=("base", "joint"))
    mine, other = tmp_path / "mine.csv", tmp_path / "other.csv"
    rows.write(made, mine)
    rows.write(made, other)
    before = other.read_bytes()
    arguments = [*command, str(mine), "--out", str(tmp_path / "other.md")]
    for _ in range(2):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert f"would write its numbers over {other}, which holds scores" in result.output
        assert other.read_bytes() == before
    other.unlink()
    for _ in range(2):  # a table is made anew
        assert CliRunner().invoke(main, arguments).exit_code == 0


def test_other_files_are_named_by_their_options(tmp_path: Path) -> None:
    made = study(prompts=3, images=2, seeds=(0,), experiments=("base", "joint"))
    for name in ("mine", "other"):
        rows.write(made, tmp_path / f"{name}.csv")
    (tmp_path / "other.json").write_text("{}")
    for options, told in (
        (["--latex", str(tmp_path / "t.csv")], "--latex"),
        (["--json", str(tmp_path / "t.md")], "--json"),
        (["--json", str(tmp_path / "other.json")], "what other.csv was made of"),
    ):
        arguments = ["compare", str(tmp_path / "mine.csv"), "--out", str(tmp_path / "t.md"), *options]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert result.output.startswith("error: --" + options[0][2:])
        assert told in result.output
    assert (tmp_path / "other.json").read_text() == "{}"


def test_scores_that_no_metric_reads_are_told(frame: pd.DataFrame) -> None:
    scores = frame[frame["scorer"] == "gold_utility"]
    unread = pd.concat([scores, scores.assign(scorer="redness")])
    told = [tables.count_notes(compare.compare(some, 50)) for some in (scores, unread)]
    assert [*set(told[1]) - set(told[0])] == ["No metric reads the scores of redness: they are in no table."]
