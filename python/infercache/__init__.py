"""The inference cache: never run the same inference twice."""
