"""Data sets: tasks and three splits. One line here exports and registers a data set."""

from counterpoint.data._base import SPLITS as SPLITS
from counterpoint.data._base import DataOnDisk as DataOnDisk
from counterpoint.data._base import MultiTaskData as MultiTaskData
from counterpoint.data._base import TensorSplit as TensorSplit
from counterpoint.data.digits import Digits as Digits
from counterpoint.data.fashion_attributes import FashionAttributes as FashionAttributes
from counterpoint.data.multi_fashion_mnist import MultiFashionMNIST as MultiFashionMNIST
from counterpoint.registry import Registry

DATASETS = Registry("data set", MultiTaskData, globals(), facts=("source", "provenance", "layout"))
create = DATASETS.create
names = DATASETS.names
describe = DATASETS.describe
