"""The exceptions of the package; each is also a built-in, so that plain ``except ValueError`` works."""


class CounterpointError(Exception):
    """Base of every error that the package raises on purpose."""


class ShapeError(CounterpointError, ValueError):
    """A tensor or a collection has the wrong shape, number of entries or dtype."""


class OptionError(CounterpointError, ValueError):
    """An option has a value outside its range, or is not an option at all."""


class UnknownNameError(CounterpointError, LookupError):
    """A name (of a method, data set, task, key) is not known; the message lists the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])  # LookupError may print its message quoted


class GraphError(CounterpointError, RuntimeError):
    """A loss or a feature is not connected to what has to be differentiated."""


class NonFiniteError(CounterpointError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; ``tasks`` names the tasks at fault."""

    def __init__(self, message: str, tasks: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.tasks = tasks


class SplitError(CounterpointError, RuntimeError):
    """Code does something with the values of several tasks that cannot be done for each of them apart."""


class SolverError(CounterpointError, RuntimeError):
    """A solver was given a problem that it cannot solve."""


class RunError(CounterpointError, RuntimeError):
    """A run stopped for a reason that is not one of these; its folder has the traceback."""


class FileError(CounterpointError, OSError):
    """A file or folder is missing, damaged, not writable or belongs to something else."""


class MissingExtraError(CounterpointError, ImportError):
    """An optional package is not installed; the message names the extra to install."""
