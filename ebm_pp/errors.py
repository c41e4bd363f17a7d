"""The errors of ebm_pp: what, at which site, got, expected, the likely cause, one fix.

All are `ValueError`s, so a caller who does not care for the difference can catch that.
"""


class ProgramError(ValueError):
    """A Pyro program that can't be compiled into an energy model, or fails as one."""


class DataError(ValueError):
    """Rows that are not draws of the model's sites."""


class GeneratorError(ValueError):
    """A generator that does not keep the three-name protocol."""


class ConfigError(ValueError):
    """A setting of `FitConfig` of another type, or out of its range."""


class CheckpointError(ValueError):
    """A saved fit that cannot be read, or does not belong to the program."""
