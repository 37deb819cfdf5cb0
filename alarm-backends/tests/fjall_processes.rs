//! The embedded store across processes: the lock, `kill -9`, and a disk that takes no more.
//!
//! A test here starts its own binary again as the child: the same test function, told by an environment variable to play the
//! other part. The child reports on its standard output, one line each time a write has been acknowledged.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use alarm_backends::FjallStore;
use bytes::Bytes;
use stable_interfaces::store::{
    After, AlarmRow, Attempts, Batch, Claim, ClaimKind, Epoch, Incarnation, InstanceName, Lane, NewMessage, Op, Page,
    Presence, Read, ReadRange, ReadRows, Renewal, Revision, Rows, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError, Timestamp};
use tempfile::TempDir;

const DIR: &str = "FJALL_TEST_DIR";
const SHARDS: [ShardId; 2] = [ShardId(0), ShardId(1)];
/// The number of batches that an alarm outlives the one that set it.
const LIFE: u64 = 5;

/// The directory to work on, if this process is the child.
fn child_dir() -> Option<PathBuf> {
    env::var_os(DIR).map(PathBuf::from)
}

/// The test binary itself, about to run one test as the child on `dir`.
fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(DIR, dir).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// A word of a child, as it says it: the words behind `said`.
fn words(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| Some(line.split_once("said ")?.1.to_owned()))
}

fn say(word: impl std::fmt::Display) {
    println!("said {word}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Fails if `work` takes longer than any store may: one that stops accepting after a crash would hang, not err.
fn within_a_minute<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    match wait.recv_timeout(Duration::from_secs(60)) {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn a_directory_opens_once() {
    let dir = TempDir::new().unwrap();
    let store = FjallStore::open(dir.path()).unwrap();
    let refused = FjallStore::open(dir.path()).unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, StoreError::Open(..)), "{refused:?}");
    assert!(text.contains(dir.path().to_str().unwrap()) && text.contains("already open"), "{text}");
    assert_eq!(text.lines().count(), 1);

    let clone = store.clone();
    drop(store);
    FjallStore::open(dir.path()).unwrap_err();
    drop(clone);
    // A child that another test starts right now has the lock too, from its fork to its exec: opening waits for that.
    FjallStore::open(dir.path()).unwrap();
}

#[test]
fn a_directory_opens_in_one_process() {
    if let Some(dir) = child_dir() {
        say(FjallStore::open(dir).unwrap_err());
        return;
    }
    let dir = TempDir::new().unwrap();
    let _store = FjallStore::open(dir.path()).unwrap();
    let mut child = child("a_directory_opens_in_one_process", dir.path()).spawn().unwrap();
    let said: Vec<String> = words(&mut child).collect();
    assert!(child.wait().unwrap().success(), "{said:?}");
    let [refused] = &said[..] else { panic!("{said:?}") };
    let open = format!("already open by process {}", std::process::id());
    assert!(refused.contains(&open) && refused.contains("name another directory"), "{refused}");
}

#[test]
fn a_path_that_is_no_directory_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let refused = FjallStore::open(&path).unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, StoreError::Open(_, Some(_))), "{refused:?}");
        assert!(text.contains(path.to_str().unwrap()) && text.contains("not a directory"), "{text}");
    }
}

#[test]
fn a_directory_that_takes_no_files_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    // Not even root may write a file of this name now.
    std::fs::create_dir(dir.path().join("lock")).unwrap();
    let refused = FjallStore::open(dir.path()).unwrap_err();
    assert!(matches!(refused, StoreError::Open(_, Some(_))), "{refused:?}");
    let said = format!("{}: this process may not write there", dir.path().display());
    assert!(refused.to_string().contains(&said), "{refused}");
}

#[test]
fn a_mistyped_path_is_no_new_store() {
    let dir = TempDir::new().unwrap();
    let below = dir.path().join("not-there/orders");
    let refused = FjallStore::open(&below).unwrap_err().to_string();
    assert!(
        refused.contains(below.to_str().unwrap()) && refused.contains("is not there; create that first"),
        "{refused}"
    );
    assert!(!dir.path().join("not-there").exists());
    FjallStore::open(dir.path().join("orders")).unwrap();
}

#[test]
fn a_directory_of_other_things_is_refused_and_left_as_it_is() {
    for other in ["notes.txt", "data", "locks"] {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join(other)).unwrap();
        let refused = FjallStore::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(dir.path().to_str().unwrap()) && refused.contains("other files"), "{refused}");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [other]);
    }
    // A new volume is empty, and somebody's notes do not make a store another's.
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    drop(FjallStore::open(dir.path()).unwrap());
    std::fs::write(dir.path().join("notes.txt"), "ours").unwrap();
    FjallStore::open(dir.path()).unwrap();
}

#[test]
fn a_store_that_must_exist_is_not_made() {
    let dir = TempDir::new().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("orders")] {
        let refused = FjallStore::builder(&path).must_exist(true).open().unwrap_err().to_string();
        assert!(refused.contains(path.to_str().unwrap()) && refused.contains("must_exist"), "{refused}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
    }
    drop(FjallStore::open(dir.path()).unwrap());
    FjallStore::builder(dir.path()).must_exist(true).open().unwrap();
}

/// The writer of the crash tests: write `n` sets four alarms on each of two shards and notes `n` in their storage, and removes
/// the alarms of write `n - LIFE`. So the number in the storage tells everything else that must be there.
struct Writer {
    store: FjallStore,
    incarnation: Incarnation,
    epochs: Vec<Epoch>,
    seq: u64,
}

fn name(shard: ShardId) -> InstanceName {
    InstanceName { interface: "writer".into(), instance: format!("w-{shard}").into() }
}

fn alarms(shard: ShardId, n: u64) -> impl Iterator<Item = AlarmRow> {
    (0..4).map(move |i| {
        // Long enough that buffers in memory fill up and files are written; different, so that it does not compress away.
        let mut rng = fastrand::Rng::with_seed(n * 31 + i);
        let mut meta = vec![0; 4_000];
        rng.fill(&mut meta);
        let due = Timestamp::from_millis(i64::try_from(n).unwrap());
        AlarmRow {
            name: name(shard),
            id: format!("{n}-{i}").into(),
            due,
            scheduled_at: due,
            revision: Revision { epoch: Epoch(0), counter: n },
            attempts: Attempts::default(),
            meta: meta.into(),
        }
    })
}

impl Writer {
    async fn claim(store: FjallStore, incarnation: u64) -> Result<Writer, StoreError> {
        let claim = Claim {
            incarnation: Incarnation(incarnation),
            host: "host-0".into(),
            shards: SHARDS.to_vec(),
            given_up: Vec::new(),
            shard_count: 2,
            hash_version: 1,
            lease: Duration::from_secs(600),
            kind: ClaimKind::Start,
            presence: Presence::default(),
        };
        let claimed = store.claim(&claim).await?;
        let epochs = claimed.granted.iter().map(|grant| grant.epoch).collect();
        Ok(Writer { store, incarnation: claim.incarnation, epochs, seq: 0 })
    }

    async fn write(&mut self, n: u64) -> Result<(), StoreError> {
        self.seq += 1;
        let batch = |(&shard, &epoch): (&ShardId, &Epoch)| {
            let mut ops: Vec<_> = alarms(shard, n).map(Op::PutAlarm).collect();
            if let Some(old) = n.checked_sub(LIFE) {
                let remove =
                    |alarm: AlarmRow| Op::RemoveAlarm { name: alarm.name, id: alarm.id, revision: alarm.revision };
                ops.extend(alarms(shard, old).map(remove));
            }
            let value = n.to_string().into();
            ops.push(Op::Put { name: name(shard), key: "n".into(), value });
            Batch { shard, epoch, ops: ops.into() }
        };
        let batches = SHARDS.iter().zip(&self.epochs).map(batch).collect();
        let write = Write { incarnation: self.incarnation, lane: Lane(0), seq: self.seq, batches };
        self.store.commit(&write).await?.into_iter().collect()
    }
}

/// Checks that the store holds exactly what one of the writes in `possible` left, and says which.
async fn verify(store: &FjallStore, possible: RangeInclusive<u64>) -> u64 {
    let mut last = BTreeMap::new();
    for shard in SHARDS {
        let range = ReadRange::Storage("".into(), None);
        let read = store.read(&Read::new(shard, name(shard), range, 10)).await.unwrap();
        let ReadRows::Storage(rows) = read.rows else { panic!("storage was asked for") };
        let n = rows.first().map_or(0, |(_, value)| std::str::from_utf8(value).unwrap().parse().unwrap());
        assert!(
            possible.contains(&n),
            "shard {shard} is at write {n}, but {possible:?} were acknowledged or under way"
        );
        last.insert(shard, n);

        let page = Page::new(shard, After::Alarms(None), 1_000);
        let loaded = store.load(&[page]).await.unwrap().remove(0);
        assert_eq!(loaded.damaged, []);
        let first = (n + 1).saturating_sub(LIFE).max(1);
        let expected: Vec<_> = (first..=n).flat_map(|n| alarms(shard, n)).collect();
        assert!(loaded.rows == Rows::Alarms(expected), "shard {shard} does not hold what write {n} left");
    }
    assert_eq!(last[&SHARDS[0]], last[&SHARDS[1]], "one commit is one write of the database");
    last[&SHARDS[0]]
}

/// A store that comes back and then takes no writes would be lost as well: <https://github.com/fjall-rs/fjall/issues/257>
/// reports that of its database, so each round ends with a write. `KILLS=n` asks for another number of rounds.
#[test]
fn nothing_acknowledged_is_lost_by_kill_9_and_the_store_goes_on() {
    if let Some(dir) = child_dir() {
        runtime().block_on(async {
            let store = FjallStore::open(dir).unwrap();
            let first: u64 = env::var("FJALL_TEST_FIRST").unwrap().parse().unwrap();
            let mut writer = Writer::claim(store, first).await.unwrap();
            for n in first.. {
                writer.write(n).await.unwrap();
                say(n);
            }
        });
    }
    let kills: u64 = env::var("KILLS").map_or(30, |kills| kills.parse().unwrap());
    let mut rng = fastrand::Rng::with_seed(kills);
    // A few directories, because the moments in which one is made are worth a kill too.
    let (mut dir, mut last) = (TempDir::new().unwrap(), 0);
    for kill in 0..kills {
        if kill > 0 && kill % kills.div_ceil(3) == 0 {
            (dir, last) = (TempDir::new().unwrap(), 0);
        }
        let mut child = child("nothing_acknowledged_is_lost_by_kill_9_and_the_store_goes_on", dir.path())
            .env("FJALL_TEST_FIRST", (last + 1).to_string())
            .spawn()
            .unwrap();
        let mut heard = words(&mut child);
        // Some children are killed while they open, the others somewhere after a write or many.
        let writes = if kill % 5 == 0 { 0 } else { rng.usize(1..60) };
        // And not all of these just after an acknowledgement.
        let spins = rng.u32(..2_000_000);
        let (path, before) = (dir.path().to_owned(), last);
        last = within_a_minute(&format!("kill {kill}, after write {before}"), move || {
            let mut acknowledged = before;
            for word in heard.by_ref().take(writes) {
                acknowledged = word.parse().unwrap();
            }
            for _ in 0..spins {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
            child.wait().unwrap();
            // It went on while we were listening: the pipe still holds what it said before its end.
            if let Some(word) = heard.last() {
                acknowledged = word.parse().unwrap();
            }
            assert!(acknowledged >= before + writes as u64, "the child ended by itself");
            runtime().block_on(async {
                let store = FjallStore::open(path).unwrap();
                let last = verify(&store, acknowledged..=acknowledged + 1).await;
                let mut writer = Writer::claim(store, u64::MAX / 2 - kill).await.unwrap();
                writer.write(last + 1).await.unwrap();
                verify(&writer.store, last + 1..=last + 1).await
            })
        });
    }
}

#[cfg(unix)]
#[test]
fn a_store_that_cannot_write_stops_and_has_everything_after_a_restart() {
    const TEST: &str = "a_store_that_cannot_write_stops_and_has_everything_after_a_restart";
    if let Some(dir) = child_dir() {
        runtime().block_on(fill_up(&dir));
        return;
    }
    let dir = TempDir::new().unwrap();
    // The database makes its journal at full length, which the child could not.
    drop(FjallStore::open(dir.path()).unwrap());
    // No file may grow beyond 2 MiB: to the store a disk that is full. Ignored signals stay ignored over `exec`.
    let binary = child(TEST, dir.path());
    let mut limited = Command::new("bash");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -S -f 2048; exec \"$0\" \"$@\""])
        .arg(binary.get_program())
        .args(binary.get_args());
    limited.env(DIR, dir.path()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = limited.spawn().unwrap();
    let said: Vec<String> = words(&mut child).collect();
    assert!(child.wait().unwrap().success(), "{said:?}");
    let (last, said) = said.split_last().unwrap();
    assert_eq!(last, "stopped");
    let acknowledged: u64 = said.last().expect("some writes fit").parse().unwrap();

    let path = dir.path().to_owned();
    within_a_minute("reopening after a full disk", move || {
        runtime().block_on(async {
            let store = FjallStore::open(path).unwrap();
            let last = verify(&store, acknowledged..=acknowledged + 1).await;
            let mut writer = Writer::claim(store, 2).await.unwrap();
            for n in last + 1..last + 100 {
                writer.write(n).await.unwrap();
            }
            verify(&writer.store, last + 99..=last + 99).await
        })
    });
}

/// The child of the test above: writes until it cannot, then checks that all writing is refused and reading is not.
#[cfg(unix)]
async fn fill_up(dir: &Path) {
    let store = FjallStore::open(dir).unwrap();
    let mut writer = Writer::claim(store, 1).await.unwrap();
    let mut n = 1;
    let failed = loop {
        match writer.write(n).await {
            Ok(()) => say(n),
            Err(error) => break error,
        }
        n += 1;
    };
    assert!(matches!(failed, StoreError::Stopped(_)) && failed.may_have_happened(), "{failed:?}");
    // Room on the disk changes nothing: what was written last may be torn, and nothing may come behind it.
    let me = std::process::id().to_string();
    let room = Command::new("prlimit").args(["--pid", &me, "--fsize=unlimited:"]).status().unwrap();
    assert!(room.success());
    let store = writer.store.clone();
    for attempt in 0..3 {
        let again = writer.write(n + attempt).await.unwrap_err();
        assert!(matches!(again, StoreError::Stopped(_)), "{again:?}");
    }
    let message =
        NewMessage { shard: SHARDS[0], name: name(SHARDS[0]), id: "m".into(), headers: vec![], body: Bytes::new() };
    let refusals: [Option<StoreError>; 4] = [
        store.post(&[message]).await.err(),
        store.renew(&Renewal::new(writer.incarnation, Duration::from_secs(60))).await.err(),
        store.release(writer.incarnation, &SHARDS.map(|shard| (shard, None))).await.err(),
        Writer::claim(store.clone(), 2).await.err(),
    ];
    for refusal in refusals {
        assert!(matches!(refusal, Some(StoreError::Stopped(_))), "{refusal:?}");
    }
    assert_eq!(verify(&store, n - 1..=n - 1).await, n - 1);
    say("stopped");
}

#[tokio::test]
async fn a_post_answered_as_inserted_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    let message = NewMessage {
        shard: SHARDS[0],
        name: name(SHARDS[0]),
        id: "m".into(),
        headers: vec![("content-type".into(), "text/plain".into())],
        body: Bytes::from_static(b"hello"),
    };
    for expected in [Posted::Inserted, Posted::Duplicate] {
        let store = FjallStore::open(dir.path()).unwrap();
        assert_eq!(store.post(std::slice::from_ref(&message)).await.unwrap(), [expected]);
    }
}
