"""A served archive, over HTTP, with the methods of a local one."""
