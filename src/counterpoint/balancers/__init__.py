"""Balancers: K losses in, one update of the shared parameters out. One line here exports and registers a method."""

from counterpoint.balancers._base import Balancer as Balancer
from counterpoint.balancers._base import BalancerReport as BalancerReport
from counterpoint.balancers._base import GramBalancer as GramBalancer
from counterpoint.balancers._base import JacobianBalancer as JacobianBalancer
from counterpoint.balancers._base import LossBalancer as LossBalancer
from counterpoint.balancers.equal import Equal as Equal
from counterpoint.balancers.pcgrad import PCGrad as PCGrad
from counterpoint.registry import Registry

BALANCERS = Registry(
    "balancer",
    Balancer,
    globals(),
    facts=("equation", "source", "provenance", "reads", "scale", "cost", "task_gradients"),
    given=("num_tasks", "tasks", "generator"),
)
create = BALANCERS.create
names = BALANCERS.names
describe = BALANCERS.describe
