"""Use the passes without the application: they need numpy, scipy and onnx_ir, and work in place on a model."""

from __future__ import annotations

from network import make_network

import passes
from passes.weights import parameter_count

model = make_network()
before = parameter_count(model)
for rewrite in (
    passes.Tidy(),
    passes.RemoveChannels(),
    passes.AlignChannels(multiple=8),
    passes.InferShapes(),
):
    report = rewrite(model)
    print(f"{report.name}: {'changed the model' if report.modified else 'nothing to do'}")
    for change in report.changes:
        print(f"    {change.subject}: {change.what}, {change.before} -> {change.after}")
    for skip in report.skips:
        print(f"    left {skip.subject}: {skip.reason}. {skip.advice}")
after = parameter_count(model)
print(f"{before} parameters before, {after} after")
if after >= before:
    raise SystemExit("the zeroed channels are still there")
