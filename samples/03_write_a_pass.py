"""Write a pass: a class with a name, a promise (`exact`), and a report that says what was done and what was not.

To let `deploykit optimize --passes` find it, declare it in the distribution that brings it:

    [project.entry-points."deploykit.passes"]
    fold-relu-pairs = "my_package.my_module:FoldReluPairs"
"""

from __future__ import annotations

import onnx_ir as ir
from network import make_network

from passes import Change, Pass, PassReport, Skip


class FoldReluPairs(Pass):
    """Drop a Relu that follows a Relu: max(max(x, 0), 0) = max(x, 0).

    Args:
        keep: names of nodes that stay.
    """

    name = "fold-relu-pairs"
    exact = True

    def __init__(self, *, keep: tuple[str, ...] = ()) -> None:
        self.keep = keep

    def call(self, model: ir.Model) -> PassReport:
        """Go through the graph once; analysis and change are one step here because they are one line each."""
        dropped, skips = 0, []
        for node in model.graph:
            first = (
                node.inputs[0].producer() if node.op_type == "Relu" and node.inputs[0] else None
            )
            if first is None or first.op_type != "Relu":
                continue
            if node.name in self.keep:
                skips.append(Skip(node.name, "it was asked to stay", "leave it out of keep"))
            elif node.outputs[0].is_graph_output():
                # The name of an output is the model's interface; the value behind it has another name.
                skips.append(
                    Skip(node.name or "", "it makes a graph output", "rename the output first")
                )
            else:
                node.outputs[0].replace_all_uses_with(first.outputs[0])
                model.graph.remove(node, safe=True)
                dropped += 1
        changes = (
            (Change("graph", "Relu nodes after Relu nodes", dropped, 0),) if dropped else ()
        )
        return PassReport(self.name, self.exact, bool(dropped), changes, tuple(skips))


model = make_network()
relu = next(node for node in model.graph if node.op_type == "Relu")
again = ir.node("Relu", [relu.outputs[0]], name="again")
relu.outputs[0].replace_all_uses_with(again.outputs[0])
again.replace_input_with(0, relu.outputs[0])
model.graph.insert_after(relu, again)

rewrite = FoldReluPairs()
print(rewrite(model))
if rewrite(model).modified:
    raise SystemExit("a pass that ran to its end must find nothing the second time")
