"""Imported as `nvpstore.adapters`, never as `adapters`."""

if __name__ != "nvpstore.adapters":
    raise ImportError(
        "import nvpstore.adapters, not adapters: the folder is linked into the nvpstore package "
        "(nvpstore/adapters is a symbolic link; a checkout without links needs git's core.symlinks)"
    )
