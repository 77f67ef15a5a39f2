"""Everything that needs an NVIDIA GPU: see `__main__`."""
