"""Where training runs: one process or several, on CPUs or GPUs, by torch's own means or under Hugging Face Accelerate.

`torchrun --nproc-per-node N -m deploykit find ...` and `accelerate launch ... -m deploykit find ...` start several
processes. All of them go through the same batches in the same order, each through its part, and gradients are averaged, so
that weights and masks are the same everywhere. The first process alone reads and writes the result folder.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from deploykit.errors import RuntimeUnavailable, UsageError

__all__ = ["Engine", "PlainEngine", "make_engine"]

Value = TypeVar("Value")

PATIENCE = dt.timedelta(hours=2)
"""How long processes wait for the first one, which alone does what is not training."""


class Engine(Protocol):
    """What training asks of where it runs.

    Attributes:
        device: of this process.
        rank: number of this process; 0 reads and writes files.
        processes: how many there are.
        name: for the record.
        precision: of forward passes.
        can_checkpoint: whether an optimizer's state is all that a training run has beside its weights.
    """

    device: torch.device
    rank: int
    processes: int
    name: str
    precision: str
    can_checkpoint: bool

    @property
    def gradient_scale(self) -> float:
        """What gradients are multiplied with until the optimizer's step, so that float16 does not lose them."""
        ...

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The model and its optimizer as training calls them; the model lies on `device` already."""
        ...

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Where forward passes run: in the precision that was asked for."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add up gradients, averaged over processes."""
        ...

    def step(self, optimizer: Optimizer) -> None:
        """Let the optimizer take a step."""
        ...

    def share(self, value: Value) -> Value:
        """What the first process has, on all."""
        ...

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of the first: normalizations count in each what it sees."""
        ...

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, the same on all."""
        ...

    def close(self) -> None:
        """Part from the other processes."""
        ...


class PlainEngine:
    """torch's own: one process, or several that `torchrun` started.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: whether a GPU computes in bfloat16 where that is enough, or float16 with scaled gradients where it has no bfloat16.

    Raises:
        UsageError: there is no such device.
        RuntimeUnavailable: a GPU was asked for and there is none.
    """

    def __init__(self, device: str = "auto", *, amp: bool = True) -> None:
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.processes > 1 else 0
        self.device = find_device(device)
        self.name = "torch" if self.processes == 1 else "torch.distributed"
        self._owns_group = False
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.processes > 1 and not dist.is_initialized():
            dist.init_process_group(
                "nccl" if self.device.type == "cuda" else "gloo", timeout=PATIENCE
            )
            self._owns_group = True
        self._amp: torch.dtype | None = None
        if amp and self.device.type == "cuda":
            self._amp = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.precision = str(self._amp or "full").removeprefix("torch.")
        self._scaler = (
            torch.amp.GradScaler(self.device.type) if self._amp is torch.float16 else None
        )
        self.can_checkpoint = self._scaler is None

    @property
    def gradient_scale(self) -> float:
        """1 without a scaler."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The model, in DistributedDataParallel where there are several processes."""
        if self.processes == 1:
            return model, optimizer
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return DistributedDataParallel(model, device_ids=[self.device.index]), optimizer
        return DistributedDataParallel(model), optimizer

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision on a GPU."""
        if self._amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._amp)

    def backward(self, loss: Tensor) -> None:
        """Gradients, scaled where float16 would lose them."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()

    def step(self, optimizer: Optimizer) -> None:
        """A step; with float16 none if a gradient overflowed."""
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def share(self, value: Value) -> Value:
        """What the first process has, on all."""
        if self.processes == 1:
            return value
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[return-value]  # it has been filled in

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of the first."""
        if self.processes > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.processes == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(each) for each in total]

    def close(self) -> None:
        """Part from the other processes."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()


class AccelerateEngine(PlainEngine):
    """Hugging Face Accelerate, with what `accelerate config` or `accelerate launch` were told.

    Args:
        device: `auto`; the launcher decides.

    Raises:
        UsageError: a device was asked for here, or the launcher splits weights over processes.
    """

    def __init__(self, device: str = "auto") -> None:
        from accelerate import Accelerator

        if device != "auto":
            msg = f"the device '{device}' cannot be chosen under accelerate, whose launcher does. Leave --device out."
            raise UsageError(msg)
        self._accelerator = Accelerator()
        kind = str(getattr(self._accelerator.distributed_type, "value", ""))
        if kind not in {"NO", "MULTI_CPU", "MULTI_GPU"}:
            msg = f"accelerate splits weights over processes ({kind}), and masks need whole ones. Launch it with plain data parallelism."
            raise UsageError(msg)
        self.processes = int(self._accelerator.num_processes)
        self.rank = int(self._accelerator.process_index)
        self.device = torch.device(self._accelerator.device)
        self.name = "accelerate"
        self.precision = str(self._accelerator.mixed_precision)
        self.can_checkpoint = self._accelerator.scaler is None
        self._owns_group = True

    @property
    def gradient_scale(self) -> float:
        """1 without a scaler."""
        scaler = self._accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """The model and the optimizer, wrapped by Accelerate."""
        # It would hold on to every model that it ever prepared.
        self._accelerator.free_memory()
        if self.processes > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        prepared = self._accelerator.prepare(model, optimizer)
        return prepared[0], prepared[1]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that the launcher was told."""
        context: contextlib.AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        """Gradients, by Accelerate."""
        self._accelerator.backward(loss)

    def step(self, optimizer: Optimizer) -> None:
        """A step, by Accelerate's own optimizer."""
        optimizer.step()


def make_engine(device: str = "auto", *, amp: bool = True) -> Engine:
    """Accelerate's where its launcher started this process, else torch's own.

    Raises:
        UsageError: there is no such device.
        RuntimeUnavailable: it is not on this machine, or the launcher's own package is missing.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        try:
            return AccelerateEngine(device)
        except ImportError as error:
            msg = f"this process was started by accelerate, which cannot be imported ({error}). Run: pip install accelerate"
            raise RuntimeUnavailable(msg) from error
    return PlainEngine(device, amp=amp)


def find_device(name: str) -> torch.device:
    """The device of this process.

    Raises:
        UsageError: there is no such kind of device.
        RuntimeUnavailable: it is not on this machine.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"there is no device '{name}'. Take auto, cpu or cuda."
        raise UsageError(msg) from error
    if device.type not in {"cpu", "cuda"}:
        msg = f"searches run on cpu and cuda, not on '{name}'."
        raise UsageError(msg)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            msg = f"this machine has no GPU that torch {torch.__version__} can use. Leave --device out, or install a build for your GPU."
            raise RuntimeUnavailable(msg)
        index = local if device.index is None else device.index
        if index >= torch.cuda.device_count():
            msg = f"there is no '{name}': this machine has {torch.cuda.device_count()} GPUs."
            raise RuntimeUnavailable(msg)
        return torch.device("cuda", index)
    return device


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Torch computes the same every time, or refuses an operation that cannot; what was set before is set again after."""
    if not enabled:
        yield
        return
    # cuBLAS reads this when it starts: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # This way of the two does not import torch's compiler, which takes two seconds and is not used.
    before = torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    # Memory that is about to be written would be filled, for programs that read before they write: a tenth of the time.
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.backends.cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = fills
