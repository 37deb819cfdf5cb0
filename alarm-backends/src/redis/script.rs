//! The Lua scripts, and calls of them.
//!
//! All keys of a call belong to one hash tag, so they are on one server. A script begins with a line of flags, which need
//! Redis 7: without `allow-oom` it is refused before it starts when memory is full, and so is never cut in half.

use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs};

use super::key;

/// One script, as the server gets it.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) source: String,
    /// The name by which the server calls a script that it has.
    pub(super) sha1: String,
}

impl Script {
    fn new(flags: &str, source: &str) -> Script {
        let source = format!("#!lua{flags}\n{source}");
        let sha1 = redis::Script::new(&source).get_hash().to_owned();
        Script { source, sha1 }
    }
}

macro_rules! scripts {
    ($($name:ident = $flags:literal $($file:literal)+;)*) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new($flags, concat!($(include_str!($file)),+)));)*
    };
}

// What ownership needs is a few bytes, and without it nothing can be deleted either.
scripts! {
    ENTER = " flags=allow-oom" "members.lua" "enter.lua";
    MARK = " flags=allow-oom" "members.lua" "mark.lua";
    MEMBERS = " flags=no-writes" "members.lua" "look.lua";
    LEASE = " flags=allow-oom" "lease.lua";
    RELEASE = " flags=allow-oom" "release.lua";
    ALIVE = " flags=allow-oom" "members.lua" "alive.lua";
    CLAIMED = " flags=no-writes" "claimed.lua";
    STALE = " flags=allow-oom" "members.lua" "stale.lua";
    VISIT = " flags=allow-oom" "visit.lua";
    FORGET = " flags=allow-oom" "members.lua" "forget.lua";
    COMMIT = "" "commit.lua";
    COMMIT_REMOVALS = " flags=allow-oom" "commit.lua";
    POST = "" "post.lua";
    SCAN = " flags=no-writes" "scan.lua";
    PROBE = " flags=allow-oom" "probe.lua";
}

/// A script with its keys and arguments.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) script: &'static Script,
    pub(super) command: Cmd,
    /// The cluster slot of its keys.
    pub(super) slot: u16,
    /// Says that a second call does no harm and answers as the first.
    pub(super) is_repeatable: bool,
}

impl Call {
    /// All of `keys` have the same hash tag; there is at least one.
    pub(super) fn new(script: &'static Script, keys: &[String]) -> Call {
        let mut command = Cmd::new();
        command.arg("EVALSHA").arg(&script.sha1).arg(keys.len()).arg(keys);
        Call { script, command, slot: keys.first().map_or(0, |key| key::slot(key)), is_repeatable: true }
    }

    /// Not to be sent again when it may have been done.
    #[must_use]
    pub(super) fn once(mut self) -> Call {
        self.is_repeatable = false;
        self
    }

    #[must_use]
    pub(super) fn arg(mut self, arg: impl ToRedisArgs) -> Call {
        self.command.arg(arg);
        self
    }
}
