"""The scorers on CLIP say what the libraries' own pipelines say of the same weights, and of weights that are not theirs one sentence.

The networks are tiny and random; the full-size ones are made and filled in the slow tests.
"""

from __future__ import annotations

import json
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import skimage
import torch
from accelerate.utils import save as pickled  # the form in which others publish some
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from evals import scorers
from evals.scorers import _clip, aesthetic, clip_score, hpsv2, pickscore
from evals.scorers._clip import OpenClip
from evals.scorers._contract import faults
from evals.weights import read_tensors
from prompts import Prompt
from tests.toy import assert_same_on_gpu

GOLDEN = Path(__file__).parent.parent.parent / "shared" / "golden" / "aesthetic"
MODULES = {"aesthetic": aesthetic, "clip_score": clip_score, "hpsv2": hpsv2, "pickscore": pickscore}
SIZE = 32
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
}
LAYERS = {
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "projection_dim": 16,
}
TINY_TRANSFORMERS = {
    "projection_dim": 16,
    "text_config": {"hidden_size": 8, **LAYERS},
    "vision_config": {"hidden_size": 32, "image_size": SIZE, "patch_size": 8, **LAYERS},
}


def random_values(model: nn.Module, seed: int) -> nn.Module:
    """Large enough that an embedding is one of the picture, and not of the positions."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        spread = 0.02 if "logit_scale" in name else 0.3
        parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Whose pipelines the scorers are compared with."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, quick_gelu in (("tiny", False), ("tiny-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps({**TINY, "quick_gelu": quick_gelu}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    return {
        "openai": random_values(open_clip.CLIP(**open_clip.get_model_config("tiny-quickgelu")), 20),
        "hps": random_values(open_clip.CLIP(**open_clip.get_model_config("tiny")), 2).half().float(),
        "pick": random_values(CLIPModel(CLIPConfig(**TINY_TRANSFORMERS)), 3),
        "head": aesthetic.Head(16).requires_grad_(False).eval(),
    }


@pytest.fixture(scope="module")
def laid_out(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights as the owners lay theirs out."""
    folder = tmp_path_factory.mktemp("weights")
    places = {name: folder / place_of(name) for name in MODULES}
    for place in places.values():
        place.parent.mkdir(parents=True)
    save_file(models["openai"].state_dict(), places["clip_score"])
    pickled(models["head"].state_dict(), places["aesthetic"], safe_serialization=False)
    halves = {name: value.half() for name, value in models["hps"].state_dict().items()}
    pickled({"state_dict": halves}, places["hpsv2"], safe_serialization=False)
    computed = {
        name: value.clone() for name, value in models["pick"].named_buffers()
    }  # older transformers kept those
    save_file({**models["pick"].state_dict(), **computed}, places["pickscore"])
    return folder


def place_of(name: str) -> Path:
    """Of a scorer's last file in T2I_WEIGHTS_DIR."""
    weights = MODULES[name].Scorer.weights[-1]
    return Path(weights.repository) / weights.files[0]


@pytest.fixture
def weights_dir(laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The tiny weights in T2I_WEIGHTS_DIR and scorers that expect them; by scorer its last file, to be spoilt."""
    shutil.copytree(laid_out, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(tmp_path))
    for name, module in MODULES.items():
        expected = tuple(replace(weights, sha256=(), free=True) for weights in module.Scorer.weights)
        monkeypatch.setattr(module.Scorer, "weights", expected)
        tiny = {"hpsv2": "tiny", "pickscore": TINY_TRANSFORMERS}.get(name, "tiny-quickgelu")
        monkeypatch.setattr(module.Scorer, "architecture", tiny)
    return {name: tmp_path / place_of(name) for name in MODULES}


def photographs() -> list[Image.Image]:
    """Large and small, square, wide and tall, some with an odd number of pixels to crop, one just noise."""
    cat, coffee, rocket = (getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket"))
    noise = np.random.default_rng(0).integers(0, 256, (75, 53, 3), dtype=np.uint8)
    arrays = [skimage.data.astronaut(), cat, cat[:, :330], coffee.transpose(1, 0, 2), rocket, noise]
    arrays += [coffee[:SIZE, :SIZE], cat[40:61, 50:80]]
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]


TEXTS = (
    "an astronaut in an orange suit",
    "a tabby cat, close up",
    "Caf\u00e9 au lait \u2014 a cup on a wooden table",
    "it's   a ROCKET's launch at 9:41!",
    "",
    "many cats " * 60,
    "noise",
    "\u72ac and \U0001f600",
)


def tensors(pictures: Sequence[Image.Image]) -> list[Tensor]:
    return [torch.from_numpy(np.array(p)).permute(2, 0, 1)[None] / 255 for p in pictures]


def asked(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(str(i), text) for i, text in enumerate(texts)]


def by_open_clip(model: Any, picture: Image.Image, text: str) -> tuple[Tensor, Tensor]:
    """Embeddings, by open_clip's own transform and tokenizer."""
    transform = open_clip.image_transform(SIZE, is_train=False)
    pixels, tokens = transform(picture)[None], open_clip.tokenize([text])
    return model.encode_image(pixels, normalize=True)[0], model.encode_text(tokens, normalize=True)[0]


def clip_score_by_hand(models: dict[str, Any], picture: Image.Image, text: str) -> float:
    seen, read = by_open_clip(models["openai"], picture, text)
    return 100 * max(float(seen @ read), 0)


def aesthetic_by_hand(models: dict[str, Any], picture: Image.Image, text: str) -> float:
    seen, _ = by_open_clip(models["openai"], picture, text)
    x = seen.double()
    for i in (0, 2, 4, 6, 7):
        layer = models["head"].layers[i]
        x = layer.weight.double() @ x + layer.bias.double()
    return float(x)


def hpsv2_by_hand(models: dict[str, Any], picture: Image.Image, text: str) -> float:
    """The authors' recipe on torchvision: tensor, long side, bars, normalisation."""
    pixels = vision.to_tensor(picture)
    scale = SIZE / max(picture.size)
    if scale != 1:
        size = [round(side * scale) for side in pixels.shape[1:]]
        pixels = vision.resize(pixels, size, InterpolationMode.BICUBIC)
        high, wide = (SIZE - side for side in size)
        pixels = vision.pad(pixels, [wide // 2, high // 2, wide - wide // 2, high - high // 2])
    pixels = vision.normalize(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    seen = models["hps"].encode_image(pixels[None], normalize=True)[0]
    return 100 * float(seen @ by_open_clip(models["hps"], picture, text)[1])


def pickscore_by_hand(models: dict[str, Any], picture: Image.Image, text: str) -> float:
    """The authors' recipe on transformers: processor on Pillow, tokenizer padded to the longest of the batch, which is this text."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    pixels = processor(picture, return_tensors="pt").pixel_values
    tokens = pickscore.tokenizer()(text, padding=True, truncation=True, max_length=77, return_tensors="pt")
    seen = models["pick"].get_image_features(pixel_values=pixels).pooler_output[0]
    read = models["pick"].get_text_features(**tokens).pooler_output[0]
    return float(models["pick"].logit_scale.exp() * (seen / seen.norm()) @ (read / read.norm()))


BY_HAND: dict[str, Callable[[dict[str, Any], Image.Image, str], float]] = {
    "aesthetic": aesthetic_by_hand,
    "clip_score": clip_score_by_hand,
    "hpsv2": hpsv2_by_hand,
    "pickscore": pickscore_by_hand,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_score_is_that_of_the_librarys_own_pipeline(name: str, models, weights_dir) -> None:
    scorer = scorers.load(name)
    pairs = [(picture, text) for picture, text in zip(photographs(), TEXTS, strict=True)]
    pairs += [(picture, TEXTS[0]) for picture, _ in pairs[1:]] + [(pairs[0][0], text) for text in TEXTS[1:]]
    expected = torch.tensor([BY_HAND[name](models, *pair) for pair in pairs])
    found = torch.cat([scorer(*tensors([picture]), asked([text])) for picture, text in pairs])
    assert expected.std() > 0.02 * expected.abs().max()  # they are of the picture and of the text
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_contract(name: str, weights_dir) -> None:
    scorer = scorers.load(name)
    images = torch.cat([F.interpolate(image, (40, 56)) for image in tensors(photographs())])
    assert faults(name, scorer, images, asked(TEXTS)) == []
    assert scorer(images, asked(TEXTS)).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODULES)
def test_a_gpu_says_the_same(name: str, weights_dir) -> None:
    images = torch.cat([F.interpolate(image, (40, 56)) for image in tensors(photographs())])
    assert_same_on_gpu(partial(scorers.load, name), images, asked(TEXTS))


@pytest.mark.parametrize("name", MODULES)
def test_a_gradient_reaches_the_pictures_and_only_them(name: str, weights_dir) -> None:
    scorer = scorers.load(name)
    images = torch.cat([vision.resize(image, [64, 64]).clamp(0.1, 0.9) for image in tensors(photographs())])
    before = scorer(images, asked(TEXTS))
    assert not before.requires_grad
    images.requires_grad_()
    scorer(images, asked(TEXTS)).sum().backward()
    assert images.grad is not None
    slope = images.grad
    differs = before != 0  # CLIPScore has no slope where it is 0
    assert bool((slope[differs].flatten(1).norm(dim=1) > 0).all())
    step = slope / slope.flatten(1).norm(dim=1).clamp(min=1e-9).view(-1, 1, 1, 1)
    after = scorer(images.detach() + step, asked(TEXTS))  # far enough to pass the steps of 8 bit
    assert bool((after > before)[differs].all())
    assert not any(parameter.requires_grad for parameter in scorer.clip.model.parameters())


def test_scorers_share_a_clip_as_long_as_one_of_them_is_there(weights_dir) -> None:
    one, other = clip_score.Scorer(), aesthetic.Scorer()
    assert one.clip is other.clip
    assert pickscore.Scorer().clip is not one.clip
    kept = weakref.ref(one.clip)
    del one
    assert kept() is not None
    del other
    assert kept() is None


def test_equal_prompts_are_read_once_and_parts_are_bounded(weights_dir, monkeypatch) -> None:
    scorer = clip_score.Scorer()
    read, seen = [], []
    reading, seeing = OpenClip.read, OpenClip.see
    monkeypatch.setattr(
        OpenClip, "read", lambda self, texts: (read.append(list(texts)), reading(self, texts))[1]
    )
    monkeypatch.setattr(
        OpenClip, "see", lambda self, pixels: (seen.append(len(pixels)), seeing(self, pixels))[1]
    )
    images = torch.rand(70, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    scores = scorer(images, asked(["a cat", "a dog"] * 35))
    assert read == [["a cat", "a dog"]]
    assert seen == [32, 32, 6]
    torch.testing.assert_close(scores[37:38], scorer(images[37:38], asked(["a dog"])), rtol=1e-5, atol=1e-5)
    read.clear()
    scorer(images, asked([str(i) for i in range(70)]))
    assert [len(part) for part in read] == [32, 32, 6]


@pytest.mark.parametrize("name", ["clip_score", "hpsv2", "pickscore"])
def test_what_is_cut_is_counted_and_not_read(name: str, weights_dir) -> None:
    scorer = scorers.load(name)
    prompts = asked(["a cat", "cat " * 75, "cat " * 76, "cat " * 75 + "dog and bird", ""])
    assert scorer.cut_tokens(prompts) == [0, 0, 1, 3, 0]
    image = tensors(photographs()[1:2])[0].expand(4, -1, -1, -1)
    _, fits, *cut = scorer(image, prompts[:4]).tolist()
    assert cut == pytest.approx([fits, fits], rel=1e-5)


def test_the_tokens_are_clips() -> None:
    """Those of the published vocabulary, for both tokenizers."""
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert pickscore.tokenizer()("a photo of a cat").input_ids == ids
    assert _clip.tokenizer()(["a photo of a cat"])[0, :7].tolist() == ids
    texts = ["Wall-E's 3 robots, 100% (really)!", "\u72ac \U0001f600", "x" * 50]
    for text in texts:
        plain = pickscore.tokenizer()(text).input_ids
        assert _clip.tokenizer()([text])[0, : len(plain)].tolist() == plain


def test_openais_weights_are_run_with_quick_gelu(models, weights_dir, monkeypatch) -> None:
    """Their tensors fit the other activation as well, and nothing but the score would tell."""
    monkeypatch.undo()
    for module in (aesthetic, clip_score):
        assert open_clip.get_model_config(module.Scorer.architecture)["quick_gelu"] is True
    assert not open_clip.get_model_config(hpsv2.Scorer.architecture).get("quick_gelu")
    path = weights_dir["clip_score"]
    clip = OpenClip("tiny-quickgelu", path, "cpu")
    activations = [
        m for m in clip.model.modules() if isinstance(m, nn.GELU | open_clip.transformer.QuickGELU)
    ]
    assert {type(m) for m in activations} == {open_clip.transformer.QuickGELU}
    x = torch.linspace(-3, 3, 13)
    assert torch.allclose(activations[0](x), x * torch.sigmoid(1.702 * x))
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(OpenClip("tiny", path, "cpu").see(pixels), clip.see(pixels), rtol=1e-3)


# weights that are not theirs


def told(call: Callable[[], object]) -> str:
    """What is said, one sentence on one line."""
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


def score(name: str) -> Callable[[], object]:
    return lambda: scorers.load(name)(torch.zeros(1, 3, 40, 40), asked(["a cat"]))


@pytest.mark.parametrize("name", MODULES)
def test_another_content_is_refused(name: str, weights_dir, monkeypatch) -> None:
    *others, last = MODULES[name].Scorer.weights
    monkeypatch.setattr(MODULES[name].Scorer, "weights", (*others, replace(last, sha256=("0" * 64,))))
    assert f"{weights_dir[name]} is not the {weights_dir[name].name} of {last.repository}" in told(
        score(name)
    )


@pytest.mark.parametrize("name", MODULES)
def test_half_a_file_is_refused(name: str, weights_dir) -> None:
    content = weights_dir[name].read_bytes()
    weights_dir[name].write_bytes(content[: len(content) // 2])
    assert re.search(f"{re.escape(str(weights_dir[name]))} is .*damaged", told(score(name)))


@pytest.mark.parametrize("name", ["aesthetic", "hpsv2"])
def test_a_pickle_with_code_is_not_run(name: str, weights_dir, tmp_path: Path) -> None:
    trace = tmp_path / "run"
    weights_dir[name].write_bytes(f"cposix\nsystem\n(S'touch {trace}'\ntR.".encode())
    assert f"{weights_dir[name]} is a pickle that holds more than tensors" in told(score(name))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "whose", "what"),
    [
        ("clip_score", "pick", "tiny-quickgelu"),
        ("hpsv2", "pick", "tiny"),
        ("pickscore", "openai", "a CLIP ViT-H/14 in transformers' form"),
        ("aesthetic", "hps", "an aesthetic head for embeddings of 16 numbers"),
    ],
)
def test_another_architecture_is_named(name: str, whose: str, what: str, models, weights_dir) -> None:
    pickled(
        models[whose].state_dict(), weights_dir[name], safe_serialization=name in ("clip_score", "pickscore")
    )
    said = told(score(name))
    assert said.startswith(f"{weights_dir[name]} does not hold the weights of {what}: missing: ")
    assert "; foreign: " in said


def test_another_shape_is_named(models, weights_dir) -> None:
    state = {**models["openai"].state_dict(), "text_projection": torch.zeros(8, 4)}
    save_file(state, weights_dir["clip_score"])
    assert told(score("clip_score")).endswith("tiny-quickgelu: of another shape: text_projection")
    del state["text_projection"], state["ln_final.bias"]
    save_file(state, weights_dir["clip_score"])
    assert told(score("clip_score")).endswith("tiny-quickgelu: missing: text_projection and 1 more")


@pytest.mark.parametrize("name", ["aesthetic", "clip_score"])
def test_openais_terms_are_to_be_accepted(name: str) -> None:
    said = told(lambda: scorers.load(name))
    assert "--accept-terms timm/vit_large_patch14_clip_224.openai" in said


@pytest.mark.parametrize("name", ["hpsv2", "pickscore"])
def test_terms_that_are_plain_need_no_word(name: str) -> None:
    assert all(w.free for w in scorers.weights_of(scorers.load(name)))


@pytest.mark.parametrize("name", ["aesthetic", "clip_score", "hpsv2"])
def test_the_version_is_known_without_the_weights(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(tmp_path))
    assert re.fullmatch("[0-9a-f]{8}", MODULES[name].Scorer().version)


# LAION's own heads on the embeddings that they ship


def rated(folder: str) -> Tensor:
    """Embeddings of ten pictures, rated 0 to 9, [10, D]."""
    if not (GOLDEN / folder).is_dir():
        pytest.skip(f"the stored embeddings are not at {GOLDEN}")
    rows = [np.load(GOLDEN / folder / f"rating{i}.npy").reshape(-1) for i in range(10)]
    return F.normalize(torch.from_numpy(np.stack(rows)).float(), dim=-1)


def test_the_released_head_rises_with_the_rating() -> None:
    embeddings = rated("vit_l_14_embeddings")
    head = aesthetic.load_head(GOLDEN / "improved" / "sac+logos+ava1-l14-linearMSE.pth", 768)
    ratings = head(embeddings)
    assert bool((ratings.diff() > 0).all())
    w, b = torch.eye(768, dtype=torch.float64), torch.zeros(768, dtype=torch.float64)
    for name in ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7"):
        layer = {part: head.state_dict()[f"{name}.{part}"].double() for part in ("weight", "bias")}
        w, b = layer["weight"] @ w, layer["weight"] @ b + layer["bias"]
    torch.testing.assert_close(ratings.double(), (embeddings.double() @ w.T + b)[:, 0], rtol=1e-5, atol=0)
    low, high = aesthetic.Scorer.range
    assert (low, high) == pytest.approx((float(b - w.norm()), float(b + w.norm())), abs=0.1)
    assert low <= float(b - w.norm())
    assert float(b + w.norm()) <= high


def test_the_released_head_is_the_file_that_is_expected() -> None:
    import hashlib

    path = GOLDEN / "improved" / "sac+logos+ava1-l14-linearMSE.pth"
    if not path.is_file():
        pytest.skip(f"the head is not at {path}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == aesthetic.Scorer.weights[1].sha256[0]


@pytest.mark.parametrize("which", ["l_14", "b_32"])
def test_the_stored_embeddings_are_in_the_order_of_their_ratings(which: str) -> None:
    """By LAION's first heads, one linear layer each: that the order is that of the pictures, and not of one head."""
    embeddings = rated(f"vit_{which}_embeddings")
    head = read_tensors(GOLDEN / f"sa_0_4_vit_{which}_linear.pth")
    ratings = F.linear(embeddings, head["weight"], head["bias"])[:, 0]
    assert bool((ratings.diff() > 0).all())


# full size


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """Where a file of gigabytes may lie until the test is over."""
    path = tmp_path / "full.safetensors"
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "parameters", "width"),
    [("ViT-L-14-quickgelu", 427_616_513, 768), ("ViT-H-14", 986_109_441, 1024)],
)
def test_the_full_size_takes_its_own_weights(
    architecture: str, parameters: int, width: int, large: Path
) -> None:
    with torch.device("meta"):
        made = open_clip.CLIP(**open_clip.get_model_config(architecture))
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters
    save_file(random_halves(made), large)
    clip = OpenClip(architecture, large, "cpu")
    assert clip.size == 224
    assert {parameter.device.type for parameter in clip.model.parameters()} == {"cpu"}
    read = clip.read(["a cat"])
    assert read.shape == (1, width)
    assert bool(read.isfinite().all())


@pytest.mark.slow
def test_the_full_size_of_transformers_takes_its_own_weights(large: Path) -> None:
    with torch.device("meta"):
        made = CLIPModel(CLIPConfig(**pickscore.VIT_H_14))
    assert sum(parameter.numel() for parameter in made.parameters()) == 986_109_441
    save_file(random_halves(made), large)
    clip = pickscore.TransformersClip(pickscore.VIT_H_14, large, "cpu")
    assert clip.size == 224
    read = clip.read(["a cat"])
    assert read.shape == (1, 1024)
    assert bool(read.isfinite().all())


def random_halves(model: nn.Module) -> dict[str, Tensor]:
    """Values for every tensor of a model, drawn from the same million numbers, so that a gigabyte takes a second."""
    drawn = 0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0)).half()
    return {
        name: drawn.repeat(-(-value.numel() // len(drawn)))[: value.numel()].reshape(value.shape).clone()
        for name, value in model.state_dict().items()
    }
