"""Random task gradients of many kinds, and the problems of the solvers stated for Clarabel."""

import clarabel
import numpy as np
from scipy import sparse
from scipy.optimize import nnls

KINDS = (
    "plain",
    "few columns",
    "duplicate",
    "opposed",
    "parallel",
    "positive",
    "hull holds zero",
    "integers",
    "scales",
    "scales, few columns",
)
HARD = (*KINDS, "nearly opposed", "nearly stationary", "zero row", "scales, duplicate", "scales, nearly opposed")


def rows(kind, num_tasks, seed):
    rng = np.random.default_rng(seed)
    columns = (
        int(rng.integers(1, num_tasks)) if kind == "few columns" else int(rng.integers(num_tasks, 2 * num_tasks + 2))
    )
    jacobian = rng.normal(size=(num_tasks, columns))
    if kind.endswith("duplicate"):
        jacobian[-1] = jacobian[0]
    elif kind == "opposed":
        jacobian[-1] = -jacobian[0] * rng.choice([1.0, 0.1, 5.0])
    elif kind.endswith("nearly opposed"):
        jacobian[-1] = -jacobian[0] + 10.0 ** rng.uniform(-5, -1) * rng.normal(size=columns)
    elif kind == "parallel":
        jacobian = rng.normal(size=(1, columns)) + 1e-6 * jacobian
    elif kind == "positive":
        jacobian = np.abs(jacobian)
    elif kind == "hull holds zero":
        jacobian[-1] = -(rng.dirichlet(np.ones(num_tasks - 1)) @ jacobian[:-1]) * rng.choice([1.0, 10.0, 0.1])
    elif kind == "nearly stationary":
        jacobian = jacobian - (1 - 10.0 ** rng.uniform(-4, -1)) * jacobian.mean(axis=0)
    elif kind == "integers":
        jacobian = rng.integers(-2, 3, size=(num_tasks, columns)).astype(float)
    elif kind == "zero row":
        jacobian[rng.integers(num_tasks)] = 0.0
    if kind.startswith("scales"):
        jacobian *= 10.0 ** rng.uniform(-6, 6, size=(num_tasks, 1))
    return jacobian


def least_length(jacobian):
    """Return the least length m of a convex combination of the rows, by least squares.

    With one more column of ones the squared distance of the cone of the rows from (0, ..., 0, 1) is m^2 / (1 + m^2).
    """
    distance = nnls(np.vstack([jacobian.T, np.ones(len(jacobian))]), np.append(np.zeros(jacobian.shape[1]), 1.0))[1]
    return distance / np.sqrt(max(1 - distance**2, 1e-300))


def minimize(quadratic, linear, matrix, right, cones):
    """Return the minimizer of ``x P x / 2 + q.x`` subject to ``right - matrix x`` in the cones, and the value."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix(np.triu(quadratic)), linear, sparse.csc_matrix(matrix), right, cones, settings
    ).solve()
    return np.array(solution.x), solution.obj_val


def conic_dual(jacobian, c):
    """Least value of the dual problem of CAGrad."""
    count, columns = jacobian.shape
    mean = jacobian.mean(axis=0)
    linear = np.append(jacobian @ mean, c * np.linalg.norm(mean))
    matrix = np.zeros((2 + count + columns, count + 1))
    matrix[0, :count] = 1.0
    matrix[1 : count + 1, :count] = -np.eye(count)
    matrix[count + 1, count] = -1.0
    matrix[count + 2 :, :count] = -jacobian.T
    right = np.zeros(len(matrix))
    right[0] = 1.0
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(count), clarabel.SecondOrderConeT(columns + 1)]
    return minimize(np.zeros((count + 1, count + 1)), linear, matrix, right, cones)[1]


def conic_projection(jacobian, vector):
    """Length of the projection of ``vector @ jacobian`` onto the dual cone."""
    count = len(jacobian)
    cones = [clarabel.NonnegativeConeT(count)]
    found, _ = minimize(jacobian @ jacobian.T, np.zeros(count), -np.eye(count), -vector, cones)
    return np.linalg.norm(np.maximum(found, vector) @ jacobian)


def conic_bargain(jacobian, alpha, demands):
    """Minimizer of the potential ``|w G|^2 / 2 - sum_i p_i^q u(w_i)``, u the logarithm or a power."""
    count = len(jacobian)
    quadratic = np.zeros((2 * count, 2 * count))
    quadratic[:count, :count] = jacobian @ jacobian.T
    q = 1 / alpha
    matrix, right, cones = np.zeros((3 * count, 2 * count)), np.zeros(3 * count), []
    linear = np.append(np.zeros(count), -(demands**q))
    for i in range(count):
        if alpha == 1:  # (s, 1, w) in the exponential cone: s <= log w
            matrix[3 * i, count + i] = matrix[3 * i + 2, i] = -1.0
            right[3 * i + 1] = 1.0
            cones.append(clarabel.ExponentialConeT())
        else:  # (w, 1, s) in the power cone: s <= w^(1 - q), for alpha > 1
            matrix[3 * i, i] = matrix[3 * i + 2, count + i] = -1.0
            right[3 * i + 1] = 1.0
            cones.append(clarabel.PowerConeT(1 - q))
            linear[count + i] /= 1 - q
    return minimize(quadratic, linear, matrix, right, cones)[0][:count]
