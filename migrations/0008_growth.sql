-- Job 100,000 costs what job 1 costs: what would have to be looked for among all jobs is kept as they change.
--
--   job ─ triggers ─▶ waiting      one row for each session in which something is pending: when the next of it is due
--                  └▶ tally        how many jobs there are of each kind, and how many bytes their bodies have
--
-- Both can be made anew from the jobs: the views `waiting_of_jobs` and `tally_of_jobs` say what they must hold, and
-- whoever inspects the ledger compares. Triggers, and no statements of the program: a worker of the version before, which
-- is still at its last job, keeps them right as well.

create table waiting (
    session_id integer not null,
    is_history integer not null,                 -- as of the jobs: what is live goes first
    destination_id integer not null,
    due_ms integer not null,                     -- of the pending job that is due first
    primary key (session_id, is_history)
) strict, without rowid;

create index waiting_due on waiting (destination_id, is_history, due_ms);

create view waiting_of_jobs as
select session_id, is_history, destination_id, min(due_ms) as due_ms from job where state = 'pending'
group by session_id, is_history;

-- What a job is counted as.
alter table job add column counted_as text not null generated always as (
    case state
        when 'dropped' then drop_reason
        when 'delivered' then iif(confirm_ms is not null, 'to be confirmed',
            iif(body_not_stored, 'body not stored', iif(confirmed_ms is not null, 'confirmed', '')))
        when 'superseded' then ''
        else coalesce(error, '')
    end) virtual;
alter table job add column counted_hold text not null generated always as (
    iif(state = 'pending', coalesce(hold_reason, ''), '')) virtual;
alter table job add column is_retrying integer not null generated always as (
    state = 'pending' and setbacks > 0) virtual;
alter table job add column is_evicted integer not null generated always as (
    state = 'pending' and body_bytes = 0 and record_count > 0) virtual;

create table tally (
    destination_id integer not null,
    state text not null,
    reason text not null,                        -- dropped: why; pending, dead: the error; delivered: whether it was seen
    hold_reason text not null,
    is_retrying integer not null,                -- pending, and has failed before
    is_evicted integer not null,                 -- pending without its bodies, which OpenCode's store has
    is_recall integer not null,
    jobs integer not null,
    body_bytes integer not null,
    primary key (destination_id, state, reason, hold_reason, is_retrying, is_evicted, is_recall)
) strict, without rowid;

create view tally_of_jobs as
select destination_id, state, counted_as as reason, counted_hold as hold_reason, is_retrying, is_evicted, is_recall,
    count(*) as jobs, sum(body_bytes) as body_bytes from job group by 1, 2, 3, 4, 5, 6, 7;

drop index job_session;
drop index job_live;
drop index job_state;
drop index job_isolated;
create index job_order on job (session_id, is_history) where state = 'pending';
create index job_next on job (session_id, is_history, due_ms) where state = 'pending';
create index job_age on job (destination_id, enqueued_ms) where state = 'pending';
create index job_isolated on job (destination_id, due_ms) where kills >= 2 and state = 'pending';
create index job_evicted on job (destination_id) where state = 'pending' and body_bytes = 0;
create index job_failed on job (destination_id, passes_seen) where setbacks > 0 and state = 'pending';
create index job_dead on job (destination_id, counted_as, finished_ms) where state = 'dead';
create index job_dropped on job (drop_reason, finished_ms) where state = 'dropped';

insert into waiting (session_id, is_history, destination_id, due_ms) select * from waiting_of_jobs;
insert into tally select * from tally_of_jobs;

create trigger job_waits after insert on job when new.state = 'pending' begin
    insert into waiting (session_id, is_history, destination_id, due_ms)
    values (new.session_id, new.is_history, new.destination_id, new.due_ms)
    on conflict do update set due_ms = excluded.due_ms where excluded.due_ms < due_ms;
end;

create trigger job_waits_on after update of due_ms, is_history, destination_id on job
when new.due_ms is not old.due_ms
    or new.due_ms is not null and (new.is_history <> old.is_history or new.destination_id <> old.destination_id)
begin
    insert into waiting (session_id, is_history, destination_id, due_ms)
    select new.session_id, kind.is_history, new.destination_id, kind.due_ms from (
        select is_history, (select min(due_ms) from job where session_id = new.session_id and state = 'pending'
            and is_history = old_or_new.is_history) as due_ms
        from (select old.is_history as is_history union select new.is_history) old_or_new) kind
    where kind.due_ms is not null
    on conflict do update set due_ms = excluded.due_ms, destination_id = excluded.destination_id
    where excluded.due_ms <> due_ms or excluded.destination_id <> destination_id;
    delete from waiting where session_id = new.session_id and is_history in (old.is_history, new.is_history)
        and not exists (select 1 from job where session_id = new.session_id and state = 'pending'
            and is_history = waiting.is_history);
end;

create trigger job_counts after insert on job begin
    insert into tally values (new.destination_id, new.state, new.counted_as, new.counted_hold, new.is_retrying,
        new.is_evicted, new.is_recall, 1, new.body_bytes)
    on conflict do update set jobs = jobs + 1, body_bytes = body_bytes + excluded.body_bytes;
end;

create trigger job_counts_on after update on job
when (new.destination_id, new.state, new.counted_as, new.counted_hold, new.is_retrying, new.is_evicted, new.is_recall,
        new.body_bytes)
    is not (old.destination_id, old.state, old.counted_as, old.counted_hold, old.is_retrying, old.is_evicted,
        old.is_recall, old.body_bytes)
begin
    insert into tally values (new.destination_id, new.state, new.counted_as, new.counted_hold, new.is_retrying,
        new.is_evicted, new.is_recall, 1, new.body_bytes)
    on conflict do update set jobs = jobs + 1, body_bytes = body_bytes + excluded.body_bytes;
    update tally set jobs = jobs - 1, body_bytes = body_bytes - old.body_bytes
    where (destination_id, state, reason, hold_reason, is_retrying, is_evicted, is_recall)
        = (old.destination_id, old.state, old.counted_as, old.counted_hold, old.is_retrying, old.is_evicted,
            old.is_recall);
    delete from tally
    where (destination_id, state, reason, hold_reason, is_retrying, is_evicted, is_recall)
        = (old.destination_id, old.state, old.counted_as, old.counted_hold, old.is_retrying, old.is_evicted,
            old.is_recall) and jobs = 0;
end;
