"""Reads graphs, never writes them."""
