"""Metrics: what they are called, their unit and direction; delta_m and ranks over methods."""

from counterpoint.metrics._base import MetricSpec as MetricSpec
from counterpoint.metrics.accuracy import accuracy as accuracy
from counterpoint.metrics.delta_m import delta_m as delta_m
from counterpoint.metrics.mean_rank import mean_rank as mean_rank
