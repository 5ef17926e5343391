"""The sheet of pairs."""

from __future__ import annotations

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
    with pytest.raises(ValueError, match="too few pictures in common"):
        picture.write(
            folder(tmp_path / "b", "red", 1), folder(tmp_path / "t", "blue", 1), tmp_path / "out.png"
        )
