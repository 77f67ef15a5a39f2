"""Memory, streams and clocks of an NVIDIA GPU through its driver alone.

The driver's library is there wherever a GPU can be used at all, and what is called of it has not changed for ten years, so
that running an engine needs no other package: neither PyTorch, nor Polygraphy (whose runner copies inputs and outputs
around each run and waits, which a measurement must not), nor the right one of several CUDA runtimes.

TensorRT works in the device's primary context, and so does this.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.runtimes.probe import LIBRARY

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Buffer", "Device", "Gpu"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

OUT_OF_MEMORY: Final = 2
MAJOR: Final = 75
MINOR: Final = 76
"""Attributes of a device: its compute capability. Source: CUdevice_attribute in cuda.h."""

HANDLE = ctypes.c_void_p
ADDRESS = ctypes.c_uint64
PROTOTYPES: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGetCount": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDeviceTotalMem_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(HANDLE), ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxSetCurrent": (HANDLE,),
    "cuMemAlloc_v2": (ctypes.POINTER(ADDRESS), ctypes.c_size_t),
    "cuMemFree_v2": (ADDRESS,),
    "cuMemcpyHtoD_v2": (ADDRESS, ctypes.c_void_p, ctypes.c_size_t),
    "cuMemcpyDtoH_v2": (ctypes.c_void_p, ADDRESS, ctypes.c_size_t),
    "cuStreamCreate": (ctypes.POINTER(HANDLE), ctypes.c_uint),
    "cuStreamSynchronize": (HANDLE,),
    "cuStreamDestroy_v2": (HANDLE,),
    "cuEventCreate": (ctypes.POINTER(HANDLE), ctypes.c_uint),
    "cuEventRecord": (HANDLE, HANDLE),
    "cuEventSynchronize": (HANDLE,),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), HANDLE, HANDLE),
    "cuEventDestroy_v2": (HANDLE,),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}
"""Functions of the driver and what they take; each returns 0 or the number of an error. Source: cuda.h."""

# Work in a stream of this kind does not wait for the default stream, which others may use.
NON_BLOCKING: Final = 1


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as its driver calls it.
        compute_capability: "9.0".
        memory_bytes: its memory.
        driver: the version of CUDA that its driver knows, "12.8".
    """

    name: str
    compute_capability: str
    memory_bytes: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}, CUDA {self.driver}"


class Gpu:
    """The first GPU that the driver shows, ready for use; CUDA_VISIBLE_DEVICES decides which that is.

    Args:
        library: the driver's library; None loads it.

    Attributes:
        device: what it is.
        stream: handle of the stream that work is put in.

    Raises:
        RuntimeUnavailable: there is no driver, or no GPU.
    """

    def __init__(self, library: Any = None) -> None:  # noqa: ANN401 - a library
        self._library = _load() if library is None else library
        for name, arguments in PROTOTYPES.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int
        self._open: list[HANDLE] = []
        self.device = self._describe()
        context = HANDLE()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)
        stream = HANDLE()
        self._call("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
        self._stream = stream
        self._events = (self._event(), self._event())

    @property
    def stream(self) -> int:
        """Handle of the stream, as a number."""
        return self._stream.value or 0

    def upload(self, array: Array) -> Buffer:
        """Memory of the device that holds an array.

        Raises:
            ModelError: the device has no room for it.
        """
        buffer = self.reserve(array.nbytes)
        self.fill(buffer, array)
        return buffer

    def fill(self, buffer: Buffer, array: Array) -> None:
        """Copy an array into memory of the device."""
        # A non-contiguous array would be copied as it does not lie in memory.
        array = np.ascontiguousarray(array)
        if array.nbytes > buffer.size:
            msg = f"Gpu developer: {array.nbytes} bytes for a buffer of {buffer.size}"
            raise ValueError(msg)
        if array.nbytes:
            self._call("cuMemcpyHtoD_v2", buffer.address, array.ctypes.data, array.nbytes)

    def reserve(self, size: int) -> Buffer:
        """Memory of the device, of at least one byte: engines refuse null addresses of empty tensors.

        Raises:
            ModelError: the device has no room for it.
        """
        address = ADDRESS()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(size, 1))
        return Buffer(self, address.value, size)

    def download(self, buffer: Buffer, array: Array) -> None:
        """Copy memory of the device into an array, which must be contiguous."""
        if array.nbytes > buffer.size or not array.flags.c_contiguous:
            msg = f"Gpu developer: {array.nbytes} bytes from a buffer of {buffer.size}, or scattered ones"
            raise ValueError(msg)
        if array.nbytes:
            self._call("cuMemcpyDtoH_v2", array.ctypes.data, buffer.address, array.nbytes)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", address)

    def synchronize(self) -> None:
        """Wait until all work in the stream is done.

        Raises:
            ModelError: some of it failed.
        """
        self._call("cuStreamSynchronize", self._stream)

    def begin_clock(self) -> None:
        """Note the time at which the stream gets here."""
        self._call("cuEventRecord", self._events[0], self._stream)

    def end_clock(self) -> float:
        """Wait until the stream gets here; seconds since `begin_clock`, by the device's clock."""
        self._call("cuEventRecord", self._events[1], self._stream)
        self._call("cuEventSynchronize", self._events[1])
        elapsed_ms = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed_ms), *self._events)
        return float(elapsed_ms.value) * 1e-3

    def close(self) -> None:
        """Let the device go."""
        for event in self._events:
            self._call("cuEventDestroy_v2", event)
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", 0)

    def _event(self) -> ctypes.c_void_p:
        event = HANDLE()
        self._call("cuEventCreate", ctypes.byref(event), 0)
        return event

    def _describe(self) -> Device:
        self._start("cuInit", 0)
        count = self._number("cuDeviceGetCount")
        if count < 1:
            msg = "the NVIDIA driver shows no GPU: check nvidia-smi, and CUDA_VISIBLE_DEVICES"
            raise RuntimeUnavailable(msg)
        name = ctypes.create_string_buffer(256)
        self._start("cuDeviceGetName", name, len(name), 0)
        total = ctypes.c_size_t()
        self._start("cuDeviceTotalMem_v2", ctypes.byref(total), 0)
        major, minor = (
            self._number("cuDeviceGetAttribute", which, 0) for which in (MAJOR, MINOR)
        )
        version = self._number("cuDriverGetVersion")
        return Device(
            name.value.decode(errors="replace"),
            f"{major}.{minor}",
            int(total.value),
            f"{version // 1000}.{version % 1000 // 10}",
        )

    def _number(self, name: str, *arguments: int) -> int:
        number = ctypes.c_int()
        self._start(name, ctypes.byref(number), *arguments)
        return number.value

    def _start(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - what C takes
        code = getattr(self._library, name)(*arguments)
        if code:
            msg = f"the NVIDIA driver does not work: {name} says {self._error(code)}. Check it with nvidia-smi."
            raise RuntimeUnavailable(msg)

    def _call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - what C takes
        code = getattr(self._library, name)(*arguments)
        if code == OUT_OF_MEMORY:
            msg = (
                f"the model needs more memory than {self.device.name} has free. End what else uses it, or give smaller sizes "
                "with --shape or --batch."
            )
            raise ModelError(msg)
        if code:
            msg = f"the GPU failed while it ran the model: {name} says {self._error(code)}."
            raise ModelError(msg)

    def _error(self, code: int) -> str:
        name = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(name))
        return f"{(name.value or b'unknown error').decode(errors='replace')} ({code})"


class Buffer:
    """Memory of a device, as a context manager.

    Attributes:
        address: where it lies.
        size: how many bytes were asked for.
    """

    def __init__(self, gpu: Gpu, address: int, size: int) -> None:
        self._gpu = gpu
        self.address = address
        self.size = size

    def free(self) -> None:
        """Give it back; a second time does nothing."""
        if self.address:
            self._gpu.free(self.address)
            self.address = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        msg = f"there is no NVIDIA driver: {error}. Use a machine with a GPU."
        raise RuntimeUnavailable(msg) from error
