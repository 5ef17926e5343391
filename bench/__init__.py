"""How fast: pytest-benchmark over the training loop. `make bench`. What is good is `evals`' business."""
