-- What left, failed, was lost or taken out: numbers that outlive the jobs they are of.

create table counter (
    day text not null,                           -- the local date, in ISO form
    kind text not null check (kind in ('delivered', 'failed', 'lost', 'redacted')),
    name text not null,                          -- failed: Helicone's status; lost: why; redacted: the rule; else ''
    count integer not null,
    primary key (day, kind, name)
) strict, without rowid;

-- Of all records of a job as they were made. Null: from before it was kept.
alter table job add column record_bytes integer;  -- uncompressed
alter table job add column redactions integer;    -- how often something was taken out of them
