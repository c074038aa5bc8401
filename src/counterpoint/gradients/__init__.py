"""The gradient engine: which parameters are shared, the gradients of each task, and their writing into ``.grad``."""

from counterpoint.gradients.backward import full_precision as full_precision
from counterpoint.gradients.by_group import group_grams as group_grams
from counterpoint.gradients.columns import Leaves as Leaves
from counterpoint.gradients.columns import in_columns as in_columns
from counterpoint.gradients.jacobian import TaskGradients as TaskGradients
from counterpoint.gradients.jacobian import Workspace as Workspace
from counterpoint.gradients.jacobian import task_gradients as task_gradients
from counterpoint.gradients.low_memory import LowMemoryGradients as LowMemoryGradients
from counterpoint.gradients.low_memory import low_memory_gradients as low_memory_gradients
from counterpoint.gradients.products import ByLeaf as ByLeaf
from counterpoint.gradients.products import LayerGradients as LayerGradients
from counterpoint.gradients.products import layer_gradients as layer_gradients
from counterpoint.gradients.products import measure_gram as measure_gram
from counterpoint.gradients.scope import Scope as Scope
from counterpoint.gradients.scope import find_leaves as find_leaves
from counterpoint.gradients.scope import find_scope as find_scope
from counterpoint.gradients.subset import last_layer as last_layer
from counterpoint.gradients.subset import subset_rows as subset_rows
from counterpoint.gradients.write import accumulate as accumulate
from counterpoint.gradients.write import all_finite as all_finite
from counterpoint.gradients.write import backward_into as backward_into
