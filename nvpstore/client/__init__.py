"""A served archive, over HTTP, with the methods of a local one."""

from __future__ import annotations

from nvpstore.client.connecting import connect

__all__ = ["connect"]
