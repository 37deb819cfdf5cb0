//! A store as commit 6e96dc5 made it, before there was a record of steps: `fjall.rows`, `postgres.sql` and `redis.commands` were written
//! down from stores that its code had filled, all with the same calls. These files never change.

use std::time::Duration;

use stable_interfaces::store::{
    After, AlarmRow, Attempts, Batch, Claim, ClaimKind, Claimed, DeadLetter, DeadRow, Epoch, InboxRow, Incarnation,
    InstanceName, Lane, NewMessage, Op, Page, Presence, Read, ReadRange, ReadRows, Renewal, Revision, Rows, ShardId,
    Write,
};
use stable_interfaces::{Posted, Store, Timestamp};

/// The next life of the host that had the store.
const NEXT: Incarnation = Incarnation(8);

/// Takes lines apart into fields of bytes, as `escape_ascii` wrote them.
#[allow(dead_code, reason = "Postgres has a dump of its own kind")]
pub(crate) fn fields(text: &str) -> Vec<Vec<Vec<u8>>> {
    text.lines().map(|line| line.split('\t').map(unescaped).collect()).collect()
}

fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().expect("something is escaped") {
                b't' => b'\t',
                b'n' => b'\n',
                b'r' => b'\r',
                b'x' => {
                    let digits: String = rest.by_ref().take(2).map(char::from).collect();
                    u8::from_str_radix(&digits, 16).expect("two digits follow")
                }
                itself => itself,
            },
            byte => byte,
        });
    }
    bytes
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn name() -> InstanceName {
    InstanceName { interface: "order".into(), instance: "o-1".into() }
}

fn alarm(id: &str, due: i64, counter: u64) -> AlarmRow {
    AlarmRow {
        name: name(),
        id: id.into(),
        due: at(due),
        scheduled_at: at(due),
        revision: Revision { epoch: Epoch(1), counter },
        attempts: Attempts::default(),
        meta: r#"{"café":1}"#.into(),
    }
}

fn failed(failed: u32, error: &str) -> Attempts {
    Attempts { failed, last_error: Some(error.into()), ..Attempts::default() }
}

fn message(id: &str) -> NewMessage {
    let headers = vec![("trace".into(), "t-1".into())];
    NewMessage { shard: ShardId(0), name: name(), id: id.into(), headers, body: "body".into() }
}

async fn rows(store: &dyn Store, after: After) -> Rows {
    let loaded = store.load(&[Page::new(ShardId(0), after, 100)]).await.expect("a load is answered").remove(0);
    assert!(loaded.damaged.is_empty() && loaded.is_last, "{loaded:?}");
    loaded.rows
}

async fn alarms(store: &dyn Store) -> Vec<AlarmRow> {
    let Rows::Alarms(rows) = rows(store, After::Alarms(None)).await else { unreachable!("alarms were asked for") };
    rows
}

async fn messages(store: &dyn Store) -> Vec<InboxRow> {
    let Rows::Inbox(rows) = rows(store, After::Inbox(None)).await else { unreachable!("messages were asked for") };
    rows
}

async fn claimed(store: &dyn Store, given_up: Vec<(ShardId, Epoch)>, kind: ClaimKind) -> Claimed {
    let claim = Claim {
        incarnation: NEXT,
        host: "host-a".into(),
        shards: vec![ShardId(0), ShardId(1)],
        given_up,
        shard_count: 1024,
        hash_version: 1,
        lease: Duration::from_secs(600),
        kind,
        presence: Presence::default(),
    };
    store.claim(&claim).await.expect("a claim is answered")
}

/// Starts the next life of the host, compares all that was kept with what was written, and uses the store in every way.
pub(crate) async fn is_whole_and_goes_on(store: &dyn Store) {
    let granted = claimed(store, Vec::new(), ClaimKind::Start).await.granted;
    let grants: Vec<_> = granted.iter().map(|grant| (grant.shard.0, grant.epoch.0, grant.clean)).collect();
    assert_eq!(grants, [(0, 2, false), (1, 2, true)], "the epochs go on, and one shard had been released");

    let retried = AlarmRow {
        due: at(2_500),
        attempts: Attempts { failed: 2, crashes: 1, started: true, last_error: Some("no answer".into()) },
        ..alarm("retried", 2_000, 2)
    };
    assert_eq!(alarms(store).await, [alarm("plain", 1_000, 1), retried.clone()]);
    let inbox = messages(store).await;
    let arrived = inbox.first().expect("there are messages").arrived;
    let fresh = message("fresh").into_row(arrived);
    let tried = InboxRow {
        due: at(9_000_000_000_000),
        attempts: Attempts { failed: 1, started: true, last_error: Some("busy".into()), crashes: 0 },
        ..message("tried").into_row(arrived)
    };
    assert_eq!(inbox, [fresh, tried]);
    let Rows::Dead(dead) = rows(store, After::Dead(None)).await else { unreachable!("letters were asked for") };
    let row = AlarmRow { attempts: failed(5, "gave up"), ..alarm("dead", 500, 3) };
    let dead_alarm = DeadLetter { died_at: at(600), reason: "gave up".into(), row: DeadRow::Alarm(row) };
    let row = message("dead").into_row(arrived);
    let row = InboxRow { attempts: failed(3, "poison"), ..row };
    let dead_message = DeadLetter { died_at: at(700), reason: "poison".into(), row: DeadRow::Message(row) };
    assert_eq!(dead, [dead_alarm, dead_message]);
    for (instance, key, value) in [("o-1", "status", &b"\"paid\""[..]), ("o-2", "k", &[0, 1, 255])] {
        let name = InstanceName { interface: "order".into(), instance: instance.into() };
        let read = Read::new(ShardId(0), name, ReadRange::Storage(key.into(), None), 1);
        let ReadRows::Storage(found) = store.read(&read).await.expect("a read is answered").rows else {
            unreachable!("storage was asked for")
        };
        assert_eq!(found, [(key.into(), value.to_vec().into())]);
    }

    // A shard that was given up is granted under a greater epoch.
    let granted = claimed(store, vec![(ShardId(0), Epoch(2))], ClaimKind::Running).await.granted;
    assert_eq!(granted.first().expect("it is granted").epoch, Epoch(3));
    let moved = AlarmRow { due: at(3_000), revision: Revision { epoch: Epoch(3), counter: 1 }, ..retried };
    let gone = alarm("plain", 1_000, 1);
    let ops = vec![
        Op::PutAlarm(moved.clone()),
        Op::RemoveAlarm { name: gone.name, id: gone.id, revision: gone.revision },
        Op::RemoveMessage(inbox.first().expect("there are messages").key()),
    ];
    let write = Write {
        incarnation: NEXT,
        lane: Lane(0),
        seq: 1,
        batches: vec![Batch { shard: ShardId(0), epoch: Epoch(3), ops: ops.into() }],
    };
    store.commit(&write).await.expect("a write is answered").remove(0).expect("the owner writes");
    assert_eq!(alarms(store).await, [moved]);
    let posted = store.post(&[message("tried"), message("new")]).await.expect("a post is answered");
    assert_eq!(posted, [Posted::Duplicate, Posted::Inserted], "an old message is known by its ID");
    let ids: Vec<_> = messages(store).await.into_iter().map(|row| row.id.to_string()).collect();
    assert_eq!(ids, ["tried", "new"]);
    let renewed = store.renew(&Renewal::new(NEXT, Duration::from_secs(600))).await.expect("a renewal is answered");
    assert_eq!((renewed.owned, renewed.inbox), (vec![ShardId(0), ShardId(1)], vec![ShardId(0)]));
}
