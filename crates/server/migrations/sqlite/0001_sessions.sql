-- Sessions, what happened to them, and where their output is.
--
-- The server keeps a directory of all sessions in memory and lists from there, so no table needs
-- an index but for its key. Columns named body, state or report hold JSON: it may grow fields
-- without a migration.

CREATE TABLE orchestrations (
    id         TEXT NOT NULL PRIMARY KEY,
    created_at TEXT NOT NULL,
    body       TEXT NOT NULL -- repository, requirements
) STRICT;

-- What every start reads of every session, and what changes with each of its events: kept small.
CREATE TABLE sessions (
    ordinal          INTEGER PRIMARY KEY, -- order of creation; never given twice
    id               TEXT    NOT NULL UNIQUE,
    orchestration_id TEXT,
    state            TEXT    NOT NULL,    -- its name; the whole of it is in session_states
    version          INTEGER NOT NULL,    -- counts the changes of the state
    attempt          INTEGER NOT NULL,
    last_seq         INTEGER NOT NULL     -- the number of its newest event, output included
) STRICT;

-- What never changes of a session.
CREATE TABLE session_briefs (
    ordinal INTEGER PRIMARY KEY REFERENCES sessions (ordinal),
    body    TEXT NOT NULL
) STRICT;

CREATE TABLE session_states (
    ordinal INTEGER PRIMARY KEY REFERENCES sessions (ordinal),
    state   TEXT NOT NULL,
    report  TEXT
) STRICT;

-- Answers to requests that came with an idempotency key.
CREATE TABLE idempotency_keys (
    key_sha256 TEXT NOT NULL PRIMARY KEY, -- hex
    digest     TEXT NOT NULL,             -- hex
    response   BLOB NOT NULL
) STRICT;

-- Events told by the server. They share one numbering, without gap, with the lines of output
-- that output_ranges and truncations stand for.
CREATE TABLE events (
    ordinal INTEGER NOT NULL REFERENCES sessions (ordinal),
    seq     INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    body    TEXT    NOT NULL,
    PRIMARY KEY (ordinal, seq)
) STRICT, WITHOUT ROWID;

-- `lines` lines from number `first_seq` on, in one piece of one segment file.
CREATE TABLE output_ranges (
    ordinal    INTEGER NOT NULL REFERENCES sessions (ordinal),
    first_seq  INTEGER NOT NULL,
    lines      INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    segment    INTEGER NOT NULL,
    offset     INTEGER NOT NULL, -- of the first record
    bytes      INTEGER NOT NULL, -- of all records, headers included
    text_bytes INTEGER NOT NULL, -- of the lines alone
    PRIMARY KEY (ordinal, first_seq)
) STRICT, WITHOUT ROWID;

-- Numbers whose lines were dropped because the session wrote more than is kept.
CREATE TABLE truncations (
    ordinal    INTEGER NOT NULL REFERENCES sessions (ordinal),
    first_seq  INTEGER NOT NULL,
    last_seq   INTEGER NOT NULL,
    at_ms      INTEGER NOT NULL, -- when the last of them were dropped
    text_bytes INTEGER NOT NULL,
    PRIMARY KEY (ordinal, first_seq)
) STRICT, WITHOUT ROWID;

-- How far the agent of an attempt is stored.
CREATE TABLE agent_positions (
    ordinal  INTEGER NOT NULL REFERENCES sessions (ordinal),
    attempt  INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (ordinal, attempt)
) STRICT, WITHOUT ROWID;
