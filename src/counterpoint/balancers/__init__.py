"""Balancers: K losses in, one update of the shared parameters out. One line here exports and registers a method."""

import functools

from counterpoint.balancers._base import Balancer as Balancer
from counterpoint.balancers._base import BalancerReport as BalancerReport
from counterpoint.balancers._base import GramBalancer as GramBalancer
from counterpoint.balancers._base import JacobianBalancer as JacobianBalancer
from counterpoint.balancers._base import LossBalancer as LossBalancer
from counterpoint.balancers._create import create as _create
from counterpoint.balancers._create import stages as stages
from counterpoint.balancers._needs import LookAhead as LookAhead
from counterpoint.balancers.aligned_mtl import AlignedMTL as AlignedMTL
from counterpoint.balancers.auto_lambda import AutoLambda as AutoLambda
from counterpoint.balancers.cagrad import CAGrad as CAGrad
from counterpoint.balancers.chain import Chain as Chain
from counterpoint.balancers.con_fig import ConFIG as ConFIG
from counterpoint.balancers.db_mtl import DBMTL as DBMTL
from counterpoint.balancers.dtp import DTP as DTP
from counterpoint.balancers.dual_proj import DualProj as DualProj
from counterpoint.balancers.dwa import DWA as DWA
from counterpoint.balancers.equal import Equal as Equal
from counterpoint.balancers.excess_mtl import ExcessMTL as ExcessMTL
from counterpoint.balancers.fairgrad import FairGrad as FairGrad
from counterpoint.balancers.famo import FAMO as FAMO
from counterpoint.balancers.fixed import Fixed as Fixed
from counterpoint.balancers.gcond import GCond as GCond
from counterpoint.balancers.gls import GLS as GLS
from counterpoint.balancers.graddrop import GradDrop as GradDrop
from counterpoint.balancers.gradnorm import GradNorm as GradNorm
from counterpoint.balancers.gradops import GradOPS as GradOPS
from counterpoint.balancers.gradvac import GradVac as GradVac
from counterpoint.balancers.imtl import IMTL as IMTL
from counterpoint.balancers.imtl_g import IMTLG as IMTLG
from counterpoint.balancers.imtl_l import IMTLL as IMTLL
from counterpoint.balancers.ldc_mtl import LDCMTL as LDCMTL
from counterpoint.balancers.lsb import LSB as LSB
from counterpoint.balancers.mgda import MGDA as MGDA
from counterpoint.balancers.moco import MoCo as MoCo
from counterpoint.balancers.modo import MoDo as MoDo
from counterpoint.balancers.msi import MSI as MSI
from counterpoint.balancers.nash_mtl import NashMTL as NashMTL
from counterpoint.balancers.osmtl import OSMTL as OSMTL
from counterpoint.balancers.pcgrad import PCGrad as PCGrad
from counterpoint.balancers.pivrg import PIVRG as PIVRG
from counterpoint.balancers.pomsi import POMSI as POMSI
from counterpoint.balancers.rlw import RLW as RLW
from counterpoint.balancers.rotograd import RotoGrad as RotoGrad
from counterpoint.balancers.sam_gs import SAMGS as SAMGS
from counterpoint.balancers.scale_invariant import ScaleInvariant as ScaleInvariant
from counterpoint.balancers.sdmgrad import SDMGrad as SDMGrad
from counterpoint.balancers.spmtl import SPMTL as SPMTL
from counterpoint.balancers.stch import STCH as STCH
from counterpoint.balancers.uncertainty import Uncertainty as Uncertainty
from counterpoint.balancers.upgrad import UPGrad as UPGrad
from counterpoint.balancers.uw_so import UWSO as UWSO
from counterpoint.balancers.wrapped import Wrapped as Wrapped
from counterpoint.registry import Registry

BALANCERS = Registry(
    "balancer",
    Balancer,
    globals(),
    facts=("equation", "source", "provenance", "reads", "scale", "cost", "task_gradients", "needs", "avoid"),
    given=("num_tasks", "tasks", "generator"),
)
create = functools.partial(_create, BALANCERS)
names = BALANCERS.names
describe = BALANCERS.describe
