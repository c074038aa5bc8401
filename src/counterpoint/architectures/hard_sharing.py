"""Hard parameter sharing: one trunk, one head per task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import final

from torch import Tensor, nn

from counterpoint.architectures._base import MTLOutput, MultiTaskModel
from counterpoint.blocks import Backbone
from counterpoint.registry import unknown


@final
class HardSharing(MultiTaskModel):
    """Hard parameter sharing: every task reads the last stage of one backbone. With one head: a single-task network.

    Args:
        backbone: The shared trunk.
        heads: Task -> head.

    References:
        Caruana, "Multitask Learning: A Knowledge-Based Source of Inductive Bias", ICML 1993.
    """

    key = "hard_sharing"
    source = "Caruana, Multitask Learning: A Knowledge-Based Source of Inductive Bias, ICML 1993"
    provenance = "textbook"

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module]) -> None:
        super().__init__(tuple(heads))
        self.backbone = backbone
        self.heads = nn.ModuleDict(dict(heads))

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> MTLOutput:
        """Run the trunk once and the head of each task that is asked for."""
        asked = self.asked(tasks)
        features = self.backbone(x)
        cut = (features,) if type(features) is Tensor else ()  # a split trunk gives streams: one tensor per task
        return MTLOutput({task: self.heads[task](features) for task in asked}, features=cut)

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Yield the parameters of the task's head."""
        if task not in self.task_names:
            raise unknown("task of HardSharing", task, self.task_names)
        return self.heads[task].parameters()
