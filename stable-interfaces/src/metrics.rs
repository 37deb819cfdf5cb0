//! The names of the metrics this library emits through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! Install any recorder of that facade to collect them; without one they cost next to nothing. A test holds this list: each
//! name here is emitted, and nothing else is.

/// Counter, by `interface`: instances reset after a panic, a timeout, a failed commit or an error with effects.
pub const RESETS: &str = "stable_interfaces_resets_total";
/// Counter, by `interface`: failed alarms and messages that will be tried again.
pub const RETRIES: &str = "stable_interfaces_retries_total";
/// Counter, by `interface`: alarms and messages given up.
pub const DEAD_LETTERS: &str = "stable_interfaces_dead_letters_total";
/// Counter, by `kind` (`alarm`, `message`): handlers started for what was due.
pub const WOKEN: &str = "stable_interfaces_woken_total";
/// Histogram, seconds: how late an alarm's first attempt started.
pub const ALARM_LATENESS: &str = "stable_interfaces_alarm_lateness_seconds";
/// Counter: alarms put off because those of their instance fire too often.
pub const ALARMS_SLOWED: &str = "stable_interfaces_alarms_slowed_total";
/// Counter: alarms and messages left in the store because this program has no handler for them.
pub const SET_ASIDE: &str = "stable_interfaces_set_aside_total";
/// Counter: stored rows that could not be used.
pub const DAMAGED_ROWS: &str = "stable_interfaces_damaged_rows_total";
/// Histogram: operations per group commit.
pub const COMMIT_OPS: &str = "stable_interfaces_commit_operations";
/// Histogram, seconds: from sending a group commit to knowing its outcome.
pub const COMMIT_SECONDS: &str = "stable_interfaces_commit_seconds";
/// Counter: group commits sent again because the outcome was not known.
pub const COMMIT_REPEATS: &str = "stable_interfaces_commit_repeats_total";
/// Counter: commits refused because their shard has another owner.
pub const FENCED: &str = "stable_interfaces_fenced_commits_total";
/// Counter: alarms posted to their next owner because the store had lost what it had acknowledged.
pub const ALARMS_SAVED: &str = "stable_interfaces_alarms_saved_total";
/// Gauge, seconds: for how long the oldest alarm or message that waits has been due, as of the last renewal of the lease.
pub const OLDEST_OVERDUE: &str = "stable_interfaces_oldest_overdue_seconds";
/// Counter: shards lost to another owner.
pub const SHARDS_LOST: &str = "stable_interfaces_shards_lost_total";
/// Counter: shards handed over to the hosts that they are placed on by now.
pub const SHARDS_HANDED_OVER: &str = "stable_interfaces_shards_handed_over_total";
/// Counter: how often the store's hints about new messages have ended or could not be begun, so that messages waited for the next look.
pub const WATCHES_LOST: &str = "stable_interfaces_watches_lost_total";
/// Gauge: hosts of the fleet that hold a lease, this one among them, as of the last claim or renewal.
pub const MEMBERS: &str = "stable_interfaces_members";
/// Gauge: shards owned.
pub const SHARDS_OWNED: &str = "stable_interfaces_shards_owned";
/// Counter, by `interface`: instances that left memory because they were idle or others needed the room.
pub const PASSIVATED: &str = "stable_interfaces_passivated_total";
/// Counter, by `interface`: requests refused because a limit was reached.
pub const OVERLOADED: &str = "stable_interfaces_overloaded_total";
/// Counter, by `interface`: requests sent on to the host that owns their instance.
pub const FORWARDED: &str = "stable_interfaces_forwarded_total";
/// Counter, by `interface`: how often such a request was asked again, because it had not begun where it was sent.
pub const FORWARDED_AGAIN: &str = "stable_interfaces_forwarded_again_total";
/// Counter: how often another host could not be reached.
pub const UNREACHABLE: &str = "stable_interfaces_unreachable_total";
/// Counter, by `interface`: requests with a key that were answered with the reply that had been kept for it.
pub const ONCE_REPLAYED: &str = "stable_interfaces_once_replayed_total";
/// Counter, by `interface`: how often a request with a key was asked again, because its outcome was not known or its instance could not be reached.
pub const ONCE_REPEATED: &str = "stable_interfaces_once_repeated_total";
/// Counter, by `interface`: replies kept for a key that were forgotten before their time, because their instance had too many.
pub const ONCE_FORGOTTEN: &str = "stable_interfaces_once_forgotten_total";
/// Counter, by `interface`: connections of clients here that ended because the link to the host that owns their instance was lost.
pub const CONNECTIONS_LOST: &str = "stable_interfaces_connections_lost_total";
/// Counter: handlers seen blocking their thread.
pub const BLOCKED: &str = "stable_interfaces_blocked_handlers_total";

/// Every name above.
pub const ALL: [&str; 29] = [
    RESETS,
    RETRIES,
    DEAD_LETTERS,
    WOKEN,
    ALARM_LATENESS,
    ALARMS_SLOWED,
    SET_ASIDE,
    DAMAGED_ROWS,
    COMMIT_OPS,
    COMMIT_SECONDS,
    COMMIT_REPEATS,
    FENCED,
    ALARMS_SAVED,
    OLDEST_OVERDUE,
    SHARDS_LOST,
    WATCHES_LOST,
    SHARDS_OWNED,
    SHARDS_HANDED_OVER,
    MEMBERS,
    PASSIVATED,
    OVERLOADED,
    FORWARDED,
    FORWARDED_AGAIN,
    UNREACHABLE,
    ONCE_REPLAYED,
    ONCE_REPEATED,
    ONCE_FORGOTTEN,
    CONNECTIONS_LOST,
    BLOCKED,
];
