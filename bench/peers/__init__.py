"""The same training by another trainer: `make peers` makes its environment, `python -m bench.peers` runs both in turn.

The peer is `trl.DDPOTrainer`, the one other trainer of policy gradients on Stable Diffusion's kind of model that came in a package; 0.23.1 is
the last release that has it. Pipeline, reward, prompts, batch, denoising steps, trained steps, optimiser steps and precision are the same:

    trl      every image is trained on at its own `trained_steps` denoising steps; an AdamW step on each part of the batch
    here     the whole batch is trained on at `trained_steps` denoising steps, an AdamW step on each

so that both make as many forward and backward passes, of micro-batches of one size, and as many AdamW steps. What differs is left as each has it: trl
encodes each prompt again, keeps whole trajectories, and compares nothing before it trains.

    worker.py      a process that answers JSON requests, one a line, and the line to it
    ours.py        this project's trainer as such a process
    trl_ddpo.py    trl's, in `.venv-peers`; of this project it imports the reward and `worker`
    __main__.py    the measurement
    gain.py        another one: seconds to one gain, by trl's DDPO and by the method that is fastest here
"""
