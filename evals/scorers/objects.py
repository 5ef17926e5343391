"""Object detection score, the paper's Eq 13, on photographs and what looks like one."""

from __future__ import annotations

from pathlib import Path

from evals.scorers import version_of
from evals.scorers._detectors import CODE, OWLV2, DetectionScore, Owlv2


class Scorer(DetectionScore):
    """Mean over the objects that the prompt names of the best detection confidence, 0 for one that is not detected; NaN if it names none.

    **Numbers are not the paper's.** Its detector is UniDet, closed-set over 722 labels, of which the paper takes 532; checkpoint and threshold
    are not stated. An open-set detector's confidences are another quantity: each name is judged by itself, so that no other label takes a
    box away from it, and the levels are those of OWLv2's calibration. SD 2's .094 on seen and .102 on unseen objects (the paper's
    Table 4) is not to be expected here. Compare ratios to the base model's score: the paper's reach 2.35 (.221) and 2.26 (.231).

    **Why OWLv2** and not Grounding DINO, which is beside it as `objects_grounding_dino`:

    - Score of one object, whatever else is asked: image and name meet only at the end, in a cosine. Grounding DINO lets the picture attend to
      the whole caption, so "a cat" beside "a dog" scores otherwise than alone, and other captions need other passes.
    - Several words: a name is one embedding. Grounding DINO scores tokens, and something has to be made of "baseball" and "bat".
    - Separators: none, while Grounding DINO's captions are phrases between full stops, and what else is in a name ("rifle, gun") has a score too.
    - Batches and speed: one pass an image for any number of names, names embedded once a run, all pictures in one shape. Grounding DINO
      takes a pass for each pair of image and object, and deformable attention.
    - Licence: both Apache-2.0.

    **What a policy may exploit.** CLIP-like encoders read: the word "cat" written in a picture may count as a cat, and so may a drawing or
    a toy of one; nothing asks for the relation, the count or quality (neither does Eq 13). So hold a run that was trained on this to
    `objects_grounding_dino`, which shares neither weights nor text encoder with it, and to `geneval`: gains that only one sees are not gains.
    """

    source = (
        "OWLv2 ViT-B/16, ensemble (google/owlv2-base-patch16-ensemble, Apache-2.0; Minderer et al. 2023, arXiv 2306.09683) "
        "in the detection score of arXiv 2401.12244, Eq 13"
    )
    weights = (OWLV2,)
    detector = Owlv2

    @property
    def version(self) -> str:
        return version_of(Path(__file__), *CODE, *self.weights)
