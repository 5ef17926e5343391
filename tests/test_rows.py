"""Score rows: what is written comes back, and nothing broken is read."""

from __future__ import annotations

import gzip
import lzma
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evals import rows
from evals.rows import COLUMNS, Row
from tests.synthetic_rows import study

HEADER = ",".join(COLUMNS)
GOOD = "joint,miniature,0,miniature:012345,scenes,00ff,p1,0,89ab,objects,0a1b2c3d,1,0.5"


def file(folder: Path, *lines: str, name: str = "scores.csv", header: str = HEADER) -> Path:
    path = folder / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_score_file_is_known_by_its_header(tmp_path: Path) -> None:
    whole = file(tmp_path, GOOD)
    cut = tmp_path / "cut.csv"
    cut.write_bytes(whole.read_bytes()[:-5])
    (tmp_path / "notes.csv").write_text("my notes\n")
    assert rows.begins_as_scores(whole)
    assert rows.begins_as_scores(cut)
    assert not rows.begins_as_scores(tmp_path / "notes.csv")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, f"{GOOD},0.5", header=f"{HEADER},value")
    with pytest.raises(ValueError, match="has the column value twice"):
        rows.read([path])


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    def row(prompt: str, image: int, value: float) -> Row:
        of_what = ("suite", "scenes", "00ff", prompt, image, "0123e5")
        return Row("base", "miniature", 0, *of_what, "objects", "00000012", 0, value)

    written = rows.table(
        [
            row("NA", 0, 1 / 3),
            row("007", 1, float("nan")),
            row('a "quoted", id', 1, -1e-9),
        ]
    )
    rows.write(written, tmp_path / "deep" / "scores.csv")
    read = rows.read([tmp_path / "deep" / "scores.csv"])
    assert list(read["prompt_id"]) == ["NA", "007", 'a "quoted", id']
    assert list(read["version"]) == ["00000012"] * 3
    assert (list(read["picture"]), list(read["prompts"])) == (["0123e5"] * 3, ["00ff"] * 3)
    np.testing.assert_allclose(read["value"], written["value"], rtol=1e-6)
    assert (
        (tmp_path / "deep" / "scores.csv").read_text().splitlines()[2].endswith(",0,")
    )  # NaN is an empty cell


def test_a_file_that_a_spreadsheet_saved_with_semicolons_is_known_as_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(";".join(rows.COLUMNS) + "\n" + ";".join(["0,5"] * len(rows.COLUMNS)) + "\n")
    with pytest.raises(
        ValueError, match=r"scores\.csv: its cells are parted by semicolons: save it with commas"
    ):
        rows.read([path])


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, GOOD)
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        rows.write(study(prompts=1, images=1), path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no score"),
        ([GOOD.replace(",0.5", ",high")], "line 2: value must be a finite number or empty, not 'high'"),
        (
            [GOOD, GOOD.replace(",0.5", ",1e308").replace(",0,89ab", ",1,89ab")],
            "line 3: value must be a number of at most 1e\\+50 in size, of whose powers sums can be made, or empty, not '1e308'",
        ),
        ([GOOD.replace(",0.5", ",-1e51")], "line 2: value must be a number of at most"),
        ([GOOD, GOOD.replace(",0.5", ",inf").replace(",0,89ab", ",1,89ab")], "line 3: value"),
        ([GOOD.replace("miniature,0", "miniature,-1")], "line 2: seed must be a whole number, not '-1'"),
        ([GOOD.replace(",0,89ab", ",1.5,89ab")], "line 2: image must be a whole number"),
        ([GOOD.replace(",1,0.5", ",2,0.5")], "trained_on must be 0 or 1"),
        ([GOOD, GOOD], "two objects scores of joint seed 0, scenes, prompt p1, image 0"),
        ([GOOD + ",surplus,more"], "line 2 has 15 cells, but the header has 13"),
        ([GOOD, "joint,miniature,0,scenes"], "line 3 has 4 cells, but the header has 13"),
        ([GOOD, ""], "line 3 has 0 cells"),
        (['"joint,miniature'], "is not a CSV file"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, lines: list[str], message: str) -> None:
    path = file(tmp_path, *lines)
    with pytest.raises(ValueError, match=message) as error:
        rows.read([path])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_score_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no score files were given"):
        rows.read([])
    with pytest.raises(ValueError, match=r"no such file or directory\); make it with"):
        rows.read([tmp_path / "absent.csv"])
    with pytest.raises(ValueError, match="is a directory"):
        rows.read([tmp_path])
    with pytest.raises(ValueError, match="lacks the column suite"):
        rows.read(
            [
                file(
                    tmp_path,
                    "a,m,0,s,p,0,x",
                    header="experiment,model,seed,prompt_set,prompt_id,image,scorer",
                )
            ]
        )
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        rows.read([tmp_path / "latin.csv"])
    for cut in (b"", HEADER.encode() + b"\n" + GOOD.encode()[:-1]):
        (tmp_path / "cut.csv").write_bytes(cut)
        with pytest.raises(ValueError, match="was cut off"):
            rows.read([tmp_path / "cut.csv"])


def test_versions_that_differ_are_refused_and_both_named(tmp_path: Path) -> None:
    old = file(tmp_path, GOOD, name="old.csv")
    new = file(tmp_path, GOOD.replace("0a1b2c3d", "ffff0000").replace("joint", "base"), name="new.csv")
    with pytest.raises(
        ValueError, match=r"objects has version 0a1b2c3d in .*old.csv but ffff0000 in .*new.csv"
    ):
        rows.read([old, new])


def test_the_same_row_in_two_files_names_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one.csv and .*two.csv: two objects scores"):
        rows.read([file(tmp_path, GOOD, name="one.csv"), file(tmp_path, GOOD, name="two.csv")])


def test_the_partner_has_the_same_scorer_prompt_and_image() -> None:
    frame = study(prompts=3, images=2, experiments=("base", "joint"))
    base, joint = frame[frame["experiment"] == "base"], frame[frame["experiment"] == "joint"]
    joint = joint[joint["scorer"] == "gold_utility"].sample(frac=1, random_state=0)
    partner = rows.same_images(joint, base[base["scorer"] == "gold_utility"])
    assert partner.index.equals(joint.index)
    expected = {
        (r.prompt_set, r.prompt_id, r.image): r.value for r in base.itertuples() if r.scorer == "gold_utility"
    }
    assert list(partner["value"]) == [
        expected[r.prompt_set, r.prompt_id, r.image] for r in joint.itertuples()
    ]


def test_a_seed_is_set_beside_the_base_of_the_same_seed_where_there_is_one() -> None:
    def one(experiment: str, seed: int, value: float) -> Row:
        return Row(experiment, "m", seed, "suite", "s", "d", "p", 0, "", "objects", "v", 0, value)

    base = rows.table([one("base", 0, 10.0), one("base", 1, 11.0)])
    runs = rows.table([one("joint", 0, 0.0), one("joint", 1, 0.0), one("joint", 2, 0.0)])
    assert list(rows.same_images(runs, base)["value"]) == [10.0, 11.0, 10.0]


@pytest.mark.parametrize("lacking", ["base", "joint"])
def test_a_missing_partner_is_refused_on_either_side(lacking: str) -> None:
    frame = study(prompts=3, images=2, experiments=("base", "joint"), seeds=(0,))
    frame = frame[frame["scorer"] == "gold_utility"]
    gone = frame[
        (frame["experiment"] == lacking) & (frame["prompt_id"] == "p001") & (frame["image"] == 1)
    ].index
    frame = frame.drop(gone)
    with pytest.raises(
        ValueError, match=f"{lacking} lacks 3 of the 18 gold_utility scores .* prompt p001, image 1"
    ):
        rows.same_images(frame[frame["experiment"] == "joint"], frame[frame["experiment"] == "base"])


def test_an_empty_selection_is_its_own_partner() -> None:
    empty = pd.DataFrame(columns=list(COLUMNS))
    assert rows.same_images(empty, empty).empty


def test_a_compressed_file_of_several_runs_reads_as_the_files_it_was_made_of(tmp_path: Path) -> None:
    other = GOOD.replace("joint", "base")
    packed = tmp_path / "scores.csv.gz"
    packed.write_bytes(gzip.compress(file(tmp_path, GOOD, other).read_bytes()))
    apart = rows.read([file(tmp_path, GOOD, name="one.csv"), file(tmp_path, other, name="two.csv")])
    together = rows.read([packed])
    pd.testing.assert_frame_equal(together.drop(columns="file"), apart.drop(columns="file"))


def test_a_damaged_compressed_file_is_named(tmp_path: Path) -> None:
    text = file(tmp_path, GOOD).read_bytes()
    for name, damaged in {
        "cut.csv.gz": gzip.compress(text)[:-12],
        "plain.csv.gz": text,
        "cut.csv.xz": lzma.compress(text)[:-12],
        "plain.csv.xz": text,
        "more.csv.xz": lzma.compress(text) + b"more",
        "two.csv.xz": lzma.compress(text) * 2,
        "old.csv.xz": lzma.compress(text, lzma.FORMAT_ALONE),
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError) as refusal:
            rows.read([tmp_path / name])
        assert str(refusal.value).startswith(f"{tmp_path / name}: is not a whole {name[-2:]} file")


def test_packed_scores_read_as_the_rows_they_were_made_of(tmp_path: Path) -> None:
    frame = rows.by_picture(study(prompts=3))
    frame = frame.drop(index=frame.index[[3, 8]])  # a scorer need not have scored all pictures
    frame.loc[frame.index[5], "value"] = float("nan")
    frame.loc[frame["experiment"] != "base", "trained_on"] = 1
    plain, packed = tmp_path / "scores.csv", tmp_path / "scores.csv.xz"
    rows.write(frame, plain)
    rows.write(frame, packed)
    apart, together = (rows.read([path]).drop(columns="file") for path in (plain, packed))
    key = ["experiment", "seed", "prompt_set", "prompt_id", "image"]
    assert together[key].equals(apart[key])  # the same pictures in the same order
    pd.testing.assert_frame_equal(
        together.sort_values(list(rows.KEY), ignore_index=True),
        apart.sort_values(list(rows.KEY), ignore_index=True),
    )
    assert 0 < together["trained_on"].mean() < 1


def test_packing_again_changes_nothing(tmp_path: Path) -> None:
    """What the repository keeps, to the last byte before compression: scores that are no votes have no column more."""
    kept = Path(__file__).parent.parent / "results" / "scores-mixing.csv.xz"
    rows.write(rows.read([kept]), tmp_path / "again.csv.xz")
    assert lzma.decompress((tmp_path / "again.csv.xz").read_bytes()) == lzma.decompress(kept.read_bytes())


def test_a_version_that_cannot_be_told_from_its_scorer_is_not_packed(tmp_path: Path) -> None:
    frame = study(prompts=1).assign(version="1.0 beta")
    with pytest.raises(
        ValueError, match=r"^scorer \w+ has the version '1\.0 beta', with a space in it, which "
    ):
        rows.write(frame, tmp_path / "scores.csv.xz")
    assert not [*tmp_path.iterdir()]


def packed_text(folder: Path, text: str) -> Path:
    path = folder / "scores.csv.xz"
    path.write_bytes(lzma.compress(text.encode()))
    return path


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("trained_on", "rewards", "lacks the column trained_on; packed scores have experiment, model, seed,"),
        ("s v1", "s", "the column s names no scorer and its version, with a space between"),
        (
            ",01,",
            ",0,",
            "line 3: trained_on must have 0 or 1 for each of the 2 scorers that scored the picture, ",
        ),
        (",01,", ",02,", "trained_on must be 0 or 1"),
        (",01,", ",0x,", "line 3: trained_on must be a whole number, not 'x'"),
        (",01,", ",0-,", "line 3: trained_on must have 0 or 1 for each "),
        (",.5,2", ",.5,-", "line 3: trained_on must have 0 or 1 for each "),
        (",01,.5,2", ",--,-,-", "line 3: trained_on must have 0 or 1 for each "),
        ("s v1", "scorer", "holds rows, not packed scores: `python -m evals pack` packs a .csv or .csv.gz"),
        (",.5,2", ",.5,high", "line 3: value must be a finite number or empty, not 'high'"),
        (",.5,2", ",.5", "line 3 has 11 cells, but the header has 12"),
        (",01,.5,2", ",-1,-,2", None),
    ],
)
def test_a_fault_in_packed_scores_is_one_sentence(
    tmp_path: Path, old: str, new: str, told: str | None
) -> None:
    picture = "base,m,0,s:1,set,0123,p,{},abc"
    text = (
        "experiment,model,seed,suite,prompt_set,prompts,prompt_id,image,picture,trained_on,s v1,t v2\n"
        f"{picture.format(0)},10,1,\n{picture.format(1)},01,.5,2\n"
    )
    assert old in text
    assert rows.read([packed_text(tmp_path, text)])["value"].tolist() == pytest.approx(
        [1.0, float("nan"), 0.5, 2.0], nan_ok=True
    )
    path = packed_text(tmp_path, text.replace(old, new))
    if told is None:
        assert rows.read([path])["value"].tolist() == pytest.approx([1.0, float("nan"), 2.0], nan_ok=True)
        return
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {told}')}"):
        rows.read([path])


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (
            "suite",
            "prompt set {} was scored on the suite other in {} but on miniature:012345 in {}: they draw differently",
        ),
        (
            "prompts",
            "prompt set {} is the prompts other in {} but 0123456789ab in {}: its file has changed in between",
        ),
    ],
)
def test_a_prompt_set_that_is_not_the_same_everywhere_is_refused(
    column: str, told: str, tmp_path: Path
) -> None:
    frame = study(prompts=2, seeds=(0,))
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    rows.write(frame[frame["experiment"] == "joint"].assign(**{column: "other"}), first)
    rows.write(frame[frame["experiment"] == "base"], second)
    wanted = told.format("miniature-portraits-unseen", first, second)
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}"):
        rows.read([first, second])


def test_votes_on_given_pictures_stand_beside_scores_of_them(tmp_path: Path) -> None:
    frame = study(prompts=2, seeds=(0,), experiments=("base", "joint"))
    scores, votes = tmp_path / "scores.csv", tmp_path / "votes.csv"
    rows.write(frame.assign(suite="geneval:given"), scores)
    for suite in ("given", ""):  # the second as it once was
        rows.write(frame[frame["scorer"] == "objects"].assign(suite=suite, scorer="human_votes"), votes)
        read = rows.read([votes, scores])
        assert set(read["suite"]) == {"given", "geneval:given"}
    rows.write(frame[frame["scorer"] == "objects"].assign(suite="paper:given", scorer="other"), votes)
    with pytest.raises(
        ValueError, match=r"the suite paper:given in .* on geneval:given in .*: score both on one$"
    ):
        rows.read([votes, scores])


def test_drawn_and_given_pictures_are_not_compared_and_it_is_said_how_they_are(tmp_path: Path) -> None:
    frame = study(prompts=2, seeds=(0,), experiments=("base", "joint")).assign(suite="geneval:012345")
    drawn, given = tmp_path / "a.csv", tmp_path / "b.csv"
    rows.write(frame[frame["experiment"] == "joint"], drawn)
    rows.write(frame[frame["experiment"] == "base"].assign(suite="geneval:given"), given)
    for files in ([drawn, given], [given, drawn]):
        with pytest.raises(ValueError, match="do not share the noise") as refused:
            rows.read(files)
        assert (
            "score IMAGES/joint-miniature-0 --pictures --suite geneval --name joint --model miniature"
            in str(refused.value)
        )
        assert f"IMAGES is the folder into which {drawn} drew them" in str(refused.value)


def test_packed_rows_are_the_same_with_those_of_a_picture_together() -> None:
    frame = study(prompts=3)
    packed = rows.by_picture(frame)
    key = list(rows.KEY)
    pd.testing.assert_frame_equal(
        packed.sort_values(key, ignore_index=True), frame.sort_values(key, ignore_index=True)
    )
    place = packed[["experiment", "seed", "prompt_set", "prompt_id", "image"]]
    changes = (place != place.shift()).any(axis=1).sum()
    assert changes == len(place.drop_duplicates())
    assert list(packed["experiment"].unique()) == list(frame["experiment"].unique())


def test_a_file_given_twice_is_said_to_be(tmp_path: Path) -> None:
    path = file(tmp_path, GOOD)
    (tmp_path / "link.csv").symlink_to(path)
    with pytest.raises(ValueError, match=r"scores\.csv is given twice: once is enough"):
        rows.read([path, path])
    with pytest.raises(ValueError, match=r"link\.csv is given twice, also as .*scores\.csv"):
        rows.read([path, tmp_path / "link.csv"])


def test_scores_of_two_pictures_are_not_taken_as_of_one(tmp_path: Path) -> None:
    """Votes on pictures that were since drawn again; a picture whose hash is not known is no other."""
    scores = file(tmp_path, GOOD)
    votes = file(tmp_path, GOOD.replace("objects", "human_votes").replace("89ab", "cdef"), name="votes.csv")
    told = f"{scores} and {votes}: objects and human_votes have scored two different pictures as joint seed 0, scenes, prompt p1, image 0"
    with pytest.raises(ValueError, match=re.escape(told)):
        rows.read([scores, votes], refuse=False)
    unknown = file(tmp_path, GOOD.replace("objects", "other").replace("89ab", ""), name="unknown.csv")
    assert len(rows.read([scores, unknown])) == 2


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    path = file(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as a spreadsheet saves it
    assert rows.read([path])["experiment"].tolist() == ["joint"]


def test_scores_that_a_spreadsheet_saved_are_scores(tmp_path: Path) -> None:
    """Or a table written beside another would replace them."""
    path = file(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert rows.begins_as_scores(path)
    assert (rows.first_row(path) or {})["experiment"] == "joint"
    assert rows.scorings(path) == {("scenes", "objects")}
    (tmp_path / "notes.csv").write_bytes(b"\xef\xbb\xbfmy notes\r\n")
    assert not rows.begins_as_scores(tmp_path / "notes.csv")
    assert rows.scorings(tmp_path / "notes.csv") == rows.scorings(tmp_path / "none.csv") == set()


@pytest.mark.parametrize("name", ["", " joint", "joint ", '"jo\nint"', "jo\0int"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, GOOD, GOOD.replace("joint", name))
    with pytest.raises(ValueError, match=r"scores\.csv: line 3: experiment must be a name"):
        rows.read([path])


def test_the_first_row_says_whose_a_file_is(tmp_path: Path) -> None:
    assert rows.first_row(tmp_path / "none.csv") is None
    assert rows.first_row(file(tmp_path)) is None
    held = rows.first_row(file(tmp_path, GOOD))
    assert held is not None
    assert (held["experiment"], held["scorer"], held["value"]) == ("joint", "objects", "0.5")
    (tmp_path / "notes.csv").write_text("my notes\n")
    assert rows.first_row(tmp_path / "notes.csv") is None


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        rows.write(study(prompts=1, images=1), tmp_path / "scores.csv")
    assert error.value.filename == str(tmp_path / "scores.csv")


def test_of_two_versions_it_is_said_whom_each_scored() -> None:
    one = study()[["model", "scorer", "version", "experiment"]].drop_duplicates()
    one = one[one["scorer"] == "objects"].assign(version="v1")
    two = one.assign(model="other", version="v2")
    assert rows.versions(one)["objects"] == "v1"
    assert rows.versions(pd.concat([one, two]))["objects"] == "v1 (miniature) and v2 (other)"
    mixed = one.assign(version=one["version"].where(one["experiment"] != "joint", "v2"))
    assert rows.versions(mixed, refuse=False)["objects"].endswith(" and v2 (joint)")
    both = rows.versions(pd.concat([mixed, two]), refuse=False)["objects"]
    assert both.startswith("v1 (base (miniature), ")
    assert " and v2 (joint (miniature), base (other), " in both
