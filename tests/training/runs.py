"""One way to train what the fixture ``make`` built, for all tests of the loop."""

from counterpoint import training


class StopError(Exception):
    """Ends a run after an epoch, as a kill would."""


def train(made, path, schedule=None, *, stop_after=None, **extra):
    """Train in a folder; raises :class:`StopError` after an epoch if that is asked for."""

    def on_epoch(record):
        if record["epoch"] == stop_after:
            raise StopError

    options = {"scheduler": made.scheduler, "fabric": made.fabric, "schedule": schedule, "on_epoch": on_epoch, **extra}
    with training.RunFolder(path, {}) as folder:
        return training.fit(made.model, made.data, made.balancer, made.optimizer, folder, made.options, **options)
