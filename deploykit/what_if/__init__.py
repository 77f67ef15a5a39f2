"""How fast a network would be, before anyone trains it.

`asks` reads what was asked for, `network` knows which channels a model can lose, `surrogates` builds the network as it would
be, and `prediction` times it against the original. `latency_table` and `allocation` find the counts of channels that save
the most time; `roofline` says what limits each layer, `sweep` runs batches and threads.
"""
