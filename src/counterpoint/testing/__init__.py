"""Contract checks and a test problem that methods of the package pass and that outside methods can run."""

from counterpoint.testing.balancers import check_balancer as check_balancer
from counterpoint.testing.toy import TOY_LOWER_BOUND as TOY_LOWER_BOUND
from counterpoint.testing.toy import TOY_SETUPS as TOY_SETUPS
from counterpoint.testing.toy import ToySetup as ToySetup
from counterpoint.testing.toy import toy_losses as toy_losses
from counterpoint.testing.toy import toy_pareto_distance as toy_pareto_distance
