"""The engine whose weights, gradients and optimizer are sharded over the workers: DeepSpeed ZeRO."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys_ray.core.errors import ArtifactError
from recsys_ray.encoders.config import Precision
from recsys_ray.encoders.precision import uses_bf16
from recsys_ray.training.engine import BuildOptimizer
from recsys_ray.training.optimizer import set_learning_rate, whole_shape
from recsys_ray.training.universal import Untangled, convert, num_shards, restore_buffers

_TAG = "engine"
_UNIVERSAL_TAG = "engine-universal"
LONGEST_BUILD_S = 600
"""A lock that is older was left behind: the op builds in under a minute."""


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed shards, and where it keeps it.

    Attributes:
        stage: 0 nothing, 1 the optimizer, 2 and gradients, 3 and parameters.
        offload: Keep the optimizer's share in the memory of the CPU.
        universal: Let another number of ranks go on from a checkpoint.
        precision: bf16 holds weights and gradients in bfloat16, and in the optimizer a copy of the weights in fp32.
        clip_norm: Largest gradient norm, None for any.
    """

    stage: int
    precision: Precision = "fp32"
    clip_norm: float | None = None
    offload: bool = False
    universal: bool = False


class DeepSpeedEngine:
    """DeepSpeed ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) over the process group that is already there.

    Args:
        model: On the CPU or its device.
        build_optimizer: Makes a torch optimizer over the model; what it holds is sharded from stage 1 on.
        zero: What is sharded, and how.
    """

    def __init__(self, model: nn.Module, build_optimizer: BuildOptimizer, zero: Zero) -> None:
        self._deepspeed = _import_deepspeed()
        self._stage, self._bf16, self._universal = zero.stage, _bf16(zero.precision), zero.universal
        settings = deepspeed_settings(Elements.of(model), zero)
        if zero.stage == 3 and self._bf16:  # DeepSpeed casts shards no more: these are not sharded yet
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        self._engine, *_ = self._deepspeed.initialize(model=model, optimizer=build_optimizer(model), config=settings)
        self._engine.train()

    @property
    def model(self) -> Callable[..., Any]:
        """DeepSpeed's wrapper around the model."""
        return cast(Callable[..., Any], self._engine)

    @property
    def device(self) -> torch.device:
        """Where DeepSpeed has put the model."""
        return torch.device(self._engine.device)

    def precision(self) -> AbstractContextManager[Any]:
        """DeepSpeed enters autocast in the forward pass only; the loss needs it too."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed averages over the ranks; a mean of N times the loss is the sum."""
        self._engine.backward(loss * dist.get_world_size())

    def step(self, learning_rate: float) -> None:
        """Clipping and zeroing are inside."""
        set_learning_rate(self._engine.optimizer.param_groups, learning_rate)
        self._engine.step()

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model itself; at stage 3 each module's weights come together while it runs."""
        self._engine.eval()
        try:
            with self.precision():
                yield self._engine.module
        finally:
            self._engine.train()

    def weights(self) -> dict[str, Tensor]:
        """The model put together from the shards, in fp32; at stage 3 on rank 0 alone, and nothing on the others."""
        module = self._engine.module
        if self._stage < 3:
            return {name: _whole(tensor) for name, tensor in module.state_dict().items()}
        # One module after the other: what is whole at once is a layer, not the model.
        weights = {name: _whole(tensor) for name, tensor in module.named_buffers()}
        for prefix, part in module.named_modules():
            own = dict(part.named_parameters(prefix=prefix, recurse=False))
            with self._deepspeed.zero.GatheredParameters(list(own.values())):
                if dist.get_rank() == 0:
                    weights |= {name: _whole(tensor).clone() for name, tensor in own.items()}
        return {name: weights[name] for name in module.state_dict()} if dist.get_rank() == 0 else {}

    def save(self, directory: Path) -> None:
        """Each rank writes its shards (`zero_pp_rank_*`), rank 0 the rest."""
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        """Read this rank's shards. DeepSpeed unpickles them: only checkpoints of one's own runs.

        Where another number of ranks wrote them and the engine is elastic, rank 0 first puts the shards together, in a
        folder beside them.
        """
        if self._universal and num_shards(directory / _TAG) != dist.get_world_size():
            self._load_universal(directory)
            return
        path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG)
        if path is None:
            raise ArtifactError(f"{directory} holds no DeepSpeed checkpoint of {dist.get_world_size()} workers")

    @property
    def elastic(self) -> bool:
        """The shards are those of so many ranks, unless they may be put together."""
        return self._universal

    def _load_universal(self, directory: Path) -> None:
        if dist.get_rank() == 0:
            convert(directory / _TAG, directory / _UNIVERSAL_TAG)
        dist.barrier()
        optimizer = Untangled(self._engine.optimizer.optimizer)
        # Else an engine would load every checkpoint so, also those that need no conversion.
        self._engine._config.load_universal_checkpoint = True
        try:
            self._engine.load_checkpoint(str(directory), tag=_UNIVERSAL_TAG)
        finally:
            self._engine._config.load_universal_checkpoint = False
        optimizer.mend()
        restore_buffers(directory / _UNIVERSAL_TAG, self._engine.module)


@dataclass(frozen=True)
class Elements:
    """How many numbers a model has.

    Attributes:
        whole: In all of its parameters.
        largest: In those of the module that owns most: at stage 3 they have to be whole while it runs.
    """

    whole: int
    largest: int

    @classmethod
    def of(cls, model: nn.Module) -> "Elements":
        """Count them, whether sharded or not."""
        own = [sum(whole_shape(one).numel() for one in part.parameters(recurse=False)) for part in model.modules()]
        return cls(sum(whole_shape(one).numel() for one in model.parameters()), max(own))


def shard_by(elements: Elements, zero: Zero) -> Callable[[nn.Parameter], None]:
    """What shards a parameter over the ranks at stage 3, before there is an engine.

    All ranks call it with the same parameters in the same order. What rank 0 holds counts; after it a rank has its
    share, and the engine finds it sharded.
    """
    deepspeed = _import_deepspeed()
    settings = deepspeed_settings(elements, zero)
    dtype = torch.bfloat16 if _bf16(zero.precision) else torch.float32

    def shard(parameter: nn.Parameter) -> None:
        parameter.data = parameter.data.to(dtype)
        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=settings)

    return shard


def deepspeed_settings(elements: Elements, zero: Zero) -> dict[str, Any]:
    """The configuration that DeepSpeed is given."""
    sharding: dict[str, Any] = {"stage": zero.stage}
    if zero.stage:
        # The defaults hold buffers of 5e8 elements. At stage 3 no buffer may be as large as the model.
        bucket = elements.largest if zero.stage == 3 else elements.whole
        sharding |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if zero.offload:
        sharding["offload_optimizer"] = {"device": "cpu"}
    if zero.stage == 3:
        # The defaults keep whatever is whole until a billion numbers are, and leave small models unsharded.
        sharding |= {
            "stage3_prefetch_bucket_size": elements.largest,
            "stage3_max_live_parameters": 2 * elements.largest,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0,
        }
    bf16 = _bf16(zero.precision)
    return {
        "train_micro_batch_size_per_gpu": 1,  # only counted with; the loss is normalised by the global batch
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": zero.clip_norm or 0.0,
        "bf16": {"enabled": bf16},
        # Features arrive in fp32 and meet weights in bfloat16.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
        "steps_per_print": sys.maxsize,
    }


def _import_deepspeed() -> Any:
    # DeepSpeed compiles one op for reductions in shared memory, once an environment.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    drop_stale_locks(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    import deepspeed

    return deepspeed


def drop_stale_locks(extensions: Path) -> None:
    """Remove the locks of builds that were killed: torch waits for them without end.

    Args:
        extensions: torch's folder of compiled extensions, one sub-folder each.
    """
    for lock in extensions.glob("*/lock"):
        try:
            if time.time() - lock.stat().st_mtime > LONGEST_BUILD_S:
                lock.unlink()
        except FileNotFoundError:  # the build has just ended, or another worker was first
            continue


def _bf16(precision: Precision) -> bool:
    return uses_bf16(precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _whole(tensor: Tensor) -> Tensor:
    """On the CPU, floating point numbers in fp32."""
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor
