"""The plan that ``counterpoint group`` writes: what was measured, and the groups proposed for each number of them."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Self

from counterpoint._files import JsonData
from counterpoint.errors import FileError, OptionError
from counterpoint.grouping import AffinityMatrix, Grouping


@dataclasses.dataclass(frozen=True)
class GroupPlan(JsonData):
    """Affinities of tasks and the groups made of them.

    Attributes:
        recipe: What was trained, as the user wrote it.
        affinity: Mean of all that was measured.
        over_time: Pairs of an epoch and what was measured in it.
        proposals: The groups for a budget of 1, 2, ... groups, in this order.
    """

    recipe: str
    affinity: AffinityMatrix
    over_time: tuple[tuple[int, AffinityMatrix], ...]
    proposals: tuple[Grouping, ...]

    def gain(self, budget: int) -> float:
        """Return the predicted gain of a budget over one group of all tasks, in the unit of the affinity."""
        return self.proposals[budget - 1].score - self.proposals[0].score

    @property
    def best(self) -> int:
        """The smallest budget with the best score."""
        scores = [grouping.score for grouping in self.proposals]
        top = max(score for score in scores if not math.isnan(score))
        return 1 + next(at for at, score in enumerate(scores) if score >= top - 1e-12 * abs(top))

    def proposal(self, num: int | None = None) -> Grouping:
        """Return the groups for a budget; default: :attr:`best`.

        Raises:
            OptionError: If the plan has no such budget.
        """
        if num is None:
            num = self.best
        if isinstance(num, bool) or not isinstance(num, int) or not 1 <= num <= len(self.proposals):
            raise OptionError(
                f"plan: num must be from 1 to {len(self.proposals)}, the budgets of the plan, got {num!r}"
            )
        return self.proposals[num - 1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {
            "format": self.FORMAT,
            "recipe": self.recipe,
            "affinity": self.affinity.to_dict(),
            "over_time": [{"epoch": epoch, "affinity": matrix.to_dict()} for epoch, matrix in self.over_time],
            "proposals": [grouping.to_dict() for grouping in self.proposals],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            OptionError: If something is missing, unknown, of another format, or does not fit together.
        """
        plain = cls.fields_of(data)
        affinity = AffinityMatrix.from_dict(plain["affinity"])
        over_time = tuple((entry["epoch"], AffinityMatrix.from_dict(entry["affinity"])) for entry in plain["over_time"])
        proposals = tuple(Grouping.from_dict(entry) for entry in plain["proposals"])
        if not proposals or any(own.tasks != affinity.tasks for own in proposals):
            raise OptionError("GroupPlan: the proposals are of other tasks or missing")
        return cls(plain["recipe"], affinity, over_time, proposals)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan.

        Raises:
            FileError: If there is no such file, or it is damaged.
        """
        if not Path(path).is_file():
            raise FileError(f"{path}: no such plan; make one with: counterpoint group RECIPE")
        return super().load(path)


def resolve_plan(owner: str, options: dict[str, Any]) -> dict[str, Any]:
    """Replace the options ``plan`` (a file) and ``num`` by the groups that they stand for.

    Args:
        owner: Who takes the options: ``"networks"`` also gets which network serves which task.
        options: Options as they were written.

    Raises:
        FileError: If the plan cannot be read.
        OptionError: If both a plan and groups are given.
    """
    if "plan" not in options:
        return options
    if "groups" in options:
        raise OptionError(f"{owner}: give plan or groups, not both")
    grouping = GroupPlan.load(options["plan"]).proposal(options.get("num"))
    rest = {key: value for key, value in options.items() if key not in ("plan", "num")}
    rest["groups"] = [list(group) for group in grouping.groups]
    if owner == "networks" and not grouping.is_partition:
        rest["serves"] = [
            [task for task, server in zip(grouping.tasks, grouping.serves, strict=True) if server == at]
            for at in range(len(grouping.groups))
        ]
    return rest
