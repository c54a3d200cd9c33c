"""Every error this project raises on purpose.

RecsysError
├── ConfigError      a setting is wrong: names it, what came, what is allowed
├── DataError        the input cannot be used: names the file, the column, what to do
├── ArtifactError    an artifact is missing, incomplete or not what its manifest says
├── SpaceError       vectors of two different spaces would have met
├── MissingExtraError  an optional dependency is needed: names the extra to install
├── StoreError       a store of live state cannot be reached or written
├── NotApplicable    the data has nothing for an optional part, which is then left out aloud
└── TrainingError    training cannot go on (NaN loss, disk full); the last good checkpoint stands
"""

from typing import Any


class RecsysError(Exception):
    """Base of all errors that a user can do something about; the CLI prints its text without a traceback.

    They travel between processes as they are, whatever arguments their kind is made from.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, vars(self))


class ConfigError(RecsysError):
    """A setting is wrong."""

    def __init__(self, setting: str, came: object, allowed: str, hint: str = "") -> None:
        text = f"{setting}: got {came!r}; allowed: {allowed}"
        super().__init__(f"{text}. {hint}" if hint else text)
        self.setting = setting


class DataError(RecsysError):
    """The input data cannot be used as it is."""


class ArtifactError(RecsysError):
    """An artifact is missing, incomplete, or differs from its manifest."""


class SpaceError(RecsysError):
    """A query vector and an index belong to different vector spaces."""


class MissingExtraError(RecsysError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'recsys-ray[{extra}]'")


class StoreError(RecsysError):
    """A store of live state (histories, item log) cannot be reached, read or written."""


class NotApplicable(RecsysError):
    """The data has nothing for an optional part of a run; the run leaves it out and says so."""


class TrainingError(RecsysError):
    """Training stopped because going on would be worse than stopping."""


def _again(kind: type[RecsysError], args: tuple[Any, ...], attributes: dict[str, Any]) -> RecsysError:
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error
