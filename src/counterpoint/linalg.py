"""Linear algebra on small matrices of task gradients: Gram matrix, cosines, norms."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# columns of a block whose products stay in the dtype of the rows; some BLAS kernels add up the products of many rows in
# one chain, and where all rounding errors have one sign 1024 columns lose 3e-6 on some processors
_COLUMNS_FEW, _COLUMNS_MANY, _FEW = 256, 64, 8
# entries of the products of blocks that are made at once: what a cache holds, or enough to be worth a call
_CACHED, _LAUNCHED = 400_000, 16_000_000
_TOGETHER = 16_384  # columns of rows that lie apart that are brought together at once
_TINY, _HUGE = 1e-24, 1e36  # squared lengths between which float32 neither underflows nor overflows
_PLAIN_EXPONENT = 40.0  # rows whose largest entry is between 2^-40 and 2^40 need no scaling in float32
_ZERO_ROW = 1e-12  # a row this much shorter than the longest one counts as zero
_DEPENDENT = 1e-12  # an eigenvalue of the cosines this much smaller than the largest one counts as zero
_NO_DIRECTION = 1e-10  # a vector this much shorter than its terms is rounding, and has no direction
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
    found = cross_gram(jacobian, jacobian)
    squares = found.diagonal()
    if bool(((squares > _TINY) & (squares < _HUGE)).all()):
        return found
    scaled, factors = _in_range(jacobian)
    return cross_gram(scaled, scaled) * factors[:, None] * factors[None, :]


def gram_of_list(rows: Sequence[Float[Tensor, " P"]]) -> Float[Tensor, "K K"]:
    """Return the inner products of rows that lie apart, as :func:`gram`, without ever holding them as one matrix.

    Args:
        rows: One vector per task, all of one dtype.

    Example:
        >>> gram_of_list([torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 3.0, 0.0])])
        tensor([[5., 0.],
                [0., 9.]], dtype=torch.float64)
    """
    parts = zip(*(row.split(_TOGETHER) for row in rows), strict=True)
    found = [gram(torch.stack(part)) for part in parts]
    return torch.stack(found).sum(dim=0) if len(found) > 1 else found[0]


def cross_gram(first: Float[Tensor, "K P"], second: Float[Tensor, "K P"]) -> Float[Tensor, "K K"]:
    """Return the symmetric part of the inner products between two sets of rows, in float64.

    Args:
        first: One row per task.
        second: The same, of the same dtype; usually such that the product is symmetric but for rounding.

    Example:
        >>> cross_gram(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]], dtype=torch.float64)
    """
    total = products(first, second)
    return (total + total.mT) / 2


def inner_products(first: Float[Tensor, "K P"], second: Float[Tensor, "K P"]) -> Float[Tensor, "K K"]:
    """Return all inner products between two sets of rows, accurate for long rows and for any scale, as :func:`gram`.

    Args:
        first: One row per task.
        second: The same of other gradients, of the same dtype.

    Returns:
        Matrix of ``<first_i, second_j>`` in float64; not symmetric. NaN or infinity in a row spoils that row or column.

    Example:
        >>> inner_products(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 3.0], [0.0, 1.0]]))
        tensor([[1., 0.],
                [6., 2.]], dtype=torch.float64)
    """
    if first.dtype in (torch.bfloat16, torch.float16):
        first, second = first.float(), second.float()
    if not first.shape[1]:
        return first.new_zeros(len(first), len(second), dtype=torch.float64)
    (left, up), (right, down) = _in_range(first), _in_range(second)
    return products(left, right) * up[:, None] * down[None, :]


def _in_range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scale rows by powers of two where their squares would leave the range of the dtype; return what undoes it."""
    peak = rows.abs().amax(dim=1).double()
    usable = torch.isfinite(peak) & (peak > 0)
    exponent = torch.where(usable, peak.log2().round(), torch.zeros_like(peak))
    if float(exponent.abs().max()) <= _PLAIN_EXPONENT:
        return rows, torch.ones_like(peak)
    return (rows.double() * torch.exp2(-exponent)[:, None]).to(rows.dtype), torch.exp2(exponent)


def products(first: Float[Tensor, "K P"], second: Float[Tensor, "K P"]) -> Float[Tensor, "K K"]:
    """Return the inner products between two sets of rows, summed over blocks of columns in float64.

    Args:
        first: One row per task, in the range where squares neither underflow nor overflow.
        second: The same, of the same dtype.

    Example:
        >>> products(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.]], dtype=torch.float64)
    """
    num_rows, num_columns = first.shape
    width = _COLUMNS_FEW if num_rows <= _FEW else _COLUMNS_MANY
    whole = num_columns - num_columns % width
    entries = _CACHED if first.device.type == "cpu" else _LAUNCHED
    at_once = max(entries // max(num_rows * num_rows, 1), 1) * width
    total: Tensor | None = None
    for start in range(0, whole, at_once):
        stop = min(start + at_once, whole)
        blocks = (stop - start) // width
        # (blocks, K, columns)
        left, right = (
            rows[:, start:stop].reshape(len(rows), blocks, width).transpose(0, 1) for rows in (first, second)
        )
        part = torch.bmm(left, right.mT).sum(dim=0, dtype=torch.float64)
        total = part if total is None else total.add_(part)
    if whole < num_columns:
        part = (first[:, whole:] @ second[:, whole:].mT).double()
        total = part if total is None else total.add_(part)
    if total is None:
        return torch.zeros(num_rows, len(second), dtype=torch.float64, device=first.device)
    return total


def norms(gram: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Return the lengths of the rows that a Gram matrix was made from."""
    return gram.diagonal().clamp(min=0).sqrt()


def nonzero_rows(gram: Float[Tensor, "K K"]) -> Bool[Tensor, " K"]:
    """Return which rows are not zero; a row 1e-12 times shorter than the longest one counts as zero."""
    lengths = norms(gram)
    return lengths > _ZERO_ROW * lengths.max() if len(lengths) else lengths > 0


def nonzero_block(gram: Float[Tensor, "K K"]) -> tuple[Int[Tensor, " N"], Float[Tensor, "N N"]]:
    """Return which rows are not zero, as :func:`nonzero_rows` says, and their part of the matrix, in float64.

    Example:
        >>> nonzero_block(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
        (tensor([0]), tensor([[4.]], dtype=torch.float64))
    """
    index = nonzero_rows(gram).nonzero().flatten()
    return index, (gram if len(index) == len(gram) else gram[index][:, index]).double()


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


def direction_with_cosines(gram: Float[Tensor, "K K"], cosines: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return the weights of the unit vector in the span of the rows whose cosines with them are in given proportions.

    With unit rows U the vector is ``x / |x|`` for ``x = U^+ cosines``; for dependent rows the proportions are met in
    the sense of least squares. A zero row has weight 0.

    Args:
        gram: Inner products of the rows.
        cosines: The proportions; only those of rows that are not zero are read.

    Returns:
        Weights of the rows themselves; all 0 if there is no such vector, as for two opposed rows.

    Example:
        >>> direction_with_cosines(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.ones(2))
        tensor([0.3536, 0.7071])
    """
    kept = nonzero_rows(gram).nonzero().flatten()
    weights = torch.zeros_like(gram.diagonal())
    if not len(kept):
        return weights
    lengths, target = norms(gram)[kept], cosines[kept].to(gram)
    values, vectors = torch.linalg.eigh(cosine(gram[kept][:, kept]))
    large = values > _DEPENDENT * values[-1]
    parts = vectors[:, large].T @ target
    square = float((parts * parts / values[large]).sum())
    if square > (_NO_DIRECTION * float(target.norm())) ** 2:
        weights[kept] = vectors[:, large] @ (parts / values[large]) / lengths / square**0.5
    return weights


def clip_combination(
    gram: Float[Tensor, "K K"], weights: Float[Tensor, " K"], max_norm: float | None
) -> Float[Tensor, " K"]:
    """Return the weights, scaled down where the weighted sum of the rows would be longer than ``max_norm``.

    Args:
        gram: Inner products of the rows.
        weights: Weights of the rows.
        max_norm: Largest length, or ``None`` for no bound.

    Example:
        >>> clip_combination(torch.tensor([[4.0, 0.0], [0.0, 9.0]]), torch.tensor([2.0, 1.0]), 1.0)
        tensor([0.4000, 0.2000])
    """
    if max_norm is None:
        return weights
    length = float(combination_norms(gram, weights[None, :])[0])
    return weights * (max_norm / length) if length > max_norm else weights


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
    matrix, usable = gram.numpy(), nonzero_rows(gram).numpy()  # a loop over small arrays: NumPy's calls cost a third
    rows = np.eye(len(matrix), dtype=matrix.dtype)
    squares = np.where(usable, matrix.diagonal(), 1.0)
    task = np.arange(len(matrix))
    for other in orders.numpy().T:  # all tasks take their next partner at once
        product = np.einsum("ij,ij->i", rows, matrix[other])
        rows[task, other] -= np.where((product < 0) & usable[other], product / squares[other], 0.0)
    return torch.from_numpy(rows)
