-- What bounds the sessions of an orchestration together, and what sessions cost.
ALTER TABLE orchestrations ADD COLUMN parallel_max INTEGER; -- absent: no limit of its own
ALTER TABLE orchestrations ADD COLUMN max_cost_usd REAL;    -- absent: no budget
ALTER TABLE sessions ADD COLUMN spent_usd REAL NOT NULL DEFAULT 0; -- of all attempts that reported

-- It was kept with each session.
UPDATE orchestrations SET parallel_max = known.parallel_max
FROM (
    SELECT s.orchestration_id AS id, min(b.body ->> 'parallel_max') AS parallel_max
    FROM sessions s JOIN session_briefs b USING (ordinal)
    WHERE s.orchestration_id IS NOT NULL GROUP BY s.orchestration_id
) AS known
WHERE orchestrations.id = known.id;

UPDATE sessions SET spent_usd = known.spent_usd
FROM (
    SELECT ordinal, coalesce(report ->> '$.usage.costUsd', steering ->> 'cost_before_usd', 0)
        AS spent_usd
    FROM session_states
) AS known
WHERE sessions.ordinal = known.ordinal AND known.spent_usd > 0;
