-- Times are seconds since 1970 (UTC), JSON is text.
CREATE TABLE IF NOT EXISTS jobs (
    id              TEXT PRIMARY KEY,      -- a ULID: sorts by time of submission
    kind            TEXT NOT NULL,
    owner           TEXT NOT NULL,         -- the key that submitted it
    request         TEXT NOT NULL,
    priority        INTEGER NOT NULL,      -- higher first
    state           TEXT NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,  -- how often it was taken: a lease is told by it
    failures        INTEGER NOT NULL DEFAULT 0,  -- attempts that failed or were lost
    created_at      REAL NOT NULL,
    not_before      REAL NOT NULL,         -- a retry waits until then
    started_at      REAL,
    finished_at     REAL,
    worker          TEXT,                  -- who holds the lease
    lease_until     REAL,
    cancelling      INTEGER NOT NULL DEFAULT 0,
    progress        TEXT,
    result          TEXT,
    error           TEXT,
    idempotency_key TEXT,
    identity        TEXT NOT NULL,         -- what that key stands for: two requests are the same where it is
    UNIQUE (owner, idempotency_key)
) STRICT;

CREATE INDEX IF NOT EXISTS jobs_waiting ON jobs (state, priority DESC);

CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job    TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    at     REAL NOT NULL,
    kind   TEXT NOT NULL,                  -- 'state', 'progress' or 'log'
    data   TEXT NOT NULL
) STRICT;

CREATE INDEX IF NOT EXISTS events_of_job ON events (job, number);
