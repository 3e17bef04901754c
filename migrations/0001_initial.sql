-- The ledger: the only truth about what is exported, to where, and how far it is.
--
--   destination ──< session ──< turn ──< job ──< record       bodies, while the job may still post them
--                                 └────< acknowledgement      what Helicone said yes to; survives the job
--
-- A job's life (app/ledger/ has one function per arrow; later ones are drawn in later migrations):
--
--   (insert) ─▶ pending ─▶ delivered         every record acknowledged
--                  │  ├──▶ dead              refused for good, retries used up, or it killed its workers
--                  │  └──▶ dropped           age, size, deleted, off: bodies gone, key kept
--                  └─────▶ superseded        a newer version of the same turn became current
--   superseded ─▶ pending                    the same version came back as the newest (A, B, A)
--   dropped ─▶ pending                       only when somebody asks
--   dead ─▶ superseded                       by a newer version of its turn; otherwise it stays
--
-- "In flight", "waiting for a retry" and "paused" are no states: they are read off lease_until_ms, due_ms and the
-- destination. All times are integer milliseconds UTC.

create table meta (
    name text primary key,
    value text not null
) strict;

-- The salt makes fingerprints of API keys and folders worthless outside this ledger.
insert into meta (name, value) values ('salt', lower(hex(randomblob(16))));

create table destination (
    id integer primary key,
    endpoint text not null,                      -- '' where no endpoint was chosen and no key is known
    key_fingerprint text not null,               -- '' without a key: its jobs wait for one
    route text,                                  -- the log URL that answered, null until one did
    pause_reason text,                           -- null: fine
    pause_count integer not null default 0,      -- probes failed in a row
    probe_ms integer,                            -- while paused: when one job may try again
    probed_ms integer,                           -- the last attempt that failed because of the destination
    delivery_options text not null default '{}', -- as last brought by a plugin, JSON
    worker_wanted text not null default '',      -- version and settings of the worker that should run
    created_ms integer not null,
    unique (endpoint, key_fingerprint),
    check ((pause_reason is null) = (probe_ms is null))
) strict;

create table session (
    id integer primary key,
    destination_id integer not null references destination (id),
    name text not null,                          -- OpenCode's session id
    root_name text not null,                     -- its own id, or the session it is shown inside
    user_id text not null,                       -- frozen with the first record: part of Helicone's row key
    folder text not null,                        -- salted hash of the project folder
    unique (destination_id, name)
) strict;

create table turn (
    id integer primary key,
    session_id integer not null references session (id),
    name text not null,                          -- the user message's id, or 'session' for the root record
    unique (session_id, name)
) strict;

create table job (
    id integer primary key,
    destination_id integer not null references destination (id),
    session_id integer not null references session (id),
    turn_id integer not null references turn (id),
    key text not null check (length(key) = 64),
    state text not null check (state in ('pending', 'delivered', 'dead', 'superseded', 'dropped')),
    drop_reason text check (drop_reason in ('age', 'size', 'deleted', 'off', 'policy')),
    facts_ms integer not null,                   -- the latest time in the turn: newer supersedes older
    enqueued_ms integer not null,
    due_ms integer,                              -- not tried before
    lease_until_ms integer,                      -- a worker has it until then
    worker text,                                 -- which: the name of its lock file
    attempt integer not null default 0,          -- claims so far; the number fences every finish
    failures integer not null default 0,         -- charged since a record was last acknowledged
    kills integer not null default 0,            -- attempts that ended with their worker
    attempted_ms integer,
    rung_ms integer,
    finished_ms integer,
    error text,                                  -- why the last attempt failed: status and class, no text
    record_count integer not null,
    body_bytes integer not null,                 -- compressed, of the records still held
    unique (destination_id, key),
    check ((state = 'dropped') = (drop_reason is not null)),
    check ((state = 'pending') = (due_ms is not null)),
    check ((state = 'pending') = (finished_ms is null)),
    check ((lease_until_ms is null) = (worker is null)),
    check (state in ('pending', 'dead') or body_bytes = 0)
) strict;

-- One current version of each turn.
create unique index job_current on job (turn_id) where state <> 'superseded';
create index job_due on job (destination_id, due_ms) where state = 'pending';
create index job_session on job (session_id, id) where state = 'pending';
create index job_leased on job (session_id) where lease_until_ms is not null;
create index job_held on job (enqueued_ms) where body_bytes > 0;
create index job_state on job (state, destination_id);

create table record (
    job_id integer not null references job (id) on delete cascade,
    position integer not null,
    request_id blob not null check (length(request_id) = 16),
    digest blob not null check (length(digest) = 16),  -- of the uncompressed body: first half of its SHA-256
    body blob not null,                                -- zlib
    primary key (job_id, position)
) strict, without rowid;

create table acknowledgement (
    turn_id integer not null references turn (id),
    request_id blob not null check (length(request_id) = 16),
    digest blob not null check (length(digest) = 16),
    acknowledged_ms integer not null,
    primary key (turn_id, request_id)
) strict, without rowid;

-- Capture options last seen for a project folder, so that later commands are never looser than live capture was.
create table folder (
    hash text primary key,
    capture_options text not null,
    seen_ms integer not null
) strict;

-- Lines that the hook could not use, by reason.
create table refusal (
    reason text primary key,
    count integer not null,
    last_ms integer not null
) strict;
