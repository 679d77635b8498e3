"""The REST service: the same `Archive`, behind FastAPI."""
