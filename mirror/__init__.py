"""A caching pull-through proxy for container registries."""

__version__ = "0.1.0"
