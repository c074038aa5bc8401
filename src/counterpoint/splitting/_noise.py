"""The same random numbers for every task: dropout masks and the like."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

# operations that draw random numbers, by name; some do so only in training, and then reset nothing that matters
_NAMES = """
alpha_dropout alpha_dropout_ bernoulli bernoulli_ cauchy_ dropout dropout1d dropout2d dropout3d dropout_
exponential_ feature_alpha_dropout feature_alpha_dropout_ feature_dropout feature_dropout_
fractional_max_pool2d fractional_max_pool2d_with_indices fractional_max_pool3d
fractional_max_pool3d_with_indices geometric_ gru gumbel_softmax log_normal_ lstm multi_head_attention_forward
multinomial normal normal_ poisson rand_like randint_like randn_like random_ rnn_relu rnn_tanh rrelu rrelu_
scaled_dot_product_attention uniform_
"""
NOISY = frozenset(_NAMES.split())


def repeated_noise(run: Callable[[int], Any], count: int, device: torch.device, kwargs: Mapping[str, Any]) -> list[Any]:
    """Return ``run(0), run(1), ...``, each from the same state of the random generators."""
    generators = [torch.default_generator]
    if device.type != "cpu":
        index = device.index if device.index is not None else torch.get_device_module(device).current_device()
        generators.append(torch.get_device_module(device).default_generators[index])
    if isinstance(kwargs.get("generator"), torch.Generator):
        generators.append(kwargs["generator"])
    states = [generator.get_state() for generator in generators]
    results = [run(0)]
    for task in range(1, count):
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        results.append(run(task))
    return results
