-- The record of the steps that have been made (steps.rs): `version` is from here on the least step that a program must know, and `step` the last
-- one made. The programs of step 1 compare `version` with 1.
ALTER TABLE {s}.schema_version ADD COLUMN step integer, ADD COLUMN release text;
