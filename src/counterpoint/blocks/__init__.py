"""Parts of networks: backbones, heads, modulation. One line here exports and registers a part."""

from counterpoint.blocks.backbones import MLP as MLP
from counterpoint.blocks.backbones import Backbone as Backbone
from counterpoint.blocks.backbones import ResNet18 as ResNet18
from counterpoint.blocks.backbones import SmallConv as SmallConv
from counterpoint.blocks.heads import Classifier as Classifier
from counterpoint.blocks.heads import Head as Head
from counterpoint.blocks.modulation import Modulation as Modulation
from counterpoint.registry import Registry

BACKBONES = Registry("backbone", Backbone, globals(), facts=("source",), given=("input_shape",))
HEADS = Registry("head", Head, globals(), facts=(), given=("channels", "num_outputs"))
