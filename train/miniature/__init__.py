"""Makes everything the miniature ships, in results/miniature: `python -m train.miniature all` (`make miniature`).

`data` draws the biased training pictures, `pretrain` trains autoencoder, text encoder and denoiser, `preference` trains
the reward model and the held-out judge on simulated annotators' votes. Each stage writes a record of how.
"""
