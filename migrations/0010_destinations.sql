-- Destinations beside Helicone.

alter table destination add column kind text not null default 'helicone';
alter table destination add column name text not null default '';  -- of a kind that settings name: while one names it
