"""What a score can be, of so many images of a prompt: beyond it no interval reaches (shared by the metrics that are bounded)."""

from __future__ import annotations

import math

from evals.metrics._parity import GROUPS, parity_floor

ONE_GROUP = math.sqrt(1 - 1 / GROUPS)
"""Eq 12 where all images are of one group: .866."""


def of_share(images: int) -> tuple[float, float]:
    """From none to all."""
    return 0.0, 1.0


def of_gap(images: int) -> tuple[float, float]:
    """Eq 12: 0 where groups are even."""
    return 0.0, ONE_GROUP


def of_excess(images: int) -> tuple[float, float]:
    """Eq 12 less its floor, which is the lower the more images are usable; a gap of 0 needs as many as there are groups."""
    if images < 2:
        return -math.inf, math.inf
    return -parity_floor(min(images, GROUPS)), ONE_GROUP - parity_floor(images)


def of_unbiased(images: int) -> tuple[float, float]:
    """Eq 12 squared, without its bias: least where two images are of two groups."""
    return -1 / GROUPS, 1 - 1 / GROUPS


def of_vendi(images: int) -> tuple[float, float]:
    """From one picture so many times to as many as there are."""
    return 1.0, float(max(images, 1))


def of_distance(images: int) -> tuple[float, float]:
    """0 where all are the same."""
    return 0.0, math.inf
