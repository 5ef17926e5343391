"""Pretrains the miniature's base: a genuine `StableDiffusionPipeline` of a few million parameters.

Autoencoder first; then tokenizer and text encoder, which learns to tell what a caption names and where (Stable Diffusion's comes
pretrained, too); then denoiser and text encoder together on cached latents, in phases (`DENOISER_PHASES`): words, their binding, the biased web.
The denoiser that ships is an exponential moving average. All randomness comes from the seeds below; a rerun on the same kind of machine, with the
same library versions and thread count, repeats it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from evals.files import write_text
from prompts.world import OBJECTS, RELATIONS, all_captions, scene_caption
from train.miniature.data import BINDING, FACES, NOISIER, SHIPPED, WORDS, Bias, draw_examples
from train.miniature.fitting import Schedule, fit

LATENT_CHANNELS = 8
MAX_TOKENS = 20
VAE_PICTURES = 6000
VAE_SEED, TEXT_SEED, DENOISER_SEED, PICTURES_SEED = 11, 12, 13, 14
TEXT = Schedule(steps=1300, batch=128, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)


def as_images(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, 64, 64, 3] to float32 BCHW in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def new_vae() -> AutoencoderKL:
    """64x64x3 to 8x8x8."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
    )


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


@dataclass(frozen=True, kw_only=True)
class VaePhase(Schedule):
    """A stretch of autoencoder training."""

    squared: float
    """Weight of the squared error."""


_VAE = VaePhase(steps=1500, batch=16, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4, squared=0.0)
VAE_PHASES = (
    _VAE,
    replace(_VAE, steps=400, batch=8, squared=8.0),
    replace(_VAE, steps=2800, batch=8, squared=8.0),
)
"""Absolute error finds the layout; the squared error then weighs what is far off, the colours of small objects."""


def picture_loss(
    out_BCHW: Tensor, wanted_BCHW: Tensor, squared: float, coloured: float = 0.0, detailed: float = 0.0
) -> Tensor:
    """Absolute and squared error on pixels, absolute on their differences (edges).

    A pixel counts 1 + `coloured` times its saturation + `detailed` times its distance from the mean of the 5x5 about it: what a
    caption names has colour and is an eighth of the picture, and the eyes of a face are a hundredth.
    """
    error = out_BCHW - wanted_BCHW
    saturation = (wanted_BCHW.amax(1, keepdim=True) - wanted_BCHW.amin(1, keepdim=True)) / 2
    around = F.avg_pool2d(wanted_BCHW, 5, stride=1, padding=2, count_include_pad=False)
    weight = 1 + coloured * saturation + detailed * (wanted_BCHW - around).abs().mean(1, keepdim=True)
    rows, columns = _edges(error)
    edges = (weight[..., 1:, :] * rows.abs()).mean() + (weight[..., 1:] * columns.abs()).mean()
    loss: Tensor = (weight * (error.abs() + squared * error.square())).mean() + 0.5 * edges
    return loss


def vae_loss(vae: AutoencoderKL, images_BCHW: Tensor, noise: Tensor, squared: float) -> Tensor:
    """What decoding misses of the pictures, and a small KL to the unit normal."""
    posterior = vae.encode(images_BCHW).latent_dist
    out = vae.decode(posterior.mean + posterior.std * noise).sample
    loss: Tensor = picture_loss(out, images_BCHW, squared) + 2e-7 * posterior.kl().mean()
    return loss


def train_vae_phase(vae: AutoencoderKL, pictures: NDArray[np.uint8], phase: VaePhase, seed: int) -> float:
    """Train in place for one phase; returns the mean loss of its last 100 steps."""

    def loss(generator: torch.Generator) -> Tensor:
        picked = torch.randint(len(pictures), (phase.batch,), generator=generator)
        noise = torch.randn(phase.batch, LATENT_CHANNELS, 8, 8, generator=generator)
        return vae_loss(vae, as_images(pictures[picked.numpy()]), noise, phase.squared)

    return fit(list(vae.parameters()), loss, phase, seed, "autoencoder")


@dataclass(frozen=True, kw_only=True)
class DecoderPhase(Schedule):
    """A stretch of training of the decoder alone, on the latents as they have become."""

    pictures: int
    pictures_seed: int
    bias: Bias = BINDING
    noise: float
    """Standard deviation of what is added to the latents, whose own is 1: a denoiser's are not exact either."""
    squared: float
    coloured: float
    detailed: float = 0.0
    """Weights in `picture_loss`."""


_POLISH = DecoderPhase(
    steps=4200,
    batch=8,
    lr=1.5e-3,
    warmup=100,
    betas=(0.9, 0.98),
    weight_decay=1e-4,
    average=0.995,
    pictures=8000,
    pictures_seed=17,
    noise=0.05,
    squared=8.0,
    coloured=4.0,
)
POLISH_PHASES = (
    _POLISH,
    replace(_POLISH, lr=1e-3, pictures_seed=18, bias=FACES, detailed=8.0),
)
"""Of scenes drawn without fault, the autoencoder gave back 69 % fully right before the first, and 98 % after. It still drew light and dark
faces with eyes and those of the tones between without; the second mends that."""


def polish_decoder(vae: AutoencoderKL, phase: DecoderPhase) -> float:
    """Train the decoder in place, the encoder fixed; returns the mean loss of the last 100 steps."""
    pictures, _ = draw_examples(phase.pictures, phase.pictures_seed, phase.bias)
    latents = encode(vae, pictures)

    def loss(generator: torch.Generator) -> Tensor:
        picked = torch.randint(len(pictures), (phase.batch,), generator=generator)
        noise = torch.randn(phase.batch, LATENT_CHANNELS, 8, 8, generator=generator)
        out = vae.decode(latents[picked] + phase.noise * noise).sample
        wanted = as_images(pictures[picked.numpy()])
        return picture_loss(out, wanted, phase.squared, phase.coloured, phase.detailed)

    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    return fit(parameters, loss, phase, phase.pictures_seed, "decoder")


def train_vae(folder: Path) -> dict[str, Any]:
    """Train the autoencoder and save it, its latents' scale measured, in `folder`. Returns the record."""
    start = time.perf_counter()
    pictures, _ = draw_examples(VAE_PICTURES, VAE_SEED, BINDING)
    torch.manual_seed(VAE_SEED)
    vae = new_vae().train()
    losses = [train_vae_phase(vae, pictures, phase, VAE_SEED + i) for i, phase in enumerate(VAE_PHASES)]
    standardise_latents(vae.eval(), encode(vae.eval(), pictures[:2000]))
    losses += [polish_decoder(vae, phase) for phase in POLISH_PHASES]
    vae.save_pretrained(folder)
    return {
        "phases": [asdict(phase) for phase in (*VAE_PHASES, *POLISH_PHASES)],
        "data_seed": VAE_SEED,
        "pictures": len(pictures),
        "final_losses": losses,
        "seconds": round(time.perf_counter() - start),
    }


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, latents_BCHW: Tensor) -> None:
    """Give every latent channel mean 0 and variance 1 by folding the change into the two 1x1 convolutions around it.

    The pictures stay the same; a denoiser of unevenly scaled channels would neglect the small ones.
    """
    mean, std = latents_BCHW.mean((0, 2, 3)), latents_BCHW.std((0, 2, 3))
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()
    out.bias += (out.weight[:, :, 0, 0] @ mean[:, None])[:, 0]
    out.weight *= std[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 128) -> Tensor:
    """Mean latents, unscaled, [N, 8, 8, 8]."""
    parts = [
        vae.encode(as_images(pictures[i : i + batch])).latent_dist.mean
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts)


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from the world's captions: nearly every word is one token.

    Single letters are in the vocabulary, so that any other English word can be spelt. `vocab.json` and `merges.txt`
    are written beside `tokenizer.json`, for versions of transformers that read those.
    """
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = Whitespace()
    trainer = BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
    )
    model.train_from_iterator(all_captions(), trainer)
    merges = [tuple(m) for m in json.loads(model.to_str())["model"]["merges"]]
    pieces = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of three layers, 128 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_denoiser() -> UNet2DConditionModel:
    """Convolutions at 8x8, cross-attention at 4x4: half the cost of attending at both, and enough to place two objects."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 160),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas, v-prediction as in its version 2, and trailing timesteps, so that few steps start at pure noise.

    At the noisiest timesteps, where ten-step sampling decides what goes where, an error in epsilon is one fifteen times as large in
    the picture: at equal training the picture predicted there was five times worse (results/README.md).
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        steps_offset=1,
        prediction_type="v_prediction",
    )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Padded and truncated ids [N, MAX_TOKENS]."""
    ids = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    assert isinstance(ids, Tensor)
    return ids


SIDES = {"left of": (2, 3), "right of": (3, 2), "above": (4, 5), "below": (5, 4)}
"""Classes of the first and second object in a relation that says where: left, right, above, below; 1 is somewhere, 0 absent."""


class Reader(nn.Module):
    """Answers the same questions about any sequence of tokens, words or patches. Used in pretraining only.

    Each question is a learned query that attends to the tokens once; its answer is one of `classes`.
    """

    def __init__(self, questions: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, questions, width) * 0.1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, classes)
        )

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Logits [B, questions, classes]."""
        query = self.query.expand(len(tokens_BLD), -1, -1)
        seen = self.attention(query, tokens_BLD, tokens_BLD, need_weights=False)[0]
        logits: Tensor = self.head(seen + query)
        return logits


def random_scene_captions(count: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Captions, a quarter of them of one object and the rest of two, and for each of `OBJECTS` its class, [count, 36]."""
    captions, classes = [], torch.zeros(count, len(OBJECTS), dtype=torch.long)
    for i in range(count):
        first, second = (int(k) for k in rng.choice(len(OBJECTS), 2, replace=False))
        relation = str(rng.choice(RELATIONS))
        if i % 4 == 0:
            captions.append(scene_caption((OBJECTS[first],), None))
            classes[i, first] = 1
        else:
            captions.append(scene_caption((OBJECTS[first], OBJECTS[second]), relation))
            classes[i, [first, second]] = torch.tensor(SIDES.get(relation, (1, 1)))
    return captions, classes


def train_text_encoder(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> float:
    """Teach the text encoder, in place, to bind colour, shape and place.

    Returns the share of the last 50 batches' captions that were read without a mistake.
    """
    rng = np.random.default_rng(TEXT_SEED)
    reader = Reader(len(OBJECTS), 6)
    present_counts_more = torch.tensor([0.2, 1, 1, 1, 1, 1])
    right: list[float] = []

    def loss(_: torch.Generator) -> Tensor:
        captions, classes = random_scene_captions(TEXT.batch, rng)
        logits = reader(text_encoder(token_ids(tokenizer, captions)).last_hidden_state)
        right.append((logits.argmax(-1) == classes).all(1).float().mean().item())
        return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight=present_counts_more)

    fit([*text_encoder.parameters(), *reader.parameters()], loss, TEXT, TEXT_SEED, "text encoder")
    return float(np.mean(right[-50:]))


@dataclass(frozen=True, kw_only=True)
class DenoiserPhase(Schedule):
    """A stretch of denoiser training on a data set of its own."""

    pictures: int
    pictures_seed: int
    bias: Bias


def _denoiser(
    steps: int, lr: float, pictures: int, pictures_seed: int, bias: Bias, warmup: int = 50
) -> DenoiserPhase:
    return DenoiserPhase(
        steps=steps,
        batch=32,
        lr=lr,
        warmup=warmup,
        betas=(0.9, 0.99),
        weight_decay=1e-3,
        average=0.998,
        pictures=pictures,
        pictures_seed=pictures_seed,
        bias=bias,
    )


DENOISER_PHASES = (
    _denoiser(900, 1.2e-3, 8000, 15, WORDS, warmup=100),
    _denoiser(1500, 1.2e-3, 10000, 16, replace(BINDING, named_first_left=0.5)),
    _denoiser(2600, 1.0e-3, 16000, PICTURES_SEED, replace(NOISIER, named_first_left=0.5)),
    _denoiser(2200, 1.0e-3, 12000, 18, BINDING),
    _denoiser(1500, 7e-4, 12000, PICTURES_SEED, NOISIER),
    _denoiser(1500, 7e-4, 12000, PICTURES_SEED + 1, SHIPPED),
)
"""Words alone do not bind: only with objects placed in the order of their names (the last three phases) does it learn which is which."""
NOISY = 0.6
"""Timesteps are drawn as 1000 u^.6, u uniform: more of the noisy ones, where the caption decides."""


def train_denoiser_phase(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    phase: DenoiserPhase,
) -> float:
    """Train denoiser and text encoder in place on cached latents (Eq 9); returns the mean loss of the last 100 steps."""
    images, captions = draw_examples(phase.pictures, phase.pictures_seed, phase.bias)
    latents = encode(vae, images) * vae.config.scaling_factor
    ids, empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])
    scheduler = new_scheduler()

    def loss(generator: torch.Generator) -> Tensor:
        picked = torch.randint(len(latents), (phase.batch,), generator=generator)
        drop = torch.rand(phase.batch, 1, generator=generator) < 0.1  # so that guidance works
        t = (1000 * torch.rand(phase.batch, generator=generator).pow(NOISY)).long().clamp(max=999)
        noise = torch.randn(phase.batch, LATENT_CHANNELS, 8, 8, generator=generator)
        context = text_encoder(torch.where(drop, empty, ids[picked])).last_hidden_state
        noisy = scheduler.add_noise(latents[picked], noise, t).contiguous(memory_format=torch.channels_last)
        velocity = scheduler.get_velocity(latents[picked], noise, t)
        return F.mse_loss(unet(noisy, t, context).sample, velocity)

    parameters = [*unet.parameters(), *text_encoder.parameters()]
    return fit(parameters, loss, phase, phase.pictures_seed, "denoiser")


def train_denoiser(folder: Path, vae_folder: Path) -> dict[str, Any]:
    """Train tokenizer, text encoder and denoiser, and save the pipeline in `folder`. Returns the record."""
    start = time.perf_counter()
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    tokenizer = train_tokenizer(folder / "tokenizer")
    torch.manual_seed(DENOISER_SEED)
    text_encoder, unet = new_text_encoder(tokenizer), new_denoiser()
    unet.to(memory_format=torch.channels_last)
    read = train_text_encoder(text_encoder, tokenizer)
    losses = [train_denoiser_phase(unet, text_encoder, tokenizer, vae, phase) for phase in DENOISER_PHASES]
    save_pipeline(folder, vae, text_encoder, tokenizer, unet, new_scheduler())
    return {
        "phases": [asdict(phase) for phase in DENOISER_PHASES],
        "seed": DENOISER_SEED,
        "captions_read": read,
        "final_losses": losses,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "seconds": round(time.perf_counter() - start),
    }


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> None:
    """Save all parts as one float16 `StableDiffusionPipeline` in diffusers layout."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for path in folder.glob("*/config.json"):  # where a part was loaded from is nobody's business
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        write_text(json.dumps(config, indent=2) + "\n", path)
