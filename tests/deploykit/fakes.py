"""Passes that do something simple and known, to see what the application makes of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.base import Change, Pass, PassReport, Skip
from passes.errors import PassError
from passes.weights import constant, set_tensor


def report_of(kind, *, modified, changes=(), skips=()):
    return PassReport(kind.name, kind.exact, modified, tuple(changes), tuple(skips))


class DropRows(Pass):
    """Cut zero rows out of the last layer but one.

    Args:
        keep: names of tensors that stay as they are.
    """

    name = "drop-rows"
    exact = True

    def __init__(self, *, keep: tuple[str, ...] = ()) -> None:
        self.keep = keep

    def call(self, model: ir.Model) -> PassReport:
        first, bias, second = (model.graph.initializers[name] for name in ("w1", "b1", "w2"))
        rows, offsets, columns = constant(first), constant(bias), constant(second)
        kept = (rows != 0).any(axis=1) | (offsets != 0)
        if "w1" in self.keep:
            skip = Skip("w1", "it was asked to stay", "leave it out of --keep")
            return report_of(self, modified=False, skips=[skip])
        if kept.all():
            return report_of(self, modified=False)
        set_tensor(first, rows[kept])
        set_tensor(bias, offsets[kept])
        set_tensor(second, columns[:, kept])
        change = Change("w1", "output channels", int(kept.size), int(kept.sum()))
        return report_of(self, modified=True, changes=[change])


class Break(DropRows):
    """Change the function although it says that it does not."""

    name = "break"

    def call(self, model: ir.Model) -> PassReport:
        bias = model.graph.initializers["b2"]
        set_tensor(bias, constant(bias) + np.float32(1))
        return report_of(self, modified=True)


class Repeat(Pass):
    """Put work that does nothing behind the output: structure that never pays.

    Args:
        times: how many nodes.
    """

    name = "repeat"
    exact = True
    adds_structure = True

    def __init__(self, *, times: int) -> None:
        self.times = times

    @classmethod
    def variants(cls, target):
        del target
        return ({"times": 1}, {"times": 40})

    def call(self, model: ir.Model) -> PassReport:
        last = model.graph[-1]
        hidden = last.inputs[0]
        for _ in range(self.times):
            node = ir.node("Identity" if self.times == 1 else "Relu", [hidden])
            model.graph.insert_before(last, node)
            hidden = node.outputs[0]
            hidden.dtype, hidden.shape = ir.DataType.FLOAT, last.inputs[0].shape
        last.replace_input_with(0, hidden)
        return report_of(self, modified=True)


class Halve(Pass):
    """Halve every weight: not exact, and says so."""

    name = "halve"
    exact = False

    def call(self, model: ir.Model) -> PassReport:
        weight = model.graph.initializers["w2"]
        set_tensor(weight, constant(weight) / np.float32(2))
        return report_of(self, modified=True)


class Refuse(Pass):
    """Fail on every model."""

    name = "refuse"
    exact = True

    def call(self, model: ir.Model) -> PassReport:
        raise PassError(
            f"cannot handle '{model.graph.name}': it is a graph. Bring something else."
        )
