"""Runs from a configuration, comparisons and their report."""

from counterpoint.bench.compare import CompareConfig as CompareConfig
from counterpoint.bench.compare import make_config as make_config
from counterpoint.bench.compare import run_comparison as run_comparison
from counterpoint.bench.comparison import read_comparison as read_comparison
from counterpoint.bench.diagnose import diagnose as diagnose
from counterpoint.bench.diagnose_page import diagnose_page as diagnose_page
from counterpoint.bench.profile import profile_balancers as profile_balancers
from counterpoint.bench.profile import profile_recipe as profile_recipe
from counterpoint.bench.profile_result import Profile as Profile
from counterpoint.bench.recipes import RECIPES as RECIPES
from counterpoint.bench.recipes import find_recipe as find_recipe
from counterpoint.bench.run_config import RunConfig as RunConfig
from counterpoint.bench.runner import run_one as run_one
