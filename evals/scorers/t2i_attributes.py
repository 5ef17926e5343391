"""T2I-CompBench's attribute binding (Huang et al., NeurIPS 2023, arXiv 2307.06350): colour, shape and texture, by asking BLIP about each thing that is named."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from evals import t2i_compbench
from evals.scorers import Scope, _preprocess, version_of
from evals.scorers._detectors import open_part
from evals.scorers._preprocess import normalise, resize
from evals.t2i_compbench import binding, noun_phrases
from evals.weights import Weights
from prompts import Prompt

BLIP_VQA = Weights(
    repository="Salesforce/blip-vqa-base",
    files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    licence="BSD-3-Clause",
    free=True,
    revision="787b3d35d57e49572baabd22884b3d5a05acf072",
    sha256=(
        "689a09e2a9980b7fcad329271c032254fde23b1ee7a90c67b003e1867dc9c098",
        "33786eed34def0c95fa948128cb4386be9b9219aa2c2e25f1c9c744692121bb7",
        "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
        "48d1c9120fe61c9741286050189b030e936f23797a65fd0a179078661e1c43bb",
    ),
)


class Scorer:
    """The product over the prompt's noun phrases of P(yes) to the question "<noun phrase>?": B-VQA; NaN where the prompt names nothing.

    So a red book and a yellow vase score 0 as soon as one is not there or has the other's colour.

    **Numbers are not upstream's**, though model, question and product are: its noun phrases are a tagger's, with its errors (`evals.t2i_compbench`), and it shows BLIP
    pictures of 480 pixels, while the weights that are published for transformers are those for 384. Compare ratios to the base's score.
    """

    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool | None = True
    source = (
        "T2I-CompBench's B-VQA (arXiv 2307.06350) on BLIP's VQA model (Salesforce/blip-vqa-base, BSD-3-Clause; arXiv 2201.12086) at 384 pixels, "
        "noun phrases by rule: ratios to the base can be compared, levels cannot"
    )
    scope: Scope = "image"
    weights: tuple[Weights, ...] = (BLIP_VQA,)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        code = (str(module.__file__) for module in (t2i_compbench, _preprocess))
        return version_of(Path(__file__), *map(Path, code), *self.weights)

    @cached_property
    def blip(self) -> BlipVqa:
        return BlipVqa(self.weights[0], self.device)

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        value_B = torch.full((len(prompts),), torch.nan)
        phrases = {i: named for i, prompt in enumerate(prompts) if (named := noun_phrases(prompt.text))}
        if phrases:
            questions = [[f"{phrase}?" for phrase in named] for named in phrases.values()]
            for i, yes in zip(phrases, self.blip.yes(images_BCHW[list(phrases)], questions), strict=True):
                value_B[i] = binding(yes)
        return value_B


class BlipVqa:
    """BLIP (Li et al., ICML 2022, arXiv 2201.12086) tuned to answer questions about pictures."""

    batch = 16
    """Pictures, or pairs of picture and question, at a time."""

    def __init__(self, weights: Weights, device: torch.device | str) -> None:
        from transformers import BertTokenizer, BlipForQuestionAnswering

        self.model = open_part(BlipForQuestionAnswering, weights).to(device)
        self.tokenizer = open_part(BertTokenizer, weights)
        self.device = device
        self.answers = self.tokenizer.convert_tokens_to_ids(["yes", "no"])

    def yes(self, images_BCHW: Tensor, questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """P(yes) / (P(yes) + P(no)) of the first word of the answer, for each question of each picture.

        Args:
            images_BCHW: float32 RGB in [0, 1].
            questions: of each picture.
        """
        found: list[list[float]] = []
        for start in range(0, len(questions), self.batch):
            few = slice(start, start + self.batch)
            seen_BLD = self.model.vision_model(
                self.preprocess(images_BCHW[few].to(self.device))
            ).last_hidden_state
            found += self._asked(seen_BLD, questions[few])
        return found

    def _asked(self, seen_BLD: Tensor, questions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The answers about pictures that were seen; questions of one length together, so that none is padded to its neighbours'."""
        ids = [[self._ids(question) for question in asked] for asked in questions]
        found = [[0.0] * len(asked) for asked in questions]
        places = [(i, j) for i, asked in enumerate(ids) for j in range(len(asked))]
        for length in sorted({len(one) for asked in ids for one in asked}):
            alike = [(i, j) for i, j in places if len(ids[i][j]) == length]
            for start in range(0, len(alike), self.batch):
                few = alike[start : start + self.batch]
                ids_BL = torch.tensor([ids[i][j] for i, j in few], device=self.device)
                for (i, j), probability in zip(
                    few, self._yes(seen_BLD[[i for i, _ in few]], ids_BL), strict=True
                ):
                    found[i][j] = probability
        return found

    def _ids(self, question: str) -> list[int]:
        """[ENC], the question, [SEP]: as BLIP was trained; the library's processor has [CLS] first."""
        ids: list[int] = self.tokenizer(question).input_ids
        return [self.model.config.text_config.bos_token_id + 1, *ids[1:]]

    def _yes(self, seen_BLD: Tensor, ids_BL: Tensor) -> list[float]:
        read_BLD = self.model.text_encoder(input_ids=ids_BL, encoder_hidden_states=seen_BLD).last_hidden_state
        begin_B1 = ids_BL.new_full((len(ids_BL), 1), self.model.config.text_config.bos_token_id)
        logits_BV = self.model.text_decoder(input_ids=begin_B1, encoder_hidden_states=read_BLD).logits[:, 0]
        answer: list[float] = logits_BV[:, self.answers].softmax(-1)[:, 0].tolist()
        return answer

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Resize to a square with Pillow's bicubic filter, whatever the aspect, and normalise."""
        side = self.model.config.vision_config.image_size
        return normalise(resize(images_BCHW, (side, side)))
