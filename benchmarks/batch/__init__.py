"""Batches, workers, hand-over: what they cost, part by part."""
