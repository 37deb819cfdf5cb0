//! Two ends over real sockets of this machine: what one says, the other hears, and nobody else gets in.
//!
//! Waits of seconds are run through faster, on a clock of their own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::future::{Future, pending};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use bytes::BytesMut;

use super::frame::Frames;
use super::hello::Hello;
use super::*;
use crate::clock::{Clock, Sleep, SystemClock, Timestamp};
use crate::sync::Notify;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::transport::{Answering, MAX_MESSAGE_BYTES};

/// The speed of a link's clock, as a multiple of the machine's.
const FASTER: u32 = 4;

#[derive(Debug, Default)]
struct FastClock(SystemClock);

impl Clock for FastClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed() * FASTER
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.0.sleep(duration / FASTER)
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        self.0.sleep_exact(until)
    }

    fn is_simulated(&self) -> bool {
        false
    }
}

/// Gives back what it is sent; of `"hang"` there is no end, `"slow"` takes a second, and `"very slow"` longer than a link may be silent.
#[derive(Debug)]
struct Echo(Arc<dyn Clock>);

impl Door for Echo {
    fn answer(&self, request: Bytes) -> Answering {
        let slow = self.0.sleep(Duration::from_secs(if request == "very slow" { 6 } else { 1 }));
        Box::pin(async move {
            match &*request {
                b"hang" => pending().await,
                b"slow" | b"very slow" => slow.await,
                _ => {}
            }
            request
        })
    }
}

/// Tells of each request that it is asked.
#[derive(Debug)]
struct Heard {
    door: Echo,
    asked: Arc<Notify>,
}

fn heard() -> (Arc<dyn Door>, Arc<Notify>) {
    let asked = Arc::new(Notify::new());
    (Arc::new(Heard { door: Echo(Arc::new(FastClock::default())), asked: asked.clone() }), asked)
}

impl Door for Heard {
    fn answer(&self, request: Bytes) -> Answering {
        self.asked.notify_one();
        self.door.answer(request)
    }
}

/// One host, until it is dropped.
struct Site {
    transport: Arc<TcpTransport>,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn introduction(host: &str, shards: u32) -> Introduction {
    on_store(host, shards, None)
}

/// A host that has been told the name of its store.
fn on_store(host: &str, shards: u32, store: Option<&str>) -> Introduction {
    let store: Option<Arc<str>> = store.map(Into::into);
    let store = Arc::new(OnceLock::from(store));
    Introduction { host: host.into(), shards, hash_version: 1, store, clock: Arc::new(FastClock::default()) }
}

async fn open_as(own: Introduction, transport: TcpTransport) -> Site {
    let door: Arc<dyn Door> = Arc::new(Echo(own.clock.clone()));
    open_with(own, transport, door).await
}

async fn open_with(own: Introduction, transport: TcpTransport, door: Arc<dyn Door>) -> Site {
    let transport = Arc::new(transport);
    // Also with the certificate of somebody else, with which a host does not start.
    let running = transport.begin(own, Some(door)).await.unwrap();
    Site { transport, running: tokio::spawn(running) }
}

async fn open_for(host: &str, door: Arc<dyn Door>) -> Site {
    open_with(introduction(host, 64), here(), door).await
}

async fn open(host: &str, transport: TcpTransport) -> Site {
    open_as(introduction(host, 64), transport).await
}

fn here() -> TcpTransport {
    TcpTransport::listen("127.0.0.1:0")
}

impl Site {
    fn address(&self) -> String {
        self.transport.address().unwrap().to_string()
    }

    async fn ask_at(&self, address: &str, host: &str, request: impl Into<Bytes>) -> Result<Bytes, Undelivered> {
        let to = Addressee { host: host.into(), address: Some(address.into()) };
        self.transport.send(&to, request.into()).await
    }

    async fn ask(&self, other: &Site, host: &str, request: impl Into<Bytes>) -> Result<Bytes, Undelivered> {
        self.ask_at(&other.address(), host, request).await
    }

    /// The answer of a host that is there. What was not sent is sent again: the machine may have had no time for it.
    async fn answered(&self, other: &Site, host: &str, request: impl Into<Bytes>) -> Bytes {
        let request = request.into();
        loop {
            match self.ask(other, host, request.clone()).await {
                Err(Undelivered::NotSent(_)) => tokio::task::yield_now().await,
                answer => return answer.unwrap(),
            }
        }
    }
}

impl Site {
    /// The words with which a host is refused, by itself or by the other one; `None` if it is answered.
    async fn answered_or_refused(&self, other: &Site, host: &str) -> Option<String> {
        loop {
            let answer = in_time(self.ask(other, host, "x")).await;
            match answer {
                // The machine may have had no time for it.
                Err(Undelivered::NotSent(error)) if !error.to_string().contains("store") => {}
                Err(error) => return Some(not_sent(Err(error))),
                Ok(answer) => {
                    assert_eq!(answer, "x");
                    return None;
                }
            }
        }
    }
}

/// The words of what was certainly not sent.
fn not_sent(answer: Result<Bytes, Undelivered>) -> String {
    match answer {
        Err(Undelivered::NotSent(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    crate::clock::within(&SystemClock::default(), Duration::from_secs(60), work).await.expect("it hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_of_every_size_are_answered_on_one_connection_each_with_its_own_answer() {
    let (zero, one) = (open("host-0", here()).await, open("host-1", here()).await);
    let sizes = [0, 1, 100, 32_768, 32_769, 300_000, MAX_MESSAGE_BYTES + 200_000];
    let ask = |number: usize| {
        let request = vec![u8::try_from(number % 251).unwrap(); sizes[number % sizes.len()]];
        let (zero, one) = (&zero, &one);
        async move { assert_eq!(zero.answered(one, "host-1", request.clone()).await, request) }
    };
    in_time(futures_util::future::join_all((0..200).map(ask))).await;
    assert_eq!(zero.transport.opened.get().unwrap().links.lock().len(), 1);
    // And the other way round on another one.
    assert_eq!(in_time(one.answered(&zero, "host-0", "back")).await, "back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_takes_long_holds_up_no_other_and_one_that_never_ends_is_over_with_its_host() {
    let (zero, one) = (open("host-0", here()).await, open("host-1", here()).await);
    in_time(async {
        let hanging = zero.ask(&one, "host-1", "hang");
        let mut hanging = std::pin::pin!(hanging);
        for _ in 0..3 {
            tokio::select! { biased;
                answer = &mut hanging => panic!("{answer:?}"),
                answer = zero.answered(&one, "host-1", "quick") => assert_eq!(answer, "quick"),
            }
        }
        // Seconds pass, in which the other side gives signs of life.
        tokio::select! { biased;
            answer = &mut hanging => panic!("{answer:?}"),
            () = FastClock::default().sleep(Duration::from_secs(10)) => {}
        }
        one.running.abort();
        assert!(matches!(hanging.await, Err(Undelivered::Unanswered(_))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_is_answered_before_a_host_closes_and_what_was_not_is_not_sent() {
    let (door, asked) = heard();
    let (zero, one) = (open("host-0", here()).await, open_for("host-1", door).await);
    in_time(async {
        assert_eq!(zero.answered(&one, "host-1", "first").await, "first");
        asked.notified().await;
        let (slow, ()) = tokio::join!(zero.ask(&one, "host-1", "slow"), async {
            asked.notified().await;
            one.transport.close().await;
        });
        assert_eq!(slow.unwrap(), "slow");
        not_sent(zero.ask(&one, "host-1", "late").await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_unknown_to_those_who_ask_while_a_host_closes() {
    let zero = open("host-0", here()).await;
    for round in 0..20 {
        let one = open("host-1", here()).await;
        in_time(async {
            assert_eq!(zero.answered(&one, "host-1", "first").await, "first");
            let is_over = AtomicBool::new(false);
            let asking = (0..16).map(|_| async {
                while !is_over.load(Ordering::Acquire) {
                    match zero.ask(&one, "host-1", vec![0; 300_000]).await {
                        Ok(_) => {}
                        Err(Undelivered::NotSent(_)) => tokio::task::yield_now().await,
                        Err(unknown) => panic!("{unknown:?} in round {round}"),
                    }
                }
            });
            let close = async {
                FastClock::default().sleep(Duration::from_millis(40 + round)).await;
                one.transport.close().await;
                is_over.store(true, Ordering::Release);
            };
            tokio::join!(futures_util::future::join_all(asking), close);
        })
        .await;
    }
}

/// Answers with the name that it was given.
#[derive(Debug)]
struct Named(&'static str);

impl Door for Named {
    fn answer(&self, _: Bytes) -> Answering {
        Box::pin(std::future::ready(Bytes::from_static(self.0.as_bytes())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_at_another_address_is_asked_there_though_one_of_its_name_still_answers_where_it_was() {
    let zero = open("host-0", here()).await;
    let earlier = open_for("host-1", Arc::new(Named("earlier"))).await;
    let later = open_for("host-1", Arc::new(Named("later"))).await;
    in_time(async {
        assert_eq!(zero.answered(&earlier, "host-1", "x").await, "earlier");
        assert_eq!(zero.answered(&later, "host-1", "x").await, "later");
        // Somebody who does not know an address asks where the host was found last.
        let to = Addressee { host: "host-1".into(), address: None };
        assert_eq!(zero.transport.send(&to, "x".into()).await.unwrap(), "later");
        // Nobody is called where nothing will be asked any more.
        let guests = &earlier.transport.opened.get().unwrap().guests;
        guests.until_empty().await;
    })
    .await;
}

#[tokio::test]
async fn a_request_whose_transport_ends_before_its_link_begins_is_not_sent_and_nor_is_a_later_one() {
    let transport = here();
    let running = transport.open(introduction("host-0", 64), None).await.unwrap();
    let to = Addressee { host: "host-1".into(), address: None };
    let ask = || transport.send(&to, Bytes::new());
    let (first, ()) = in_time(async { tokio::join!(ask(), async { drop(running) }) }).await;
    not_sent(first);
    not_sent(in_time(ask()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_of_another_fleet_or_not_the_one_that_was_called_is_refused_with_the_reason() {
    let one = open("host-1", here().fleet("orders")).await;
    let cases = [
        (introduction("host-0", 64), here().fleet("stock"), "host-1", "of the fleet"),
        (introduction("host-0", 128), here(), "host-1", "128 shards"),
        (introduction("host-0", 64), here(), "host-2", "and this is \"host-1\""),
    ];
    for (own, transport, host, reason) in cases {
        let zero = open_as(own, transport).await;
        let said = not_sent(in_time(zero.ask(&one, host, "x")).await);
        assert!(said.contains(reason), "{said}");
    }
    let zero = open("host-0", here()).await;
    assert_eq!(in_time(zero.answered(&one, "host-1", "x")).await, "x", "it was given no name of a fleet");
    let said =
        not_sent(in_time(zero.transport.send(&Addressee { host: "host-3".into(), address: None }, Bytes::new())).await);
    assert!(said.contains("the address of \"host-3\" is not known"), "{said}");
    // Nobody is there.
    not_sent(in_time(zero.ask_at("127.0.0.1:1", "host-2", "x")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_on_another_store_is_refused_on_both_sides_and_so_is_one_that_does_not_know_its_store_yet() {
    let one = open_as(on_store("host-1", 64, Some("7-1")), here()).await;
    let others = [("host-2", Some("7-1"), true), ("host-3", None, true), ("host-4", Some("8-1"), false)];
    for (name, store, is_let_in) in others {
        let other = open_as(on_store(name, 64, store), here()).await;
        let asked = [other.answered_or_refused(&one, "host-1").await, one.answered_or_refused(&other, name).await];
        for refused in asked {
            match refused {
                None => assert!(is_let_in, "{store:?}"),
                Some(said) => assert!(!is_let_in && said.contains("\"8-1\"") && said.contains("\"7-1\""), "{said}"),
            }
        }
    }
    let store = Arc::<OnceLock<_>>::default();
    let starting = open_as(Introduction { store: store.clone(), ..introduction("host-5", 64) }, here()).await;
    let said = one.answered_or_refused(&starting, "host-5").await.unwrap();
    assert!(said.contains("has not been told by its store"), "{said}");
    store.set(Some("7-1".into())).unwrap();
    assert_eq!(one.answered_or_refused(&starting, "host-5").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_greets_and_then_says_nothing_is_over_after_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut frames, mut incoming) = (Frames::new(), BytesMut::new());
        let own = Hello::new(&introduction("host-1", 64), None, "");
        hello::answer(&mut stream, own, |_| Ok(()), &mut frames, &mut incoming).await.unwrap();
        // It reads, so that everything is sent.
        loop {
            stream.read_buf(&mut incoming).await.unwrap();
        }
    });
    let zero = open("host-0", here()).await;
    let clock = FastClock::default();
    let began = clock.elapsed();
    let answer = in_time(zero.ask_at(&address, "host-1", "x")).await;
    assert!(
        matches!(&answer, Err(Undelivered::Unanswered(error)) if error.to_string().contains("says nothing")),
        "{answer:?}"
    );
    assert!(clock.elapsed() - began >= Duration::from_secs(2));
    silent.abort();
}

/// Certificates of one authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A host that shows a certificate made out to `name`, and trusts this authority.
    fn of(&self, name: &str, until: i32) -> Tls {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Tls::from_pem(self.0.pem().as_bytes(), certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_each_side_shows_a_certificate_of_its_fleet_made_out_to_its_name() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let one = open("host-1", here().tls(ours.of("host-1", 2100))).await;
    let zero = open("host-0", here().tls(ours.of("host-0", 2100))).await;
    let large = vec![1; MAX_MESSAGE_BYTES];
    assert_eq!(in_time(zero.answered(&one, "host-1", large.clone())).await, large);
    let strangers = [
        ("of another authority", theirs.of("host-0", 2100)),
        ("made out to another name", ours.of("host-2", 2100)),
        ("expired", ours.of("host-0", 2020)),
    ];
    for (which, tls) in strangers {
        let stranger = open("host-0", here().tls(tls)).await;
        // With TLS 1.3 the one that calls hears of it with its first read.
        not_sent(in_time(stranger.ask(&one, "host-1", which)).await);
    }
    let impostor = open("host-3", here().tls(ours.of("host-2", 2100))).await;
    not_sent(in_time(zero.ask(&impostor, "host-3", "x")).await);
    let plain = open("host-0", here()).await;
    not_sent(in_time(plain.ask(&one, "host-1", "x")).await);
    assert_eq!(in_time(zero.answered(&one, "host-1", "still")).await, "still", "nobody else is harmed");
    let refused = Tls::from_pem(b"", b"", b"no key").unwrap_err();
    assert!(refused.to_string().starts_with("certificates or key of this host cannot be used for TLS: "), "{refused}");
}

#[tokio::test]
async fn a_host_with_the_certificate_of_another_or_a_name_that_none_can_have_does_not_start_and_says_why() {
    let authority = Authority::new();
    for (host, certified) in [("host-1", "host-2"), ("host 1", "host-1"), ("h\u{f6}st-1", "host-1")] {
        let transport = here().tls(authority.of(certified, 2100));
        let error = transport.open(introduction(host, 64), None).await.err().unwrap().to_string();
        assert!(error.contains("certificate") && error.contains(&format!("{host:?}")), "{error}");
    }
    let transport = here().tls(authority.of("host-1", 2100));
    drop(transport.open(introduction("host-1", 64), None).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_stranger_sends_its_link_ends_and_others_are_answered() {
    let (zero, one) = (open("host-0", here()).await, open("host-1", here()).await);
    let greeting = {
        let mut out = BytesMut::new();
        let hello = serde_json::to_vec(&Hello::new(&introduction("host-9", 64), None, "host-1")).unwrap();
        frame::put(&mut out, frame::Kind::Hello, 0, &hello);
        out
    };
    let greeted = |more: &[u8]| [&greeting[..], more].concat();
    let half = u32::to_be_bytes(20);
    // A part without an end, again and again, of a message without an end.
    let endless: Vec<u8> = {
        let mut out = BytesMut::new();
        (0..60).for_each(|_| frame::put(&mut out, frame::Kind::Part, 1, &[0; 32 * 1024]));
        out.to_vec()
    };
    let cases = [
        ("garbage", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("nothing", Vec::new()),
        ("4 GiB announced", u32::MAX.to_be_bytes().to_vec()),
        ("another first frame", {
            let mut out = BytesMut::new();
            frame::put(&mut out, frame::Kind::Last, 1, b"x");
            out.to_vec()
        }),
        ("a first word that is none", {
            let mut out = BytesMut::new();
            frame::put(&mut out, frame::Kind::Hello, 1, b"{}");
            out.to_vec()
        }),
        ("half a frame for ever", greeted(&half)),
        ("half a message for ever", greeted(&endless[..50_000])),
        ("a message without an end", greeted(&endless)),
        ("4 GiB announced behind a greeting", greeted(&u32::MAX.to_be_bytes())),
        ("silence behind a greeting", greeted(&[])),
    ];
    let ends = cases.map(|(which, bytes)| {
        let address = one.address();
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // It may have ended before all is written.
            let _ = stream.write_all(&bytes).await;
            let mut heard = Vec::new();
            // It ends, in whatever way.
            let _ = stream.read_to_end(&mut heard).await;
            which
        }
    });
    let quick = async {
        for _ in 0..20 {
            assert_eq!(zero.answered(&one, "host-1", "quick").await, "quick");
        }
    };
    // Asked for without end, and never taken: pongs, and large answers.
    let untaken = |greeting: Vec<u8>, (kind, part): (frame::Kind, usize)| {
        let address = one.address();
        async move {
            let mut many = BytesMut::new();
            (0..64).for_each(|number| frame::put(&mut many, kind, number, &vec![0; part]));
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&greeting).await.unwrap();
            let mut taken = 0;
            while stream.write_all(&many).await.is_ok() {
                taken += many.len();
                assert!(taken < 100_000_000, "{kind:?}: what is not taken back is held without end");
            }
        }
    };
    let untaken = futures_util::future::join_all([
        untaken(greeted(&[]), (frame::Kind::Ping, 0)),
        untaken(greeted(&[]), (frame::Kind::Last, 30_000)),
    ]);
    let (ended, _, ()) = in_time(async { tokio::join!(futures_util::future::join_all(ends), untaken, quick) }).await;
    assert_eq!(ended.len(), 10);

    // Kinds that are not known are stepped over.
    let mut stream = TcpStream::connect(one.address()).await.unwrap();
    let mut unknown = greeted(&[0, 0, 0, 9, 77, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut ping = BytesMut::new();
    frame::put(&mut ping, frame::Kind::Ping, 5, b"");
    unknown.extend_from_slice(&ping);
    stream.write_all(&unknown).await.unwrap();
    let (mut frames, mut incoming) = (Frames::new(), BytesMut::new());
    let pong = in_time(async {
        loop {
            match frames.next(&mut incoming).unwrap() {
                Some(frame) if frame.kind == frame::Kind::Pong => break frame.number,
                Some(_) => {}
                None => drop(stream.read_buf(&mut incoming).await.unwrap()),
            }
        }
    });
    assert_eq!(pong.await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_without_number_keep_nobody_out() {
    let (zero, one) = (open("host-0", here()).await, open("host-1", here()).await);
    let mut strangers = Vec::new();
    for _ in 0..700 {
        // The oldest of them is let go meanwhile.
        strangers.push(TcpStream::connect(one.address()).await.unwrap());
    }
    assert_eq!(in_time(zero.answered(&one, "host-1", "x")).await, "x");
    let mut closed = 0;
    let mut byte = [0];
    for stranger in &mut strangers[..300] {
        closed += usize::from(matches!(in_time(stranger.read(&mut byte)).await, Ok(0) | Err(_)));
    }
    assert_eq!(closed, 300, "of 700, no more than 256 are waited for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_without_number_who_ask_nothing_keep_nobody_out_and_cost_nobody_an_answer() {
    let (door, asked) = heard();
    let (zero, one) = (open("host-0", here()).await, open_for("host-1", door).await);
    assert_eq!(in_time(zero.answered(&one, "host-1", "first")).await, "first");
    asked.notified().await;
    let mut greeting = BytesMut::new();
    let hello = serde_json::to_vec(&Hello::new(&introduction("host-9", 64), None, "host-1")).unwrap();
    frame::put(&mut greeting, frame::Kind::Hello, 0, &hello);
    frame::put(&mut greeting, frame::Kind::Ping, 0, b"");
    let (slow, mut strangers) = in_time(async {
        tokio::join!(zero.ask(&one, "host-1", "slow"), async {
            asked.notified().await;
            let mut strangers = Vec::new();
            for _ in 0..200 {
                let mut stranger = TcpStream::connect(one.address()).await.unwrap();
                stranger.write_all(&greeting).await.unwrap();
                // Welcome, and a sign of life: it is in.
                let (mut frames, mut incoming) = (Frames::new(), BytesMut::new());
                while frames.taken < 2 {
                    stranger.read_buf(&mut incoming).await.unwrap();
                    while frames.next(&mut incoming).unwrap().is_some() {}
                }
                strangers.push(stranger);
            }
            strangers
        })
    })
    .await;
    assert_eq!(slow.unwrap(), "slow", "it was under way");
    let two = open("host-2", here()).await;
    assert_eq!(in_time(two.answered(&one, "host-1", "another")).await, "another");
    assert_eq!(in_time(zero.answered(&one, "host-1", "again")).await, "again");
    // Of the strangers those that came first were told goodbye.
    for stranger in &mut strangers[..100] {
        let mut heard = Vec::new();
        in_time(stranger.read_to_end(&mut heard)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_closes_gives_signs_of_life_until_the_last_answer() {
    let (door, asked) = heard();
    let (zero, one) = (open("host-0", here()).await, open_for("host-1", door).await);
    in_time(async {
        assert_eq!(zero.answered(&one, "host-1", "first").await, "first");
        asked.notified().await;
        let (slow, ()) = tokio::join!(zero.ask(&one, "host-1", "very slow"), async {
            asked.notified().await;
            one.transport.close().await;
        });
        assert_eq!(slow.unwrap(), "very slow");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_come_all_at_once_are_kept_until_they_are_taken() {
    let transport = here();
    // Nobody takes them yet.
    let _running = transport.open(introduction("host-1", 64), None).await.unwrap();
    let address = transport.address().unwrap().to_string();
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|most| most.trim().parse().ok());
    let mut callers = Vec::new();
    for _ in 0..most.unwrap_or(128).min(1_000) {
        callers.push(in_time(TcpStream::connect(&address)).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_for_all_machines_has_to_be_guarded_and_to_have_an_address_and_one_that_is_taken_is_an_error() {
    let listen = |address: &str| TcpTransport::listen(address);
    let begin =
        |transport: TcpTransport| async move { transport.open(introduction("host-0", 64), None).await.map(drop) };
    let error = begin(listen("0.0.0.0:0")).await.unwrap_err().to_string();
    assert!(error.contains("TcpTransport::tls") && error.contains("plaintext"), "{error}");
    let error = begin(listen("0.0.0.0:0").plaintext()).await.unwrap_err().to_string();
    assert!(error.contains("TcpTransport::advertise") && error.contains("TcpTransport::addresses"), "{error}");
    begin(listen("0.0.0.0:0").plaintext().addresses(|host| format!("{host}:7000"))).await.unwrap();
    let tls = Authority::new().of("host-0", 2100);
    begin(listen("0.0.0.0:0").tls(tls).advertise("10.0.0.7:7000")).await.unwrap();
    let one = open("host-1", here()).await;
    begin(listen(&one.address())).await.unwrap_err();
    begin(listen("no port")).await.unwrap_err();
    let advertised = TcpTransport::listen("0.0.0.0:0").plaintext().advertise("10.0.0.7:7000");
    assert_eq!(advertised.address().as_deref(), Some("10.0.0.7:7000"));
}
