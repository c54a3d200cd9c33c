import pickle

import pytest

from recsys_ray.core import errors
from recsys_ray.core.errors import ConfigError, MissingExtraError, RecsysError

ONE_OF_EACH = [
    ConfigError("channels.x.mix", 2, "0 … 1", "It is a share."),
    MissingExtraError("FAISS", "cpu"),
    *(getattr(errors, name)("what is wrong") for name in ("DataError", "ArtifactError", "NotApplicable")),
]


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_errors_cross_processes_as_they_are(error: RecsysError) -> None:
    came = pickle.loads(pickle.dumps(error))
    assert type(came) is type(error)
    assert str(came) == str(error)
    assert vars(came) == vars(error)
