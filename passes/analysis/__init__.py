"""Reads graphs, never writes them.

Where things are, in the order in which a removal needs them:

- `channels` is the way in: `find_channels(model) -> ChannelMap`. It walks the graph once (`walk.Trace`), sending channel
  tags (`tags`) through the table of `axis_rules`, one row an op;
- `constants` says which elements do not depend on the input, `liveness` which can reach an output. Both speak in compact
  arrays (`compact`) and share what they know of operators: `moves` (data that only moves), `windows` (convolutions and
  pools), `products` (matrix products), `scalars` and `zeros`; `arguments` and `operands` read constant inputs;
- a plan is tried by a second walk (`walk.Replay`), which writes down the `edits` it needs;
- `integers` and `sizes` evaluate the arithmetic of shapes for `passes.shapes`;
- `sparsity` counts zeros, for reports; `matrices` and `blocks` find dense blocks;
- `reductions` says which constant a layer sums over and along which axis, `patterns` what N:M makes of an array, `fits` how each
  weight stands to it, `eligibility` whether sparse kernels could take it.
"""
