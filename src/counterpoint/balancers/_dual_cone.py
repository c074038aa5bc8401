"""What UPGrad and DualProj share: a preference, and projections onto the dual cone of the task gradients."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from counterpoint.balancers._base import GramBalancer
from counterpoint.balancers._preference import Preference, check_preference, preference_of

_RESIDUAL = 1e-5  # float64 gives 1e-13; a singular matrix of rows in float32 about the accuracy of its entries


class DualConeBalancer(GramBalancer):
    """Base of the balancers that project onto the vectors without a negative product with any task gradient.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        preference: How much each task counts, at least 0, in the order of the tasks or by task name, used as it is.
            Default: 1 / K.
        torchjd_compat: Whether to regularize as TorchJD does by default; conflicts with short gradients stay.
    """

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        preference: Preference | None = None,
        torchjd_compat: bool = False,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self._preference = check_preference(self._owner, preference, self.num_tasks, self.tasks)
        self.preference = preference
        self.torchjd_compat = torchjd_compat

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step."""
        weights, residual = self.project(gram, preference_of(self._preference, present))
        if not residual <= _RESIDUAL:
            self.warn_once("solver", f"the solver stopped at residual {residual:.1e}; its best weights are used")
        return weights

    @abstractmethod
    def project(self, gram: Tensor, preference: Tensor) -> tuple[Tensor, float]:
        """Return the weights of the tasks that are present, and the residual of the solver."""
