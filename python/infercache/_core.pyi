"""The native part of infercache; import `infercache` instead."""

__version__: str
