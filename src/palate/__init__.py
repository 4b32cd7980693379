"""Palate learns what each person likes in a language model's answers, and ranks answers that way."""

__version__ = "0.1.0"

__all__ = ["__version__"]
