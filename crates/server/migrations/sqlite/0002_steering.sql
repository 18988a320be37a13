-- What was asked of a session after it was made: messages, going on, a budget. Absent: nothing.
ALTER TABLE session_states ADD COLUMN steering TEXT;
