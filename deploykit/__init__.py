"""Turns the zeros of a pruned network into speed, and proves both the speed and the function.

The application around `passes`: pipeline, validation, runtimes, measuring, reports and the command line. Importing
this package imports nothing heavy; runtimes and model libraries are imported where they are used.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
