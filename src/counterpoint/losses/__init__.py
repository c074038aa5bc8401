"""Losses: one function per file, ``loss(prediction, target, mask, reduction="mean") -> scalar``."""

from counterpoint.losses.cross_entropy import cross_entropy as cross_entropy
