"""The released ImageReward: its weights find their places, and the scorer does what a reward has to do. That it equals the package is `make parity`'s."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from evals import scorers
from evals.scorers import _preprocess, ask_differentiable, imagereward
from evals.scorers._contract import faults
from evals.scorers._imagereward import ImageReward, cut_tokens
from evals.scorers.imagereward import MAX_LENGTH, Scorer, load_package, package_name, package_tokenizer
from prompts import Prompt
from tests.test_repository import requirements
from tests.toy import assert_same_on_gpu

WORDS = ["a", "cat", "dog", "red", "on", "the", "moon", "table", ",", "##s"]
VISION = imagereward.VISION | {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
}
MED_CONFIG = {
    "architectures": ["BertModel"],
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 5 + len(WORDS) + 2,
    "pad_token_id": 0,
    "encoder_width": 32,
}
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(["a cat", "", "a red dog on the moon", "cats"] * 2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Checkpoint, med_config.json and vocabulary of a small model under the package's names."""
    folder = tmp_path_factory.mktemp("released")
    paths = folder / "ImageReward.safetensors", folder / "med_config.json", folder / "vocab.txt"
    paths[1].write_text(json.dumps(MED_CONFIG))
    paths[2].write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        package_name(name): (0.1 if "head" in name else 0.3) * torch.randn(value.shape, generator=generator)
        for name, value in unfused(paths[2]).state_dict().items()
    }
    tensors["blip.vision_proj.weight"] = torch.zeros(256, 48)
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(tensors, paths[0])
    return paths


def unfused(vocabulary: Path) -> ImageReward:
    """The same architecture with transformers' own attention, dropout and padding."""
    text = {name: MED_CONFIG[name] for name in imagereward.OF_MED_CONFIG} | {"encoder_hidden_size": 48}
    config = {"vision": VISION, "text": text, "max_length": 35, "mean": 0.167173628, "std": 1.03333949}
    return ImageReward(config, package_tokenizer(vocabulary))


@pytest.fixture
def scorer(files: tuple[Path, Path, Path]) -> Scorer:
    return small(files)


def small(files: tuple[Path, Path, Path], dtype: torch.dtype = torch.float32) -> Scorer:
    made = Scorer(dtype=dtype)
    made.model = made.take(load_package(*files, vision=VISION))
    return made


def pictures(count: int, height: int = 40, width: int = 57) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)) / 255


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
        ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
        ("vision.embeddings.patch_embedding.weight", "blip.visual_encoder.patch_embed.proj.weight"),
        ("vision.encoder.layers.23.layer_norm1.bias", "blip.visual_encoder.blocks.23.norm1.bias"),
        ("vision.encoder.layers.0.layer_norm2.weight", "blip.visual_encoder.blocks.0.norm2.weight"),
        ("vision.encoder.layers.4.self_attn.qkv.weight", "blip.visual_encoder.blocks.4.attn.qkv.weight"),
        ("vision.encoder.layers.4.self_attn.projection.bias", "blip.visual_encoder.blocks.4.attn.proj.bias"),
        ("vision.encoder.layers.4.mlp.fc2.bias", "blip.visual_encoder.blocks.4.mlp.fc2.bias"),
        ("vision.post_layernorm.weight", "blip.visual_encoder.norm.weight"),
        ("text.embeddings.LayerNorm.bias", "blip.text_encoder.embeddings.LayerNorm.bias"),
        (
            "text.encoder.layer.11.crossattention.self.key.weight",
            "blip.text_encoder.encoder.layer.11.crossattention.self.key.weight",
        ),
        ("head.7.weight", "mlp.layers.7.weight"),
    ],
)
def test_names_of_the_package(ours: str, theirs: str) -> None:
    assert package_name(ours) == theirs


def test_the_model_is_that_of_transformers(files: tuple[Path, Path, Path], scorer: Scorer) -> None:
    """Fused attention, other padding and `float32` of everything change nothing but rounding."""
    plain = unfused(files[2]).eval()
    tensors = load_file(files[0])
    plain.load_state_dict({name: tensors[package_name(name)] for name in plain.state_dict()})
    images = pictures(8)
    with torch.no_grad():
        wanted = plain(images, [prompt.text for prompt in PROMPTS])
    assert torch.allclose(scorer(images, PROMPTS), wanted, atol=1e-5)
    assert wanted.std() > 0.01
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("mlp.layers.0.bias"), "1 missing, such as mlp.layers.0.bias"),
        (lambda tensors: tensors.update(other=torch.zeros(2)), "1 unknown, such as other"),
        (
            lambda tensors: tensors.update({"blip.visual_encoder.pos_embed": torch.zeros(1, 10, 48)}),
            "1 of another shape, such as blip.visual_encoder.pos_embed",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    files: tuple[Path, Path, Path], tmp_path: Path, change: Any, told: str
) -> None:
    tensors = load_file(files[0])
    change(tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    wanted = re.escape(f"{tmp_path}/other.safetensors does not hold the tensors of ImageReward: {told}")
    with pytest.raises(ValueError, match=f"^{wanted}$"):
        load_package(tmp_path / "other.safetensors", *files[1:], vision=VISION)


def test_contract(scorer: Scorer) -> None:
    assert faults("imagereward", scorer, pictures(8), PROMPTS) == []


@pytest.mark.gpu
def test_a_gpu_says_the_same(files: tuple[Path, Path, Path]) -> None:
    def on(device: str) -> Scorer:
        made = Scorer(device)
        made.model = made.take(load_package(*files, vision=VISION))
        return made

    assert_same_on_gpu(on, pictures(8), PROMPTS)


def test_parts_of_a_batch_change_nothing(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scorer(pictures(8), PROMPTS)
    monkeypatch.setattr(imagereward, "PART", 3)
    assert torch.allclose(scorer(pictures(8), PROMPTS), whole, atol=1e-6)


def test_the_gradient_to_pictures_is_that_of_the_model(scorer: Scorer) -> None:
    """Of the right size there is nothing to resize, and rounding lets the gradient through."""
    images = pictures(4, 32, 32).requires_grad_()
    (ours,) = torch.autograd.grad(scorer(images, PROMPTS[:4]).sum(), images)
    texts = [prompt.text for prompt in PROMPTS[:4]]
    (wanted,) = torch.autograd.grad(scorer.model(images, texts).sum(), images)
    assert torch.allclose(ours, wanted, rtol=1e-4, atol=1e-7)
    assert ours.abs().max() > 0


def test_a_step_along_the_gradient_raises_the_reward(scorer: Scorer) -> None:
    images = (0.25 + pictures(8) / 2).requires_grad_()
    reward = scorer(images, PROMPTS)
    (gradient,) = torch.autograd.grad(reward.sum(), images)
    stepped = images.detach() + 4 / 255 * gradient.sign()
    assert bool((scorer(stepped, PROMPTS) > reward).all())


def test_rounding_to_8_bit_moves_a_score_by_no_more_than_its_pixels(scorer: Scorer) -> None:
    """Resized without rounding the score is smooth, its gradient is the one that is taken, and the two scores differ by what rounding does to pixels.

    A pixel is rounded to half a level before, between and after the two passes, whose coefficients add up to at most a and b in size.
    """
    size, texts = 32, [prompt.text for prompt in PROMPTS[:4]]
    images = (
        0.25 + pictures(4, 40, 40) / 2 + 0.3 / 255
    )  # between two levels, and not where overshoot is clipped
    weights = torch.from_numpy(_preprocess.coefficients(40, size, "bicubic"))
    model = copy.deepcopy(scorer.model).double()

    def smooth(given: torch.Tensor) -> torch.Tensor:
        return model(weights @ given @ weights.T, texts)

    leaf, exact = images.clone().requires_grad_(), images.double().requires_grad_()
    ours_B, smooth_B = ask_differentiable("imagereward", scorer, leaf, PROMPTS[:4]), smooth(exact)
    (ours,), (wanted,) = (
        torch.autograd.grad(ours_B.sum(), leaf),
        torch.autograd.grad(smooth_B.sum(), exact),
    )
    angle_B = F.cosine_similarity(ours.double().flatten(1), wanted.flatten(1))
    assert float(angle_B.min()) > 0.995  # taken at the rounded picture
    direction = wanted / wanted.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        quotient_B = (smooth(exact + 1e-4 * direction) - smooth(exact - 1e-4 * direction)) / 2e-4
    torch.testing.assert_close(quotient_B, wanted.flatten(1).norm(dim=1), rtol=1e-3, atol=0)

    size_of_sums = float(weights.abs().sum(1).max())
    of_a_pixel = (0.5 * size_of_sums**2 + 0.5 * size_of_sums + 0.5) / 255
    resized = (weights @ images.double() @ weights.T).requires_grad_()
    (slope,) = torch.autograd.grad(model(resized, texts).sum(), resized)
    moved = (_preprocess.resize(images, (size, size)) - resized.detach()).abs()
    assert 0.3 / 255 < float(moved.max()) <= of_a_pixel
    bound_B = 1.1 * of_a_pixel * slope.flatten(1).abs().sum(1)  # the slope is not quite constant
    off_B = (ours_B.detach() - smooth_B.detach()).abs()
    assert bool((off_B <= bound_B).all())
    assert float(off_B.max()) > 0


def test_pictures_are_read_as_8_bit(scorer: Scorer) -> None:
    images = 0.1 + 0.8 * pictures(4, 32, 32)
    rounded = (images * 255).round() / 255
    assert torch.equal(scorer(images, PROMPTS[:4]), scorer(rounded, PROMPTS[:4]))
    assert not torch.equal(images, rounded)


def test_bfloat16_is_near_and_another_version(files: tuple[Path, Path, Path], scorer: Scorer) -> None:
    low = small(files, torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in low.model.named_parameters()}
    assert dtypes["vision.encoder.layers.0.mlp.fc1.weight"] == torch.bfloat16
    assert dtypes["vision.encoder.layers.0.layer_norm1.weight"] == torch.float32
    assert dtypes["head.0.weight"] == torch.float32
    scores, exact = low(pictures(8), PROMPTS), scorer(pictures(8), PROMPTS)
    assert scores.dtype == torch.float32
    assert 0 < (scores - exact).abs().max() < 0.1 * exact.std()
    assert low.version != scorer.version
    with pytest.raises(ValueError, match=r"not in torch\.float16"):
        Scorer(dtype=torch.float16)


def test_an_outer_autocast_changes_nothing(scorer: Scorer) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = scorer(pictures(8), PROMPTS)
    assert torch.equal(inside, scorer(pictures(8), PROMPTS))


def test_texts_are_cut_at_35_tokens_and_counted(files: tuple[Path, Path, Path], scorer: Scorer) -> None:
    """33 words, [CLS] and [SEP]."""
    fits, long, other = "cat " * 33, "cat " * 40, "cat " * 33 + "dog " * 7
    counted = cut_tokens(scorer.model.tokenizer, ["", "a cat", fits, long, "cats " * 20], MAX_LENGTH)
    assert counted == [0, 0, 0, 7, 7]
    asked = [Prompt(str(i), text) for i, text in enumerate([fits, long, other])]
    scores = scorer(pictures(1).expand(3, -1, -1, -1), asked)
    assert torch.equal(scores, scores[:1].expand(3))


def test_the_tokenizer_has_the_packages_special_tokens(files: tuple[Path, Path, Path]) -> None:
    tokenizer = package_tokenizer(files[2])
    assert len(tokenizer) == MED_CONFIG["vocab_size"]
    count = 5 + len(WORDS)
    assert tokenizer("A [ENC] CAT [DEC]").input_ids == [2, 5, count + 1, 6, count, 3]


def test_nothing_is_fetched_before_the_first_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Path:
        raise ValueError("the hub cannot be reached")

    monkeypatch.setattr("evals.weights.hub_file", refuse)
    monkeypatch.delenv("T2I_WEIGHTS_DIR", raising=False)
    scorer = scorers.load("imagereward")
    assert re.fullmatch("[0-9a-f]{8}", scorer.version)
    assert [weights.free for weights in scorers.weights_of(scorer)] == [True, True]
    with pytest.raises(ValueError, match="hub cannot be reached"):
        scorer(pictures(1), PROMPTS[:1])


def test_other_weights_in_the_folder_are_refused(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / imagereward.CHECKPOINT.repository
    repository.mkdir(parents=True)
    (repository / "ImageReward.pt").write_bytes(files[0].read_bytes())
    (repository / "med_config.json").write_bytes(files[1].read_bytes())
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"ImageReward.pt is not the ImageReward.pt of .* that is expected"):
        Scorer()(pictures(1), PROMPTS[:1])


def test_the_packages_lock_has_names_versions_and_hashes_only() -> None:
    """As requirements.lock: it installs from whatever registry the reader's machine is set up for."""
    form = r"[a-z0-9][a-z0-9._-]*==[^ ]+( ; [^@]+?)?( +--hash=sha256:[0-9a-f]{64})+"
    locked = requirements("tests/parity/requirements.lock")
    assert [line for line in locked if not re.fullmatch(form, line)] == []
    pinned = [line.replace(" ", "") for line in requirements("tests/parity/requirements.in") if "==" in line]
    assert {line.split("#")[0] for line in pinned} <= {line.split(" ")[0] for line in locked}


def test_parity_fails_where_scores_differ_or_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.parity.__main__ import PROMPTS as ASKED
    from tests.parity.__main__ import choose_pairs, scores_agree

    pairs = choose_pairs(["one", "two", "three"])
    assert {pair.prompt for pair in pairs} == set(ASKED)
    cut = [0] * len(pairs)
    scores = [0.3 * (i % 5) for i in range(len(pairs))]
    assert scores_agree(pairs, [score + 1e-5 for score in scores], scores, cut) == []
    wrong = [*scores[:-1], scores[-1] + 1e-4]
    assert scores_agree(pairs, wrong, scores, cut) == ["scores differ by 1.0e-04"]
    alike = scores_agree(pairs, cut, cut, cut)
    assert alike == ["scores hardly depend on prompts", "scores hardly depend on pictures"]
    assert scores_agree(pairs, [*scores[:-1], float("nan")], scores, cut) == ["scores differ by nan"]
    capsys.readouterr()
