-- A job without bodies may be made again in stricter ones, as long as none of its records was ever posted: what was taken
-- out because this machine knew it must be taken out again, whoever makes it.

alter table job add column known_marks text;  -- of the known values that were found in it: the first 16 bits of salted
  -- hashes, in order; '' for none; null: from before they were kept
