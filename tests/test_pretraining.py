"""Pictures with captions for the pretraining step: folders and shards, what is read by whom, what is damaged."""

from __future__ import annotations

import gzip
import io
import json
import re
import signal
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from evals.decoder import decode
from evals.diffusion import Painter, Sampling, derive_seed, noise
from tests import toy
from tests.test_resume import Runner, assert_same, train_toy
from train import images, loop
from train.config import Pretraining
from train.data import DataFailed, EncodedPairs, encode, positions, pretraining_source
from train.images import FolderPairs, ShardPairs, expand, index_of, open_pairs, picture_of
from train.loop import Stopped, pretraining_pairs, pretraining_step, train
from train.start import new_accelerator, prepare
from train.state import latest

COUNT = 14


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is kept what lies where in a shard."""
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(images, "_cache", lambda: tmp_path / "assets")
    return tmp_path / "assets"


def pixels(seed: int, height: int = 10, width: int = 12) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: Any, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(stream, kind, **options)
    return stream.getvalue()


def members(count: int = COUNT) -> list[tuple[str, bytes]]:
    """What img2dataset leaves: pictures, captions, metadata."""
    found = []
    for i in range(count):
        found.append((f"{i:05d}.png", encoded(pixels(i))))
        found.append((f"{i:05d}.txt", f"  picture {i}\n".encode()))
        found.append((f"{i:05d}.json", json.dumps({"caption": "not this", "url": "x"}).encode()))
    return found


def write_folder(folder: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_shard(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter.of(toy.build_tiny_pipeline(), Sampling(steps=2, micro_batch=3))


def source_of(where: Path | str, painter: Painter, seed: int = 0, limit: float = 0.05) -> EncodedPairs:
    found = pretraining_source(Pretraining(str(where), max_unreadable=limit), painter, seed)
    assert isinstance(found, EncodedPairs)
    return found


# --------------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_of_the_right_size_is_itself() -> None:
    array = pixels(0, 6, 8)
    found = picture_of(encoded(array), 6, 8)
    assert torch.equal(found, torch.from_numpy(array).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(("height", "width", "box"), [(8, 20, (6, 0, 14, 8)), (21, 8, (0, 6, 8, 14))])
def test_the_middle_is_cut_out(height: int, width: int, box: tuple[int, int, int, int]) -> None:
    array = pixels(1, height, width)
    middle = np.asarray(Image.fromarray(array).crop(box), dtype=np.float32)
    found = picture_of(encoded(array), 8, 8).permute(1, 2, 0).numpy() * 255
    if height == 21:  # 6.5 pixels are cut from either end, which blends neighbours
        assert np.abs(found - middle).mean() < 80
        return
    np.testing.assert_allclose(found, middle, atol=1e-4)


def test_the_short_side_is_resized() -> None:
    smooth = Image.fromarray(pixels(2, 4, 6)).resize((60, 40), Image.Resampling.BICUBIC)
    found = picture_of(encoded(smooth), 20, 20).permute(1, 2, 0).numpy() * 255
    expected = smooth.resize((30, 20), Image.Resampling.LANCZOS).crop((5, 0, 25, 20))
    np.testing.assert_allclose(found[:, 2:-2], np.asarray(expected)[:, 2:-2], atol=2)


def test_every_mode_is_rgb_and_upright() -> None:
    array = pixels(3, 8, 8)
    grey = Image.fromarray(array).convert("L")
    for mode in ("L", "P", "RGBA", "CMYK"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        found = picture_of(encoded(Image.fromarray(array).convert(mode), kind), 8, 8)
        assert found.shape == (3, 8, 8)
    assert torch.equal(picture_of(encoded(grey), 8, 8)[0], torch.from_numpy(np.array(grey)) / 255)
    turned, exif = Image.fromarray(array), Image.Exif()
    exif[0x0112] = 3  # a camera held upside down
    found = picture_of(encoded(turned, exif=exif), 8, 8)
    assert torch.equal(found, picture_of(encoded(array), 8, 8).flip(1, 2))


def test_what_is_transparent_is_white_and_sixteen_bits_of_grey_are_cut_to_eight() -> None:
    """As in scoring; the colour below what nobody sees is arbitrary, mostly black."""
    hidden = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    palette = Image.new("P", (8, 8), 0)
    for content in (
        encoded(hidden),
        encoded(hidden, "WEBP", lossless=True),
        encoded(palette, transparency=0),
        encoded(Image.new("LA", (8, 8), (0, 0))),
    ):
        assert torch.equal(picture_of(content, 8, 8), torch.ones(3, 8, 8))
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024 + 77
    assert torch.equal(picture_of(encoded(deep), 8, 8)[1] * 255, torch.from_numpy(deep // 256).float())


@pytest.mark.parametrize("orientation", range(1, 10))
def test_orientation_turns_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(pixels(3, 8, 8), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert torch.equal(picture_of(content, 8, 8), picture_of(encoded(upright), 8, 8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_costs_the_picture_at_most(kind: str) -> None:
    """The maker's name is a float, which Pillow cannot write again."""
    entries = struct.pack("<HHLf", 0x010F, 11, 1, 0.5) + struct.pack("<HHLHH", 0x0112, 3, 1, 3, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + bytes(4)
    found = picture_of(encoded(pixels(4, 8, 8), kind, exif=exif), 8, 8)
    assert torch.equal(found, picture_of(encoded(pixels(4, 8, 8), kind), 8, 8).flip(1, 2))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_without_its_end_is_unreadable(kind: str) -> None:
    with pytest.raises(images.UNREADABLE):
        picture_of(encoded(pixels(4, 8, 8), kind, exif=b"Exif\0\0II*\0\x08"), 8, 8)


def test_only_three_formats_are_opened() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        picture_of(encoded(pixels(4), kind), 8, 8)
    for kind in ("BMP", "EPS", "TIFF"):
        with pytest.raises(images.UNREADABLE):
            picture_of(encoded(pixels(4), kind), 8, 8)


# ------------------------------------------------------------------------------------------------------------------ latents


def test_a_latent_is_a_sample_of_the_encoders_gaussian_scaled(painter: Painter, tmp_path: Path) -> None:
    source = source_of(write_folder(tmp_path / "data", members()), painter, seed=5)
    latents, captions = source.batch(2, 4, rank=0, world=1)
    chosen = positions(COUNT, 8, 4, "pretraining", 5)
    assert captions == [f"picture {i}" for i in chosen]
    for place, (i, latent) in enumerate(zip(chosen, latents, strict=True), start=8):
        picture = picture_of(encoded(pixels(i)), 8, 8)[None]
        with torch.no_grad():
            gaussian = painter.vae.encode(2 * picture - 1).latent_dist
        z = noise(derive_seed("posterior", 5), f"picture {i}", place, (4, 4, 4), 0)[0]
        expected = (gaussian.mean[0] + gaussian.std[0] * z) * 0.5  # the toy's scaling_factor
        torch.testing.assert_close(latent, expected, rtol=0, atol=1e-6)
        assert (latent - gaussian.mean[0] * 0.5).abs().max() > 1e-3


def test_encoding_is_the_reverse_of_decoding() -> None:
    """With an autoencoder that only rearranges: 3 channels of 2x2 pixels as 12."""

    class Rearranging(torch.nn.Module):
        config = SimpleNamespace(scaling_factor=0.25, block_out_channels=(3, 12))

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, x: torch.Tensor) -> Any:
            mean = torch.nn.functional.pixel_unshuffle(x, 2)
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.zeros_like(mean)))

        def decode(self, z: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (torch.nn.functional.pixel_shuffle(z, 2),)

    pictures = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = encode(Rearranging(), pictures, torch.randn(5, 12, 4, 4), micro_batch=2)
    torch.testing.assert_close(decode(Rearranging(), latents, 2), pictures, rtol=0, atol=1e-6)


def test_processes_read_disjoint_parts_of_what_one_reads(
    painter: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "data", members())
    read: list[int] = []
    whole_read = FolderPairs.read
    monkeypatch.setattr(FolderPairs, "read", lambda self, i: read.append(i) or whole_read(self, i))
    latents, captions = source_of(folder, painter).batch(0, 12, rank=0, world=1)
    alone, parts = list(read), []
    for rank in range(3):
        read.clear()
        parts.append(source_of(folder, painter).batch(0, 12, rank, world=3))
        assert sorted(read) == sorted(alone[4 * rank : 4 * rank + 4])
    assert torch.equal(torch.cat([part for part, _ in parts]), latents)
    assert [caption for _, part in parts for caption in part] == captions
    assert len(set(captions)) == 12  # all once before any twice


def test_a_batch_depends_on_seed_and_iteration_alone(painter: Painter, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", members())
    source, fresh = source_of(folder, painter), source_of(folder, painter)
    before = [source.batch(iteration, 4, 0, 1)[0] for iteration in range(4)]
    assert torch.equal(fresh.batch(3, 4, 0, 1)[0], before[3])
    assert not torch.equal(before[0], before[1])
    assert not torch.equal(source_of(folder, painter, seed=1).batch(0, 4, 0, 1)[0], before[0])


# ------------------------------------------------------------------------------------------------------------------ layouts


def captions_of(pairs: Any) -> list[str]:
    return [pairs.read(i)[1] for i in range(len(pairs))]


def test_captions_stand_beside_pictures_in_folders_below_too(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        [
            ("b/1.jpg", encoded(pixels(1), "JPEG")),
            ("b/1.json", b'{"caption": " of json "}'),
            ("a/2.PNG", encoded(pixels(2))),
            ("a/2.txt", "von  Text \u00e4\n".encode()),
            ("a/2.json", b'{"caption": "not this"}'),
            ("3.webp", encoded(pixels(3), "WEBP")),
            ("3.txt", b"third"),
            ("a/notes.txt", b"of no picture"),
            ("._3.webp", b"what a file manager leaves"),
        ],
    )
    pairs = open_pairs(str(folder), 0.0)
    assert captions_of(pairs) == ["third", "von  Text \u00e4", "of json"]
    assert [pairs.where(i) for i in range(3)] == [str(folder / n) for n in ("3.webp", "a/2.PNG", "b/1.jpg")]


def test_metadata_names_pictures_and_captions(tmp_path: Path) -> None:
    lines = [{"file_name": "x/1.png", "text": "first "}, {"file_name": "2.png", "caption": "second"}]
    folder = write_folder(
        tmp_path,
        [
            ("x/1.png", encoded(pixels(1))),
            ("2.png", encoded(pixels(2))),
            ("unlisted.png", b""),
            ("metadata.jsonl", "\n".join(map(json.dumps, lines)).encode()),
        ],
    )
    pairs = open_pairs(str(folder), 0.0)
    assert captions_of(pairs) == ["first", "second"]
    assert pairs.read(1)[0] == encoded(pixels(2))


def test_patterns_are_those_of_webdataset() -> None:
    assert expand("a/{008..010}.tar") == ["a/008.tar", "a/009.tar", "a/010.tar"]
    assert expand("{0..1}/{0..1}.tar") == ["0/0.tar", "0/1.tar", "1/0.tar", "1/1.tar"]
    assert expand("a/b.tar") == ["a/b.tar"]


def test_shards_are_a_folder_one_of_them_or_a_pattern(painter: Painter, tmp_path: Path) -> None:
    files, shards = members(), tmp_path / "shards"
    folder = write_folder(tmp_path / "data", files)
    for number, part in enumerate((files[:15], files[15:18], files[18:])):
        write_shard(shards / f"{number:03d}.tar", part)
    (shards / "000.parquet").write_bytes(b"what img2dataset puts beside them")
    expected = source_of(folder, painter).batch(1, 8, 0, 1)
    for given in (str(shards), f"{shards}/{{000..002}}.tar"):
        latents, captions = source_of(given, painter).batch(1, 8, 0, 1)
        assert torch.equal(latents, expected[0])
        assert captions == expected[1]
    assert captions_of(open_pairs(str(shards / "001.tar"), 0.0)) == ["picture 5"]


def test_no_other_member_of_a_shard_is_read(tmp_path: Path) -> None:
    files = [
        ("0.pickle", b"\x80cos\nsystem\n"),
        ("0.jpg", encoded(pixels(0), "JPEG")),
        ("0.cls", b"7"),
        ("0.json", b'{"caption": "of json"}'),
        ("1.png", encoded(pixels(1))),
        ("1.seg.png", encoded(pixels(9))),
        ("1.txt", b"of text"),
        ("1.pyd", b"\x80cos\nsystem\n"),
        ("__meta__", b"x"),
        ("x/1.txt", b"of no picture"),
    ]
    shard = write_shard(tmp_path / "0.tar", files)
    rows, uncaptioned = index_of(shard)
    content = shard.read_bytes()
    named = [
        tuple(content[start : start + size] for start, size in ((a, b), (c, d)))
        for a, b, c, d, _ in rows.tolist()
    ]
    by_name = dict(files)
    assert named == [(by_name["0.jpg"], by_name["0.json"]), (by_name["1.png"], by_name["1.txt"])]
    assert uncaptioned == 0
    assert captions_of(ShardPairs([shard])) == ["of json", "of text"]


def test_a_shard_is_looked_through_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [write_shard(tmp_path / f"{i}.tar", members(2)) for i in range(4)]
    looked: list[str] = []
    real = images.index_of
    monkeypatch.setattr(images, "index_of", lambda shard: looked.append(shard.name) or real(shard))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(ShardPairs(shards)) == 8
    assert looked == ["2.tar", "3.tar", "0.tar", "1.tar"]  # the first process starts at the other end
    looked.clear()
    assert captions_of(ShardPairs(shards)) == ["picture 0", "picture 1"] * 4
    assert looked == []
    write_shard(shards[2], members(3))
    assert len(ShardPairs(shards)) == 9
    assert looked == ["2.tar"]
    assert len(list(cache.rglob("*.safetensors"))) == 5


# ------------------------------------------------------------------------------------------------------------------- damage


def cut(size: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:size]


@pytest.mark.parametrize(
    "damage",
    [cut(700), cut(512 * 3), cut(1), cut(0), gzip.compress, lambda content: b"x" * 2000],
    ids=["in a member", "between two members", "in a header", "empty", "compressed", "something else"],
)
def test_a_shard_that_was_cut_off_is_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = write_shard(tmp_path / "0.tar", [("0.png", encoded(pixels(0))), ("0.txt", b"text")]).read_bytes()
    assert len(encoded(pixels(0))) < 512 * 2
    (path := tmp_path / "1.tar").write_bytes(damage(whole))
    with pytest.raises(
        ValueError, match=rf"^pretraining.source: {path} was cut off, or is no tar archive \(.*\)$"
    ):
        open_pairs(str(tmp_path), 0.0)


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("no picture")
    write_shard(tmp_path / "shards" / "0.tar", [])
    write_shard(tmp_path / "shards" / "1.tar", [("a.txt", b"no picture")])
    for source, told in (
        (tmp_path / "nowhere", "there is no folder"),
        (
            tmp_path / "empty",
            "holds no pictures (.jpg, .jpeg, .png, .webp), no shards of them (.tar), and no",
        ),
        (tmp_path / "words", "holds no pictures"),
        (tmp_path / "words" / "a.txt", "a.txt is a file, and no shard that can be read"),
        (tmp_path / "shards", "holds no pictures"),
        (tmp_path / "shards" / "2.tar", "there is no"),
        (f"{tmp_path}/shards/{{0..3}}.tar", "/shards/2.tar, and 1 more of the 4 of"),
        (f"{tmp_path}/shards/{{3..0}}.tar", "there is no"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)) as refused:
            open_pairs(str(source), 0.0)
        assert str(refused.value).startswith("pretraining.source: ")


def test_missing_captions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [file for file in members(10) if not file[0].startswith("00003") or file[0].endswith(".png")]
    folder = write_folder(tmp_path / "data", files)
    write_shard(tmp_path / "shards" / "0.tar", files)
    for source in (folder, tmp_path / "shards"):
        assert len(open_pairs(str(source), 0.1)) == 9
        told = f"1 of the 10 pictures of {source} have no caption"
        assert capsys.readouterr().err.endswith(f"note: {told} and are left out\n")
        with pytest.raises(
            ValueError, match=re.escape(f"{told}, and pretraining.max_unreadable allows a share of 0.05")
        ):
            open_pairs(str(source), 0.05)
    (folder / "metadata.jsonl").write_text('{"file_name": "00001.png", "text": " "}\n')
    with pytest.raises(ValueError, match=r"1 of the 1 pictures of .* have no caption"):
        open_pairs(str(folder), 0.9)
    (folder / "metadata.jsonl").write_text('{"file_name": "00001.png", "text": "x"}\n{"file_name": \n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2: not a JSON object with a file_name"):
        open_pairs(str(folder), 0.9)


DAMAGES: dict[str, tuple[str, bytes]] = {
    "cut off": ("00004.png", encoded(pixels(4))[:-40]),
    "no picture": ("00004.png", b"<html>gone</html>"),
    "empty": ("00004.png", b""),
    "no words": ("00004.txt", b" \n"),
    "not UTF-8": ("00004.txt", b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_in_the_place_of_what_cannot_be_read_comes_another(
    painter: Painter, tmp_path: Path, damage: str
) -> None:
    folder = write_folder(tmp_path / "data", [*members(), DAMAGES[damage]])
    source = source_of(folder, painter, limit=0.5)
    latents, captions = source.batch(0, COUNT, 0, 1)
    place = positions(COUNT, 0, COUNT, "pretraining", 0).index(4)
    intact = source_of(write_folder(tmp_path / "intact", members()), painter).batch(0, COUNT, 0, 1)
    others = [i for i in range(COUNT) if i != place]
    assert torch.equal(latents[others], intact[0][others])
    assert (captions[place], source.skipped) != ("picture 4", 0)
    assert source.skipped >= 1
    # whichever process it falls to
    halves = [source_of(folder, painter, limit=0.5).batch(0, COUNT, rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat([half for half, _ in halves]), latents)


def test_too_much_that_cannot_be_read_stops_with_one_sentence(
    painter: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [(f"{i:05d}.png", b"gone") for i in range(0, COUNT, 3)]
    folder = write_folder(tmp_path / "data", [*members(), *broken])
    monkeypatch.setattr(EncodedPairs, "JUDGED_FROM", 20)
    source = source_of(folder, painter, limit=0.2)
    for iteration in range(4):  # of too few nothing is said
        source.batch(iteration, 3, 0, 1)
    with pytest.raises(
        DataFailed, match=r"^pretraining data: \d+ of \d+ pictures cannot be read, such as .*\.png \("
    ) as told:
        [source.batch(iteration, 3, 0, 1) for iteration in range(4, 20)]
    assert str(told.value).endswith("and pretraining.max_unreadable allows a share of 0.2")
    source_of(folder, painter, limit=0.6).batch(0, 12, 0, 1)
    all_broken = write_folder(
        tmp_path / "all", [*members(), *((f"{i:05d}.png", b"gone") for i in range(COUNT))]
    )
    with pytest.raises(DataFailed, match="20 pictures in a row cannot be read, the last is"):
        source_of(all_broken, painter, limit=0.9).batch(0, 2, 0, 1)


# ----------------------------------------------------------------------------------------------------------------- training


def train_toy_with_cache(arguments: list[str], environment: dict[str, str], trap: str) -> None:
    images._cache = lambda: Path(environment["ASSETS"])
    train_toy(arguments, environment, trap)


class PictureRunner(Runner):
    """Runs the toy experiment with a cache of its own."""

    def __call__(self, name: str, trap: str = "") -> list[int]:
        arguments = ["toy", "--on", "tiny", "--out", str(self.place / name), *self.settings]
        return toy.launch(self.world, train_toy_with_cache, arguments, self.environment, trap)


@pytest.fixture(scope="module")
def runners(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Runner]:
    """Runs with pictures, one of which is broken, on one process and on two."""
    place = tmp_path_factory.mktemp("runs")
    write_shard(place / "shards" / "0.tar", members(6))
    write_shard(place / "shards" / "1.tar", [("5.png", b"gone"), ("5.txt", b"x"), *members(5)])
    environment = {
        "TOY_BASE": str(tiny_pipeline_dir),
        "TOY_PROMPTS": str(toy_prompts),
        "ASSETS": str(place),
    }
    settings = (
        "iterations=2",
        f"pretraining.source={place / 'shards'}",
        "pretraining.batch=6",
        "pretraining.max_unreadable=0.5",
    )
    return {world: PictureRunner(environment, place / str(world), world, settings) for world in (1, 2)}


@pytest.mark.slow
def test_two_processes_train_on_what_one_does_and_a_killed_run_goes_on(runners: dict[int, Runner]) -> None:
    for world, runner in runners.items():
        assert runner("straight") == [0] * world
    assert runners[1]("killed", "line:3") == [-signal.SIGKILL]
    assert runners[1]("killed") == [0]
    assert_same(runners[1].result("killed"), runners[1].result("straight"))
    alone, both = (
        [line for line in runner.result("straight")["lines"] if "pretrain_loss" in line]
        for runner in runners.values()
    )
    assert len(alone) == len(both) == 2
    assert sum(line.get("pretrain_skipped", 0) for line in alone) >= 1
    for one, two in zip(alone, both, strict=True):
        assert one.get("pretrain_skipped") == two.get("pretrain_skipped")
        assert two["pretrain_loss"] == pytest.approx(one["pretrain_loss"], rel=1e-3)


@pytest.mark.usefixtures("toy_scorers")
def test_weights_that_the_pretraining_step_breaks_are_not_saved(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "data", members())
    # a loss that float32 does not hold, once the task's own update is done
    pretraining = Pretraining(str(folder), batch=6, beta=1e39)
    experiment = toy.toy_experiment(tiny_pipeline_dir, toy_prompts, pretraining=pretraining, iterations=1)
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    with pytest.raises(Stopped, match="the weights diverged in iteration 0, the pretraining step"):
        train(run)
    assert latest(tmp_path / "run" / "state") is None
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_latents_that_are_no_numbers_are_refused(painter: Painter, tmp_path: Path) -> None:
    latents = torch.zeros(2, 4, 4, 4)
    latents[1, 2] = torch.nan
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    (tmp_path / "captions.jsonl").write_text('"a"\n"b"\n')
    with pytest.raises(ValueError, match=r"latents\.safetensors: latents are not all numbers"):
        pretraining_source(Pretraining(str(tmp_path)), painter, 0)


@pytest.mark.usefixtures("toy_scorers")
def test_sdxl_trains_on_pictures(tiny_xl_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", members())
    experiment = toy.toy_experiment(
        tiny_xl_dir, toy_prompts, pretraining=Pretraining(str(folder), batch=6), iterations=1
    )
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    report = pretraining_step(run, 0)
    assert 0 < report["pretrain_loss"] < 10
    assert report["pretrain_grad_norm"] > 0


def where_one_fails() -> None:
    """The data of the second process cannot be read."""
    accelerator = new_accelerator()
    rank = accelerator.process_index

    class Source:
        skipped = rank

        def batch(self, *_: int) -> tuple[torch.Tensor, list[str]]:
            if rank == 1:
                raise DataFailed("gone")
            return torch.zeros(1), ["a"]

    run: Any = SimpleNamespace(accelerator=accelerator, rank=rank, world=2)
    with pytest.raises(DataFailed) as told:
        pretraining_pairs(run, Source(), 0, 2)
    assert str(told.value) == ("gone" if rank == 1 else "on process 1: gone")


def test_pairs_are_asked_of_all_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all can be read there is nothing to ask for a second time."""
    asked: list[torch.Tensor] = []

    def gather(_: Any, local: torch.Tensor) -> torch.Tensor:
        asked.append(local)
        return local

    monkeypatch.setattr(loop, "gather", gather)
    pairs = (torch.zeros(1), ["a"])
    source: Any = SimpleNamespace(skipped=3, batch=lambda *_: pairs)
    run: Any = SimpleNamespace(rank=0, world=1)
    assert pretraining_pairs(run, source, 0, 1) == (pairs, 3)
    assert len(asked) == 1


def test_all_processes_stop_where_one_cannot_read() -> None:
    assert toy.launch(2, where_one_fails) == [0, 0]
