import time

import torch

from recsys_ray.encoders.precision import has_bf16, uses_bf16

CPU = torch.device("cpu")


def seconds(dtype: torch.dtype) -> float:
    """The best of a few products of 192 x 192 matrices."""
    matrix = torch.randn(192, 192).to(dtype)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - began)
    return min(times)


def test_auto_is_bf16_only_where_the_processor_does_not_emulate_it() -> None:
    assert uses_bf16("bf16", CPU)
    assert not uses_bf16("fp32", CPU)
    assert uses_bf16("auto", CPU) == has_bf16("cpu")
    # Emulated it is some twenty times slower than float32; in hardware it is at worst as fast.
    assert uses_bf16("auto", CPU) == (seconds(torch.bfloat16) < 5 * seconds(torch.float32))
