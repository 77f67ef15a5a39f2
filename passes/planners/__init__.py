"""Decides what to cut, pad or permute: one file a planner; plans are carried out by the passes.

`dead_channels` plans removals: `ties` settles which channels can really go (`shuffles`: through channel
shuffles), `carrying` what becomes of their constants.
`alignment` plans zero channels.
"""
