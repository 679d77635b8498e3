"""What the query engine saves, and what it takes."""
