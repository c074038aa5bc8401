"""The plan that ``counterpoint group`` writes: what was measured, and the groups proposed for each number of them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Self

from counterpoint.errors import FileError, OptionError
from counterpoint.grouping import AffinityMatrix, Grouping
from counterpoint.training.run_folder import read_json

_FORMAT = 1
_KEYS = {"format", "recipe", "affinity", "over_time", "proposals"}


@dataclasses.dataclass(frozen=True)
class GroupPlan:
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
            "format": _FORMAT,
            "recipe": self.recipe,
            "affinity": self.affinity.to_dict(),
            "over_time": [{"epoch": epoch, "affinity": matrix.to_dict()} for epoch, matrix in self.over_time],
            "proposals": [grouping.to_dict() for grouping in self.proposals],
        }

    def to_json(self) -> str:
        """Return the plan as a JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan.

        Raises:
            FileError: If there is no such file, or it is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileError(f"{path}: no such plan; make one with: counterpoint group RECIPE")
        content = read_json(path)
        if not isinstance(content, dict) or set(content) != _KEYS or content["format"] != _FORMAT:
            raise FileError(f"{path}: no plan of counterpoint group of format {_FORMAT}; make it again")
        try:
            plan = cls(
                content["recipe"],
                AffinityMatrix.from_dict(content["affinity"]),
                tuple((entry["epoch"], AffinityMatrix.from_dict(entry["affinity"])) for entry in content["over_time"]),
                tuple(Grouping.from_dict(entry) for entry in content["proposals"]),
            )
        except (OptionError, ValueError, LookupError, TypeError) as error:
            raise FileError(f"{path}: damaged plan ({error}); make it again") from error
        if not plan.proposals or any(own.tasks != plan.affinity.tasks for own in plan.proposals):
            raise FileError(f"{path}: damaged plan (its proposals are of other tasks or missing); make it again")
        return plan


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
