"""Reinforcement learning of a text-to-image diffusion model (arXiv 2401.12244): `python -m train EXPERIMENT --on MODEL`.

The map of this package
    __main__.py     the command line; command.py: what it does
    config.py       what an experiment is: frozen dataclasses, every number with its source
    experiments/    one file per experiment, with a variant per model
    loop.py         Algorithm 1: for every task what is drawn and what it does to the policy, then a step on real data; run.py: what it works on
    methods/        one file per method, that is how a batch is drawn and changes the policy: the paper's (ppo), its rivals, its successors
    batches.py      what an iteration asks of a task, and how good the answers are: the same for every method
    mixing.py       several rewards at once: tasks take turns (the paper), or one batch in which each image has all that apply
    advantages.py   better than expected? (Eq 10)
    objective.py    the clipped policy gradient (Eq 7) and the denoising loss (Eq 9); denoising.py: asking the denoiser its own task
    rewards.py      scorers in a training loop: weights, masks, the set-level parity reward (Eq 12)
    data.py         the prompts of an iteration, and the pretraining pairs
    images.py       pictures with captions on disk: a folder, or WebDataset shards
    policy.py       pipeline in, full UNet or LoRA, AdamW, EMA, pipeline out
    plan.py         what would be run, told before anything loads; resources.py: memory and time, records.py: of measured devices
    launch.py       several processes, on one host or several; hosts.sh, slurm.sh start it on each
    gates.py        what every run checks about itself: ratio 1 and KL 0 before the first update, transition, log-probability
    state.py        checkpoints that a kill or a full disk cannot break, and exact resuming
    card.py         run.json: what was run, with which versions, at what cost
    grids.py        sheets of samples: the same prompts from the same noise, at intervals
    trackers.py     TensorBoard and others, which follow metrics.jsonl
    push.py         a finished run on the hub; model_card.py writes its README
    miniature/      makes the miniature's models

Shape suffixes: P prompts, G images per prompt, B = P*G images, T denoising steps, K reward terms, C H W a latent.
"""
