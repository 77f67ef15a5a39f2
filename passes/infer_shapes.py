"""Give every tensor the shape it has now.

After a pass has cut weights, the shapes that the model declares for its intermediate tensors are stale, and inference
that meets a stale shape gives up. So they are forgotten first. Kept is what inference cannot find: what the model
says about its inputs and outputs, about outputs of custom ops, and about those of If, Loop and Scan.

Refuses a model whose graph no longer computes outputs of the sizes it declares: its interface would have changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes import shapes
from passes.base import Change, Pass, PassReport
from passes.errors import PassError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["InferShapes"]


class InferShapes(Pass):
    """Forget the shapes of intermediate tensors and infer them again."""

    name = "infer-shapes"
    exact = True

    def call(self, model: ir.Model) -> PassReport:
        """Infer; the report counts the tensors whose shape is another one than before.

        Raises:
            PassError: inference fails, or a declared output has another size.
        """
        graph = model.graph
        before = {value: value.shape for value in shapes.main_values(graph)}
        declared = [
            (value, value.shape) for value in graph.outputs if value.producer() is not None
        ]
        shapes.forget(model)
        for value, _ in declared:
            value.shape = None
        try:
            shapes.infer(model)
            for value, shape in declared:
                if shape is not None and value.shape is not None:
                    check(value, shape, value.shape)
        finally:
            for value, shape in declared:
                if shape is not None:
                    value.shape = shape
        changed = sum(value.shape != shape for value, shape in before.items())
        subject = graph.name or "graph"
        changes = (Change(subject, "shapes of tensors", changed, changed),) if changed else ()
        return PassReport(self.name, self.exact, bool(changes), changes)


def check(value: ir.Value, declared: ir.Shape, inferred: ir.Shape) -> None:
    """Compare the sizes that both know.

    Raises:
        PassError: they differ.
    """
    fits = len(declared) == len(inferred) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) or a < 0
        for a, b in zip(declared, inferred, strict=True)
    )
    if not fits:
        msg = (
            f"graph output '{value.name}' is declared as {declared} but the graph computes {inferred}. "
            "A pass that changes the interface is not exact; if the file came that way, correct what it declares."
        )
        raise PassError(msg)
