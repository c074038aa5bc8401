"""The table of schedules: constructor arguments, and the forward passes of a batch, for three tasks a, b, c."""

import dataclasses
from typing import Any

NAMES = ["a", "b", "c"]


@dataclasses.dataclass(frozen=True)
class Case:
    key: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    passes: int = 1
    single: dict[str, Any] | None = None  # options for one task, where they differ

    @property
    def id(self):
        return f"{self.key}-{'-'.join(map(str, self.options.values()))}"


CASES = [
    Case("joint"),
    Case("alternating", passes=3),
    Case("alternating", {"order": "random"}, passes=3),
    Case("alternating", {"per_batch": "one"}),
    Case("alternating", {"per_batch": "one", "order": "random"}),
    Case("fixed_groups", {"groups": [["a", "c"], ["b"]]}, passes=2, single={"groups": [["a"]]}),
    Case("fixed_groups", {"groups": [[0, 1], [1, 2]], "order": "random"}, passes=2, single={"groups": [[0]]}),
    Case("random_groups", passes=2),
    Case("random_groups", {"num_groups": 3, "regroup_every": 2}, passes=3, single={}),
    Case("selective", passes=3),
    Case("selective", {"warm_up": 1000, "groups": [["a", "c"], ["b"]], "order": "fixed"}, passes=2, single={}),
    Case("sequential_reptile", {"inner_steps": 3}),
    Case("sequential_reptile", {"inner_steps": 2, "eta": 1.0, "probabilities": [1, 2, 3]}, single={"eta": 1.0}),
]
