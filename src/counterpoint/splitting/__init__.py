"""Splitting: give each task its own copy of the layers in which the tasks conflict, in any network."""

from counterpoint.splitting.convert import split as split
from counterpoint.splitting.layers import Layer as Layer
from counterpoint.splitting.layers import find_layers as find_layers
from counterpoint.splitting.layers import layer_parameters as layer_parameters
from counterpoint.splitting.layers import sizes as sizes
from counterpoint.splitting.plan import SplitPlan as SplitPlan
from counterpoint.splitting.streams import Streams as Streams
from counterpoint.splitting.streams import each as each
from counterpoint.splitting.streams import streams as streams
