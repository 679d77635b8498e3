"""Servers for tests and benchmarks: an object store of one's own, and a bad line to it."""
