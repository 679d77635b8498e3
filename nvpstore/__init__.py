"""nvpstore: a write-once-read-many video store and query engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvpstore.archive import Archive, open

__version__ = "0.1.0"
__all__ = ["Archive", "__version__", "open"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `import nvpstore.types` costs neither DuckDB nor torch.
    if name in ("Archive", "open"):
        from nvpstore import archive

        return getattr(archive, name)
    raise AttributeError(f"module 'nvpstore' has no attribute {name!r}")
