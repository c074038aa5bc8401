"""The networks that are measured, and the plain PyTorch that they are measured against."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from counterpoint import blocks

Run = Callable[[Tensor, list[Tensor], list[Tensor]], int]  # features, losses, leaves -> number of backward passes


class Encoder(nn.Module):
    """Six transformer layers of width 192 on 64 patches and a token that the heads read."""

    channels = (192,)

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(192, 3, 768, dropout=0.0, batch_first=True, norm_first=True)
        self.patches = nn.Conv2d(3, 192, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 192))
        self.places = nn.Parameter(0.02 * torch.randn(1, 65, 192))
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).mT  # (B, 64, 192)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        return self.layers(tokens + self.places)[:, 0]


NETWORKS = {
    "MLP 5x512": (lambda: blocks.MLP((512,), widths=(512,) * 5), (32, 512)),
    "encoder 6x192": (Encoder, (16, 3, 64, 64)),
    "ResNet-18": (lambda: blocks.ResNet18((3, 64, 64)), (16, 3, 64, 64)),
}
CASES = (
    ("MLP 5x512", 3),
    ("MLP 5x512", 16),
    ("MLP 5x512", 40),
    ("encoder 6x192", 8),
    ("ResNet-18", 3),
    ("ResNet-18", 8),
)


@dataclasses.dataclass
class Case:
    """A trunk with a linear classifier for each of K tasks, and one batch of noise."""

    name: str
    num_tasks: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        make, shape = NETWORKS[self.name]
        self.trunk, self.x = make(), torch.randn(shape)
        self.heads = nn.ModuleList(blocks.Classifier(self.trunk.channels[-1], 10) for _ in range(self.num_tasks))
        self.targets = torch.randint(10, (self.num_tasks, len(self.x)))
        self.parameters = list(self.trunk.parameters())
        self.num_shared = sum(parameter.numel() for parameter in self.parameters)

    def __str__(self) -> str:
        return f"{self.name} K={self.num_tasks}"

    def clear(self) -> None:
        self.trunk.zero_grad()
        self.heads.zero_grad()

    def forward(self, *, cut: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return features, losses and, with ``cut``, the leaf that each head was given instead of the features."""
        z = self.trunk(self.x)
        leaves = [z.detach().requires_grad_() for _ in self.heads] if cut else []
        read = leaves or [z] * self.num_tasks
        losses = [
            functional.cross_entropy(head(own), target)
            for head, own, target in zip(self.heads, read, self.targets, strict=True)
        ]
        return z, losses, leaves


def summed(case: Case) -> Run:
    """One backward pass of the sum: the least that weighting losses can cost."""

    def run(z: Tensor, losses: list[Tensor], leaves: list[Tensor]) -> int:
        sum(losses).backward()
        return 1

    return run


def features_once(case: Case) -> Run:
    """All heads in one pass down to a leaf for each task, then one pass of the trunk: the least for features."""

    def run(z: Tensor, losses: list[Tensor], leaves: list[Tensor]) -> int:
        sum(losses).backward()
        z.backward(torch.stack([leaf.grad for leaf in leaves]).sum(dim=0))
        return 1

    return run


def seq_k(case: Case) -> Run:
    """All heads in one pass, then K passes of the trunk, each with the gradient of its own task, into one buffer."""
    buffer = torch.empty(case.num_tasks, case.num_shared)
    sizes = [parameter.numel() for parameter in case.parameters]

    def run(z: Tensor, losses: list[Tensor], leaves: list[Tensor]) -> int:
        sum(losses).backward()
        for row, leaf in zip(buffer, leaves, strict=True):
            row.zero_()
            for parameter, part in zip(case.parameters, row.split(sizes), strict=True):
                parameter.grad = part.view_as(parameter)
            z.backward(leaf.grad, retain_graph=leaf is not leaves[-1])
        return len(losses)

    run.buffer = buffer
    return run


def seq_k_gram(case: Case) -> Run:
    """The same, then the Gram matrix, a weighted sum of the rows, and writing it: what a method of rows has to do."""
    rows = seq_k(case)
    sizes = [parameter.numel() for parameter in case.parameters]
    weights = torch.full((case.num_tasks,), 1 / case.num_tasks)

    def run(z: Tensor, losses: list[Tensor], leaves: list[Tensor]) -> int:
        passes = rows(z, losses, leaves)
        (rows.buffer @ rows.buffer.T).tolist()  # a method reads it on the CPU
        direction = weights @ rows.buffer
        for parameter, part in zip(case.parameters, direction.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        return passes

    run.buffer = rows.buffer
    return run


# name -> how to make it, and whether the heads read leaves of their own
BASELINES = {
    "summed": (summed, False),
    "seqK": (seq_k, True),
    "seqK + gram": (seq_k_gram, True),
    "feat1": (features_once, True),
}
