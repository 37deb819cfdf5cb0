//! Members of the fleet, on their way to the scripts and back.

use std::time::Duration;

use serde::Deserialize;
use stable_interfaces::Timestamp;
use stable_interfaces::store::{Incarnation, Member, MemberState, Members, Placement, Presence};

use super::failure::Failure;
use super::key::Keys;
use super::reply::Texts;
use super::script::Call;

/// A row of a member; see `members.lua`. A later version may have more.
#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    since: String,
    until: String,
    address: String,
    build: String,
    leaving: String,
    cordoned: String,
    placement: String,
}

/// Adds the arguments that say what a host says of itself, as `enter.lua` has them.
pub(super) fn put_said(call: Call, lease_millis: String, keys: &Keys, presence: &Presence) -> Call {
    call.arg(lease_millis)
        .arg(keys.channel())
        .arg(presence.address.as_deref().unwrap_or_default())
        .arg(&*presence.build)
        .arg(u8::from(presence.is_leaving))
        .arg(u8::from(presence.placement == Placement::Live))
        .arg(presence.placement_version)
}

/// Reads the members in an answer.
pub(super) fn read_members(answer: &mut Texts, now: Timestamp) -> Result<Members, Failure> {
    let (version, count): (u64, usize) = (answer.number()?, answer.number()?);
    let mut list = Vec::new();
    for _ in 0..count {
        let (incarnation, row) = (Incarnation(answer.number()?), answer.text()?);
        // One that a newer version wrote otherwise is nobody that this one could place shards on, or reach.
        if let Ok(row) = serde_json::from_str(&row) {
            list.push(member(incarnation, row, now));
        }
    }
    Ok(Members::new(version, list))
}

fn member(incarnation: Incarnation, row: Row, now: Timestamp) -> Member {
    let time = |text: &str| Timestamp::from_millis(text.parse().unwrap_or_default());
    Member {
        incarnation,
        name: row.name.into(),
        address: Some(row.address).filter(|address| !address.is_empty()).map(Into::into),
        build: row.build.into(),
        // What is neither yes nor no is a newer version's, and nothing is placed on it.
        state: MemberState::of(row.leaving != "0", row.cordoned != "0"),
        placement_version: row.placement.parse().unwrap_or_default(),
        remaining: time(&row.until).since(now).max(Duration::from_millis(1)),
        up: now.since(time(&row.since)),
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn row(leaving: &str, more: &str) -> String {
        format!(
            r#"{{"name":"a","since":"500","until":"9000","address":"","build":"1","leaving":"{leaving}","cordoned":"0","live":"1","placement":"1"{more}}}"#
        )
    }

    fn read(rows: &[String]) -> Members {
        let mut answer = vec![text("7"), text(&rows.len().to_string())];
        for (life, row) in rows.iter().enumerate() {
            answer.extend([text(&(life + 1).to_string()), text(row)]);
        }
        read_members(&mut Texts::new(Value::Array(answer)).unwrap(), Timestamp::from_millis(1_000)).unwrap()
    }

    #[test]
    fn a_row_is_read_whatever_a_newer_version_adds_to_it() {
        let members = read(&[row("0", r#","region":{"name":"north"}"#)]);
        assert_eq!((members.version, members.list.len()), (7, 1));
        let member = &members.list[0];
        assert_eq!((member.remaining, member.up), (Duration::from_secs(8), Duration::from_millis(500)));
        assert_eq!((member.state, &member.address), (MemberState::Up, &None));
    }

    #[test]
    fn nothing_is_placed_on_a_host_whose_state_a_newer_version_has_named() {
        assert_eq!(read(&[row("resting", "")]).list[0].state, MemberState::Leaving);
    }

    #[test]
    fn a_row_that_cannot_be_read_hides_none_of_the_others() {
        let members = read(&["[]".to_owned(), row("0", ""), r#"{"name":1}"#.to_owned()]);
        assert_eq!(members.list.iter().map(|member| member.incarnation.0).collect::<Vec<_>>(), [2]);
    }
}
