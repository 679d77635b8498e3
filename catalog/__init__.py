"""Imported as `nvpstore.catalog`, never as `catalog`."""

if __name__ != "nvpstore.catalog":
    raise ImportError(
        "import nvpstore.catalog, not catalog: the folder is linked into the nvpstore package "
        "(nvpstore/catalog is a symbolic link; a checkout without links needs git's core.symlinks)"
    )

from nvpstore.catalog.index import Catalog
from nvpstore.catalog.snapshot import IndexedRoute, IndexedVideo, Snapshot

__all__ = ["Catalog", "IndexedRoute", "IndexedVideo", "Snapshot"]
