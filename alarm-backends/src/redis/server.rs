//! The facts that a server tells of itself, and their meaning for a store that is to lose nothing.
//!
//! Facts come from `INFO`, since `CONFIG` is often forbidden; only what `INFO` lacks is asked of `CONFIG`, and may stay unknown.

use std::collections::BTreeMap;

/// The oldest version whose scripts have flags and check rights before they start.
const OLDEST: u32 = 7;

/// A server's answers to `INFO` and `CONFIG GET appendfsync`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    info: BTreeMap<String, String>,
    appendfsync: Option<String>,
}

impl Facts {
    pub(super) fn new(info: &str, appendfsync: Option<String>) -> Facts {
        let lines = info.lines().filter_map(|line| line.split_once(':'));
        let info = lines.map(|(name, value)| (name.to_owned(), value.trim_end().to_owned())).collect();
        Facts { info, appendfsync }
    }

    fn get(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    /// Changes with each start of the server.
    pub(super) fn run_id(&self) -> &str {
        self.get("run_id")
    }

    /// The reason why this server cannot be used, and what to change.
    pub(super) fn unfit(&self, for_cluster: bool) -> Option<String> {
        let version = self.get("redis_version");
        if version.split('.').next().and_then(|major| major.parse().ok()).is_none_or(|major: u32| major < OLDEST) {
            return Some(format!("the server's version is {version:?}; Redis {OLDEST} or newer, or Valkey, is needed"));
        }
        let policy = self.get("maxmemory_policy");
        if policy.starts_with("allkeys-") {
            return Some(format!(
                "the server may evict any key when memory is full (maxmemory-policy {policy}), alarms too; \
                 set maxmemory-policy to noeviction"
            ));
        }
        match (for_cluster, self.get("cluster_enabled") == "1") {
            (false, true) => Some("the server is part of a cluster; open it as one".to_owned()),
            (true, false) => Some("the server is not part of a cluster; open it as a single server".to_owned()),
            // A replica in a cluster is found out by its redirections.
            (false, false) if self.get("role") == "slave" => {
                Some("the server is a replica, which takes no writes; name its master".to_owned())
            }
            _ => None,
        }
    }

    /// Losses that this server's settings allow, one sentence each; none if an acknowledged write survives power loss.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.get("aof_enabled") != "1" {
            warnings.push(
                "the server keeps no append-only file: when its process ends, everything acknowledged since the last \
                 snapshot is lost, alarms too; set appendonly yes"
                    .to_owned(),
            );
        } else {
            match self.appendfsync.as_deref() {
                Some("always") => {}
                Some("everysec") => warnings.push(
                    "appendfsync is everysec: nothing is lost when the server's process is killed, but up to the last \
                     second of acknowledged writes when its machine loses power; appendfsync always loses nothing"
                        .to_owned(),
                ),
                Some("no") => warnings.push(
                    "appendfsync is no: when the server's machine loses power, acknowledged writes of half a minute can \
                     be lost; set appendfsync always or everysec"
                        .to_owned(),
                ),
                _ => warnings.push(
                    "the server does not tell its appendfsync; unless it is always, its machine's loss of power can lose \
                     acknowledged writes"
                        .to_owned(),
                ),
            }
            if self.get("aof_last_write_status") == "err" {
                warnings.push("the server could not write its append-only file; look at its disk".to_owned());
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(changed: &[(&str, &str)], appendfsync: Option<&str>) -> Facts {
        let text = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\nmaxmemory_policy:noeviction\r\n\
                    aof_enabled:1\r\naof_last_write_status:ok\r\nrole:master\r\ncluster_enabled:0\r\n";
        let mut facts = Facts::new(text, appendfsync.map(str::to_owned));
        facts.info.extend(changed.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        facts
    }

    #[test]
    fn a_server_that_syncs_every_write_is_fit_and_gives_no_warning() {
        let facts = facts(&[], Some("always"));
        assert_eq!((facts.unfit(false), facts.warnings(), facts.run_id()), (None, vec![], "abc"));
    }

    #[test]
    fn every_policy_that_evicts_any_key_is_refused_by_name() {
        for policy in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
            let reason = facts(&[("maxmemory_policy", policy)], None).unfit(false).unwrap();
            assert!(reason.contains(policy) && reason.contains("noeviction"), "{reason}");
        }
        // None of our keys has a time to live, so these evict nothing of ours.
        for policy in ["noeviction", "volatile-lru", "volatile-ttl"] {
            assert_eq!(facts(&[("maxmemory_policy", policy)], None).unfit(false), None);
        }
    }

    #[test]
    fn an_old_server_a_replica_and_the_wrong_mode_are_refused() {
        for version in ["6.2.14", "5.0.7", ""] {
            assert!(facts(&[("redis_version", version)], None).unfit(false).unwrap().contains("7 or newer"));
        }
        assert_eq!(facts(&[("redis_version", "10.1.0")], None).unfit(false), None);
        assert!(facts(&[("role", "slave")], None).unfit(false).unwrap().contains("replica"));
        assert!(facts(&[("cluster_enabled", "1")], None).unfit(false).unwrap().contains("cluster"));
        assert!(facts(&[], None).unfit(true).unwrap().contains("not part of a cluster"));
    }

    #[test]
    fn each_weaker_way_to_persist_says_what_it_can_lose() {
        for (facts, said) in [
            (facts(&[("aof_enabled", "0")], Some("always")), "no append-only file"),
            (facts(&[], Some("everysec")), "last second"),
            (facts(&[], Some("no")), "half a minute"),
            (facts(&[], None), "does not tell"),
            (facts(&[("aof_last_write_status", "err")], Some("always")), "could not write"),
        ] {
            let warnings = facts.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains(said), "{warnings:?}");
        }
    }
}
