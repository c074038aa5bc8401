"""Training: one update, the loop, evaluation, checkpoints and the run folder."""

from counterpoint.training.evaluate import evaluate as evaluate
from counterpoint.training.loop import FitOptions as FitOptions
from counterpoint.training.loop import fit as fit
from counterpoint.training.replay import Replay as Replay
from counterpoint.training.run_folder import RunFolder as RunFolder
from counterpoint.training.seed import seed_everything as seed_everything
from counterpoint.training.step import training_step as training_step
