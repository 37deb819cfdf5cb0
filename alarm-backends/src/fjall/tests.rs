//! Tests for which the store's tables must be at hand: damaged rows, and what a directory keeps.

use bytes::Bytes;
use stable_interfaces::store::{
    After, AlarmKey, AlarmRow, Attempts, Batch, Claim, ClaimKind, Claimed, DamageReason, DeadLetter, DeadRow, Epoch,
    Hint, InboxKey, Incarnation, InstanceName, Lane, NewMessage, Op, Page, Presence, Read, ReadRange, ReadRows,
    Renewal, Revision, Rows, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError, Timestamp};
use tempfile::TempDir;

use super::*;

const SHARD: ShardId = ShardId(7);

fn name() -> InstanceName {
    InstanceName { interface: "order".into(), instance: "o-1".into() }
}

fn alarm(id: &str, due: i64, counter: u64) -> AlarmRow {
    AlarmRow {
        name: name(),
        id: id.into(),
        due: Timestamp::from_millis(due),
        scheduled_at: Timestamp::from_millis(due),
        revision: Revision { epoch: Epoch(1), counter },
        attempts: Attempts::default(),
        meta: Bytes::from_static(b"{}"),
    }
}

fn message(id: &str) -> NewMessage {
    NewMessage { shard: SHARD, name: name(), id: id.into(), headers: Vec::new(), body: Bytes::from_static(b"body") }
}

/// An open store and one incarnation that writes to one shard of it.
struct Owner {
    store: FjallStore,
    incarnation: Incarnation,
    epoch: Epoch,
    clean: bool,
    seq: u64,
}

async fn claim(store: &FjallStore, incarnation: u64) -> Claimed {
    let claim = Claim {
        incarnation: Incarnation(incarnation),
        host: "host-0".into(),
        shards: vec![SHARD],
        given_up: Vec::new(),
        shard_count: 16,
        hash_version: 1,
        lease: Duration::from_secs(60),
        kind: ClaimKind::Running,
        presence: Presence::default(),
    };
    store.claim(&claim).await.unwrap()
}

impl Owner {
    async fn of(dir: &TempDir, incarnation: u64) -> Owner {
        let store = FjallStore::open(dir.path()).unwrap();
        let grant = claim(&store, incarnation).await.granted[0];
        Owner { store, incarnation: Incarnation(incarnation), epoch: grant.epoch, clean: grant.clean, seq: 0 }
    }

    async fn try_write(&mut self, ops: Vec<Op>) -> Result<(), StoreError> {
        self.seq += 1;
        let batches = vec![Batch { shard: SHARD, epoch: self.epoch, ops: ops.into() }];
        let write = Write { incarnation: self.incarnation, lane: Lane(0), seq: self.seq, batches };
        self.store.commit(&write).await.unwrap().remove(0)
    }

    async fn write(&mut self, ops: Vec<Op>) {
        self.try_write(ops).await.unwrap();
    }

    async fn load(&self, after: After) -> Loaded {
        self.store.load(&[Page::new(SHARD, after, 100)]).await.unwrap().remove(0)
    }

    /// IDs and due times of all alarms, and what was damaged.
    async fn alarms(&self) -> (Vec<(String, i64)>, Vec<DamageReason>) {
        let loaded = self.load(After::Alarms(None)).await;
        let Rows::Alarms(rows) = loaded.rows else { panic!("alarms were asked for") };
        let rows = rows.iter().map(|row| (row.id.to_string(), row.due.as_millis())).collect();
        (rows, loaded.damaged.into_iter().map(|damaged| damaged.reason).collect())
    }

    fn table(&self, table: Table) -> &fjall::Keyspace {
        self.store.inner.directory.table(table)
    }

    fn alarm_key(id: &str, due: i64) -> Vec<u8> {
        key::timed(&key::identity(SHARD, &name(), id), Timestamp::from_millis(due))
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    let letter = DeadLetter {
        died_at: Timestamp::from_millis(5),
        reason: "it never worked".into(),
        row: DeadRow::Alarm(alarm("dead", 1, 1)),
    };
    owner
        .write(vec![
            Op::PutAlarm(alarm("kept", 20, 1)),
            Op::PutAlarm(alarm("moved", 30, 2)),
            Op::PutDead(letter.clone()),
            Op::Put { name: name(), key: "k".into(), value: Bytes::from_static(b"v") },
        ])
        .await;
    owner.write(vec![Op::PutAlarm(alarm("moved", 10, 3))]).await;
    assert_eq!(owner.store.post(&[message("m"), message("m")]).await.unwrap(), [Posted::Inserted, Posted::Duplicate]);
    drop(owner);

    let owner = Owner::of(&dir, 2).await;
    assert_eq!(owner.alarms().await, (vec![("moved".into(), 10), ("kept".into(), 20)], vec![]));
    assert_eq!(owner.load(After::Dead(None)).await.rows, Rows::Dead(vec![letter]));
    let Rows::Inbox(inbox) = owner.load(After::Inbox(None)).await.rows else { panic!("messages were asked for") };
    assert_eq!(inbox.iter().map(|row| (&*row.id, &*row.body)).collect::<Vec<_>>(), [("m", &b"body"[..])]);
    let range = ReadRange::Storage("".into(), None);
    let read = owner.store.read(&Read::new(SHARD, name(), range, 10)).await.unwrap();
    assert_eq!(read.rows, ReadRows::Storage(vec![("k".into(), Bytes::from_static(b"v"))]));
    assert_eq!(
        owner.store.renew(&Renewal::new(owner.incarnation, Duration::from_secs(60))).await.unwrap().inbox,
        [SHARD]
    );
}

#[tokio::test]
async fn a_shard_is_clean_after_reopening_only_if_it_was_released() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    assert!(owner.clean, "it never had an owner");
    drop(owner);

    let owner = Owner::of(&dir, 2).await;
    assert_eq!((owner.clean, owner.epoch), (false, Epoch(2)), "the last owner ended without releasing it");
    owner.store.release(owner.incarnation, &[(SHARD, None)]).await.unwrap();
    drop(owner);

    let owner = Owner::of(&dir, 3).await;
    assert_eq!((owner.clean, owner.epoch), (true, Epoch(3)));
}

#[tokio::test]
async fn a_lease_ends_with_the_process_that_had_it() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    assert!(claim(&owner.store, 2).await.granted.is_empty(), "it is leased");
    drop(owner);

    let mut owner = Owner::of(&dir, 2).await;
    let former = Write {
        incarnation: Incarnation(1),
        lane: Lane(0),
        seq: 1,
        batches: vec![Batch { shard: SHARD, epoch: Epoch(1), ops: [Op::PutAlarm(alarm("late", 1, 1))].into() }],
    };
    let answer = owner.store.commit(&former).await.unwrap().remove(0);
    assert!(matches!(answer, Err(StoreError::Fenced { newest: Epoch(2), .. })), "{answer:?}");
    assert!(matches!(
        owner.store.renew(&Renewal::new(Incarnation(1), Duration::from_secs(1))).await,
        Err(StoreError::Replaced)
    ));
    owner.write(vec![]).await;
}

#[tokio::test]
async fn the_fleet_of_a_directory_cannot_change() {
    let dir = TempDir::new().unwrap();
    drop(Owner::of(&dir, 1).await);
    let store = FjallStore::open(dir.path()).unwrap();
    let claim = Claim {
        incarnation: Incarnation(2),
        host: "host-0".into(),
        shards: vec![SHARD],
        given_up: Vec::new(),
        shard_count: 32,
        hash_version: 1,
        lease: Duration::from_secs(60),
        kind: ClaimKind::Start,
        presence: Presence::default(),
    };
    let refused = store.claim(&claim).await.unwrap_err();
    assert!(matches!(refused, StoreError::Mismatch { shard_count: 32, stored_shard_count: 16, .. }), "{refused:?}");
}

#[tokio::test]
async fn a_garbage_row_is_reported_and_the_shard_goes_on() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    owner.write((0..5).map(|n| Op::PutAlarm(alarm(&format!("a{n}"), n, 1))).collect()).await;
    owner.table(Table::Alarms).insert(Owner::alarm_key("a1", 1), "{\"not\":\"a row\"}").unwrap();
    owner.table(Table::Alarms).insert([&SHARD.0.to_be_bytes()[..], b"no key"].concat(), "").unwrap();
    owner.table(Table::Inbox).insert(Owner::alarm_key("m", 0), [1, 2, 3]).unwrap();
    owner.table(Table::Dead).insert(Owner::alarm_key("d", 0), []).unwrap();

    let (rows, damaged) = owner.alarms().await;
    assert_eq!(rows.iter().map(|row| row.1).collect::<Vec<_>>(), [0, 2, 3, 4]);
    assert!(matches!(&damaged[..], [DamageReason::Undecodable(_), DamageReason::Undecodable(_)]), "{damaged:?}");
    for after in [After::Inbox(None), After::Dead(None)] {
        assert_eq!(owner.load(after).await.damaged.len(), 1);
    }
    let page = Page::new(SHARD, After::Alarms(None), 2);
    let Rows::Alarms(two) = owner.store.load(&[page]).await.unwrap().remove(0).rows else {
        panic!("alarms were asked for")
    };
    assert_eq!(two.len(), 2, "a damaged row does not count");

    owner.write(vec![Op::PutAlarm(alarm("a1", 9, 2))]).await;
    let (rows, damaged) = owner.alarms().await;
    assert_eq!((rows.len(), damaged.len()), (5, 1), "setting the alarm again replaces its garbage");
}

#[tokio::test]
async fn a_garbage_entry_of_an_identity_leaves_no_second_row_behind() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    owner
        .write(vec![Op::PutAlarm(alarm("a", 1, 5)), Op::PutAlarm(alarm("aa", 1, 5)), Op::PutAlarm(alarm("b", 1, 5))])
        .await;
    for id in ["a", "b"] {
        owner.table(Table::AlarmIds).insert(key::identity(SHARD, &name(), id), "garbage").unwrap();
    }
    owner.write(vec![Op::PutAlarm(alarm("a", 2, 1))]).await;
    owner.write(vec![Op::RemoveAlarm { name: name(), id: "b".into(), revision: Revision::default() }]).await;
    assert_eq!(owner.alarms().await.0, [("aa".into(), 1), ("a".into(), 2)]);

    owner.store.post(&[message("m")]).await.unwrap();
    owner.table(Table::InboxIds).insert(key::identity(SHARD, &name(), "m"), "garbage").unwrap();
    assert_eq!(owner.store.post(&[message("m")]).await.unwrap(), [Posted::Duplicate]);
    let Rows::Inbox(inbox) = owner.load(After::Inbox(None)).await.rows else { panic!("messages were asked for") };
    owner.write(vec![Op::RemoveMessage(inbox[0].key())]).await;
    assert_eq!(owner.load(After::Inbox(None)).await.rows, Rows::Inbox(vec![]));
    assert_eq!(owner.store.post(&[message("m")]).await.unwrap(), [Posted::Inserted]);
}

#[tokio::test]
async fn a_row_of_a_newer_version_is_left_as_it_is() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    owner.write(vec![Op::PutAlarm(alarm("new", 1, 1)), Op::PutAlarm(alarm("old", 2, 1))]).await;
    let (id, row) = (key::identity(SHARD, &name(), "new"), Owner::alarm_key("new", 1));
    owner.table(Table::AlarmIds).insert(id.as_slice(), [2, 99]).unwrap();
    owner.table(Table::Alarms).insert(row.as_slice(), [2, 98]).unwrap();

    assert_eq!(owner.alarms().await, (vec![("old".into(), 2)], vec![DamageReason::NewerVersion(2)]));
    let range = ReadRange::Alarms("".into(), None);
    let read = owner.store.read(&Read::new(SHARD, name(), range, 10)).await.unwrap();
    assert!(matches!(read.rows, ReadRows::Alarms(rows) if rows.len() == 1));

    let refused = owner.try_write(vec![Op::PutAlarm(alarm("other", 3, 1)), Op::PutAlarm(alarm("new", 5, 9))]).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    let refused =
        owner.try_write(vec![Op::RemoveAlarm { name: name(), id: "new".into(), revision: Revision::default() }]).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    assert_eq!(owner.table(Table::AlarmIds).get(id).unwrap().as_deref(), Some(&[2, 99][..]));
    assert_eq!(owner.table(Table::Alarms).get(row).unwrap().as_deref(), Some(&[2, 98][..]));
    assert_eq!(owner.alarms().await.0, [("old".into(), 2)], "nothing of a refused batch was written");
}

#[tokio::test]
async fn a_storage_value_that_cannot_be_decoded_is_an_error_that_names_it() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    owner.table(Table::Storage).insert(key::identity(SHARD, &name(), "k"), [2, 1]).unwrap();
    let range = ReadRange::Storage("".into(), None);
    let read = owner.store.read(&Read::new(SHARD, name(), range, 10)).await.unwrap_err();
    assert_eq!(read.to_string(), r"storage/\x00\x00\x00\x07order\x00o-1\x00k has the newer row format 2");
}

#[tokio::test]
async fn the_answer_to_a_repeated_write_is_the_first_answer() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    let with_nul = alarm("a\0b", 1, 1);
    let write = Write {
        incarnation: owner.incarnation,
        lane: Lane(0),
        seq: 1,
        batches: vec![
            Batch { shard: SHARD, epoch: owner.epoch, ops: [Op::PutAlarm(with_nul)].into() },
            Batch { shard: ShardId(8), epoch: Epoch(1), ops: [Op::PutAlarm(alarm("a", 1, 1))].into() },
        ],
    };
    for _ in 0..2 {
        let answers = owner.store.commit(&write).await.unwrap();
        let [Err(StoreError::Rejected(_)), Err(StoreError::Fenced { .. })] = &answers[..] else {
            panic!("{answers:?}")
        };
    }
    assert_eq!(owner.alarms().await.0, []);
}

#[tokio::test]
async fn every_write_is_on_the_disk_before_it_is_answered() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    let synced = |owner: &Owner| {
        let persisted = std::mem::take(&mut *owner.store.inner.directory.persisted.lock());
        assert!(persisted.iter().all(|mode| *mode != PersistMode::Buffer), "{persisted:?}");
        persisted.len()
    };
    assert_eq!(synced(&owner), 2, "the layout of a new store, and a claim");
    owner.write(vec![Op::PutAlarm(alarm("a", 1, 1))]).await;
    assert_eq!(synced(&owner), 1, "a commit");
    owner.store.post(&[message("m")]).await.unwrap();
    assert_eq!(synced(&owner), 1, "a post");
    owner.store.release(owner.incarnation, &[(SHARD, None)]).await.unwrap();
    assert_eq!(synced(&owner), 1, "a release");
}

#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "only the store's threads wait for it")]
async fn posts_that_wait_share_one_sync_and_each_is_answered_for_itself() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    let posts = |numbers: std::ops::Range<u32>| {
        numbers.map(|n| {
            let store = owner.store.clone();
            let id = |id: String| NewMessage { id: id.into(), ..message("m") };
            let messages = [id(format!("m-{}", n / 2)), id(format!("own-{n}"))];
            tokio::spawn(async move { store.post(&messages).await })
        })
    };
    let held = owner.store.inner.state.lock();
    let waiting: Vec<_> = posts(0..50).collect();
    // One that nobody waits for any more, and one that is refused.
    let given_up = [NewMessage { id: "given-up".into(), ..message("m") }];
    tokio::select! { biased;
        posted = owner.store.post(&given_up) => panic!("the store is busy: {posted:?}"),
        () = tokio::task::yield_now() => {}
    };
    let refused = owner.store.post(&[NewMessage { id: "nul\0".into(), ..message("m") }]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Rejected(_)), "{refused:?}");
    while owner.store.inner.posts.waiting() < 51 {
        tokio::task::yield_now().await;
    }
    owner.store.inner.directory.persisted.lock().clear();
    drop(held);
    let mut inserted = 0;
    for posted in waiting {
        let posted = posted.await.unwrap().unwrap();
        assert_eq!(posted[1], Posted::Inserted);
        inserted += usize::from(posted[0] == Posted::Inserted);
    }
    assert_eq!(inserted, 25, "of two that post one message, one is told that it was there");
    assert_eq!(owner.store.inner.directory.persisted.lock().len(), 1, "syncs");
    assert_eq!(owner.store.post(&given_up).await.unwrap(), [Posted::Inserted], "what was given up was not written");
}

#[tokio::test]
async fn a_shard_of_a_life_that_was_ended_was_not_released_whenever_it_is_claimed() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    let start = Claim {
        incarnation: Incarnation(2),
        host: "host-0".into(),
        shards: vec![ShardId(8)],
        given_up: Vec::new(),
        shard_count: 16,
        hash_version: 1,
        lease: Duration::from_secs(60),
        kind: ClaimKind::Start,
        presence: Presence::default(),
    };
    assert!(owner.store.claim(&start).await.unwrap().granted[0].clean, "nobody has had it");
    assert!(!claim(&owner.store, 2).await.granted[0].clean);
}

#[tokio::test]
async fn a_directory_whose_epochs_are_damaged_is_not_opened() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    owner.table(Table::Meta).insert([SHARD_PREFIX, &key::first_of(SHARD)].concat(), "?").unwrap();
    drop(owner);
    let refused = FjallStore::open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains(r"shard/\x00\x00\x00\x07"), "{refused}");
}

#[tokio::test]
async fn a_store_left_unfinished_by_a_crash_is_made_anew() {
    let dir = TempDir::new().unwrap();
    let unfinished = dir.path().join("data.unfinished");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("0.jnl"), "half").unwrap();
    Owner::of(&dir, 1).await.write(vec![Op::PutAlarm(alarm("a", 1, 1))]).await;
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn a_message_removed_late_does_not_take_its_successor_along() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    owner.store.post(&[message("m")]).await.unwrap();
    let earlier = InboxKey { arrived: Timestamp::from_millis(1), name: name(), id: "m".into() };
    owner.write(vec![Op::RemoveMessage(earlier)]).await;
    let Rows::Inbox(inbox) = owner.load(After::Inbox(None)).await.rows else { panic!("messages were asked for") };
    assert_eq!(inbox.len(), 1);
}

#[tokio::test]
async fn pages_of_the_last_shard_end_with_it() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    for shard in [0, 6, 7, 8, u32::MAX] {
        owner.store.post(&[NewMessage { shard: ShardId(shard), ..message("m") }]).await.unwrap();
    }
    let page = |shard, after| Page::new(ShardId(shard), after, 10);
    let pages = [page(7, After::Inbox(None)), page(u32::MAX, After::Inbox(None)), page(9, After::Inbox(None))];
    let counts = owner.store.load(&pages).await.unwrap().into_iter().map(|loaded| match loaded.rows {
        Rows::Inbox(rows) => rows.len(),
        _ => panic!("messages were asked for"),
    });
    assert_eq!(counts.collect::<Vec<_>>(), [1, 1, 0]);
    let last = AlarmKey { due: Timestamp::MAX, name: name(), id: "z".into() };
    assert_eq!(owner.load(After::Alarms(Some(last))).await.rows, Rows::Alarms(vec![]));
    drop(owner);
    let reopened = FjallStore::open(dir.path()).unwrap();
    let all = [0, 6, 7, 8, u32::MAX].map(ShardId);
    assert_eq!(reopened.inner.state.lock().inbox.iter().copied().collect::<Vec<_>>(), all);
}

#[tokio::test]
async fn a_range_the_wrong_way_round_is_empty() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    owner.write(vec![Op::Put { name: name(), key: "k".into(), value: Bytes::from_static(b"v") }]).await;
    let range = ReadRange::Storage("z".into(), Some("a".into()));
    let read = owner.store.read(&Read::new(SHARD, name(), range, 10)).await.unwrap();
    assert_eq!(read.rows, ReadRows::Storage(vec![]));
}

#[tokio::test]
async fn a_table_that_is_written_now_and_then_keeps_few_files() {
    let dir = TempDir::new().unwrap();
    let mut owner = Owner::of(&dir, 1).await;
    for n in 0..40 {
        let row = DeadRow::Alarm(alarm(&format!("{n:03}"), 1, 1));
        let letter = DeadLetter { died_at: Timestamp::from_millis(n), reason: "it never worked".into(), row };
        owner.write(vec![Op::PutDead(letter)]).await;
        // As when a journal is full: its rows become a file, whose keys follow those of the last.
        owner.table(Table::Dead).rotate_memtable_and_wait().unwrap();
        owner.store.inner.directory.has_written(64 * 1024 * 1024);
        owner.write(vec![]).await;
        // Behind what that write has asked for.
        owner.store.threads.run(Purpose::Tidying, || ()).await.unwrap();
        let files = owner.table(Table::Dead).table_count();
        assert!(files <= 16, "{files} files after {n} rows");
    }
    let Rows::Dead(letters) = owner.load(After::Dead(None)).await.rows else { panic!("dead letters were asked for") };
    assert_eq!(letters.len(), 40);
}

/// The number of threads of stores in this process.
#[cfg(target_os = "linux")]
fn threads_of_stores() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = names.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "fjall-store").count()
}

#[cfg(target_os = "linux")]
#[test]
fn a_store_goes_on_while_all_blocking_threads_are_busy_and_its_own_end_with_it() {
    // In a process of its own: other tests have stores, too.
    const ALONE: &str = "FJALL_TEST_ALONE";
    let test = "fjall::tests::a_store_goes_on_while_all_blocking_threads_are_busy_and_its_own_end_with_it";
    if std::env::var_os(ALONE).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        assert!(child.args([test, "--exact"]).env(ALONE, "1").status().unwrap().success());
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build().unwrap();
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let hold = Arc::new(Mutex::new(hold));
    runtime.block_on(async {
        for _ in 0..2 {
            let hold = hold.clone();
            // Until the end of the test.
            tokio::task::spawn_blocking(move || hold.lock().recv().is_ok());
        }
        let dir = TempDir::new().unwrap();
        let mut owner = Owner::of(&dir, 1).await;
        owner.write(vec![Op::PutAlarm(alarm("a", 1, 1))]).await;
        owner.store.post(&[message("m")]).await.unwrap();
        assert_eq!(owner.alarms().await.0, [("a".into(), 1)]);
        owner.store.renew(&Renewal::new(owner.incarnation, Duration::from_secs(60))).await.unwrap();
        let clone = owner.store.clone();
        drop(owner);
        let all = Purpose::ALL.map(Purpose::threads).iter().sum::<usize>();
        // A thread bears its name only once it runs.
        while threads_of_stores() < all {
            std::thread::yield_now();
        }
        assert_eq!(threads_of_stores(), all);
        drop(clone);
        FjallStore::open(dir.path()).unwrap();
    });
    drop(release);
    // The last of them may be on its way.
    while threads_of_stores() > 0 {
        std::thread::yield_now();
    }
}

#[tokio::test(start_paused = true)]
async fn on_a_simulated_clock_a_paused_clock_waits_for_the_store() {
    let dir = TempDir::new().unwrap();
    let clock = Arc::new(stable_interfaces::testing::SimClock::new(Timestamp::from_millis(0)));
    let store = FjallStore::builder(dir.path()).clock(clock.clone()).open().unwrap();
    for n in 0..20 {
        let messages = [NewMessage { id: n.to_string().into(), ..message("m") }];
        tokio::select! { biased;
            posted = store.post(&messages) => assert_eq!(posted.unwrap(), [Posted::Inserted]),
            () = clock.sleep(Duration::from_millis(1)) => panic!("time has passed meanwhile"),
        }
    }
}

#[tokio::test]
async fn a_call_that_panics_stops_the_store_and_not_its_threads() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    for _ in 0..20 {
        let answer = owner.store.blocking::<()>(Purpose::Writing, |_| panic!("halfway")).await;
        assert!(matches!(&answer, Err(StoreError::Stopped(why)) if why.to_string() == "halfway"), "{answer:?}");
    }
    let refused = owner.store.post(&[message("m")]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Stopped(_)), "{refused:?}");
    assert_eq!(owner.alarms().await.0, []);
}

#[tokio::test]
async fn a_post_is_hinted_to_everyone_who_watches() {
    let dir = TempDir::new().unwrap();
    let owner = Owner::of(&dir, 1).await;
    let mut hints = owner.store.watch(owner.incarnation).await.unwrap();
    owner.store.post(&[message("m")]).await.unwrap();
    assert_eq!(hints.next().await, Some(Hint::Inbox(SHARD)));
}
