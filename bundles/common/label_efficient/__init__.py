"""The library that the bundles share: one home for every line that two of them need."""

__version__ = "0.3.0"
