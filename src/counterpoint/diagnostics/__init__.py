"""Diagnostics: pure measures of conflict on small matrices."""

from counterpoint.diagnostics.conflict import pairwise_cosines as pairwise_cosines
