"""The errors a person can cause, each saying what was given, what is allowed and which key to change.

A command turns any of them into one message and an exit status; from Python they are ordinary exceptions.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_RUN_AGAIN = 75
"""sysexits' EX_TEMPFAIL: stopped on purpose with everything saved; the same command continues."""


class BelvedereError(Exception):
    """Base of every error that a user's input, files or machine can cause."""

    exit_code = EXIT_ERROR


class UsageError(BelvedereError):
    """A command line that does not say what to do."""

    exit_code = EXIT_USAGE


class RecipeError(BelvedereError):
    """One or more mistakes in a recipe or its overrides, all reported at once."""

    exit_code = EXIT_USAGE


class WriteError(BelvedereError, OSError):
    """A file that could not be written: `errno`, `strerror` and `filename` as of any OSError."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


class DataError(BelvedereError):
    """Images or labels that are missing, empty or cannot be read."""


class UndividedError(DataError):
    """`data.split` asks for one part of images that are not divided into parts."""


class CheckpointError(BelvedereError):
    """A training state that is missing, altered or does not fit this run."""


class WeightsError(BelvedereError):
    """A weights file whose keys or shapes do not fit, or whose format is unknown or unsafe."""


class RunLockedError(BelvedereError):
    """Another process is writing to the same run directory."""


class NonFiniteError(BelvedereError):
    """A loss or gradient that is not a finite number; nothing was updated."""


class CollapseError(BelvedereError):
    """A run that stopped learning, with run.on_collapse: stop; everything until then is saved."""


class EvaluationError(BelvedereError):
    """An evaluation that the data at hand does not allow."""


class MissingPackageError(BelvedereError):
    """A setting that needs an optional package which is not installed."""
