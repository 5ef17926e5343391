"""Trains the reward model and the held-out judge of the miniature on simulated votes.

Both models come pretrained, as BLIP and CLIP do: the reward model's vision transformer learns to name what a picture shows and where (BLIP's comes
from ImageNet), then both models to tell a picture's caption from false ones, the reward model with questions about single words (`train_blip`). Then they
learn from votes, the reward model with the caption lesson going on beside them.

Pairs are two pictures of one caption: half drawn by the base model, half by the renderer, either apart, with its faults, or as twins, which
differ in one fault; the rendered ones pass through the autoencoder, so that the two cannot be told apart by texture. Each pair is
judged by one annotator, who follows the hidden utility noisily. The reward model (ImageReward's architecture and Bradley-Terry loss) and the judge
(a CLIP with PickScore's loss) see different pairs, judged by different people.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import BertTokenizer, PreTrainedTokenizerFast

from evals.checkpoints import load_pipeline
from evals.decoder import decode
from evals.diffusion import Painter, Sampling
from evals.miniature.annotators import Annotator, Parts, parts_of
from evals.miniature.measure import expected_objects
from evals.miniature.scorers._judge import normalise
from evals.scorers._imagereward import ImageReward
from prompts import Prompt
from prompts.world import (
    CLOTHES,
    COLOURS,
    HATS,
    OBJECTS,
    OCCUPATIONS,
    RELATIONS,
    SHAPES,
    Object,
    all_captions,
    dress_of,
    portrait_caption,
    portrait_prompt,
    read_scene,
    scene_caption,
    scene_prompt,
)
from train.miniature.data import (
    MATCHED,
    VOTED,
    as_pixels,
    draw_labelled_examples,
    draw_portrait_example,
    draw_portrait_twins,
    draw_scene_example,
    draw_scene_twins,
)
from train.miniature.fitting import Schedule, fit
from train.miniature.pretrain import MAX_TOKENS, Reader, encode

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CHOICES = 12000
ANNOTATORS = 40
REWARD_SEED, JUDGE_SEED = 21, 22
HELD_OUT = 600
NAMES = Schedule(steps=3200, batch=32, lr=1e-3, warmup=100, weight_decay=0.02, average=0.99)
CAPTIONS = replace(NAMES, steps=3000)
JUDGE_CAPTIONS = replace(NAMES, steps=1200, batch=64)
FALSE = 3
"""False captions to each fitting one."""
SAMPLING = Sampling(steps=10, eta=1.0, guidance=None, micro_batch=64)


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures to be voted on."""

    count: int
    seed: int
    twins: bool = False
    """Whether the rendered pairs are twins: one picture, and the same with one fault."""


REWARD_PAIRS = (Pairs(6400, 23), Pairs(4800, 24, twins=True))
REWARD_VOTES = replace(NAMES, steps=1400, lr=2e-4)
CAPTIONS_BESIDE = 16
"""Pictures of the caption lesson in a step of the votes."""
JUDGE_PAIRS = Pairs(3200, JUDGE_SEED)
JUDGE_VOTES = replace(NAMES, steps=600, lr=4e-4)


@dataclass(frozen=True)
class Votes:
    """N pairs of pictures of one prompt each, what is in them, and who was preferred."""

    images_N2CHW: Tensor
    prompts_N: list[Prompt]
    parts_N2: list[tuple[Parts, Parts]]
    first_wins_N: Tensor
    second_opinion_N: Tensor
    """Another annotator's votes on the same pairs."""

    def __len__(self) -> int:
        return len(self.prompts_N)


def random_prompt(rng: np.random.Generator) -> Prompt:
    """Three scenes of two objects to one portrait."""
    if rng.random() < 0.25:
        line = portrait_prompt(str(rng.choice(OCCUPATIONS)), ())
    else:
        a, b = (OBJECTS[i] for i in rng.choice(len(OBJECTS), 2, replace=False))
        line = scene_prompt(a, b, str(rng.choice(RELATIONS)), ())
    return Prompt(line["id"], line["text"], tuple(line["tags"]), line["expect"])


def _objects(prompt: Prompt) -> tuple[Object, Object]:
    first, second = expected_objects(prompt.expect)
    return first, second


def _apart(prompt: Prompt, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Two pictures that have nothing in common but the prompt."""
    if "objects" in prompt.expect:
        relation = prompt.expect["relation"]
        return [draw_scene_example(_objects(prompt), relation, VOTED, rng).image for _ in range(2)]
    return [draw_portrait_example(prompt.expect["occupation"], VOTED, rng).image for _ in range(2)]


def _twins(prompt: Prompt, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Two pictures that differ in one fault, in any order."""
    if "objects" in prompt.expect:
        pair = draw_scene_twins(_objects(prompt), prompt.expect["relation"], rng)
    else:
        pair = draw_portrait_twins(prompt.expect["occupation"], rng)
    return list(pair if rng.random() < 0.5 else pair[::-1])


@torch.no_grad()
def _renderer_pairs(vae: Any, asked: Sequence[Prompt], twins: bool, rng: np.random.Generator) -> Tensor:
    drawn = [image for prompt in asked for image in (_twins if twins else _apart)(prompt, rng)]
    latents = encode(vae, as_pixels(drawn))
    return decode(vae, latents * vae.config.scaling_factor, 64)


def draw_votes(pipeline: Any, pairs: Pairs) -> Votes:
    """Pairs with votes, half drawn by the base, half rendered; a function of the seed and the base's weights."""
    count, seed = pairs.count, pairs.seed
    rng = np.random.default_rng([seed, 5])
    asked = [random_prompt(rng) for _ in range(count)]
    half = count // 2
    painter = Painter.of(pipeline, SAMPLING)
    texts = [p.text for p in asked[:half] for _ in range(2)]
    indices = [2 * i + j for i in range(half) for j in range(2)]  # a prompt may come twice: no noise does
    parts = []
    for start in tqdm(range(0, len(texts), 256), desc="pairs by the base model"):
        drawn = painter.draw(texts[start : start + 256], indices[start : start + 256], seed)
        parts.append(decode(painter.vae, drawn.latents_BCHW, 64))
    images = torch.cat([*parts, _renderer_pairs(painter.vae, asked[half:], pairs.twins, rng)])
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    judged = [parts_of(asked[i // 2], arrays[i]) for i in tqdm(range(2 * count), desc="looking at them")]
    both = [(judged[2 * i], judged[2 * i + 1]) for i in range(count)]
    people = [Annotator(1000 * seed + i) for i in range(ANNOTATORS)]
    who = rng.integers(ANNOTATORS, size=(count, 2))
    votes = [
        [people[w].prefers_first(*pair) for w in pair_of] for pair, pair_of in zip(both, who, strict=True)
    ]
    first, second = torch.tensor(votes).T
    return Votes(images.view(count, 2, *images.shape[1:]), asked, both, first, second)


@dataclass(frozen=True)
class Choices:
    """N pictures with a caption that fits and `FALSE` that do not."""

    images_NCHW: Tensor
    captions_N: list[list[str]]
    """The fitting caption first."""
    patches_NL: Tensor
    """What covers each patch of 8x8 pixels (`train.miniature.data.patch_labels`)."""

    def captions(self, picked: Tensor) -> list[str]:
        """All captions of the picked pictures, picture by picture."""
        return [text for i in picked.tolist() for text in self.captions_N[i]]


def _like(what: Object, named: Sequence[Object], rng: np.random.Generator) -> list[Object]:
    """Objects that are not named: half of the time only of its colour, a quarter only of its shape.

    With any object as a substitute the colour alone gives six of seven away, and the shapes were never learnt (results/README.md).
    """
    kind = rng.random()
    return [
        o
        for o in OBJECTS
        if o not in named
        and (kind >= 0.5 or o.colour == what.colour)
        and (not 0.5 <= kind < 0.75 or o.shape == what.shape)
    ]


def false_caption(caption: str, rng: np.random.Generator) -> str:
    """A caption that is wrong in one thing.

    Another object, colours exchanged, the opposite side, one object too many, or another occupation with another dress.
    """
    scene = read_scene(caption)
    if scene is None:
        dress = dress_of(caption.split()[-1])
        return portrait_caption(str(rng.choice([o for o in OCCUPATIONS if dress_of(o) != dress])))
    objects, relation = scene
    fault = str(rng.choice(["object", "object", "colours", "side"]))
    differ = len(objects) == 2 and len({o.colour for o in objects} | {o.shape for o in objects}) == 4
    if fault == "colours" and differ:  # of two circles only the order would change
        objects = tuple(
            replace(o, colour=other.colour) for o, other in zip(objects, objects[::-1], strict=True)
        )
    elif relation in OPPOSITE and fault == "side":
        relation = OPPOSITE[relation]
    elif len(objects) == 1 and fault != "object":
        others = [o for o in OBJECTS if o not in objects]
        objects, relation = (*objects, others[rng.integers(len(others))]), str(rng.choice(RELATIONS))
    else:
        victim = int(rng.integers(len(objects)))
        others = _like(objects[victim], objects, rng)
        objects = (*objects[:victim], others[rng.integers(len(others))], *objects[victim + 1 :])
    return scene_caption(objects, relation)


TAGS = (*OBJECTS, *(f"{clothes} clothes" for clothes in CLOTHES), *HATS)


def tags_of(caption: str) -> Tensor:
    """Which of `TAGS` a picture of this caption shows, float [49]."""
    shown = torch.zeros(len(TAGS))
    scene = read_scene(caption)
    if scene is None:
        dress = dress_of(caption.split()[-1])
        shown[[TAGS.index(f"{dress.clothes} clothes"), TAGS.index(dress.hat)]] = 1
    else:
        shown[[TAGS.index(what) for what in scene[0]]] = 1
    return shown


def draw_choices(count: int, seed: int) -> Choices:
    """`count` rendered pictures with 1 + `FALSE` captions each; a function of the seed."""
    pictures, captions, patches = draw_labelled_examples(count, seed, MATCHED)
    rng = np.random.default_rng([seed, 6])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    asked = [[caption, *(false_caption(caption, rng) for _ in range(FALSE))] for caption in captions]
    return Choices(images, asked, torch.from_numpy(patches))


PLACES = ("left", "right", "above", "below", "middle")
QUESTIONS: dict[str, tuple[object, ...]] = {
    "is it true": (False, True),
    "which shape, or which clothes": (None, *SHAPES, *CLOTHES),
    "where, or which hat": (None, *PLACES, *HATS),
    "which colour": (None, *COLOURS),
}
"""What is asked of single words of a caption, and the answers there are."""


def _places(objects: Sequence[Object], relation: str | None) -> tuple[str, ...]:
    """Where a picture of `MATCHED` shows the objects of its caption."""
    if len(objects) == 1:
        return ("middle",)
    if relation in ("above", "below"):
        return relation, OPPOSITE[relation]
    return ("right", "left") if relation == "right of" else ("left", "right")


def asked_of_words(caption: str, fitting: str) -> list[tuple[int, str, object]]:
    """What is asked of the words of a caption about the picture that `fitting` fits, as (word number, question, answer).

    Of a shape's word: does the picture show that shape in the colour before it; which shape does the thing of that colour have, and where is
    it? Of a colour's: which colour does the thing of the shape behind it have? Of a relation between objects that are all there: does it hold?
    Of an occupation: does the dress fit it, and which is it? None where there is no such thing; what has two answers is not asked.
    """
    scene, shown = read_scene(caption), read_scene(fitting)
    last = len(caption.split()) - 1
    yes, shape, place, colour = QUESTIONS
    if scene is None:
        dress = dress_of(fitting.split()[-1])
        return [(last, yes, caption == fitting), (last, shape, dress.clothes), (last, place, dress.hat)]
    assert shown is not None, "a scene has scenes for false captions"
    there = list(zip(shown[0], _places(*shown), strict=True))
    asked: list[tuple[int, str, object]] = []
    for what, at in zip(scene[0], (2, last), strict=False):
        coloured = [(o.shape, where) for o, where in there if o.colour == what.colour]
        shaped = [o.colour for o, _ in there if o.shape == what.shape]
        asked.append((at, yes, what in shown[0]))
        if len(coloured) <= 1:
            answers = coloured[0] if coloured else (None, None)
            asked += [(at, shape, answers[0]), (at, place, answers[1])]
        if len(shaped) <= 1:
            asked.append((at - 1, colour, shaped[0] if shaped else None))
    if len(scene[0]) == 2 and scene[0] == shown[0]:
        asked.append((3, yes, scene[1] == shown[1]))
    return asked


def agreement(votes: Votes, prefers_first: Sequence[bool] | Tensor) -> float:
    """Share of pairs on which a verdict agrees with the first annotator's vote."""
    return float((torch.as_tensor(prefers_first) == votes.first_wins_N).float().mean())


def ceilings(votes: Votes) -> dict[str, float]:
    """What agreement with a vote can be: a second annotator's, and the hidden utility's own."""
    gold = [a.utility() > b.utility() for a, b in votes.parts_N2]
    return {
        "second_annotator": agreement(votes, votes.second_opinion_N),
        "hidden_utility": agreement(votes, gold),
    }


def of_picked(
    loss: Callable[[Tensor], Tensor], count: int, batch: int
) -> Callable[[torch.Generator], Tensor]:
    """A loss of indices as a loss of a generator that draws them, `batch` of `count`."""
    return lambda generator: loss(torch.randint(count, (batch,), generator=generator))


def _words() -> list[str]:
    return sorted({word for caption in all_captions() for word in caption.split()})


def new_imagereward(folder: Path) -> ImageReward:
    """ImageReward's architecture, small, with a BERT tokenizer of the world's words (letters spell the rest)."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*special, *_words(), *letters, *(f"##{x}" for x in letters)]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=True)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    text = sizes | {"num_hidden_layers": 3, "encoder_hidden_size": 128, "vocab_size": len(vocabulary)}
    text |= {"bos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3, "max_position_embeddings": 40}
    config = {
        "vision": sizes | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 8},
        "text": text,
        "max_length": 16,
        "mean": 0.0,
        "std": 1.0,
    }
    return ImageReward(config, tokenizer)


def _teach_names(model: ImageReward, choices: Choices) -> float:
    """Teach the vision transformer to see: which of `TAGS` does a picture show, and what covers each patch?

    The second question has 64 answers a picture where the first has two or three. Returns the last losses' mean.
    """
    tags_NT = torch.stack([tags_of(captions[0]) for captions in choices.captions_N])
    reader, labeller = Reader(len(TAGS), 1), nn.Linear(128, 1 + len(OBJECTS))
    objects_count_more = torch.tensor([0.1] + [1.0] * len(OBJECTS))

    def loss(picked: Tensor) -> Tensor:
        seen = model.see(choices.images_NCHW[picked])
        shown = F.binary_cross_entropy_with_logits(
            reader(seen)[..., 0], tags_NT[picked], pos_weight=torch.tensor(5.0)
        )
        covered = F.cross_entropy(
            labeller(seen[:, 1:]).flatten(0, 1),
            choices.patches_NL[picked].flatten(),
            weight=objects_count_more,
        )
        return shown + covered

    parameters = [*model.vision.parameters(), *reader.parameters(), *labeller.parameters()]
    return fit(parameters, of_picked(loss, CHOICES, NAMES.batch), NAMES, REWARD_SEED, "reward model: names")


NOT_ASKED = -100


def _asked_of_tokens(choices: Choices, max_length: int) -> Tensor:
    """`asked_of_words` of every caption: numbers of the answers [N, 1 + FALSE, max_length, questions], `NOT_ASKED` elsewhere."""
    numbers = torch.full((len(choices.captions_N), 1 + FALSE, max_length, len(QUESTIONS)), NOT_ASKED)
    columns = {question: (i, QUESTIONS[question].index) for i, question in enumerate(QUESTIONS)}
    for i, captions in enumerate(choices.captions_N):
        for j, caption in enumerate(captions):
            for word, question, answer in asked_of_words(caption, captions[0]):
                column, number_of = columns[question]
                numbers[i, j, 1 + word, column] = number_of(answer)  # a word is a token; [CLS] comes first
    return numbers


class CaptionLesson:
    """To tell the fitting caption from the false ones, helped by questions about their words.

    Without the questions the model learns which colours a picture shows and nothing else: the caption as a whole gives one bit, and colour alone
    earns most of it. To name the shape of the thing of a colour it has to look there.
    """

    def __init__(self, model: ImageReward, choices: Choices) -> None:
        self.model, self.choices = model, choices
        self.answerer = nn.Linear(128, sum(map(len, QUESTIONS.values())))
        self.answers_NKLQ = _asked_of_tokens(choices, model.config["max_length"])

    def __call__(self, picked: Tensor) -> Tensor:
        """The loss on the picked pictures."""
        seen = self.model.see(self.choices.images_NCHW[picked]).repeat_interleave(1 + FALSE, 0)
        read = self.model.read(seen, self.choices.captions(picked))
        answers = self.answers_NKLQ[picked].flatten(0, 2).unbind(-1)
        heads = self.answerer(read).flatten(0, 1).split([len(q) for q in QUESTIONS.values()], -1)
        told = sum(
            F.cross_entropy(head, answer, ignore_index=NOT_ASKED)
            for head, answer in zip(heads, answers, strict=True)
        )
        fits = F.cross_entropy(self.model.judge(read).view(-1, 1 + FALSE), torch.zeros_like(picked))
        return told + fits

    def parameters(self) -> list[nn.Parameter]:
        """What the lesson changes."""
        return [*self.model.parameters(), *self.answerer.parameters()]


def _start_lesson(folder: Path) -> CaptionLesson:
    """A fresh reward model before its captions; a function of `REWARD_SEED`."""
    torch.manual_seed(REWARD_SEED)
    return CaptionLesson(new_imagereward(folder).train(), draw_choices(CHOICES, REWARD_SEED))


def _saved_parts(lesson: CaptionLesson) -> dict[str, nn.Module]:
    return {"model.safetensors": lesson.model, "answerer.safetensors": lesson.answerer}


def train_blip(weights: Path) -> dict[str, Any]:
    """Teach a fresh reward model names and captions, and save it in `weights/blip`. Returns the record."""
    start = time.perf_counter()
    folder = weights / "blip"
    lesson = _start_lesson(folder)
    losses = {"names": _teach_names(lesson.model, lesson.choices)}
    torch.manual_seed(REWARD_SEED + 1)  # dropout: each lesson can be repeated by itself
    losses["captions"] = fit(
        lesson.parameters(),
        of_picked(lesson, CHOICES, CAPTIONS.batch),
        CAPTIONS,
        REWARD_SEED,
        "reward model: captions",
    )
    for name, part in _saved_parts(lesson).items():
        save_file(part.state_dict(), folder / name)
    return {
        **_captions_record(CAPTIONS),
        "seed": REWARD_SEED,
        "names": asdict(NAMES),
        "final_losses": losses,
        "seconds": round(time.perf_counter() - start),
    }


def _teach_votes(lesson: CaptionLesson, votes: Votes) -> float:
    """Bradley-Terry loss (the preferred picture has the higher reward), with the caption lesson beside it.

    Votes alone unlearn what the captions taught (results/README.md). Returns the last losses' mean.
    """
    torch.manual_seed(REWARD_SEED + 2)

    def bradley_terry(picked: Tensor) -> Tensor:
        texts = [votes.prompts_N[i].text for i in picked.tolist() for _ in range(2)]
        first, second = lesson.model(votes.images_N2CHW[picked].flatten(0, 1), texts).view(-1, 2).T
        margin = torch.where(votes.first_wins_N[picked], first - second, second - first)
        return -F.logsigmoid(margin).mean()

    voted = of_picked(bradley_terry, len(votes), REWARD_VOTES.batch)
    beside = of_picked(lesson, CHOICES, CAPTIONS_BESIDE)
    return fit(
        lesson.parameters(),
        lambda generator: voted(generator) + beside(generator),
        REWARD_VOTES,
        REWARD_SEED,
        "reward model: votes",
    )


def _pipeline_and_held_out(weights: Path) -> tuple[Any, Votes]:
    """The base model, and pairs that neither model is trained on."""
    pipeline = load_pipeline(str(weights / "pipeline"))
    return pipeline, draw_votes(pipeline, Pairs(HELD_OUT, REWARD_SEED + 100))


def _together(sets: Sequence[Votes]) -> Votes:
    """Several sets of votes as one."""
    return Votes(
        torch.cat([v.images_N2CHW for v in sets]),
        [p for v in sets for p in v.prompts_N],
        [parts for v in sets for parts in v.parts_N2],
        torch.cat([v.first_wins_N for v in sets]),
        torch.cat([v.second_opinion_N for v in sets]),
    )


def train_imagereward(weights: Path) -> dict[str, Any]:
    """Train the model of `train_blip` on votes, and save it in `weights/imagereward`. Returns the record.

    Its reward is standardised on pictures of the base.
    """
    start = time.perf_counter()
    folder = weights / "imagereward"
    pipeline, held_out = _pipeline_and_held_out(weights)
    lesson = _start_lesson(folder)
    for name, part in _saved_parts(lesson).items():
        part.load_state_dict(load_file(weights / "blip" / name))
    votes = _together([draw_votes(pipeline, pairs) for pairs in REWARD_PAIRS])
    loss = _teach_votes(lesson, votes)
    model = lesson.model.eval()
    raw = _rewards(model, votes, min(600, len(votes)))
    model.config |= {"mean": round(raw.mean().item(), 6), "std": round(raw.std().item(), 6)}
    (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n", encoding="utf-8")
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    first, second = _rewards(model, held_out, len(held_out)).T
    return {
        **_votes_record(REWARD_VOTES, REWARD_PAIRS, held_out, REWARD_SEED),
        "captions_beside": CAPTIONS_BESIDE,
        "final_loss": loss,
        "agreement": {"model": agreement(held_out, first > second), **ceilings(held_out)},
        "seconds": round(time.perf_counter() - start),
    }


def _captions_record(schedule: Schedule) -> dict[str, Any]:
    return {"choices": CHOICES, "false_captions": FALSE, "captions": asdict(schedule)}


def _votes_record(schedule: Schedule, pairs: Sequence[Pairs], held_out: Votes, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "votes": asdict(schedule),
        "pairs": [asdict(drawn) for drawn in pairs],
        "held_out_pairs": len(held_out),
    }


@torch.no_grad()
def _rewards(model: ImageReward, votes: Votes, count: int) -> Tensor:
    """Rewards [count, 2] of the first pairs."""
    parts = []
    for start in range(0, count, 64):
        images = votes.images_N2CHW[start : min(count, start + 64)]
        texts = [p.text for p in votes.prompts_N[start : start + len(images)] for _ in range(2)]
        parts.append(model(images.flatten(0, 1), texts).view(-1, 2))
    return torch.cat(parts)


def write_judge_config(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """open_clip's folder layout: a configuration and a tokenizer beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
        "text_cfg": {
            "context_length": MAX_TOKENS,
            "vocab_size": len(tokenizer),
            "width": 128,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": ".",
            "tokenizer_kwargs": {"clean": "whitespace"},
        },
    }
    mean_std = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    config = {"model_cfg": model, "preprocess_cfg": mean_std}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def train_judge(weights: Path) -> dict[str, Any]:
    """Train the judge (PickScore's loss: the preferred picture is the one whose embedding fits the prompt better), save it in `weights/judge`."""
    start = time.perf_counter()
    folder = weights / "judge"
    pipeline, held_out = _pipeline_and_held_out(weights)
    write_judge_config(folder, pipeline.tokenizer)
    torch.manual_seed(JUDGE_SEED)
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    text = {k: v for k, v in config["text_cfg"].items() if not k.startswith(("hf_", "tokenizer"))}
    towers = open_clip.CLIPVisionCfg(**config["vision_cfg"]), open_clip.CLIPTextCfg(**text)
    model = open_clip.CLIP(config["embed_dim"], *towers).train()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    votes = draw_votes(pipeline, JUDGE_PAIRS)
    ids = tokenizer([p.text for p in votes.prompts_N])
    choices = draw_choices(CHOICES, JUDGE_SEED)

    def choice_loss(picked: Tensor) -> Tensor:
        images = model.encode_image(normalise(choices.images_NCHW[picked]), normalize=True)
        texts = model.encode_text(tokenizer(choices.captions(picked)), normalize=True).view(
            len(picked), 1 + FALSE, -1
        )
        return F.cross_entropy(logits(images[:, None], texts), torch.zeros(len(picked), dtype=torch.long))

    def vote_loss(picked: Tensor) -> Tensor:
        images = model.encode_image(normalise(votes.images_N2CHW[picked].flatten(0, 1)), normalize=True)
        texts = model.encode_text(ids[picked], normalize=True)[:, None]
        return F.cross_entropy(
            logits(images.view(len(picked), 2, -1), texts), (~votes.first_wins_N[picked]).long()
        )

    def logits(images_BKD: Tensor, texts_BKD: Tensor) -> Tensor:
        scaled: Tensor = model.logit_scale.exp() * (images_BKD * texts_BKD).sum(-1)
        return scaled

    parameters = list(model.parameters())
    losses = {
        "captions": fit(
            parameters,
            of_picked(choice_loss, CHOICES, JUDGE_CAPTIONS.batch),
            JUDGE_CAPTIONS,
            JUDGE_SEED,
            "judge: captions",
        ),
        "votes": fit(
            parameters,
            of_picked(vote_loss, len(votes), JUDGE_VOTES.batch),
            JUDGE_VOTES,
            JUDGE_SEED,
            "judge: votes",
        ),
    }
    model.eval()
    _settle_batch_norm(model, votes)
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    verdict = _judge_prefers_first(model, tokenizer, held_out)
    return {
        **_votes_record(JUDGE_VOTES, [JUDGE_PAIRS], held_out, JUDGE_SEED),
        **_captions_record(JUDGE_CAPTIONS),
        "final_losses": losses,
        "agreement": {"model": agreement(held_out, verdict), **ceilings(held_out)},
        "seconds": round(time.perf_counter() - start),
    }


@torch.no_grad()
def _settle_batch_norm(model: nn.Module, votes: Votes) -> None:
    """Measure the batch statistics of the averaged weights anew: the running ones belong to the live weights."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for images in votes.images_N2CHW[:1024].flatten(0, 1).split(128):
        model.encode_image(normalise(images))  # type: ignore[operator]
    model.eval()


@torch.no_grad()
def _judge_prefers_first(model: Any, tokenizer: Any, votes: Votes) -> Tensor:
    images = torch.cat(
        [
            model.encode_image(normalise(x), normalize=True)
            for x in votes.images_N2CHW.flatten(0, 1).split(128)
        ]
    )
    texts = model.encode_text(tokenizer([p.text for p in votes.prompts_N]), normalize=True)
    first, second = torch.einsum("bkd,bd->bk", images.view(len(votes), 2, -1), texts).T
    verdict: Tensor = first > second
    return verdict
