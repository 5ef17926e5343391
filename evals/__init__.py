"""How good a checkpoint is: scores, metrics, comparisons, a report.

The map of this package
    scorers/        one file each: images and prompts in, one number per image out; a reward is a scorer in a training loop
    miniature/      the small world: how it is drawn and measured, its models, its scorers
    suites/         one file each: which prompts, how many images, which scorers
    metrics/        one file each: what the numbers say, per prompt and then over prompts
    diffusion.py    the DDIM transition and the sampler, shared by training and evaluation
    arithmetic.py   what a model's last bits depend on: device, precision, shape of a batch; decoder.py turns latents into pictures
    conditioning.py what a denoiser is told of a prompt: the text encoders of Stable Diffusion 1, 2 and XL
    checkpoints.py  opens what can be scored: a run directory, a diffusers folder, one file, a LoRA file, a hub id
    families.py     checkpoints in one file; architectures.py knows each family's sizes without its weights
    weights.py      weights of others: where they lie, which exactly, under what terms; hub.py fetches them
    harness.py      draws a suite's prompts and scores the pictures, in units that processes and hosts share
    pictures.py     pictures on disk: drawn where they are missing, or somebody's; layout.py says where a folder has them, rgb.py what RGB they are
    provenance.py   what rows were made of, as told beside them; workers.py starts several processes
    rows.py         score rows, the tidy CSV from which every table is made
    stats.py        paired, prompt-clustered bootstrap intervals
    compare.py      every cell and every difference with an interval and a test; tables.py prints them, as Markdown, CSV, LaTeX, JSON
    unscored.py     what was left out of a comparison, and the command that would score it
    order.py        Vendi scores of another order than 1, as names of scorers and metrics say it
    panel.py        judges: how far they agree, and where they order two checkpoints differently
    variety.py      runs that have lost their variety, pictures that are there twice; asides.py reads what stands beside score files
    fairness.py     who is drawn: Eq 12 with floor, correction and refusal
    curve.py        over the snapshots of a run: where reward and judge part; divergence.py is the exact KL to the base
    plan.py         what a comparison will be able to tell, before it is made
    ballots.py      votes of people: what is shown, and the log; vote.py serves the page, tally.py counts
    report.py       the table as one self-contained HTML page, with pictures and curves; report_data.py puts the rows into it, report_runs.py what run directories tell
    geneval.py      GenEval's rules, t2i_compbench.py T2I-CompBench's; geneval_people.py and skin.py hold them to people and to known tones
    __main__.py     `python -m evals score | compare | report | ...`

It reads run directories and never imports `train`. Importing it loads no weights.
"""
