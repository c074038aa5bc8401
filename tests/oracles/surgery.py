"""Gradient surgery as loops over whole vectors in float64 NumPy: slow, and independent of the package."""

import numpy as np


def pcgrad_vectors(jacobian, orders):
    projected = []
    for i, order in enumerate(orders):
        current = jacobian[i].copy()
        for j in order:
            product = current @ jacobian[j]
            if product < 0 and jacobian[j].any():
                current -= product / (jacobian[j] @ jacobian[j]) * jacobian[j]
        projected.append(current)
    return np.array(projected)


def gradvac_vectors(jacobian, orders, rho, beta):
    rho, altered = rho.copy(), []
    for i, order in enumerate(orders):
        current = jacobian[i].copy()
        for j in order:
            length, other = np.linalg.norm(current), np.linalg.norm(jacobian[j])
            if length == 0 or other == 0:
                continue
            phi = min(1.0, max(-1.0, current @ jacobian[j] / (length * other)))
            target = min(0.999, max(-0.999, rho[i, j]))
            if phi < target:
                sine, side = np.sqrt(1 - phi**2), np.sqrt(1 - target**2)
                current += length * (target * sine - phi * side) / (other * side) * jacobian[j]
            rho[i, j] = (1 - beta) * rho[i, j] + beta * phi
        altered.append(current)
    return np.array(altered), rho


def _phi(a, b):
    return 2 * a * b / (a * a + b * b)


def pair_vectors(vectors, state, beta, constant=None, s_max=None):
    """Rule "pair" on vectors, straight from its definition; returns new vectors and the new state."""
    count = len(vectors)
    lengths = [np.linalg.norm(v) for v in vectors]
    asked, state = np.zeros((count, count)), state.copy()
    for i in range(count):
        for j in range(i + 1, count):
            if lengths[i] == 0 or lengths[j] == 0:
                continue
            f = _phi(lengths[i], lengths[j])
            tau = state[i, j] if constant is None else constant
            if f < tau:
                energy = lengths[i] ** 2 + lengths[j] ** 2
                high = np.sqrt(energy) / 2 * (np.sqrt(1 + tau) + np.sqrt(1 - tau))
                low = np.sqrt(energy) / 2 * (np.sqrt(1 + tau) - np.sqrt(1 - tau))
                first, second = (low, high) if lengths[i] <= lengths[j] else (high, low)
                asked[i, j], asked[j, i] = np.log(first / lengths[i]), np.log(second / lengths[j])
            if constant is None:
                state[i, j] = state[j, i] = (1 - beta) * state[i, j] + beta * f
    scales = np.exp(asked.sum(axis=1) / max(count - 1, 1))
    energy = sum(n * n for n in lengths)
    if energy > 0:
        scales *= np.sqrt(energy / sum((s * n) ** 2 for s, n in zip(scales, lengths, strict=True)))
    if s_max is not None:
        scales = np.clip(scales, 1 / s_max, s_max)
    return np.array([s * v for s, v in zip(scales, vectors, strict=True)]), state


def vaccine_vectors(vectors, orders, state, beta):
    """Rule "vaccine" on vectors."""
    lengths, state, moved = [np.linalg.norm(v) for v in vectors], state.copy(), []
    for i, order in enumerate(orders):
        working = lengths[i]
        for j in order:
            if lengths[i] == 0 or lengths[j] == 0:
                continue
            f, target = _phi(working, lengths[j]), state[i, j]
            if f < target:
                ratio = (1 - np.sqrt(1 - target**2)) / target
                working = lengths[j] * ratio if working < lengths[j] else lengths[j] / ratio
            state[i, j] = (1 - beta) * target + beta * f
        moved.append(vectors[i] * (working / lengths[i] if lengths[i] else 1.0))
    return np.array(moved), state
