-- For people. `SELECT * FROM stable_interfaces.waiting WHERE instance = 'order-17'` tells what waits for an instance.

-- Bytes as text where they are text.
CREATE FUNCTION {s}.readable(bytes bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN convert_from(bytes, 'UTF8');
EXCEPTION WHEN OTHERS THEN
    RETURN encode(bytes, 'escape');
END
$$;

-- Alarms, inbox messages and dead letters. `at`: when an alarm is due, a message is to be handled, a letter was given up.
CREATE VIEW {s}.waiting AS
    SELECT
        'alarm' AS kind, shard, interface, instance, id, to_timestamp(due / 1000.0) AS at, attempt, crashes,
        last_error AS error, {s}.readable(meta) AS content
    FROM {s}.alarm
    UNION ALL
    SELECT
        'message', shard, interface, instance, id, to_timestamp(due / 1000.0), attempt, crashes,
        last_error, {s}.readable(body)
    FROM {s}.inbox
    UNION ALL
    SELECT
        CASE WHEN is_message THEN 'dead message' ELSE 'dead alarm' END, shard, interface, instance, id,
        to_timestamp(died_at / 1000.0), attempt, crashes, reason, {s}.readable(body)
    FROM {s}.dead;
