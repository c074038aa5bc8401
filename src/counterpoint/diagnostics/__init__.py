"""Diagnostics: pure measures of conflict on small matrices, and the monitor that measures it in every layer."""

from counterpoint.diagnostics.compliance import UpdateCompliance as UpdateCompliance
from counterpoint.diagnostics.compliance import update_compliance as update_compliance
from counterpoint.diagnostics.conflict import condition_number as condition_number
from counterpoint.diagnostics.conflict import conflict_rate as conflict_rate
from counterpoint.diagnostics.conflict import cosine_matrix as cosine_matrix
from counterpoint.diagnostics.conflict import curvature_bound as curvature_bound
from counterpoint.diagnostics.conflict import dominance_ratio as dominance_ratio
from counterpoint.diagnostics.conflict import dominated_conflicts as dominated_conflicts
from counterpoint.diagnostics.conflict import magnitude_similarity as magnitude_similarity
from counterpoint.diagnostics.conflict import mean_sign_purity as mean_sign_purity
from counterpoint.diagnostics.conflict import multitask_curvature as multitask_curvature
from counterpoint.diagnostics.conflict import pairwise_cosines as pairwise_cosines
from counterpoint.diagnostics.conflict import sign_purity as sign_purity
from counterpoint.diagnostics.conflict import stationarity_gap as stationarity_gap
from counterpoint.diagnostics.conflict import update_cosines as update_cosines
from counterpoint.diagnostics.findings import Finding as Finding
from counterpoint.diagnostics.findings import findings as findings
from counterpoint.diagnostics.findings import wilson_interval as wilson_interval
from counterpoint.diagnostics.monitor import ConflictMonitor as ConflictMonitor
from counterpoint.diagnostics.record import DENSE_EDGES as DENSE_EDGES
from counterpoint.diagnostics.record import MNIST_EDGES as MNIST_EDGES
from counterpoint.diagnostics.record import ConflictRecord as ConflictRecord
from counterpoint.diagnostics.record import reduced_mass as reduced_mass
from counterpoint.diagnostics.record import reduction as reduction
from counterpoint.diagnostics.spectrum import effective_rank as effective_rank
