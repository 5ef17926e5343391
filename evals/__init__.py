"""How good a checkpoint is: scores, metrics, comparisons, a report.

The map of this package
    scorers/        one file each: images and prompts in, one number per image out; a reward is a scorer in a training loop
    miniature/      the small world: how it is drawn and measured, its models, its scorers
    suites/         one file each: which prompts, how many images, which scorers
    metrics/        one file each: what the numbers say, per prompt and then over prompts
    diffusion.py    the DDIM transition and the sampler, shared by training and evaluation
    conditioning.py what a denoiser is told of a prompt: the text encoders of Stable Diffusion 1, 2 and XL
    checkpoints.py  opens what can be scored: a run directory, a diffusers folder, one file, a LoRA file, a hub id
    families.py     checkpoints in one file; architectures.py knows each family's sizes without its weights
    weights.py      weights of others: where they lie, which exactly, under what terms; hub.py fetches them
    harness.py      draws a suite's prompts and scores the pictures, in units that processes and hosts share
    pictures.py     pictures on disk: drawn where they are missing, or somebody's
    provenance.py   what rows were made of, as told beside them; workers.py starts several processes
    rows.py         score rows, the tidy CSV from which every table is made
    stats.py        paired, prompt-clustered bootstrap intervals
    compare.py      the table: every cell and every difference with an interval
    report.py       the same as one self-contained HTML page, with pictures and curves
    geneval.py      GenEval's rules; skin.py measures how often skin tones are read right
    __main__.py     `python -m evals score | compare | report | ...`

It reads run directories and never imports `train`. Importing it loads no weights.
"""
