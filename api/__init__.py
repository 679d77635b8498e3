"""Imported as `nvpstore.api`, never as `api`."""

if __name__ != "nvpstore.api":
    raise ImportError(
        "import nvpstore.api, not api: the folder is linked into the nvpstore package "
        "(nvpstore/api is a symbolic link; a checkout without links needs git's core.symlinks)"
    )
