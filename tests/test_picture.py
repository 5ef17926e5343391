"""The sheet of pairs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from evals import picture


def folder(root: Path, colour: str, count: int) -> Path:
    for prompt_set in ("a-portraits", "a-scenes"):
        for i in range(count):
            path = root / prompt_set / f"p{i}" / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (4, 4), colour).save(path)
    return root


def test_left_is_base_and_right_is_tuned(tmp_path: Path):
    base, tuned = folder(tmp_path / "b", "red", 3), folder(tmp_path / "t", "blue", 3)
    picture.write(base, tuned, tmp_path / "out.png", columns=2, rows=2)
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.getpixel((1, 1)) == (255, 0, 0)
        assert sheet.getpixel((4 * picture.ZOOM + 1, 1)) == (0, 0, 255)


def test_too_few_pictures_is_a_sentence(tmp_path: Path):
    with pytest.raises(
        ValueError, match="the first pictures of 2 prompts in common, too few for a sheet of 24"
    ):
        picture.write(
            folder(tmp_path / "b", "red", 1), folder(tmp_path / "t", "blue", 1), tmp_path / "out.png"
        )


def test_a_picture_that_cannot_be_opened_is_named(tmp_path: Path):
    base, tuned = folder(tmp_path / "b", "red", 3), folder(tmp_path / "t", "blue", 3)
    whole = (tuned / "a-scenes" / "p0" / "0.png").read_bytes()
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, format="PNG")
    for content in (b"", whole[:45], bomb.getvalue()):
        for path in tuned.glob("*/*/0.png"):
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"0\.png cannot be opened as a picture"):
            picture.write(base, tuned, tmp_path / "out.png", columns=2, rows=2)


def test_the_sheet_replaces_no_picture(tmp_path: Path):
    base, tuned = folder(tmp_path / "b", "red", 3), folder(tmp_path / "t", "blue", 3)
    path = tuned / "a-scenes" / "p0" / "0.png"
    before = path.read_bytes()
    with pytest.raises(ValueError, match="lies among the pictures of"):
        picture.write(base, tuned, path, columns=2, rows=2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("lacking", ["a-portraits", "a-scenes"])
def test_pictures_of_one_kind_make_a_sheet(lacking: str, tmp_path: Path):
    """As Stable Diffusion's, whose portraits are of another set."""
    base, tuned = folder(tmp_path / "b", "red", 4), folder(tmp_path / "t", "blue", 4)
    for path in tuned.glob(f"{lacking}/*/0.png"):
        path.unlink()
    picture.write(base, tuned, tmp_path / "out.png", columns=2, rows=2)
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.height == 2 * 4 * picture.ZOOM + picture.GAP
