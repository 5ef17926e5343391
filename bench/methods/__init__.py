"""Training methods side by side: the same base, prompts, reward, budget of denoiser evaluations and seeds, on the miniature. `make methods`.

A cell is one method, trained on one reward with one seed; its snapshots are scored on prompts that no training holds (`evals.suites.miniature_methods`), by
the harness that scores everything else. The table is a function of the cells' files alone.

The map of this package
    questions.py    what is asked of a reward's runs: proxy, held-out, gold
    cells.py        which cells there are, how long each is trained, what it costs, and what a method refuses
    code.py         which files of this project train a cell, and whether cells were trained by the same
    work.py         trains and scores a cell, and several at a time; goes on where it was stopped
    table.py        from the cells' files to numbers with intervals
    pages.py        results/methods-<reward>.md, .csv and .svg
    tune.py         `tune METHOD`: the settings in the method's own file, tried on prompts of which nothing is reported
    __main__.py     the commands
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("results/methods")
"""Where cells lie, beside the pages."""
SEEDS = (0, 1, 2)
POINTS = 5
"""Times that a run is scored, or up to twice as often: the first is after a fifth of it at most, where a fifth is an iteration."""
