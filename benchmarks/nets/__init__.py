"""Reduced-width nets of four families, trained on the labelled world, so that accuracy can be measured."""
