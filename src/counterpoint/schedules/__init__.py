"""Schedules: which tasks are updated together, and when. One line here exports and registers a method."""

from counterpoint.registry import Registry
from counterpoint.schedules._base import Losses as Losses
from counterpoint.schedules._base import Schedule as Schedule
from counterpoint.schedules._report import ScheduleReport as ScheduleReport
from counterpoint.schedules.alternating import Alternating as Alternating
from counterpoint.schedules.fixed_groups import FixedGroups as FixedGroups
from counterpoint.schedules.joint import Joint as Joint
from counterpoint.schedules.random_groups import RandomGroups as RandomGroups
from counterpoint.schedules.selective import Selective as Selective
from counterpoint.schedules.sequential_reptile import SequentialReptile as SequentialReptile

SCHEDULES = Registry(
    "schedule",
    Schedule,
    globals(),
    facts=("source", "provenance", "cost"),
    given=("num_tasks", "tasks", "generator"),
)
create = SCHEDULES.create
names = SCHEDULES.names
describe = SCHEDULES.describe
