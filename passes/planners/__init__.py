"""Decides what to cut, pad or permute: one file a planner; plans are carried out by the passes.

`dead_channels` plans removals: `ties` settles which channels can really go (`shuffles`: through channel
shuffles), `carrying` what becomes of their constants.
`alignment` plans zero channels; `pruning` takes channels by `importance`.
`lines` finds what can be put in another order and carries orders out, `block_order` and `sparse_order` plan them: the one so that
blocks (`block_finding`, `block_choice`) stand together, the other so that 2:4 keeps most (`permutation_search`).
`precision` plans types of 16 bits.
"""
