"""What the samples' tests share with those of the application."""

from __future__ import annotations

from tests.deploykit.conftest import network

__all__ = ["network"]
