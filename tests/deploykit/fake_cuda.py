"""The driver of a GPU that is none: its memory is the host's, its clock counts calls.

It is called through real C function pointers of the types that the code declares, so that arguments are converted as
they would be for the driver. It proves that the code calls what it means to, and nothing of any GPU.
"""

from __future__ import annotations

import ctypes
import re

from deploykit.runtimes.cuda import PROTOTYPES

NAME = "Fake GPU"


class FakeDriver:
    """What stands for the driver's library.

    Args:
        devices: how many GPUs it shows.
        memory: bytes that it has.
        errors: numbers that functions return in place of working, by name.

    Attributes:
        blocks: what is allocated, by address.
        work: what was put in the stream and has not run yet.
        calls: names of the functions that were called.
    """

    def __init__(self, devices=1, memory=1 << 30, errors=None):
        self.devices, self.memory, self.errors = devices, memory, errors or {}
        self.blocks, self.work, self.calls, self.clock_ms = {}, [], [], 0.0
        self.ends = {}
        for name, arguments in PROTOTYPES.items():
            kind = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)
            setattr(self, name, kind(self._called(name)))

    def _called(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name in self.errors:
                return self.errors[name]
            own = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removeprefix("cu")).lower()
            return getattr(self, own, lambda *_: 0)(*arguments)

        return call

    def device_get_count(self, count):
        count[0] = self.devices
        return 0

    def driver_get_version(self, version):
        version[0] = 12080
        return 0

    def device_get_name(self, text, size, device):
        ctypes.memmove(text, NAME.encode() + b"\0", len(NAME) + 1)
        return 0

    def device_get_attribute(self, value, attribute, device):
        value[0] = {75: 9, 76: 0}[attribute]
        return 0

    def device_total_mem_v2(self, value, device):
        value[0] = self.memory
        return 0

    def _handle(self, out, *_):
        out[0] = 1000 + len(self.calls)
        return 0

    device_primary_ctx_retain = stream_create = event_create = _handle

    def mem_alloc_v2(self, address, size):
        if sum(map(len, self.blocks.values())) + size > self.memory:
            return 2
        block = ctypes.create_string_buffer(size)
        place = ctypes.addressof(block)
        self.blocks[place] = block
        address[0] = place
        return 0

    def mem_free_v2(self, address):
        del self.blocks[address]
        return 0

    def memcpy_hto_d_v2(self, to, source, size):
        assert size <= len(self.blocks[to])
        ctypes.memmove(to, source, size)
        return 0

    def memcpy_dto_h_v2(self, to, source, size):
        assert size <= len(self.blocks[source])
        ctypes.memmove(to, source, size)
        return 0

    def run_all(self):
        for work in self.work:
            work()
            self.clock_ms += 1.0
        self.work.clear()

    def stream_synchronize(self, stream):
        self.run_all()
        return 0

    def event_record(self, event, stream):
        self.run_all()
        self.ends[event] = self.clock_ms
        return 0

    def event_elapsed_time(self, out, begin, end):
        out[0] = self.ends[end] - self.ends[begin]
        return 0

    def get_error_name(self, code, name):
        self.kept = ctypes.c_char_p(b"CUDA_ERROR_FAKE")
        name[0] = self.kept
        return 0
