-- The whole history: OpenCode's own store is the second copy of every turn.
--
--   job ──  footprint    what Helicone replaces each of its logs by; outlives the bodies, the job's session and the turn
--   session >── reconciled_ms
--
-- New arrows of a job's life:
--
--   pending, dead ─▶ the same, without bodies      no room for them, and OpenCode's store still holds the turn: they are
--                                                  made again for each attempt
--   delivered ─▶ superseded, delivered ─▶ pending  recalled: written over at Helicone
--
-- A job that is sealed was recalled with something that the settings do not say: no other version of its turn is taken,
-- until another recall.

alter table session add column reconciled_ms integer;  -- what OpenCode had written by then was compared; null: nothing;
  -- negative: without what was written before capture began
alter table job add column is_history integer not null default 0;  -- 1: goes after what is live
alter table job add column is_recall integer not null default 0;   -- 1: overwrites what Helicone holds
alter table job add column is_sealed integer not null default 0;

-- When capture of a folder began: what OpenCode wrote there earlier nobody has missed. seen_ms was moved on with each
-- change of options, so for folders from before this it is the best that is known.
alter table folder add column since_ms integer not null default 0;
update folder set since_ms = min(seen_ms, coalesce(
    (select min(j.enqueued_ms) from job j join session s on s.id = j.session_id where s.folder = folder.hash), seen_ms));

-- Nothing of a folder is missed while its capture is switched off (the highest number: never).
update folder set since_ms = 1 << 62
where json_extract(capture_options, '$.enable') = 0 or json_extract(capture_options, '$.exportMode') = 'off';

create table footprint (
    job_id integer primary key references job (id) on delete cascade,
    ids blob not null,                            -- of each record 16 bytes of request id and 4 of its body's digest
    facts blob not null                           -- JSON, deflated: what else Helicone knows each record by
) strict;

-- All versions of a turn.
create index job_turn on job (turn_id);
-- What is live is found without a look at the history that waits.
create index job_live on job (session_id, id) where state = 'pending' and is_history = 0;
