"""ExcessMTL: weights from estimated excess risks."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_range
from counterpoint.balancers._columns import ColumnsBalancer


def excess_risks(
    jacobian: Float[Tensor, "K P"], squares: Float[Tensor, "K P"], *, eps: float = 1e-7
) -> Float[Tensor, " K"]:
    """Return how far each loss is estimated to be above its minimum: ``E_i = sum_p g_ip^2 / sqrt(S_ip + eps)``.

    That is twice the second-order estimate ``g H^-1 g / 2`` with AdaGrad's diagonal in place of the Hessian.

    Args:
        jacobian: One gradient g_i per task.
        squares: Sums S_i over steps of the squared gradients, that of now included.
        eps: Added to the sums, at least 0, in the unit of a squared gradient; a coordinate with S = 0 counts as 0.

    Returns:
        The estimates in float64, on the CPU.

    Example:
        >>> jacobian = torch.tensor([[3.0, -4.0]])
        >>> excess_risks(jacobian, jacobian**2, eps=0.0)
        tensor([7.], dtype=torch.float64)

    References:
        He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, arXiv:2402.02009; without the factor 1/2,
        as in the released code.
    """
    found = torch.empty(len(jacobian), dtype=torch.float64)
    for task, (row, total) in enumerate(zip(jacobian, squares, strict=True)):
        root = (total + eps).sqrt_()
        terms = torch.where(root > 0, row * (row / torch.where(root > 0, root, 1.0)), 0.0)
        found[task] = terms.sum(dtype=torch.float64)
    return found


def excess_weights(
    logits: Float[Tensor, " K"], ratios: Float[Tensor, " K"], *, eta: float = 0.01
) -> Float[Tensor, " K"]:
    """Return the logarithms of the weights ``w_i exp(eta r_i)``, scaled back to the sum of the w_i.

    Args:
        logits: Logarithms of the weights w.
        ratios: Excess risk of each task over its first one.
        eta: Step size, at least 0.

    Example:
        >>> excess_weights(torch.zeros(2), torch.tensor([1.0, 2.0]), eta=1.0).exp()
        tensor([0.5379, 1.4621])
    """
    moved = logits + eta * ratios
    return moved - moved.logsumexp(dim=0) + logits.logsumexp(dim=0)


@final
class ExcessMTL(ColumnsBalancer):
    """ExcessMTL: more weight to tasks that are still far above their own minimum, whatever the noise in their labels.

    The excess risk E_i (:func:`excess_risks`) is divided by its value at the task's first step with a gradient that is
    not zero; at that step the weight does not move. After it ``w_i <- w_i exp(eta E_i / E_i^0)``, scaled to the sum K.
    The weights multiply the gradients of the shared and of the tasks' own parameters.

    The sums of squares cost memory for K more gradients. ``eps`` matters: where squared gradients are well below it,
    E is proportional to |g|^2, where they are well above, AdaGrad's scaling acts. With ``eps=0`` the weights do not
    change if a loss is multiplied by a constant.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        eta: Step size of the weights, at least 0.
        eps: Added to the sums of squares, at least 0, in the unit of a squared gradient.

    References:
        He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, arXiv:2402.02009, by its released code,
        which divides by the first excess risk (the paper does not) and drops a factor 1/2. A first excess
        risk of 0 gives infinite weights there. An absent task keeps its state here, and the others the sum of their
        weights.
    """

    key = "excess_mtl"
    equation = "w_i <- w_i exp(eta E_i / E_i^0), scaled to sum K;  E_i = sum_p g_ip^2 / sqrt(sum over steps of g_ip^2)"
    source = "He et al., Robust Multi-Task Learning with Excess Risks, ICML 2024, arXiv:2402.02009"
    provenance = "released code, which differs from the paper in two factors; absent tasks are ours"
    scale = "weights sum to K"
    avoid = (
        "Where memory is short, since squared gradients of every task and coordinate are kept; or early in "
        "training, since the weights grow with the first estimates of the excess risk for ever."
    )
    cost = "K backward passes, memory for K gradients and for a state of K more (K x P)"
    task_gradients = "weighted"

    squares: Tensor
    first: Tensor
    logits: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        eta: float = 0.01,
        eps: float = 1e-7,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.eta = check_range("ExcessMTL: eta", eta, low=0.0, high_open=True)
        self.eps = check_range("ExcessMTL: eps", eps, low=0.0, high_open=True)
        self.add_lazy_state("squares")
        self.add_state("first", torch.full((self.num_tasks,), float("nan"), dtype=torch.float64))
        self.add_state("logits", torch.zeros(self.num_tasks, dtype=torch.float64))

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return the direction of one step and its weights."""
        index = torch.tensor(present, device=self.first.device)
        old = self._rows("squares", jacobian, present)
        rows = jacobian.to(old)
        squares = old.addcmul(rows, rows)
        self._keep("squares", squares, present)
        excess = excess_risks(rows, squares, eps=self.eps)
        first, logits = self.first[index].cpu().double(), self.logits[index].cpu().double()
        ratios = torch.where(torch.isnan(first), 0.0, excess / first)
        logits = excess_weights(logits, ratios, eta=self.eta)
        self.logits[index] = logits.to(self.logits)
        begins = torch.isnan(first) & (excess > 0)
        self.first[index] = torch.where(begins, excess, first).to(self.first)
        weights = (len(present) * logits.softmax(dim=0)).to(rows)
        return (weights @ rows).to(jacobian.dtype), weights.to(jacobian)
