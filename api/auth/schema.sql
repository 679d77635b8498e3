-- Times are seconds since 1970 (UTC). The key itself is nowhere: only the SHA-256 of its secret.
CREATE TABLE IF NOT EXISTS keys (
    id           TEXT PRIMARY KEY,      -- 8 hex digits, part of the key
    name         TEXT NOT NULL,
    scopes       TEXT NOT NULL,         -- separated by blanks
    digest       BLOB NOT NULL,
    created_at   REAL NOT NULL,
    expires_at   REAL,
    revoked_at   REAL,
    last_used_at REAL
) STRICT;
