-- Records are written in another way than before, and Helicone takes a record of another model for another record. So
-- each session keeps the way in which its first record was written; those known until now keep the first.

alter table session add column encoding integer not null default 1 check (encoding in (1, 2));
alter table session add column shown_name text;  -- in Helicone's list, redacted; null: as its directory says each time
