-- What a transaction of the application ends with (see transaction.rs).

-- A write as the last thing in a transaction of the application, which is known by p_mark.
--
-- The fence row is locked from here to the COMMIT that is sent next, and no longer: a claim waits for that and for nothing
-- the application does. If that COMMIT never comes, because its host is gone, the server gives up after p_limit milliseconds.
CREATE FUNCTION {s}.write_last(
    p_mark text, p_limit bigint,
    p_incarnation bigint, p_lane integer, p_seq bigint, p_batches {s}.batch[],
    p_alarm_puts {s}.alarm_put[], p_alarm_removes {s}.alarm_remove[],
    p_message_puts {s}.message_put[], p_message_removes {s}.message_remove[],
    p_dead_puts {s}.dead_put[], p_dead_removes {s}.dead_remove[],
    p_value_puts {s}.value_put[], p_value_removes {s}.value_remove[], p_known bigint,
    OUT taken bigint, OUT fenced integer[], OUT newest bigint[]
)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF current_setting('stable_interfaces.mark', true) IS DISTINCT FROM p_mark THEN
        RAISE EXCEPTION 'the application has ended the transaction by itself' USING
            ERRCODE = '22000', HINT = 'COMMIT and ROLLBACK are the library''s to say here.';
    END IF;
    -- Under a stricter one the write would not see a claim that came after the transaction began.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the application has changed the isolation of the transaction' USING ERRCODE = '22000';
    END IF;
    PERFORM set_config('idle_in_transaction_session_timeout', p_limit::text, true);
    SELECT w.taken, w.fenced, w.newest INTO taken, fenced, newest FROM {s}.write(
        p_incarnation, p_lane, p_seq, p_batches, p_alarm_puts, p_alarm_removes, p_message_puts, p_message_removes,
        p_dead_puts, p_dead_removes, p_value_puts, p_value_removes, p_known
    ) w;
END
$$;
