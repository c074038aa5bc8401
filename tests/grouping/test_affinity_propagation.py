"""Affinity propagation against scikit-learn, label for label, and the cases that have a closed form."""

import warnings

import numpy as np
import pytest
import torch

from counterpoint.errors import NonFiniteError, OptionError, ShapeError
from counterpoint.grouping import affinity_propagation

sklearn_cluster = pytest.importorskip("sklearn.cluster")


def reference(s, *, convergence_iter=15, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sklearn_cluster.affinity_propagation(
            s, preference=options.pop("preference", np.median(s)), convergence_iter=convergence_iter, **options
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("convergence_iter", [15, 50])
def test_labels_are_those_of_scikit_learn(symmetric, convergence_iter):
    random = np.random.default_rng(3)
    found = set()
    for _ in range(250):
        count = random.integers(2, 12)
        s = random.normal(size=(count, count))
        s = (s + s.T) / 2 if symmetric else s
        own = affinity_propagation(s, convergence_iter=convergence_iter)
        exemplars, labels = reference(s, convergence_iter=convergence_iter, random_state=0)
        assert list(own.labels) == labels.tolist()
        assert list(own.exemplars) == list(exemplars)
        found.add(len(exemplars))
    assert len(found) > 3


def test_options_are_those_of_scikit_learn():
    random = np.random.default_rng(4)
    for seed in range(60):
        s = random.normal(size=(7, 7))
        options = {
            "preference": float(random.normal()),
            "damping": float(random.uniform(0.5, 0.95)),
            "max_iter": int(random.integers(5, 80)),
        }
        own = affinity_propagation(torch.tensor(s), seed=seed, convergence_iter=10, **options)
        exemplars, labels = reference(s, convergence_iter=10, random_state=seed, **options)
        assert list(own.labels) == labels.tolist()
        assert list(own.exemplars) == list(exemplars)


def test_convergence_is_told_as_scikit_learn_tells_it():
    random, told = np.random.default_rng(5), []
    for _ in range(200):
        s = random.normal(size=(6, 6))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sklearn_cluster.affinity_propagation(
                s, preference=np.median(s), convergence_iter=20, max_iter=40, random_state=0
            )
        told.append(not any("did not converge" in str(warning.message) for warning in caught))
        own = affinity_propagation(s, convergence_iter=20, max_iter=40)
        assert own.converged == told[-1]
    assert 10 < sum(told) < 190


def test_no_exemplar_at_all():
    clusters = affinity_propagation([[0, -1, -2], [-3, 0, -1], [-2, -4, 0]], preference=-1e6, max_iter=1)
    assert clusters.labels == (-1, -1, -1)
    assert clusters.groups == clusters.exemplars == ()
    assert not clusters.converged


@pytest.mark.parametrize(
    ("s", "groups"),
    [
        ([[1.0]], ((0,),)),
        ([[1, 0.1], [0.1, 1]], ((0,), (1,))),
        ([[1, 1], [1, 1]], ((0, 1),)),
        ([[1, 1.2], [1.2, 1]], ((0, 1),)),
        ([[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]], ((0, 1, 2),)),
    ],
)
def test_closed_forms(s, groups):
    assert affinity_propagation(s).groups == groups


def test_the_input_is_not_changed():
    s = torch.randn(4, 4, dtype=torch.float64)
    before = s.clone()
    affinity_propagation(s)
    assert torch.equal(s, before)


@pytest.mark.parametrize(
    ("s", "options", "error", "message"),
    [
        ([[1.0, 2.0]], {}, ShapeError, "square"),
        (np.zeros((0, 0)), {}, ShapeError, "square"),
        ([[1.0, float("nan")], [0.0, 1.0]], {}, NonFiniteError, "NaN"),
        ([[1.0]], {"damping": 0.4}, OptionError, "damping"),
        ([[1.0]], {"preference": "medan"}, OptionError, "did you mean median"),
        ([[1.0]], {"preference": float("nan")}, OptionError, "preference"),
        ([[1.0]], {"max_iter": 0}, OptionError, "max_iter"),
        ([[1.0]], {"convergence_iter": 0}, OptionError, "convergence_iter"),
    ],
)
def test_bad_input(s, options, error, message):
    with pytest.raises(error, match=message):
        affinity_propagation(s, **options)
