"""Several networks in the place of one: each trains a group of tasks, and their numbers are joined."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterpoint.bench.group_plan import resolve_plan
from counterpoint.errors import OptionError
from counterpoint.registry import nearest, unknown

_NAME = "networks"
_OPTIONS = ("groups", "serves", "plan", "num")


@dataclasses.dataclass(frozen=True)
class Networks:
    """One network for each group of tasks.

    Attributes:
        groups: Tasks that each network trains.
        serves: Tasks that each network is used for afterwards; ``None`` for all that it trains. Has to be given where
            a task is in several groups.
    """

    groups: tuple[tuple[str, ...], ...]
    serves: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.groups or not all(self.groups):
            raise OptionError("networks: groups must be lists of tasks, none of them empty, such as [[a, b], [c]]")
        for group in self.groups:
            if len(set(group)) != len(group):
                raise OptionError(f"networks: a group must have each task once, got {list(group)}")
        if len(self.served) != len(self.groups):
            raise OptionError(
                f"networks: serves must have one list for each of the {len(self.groups)} groups, got {len(self.served)}"
            )
        for group, served in zip(self.groups, self.served, strict=True):
            for task in served:
                if task not in group:
                    raise OptionError(f"networks: {task!r} cannot be served by a network that trains {list(group)}")
        every = [task for served in self.served for task in served]
        twice = sorted({task for task in every if every.count(task) > 1})
        if twice:
            raise OptionError(
                f"networks: task {', '.join(map(repr, twice))} is in several networks; say which one is used for it "
                "with serves=[[...], ...], a list for each group"
            )

    @property
    def served(self) -> tuple[tuple[str, ...], ...]:
        """Tasks that each network is used for."""
        return self.groups if self.serves is None else self.serves

    def check_tasks(self, tasks: Iterable[str]) -> None:
        """Check that exactly these tasks are served.

        Raises:
            UnknownNameError: If a group has a task that is not one of them.
            OptionError: If a task is served by no network.
        """
        tasks = list(tasks)
        for group in self.groups:
            for task in group:
                if task not in tasks:
                    raise unknown("task of this recipe", task, tasks)
        left = [task for task in tasks if not any(task in served for served in self.served)]
        if left:
            raise OptionError(f"networks: task {', '.join(map(repr, left))} is in no network; add it to a group")

    @classmethod
    def parse(cls, name: str, options: Mapping[str, Any]) -> "Networks":
        """Return the networks of ``networks(groups=[[a, b], [c]])`` or ``networks(plan=group.json, num=2)``.

        Raises:
            OptionError: If name or options are wrong.
        """
        if name != _NAME:
            raise OptionError(f"no choice of networks is called {name!r}; write {_NAME}(groups=[[a, b], [c]])")
        for option in options:
            if option not in _OPTIONS:
                raise OptionError(f"networks has no option {option!r}{nearest(str(option), _OPTIONS)}")
        options = resolve_plan(_NAME, dict(options))
        if "groups" not in options:
            raise OptionError("networks needs groups; give it with 'networks(groups=[[a, b], [c]])' or plan=FILE")
        serves = options.get("serves")
        return cls(_groups("groups", options["groups"]), None if serves is None else _groups("serves", serves))

    def format(self) -> tuple[str, dict[str, Any]]:
        """Return name and options."""
        options = {"groups": [list(group) for group in self.groups]}
        if self.serves is not None:
            options["serves"] = [list(group) for group in self.serves]
        return _NAME, options


def _groups(option: str, value: Any) -> tuple[tuple[str, ...], ...]:
    """Return lists of names as tuples.

    Raises:
        OptionError: If it is something else.
    """
    good = isinstance(value, Sequence) and not isinstance(value, str)
    if not good or not all(isinstance(g, list | tuple) and all(isinstance(t, str) for t in g) for g in value):
        raise OptionError(f"networks: {option} must be lists of names of tasks, such as [[a, b], [c]], got {value!r}")
    return tuple(tuple(group) for group in value)
