-- How an orchestration lands as a whole.
ALTER TABLE orchestrations ADD COLUMN lands INTEGER NOT NULL DEFAULT 0; -- 1: its sessions do not land by themselves
ALTER TABLE orchestrations ADD COLUMN landing TEXT;                     -- absent: nothing was done yet
ALTER TABLE orchestrations ADD COLUMN landing_version INTEGER NOT NULL DEFAULT 0; -- counts the changes of landing
ALTER TABLE orchestrations ADD COLUMN changes INTEGER NOT NULL DEFAULT 0; -- counts sessions reopened or added
