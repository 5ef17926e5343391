"""Pictures of others: where they are looked for, what of them is refused, converted and counted."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import prompts
from evals import asides, harness, pictures, scorers, suites
from evals import rows as score_rows
from evals.__main__ import main
from evals.diffusion import Sampling
from evals.rgb import as_png
from evals.suites import Part, Suite
from prompts import Prompt
from tests import toy, toy_scoring

ASKED = (Prompt("p0", "a red cup"), Prompt("p1", "a blue cup"), Prompt("p2", "a cup"))
PART = Part("cups", 2, ("redness", "spread"))
SUITE = Suite((PART,), Sampling(), seed=1, name="small")


class Spread(toy.Redness):
    """Of scope "prompt": the same for all of a prompt, and only of whole ones."""

    scope = "prompt"

    def __call__(self, images_BCHW: torch.Tensor, prompts: Any) -> torch.Tensor:
        assert len(images_BCHW) % 2 == 0
        return super().__call__(images_BCHW, prompts)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"redness": toy.Redness, "spread": Spread, "distance": toy_scoring.Distance}
    monkeypatch.setattr(scorers, "load", lambda name, device="cpu", domain="photo": known[name](device))
    monkeypatch.setattr(suites, "load", lambda _name: SUITE)
    monkeypatch.setattr(prompts, "load", lambda _name: ASKED)


def drawn(seed: int, size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of each of three prompts."""
    for number, prompt in enumerate(ASKED):
        (tmp_path / "theirs" / prompt.id).mkdir(parents=True)
        for image in range(2):
            drawn(2 * number + image).save(tmp_path / "theirs" / prompt.id / f"{image}.png")
    return tmp_path / "theirs"


def scored(folder: Path, **more: Any) -> Any:
    out = folder.parent / "scores.csv"
    harness.score_given(folder, out, "small", "theirs", **more)
    return score_rows.read([out]), json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def test_rows_of_pictures_of_others(folder: Path) -> None:
    rows, told = scored(folder, model="dalle")
    assert {*rows["suite"]} == {"small:given"}
    assert {(*one,) for one in rows[["experiment", "model", "seed"]].to_numpy()} == {("theirs", "dalle", 0)}
    redness = rows[rows["scorer"] == "redness"]
    assert [*zip(redness["prompt_id"], redness["image"], strict=True)] == [
        (p.id, i) for p in ASKED for i in (0, 1)
    ]
    pixels = np.asarray(drawn(3), dtype=np.float64) / 255
    expected = pixels[..., 0].mean() - pixels[..., 1:].mean()
    assert redness["value"].iloc[3] == pytest.approx(expected, abs=1e-5)
    assert (told["sampling"], told["seed"]) == (None, None)
    assert told["prompt_sets"]["cups"]["truncated"]["model"] is None


def test_what_drew_the_pictures_may_have_been_trained_on_a_scorer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "names", lambda _domain: ("redness", "spread"))
    rows, _ = scored(folder, trained_on=["redness"])
    assert rows.groupby("scorer")["trained_on"].max().to_dict() == {"redness": 1, "spread": 0}
    with pytest.raises(ValueError, match="--trained-on blue is no scorer; choose from redness, spread"):
        scored(folder, trained_on=["blue"])


def test_pictures_are_stacked_as_they_are_decoded_and_as_a_decoder_leaves_them() -> None:
    """Convolutions take another way, and more time, for planes."""
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    images_BCHW = pictures.stacked([pictures.Read(one, "") for one in pixels_BHWC])
    assert images_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images_BCHW, torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 255)


def test_pictures_are_stacked_in_hardly_more_memory_than_they_take() -> None:
    """All of a prompt set are, for a scorer of one's own that compares with the base in one stage."""
    shown = [pictures.Read(np.full((128, 128, 3), number, np.uint8), "") for number in range(24)]
    tracemalloc.start()
    images_BCHW = pictures.stacked(shown)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.5 * images_BCHW.numel() * 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (64, 64, 3), (3, 200, 3)])
def test_a_png_holds_the_pixels_and_nothing_else(shape: tuple[int, int, int]) -> None:
    made = np.random.default_rng(0)
    for pixels_HWC in (
        made.integers(0, 256, shape, dtype=np.uint8),
        np.full(shape, 255, np.uint8),
        made.integers(0, 256, (shape[2], *shape[:2]), dtype=np.uint8).transpose(1, 2, 0),  # not in a row
    ):
        content = as_png(pixels_HWC)
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.mode == "RGB"
            assert not picture.info
            assert np.array_equal(np.asarray(picture), pixels_HWC)
        assert content == as_png(pixels_HWC)


def test_a_png_of_other_than_rgb_is_refused() -> None:
    for pixels in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ):
        with pytest.raises(ValueError, match=r"not uint8 \[H, W, 3\]"):
            as_png(pixels)  # type: ignore[arg-type]


class Drawn(pictures.Pictures):
    """Black pictures of a checkpoint, three chunks of two; notes how many files are there whenever it draws."""

    def __init__(self, root: Path) -> None:
        self.checkpoint = SimpleNamespace(name="run")  # type: ignore[assignment]
        self.suite = replace(SUITE, sampling=Sampling(micro_batch=2))
        self.root, self.device, self.clock = root, "cpu", pictures.Clock()
        self.there: list[int] = []

    def _refuse_lost(self) -> None:
        """The folder is its own."""

    def _drawn(self, part: Part, items: Any) -> Any:
        self.there.append(len([*self.root.rglob("*.png")]))
        return np.zeros((len(items), 64, 64, 3), np.uint8)


def test_a_cpu_writes_what_it_drew_before_it_draws_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an accelerator see `test_score_shards`."""
    monkeypatch.setattr(pictures, "CHUNK", 2)
    drawing = Drawn(tmp_path)
    drawing.make(PART, pictures.items_of(PART), wait=True)
    assert drawing.there == [0, 2, 4]
    assert len([*tmp_path.rglob("*.png")]) == 6


@pytest.mark.parametrize("count", [0, 1, pictures.THREADS, 4 * pictures.THREADS + 1])
def test_what_threads_did_comes_in_order(count: int) -> None:
    assert pictures._in_threads(lambda place: place, count) == [*range(count)]


def test_what_fails_in_a_thread_is_not_lost() -> None:
    def fails(place: int) -> None:
        if place == 5:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        pictures._in_threads(fails, 8)


def test_pictures_that_a_checkpoint_drew_have_the_same_hash_when_given(folder: Path) -> None:
    rows, _ = scored(folder)
    before = rows["picture"].tolist()
    path = folder / "p1" / "1.png"
    Image.open(path).save(path.with_suffix(".webp"), lossless=True)
    path.unlink()
    assert scored(folder)[0]["picture"].tolist() == before


@pytest.mark.parametrize("below", ["", "cups"])
def test_genevals_layout_goes_by_the_text(folder: Path, below: str) -> None:
    straight, _ = scored(folder)
    theirs = folder.parent / "geneval"
    for number, prompt in enumerate(reversed(ASKED)):  # not in the order of the set
        samples = theirs / below / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps({"tag": "colors", "prompt": prompt.text}))
        (samples.parent / "grid.png").write_bytes(b"")
        for image in range(2):
            (folder / prompt.id / f"{image}.png").rename(samples / f"{image:04d}.png")
    rows, _ = scored(theirs)
    assert rows.drop(columns="file").equals(straight.drop(columns="file"))
    (theirs / below / "00001" / "metadata.jsonl").write_text(json.dumps({"prompt": "a hat"}))
    with pytest.raises(ValueError, match=r"metadata.jsonl is of the prompt 'a hat', which cups has not"):
        scored(theirs)
    (theirs / below / "00001" / "metadata.jsonl").write_text("[")
    with pytest.raises(ValueError, match=r"00001/metadata.jsonl does not say a prompt"):
        scored(theirs)


def test_equal_texts_are_told_apart_by_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "load", lambda _name: tuple(replace(one, text="a cup") for one in ASKED))
    straight, _ = scored(folder)
    for number, prompt in enumerate(ASKED):
        samples = folder / f"{number:05d}" / "samples"
        samples.parent.mkdir()
        (folder / prompt.id).rename(samples)
        (samples.parent / "metadata.jsonl").write_text(json.dumps({"prompt": "a cup"}))
    assert scored(folder)[0]["picture"].tolist() == straight["picture"].tolist()


def test_several_prompt_sets_are_folders_of_their_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(SUITE, parts=(PART, replace(PART, prompt_set="mugs")))
    monkeypatch.setattr(suites, "load", lambda _name: two)
    with pytest.raises(
        ValueError, match=r"theirs has no folder cups: suite small asks for the prompt sets cups, mugs"
    ):
        scored(folder)
    whole = folder.rename(folder.parent / "cups")
    folder.mkdir()
    whole.rename(folder / "cups")
    with pytest.raises(ValueError, match="has no folder mugs"):
        scored(folder)
    import shutil

    shutil.copytree(folder / "cups", folder / "mugs")
    rows, _ = scored(folder)
    assert {*rows["prompt_set"]} == {"cups", "mugs"}
    (folder / "hats").mkdir()
    with pytest.raises(ValueError, match="hats is no prompt set of suite small: it has cups, mugs"):
        scored(folder)


def deep(path: Path) -> None:
    """A PNG of 16 bits a channel, in colour, which Pillow reads but does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + bytes(64 * 6)) * 64
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def huge(path: Path) -> None:
    """A decompression bomb: 10 kB that say 4 gigapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(10_000)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "p9").mkdir(), r"p9 is of no prompt of cups: its prompts have ids such as p0"),
        (lambda f: (f / "p1").rename(f / ".p1"), r"2 of the 6 .*\(missing, .*: p1/0.png, p1/1.png\)"),
        (lambda f: (f / "p1" / "1.png").unlink(), r"1 of the 6 .* in .*theirs cannot .*: p1/1.png\): mend"),
        (
            lambda f: (f / "p1" / "0.png").rename(f / "p1" / "2.png"),
            r"missing, a prompt's pictures are numbered from 0: p1/0.png\)",
        ),
        (lambda f: drawn(1).save(f / "p1" / "0.jpg"), r"0.jpg and 0.png are both picture 0: keep one"),
        (lambda f: drawn(1).save(f / "p1" / "cup.png"), r"cup.png has no number for a name"),
        (
            lambda f: drawn(1, 70).save(f / "p1" / "1.png"),
            r"of another size than most, .*: p1/1.png of 70 x 70, not 64 x 64\)",
        ),
        (lambda f: drawn(1, 20).save(f / "p1" / "1.png"), r"too small, .* 64 pixels: p1/1.png of 20 x 20\)"),
        (lambda f: huge(f / "p1" / "1.png"), r"large, more than 67108864 pixels: p1/1.png of 65000 x"),
        (lambda f: deep(f / "p1" / "1.png"), r"16 bits a channel or more, save with 8: p1/1.png\)"),
        (
            lambda f: Image.fromarray(np.zeros((64, 64), np.uint16)).save(f / "p1" / "1.png"),
            r"16 bits a channel or more, save with 8: p1/1.png\)",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(folder: Path, change: Any, told: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=told):
        scored(folder)


def break_five(folder: Path) -> None:
    """One picture each is left of two prompts, none of the third."""
    huge(folder / "p0" / "1.png")
    drawn(1, 20).save(folder / "p1" / "1.png")
    drawn(1, 70).save(folder / "p0" / "0.png")
    shutil.rmtree(folder / "p2")


def test_all_that_cannot_be_scored_is_told_at_once(folder: Path) -> None:
    for image in range(2, 6):
        drawn(image).save(folder / "p0" / f"{image}.png")
    break_five(folder)
    with pytest.raises(ValueError) as refused:
        scored(folder)
    listed = (
        "missing, a prompt's pictures are numbered from 0: p2/0.png, p2/1.png; too large, more than 67108864 pixels: p0/1.png of 65000 x 65000; "
        "too small, a side of less than 64 pixels: p1/1.png of 20 x 20"
    )
    assert str(refused.value).startswith(
        f"5 of the 6 pictures in {folder} cannot be scored ({listed}; of anoth"
    )
    assert str(refused.value).endswith("): mend them, or score the others with --skip-unfit")
    assert not (folder.parent / "scores.csv").exists()


def test_what_cannot_be_scored_can_be_skipped_and_is_counted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = scored(folder)
    calls: list[int] = []
    monkeypatch.setattr(harness, "_asked", counted_calls(calls, harness._asked))
    drawn(11, 20).save(folder / "p1" / "1.png")
    (folder / "p2" / "0.png").unlink()
    (folder / "p0" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2 of the 6"):
        scored(folder)
    assert calls == []
    assert score_rows.read([folder.parent / "scores.csv"]).equals(before)  # what was scored is kept
    rows, told = scored(folder, skip_unfit=True)
    assert len(rows) == len(before)
    redness, old = (
        of[of["scorer"] == "redness"].set_index(["prompt_id", "image"])["value"] for of in (rows, before)
    )
    gone = [("p0", 1), ("p1", 1), ("p2", 0)]
    assert [*redness.index[redness.isna()]] == gone
    assert redness.drop(gone).equals(old.drop(gone))
    counted = told["prompt_sets"]["cups"]
    assert counted["failed_decodes"] == 1
    assert counted["unfit"] == {"missing": 1, "too small": 1}
    assert counted["not_applicable"] == {"redness": 3, "spread": 6}
    said = capsys.readouterr().err
    assert f"note: {folder / 'p2' / '0.png'}: is missing, so it has no scores\n" in said
    assert f"note: {folder / 'p1' / '1.png'}: is too small, so it has no scores\n" in said
    (foot,) = [line for line in asides.read([folder.parent / "scores.csv"]) if "of 6 pictures" in line]
    assert "of 6 pictures 1 could not be decoded, 1 missing, 1 too small" in foot


def counted_calls(calls: list[int], asked: Any) -> Any:
    """Keeps of how many pictures a scorer is asked."""

    def ask(name: str, scorer: Any, items: Any, *more: Any) -> Any:
        calls.append(len(items))
        return asked(name, scorer, items, *more)

    return ask


def test_a_skipped_picture_is_scored_once_it_is_there(folder: Path) -> None:
    straight, _ = scored(folder)
    whole = (folder / "p1" / "1.png").rename(folder.parent / "1.png")
    assert scored(folder, skip_unfit=True)[0]["value"].isna().sum() == 3
    whole.rename(folder / "p1" / "1.png")
    rows, told = scored(folder, skip_unfit=True)
    assert rows.equals(straight)
    assert told["prompt_sets"]["cups"]["unfit"] == {}


def test_what_was_kept_before_it_was_said_what_is_unfit_is_still_good(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, _ = scored(folder)
    for kept in (folder.parent / "scores.csv.parts").glob("*.json"):
        record = json.loads(kept.read_text())
        kept.write_text(json.dumps({**record, "pictures": [one[:5] for one in record["pictures"]]}))
    calls: list[int] = []
    monkeypatch.setattr(harness, "_asked", counted_calls(calls, harness._asked))
    assert scored(folder)[0].equals(straight)
    assert calls == []


def test_what_is_fit_depends_on_the_others(folder: Path) -> None:
    """A file that has not changed is of another size than most once the others have."""
    drawn(1, 80).save(folder / "p1" / "1.png")
    assert scored(folder, skip_unfit=True)[1]["prompt_sets"]["cups"]["size"] == [64, 64]
    for number, path in enumerate(p for p in folder.glob("*/*.png") if p != folder / "p1" / "1.png"):
        if number:
            drawn(number, 80).save(path)
    rows, told = scored(folder, skip_unfit=True)
    assert told["prompt_sets"]["cups"]["unfit"] == {"of another size than most": 1}
    redness = rows[rows["scorer"] == "redness"].set_index(["prompt_id", "image"])["value"]
    assert not np.isnan(redness["p1", 1])


def test_where_nothing_is_left_to_score_nothing_is_skipped(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"6 of the 6 .* p1/0.png and 3 more\): nothing is left to score of cups"
    ):
        scored(folder, skip_unfit=True)


def test_the_bases_pictures_may_be_skipped_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = replace(PART, scorers=("redness", "distance"))
    monkeypatch.setattr(suites, "load", lambda _name: replace(SUITE, parts=(part,)))
    base = folder.parent / "base"
    shutil.copytree(folder, base)
    drawn(1, 20).save(base / "p0" / "1.png")
    with pytest.raises(ValueError, match=r"1 of the 6 pictures in .*base cannot be scored"):
        scored(folder, base=base)
    rows, _ = scored(folder, base=base, skip_unfit=True)
    missing = rows[rows["value"].isna()]
    assert [(*one,) for one in missing[["scorer", "prompt_id", "image"]].to_numpy()] == [
        ("distance", "p0", 1)
    ]


def test_to_skip_goes_with_given_pictures(folder: Path) -> None:
    options = ["--suite", "small", "--name", "x", "--skip-unfit"]
    done = CliRunner().invoke(main, ["score", str(folder), "--out", str(folder.parent / "x.csv"), *options])
    assert done.exit_code == 2
    assert "--skip-unfit goes with --pictures" in done.output
    (folder / "p1" / "1.png").unlink()
    done = CliRunner().invoke(
        main, ["score", str(folder), "--out", str(folder.parent / "x.csv"), *options, "--pictures"]
    )
    assert done.exit_code == 0


def test_more_pictures_than_asked_for_are_left_and_it_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, _ = scored(folder)
    drawn(7).save(folder / "p1" / "2.png")
    assert scored(folder)[0].equals(straight)
    assert (
        "note: 1 of the 3 prompts of cups have more than 2 pictures: the first 2 are scored"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("broken", ["cut off", "a flipped bit", "no picture", "empty"])
def test_a_picture_that_cannot_be_decoded_has_no_scores_and_is_counted(
    folder: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "p1" / "1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut off": content[:900], "a flipped bit": content, "no picture": b"GIF89a?", "empty": b""}
    path.write_bytes(bytes(damaged[broken]))
    rows, told = scored(folder)
    redness, spread = (
        rows[rows["scorer"] == name]["value"].isna().tolist() for name in ("redness", "spread")
    )
    assert redness == [False, False, False, True, False, False]
    assert spread == [False, False, True, True, False, False]  # a group of one is no group of two
    assert rows["picture"].eq("").sum() == 2
    counted = told["prompt_sets"]["cups"]
    assert counted["failed_decodes"] == 1
    assert counted["not_applicable"] == {"redness": 1, "spread": 2}
    assert f"note: {path}: cannot be decoded, so it has no scores\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "made", "expected"),
    [
        ("L", "L converted to RGB", (100, 100, 100)),
        ("P", "P converted to RGB", (200, 100, 50)),
        ("RGBA", "transparency laid over white", (227, 177, 152)),
        ("LA", "transparency laid over white", (177, 177, 177)),
    ],
)
def test_what_is_not_rgb_is_converted_and_counted(
    folder: Path, mode: str, made: str, expected: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    colour = {"L": 100, "LA": (100, 128), "RGBA": (200, 100, 50, 128)}.get(mode, (200, 100, 50))
    whole = Image.new("RGB" if mode == "P" else mode, (64, 64), colour)
    path = folder / "p1" / "1.png"
    (whole.quantize(4) if mode == "P" else whole).save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    _, told = scored(folder)
    assert told["prompt_sets"]["cups"]["converted"] == {made: 1}
    assert pictures.read(path).pixels_HWC[5, 5] == pytest.approx(expected, abs=1)
    assert f"note: {path}: {made}\n" in capsys.readouterr().err


def test_black_and_repeated_pictures_are_scored_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("p0/0.png", "p0/1.png", "p2/0.png"):
        Image.new("RGB", (64, 64)).save(folder / name)
    rows, told = scored(folder)
    counted = told["prompt_sets"]["cups"]
    assert (counted["black"], counted["duplicates"]) == (3, {"within_prompts": 1, "across_prompts": 1})
    assert bool(rows["value"].notna().all())
    said = capsys.readouterr().err
    assert "p0/0.png: is all black, as a safety checker leaves it, as are 2 more" in said


def test_a_scorer_that_compares_needs_the_bases_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paired = replace(SUITE, parts=(replace(PART, scorers=("redness", "distance")),))
    monkeypatch.setattr(suites, "load", lambda _name: paired)
    rows, _ = scored(folder)
    assert {*rows["scorer"]} == {"redness"}
    assert "note: without --base no distance" in capsys.readouterr().err

    import shutil

    base = folder.parent / "base"
    shutil.copytree(folder, base)
    (base / "p2" / "1.png").write_bytes(b"")
    rows, _ = scored(folder, base=base)
    missing = rows[rows["value"].isna()]
    assert [(*one,) for one in missing[["scorer", "prompt_id", "image"]].to_numpy()] == [
        ("distance", "p2", 1)
    ]
    first = rows[rows["scorer"] == "distance"]["value"].iloc[0]

    drawn(9).save(base / "p0" / "1.png")  # another base: features that are kept are of the old one
    rows, _ = scored(folder, base=base)
    assert rows[rows["scorer"] == "distance"]["value"].iloc[0] != first
    harness.score_given(base, folder.parent / "base.csv", "small", "base")
    assert {*score_rows.read([folder.parent / "base.csv"])["scorer"]} == {"redness", "distance"}

    monkeypatch.setattr(
        suites, "load", lambda _name: replace(SUITE, parts=(replace(PART, scorers=("distance",)),))
    )
    with pytest.raises(ValueError, match="every scorer of suite small compares with the base's pictures"):
        scored(folder)


def test_pictures_and_the_bases_have_one_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        suites, "load", lambda _name: replace(SUITE, parts=(replace(PART, scorers=("distance",)),))
    )
    base = folder.parent / "base"
    for path in folder.rglob("*.png"):
        to = base / path.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        drawn(0, 80).save(to)
    with pytest.raises(ValueError, match=r"p0/0.png is 64 x 64 pixels, but the base's .*p0/0.png is 80 x 80"):
        scored(folder, base=base)


def test_pictures_of_which_none_can_be_decoded_have_no_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part("cups", 2, ("redness", "distance"))
    monkeypatch.setattr(suites, "load", lambda _name: replace(SUITE, parts=(part,)))
    shutil.copytree(folder, folder.parent / "base")
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    rows, told = scored(folder, base=folder.parent / "base")
    assert rows["value"].isna().all()
    assert len(rows) == 2 * 6
    assert told["prompt_sets"]["cups"]["failed_decodes"] == 6


def test_a_link_to_itself_is_a_picture_that_cannot_be_decoded(folder: Path) -> None:
    path = folder / "p0" / "0.png"
    path.unlink()
    path.symlink_to(path)
    rows, told = scored(folder)
    assert told["prompt_sets"]["cups"]["failed_decodes"] == 1
    assert rows["value"].notna().any()


def test_another_command_that_scores_into_the_same_file_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are not taken for ours."""
    others = folder.parent / "others"
    shutil.copytree(folder, others)
    drawn(99).save(others / "p0" / "0.png")
    out, done, calls = folder.parent / "scores.csv", harness.Scoring._done, []

    def meanwhile(self: harness.Scoring, unit: harness.Unit) -> Any:
        calls.append(unit)
        if len(calls) == 1:
            harness.score_given(others, out, "small", "theirs")
        return done(self, unit)

    monkeypatch.setattr(harness.Scoring, "_done", meanwhile)
    with pytest.raises(ValueError, match=r"scores\.csv\.parts is changed by another command"):
        scored(folder)
    first = score_rows.read([out])["picture"].iloc[0]
    monkeypatch.setattr(harness.Scoring, "_done", done)
    rows, _ = scored(folder)  # given again, it is ours
    assert rows["picture"].iloc[0] != first


def test_scores_of_another_are_not_replaced(folder: Path) -> None:
    scored(folder)
    out = folder.parent / "scores.csv"
    before = out.read_bytes()
    with pytest.raises(
        ValueError, match=r"scores\.csv holds the scores of theirs-external-0, and these are of b-ext"
    ):
        harness.score_given(folder, out, "small", "b")
    assert out.read_bytes() == before
    scored(folder)


def test_the_bases_own_pictures_have_no_base(folder: Path) -> None:
    options = ["--pictures", "--suite", "small", "--name", "base", "--base", str(folder)]
    done = CliRunner().invoke(main, ["score", str(folder), "--out", str(folder.parent / "x.csv"), *options])
    assert done.exit_code == 2
    assert "--base goes with another --name" in done.output
