"""Linear algebra on small matrices of task gradients: Gram matrix, cosines, norms."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# columns of a block whose products stay in the dtype of the rows; some BLAS kernels add up the products of many rows in
# one chain, and where all rounding errors have one sign 1024 columns lose 3e-6 on some processors
_COLUMNS_FEW, _COLUMNS_MANY, _FEW = 256, 64, 8
_TINY, _HUGE = 1e-24, 1e36  # squared lengths between which float32 neither underflows nor overflows
_ZERO_ROW = 1e-12  # a row this much shorter than the longest one counts as zero
_CANCELLED = 1e-14  # a square this much smaller than that of the sum of the terms' lengths is rounding


def gram(jacobian: Float[Tensor, "K P"]) -> Float[Tensor, "K K"]:
    """Return the inner products of the rows, accurate for long rows and for any scale.

    Long dot products in float32 lose up to a per cent (measured on eleven million columns), so the products of
    blocks of at most 256 columns are summed in float64. Rows whose squares would leave the range of the dtype are
    scaled by a power of two first, which is exact.

    Args:
        jacobian: One row per task.

    Returns:
        Symmetric positive semi-definite matrix in float64, on the device of ``jacobian``. NaN or infinity in a
        row gives NaN or infinity on the diagonal of that row.

    Example:
        >>> gram(torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]))
        tensor([[5., 0.],
                [0., 9.]], dtype=torch.float64)
    """
    if jacobian.dtype in (torch.bfloat16, torch.float16):
        jacobian = jacobian.float()
    num_rows, num_columns = jacobian.shape
    if num_columns == 0:
        return torch.zeros(num_rows, num_rows, dtype=torch.float64, device=jacobian.device)
    products = _blocked_gram(jacobian)
    squares = products.diagonal()
    if bool(((squares > _TINY) & (squares < _HUGE)).all()):
        return products
    peak = jacobian.abs().amax(dim=1).double()
    usable = torch.isfinite(peak) & (peak > 0)
    exponent = torch.where(usable, peak.log2().round(), torch.zeros_like(peak))
    scaled = _blocked_gram((jacobian.double() * torch.exp2(-exponent)[:, None]).to(jacobian.dtype))
    return scaled * torch.exp2(exponent[:, None]) * torch.exp2(exponent[None, :])


def _blocked_gram(jacobian: Tensor) -> Tensor:
    """Sum the products of column blocks in float64."""
    num_rows, num_columns = jacobian.shape
    width = _COLUMNS_FEW if num_rows <= _FEW else _COLUMNS_MANY
    whole = num_columns - num_columns % width
    blocks = jacobian[:, :whole].unflatten(1, (-1, width)).transpose(0, 1)  # (blocks, K, columns)
    total = torch.bmm(blocks, blocks.mT).double().sum(dim=0)
    if whole < num_columns:
        rest = jacobian[:, whole:]
        total = total + (rest @ rest.mT).double()
    return (total + total.mT) / 2


def norms(gram: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Return the lengths of the rows that a Gram matrix was made from."""
    return gram.diagonal().clamp(min=0).sqrt()


def nonzero_rows(gram: Float[Tensor, "K K"]) -> Bool[Tensor, " K"]:
    """Return which rows are not zero; a row 1e-12 times shorter than the longest one counts as zero."""
    lengths = norms(gram)
    return lengths > _ZERO_ROW * lengths.max()


def cosine(gram: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return the cosines between the rows, clipped to [-1, 1]; a zero row has cosine 0 with everything.

    Example:
        >>> cosine(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]))
        tensor([[ 1.0000, -0.5000],
                [-0.5000,  1.0000]])
    """
    kept = nonzero_rows(gram)
    lengths = torch.where(kept, norms(gram), torch.ones_like(gram.diagonal()))
    cosines = (gram / lengths[:, None] / lengths[None, :]).clamp(-1.0, 1.0)
    return torch.where(kept[:, None] & kept[None, :], cosines, torch.zeros_like(cosines))


def combination_norms(gram: Float[Tensor, "K K"], rows: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """Return the lengths of combinations of the rows that a Gram matrix was made from.

    A combination whose terms cancel to rounding has length exactly 0.

    Args:
        gram: Inner products of the rows.
        rows: Each row holds the coefficients of one combination.

    Example:
        >>> combination_norms(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([1., 0.])
    """
    squares = ((rows @ gram) * rows).sum(dim=1).clamp(min=0)
    terms = (rows.abs() @ norms(gram)).square()
    return torch.where(squares > _CANCELLED * terms, squares, torch.zeros_like(squares)).sqrt()


def random_orders(num_tasks: int, generator: torch.Generator | None = None) -> Int[Tensor, "K K-1"]:
    """Return for each task a random order of the other tasks."""
    keys = torch.rand(num_tasks, num_tasks, generator=generator, dtype=torch.float64)
    keys.fill_diagonal_(2.0)  # itself last, and cut off
    return keys.argsort(dim=1)[:, : num_tasks - 1]


def projected_rows(gram: Float[Tensor, "K K"], orders: Int[Tensor, "K K-1"]) -> Float[Tensor, "K K"]:
    """Return PCGrad's projected gradients as coefficients of the original ones, a row each.

    Args:
        gram: Inner products of the task gradients.
        orders: Row i lists the other tasks in the order in which gradient i is projected.

    Returns:
        Row i holds the coefficients of the projected gradient i; the sum of the rows gives the weights of PCGrad.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782, Algorithm 1.
    """
    rows = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    squares = gram.diagonal()
    usable = nonzero_rows(gram)
    task = torch.arange(len(gram), device=gram.device)
    for other in orders.T:  # all tasks take their next partner at once
        product = (rows * gram[other]).sum(dim=1)
        conflict = (product < 0) & usable[other]
        shift = torch.where(conflict, product / torch.where(conflict, squares[other], 1.0), 0.0)
        rows[task, other] -= shift
    return rows
