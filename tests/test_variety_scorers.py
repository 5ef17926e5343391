"""The scorers of diversity and drift of photographs: what the libraries' own pipelines and the definitions say, on toys whose meaning decides.

The networks are the real classes, tiny or with random values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import skimage
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS, _lpips_update
from torchvision import transforms
from torchvision.models import vgg16
from torchvision.transforms import InterpolationMode
from transformers import Dinov2Config, Dinov2Model

from evals import metrics, scorers
from evals.scorers import _dino, _mmd, clip_score, cmmd, kid, lpips, vendi, vendi_clip
from evals.scorers._contract import faults
from evals.scorers._mmd import cubic_kernel, gaussian_kernel, mmd_pseudo_values
from evals.scorers._vendi import vendi_score, within_prompts
from prompts import Prompt

# `fid_diagonal_closed_form` has no test: FID would fall and rise with what the prompts are, and is biased where pictures are few, so drift is told by KID and CMMD
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "golden_vectors.json"
MODULES = {"vendi": vendi, "vendi_clip": vendi_clip, "lpips": lpips, "kid": kid, "cmmd": cmmd}
PAIRED = ("kid", "cmmd")
CLIP_SIZE = 32
CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": CLIP_SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
}
LPIPS_SIZE = 32
OLD_NAMES = {  # of the file on the hub, which is older than the library
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def loosen(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Add values so large that features are of the picture, and not of the positions."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Whose pipelines the scorers are compared with."""
    config = tmp_path_factory.mktemp("architectures") / "tiny-variety.json"
    config.write_text(json.dumps(CLIP))
    open_clip.add_model_config(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dino = Dinov2Model(
            Dinov2Config(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
            )
        )
        clip = open_clip.CLIP(**open_clip.get_model_config("tiny-variety"))
        return {
            "dino": loosen(dino, 1),
            "clip": loosen(clip, 2),
            "vgg": vgg16(weights=None).features.requires_grad_(False).eval(),
        }


@pytest.fixture(scope="module")
def laid_out(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as their owners lay them out."""
    root = tmp_path_factory.mktemp("weights")
    for module in MODULES.values():
        (root / module.Scorer.weights[0].repository).mkdir(parents=True, exist_ok=True)
    folder = root / _dino.DINOV2_LARGE.repository
    models["dino"].save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for new, old in OLD_NAMES.items():
        tensors = {name.replace(new, old): value for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for weights in (vendi_clip.Scorer.weights[0], cmmd.Scorer.weights[0]):
        save_file(models["clip"].state_dict(), root / weights.repository / weights.files[0])
    backbone = {f"features.{name}": value for name, value in models["vgg"].state_dict().items()}
    backbone["head.fc.weight"] = torch.zeros(2, 2)  # timm's file has the classifier as well
    save_file(backbone, root / lpips.VGG16.repository / lpips.VGG16.files[0])
    return root


@pytest.fixture
def weights_dir(laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny weights in T2I_WEIGHTS_DIR, and scorers that expect them."""
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(laid_out))
    for module in (*MODULES.values(), clip_score):
        expected = tuple(replace(weights, sha256=(), free=True) for weights in module.Scorer.weights)
        monkeypatch.setattr(module.Scorer, "weights", expected)
        if hasattr(module.Scorer, "architecture"):
            monkeypatch.setattr(module.Scorer, "architecture", "tiny-variety")
    monkeypatch.setattr(lpips, "SIZE", LPIPS_SIZE)
    return laid_out


def photographs() -> list[Image.Image]:
    """Square, wide and tall, larger and smaller than what the networks take."""
    cat, coffee, rocket = (getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket"))
    arrays = [skimage.data.astronaut(), cat, coffee.transpose(1, 0, 2), rocket, cat[40:61, 50:80]]
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]


def tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def batch(size: int = 64) -> Tensor:
    """Four photographs, each as it is, mirrored, turned and darker, [16, 3, size, size]."""
    squares = [F.interpolate(tensor(p), (size, size), mode="area") for p in photographs()[:4]]
    return torch.cat([x for s in squares for x in (s, s.flip(-1), s.transpose(-1, -2), 0.6 * s)])


def asked(*numbers: int) -> list[Prompt]:
    """Prompts with so many pictures each."""
    return [Prompt(f"p{i}", f"prompt {i}") for i, number in enumerate(numbers) for _ in range(number)]


def call(name: str, images: Tensor, prompts: list[Prompt]) -> Tensor:
    base = (images.flip(0),) if name in PAIRED else ()
    return scorers.load(name)(images, prompts, *base)


# ------------------------------------------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", MODULES)
def test_contract(name: str, weights_dir: Path) -> None:
    images, prompts = batch(), asked(4, 4, 4, 4)
    assert faults(name, scorers.load(name), images, prompts) == []
    value_B = call(name, images, prompts)
    assert value_B.dtype == torch.float32
    assert value_B.std() > 0
    assert not value_B.requires_grad


@pytest.mark.parametrize("name", ["vendi", "vendi_clip", "lpips"])
def test_a_prompt_has_the_score_that_it_has_alone(name: str, weights_dir: Path) -> None:
    images, scorer = batch(), scorers.load(name)
    together = scorer(images, asked(4, 4, 4, 4))
    alone = torch.cat([scorer(images[i : i + 4], asked(4)) for i in range(0, 16, 4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    mixed = scorer(images[order], [asked(4, 4, 4, 4)[i] for i in order.tolist()])
    torch.testing.assert_close(mixed, together[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vendi", "vendi_clip"])
def test_unequal_numbers_are_refused_by_name(name: str, weights_dir: Path) -> None:
    told = "grows with the number of pictures, and prompt p1 has 2, but prompt p0 has 4: give every prompt"
    with pytest.raises(ValueError, match=told):
        scorers.load(name)(batch()[:8], asked(4, 2, 2))


@pytest.mark.parametrize("name", ["vendi", "vendi_clip", "lpips"])
def test_one_picture_has_no_diversity_to_speak_of(name: str, weights_dir: Path) -> None:
    assert scorers.load(name)(batch()[:3], asked(1, 1, 1)).isnan().all()


def test_lpips_does_not_mind_unequal_numbers(weights_dir: Path) -> None:
    images, scorer = batch(), scorers.load("lpips")
    value_B = scorer(images[:7], asked(4, 2, 1))
    torch.testing.assert_close(value_B[:4], scorer(images[:4], asked(4)), rtol=1e-4, atol=1e-6)
    assert value_B.isnan().tolist() == [False] * 6 + [True]


def test_networks_are_shared(weights_dir: Path) -> None:
    one, other = vendi.Scorer(), kid.Scorer()
    assert one.network is other.network
    one, other = vendi_clip.Scorer(), clip_score.Scorer()
    assert one.clip is other.clip


def test_a_backbone_that_is_none_is_one_sentence(weights_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"features.0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match=r"model.safetensors does not hold the weights of VGG-16: [^\n]+$"):
        lpips.Perception(path, "cpu")


# ------------------------------------------------------------------------------------------ the libraries' own pipelines


def test_dinos_features_are_those_of_the_librarys_own_pipeline(
    models: dict[str, Any], weights_dir: Path
) -> None:
    transform = transforms.Compose(
        [
            transforms.Resize(224, InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(_dino.IMAGENET_MEAN, _dino.IMAGENET_STD),
        ]
    )
    expected, found = [], []
    for picture in photographs():
        expected.append(models["dino"](transform(picture)[None]).last_hidden_state[:, 0])
        found.append(kid.Scorer().features(tensor(picture)))
    assert torch.cat(expected).std(0).mean() > 0.05 * torch.cat(expected).abs().mean()
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [cmmd.Scorer, vendi_clip.Scorer])
def test_clips_features_are_those_of_the_librarys_own_pipeline(
    kind: Any, models: dict[str, Any], weights_dir: Path
) -> None:
    transform = open_clip.image_transform(CLIP_SIZE, is_train=False)
    for picture in photographs():
        expected = models["clip"].encode_image(transform(picture)[None], normalize=True)
        torch.testing.assert_close(kind().features(tensor(picture)), expected, rtol=1e-4, atol=1e-5)


def test_vendi_is_the_entropy_of_the_cosines_of_the_features(
    models: dict[str, Any], weights_dir: Path
) -> None:
    images = batch()[:4]
    unit = F.normalize(kid.Scorer().features(images), dim=-1).double().numpy()
    p = np.linalg.svd(unit / 2, compute_uv=False) ** 2  # K / n = (X / 2) (X / 2)^T
    assert call("vendi", images, asked(4)).tolist() == pytest.approx([math.exp(-(p * np.log(p)).sum())] * 4)


def test_lpips_is_that_of_torchmetrics(models: dict[str, Any], weights_dir: Path) -> None:
    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    for part in (
        theirs.net.slice1,
        theirs.net.slice2,
        theirs.net.slice3,
        theirs.net.slice4,
        theirs.net.slice5,
    ):
        for name, layer in part.named_children():
            layer.load_state_dict(models["vgg"][int(name)].state_dict())
    images = F.interpolate(batch()[:4], (LPIPS_SIZE, LPIPS_SIZE), mode="area").mul(255).round() / 255
    pairs = torch.stack([_lpips_update(images, one.expand_as(images), theirs, True) for one in images])
    found = call("lpips", images, asked(4))
    torch.testing.assert_close(found, pairs.sum(1) / 3, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------ toys: diversity


def golden(key: str) -> Any:
    if not GOLDEN.is_file():
        pytest.skip(f"golden vectors are not at {GOLDEN}")
    return json.loads(GOLDEN.read_text(encoding="utf-8"))[key]


def test_vendi_golden() -> None:
    for case in golden("vendi"):
        found = vendi_score(torch.tensor(case["K"], dtype=torch.float64), float(case["q"]))
        assert found == pytest.approx(case["vs"], rel=1e-12)


@pytest.mark.parametrize(
    ("q", "expected"), [(1, 2.1573004833739833), (0.5, 2.420348), (2, 1.948052), (5, 1.752512), (math.inf, 1.578947)]
)  # fmt: skip
def test_vendi_of_every_order(q: float, expected: float) -> None:
    similarity = torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert vendi_score(similarity, q) == pytest.approx(expected, rel=1e-12 if q == 1 else 1e-6)


@pytest.mark.parametrize("vendi_name", ["vendi", "vendi_clip"])
def test_an_order_is_chosen_by_name(vendi_name: str, weights_dir: Path) -> None:
    """The score is the definition on the plain scorer's features: the trace of (K / n)^2 for order 2, its largest eigenvalue for inf."""
    images, prompts = batch(), asked(8, 8)
    plain: Any = scorers.load(vendi_name)
    unit_BD = F.normalize(plain.features(images).double(), dim=-1)
    kernels = [part @ part.T / 8 for part in unit_BD.split(8)]
    expected = {
        "q0.5": [float(torch.linalg.eigvalsh(k).clamp(min=0).sqrt().sum() ** 2) for k in kernels],
        "q2": [float(1 / (k @ k).trace()) for k in kernels],
        "qinf": [float(1 / torch.linalg.matrix_norm(k, 2)) for k in kernels],
    }
    versions = {plain.version}
    for order, of_prompts in expected.items():
        name = f"{vendi_name}_{order}"
        assert faults(name, scorers.load(name), images, prompts) == []
        value_B = scorers.load(name)(images, prompts)
        assert value_B.view(2, 8)[:, 0].tolist() == pytest.approx(of_prompts, rel=1e-5)
        assert value_B.view(2, 8).std(1).tolist() == [0, 0]
        assert scorers.weights_of(scorers.load(name)) == plain.weights
        versions.add(scorers.load(name).version)
    assert len(versions) == 4, "scores of two orders are never compared"


@pytest.mark.parametrize(
    "order", ["q0", "q1", "q-2", "q2.0", "q02", "q101", "q1e5", "qnan", "qtwo", "q"]
)  # fmt: skip
def test_what_is_no_order_is_refused(order: str) -> None:
    for load in (lambda: scorers.load(f"vendi_{order}"), lambda: metrics.load(f"diversity_vendi_{order}")):
        with pytest.raises(
            ValueError,
            match=r"an order of a Vendi score is a number above 0 and up to 100 other than 1, or inf",
        ):
            load()


def test_vendi_of_published_examples() -> None:
    samples = torch.tensor([0.0, 0, 10, 10, 20, 20], dtype=torch.float64)
    kernel = torch.exp(-(samples[:, None] - samples).abs())
    assert vendi_score(kernel) == pytest.approx(2.999999995877693, rel=1e-14)
    for similarity, expected in ((0.25, 1.937819), (0.5, 1.754765), (0.9, 1.219591)):
        pair = torch.tensor([[1, similarity], [similarity, 1]], dtype=torch.float64)
        assert vendi_score(pair) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
def test_n_orthogonal_have_diversity_n_and_copies_1(q: float) -> None:
    features = torch.cat([3 * torch.eye(4), torch.ones(4, 4), torch.eye(4)[[0, 0, 1, 1]]])
    assert within_prompts(features, asked(4, 4, 4), q).tolist() == pytest.approx(
        [4] * 4 + [1] * 4 + [2] * 4, rel=1e-6
    )


@pytest.mark.parametrize("name", ["vendi", "vendi_clip", "lpips"])
def test_a_collapsed_set_has_no_diversity(name: str, weights_dir: Path) -> None:
    images = torch.cat([batch()[:1].expand(4, -1, -1, -1), batch()[4:8]])
    collapsed, varied = call(name, images, asked(4, 4)).view(2, 4)[:, 0].tolist()
    assert collapsed == pytest.approx(0 if name == "lpips" else 1, abs=1e-5)
    assert varied > collapsed + 0.01


def test_noise_raises_a_pairwise_distance_and_leaves_a_vendi_score_defined(weights_dir: Path) -> None:
    """Why a distance is never read alone: the same photograph four times is more diverse the more noise is on it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3, 64, 64, generator=generator)
    photograph, pure = batch()[:1].clamp(0.2, 0.8), torch.rand(4, 3, 64, 64, generator=generator)
    noisy = [(photograph + level * noise).clamp(0, 1) for level in (0.0, 0.05, 0.2)]
    by_distance = [float(call("lpips", images, asked(4)).mean()) for images in (*noisy, pure)]
    assert by_distance == sorted(by_distance)
    assert by_distance[0] == pytest.approx(0, abs=1e-6)
    for name in ("vendi", "vendi_clip"):
        of_noise = call(name, pure, asked(4))
        assert bool(((of_noise >= 1) & (of_noise <= 4)).all())


# ---------------------------------------------------------------------------------------------------- toys: drift

GAUSSIAN = partial(gaussian_kernel, sigma=2.0)
KERNELS = {"cubic": cubic_kernel, "gaussian": GAUSSIAN}


def by_definition(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The mean over i != j, pair by pair."""
    k = lambda a, b: float(kernel(a[None], b[None]))  # noqa: E731
    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    total = sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs)
    return total / (n * (n - 1))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_mean_of_the_values_is_the_unbiased_estimate(kernel: Any) -> None:
    x, y = drawn(2, 11, 5)
    found = float(mmd_pseudo_values(x, y + 0.5, kernel).mean())
    assert found == pytest.approx(by_definition(x, y + 0.5, kernel), rel=1e-5)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_rows_at_a_time_are_all_at_once(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(2, 11, 5)
    whole = mmd_pseudo_values(x, y, kernel)
    monkeypatch.setattr(_mmd, "ROWS", 4)
    torch.testing.assert_close(mmd_pseudo_values(x, y, kernel), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_values_have_the_variance_of_the_estimate(kernel: Any) -> None:
    values = [mmd_pseudo_values(*pair, kernel) for pair in drawn(300, 2, 60, 4) + torch.tensor([0.0, 0.7])[:, None, None]]  # fmt: skip
    true = np.std([float(v.mean()) for v in values])
    claimed = np.mean([float(v.std()) / math.sqrt(len(v)) for v in values])
    assert claimed == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_base_has_not_drifted_from_itself(kernel: Any) -> None:
    """Exactly where the pictures are the same, and in the mean over many splits of one set of pictures in two."""
    pool = drawn(40, 4) + torch.tensor([1.0, 0, 0, 0])
    assert float(mmd_pseudo_values(pool, pool, kernel).abs().max()) < 1e-12
    splits = [torch.randperm(40, generator=torch.Generator().manual_seed(i)).view(2, 20) for i in range(400)]
    estimates = [float(mmd_pseudo_values(pool[a], pool[b], kernel).mean()) for a, b in splits]
    assert np.std(estimates) > 0
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / math.sqrt(len(estimates))


def closed_form_gaussian(shift: Tensor, sigma: float) -> float:
    """Squared MMD of N(0, I) and N(shift, I): x - y is normal with covariance 2 I."""
    width = sigma**2 + 2
    scale = (sigma**2 / width) ** (len(shift) / 2)
    return 2 * scale * (1 - math.exp(-float(shift @ shift) / (2 * width)))


def closed_form_cubic(shift: Tensor) -> float:
    """The same for the cubic kernel, by the first three moments of t = x . y for x ~ N(a, I) and y ~ N(b, I)."""
    d = len(shift)

    def expected(a: Tensor, b: Tensor) -> float:
        ab, aa, bb = float(a @ b), float(a @ a), float(b @ b)
        second = d + aa + bb + ab**2
        third = ab**3 + 3 * ab * bb + 3 * ab * (aa + d + 2)
        return third / d**3 + 3 * second / d**2 + 3 * ab / d + 1

    zero = torch.zeros_like(shift)
    return expected(zero, zero) + expected(shift, shift) - 2 * expected(zero, shift)


@pytest.mark.parametrize("distance", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", KERNELS)
def test_shifted_gaussians_have_the_closed_form(name: str, distance: float) -> None:
    shift = torch.tensor([0.6, 0.8, 0, 0], dtype=torch.float64) * distance
    expected = closed_form_cubic(shift) if name == "cubic" else closed_form_gaussian(shift, 2.0)
    x, y = drawn(2, 200, 50, 4, seed=int(10 * distance))
    estimates = [
        float(mmd_pseudo_values(a, b + shift, KERNELS[name]).mean()) for a, b in zip(x, y, strict=True)
    ]
    assert expected > 0
    assert np.mean(estimates) == pytest.approx(expected, abs=3 * np.std(estimates) / math.sqrt(200))


def test_cmmd_is_the_released_estimator_but_for_the_pictures_themselves() -> None:
    """The released code averages whole kernel matrices: (n - 1) / n of ours, and the pairs i = j."""
    n, sigma = 30, cmmd.SIGMA
    x, y = F.normalize(drawn(2, n, 16), dim=-1)
    kernel = lambda a, b: torch.exp(-(torch.cdist(a, b) ** 2) / (2 * sigma**2))  # noqa: E731
    released = float(1000 * (kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()))
    partners = float(1000 * (2 - 2 * kernel(x, y).diagonal()).mean())
    ours = float(cmmd.Scorer().from_features(x, y).mean())
    assert released == pytest.approx((n - 1) / n * ours + partners / n, rel=1e-6)


def test_kid_golden() -> None:
    """With the cross pairs i = j, which torch-fidelity keeps, put back."""
    for case in golden("torch_fidelity_kid_mmd2")["cases"]:
        x, y = (torch.tensor(case[key], dtype=torch.float64) for key in ("X", "Y"))
        n, cross = len(x), cubic_kernel(x, y)
        off = float(cross.sum() - cross.trace()) / (n * (n - 1))
        found = (
            float(kid.Scorer().from_features(x, y).double().mean()) / 1000 + 2 * off - 2 * float(cross.mean())
        )
        assert found == pytest.approx(case["mmd2_unbiased_poly3"], rel=1e-5)


@pytest.mark.parametrize(("name", "domain"), [("kid", "photo"), ("cmmd", "photo"), ("kid", "miniature")])
def test_a_call_is_its_two_stages(name: str, domain: Any, weights_dir: Path) -> None:
    scorer, images = scorers.load(name, domain=domain), batch()
    base = images.roll(4, 0)
    whole = scorer(images, asked(16), base)
    in_parts = [torch.cat([scorer.features(part) for part in x.split(5)]) for x in (images, base)]
    assert [x.shape[0] for x in in_parts] == [16, 16]
    assert {(x.dtype, x.device.type, x.requires_grad) for x in in_parts} == {(torch.float32, "cpu", False)}
    torch.testing.assert_close(scorer.from_features(*in_parts), whole, rtol=1e-3, atol=1e-3)
    assert float(scorer(images, asked(16), images).abs().max()) < 1e-6


@pytest.mark.parametrize("name", PAIRED)
def test_what_drift_cannot_be_told_of_is_one_sentence(name: str, weights_dir: Path) -> None:
    scorer, images = scorers.load(name), batch()
    with pytest.raises(
        ValueError, match=f"^the {name} scorer compares with the base model's images, and none were given$"
    ):
        scorer(images, asked(16))
    with pytest.raises(
        ValueError, match=f"^the {name} scorer needs at least 3 images of a prompt set, and there are 2$"
    ):
        scorer(images[:2], asked(2), images[2:4])


# ------------------------------------------------------------------------------------------------ what they state


def test_versions_are_of_code_and_weights_and_need_neither_network_nor_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("T2I_WEIGHTS_DIR", "/nowhere")
    versions = {name: scorers.load(name, terms=False).version for name in MODULES}
    assert all(re.fullmatch("[0-9a-f]{8}", version) for version in versions.values())
    assert len(set(versions.values())) == len(MODULES)
    changed = replace(_dino.DINOV2_LARGE, sha256=("0" * 64, "1" * 64))
    monkeypatch.setattr(vendi.Scorer, "weights", (changed,))
    assert vendi.Scorer().version != versions["vendi"]


@pytest.mark.slow
def test_the_full_size_takes_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the names and shapes of DINOv2 ViT-L/14's."""
    folder = tmp_path / _dino.DINOV2_LARGE.repository
    folder.mkdir(parents=True)
    config = Dinov2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14
    )
    with torch.device("meta"):
        made = Dinov2Model(config)
    assert sum(parameter.numel() for parameter in made.parameters()) == 304_368_640
    tensors = {name: torch.full(v.shape, 0.01, dtype=torch.float16) for name, v in made.state_dict().items()}
    for new, old in OLD_NAMES.items():
        tensors = {name.replace(new, old): value for name, value in tensors.items()}
    assert len(tensors) == 439
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("T2I_WEIGHTS_DIR", str(tmp_path))
    network = _dino.load_dino(replace(_dino.DINOV2_LARGE, sha256=()), "cpu")
    assert _dino.class_tokens(network, batch()[:1]).shape == (1, 1024)
    (folder / "model.safetensors").unlink()
