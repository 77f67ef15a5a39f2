"""Finds sparse networks that train as well as dense ones: tasks, sources of masks, structures, training and the search.

Everything in here may import torch, and is imported by a command only when it runs.
"""
