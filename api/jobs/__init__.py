"""Work that takes longer than a request: a durable queue, and the processes that empty it."""
