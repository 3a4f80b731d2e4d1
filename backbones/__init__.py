"""The families. Importing this package registers every one of them with timm."""

from . import van

__all__ = ["van"]
