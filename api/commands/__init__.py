"""One function a command group: it adds its parser, whose `run` takes the arguments and an Output."""

from __future__ import annotations

from nvpstore.api.commands import archive, query, tasks, videos

# In the order in which `nvp --help` lists them.
COMMANDS = (
    archive.add_init,
    videos.add_ingest,
    query.add_sql,
    videos.add_ls,
    videos.add_show,
    tasks.add_tasks,
    videos.add_export,
    archive.add_catalog,
    archive.add_verify,
)
