"""Architectures: who sees which features. One line here exports and registers a network."""

from counterpoint.architectures._base import Auxiliary as Auxiliary
from counterpoint.architectures._base import MTLOutput as MTLOutput
from counterpoint.architectures._base import MultiTaskModel as MultiTaskModel
from counterpoint.architectures.hard_sharing import HardSharing as HardSharing
from counterpoint.registry import Registry

ARCHITECTURES = Registry("architecture", MultiTaskModel, globals(), given=("backbone", "heads"))
create = ARCHITECTURES.create
names = ARCHITECTURES.names
describe = ARCHITECTURES.describe
