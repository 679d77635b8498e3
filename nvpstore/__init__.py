"""nvpstore: a write-once-read-many video store and query engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvpstore.archive import Archive, open
    from nvpstore.client import connect
    from nvpstore.upscaling.upscaler import upscale

# Before anything loads Arrow. The allocator that its wheels bring by default crashes where threads come and
# go (https://github.com/apache/arrow/issues/50908), and what it frees cannot be given back.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"
__all__ = ["Archive", "__version__", "connect", "open", "upscale"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `import nvpstore.types` costs neither DuckDB nor torch.
    if name in ("Archive", "open"):
        from nvpstore import archive

        return getattr(archive, name)
    if name == "connect":
        from nvpstore import client

        return client.connect
    if name == "upscale":
        from nvpstore.upscaling import upscaler

        return upscaler.upscale
    raise AttributeError(f"module 'nvpstore' has no attribute {name!r}")
