"""Reduced-width nets of four families, trained on the labelled world, so that accuracy can be measured."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # as `python -m benchmarks.nets` trained them (results/nets.json)
