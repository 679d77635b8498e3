"""One function a command group: it adds its parser, whose `run` takes the arguments and an Output."""

from __future__ import annotations

from nvpstore.api.commands import (
    archive,
    batch,
    ingest,
    labels,
    query,
    results,
    service,
    tasks,
    upscaling,
    videos,
    views,
)

# In the order in which `nvp --help` lists them.
COMMANDS = (
    archive.add_init,
    ingest.add_add,
    ingest.add_ingest,
    ingest.add_fit,
    query.add_sql,
    batch.add_batch,
    videos.add_ls,
    videos.add_show,
    videos.add_tag,
    tasks.add_tasks,
    upscaling.add_upscale,
    views.add_views,
    results.add_results,
    videos.add_export,
    labels.add_export_labels,
    videos.add_rm,
    archive.add_verify,
    archive.add_gc,
    archive.add_copy,
    archive.add_catalog,
    service.add_serve,
    service.add_keys,
)
