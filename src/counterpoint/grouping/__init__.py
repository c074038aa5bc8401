"""Grouping: affinities between tasks, and groups made of them. One line here exports and registers a method."""

from counterpoint.grouping._base import Method as Method
from counterpoint.grouping._base import Solver as Solver
from counterpoint.grouping._observer import Estimator as Estimator
from counterpoint.grouping.affinity import AffinityMatrix as AffinityMatrix
from counterpoint.grouping.affinity_clusters import AffinityPropagation as AffinityPropagation
from counterpoint.grouping.affinity_propagation import Clusters as Clusters
from counterpoint.grouping.affinity_propagation import affinity_propagation as affinity_propagation
from counterpoint.grouping.agglomerative import Agglomerative as Agglomerative
from counterpoint.grouping.branch_and_bound import BranchAndBound as BranchAndBound
from counterpoint.grouping.exhaustive import Exhaustive as Exhaustive
from counterpoint.grouping.gain import PredictedGain as PredictedGain
from counterpoint.grouping.gain import predicted_gains as predicted_gains
from counterpoint.grouping.gradient_cosine import GradientCosine as GradientCosine
from counterpoint.grouping.groups import Grouping as Grouping
from counterpoint.grouping.integer_program import IntegerProgram as IntegerProgram
from counterpoint.grouping.label_correlation import LabelCorrelation as LabelCorrelation
from counterpoint.grouping.networks import Candidate as Candidate
from counterpoint.grouping.networks import Selection as Selection
from counterpoint.grouping.networks import higher_order as higher_order
from counterpoint.grouping.networks import select_networks as select_networks
from counterpoint.grouping.proximal import AffinityTracker as AffinityTracker
from counterpoint.grouping.proximal import form_groups as form_groups
from counterpoint.grouping.proximal import proximal_matrix as proximal_matrix
from counterpoint.grouping.proximal import proximal_values as proximal_values
from counterpoint.grouping.proximal import relative_affinity as relative_affinity
from counterpoint.grouping.proximal import relative_effects as relative_effects
from counterpoint.grouping.saliency import Saliency as Saliency
from counterpoint.grouping.tag import TAG as TAG
from counterpoint.grouping.tag_first_order import TAGFirstOrder as TAGFirstOrder
from counterpoint.grouping.transfer_gain import TransferGain as TransferGain
from counterpoint.registry import Registry

METHODS = Registry(
    "grouping method",
    Method,
    globals(),
    facts=("role", "source", "provenance", "cost", "reads"),
    given=("num_tasks", "tasks"),
)
create = METHODS.create
names = METHODS.names
describe = METHODS.describe
