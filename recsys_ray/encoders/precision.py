"""In which type matrix products are made: bfloat16 where the device has it in hardware, else float32."""

from functools import lru_cache

import torch

from recsys_ray.encoders.config import Precision


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether products on this device are in bfloat16; "auto" asks the device."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device.type))


@lru_cache
def has_bf16(device_type: str) -> bool:
    """Whether a device multiplies in bfloat16 itself.

    A processor without that emulates it, 20 to 40 times slower than float32.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(value is True for name, value in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
