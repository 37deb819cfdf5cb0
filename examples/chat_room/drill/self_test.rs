//! The self-test: members talk in several rooms while the host is killed, and in the end everyone must have seen the same.
//!
//! Members live in this process, which nobody kills; the host is a child. One member of each room does not come back after the
//! kill; the others do, and say again what they have not seen come back. A room of its own shows what becomes of one who
//! does not read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use examples::process::HostProcess;
use examples::{BoxError, client};
use stable_interfaces::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::drill::client::{Member, News};
use crate::drill::verdict::{Kill, Log, Report, SlowReader, Transcript};
use crate::protocol::{Entry, TOO_SLOW, What};
use crate::room::HISTORY;

const ROOMS: usize = 4;
/// Members of a room that talk; the last of them does not come back.
const MEMBERS: usize = 5;
/// The number of times that each says something.
const SAYS: usize = 12;
/// From one thing that a member says to the next, in milliseconds.
const INTERVAL: std::ops::Range<u64> = 20..80;
/// One in so many times a member says again at once what has not come back yet.
const IMPATIENT: u8 = 4;
/// The part of all this that has come back when the host is killed.
const KILL_AT: usize = ROOMS * MEMBERS * SAYS / 3;
/// The time that the host is down: longer than members may be silent, which nobody must be blamed for.
const DOWN: Duration = Duration::from_millis(2_200);
/// After how long a silent member counts as gone, in seconds for the command line.
const GONE_AFTER: u32 = 2;
/// The most by which it may be announced later than that.
const LATE: Duration = Duration::from_secs(3);
/// The limit of any other part.
const PATIENCE: Duration = Duration::from_secs(10);
/// The number of texts said in the room with a slow reader: more than its buffers hold, and then no more than a history.
const FLOOD: usize = 170;
const FLOOD_TEXT: usize = 4_000;
/// The most of these that may be on their way.
const FLOOD_PENDING: usize = 16;
/// The least that the kernel may be asked to receive ahead, in bytes; it makes somewhat more of it.
const LITTLE: u32 = 4_096;

const _: () = assert!(MEMBERS * (SAYS + 1) + 10 <= HISTORY, "a history holds all that happens in a room");

/// The numbers of what was said and seen, over all rooms.
#[derive(Debug, Default)]
struct Counts {
    said: AtomicUsize,
    /// Came back to the one who said it: it is durable.
    acknowledged: AtomicUsize,
    /// Announced as gone, as the observers see it.
    gone: AtomicUsize,
}

/// The part of the self-test in which members are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Talk,
    /// Clients that do not come back stay away from now on.
    Killed,
    /// Read up to this number in each room, and be done.
    Finish(Arc<BTreeMap<String, u64>>),
}

/// The limit of it all.
pub(crate) const LIMIT: Duration = Duration::from_secs(28);

/// Runs the self-test with the host's data in `data`.
pub(crate) async fn run(data: &Path) -> Result<Report, BoxError> {
    let args = ["--data".into(), data.join("host").into(), "--gone-after".into(), GONE_AFTER.to_string().into()];
    let mut host = HostProcess::new(args)?;
    host.start().await?;
    let server = host.address();
    println!("the host listens at {}", host.url());
    fetch_page(&host).await?;

    let counts = Arc::new(Counts::default());
    let (stage, at_stage) = watch::channel(Stage::Talk);
    let mut members = JoinSet::new();
    for room in rooms() {
        for n in 0..MEMBERS {
            let (member, log) = (Member::new(server, &room, &format!("member-{n}")), Log::new(&room, n + 1 < MEMBERS));
            members.spawn(take_part(member, log, SAYS, at_stage.clone(), counts.clone()));
        }
    }

    let (acknowledged, unacknowledged) = worth_killing(&counts).await?;
    stage.send_replace(Stage::Killed);
    let pid = host.kill().await?;
    println!("process {pid} is dead, with {acknowledged} messages acknowledged and {unacknowledged} under way");
    sleep(DOWN).await;
    let restarted = now();
    host.start().await?;
    let back = now();
    println!("back after {} ms", back.since(restarted).as_millis());

    for room in rooms() {
        let observer = Member::new(server, &room, "observer");
        members.spawn(take_part(observer, Log::new(&room, true), 0, at_stage.clone(), counts.clone()));
    }
    let gone_after = Duration::from_secs(GONE_AFTER.into());
    let settled = async {
        // Long enough to announce someone wrongly as well.
        sleep(gone_after + LATE / 3).await;
        let is_settled = || counts.gone.load(Ordering::Relaxed) >= ROOMS && is_quiet(&counts);
        let _ = timeout(LATE + PATIENCE, until(is_settled)).await;
    };
    let (slow_reader, ()) = tokio::join!(slow_reader(server), settled);

    let mut histories = BTreeMap::new();
    for room in rooms() {
        histories.insert(room.clone(), history(server, &room).await?);
    }
    let ends = histories.iter().map(|(room, history)| (room.clone(), history.last().map_or(0, |entry| entry.number)));
    stage.send_replace(Stage::Finish(Arc::new(ends.collect())));
    let logs = timeout(PATIENCE, members.join_all()).await.map_err(|_| "members wait for entries that do not come")?;

    let farewell = farewell(server, &mut host).await?;
    let kill = Kill { unacknowledged, restarted, back, gone_after, late: LATE };
    Ok(Report::new(Transcript { histories, logs }, &kill, slow_reader, farewell))
}

fn rooms() -> impl Iterator<Item = String> {
    (0..ROOMS).map(|n| format!("room {n}"))
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Tells whether everyone who talks and is there has said everything and seen it come back.
fn is_quiet(counts: &Counts) -> bool {
    let (said, acknowledged) = (counts.said.load(Ordering::Relaxed), counts.acknowledged.load(Ordering::Relaxed));
    // What was said by those who stay away may never come back to them.
    said >= ROOMS * (MEMBERS - 1) * SAYS && acknowledged + ROOMS * SAYS >= said
}

async fn fetch_page(host: &HostProcess) -> Result<(), BoxError> {
    let response = client(PATIENCE).get(host.url()).send().await?.error_for_status()?;
    let is_html = response.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let page = response.text().await?;
    if !is_html || !page.contains("new WebSocket(") || !page.trim_end().ends_with("</html>") {
        return Err("the page is not the page".into());
    }
    Ok(())
}

/// Waits until enough has been said and something is under way; how much is acknowledged and how much is not.
async fn worth_killing(counts: &Counts) -> Result<(usize, usize), BoxError> {
    let look = || {
        // In this order, so that what comes back between the two is not counted as under way.
        let acknowledged = counts.acknowledged.load(Ordering::SeqCst);
        (acknowledged, counts.said.load(Ordering::SeqCst).saturating_sub(acknowledged))
    };
    let is_time = || matches!(look(), (acknowledged, under_way) if acknowledged >= KILL_AT && under_way > 0);
    let soon = async {
        while !is_time() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, soon).await.map_err(|_| "too little was said to be worth a kill")?;
    Ok(look())
}

/// One member, who talks and listens until it may go.
async fn take_part(
    mut member: Member,
    mut log: Log,
    says: usize,
    mut stage: watch::Receiver<Stage>,
    counts: Arc<Counts>,
) -> Log {
    log.name.clone_from(&member.name);
    let is_observer = says == 0;
    let note = |log: &mut Log, news: News| {
        if let News::Entry(Entry { who, what, .. }) = &news {
            match what {
                What::Said { .. } if *who == log.name => drop(counts.acknowledged.fetch_add(1, Ordering::SeqCst)),
                What::Gone if is_observer => drop(counts.gone.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
        }
        log.note(news);
    };
    let mut next_say = Instant::now();
    'joins: loop {
        for news in member.join().await {
            note(&mut log, news);
        }
        loop {
            let now = stage.borrow().clone();
            match now {
                Stage::Finish(ends) if log.seen() >= ends.get(&log.room).copied().unwrap_or(0) => return log,
                Stage::Killed if !log.returns && log.is_out() => return log,
                _ if log.is_refused() => return log,
                _ if log.is_out() => continue 'joins,
                _ => {}
            }
            tokio::select! { biased;
                news = member.next() => note(&mut log, news),
                _ = stage.changed() => {}
                () = sleep_until(next_say), if log.said.len() < says => {
                    next_say = Instant::now() + Duration::from_millis(fastrand::u64(INTERVAL));
                    let tag = fastrand::u64(..1 << 53);
                    log.said.push(tag);
                    counts.said.fetch_add(1, Ordering::SeqCst);
                    member.say(tag, format!("{}: {tag}", log.room)).await;
                    if fastrand::u8(..IMPATIENT) == 0 {
                        member.insist().await;
                    }
                }
            }
        }
    }
}

/// All that a newcomer is told has happened in a room.
async fn history(server: SocketAddr, room: &str) -> Result<Vec<Entry>, BoxError> {
    let mut auditor = Member::new(server, room, "auditor");
    let news = timeout(PATIENCE, auditor.join()).await.map_err(|_| "the host does not let an auditor in")?;
    Ok(entries(news))
}

fn entries(news: Vec<News>) -> Vec<Entry> {
    news.into_iter().filter_map(|news| if let News::Entry(entry) = news { Some(entry) } else { None }).collect()
}

/// Somebody talks, and somebody does not read.
async fn slow_reader(server: SocketAddr) -> SlowReader {
    const ROOM: &str = "a room with a slow reader";
    let mut slow = Member::new(server, ROOM, "slow").receive_buffer(LITTLE);
    let mut before = entries(slow.join().await);
    let over = Notify::new();
    let talks = async {
        let mut talker = Member::new(server, ROOM, "talker");
        let mut heard = entries(talker.join().await);
        for n in 0..FLOOD {
            talker.say(fastrand::u64(..1 << 53), format!("{n:0FLOOD_TEXT$}")).await;
            while talker.pending() > if n + 1 < FLOOD { FLOOD_PENDING } else { 0 } {
                match talker.next().await {
                    News::Entry(entry) => heard.push(entry),
                    News::Out(_) => heard.extend(entries(talker.join().await)),
                    News::In { .. } | News::Refused(_) => {}
                }
            }
        }
        over.notify_one();
        heard
    };
    let (heard, ()) = tokio::join!(talks, slow.look_away(over.notified()));
    let reason = loop {
        match timeout(PATIENCE, slow.next()).await {
            Ok(News::Entry(entry)) => before.push(entry),
            Ok(News::Out(reason)) => break reason,
            Ok(News::In { .. } | News::Refused(_)) => {}
            Err(_) => break "nothing: it was not let go".to_owned(),
        }
    };
    let news = slow.join().await;
    let missed = news.iter().map(|news| if let News::In { missed, .. } = news { *missed } else { 0 }).sum();
    SlowReader { heard, before, after: entries(news), missed, reason, expected: TOO_SLOW }
}

/// Stops the host while somebody is there; what that one is told.
async fn farewell(server: SocketAddr, host: &mut HostProcess) -> Result<String, BoxError> {
    let mut guest = Member::new(server, "room 0", "last guest");
    guest.join().await;
    let listens = async {
        loop {
            if let News::Out(reason) = guest.next().await {
                return reason;
            }
        }
    };
    let (ended, reason) = tokio::join!(host.stop(), timeout(PATIENCE, listens));
    let ended = ended?;
    if !ended.success() {
        return Err(format!("asked to stop, the host ended with {ended}").into());
    }
    Ok(reason.map_err(|_| "the last guest was not told that the host ends")?)
}
