//! The end of a link that has to go, over a pipe that holds a few bytes and on a clock that runs ahead: whoever takes its last words has all of them, and
//! whoever does not is no longer waited for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;
use crate::clock::{Clock as _, Timestamp, within};
use crate::testing::SimClock;

/// Gives back what it is sent.
#[derive(Debug)]
struct Echo;

impl Door for Echo {
    fn answer(&self, request: Bytes) -> Answering {
        Box::pin(std::future::ready(request))
    }
}

/// The caller of a link that has asked, over a pipe that holds so many bytes, and whose answer is ready when another one has its place.
async fn that_has_to_go(pipe: usize, request: &[u8]) -> (DuplexStream, JoinHandle<io::Result<()>>, SimClock) {
    let clock = SimClock::new(Timestamp::UNIX_EPOCH);
    let own = Introduction {
        host: "host-1".into(),
        shards: 64,
        hash_version: 1,
        store: Arc::default(),
        clock: Arc::new(clock.clone()),
    };
    let (mut caller, called) = duplex(pipe);
    let room = Room::new(1);
    let seat = room.take().expect("there is room");
    let talking = tokio::spawn(async move {
        let answers = Arc::new(Answers { outbox: Mutex::default(), unwritten: AtomicUsize::new(0), seat });
        let (door, closing): (Arc<dyn Door>, _) = (Arc::new(Echo), watch::Sender::new(false));
        let (called, closes) = (Box::new(called), closing.subscribe());
        talk(called, Frames::new(), BytesMut::new(), &door, &own, answers, closes).await
    });
    let mut asked = BytesMut::new();
    put(&mut asked, Kind::Last, 1, request);
    caller.write_all(&asked).await.unwrap();
    clock.sleep(Duration::from_secs(1)).await;
    room.take().expect("nothing is under way on the other one");
    (caller, talking, clock)
}

/// All that is heard by a caller that takes 64 bytes every four seconds.
async fn heard_slowly(mut caller: DuplexStream, clock: &SimClock) -> BytesMut {
    let (mut heard, mut some) = (BytesMut::new(), [0; 64]);
    loop {
        clock.sleep(Duration::from_secs(4)).await;
        match caller.read(&mut some).await.unwrap() {
            0 => return heard,
            bytes => heard.extend_from_slice(&some[..bytes]),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_has_to_go_and_takes_neither_its_last_answer_nor_the_goodbye_is_gone_after_seconds() {
    let mut answer = BytesMut::new();
    put(&mut answer, Kind::Last, 1, b"x");
    // The pipe is full with the answer, and before the end of it.
    for pipe in [answer.len(), answer.len() - 1] {
        let (_caller, talking, clock) = that_has_to_go(pipe, b"x").await;
        let ended = within(&clock, Duration::from_secs(11), talking).await.expect("it is waited for").unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_has_to_go_and_takes_its_last_answer_slowly_has_all_of_it_and_the_goodbye() {
    let request = [7; 300];
    let (caller, _talking, clock) = that_has_to_go(64, &request).await;
    let mut heard = heard_slowly(caller, &clock).await;
    let mut frames = Frames::new();
    let heard: Vec<_> = std::iter::from_fn(|| frames.next(&mut heard).unwrap()).collect();
    assert_eq!(heard.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [Kind::Last, Kind::Goodbye]);
    assert_eq!(heard[0].part, request[..]);
}

#[tokio::test(start_paused = true)]
async fn whoever_has_to_go_and_takes_its_last_answer_ever_so_slowly_is_gone_after_half_a_minute() {
    let (caller, _talking, clock) = that_has_to_go(64, &[7; 10_000]).await;
    let began = clock.elapsed();
    let heard = heard_slowly(caller, &clock).await;
    assert!(heard.len() < 1_000, "{}", heard.len());
    assert!(clock.elapsed() - began < LOOK * (SILENT_LOOKS + 4));
}
