-- What happens when the other side is away: health of destinations, attempts, confirmation, policies.
--
--   destination   fine ⇄ down, refused, quota       shared by all workers; jobs are charged nothing while it is not fine
--   job ──< attempt                                 the last few, for whoever looks into a dead letter
--   job >── policy                                  what its bodies were made under
--
-- New arrows of a job's life:
--
--   delivered, to be confirmed ─▶ delivered      read back at Helicone: its bodies go
--   delivered, to be confirmed ─▶ pending        not found there: sent again, a bounded number of times
--   delivered, to be confirmed ─▶ dead           accepted but not stored
--   dead ─▶ pending                              somebody says so
--   delivered without its body ─▶ pending        the quota was exceeded, and somebody asks for the turn again
--   pending, dead ─▶ dropped (policy)            made under a looser policy than the one in force; captured again it
--                                                is superseded by the new version, or pending under its old key
--   dead ─▶ dropped                              purged: somebody says so, its key stays known
--
-- Rebuilding a table is the only way to change its constraints; foreign keys are checked after it.

create table destination_new (
    id integer primary key,
    endpoint text not null,                      -- '' where no endpoint was chosen and no key is known
    key_fingerprint text not null,               -- '' without a key: its jobs wait for one
    route text,                                  -- the log URL that answered, null until one did
    health text not null default 'fine' check (health in ('fine', 'down', 'refused', 'quota')),
    pause_reason text,                           -- why it is down or refused, null otherwise
    pause_count integer not null default 0,      -- probes failed in a row
    probe_ms integer,                            -- while paused: when one job may try again
    probed_ms integer,                           -- the last attempt that failed because of the destination
    asks_another integer not null default 0,     -- 1: the next probe is not the oldest job of a session, but another
    passes integer not null default 0,           -- records accepted so far: tells whether others pass
    suspect_job_id integer,                      -- the job whose failure nothing has explained yet
    concurrency integer,                         -- jobs that may be in flight; null: as many as there are threads
    concurrency_passes integer not null default 0,  -- records accepted since it last grew
    sampled_ms integer,                          -- when a job was last taken as a sample to be confirmed
    delivery_options text not null default '{}', -- as last brought by a plugin, JSON
    worker_wanted text not null default '',      -- version and settings of the worker that should run
    created_ms integer not null,
    unique (endpoint, key_fingerprint),
    check ((pause_reason is null) = (probe_ms is null)),
    check ((health in ('down', 'refused')) = (pause_reason is not null))
) strict;

insert into destination_new (id, endpoint, key_fingerprint, route, health, pause_reason, pause_count, probe_ms,
    probed_ms, delivery_options, worker_wanted, created_ms)
select id, endpoint, key_fingerprint, route, iif(pause_reason is null, 'fine', 'down'), pause_reason, pause_count,
    probe_ms, probed_ms, delivery_options, worker_wanted, created_ms from destination;

drop table destination;
alter table destination_new rename to destination;

-- What decided which bytes may leave, as JSON. '' for jobs from before it was kept.
create table policy (
    id integer primary key,
    facts text not null unique
) strict;

create table job_new (
    id integer primary key,
    destination_id integer not null references destination (id),
    session_id integer not null references session (id),
    turn_id integer not null references turn (id),
    policy_id integer references policy (id),    -- null: from before it was kept
    key text not null check (length(key) = 64),
    state text not null check (state in ('pending', 'delivered', 'dead', 'superseded', 'dropped')),
    drop_reason text check (drop_reason in ('age', 'size', 'deleted', 'off', 'policy', 'purged')),
    facts_ms integer not null,                   -- the latest time in the turn: newer supersedes older
    enqueued_ms integer not null,
    due_ms integer,                              -- not tried before
    lease_until_ms integer,                      -- a worker has it until then
    worker text,                                 -- which: the name of its lock file
    attempt integer not null default 0,          -- claims so far; the number fences every finish
    setbacks integer not null default 0,         -- failures in a row, whoever's: how long to wait
    failures integer not null default 0,         -- those of them that are the job's own: when to give up
    passes_seen integer,                         -- destination.passes at the last setback
    kills integer not null default 0,            -- attempts that ended with their worker
    attempted_ms integer,
    rung_ms integer,
    finished_ms integer,
    error text,                                  -- why the last attempt failed: status and class, no text
    confirm_ms integer,                          -- delivered: when to read it back; null: not to be, or done
    confirmed_ms integer,                        -- when it was seen at Helicone
    resends integer not null default 0,          -- times that it was accepted and then not found
    body_not_stored integer not null default 0,  -- 1: Helicone kept its numbers only (quota)
    record_count integer not null,
    body_bytes integer not null,                 -- compressed, of the records still held
    unique (destination_id, key),
    check ((state = 'dropped') = (drop_reason is not null)),
    check ((state = 'pending') = (due_ms is not null)),
    check ((state = 'pending') = (finished_ms is null)),
    check ((lease_until_ms is null) = (worker is null)),
    check (confirm_ms is null or state = 'delivered'),
    check (state in ('pending', 'dead') or confirm_ms is not null or body_bytes = 0)
) strict;

insert into job_new (id, destination_id, session_id, turn_id, key, state, drop_reason, facts_ms, enqueued_ms, due_ms,
    lease_until_ms, worker, attempt, setbacks, failures, kills, attempted_ms, rung_ms, finished_ms, error,
    record_count, body_bytes)
select id, destination_id, session_id, turn_id, key, state, drop_reason, facts_ms, enqueued_ms, due_ms,
    lease_until_ms, worker, attempt, failures, failures, kills, attempted_ms, rung_ms, finished_ms, error,
    record_count, body_bytes from job;

drop table job;
alter table job_new rename to job;

create unique index job_current on job (turn_id) where state <> 'superseded';
create index job_due on job (destination_id, due_ms) where state = 'pending';
create index job_session on job (session_id, id) where state = 'pending';
create index job_leased on job (session_id) where lease_until_ms is not null;
create index job_held on job (enqueued_ms) where body_bytes > 0;
create index job_state on job (state, destination_id);
create index job_confirm on job (destination_id, confirm_ms) where confirm_ms is not null;
create index job_isolated on job (destination_id) where kills >= 2 and state = 'pending';

create table record_new (
    job_id integer not null references job (id) on delete cascade,
    position integer not null,
    request_id blob not null check (length(request_id) = 16),
    digest blob not null check (length(digest) = 16),  -- of the uncompressed body: first half of its SHA-256
    body_bytes integer,                                -- uncompressed, in the bundle; null: the body is here
    body blob,                                         -- zlib; only of jobs from before there were bundles
    primary key (job_id, position),
    check ((body is null) = (body_bytes is not null))
) strict, without rowid;

insert into record_new (job_id, position, request_id, digest, body)
select job_id, position, request_id, digest, body from record;

drop table record;
alter table record_new rename to record;

-- The bodies of all records of a job, one compressed stream.
create table bundle (
    job_id integer primary key references job (id) on delete cascade,
    bodies blob not null
) strict;

-- Every claim; the last few of a job are kept, and none of one that is delivered.
create table attempt (
    job_id integer not null references job (id) on delete cascade,
    number integer not null,                     -- job.attempt of the claim
    started_ms integer not null,
    ended_ms integer,                            -- null: under way, or its worker died
    status integer,                              -- of Helicone's answer; null when none came
    error text,
    answer text,                                 -- how the answer began, redacted
    primary key (job_id, number)
) strict, without rowid;

-- Which destination a folder was last captured for: tells a rotated key from another project's.
alter table folder add column destination_id integer references destination (id);

-- Acknowledgements are forgotten when they are old.
create index acknowledgement_age on acknowledgement (acknowledged_ms);

-- What went wrong beside jobs and lines: the clock, the disk, the ledger itself.
create table incident (
    what text primary key,
    count integer not null,
    last_ms integer not null
) strict;

-- How reading back goes at a destination: for status, and for all its workers alike.
create table confirmation (
    destination_id integer primary key references destination (id),
    failure text,                                -- why the last reading back came to nothing; null: it did not
    failures integer not null default 0,         -- in a row: how long to wait
    retry_ms integer,                            -- not tried before
    given_up integer not null default 0,         -- jobs whose bodies went before they were confirmed
    check ((failure is null) = (retry_ms is null))
) strict;

-- Why a pending job must not be sent by the settings in force; due_ms says when that is looked at again at the latest.
alter table job add column hold_reason text;
create index job_lost on job (destination_id) where drop_reason = 'policy';
