"""Long runs that try to break the store: `python -m benchmarks.soak` (results/soak-*.json)."""
