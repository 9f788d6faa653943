"""The bundle that tests use: a trained one, small enough for hundreds of runs."""

from pathlib import Path

DIGITS = Path(__file__).parent / "bundles" / "digits"
"""A DeiT-LT pico of handwritten digits at 16 px, as `make demo` exports it."""
