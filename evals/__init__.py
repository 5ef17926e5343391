"""How good a checkpoint is: scores, metrics, comparisons, a report.

The map of this package
    scorers/        one file each: images and prompts in, one number per image out; a reward is a scorer in a training loop
    metrics/        one file each: what the numbers say, per prompt and then over prompts
    diffusion.py    the DDIM transition and the sampler, shared by training and evaluation
    harness.py      generate and score a checkpoint: a run directory, a diffusers folder, a LoRA file, a hub id
    rows.py         score rows, the tidy CSV from which every table is made
    stats.py        paired, prompt-clustered bootstrap intervals
    compare.py      the table: every cell and every difference with an interval
    report.py       the same as one self-contained HTML page, with pictures and curves
    __main__.py     `python -m evals score | compare | report`

It reads run directories and never imports `train`. Importing it loads no weights.
"""
