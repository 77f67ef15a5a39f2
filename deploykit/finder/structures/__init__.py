"""Structures: what makes of any mask one that ordinary hardware is faster with. Pure functions on numpy arrays, no torch.

- `refill`: whole output channels, by one of five criteria, alone or coupled over the graph;
- `regroup`: dense blocks of rows and columns.
"""
