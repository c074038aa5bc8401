"""Contract checks that methods of the package pass and that outside methods can run."""

from counterpoint.testing.balancers import check_balancer as check_balancer
