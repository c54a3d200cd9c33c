"""Opening a graph with ONNX Runtime; only what loads one needs it installed."""

from pathlib import Path
from typing import Any

from recsys_ray.core.errors import ArtifactError, MissingExtraError


def open_session(path: Path, threads: int = 1) -> Any:
    """ONNX Runtime's session of a graph.

    Args:
        path: The graph.
        threads: It computes with so many.

    Raises:
        MissingExtraError: When ONNX Runtime is not installed.
        ArtifactError: When the file cannot be read.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingExtraError("A query encoder by ONNX Runtime", "cpu") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has no narrower class for a file that is not what it should be
        raise ArtifactError(f"{path} cannot be read: {error}") from None
