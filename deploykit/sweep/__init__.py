"""Many steps: recipes x models x devices, one after the other or on a Ray cluster, and one table of results.

sweep.toml -> Sweep -> cells -> each a step of its own with a shared cache -> results.parquet, plot.svg, a table
"""
