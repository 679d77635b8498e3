"""The error tree: every failure that a caller can act on is an `NvpError`.

A message says what was asked, what was found and what is allowed, in one line.
"""


class NvpError(Exception):
    """Root of all errors raised on purpose."""


class UsageError(NvpError):
    """A caller asked for something that does not exist or is not allowed (exit status 2)."""


class NotFound(UsageError):
    """A caller named a video, job or key that is not there."""


class OnHold(UsageError):
    """A video on hold cannot be erased before that ends."""


class SourceError(NvpError):
    """A source file cannot be read as a video: missing, empty, truncated, no frames, not a video."""


class StoreError(NvpError):
    """The object store refused or failed."""


class ObjectExists(StoreError):
    """A put-if-absent found the key taken. Objects are never overwritten."""


class ObjectMissing(StoreError):
    """A key that should exist does not."""


class IntegrityError(StoreError):
    """Bytes differ from the digest under which they were committed."""


class CommitDropped(StoreError):
    """Newer log entries made a prepared commit pointless; its objects are orphans now."""


class AttemptTooOld(CommitDropped):
    """Between the beginning of an upload and its commit more time passed than gc waits: to be begun again."""


class ArchiveError(NvpError):
    """A root is not an archive, or holds a version this release cannot read."""


class CodecError(NvpError):
    """A segment could not be fitted, encoded or decoded."""


class TaskError(NvpError):
    """A task, its weights or its backbone cannot be used."""


class RouteError(NvpError):
    """No route of a segment answers the task as asked."""


class QueryError(NvpError):
    """A SQL text is wrong or asks for what is not offered."""


class AccessDenied(NvpError):
    """A server wants a key, or one that may do more."""


class ServiceError(NvpError):
    """A server cannot be reached, is busy, or failed."""


class JobCancelled(NvpError):
    """A server's job was cancelled before it was done."""


class QueryTimeout(QueryError):
    """A query ran longer than it may."""


class WorkerLost(NvpError):
    """Workers of a batch ended again and again on the same part of it."""
