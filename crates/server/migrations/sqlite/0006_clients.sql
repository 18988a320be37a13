-- Waits of clients for sessions that outlive their connections.
CREATE TABLE waits (
    id         TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    body       TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX waits_by_age ON waits (created_ms);

-- Nobody asks for a wait thirty days after it was made (`WAIT_KEPT`): no session runs that long.
CREATE TRIGGER waits_forgotten AFTER INSERT ON waits BEGIN
    DELETE FROM waits WHERE created_ms < NEW.created_ms - 30 * 86400000;
END;

-- What clients of earlier revisions of MCP said of themselves when they began, by the name that was
-- given to their session; absent once they have ended it.
CREATE TABLE introductions (
    id         TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    body       TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX introductions_by_age ON introductions (created_ms);
CREATE TRIGGER introductions_forgotten AFTER INSERT ON introductions BEGIN
    DELETE FROM introductions WHERE created_ms < NEW.created_ms - 30 * 86400000;
END;
