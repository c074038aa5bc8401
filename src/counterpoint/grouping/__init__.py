"""Grouping: affinities between tasks, and groups of tasks made of them. One line here exports and registers a method."""

from counterpoint.grouping._base import Method as Method
from counterpoint.grouping._base import Solver as Solver
from counterpoint.grouping.affinity import AffinityMatrix as AffinityMatrix
from counterpoint.grouping.branch_and_bound import BranchAndBound as BranchAndBound
from counterpoint.grouping.exhaustive import Exhaustive as Exhaustive
from counterpoint.grouping.groups import Grouping as Grouping
from counterpoint.registry import Registry

METHODS = Registry(
    "grouping method",
    Method,
    globals(),
    facts=("role", "source", "provenance", "cost", "reads"),
    given=("num_tasks", "tasks"),
)
create = METHODS.create
names = METHODS.names
describe = METHODS.describe
