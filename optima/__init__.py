"""Optima: train agents that talk to each other to be right in fewer words (arXiv 2410.08115)."""

__version__ = "0.1.0"
