"""Fogline: gradient descent with the fog lifted."""

__version__ = "0.1.0"
