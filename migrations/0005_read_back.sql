-- What a look at Helicone is worth: the newest row that was found there is asked for along with what is looked for.

alter table confirmation add column found_ms integer;        -- when a delivered job was last found there; null: never
alter table confirmation add column found_id blob check (found_id is null or length(found_id) = 16);  -- its last record
alter table confirmation add column found_start_ms integer
    check ((found_start_ms is null) = (found_id is null));   -- when that one starts, as Helicone knows it
alter table confirmation add column missed_ms integer;       -- when one was first looked for and not found; null: never

-- Of what was found before, the ids are not known; that something was is.
insert into confirmation (destination_id, found_ms)
select destination_id, max(confirmed_ms) from job where confirmed_ms is not null group by destination_id
on conflict do update set found_ms = excluded.found_ms;
