"""The inference cache: never run the same inference twice."""

from infercache._core import __version__

__all__ = ["__version__"]
