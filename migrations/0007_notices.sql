-- The plugin says that something has changed; what, is read from OpenCode's own store.
--
-- A notice is a debt: it stays until all that it names is in the ledger, or known to be gone.

create table notice (
    store text not null,                         -- salted hash of the path of the store that holds the session
    session text not null,                       -- as the plugin names it; a subagent is read with its root
    folder text not null,                        -- salted hash of the project folder
    noticed_ms integer not null,                 -- later than that of any notice before it
    wait_reason text,                            -- why it cannot be read now; null: not read yet, or its turn goes on
    primary key (store, session)
) strict, without rowid;

-- What a turn's messages and parts were when it was last read, its subagents' included. It is read again when that
-- changes, or when a policy is in force that is not less strict than this one. Null: from before it was kept. A policy
-- that a damaged ledger has lost costs a turn no more than being read again, so nothing insists on it.
alter table turn add column row_count integer;
alter table turn add column updated_ms integer;
alter table turn add column policy_id integer;
