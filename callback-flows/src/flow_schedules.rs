//! Random programs under random schedules, with a crash wherever there can be one.
//!
//! A program is made of everything that flows are made of: steps (tried again, run once at most), timers, callbacks, `join!`,
//! `select!`, `FuturesUnordered`, `buffer_unordered`, branches that talk by a channel, code that wakes itself, children, undo; and some
//! go on as another run, once or twice, with a callback that is open all along. In half of them next to nothing fits into one commit. It is run as a host would: some events, a turn, a commit; and between any two of these it may be dropped and replayed from what was
//! committed. Each replay must show what the first run has shown, step by step, and wait for the same; no message may be lost, none
//! may come twice, those that a run has not taken are there for the next one, no step whose result is kept may run again, no child may be left out, or go on when its parent is cancelled, and
//! each event that the code emits is stored once.
//!
//! `tests/run flow_schedules`: `SCHEDULES=n` runs so many, `SEED=n` begins with that one. (`select!` itself begins at random, so
//! a seed repeats all but that.)

use std::collections::{BTreeMap, HashSet};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use stable_interfaces::Timestamp;
use stable_interfaces::clock::{Clock, Random, Sleep};
use tokio::sync::{mpsc, oneshot};

use crate::FlowError;
use crate::engine::{BoxFuture, Code, Engine, Kind, Limits, Phase, Post, Sabotage, Shared, Stop, What};
use crate::flows::journals::taken_over;
use crate::journal::{ChildOutcome, Ended, Entry, Event, Message, Page, StepOutcome, Written};
use crate::step::Retry;
use crate::{Callback, Flow};

/// Time as the schedule lets it pass.
#[derive(Debug, Default)]
struct Hand {
    now: AtomicI64,
    waiting: Mutex<Vec<Waker>>,
}

impl Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now.load(Ordering::Relaxed))
    }

    fn set(&self, now: Timestamp) {
        self.now.store(now.as_millis(), Ordering::Relaxed);
        for waker in std::mem::take(&mut *self.waiting.lock()) {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct HandClock(Arc<Hand>);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn elapsed(&self) -> Duration {
        self.0.now().since(Timestamp::UNIX_EPOCH)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_exact(self.now() + duration)
    }

    fn sleep_exact(&self, until: Timestamp) -> Sleep {
        let hand = self.0.clone();
        Box::pin(poll_fn(move |task| {
            if hand.now() >= until {
                return Poll::Ready(());
            }
            hand.waiting.lock().push(task.waker().clone());
            Poll::Pending
        }))
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Half;

impl Random for Half {
    fn next_u64(&self) -> u64 {
        u64::MAX / 2
    }
}

/// A program, or a part of one.
#[derive(Debug, Clone)]
enum Node {
    /// A step; it may fail at first, or be one that runs once at most.
    Step {
        fails: bool,
        once: bool,
    },
    Timer(u64),
    /// Takes messages of a callback of its own, each perhaps with a limit.
    Receive {
        count: usize,
        limit: Option<u64>,
    },
    /// Waits for a message, does something else without polling that wait, drops it, and waits again.
    Abandon(Box<Node>),
    Seq(Vec<Node>),
    Join(Box<Node>, Box<Node>),
    Select(Box<Node>, Box<Node>),
    /// Races two callbacks that may both have a message already, some time after they were opened.
    Race(Box<Node>),
    Unordered(Vec<Node>),
    Buffered(usize, Vec<Node>),
    /// One branch tells another by a channel.
    Talk(Box<Node>, Box<Node>),
    /// Begins so many timers and steps at once.
    Many(usize),
    WakeItself,
    Draw,
    Undo,
    /// A child; it is waited for, perhaps with a limit, or let go.
    Child {
        waits: bool,
        limit: Option<u64>,
    },
}

impl Node {
    fn random(random: &mut Rng, depth: u32) -> Node {
        let below = |random: &mut Rng| Box::new(Node::random(random, depth.saturating_sub(1)));
        let some = |random: &mut Rng| {
            (0..random.usize(1..4)).map(|_| Node::random(random, depth.saturating_sub(1))).collect::<Vec<_>>()
        };
        match random.u32(..if depth == 0 { 13 } else { 27 }) {
            0..=2 => Node::Step { fails: random.u8(..4) == 0, once: random.u8(..8) == 0 },
            3..=4 => Node::Timer(random.u64(1..40)),
            5..=6 => Node::Receive { count: random.usize(1..4), limit: random.bool().then(|| random.u64(1..40)) },
            7 => Node::WakeItself,
            8 => Node::Draw,
            9 => Node::Undo,
            10..=11 => Node::Child { waits: random.u8(..4) > 0, limit: random.bool().then(|| random.u64(1..40)) },
            12 => Node::Many(random.usize(2..10)),
            13..=14 => Node::Abandon(below(random)),
            15..=16 => Node::Join(below(random), below(random)),
            17..=18 => Node::Select(below(random), below(random)),
            19 => Node::Race(below(random)),
            20..=21 => Node::Unordered(some(random)),
            22 => Node::Buffered(random.usize(1..3), some(random)),
            23..=24 => Node::Talk(below(random), below(random)),
            _ => Node::Seq(some(random)),
        }
    }

    /// The addresses of all its callbacks.
    fn callbacks(&self, at: &str, all: &mut Vec<String>) {
        let within = |n: usize| if at.is_empty() { n.to_string() } else { format!("{at}/{n}") };
        let own =
            |name: &str| if at.is_empty() { format!("callback:{name}#0") } else { format!("{at}/callback:{name}#0") };
        match self {
            Node::Receive { .. } => all.push(own("c")),
            Node::Abandon(node) => {
                all.push(own("c"));
                node.callbacks(&within(0), all);
            }
            Node::Race(node) => {
                all.extend([own("a"), own("b")]);
                node.callbacks(&within(0), all);
            }
            Node::Seq(nodes) | Node::Unordered(nodes) | Node::Buffered(_, nodes) => {
                nodes.iter().enumerate().for_each(|(n, node)| node.callbacks(&within(n), all));
            }
            Node::Join(a, b) | Node::Select(a, b) | Node::Talk(a, b) => {
                a.callbacks(&within(0), all);
                b.callbacks(&within(1), all);
            }
            Node::Step { .. } | Node::Timer(_) | Node::Many(_) | Node::WakeItself | Node::Draw | Node::Undo => {}
            Node::Child { .. } => {}
        }
    }
}

/// A step under way: its key, and how it is told its result.
type Under = (String, oneshot::Sender<Result<u64, String>>);

/// All that is outside of the flow.
#[derive(Debug, Default)]
struct World {
    /// The lines that the code has shown in this life.
    log: Mutex<Vec<String>>,
    steps: Mutex<Vec<Under>>,
    wakers: Mutex<Vec<Waker>>,
    values: AtomicU64,
    /// Steps whose results are kept.
    kept: Mutex<HashSet<String>>,
    wrong: Mutex<Option<String>>,
    /// Not all that the code has decided is durable.
    has_rest: AtomicBool,
}

impl World {
    fn say(&self, text: String) {
        self.log.lock().push(text);
    }

    /// Does what happens in a step: it waits to be told its result.
    fn work(self: &Arc<World>, key: String) -> impl Future<Output = Result<u64, String>> + Send + use<> {
        if self.kept.lock().contains(&key) {
            self.wrong.lock().get_or_insert(format!("{key} ran again, although its result is kept"));
        }
        if self.has_rest.load(Ordering::Relaxed) {
            self.wrong.lock().get_or_insert(format!("{key} has started before all that came before it is durable"));
        }
        let (told, mut result) = oneshot::channel();
        self.steps.lock().push((key, told));
        let world = self.clone();
        async move {
            poll_fn(|task| {
                let polled = Pin::new(&mut result).poll(task).map(|told| told.unwrap_or(Err("never told".into())));
                if polled.is_pending() {
                    world.wakers.lock().push(task.waker().clone());
                }
                polled
            })
            .await
        }
    }
}

/// Shows a line, and emits it.
fn say_in(flow: &Flow, world: &World, text: &str) {
    let line = format!("{}: {text}", flow.scope());
    // More than may be emitted without a wait is not what is tested here.
    let _ = flow.emit("said", &line);
    world.say(line);
}

fn execute<'a>(flow: Flow, node: &'a Node, world: &'a Arc<World>) -> BoxedIn<'a> {
    Box::pin(async move {
        let at = flow.scope().to_owned();
        let say = |text: String| say_in(&flow, world, &text);
        match node {
            Node::Step { fails, once } => {
                let key = format!("{}step:s#0", if at.is_empty() { String::new() } else { format!("{at}/") });
                let step = if *fails {
                    // Some waits are short, and some are kept.
                    flow.step("s").retry(Retry::default().between(Duration::from_secs(4), Duration::from_secs(40)))
                } else {
                    flow.step("s").input(&at)
                };
                let step = if *once { step.at_most_once() } else { step };
                match step.run(|_| world.work(key.clone())).await {
                    Ok(value) => say(format!("step {value}")),
                    Err(error) => say(format!("step failed: {error}")),
                }
            }
            Node::Timer(millis) => {
                flow.sleep(Duration::from_millis(*millis)).await;
                say(format!("slept until {}", flow.now().as_millis()));
            }
            Node::Receive { count, limit } => {
                let mut callback: Callback<u64> = flow.callback("c");
                for _ in 0..*count {
                    match limit {
                        None => say(format!("got {}", callback.next().await.unwrap())),
                        Some(limit) => match flow.timeout(Duration::from_millis(*limit), callback.next()).await {
                            Ok(got) => say(format!("got {}", got.unwrap())),
                            Err(_) => say("nothing".into()),
                        },
                    }
                }
            }
            Node::Abandon(other) => {
                let mut callback: Callback<u64> = flow.callback("c");
                {
                    let mut wait = pin!(callback.next());
                    // Not before its first release can this be ready.
                    let polled = poll_fn(|task| Poll::Ready(wait.as_mut().poll(task))).await;
                    assert!(polled.is_pending());
                    execute(flow.branch("0"), other, world).await;
                }
                say(format!("got {}", callback.next().await.unwrap()));
            }
            Node::Seq(nodes) => {
                for (n, node) in nodes.iter().enumerate() {
                    execute(flow.branch(&n.to_string()), node, world).await;
                }
            }
            Node::Join(a, b) => {
                tokio::join!(execute(flow.branch("0"), a, world), execute(flow.branch("1"), b, world));
                say("both".into());
            }
            Node::Select(a, b) => {
                // A branch that is ready at once would win or lose by `select!`'s own dice.
                let later = async |branch: Flow, node| {
                    branch.sleep(Duration::from_millis(1)).await;
                    execute(branch, node, world).await;
                };
                tokio::select! {
                    () = later(flow.branch("0"), a) => say("the first".into()),
                    () = later(flow.branch("1"), b) => say("the second".into()),
                }
            }
            Node::Race(before) => {
                let (mut a, mut b): (Callback<u64>, Callback<u64>) = (flow.callback("a"), flow.callback("b"));
                execute(flow.branch("0"), before, world).await;
                for _ in 0..3 {
                    tokio::select! {
                        got = a.next() => say(format!("a got {}", got.unwrap())),
                        got = b.next() => say(format!("b got {}", got.unwrap())),
                        () = flow.sleep(Duration::from_millis(25)) => say("nothing".into()),
                    }
                }
            }
            Node::Unordered(nodes) => {
                let nodes = nodes.iter().enumerate();
                let mut all: FuturesUnordered<_> = nodes
                    .map(|(n, node)| {
                        let branch = flow.branch(&n.to_string());
                        async move {
                            execute(branch, node, world).await;
                            n
                        }
                    })
                    .collect();
                while let Some(n) = all.next().await {
                    say(format!("done {n}"));
                }
            }
            Node::Buffered(at_once, nodes) => {
                let mut each = Vec::new();
                for (n, node) in nodes.iter().enumerate() {
                    let branch = flow.branch(&n.to_string());
                    each.push(async move {
                        execute(branch, node, world).await;
                        n
                    });
                }
                let mut all = pin!(stream::iter(each).buffer_unordered(*at_once));
                while let Some(n) = all.next().await {
                    say(format!("done {n}"));
                }
            }
            Node::Talk(a, b) => {
                let (tell, mut told) = mpsc::channel(1);
                let mut both: FuturesUnordered<BoxedIn<'_>> = FuturesUnordered::new();
                let teller = flow.branch("0");
                both.push(Box::pin(async move {
                    for n in 0..3 {
                        tell.send(n).await.unwrap();
                    }
                    execute(teller, a, world).await;
                    tell.send(3).await.unwrap();
                }));
                let (listener, say) = (flow.branch("1"), &say);
                both.push(Box::pin(async move {
                    while let Some(n) = told.recv().await {
                        say(format!("heard {n}"));
                    }
                    execute(listener, b, world).await;
                }));
                while both.next().await.is_some() {}
            }
            Node::Many(count) => {
                let timers =
                    (0..*count).map(|n| flow.branch(&format!("{n}")).sleep(Duration::from_millis(1 + n as u64 % 5)));
                let timers = join_all(timers);
                let scope = if at.is_empty() { String::new() } else { format!("{at}/") };
                let each = (0..*count).map(|n| (n.to_string(), format!("{scope}step:many[{n}]#0")));
                let each: Vec<_> = each.collect();
                let steps = each.iter().map(|(n, key)| flow.step_for("many", n).run(|_| world.work(key.clone())));
                let (_, values) = tokio::join!(timers, join_all(steps));
                say(format!("many: {values:?}"));
            }
            Node::WakeItself => {
                let mut times = 3;
                poll_fn(|task| {
                    if times == 0 {
                        return Poll::Ready(());
                    }
                    times -= 1;
                    task.waker().wake_by_ref();
                    Poll::Pending
                })
                .await;
            }
            Node::Draw => say(format!("{} {} {}", flow.now().as_millis(), flow.uuid(), flow.random())),
            Node::Undo => {
                let key = format!("{}undo/step:u#0", if at.is_empty() { String::new() } else { format!("{at}/") });
                let world = world.clone();
                flow.undo("u", move |_| {
                    let (key, world) = (key.clone(), world.clone());
                    async move { world.work(key.clone()).await }
                });
                say("registered an undo step".into());
            }
            Node::Child { waits, limit } => {
                let mut child = flow.spawn("child", &format!("of {at}"), &at);
                if !waits {
                    return say("let a child go".into());
                }
                if let Some(limit) = limit
                    && flow.timeout(Duration::from_millis(*limit), child.result::<u64>()).await.is_err()
                {
                    say("no child in time".into());
                }
                match child.result::<u64>().await {
                    Ok(value) => say(format!("child {value}")),
                    Err(error) => say(format!("child failed: {error}")),
                }
            }
        }
    })
}

/// The name of the callback that is open from the first run to the last.
const ALONG: &str = "along";
/// The line at the end of each run, which is not emitted.
const END: &str = "the end";

type BoxedIn<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A program that is run so many times, each as the next run of its flow, and perhaps fails at its end.
fn code_of(program: Arc<Node>, world: Arc<World>, runs: u32, fails: bool) -> Code {
    Arc::new(move |flow, run| -> BoxFuture<Result<Bytes, Stop>> {
        let (program, world) = (program.clone(), world.clone());
        Box::pin(async move {
            let run: u32 = serde_json::from_slice(&run).unwrap();
            let mut along: Option<Callback<u64>> = (runs > 1).then(|| flow.callback(ALONG));
            execute(flow.clone(), &program, &world).await;
            if let Some(along) = &mut along
                && let Ok(got) = flow.timeout(Duration::from_millis(10), along.next()).await
            {
                say_in(&flow, &world, &format!("along got {}", got.unwrap()));
            }
            world.say(END.into());
            if run < runs {
                let goes_on = flow.continue_with::<()>(&(run + 1));
                return Err(goes_on.map_or_else(FlowError::into_stop, |()| unreachable!("it is an error")));
            }
            if fails { Err("it fails at its end".into()) } else { Ok(Bytes::from_static(b"null")) }
        })
    })
}

/// A child, as it is where it lives.
#[derive(Debug, Default)]
struct Born {
    is_cancelled: bool,
    outcome: Option<ChildOutcome>,
}

/// One run of a program.
struct Run {
    random: Rng,
    hand: Arc<Hand>,
    world: Arc<World>,
    code: Code,
    sabotage: Option<Sabotage>,
    limits: Limits,
    engine: Engine,
    durable: Vec<Written>,
    /// The number of this run of its flow, that of its first page, and the lines of those before it.
    run: u32,
    first_page: usize,
    before: Vec<String>,
    /// The lines that the code had shown at the last commit, its waits, and that it had taken in everything.
    shown: Vec<String>,
    waited: Vec<(String, Option<Timestamp>)>,
    was_calm: bool,
    callbacks: Vec<String>,
    sent: u64,
    /// Messages that are durable, by callback, in order.
    taken: BTreeMap<String, Vec<u64>>,
    /// Posts to children that are on their way, children that have been begun, and those whose end the flow has taken.
    letters: Vec<Post>,
    born: BTreeMap<String, Born>,
    told: HashSet<String>,
    /// The lines that are durable as events.
    emitted: Vec<String>,
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    entries: u64,
    crashes: u64,
    messages: u64,
    /// The times that a flow went on as another run.
    runs: u64,
    /// The commits after which there was a rest to be written.
    parts: u64,
}

impl Run {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Run {
        let mut random = Rng::with_seed(seed);
        let program = Node::Seq((0..random.usize(1..4)).map(|_| Node::random(&mut random, 3)).collect());
        let mut callbacks = Vec::new();
        program.callbacks("", &mut callbacks);
        let runs = if random.u8(..3) == 0 { random.u32(2..4) } else { 1 };
        if runs > 1 {
            callbacks.push(format!("callback:{ALONG}#0"));
        }
        let (hand, world) = (Arc::new(Hand::default()), Arc::new(World::default()));
        let code = code_of(Arc::new(program), world.clone(), runs, random.u8(..6) == 0);
        let page_bytes = if random.bool() { random.usize(1..400) } else { Limits::default().page_bytes };
        let limits = Limits { page_bytes, ..Limits::default() };
        let engine = engine(&hand, &code, Vec::new(), sabotage, limits);
        let mut run = Run {
            random,
            hand,
            world,
            code,
            sabotage,
            limits,
            engine,
            durable: Vec::new(),
            run: 1,
            first_page: 0,
            before: Vec::new(),
            shown: Vec::new(),
            waited: Vec::new(),
            was_calm: false,
            callbacks,
            sent: 0,
            taken: BTreeMap::new(),
            letters: Vec::new(),
            born: BTreeMap::new(),
            told: HashSet::new(),
            emitted: Vec::new(),
            counts: Counts::default(),
        };
        let start = Event::Start { version: 1, run: 1, seed, input: Bytes::from_static(b"1") };
        run.engine.append(run.hand.now(), start);
        run.engine.settle(usize::MAX);
        run
    }

    fn waits(&self) -> Vec<(String, Option<Timestamp>)> {
        let waits = self.engine.waits().into_iter().filter(|wait| wait.kind != Kind::Step);
        let mut waits: Vec<_> = waits.map(|wait| (wait.key.to_string(), wait.until)).collect();
        waits.sort();
        waits
    }

    /// Commits what there is to be written, in this turn or, from the second commit on, in one that follows; or dies before or after that.
    fn commit(&mut self) -> Result<(), String> {
        while self.random.u8(..16) > 0 {
            let (page, mark) = self.engine.take_page();
            for entry in &page.entries {
                match &entry.event {
                    Event::Result { step, outcome } if !matches!(outcome, StepOutcome::Interrupted) => {
                        self.world.kept.lock().insert(step.to_string());
                    }
                    Event::Message { callback, message } => {
                        let n = serde_json::from_slice(&message.body).unwrap();
                        self.taken.entry(callback.to_string()).or_default().push(n);
                        self.counts.messages += 1;
                    }
                    _ => {}
                }
            }
            self.counts.entries += page.entries.len() as u64;
            let has_more = !page.is_empty();
            if has_more {
                self.durable.push(page.encode());
            }
            self.world.has_rest.store(!self.engine.is_written(), Ordering::Relaxed);
            let Some(mark) = mark else {
                (self.was_calm, self.counts.parts) = (false, self.counts.parts + 1);
                if self.random.bool() {
                    return Ok(());
                }
                continue;
            };
            self.keep_emitted();
            if has_more {
                self.shown = self.world.log.lock().clone();
                self.waited = self.waits();
                self.was_calm = !self.engine.settle(0);
            }
            let mark = if self.switch()? { 0 } else { mark };
            if self.random.u8(..12) == 0 {
                break;
            }
            self.letters.extend(self.engine.take_posts());
            self.engine.open(mark);
            return Ok(());
        }
        self.crash()
    }

    /// Commits all of what an earlier turn has left to be written.
    fn commit_rest(&mut self) -> Result<(), String> {
        while self.engine.has_rest() {
            self.commit()?;
        }
        Ok(())
    }

    /// Begins the next run in the commit that ends the one before, if that has ended so.
    fn switch(&mut self) -> Result<bool, String> {
        let Some(continuation) = self.engine.take_continuation() else { return Ok(false) };
        self.check_messages()?;
        self.check_children()?;
        let body = |entry: &Entry| match &entry.event {
            Event::Message { message, .. } => serde_json::from_slice(&message.body).unwrap(),
            event => panic!("{event} goes along"),
        };
        let bodies: BTreeMap<u64, u64> = continuation.messages.iter().map(|entry| (entry.seq, body(entry))).collect();
        let mut unread = BTreeMap::new();
        for (key, carried) in &continuation.carried {
            // Each is the first of its name.
            assert_eq!(*key, carried.key);
            unread.insert(key.to_string(), carried.unread.iter().map(|seq| bodies[seq]).collect::<Vec<_>>());
        }
        for (callback, came) in &mut self.taken {
            let got = got(&self.world.log.lock(), callback).len();
            let kept = unread.remove(callback);
            if kept.as_ref().is_some_and(|kept| *kept != came[got..]) {
                return Err(format!("{callback} was sent {came:?}, gave out {got} of them, and {kept:?} go along"));
            }
            if kept.is_none() && callback.ends_with(&format!("callback:{ALONG}#0")) {
                return Err(format!("{callback} does not go along"));
            }
            *came = kept.unwrap_or_default();
        }
        self.before.append(&mut self.world.log.lock());
        self.world.kept.lock().clear();
        self.world.steps.lock().clear();
        // Children go on by themselves, and are begun again by whichever run asks for them.
        (self.letters, self.born, self.told) = (Vec::new(), BTreeMap::new(), HashSet::new());
        self.run += 1;
        self.counts.runs += 1;
        let along = Page { entries: continuation.messages, ..Page::default() };
        let mut next = engine(&self.hand, &self.code, vec![along], self.sabotage, self.limits);
        next.count_from(continuation.next_seq);
        let (run, seed, input) = (self.run, u64::from(self.run), continuation.input);
        let carried = continuation.carried.into_iter().map(|(_, carried)| carried).collect();
        next.append(self.hand.now(), Event::Continued { version: 1, run, seed, input, carried });
        if continuation.is_cancelled {
            next.append(self.hand.now(), Event::Cancel);
        }
        let (page, _) = next.take_all();
        self.first_page = self.durable.len();
        self.durable.push(page.encode());
        (self.shown, self.waited, self.was_calm) = (Vec::new(), Vec::new(), false);
        self.engine = next;
        Ok(true)
    }

    /// A post arrives, and perhaps that is noted.
    fn post(&mut self) -> Result<(), String> {
        if self.letters.is_empty() {
            return Ok(());
        }
        let post = self.letters.swap_remove(self.random.usize(..self.letters.len()));
        let child = post.child.to_string();
        match &post.what {
            What::Start(_) => drop(self.born.entry(child).or_default()),
            What::Cancel => match self.born.get_mut(&child) {
                Some(born) => born.is_cancelled = true,
                None => return Err(format!("{child} is cancelled before it begins")),
            },
        }
        if self.random.u8(..4) > 0 {
            self.engine.note_posted(&post);
            if self.engine.waits_for_posts() || self.random.bool() {
                self.engine.record_posted(self.hand.now());
            }
        } else {
            // Its courier tries again.
            self.letters.push(post);
        }
        Ok(())
    }

    /// A child ends, or one that has ended tells the flow.
    fn end_child(&mut self) {
        let untold: Vec<_> = self.born.keys().filter(|child| !self.told.contains(*child)).cloned().collect();
        let Some(child) = self.random.choice(&untold).cloned() else { return };
        let born = self.born.entry(child.clone()).or_default();
        let value = self.world.values.fetch_add(1, Ordering::Relaxed);
        let outcome = born.outcome.get_or_insert_with(|| match value % 4 {
            _ if born.is_cancelled => ChildOutcome::Cancelled,
            0 => ChildOutcome::Failed(format!("failure {value}").into()),
            _ => ChildOutcome::Done(value.to_string().into()),
        });
        let outcome = outcome.clone();
        let now = self.hand.now();
        while self.engine.fire_due(now, None) > 0 {
            self.engine.settle(usize::MAX);
        }
        if !self.has_ended() {
            self.told.insert(child.clone());
            self.engine.append(now, Event::ChildEnded { child: child.as_str().into(), outcome });
        }
    }

    fn crash(&mut self) -> Result<(), String> {
        self.counts.crashes += 1;
        let has_ended = self.durable.last().is_some_and(|page| Page::decode(page).unwrap().ended.is_some());
        // Before its start is durable there is no flow, and when its end is, nothing is replayed.
        if self.durable.is_empty() || has_ended {
            return Ok(());
        }
        let fresh = engine(&self.hand, &self.code, self.pages(), self.sabotage, self.limits);
        drop(std::mem::replace(&mut self.engine, fresh));
        self.world.log.lock().clear();
        self.world.steps.lock().clear();
        // Some are on their way, and arrive after all.
        for post in std::mem::take(&mut self.letters) {
            match &post.what {
                _ if self.random.bool() => {}
                What::Start(_) => drop(self.born.entry(post.child.to_string()).or_default()),
                What::Cancel => self.born.entry(post.child.to_string()).or_default().is_cancelled = true,
            }
        }
        self.told = self.pages().into_iter().flat_map(|page| page.entries).filter_map(ended_child).collect();
        self.engine.settle(usize::MAX);
        if let Phase::Blocked(why) = self.engine.phase() {
            return Err(format!("blocked in a replay: {why}"));
        }
        let log = self.world.log.lock().clone();
        let is_same = if self.was_calm { log == self.shown } else { log.starts_with(&self.shown) };
        if !is_same {
            return Err(format!("a replay shows\n  {log:#?}\nin place of\n  {:#?}", self.shown));
        }
        if self.was_calm && self.waits() != self.waited {
            return Err(format!("a replay waits for {:?} in place of {:?}", self.waits(), self.waited));
        }
        self.world.has_rest.store(false, Ordering::Relaxed);
        let (page, mark) = self.engine.take_all();
        self.keep_emitted();
        if !page.is_empty() {
            self.durable.push(page.encode());
            self.shown = log;
            self.waited = self.waits();
            self.was_calm = true;
        }
        let mark = if self.switch()? { 0 } else { mark };
        self.letters = self.engine.take_posts();
        self.engine.open(mark);
        Ok(())
    }

    /// Notes what was emitted, which is in the commit that is made.
    fn keep_emitted(&mut self) {
        let lines = self.engine.take_emitted().into_iter().map(|event| serde_json::from_slice(&event.value).unwrap());
        self.emitted.extend(lines);
    }

    fn pages(&self) -> Vec<Page> {
        let decoded = |pages: &[Written]| pages.iter().map(|page| Page::decode(page).unwrap()).collect::<Vec<_>>();
        let (earlier, run) = self.durable.split_at(self.first_page);
        let mut pages = decoded(run);
        let wanted = taken_over(&pages);
        if !wanted.is_empty() {
            let entries = decoded(earlier).into_iter().flat_map(|page| page.entries);
            let entries = entries.filter(|entry| wanted.contains(&entry.seq)).collect();
            pages.insert(0, Page { entries, ..Page::default() });
        }
        pages
    }

    /// Something happens outside.
    fn happen(&mut self) -> Result<(), String> {
        self.commit_rest()?;
        match self.random.u8(..13) {
            0..=2 => {
                if let Some(callback) = self.random.choice(&self.callbacks).cloned() {
                    self.send(&callback);
                }
            }
            3..=5 => {
                let told = {
                    let mut steps = self.world.steps.lock();
                    steps.retain(|(_, told)| !told.is_closed());
                    let at = self.random.usize(..steps.len().max(1));
                    if steps.is_empty() { None } else { Some(steps.swap_remove(at)) }
                };
                if let Some((_, told)) = told {
                    let value = self.world.values.fetch_add(1, Ordering::Relaxed);
                    let _ =
                        told.send(if self.random.u8(..3) == 0 { Err(format!("failure {value}")) } else { Ok(value) });
                }
            }
            6..=7 => {
                let millis = self.random.u64(1..20);
                self.hand.set(self.hand.now() + Duration::from_millis(millis));
            }
            8 => {
                // Wakes for nothing.
                let wakers = std::mem::take(&mut *self.world.wakers.lock());
                wakers.into_iter().for_each(Waker::wake);
            }
            9..=10 => self.post()?,
            11 => self.end_child(),
            _ => {
                if self.random.u8(..40) == 0 {
                    self.engine.append(self.hand.now(), Event::Cancel);
                }
            }
        }
        Ok(())
    }

    /// A message comes. Timers that were due before it have fired before it.
    fn send(&mut self, callback: &str) {
        let now = self.hand.now();
        while self.engine.fire_due(now, None) > 0 {
            self.engine.settle(usize::MAX);
        }
        if !self.engine.takes_messages(callback) {
            return;
        }
        self.sent += 1;
        let message = Message {
            id: self.sent.to_string().into(),
            headers: Vec::new(),
            body: self.sent.to_string().into_bytes().into(),
        };
        self.engine.append(now, Event::Message { callback: callback.into(), message });
    }

    fn turn(&mut self) -> Result<(), String> {
        let releases = if self.random.u8(..4) == 0 { 1 } else { usize::MAX };
        self.engine.settle(releases);
        self.engine.poll_steps(self.hand.now());
        self.engine.fire_due(self.hand.now(), Some(self.hand.now()));
        self.engine.settle(releases);
        self.check()?;
        self.commit()?;
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        if let Phase::Blocked(why) = self.engine.phase() {
            return Err(format!("blocked: {why}"));
        }
        self.world.wrong.lock().take().map_or(Ok(()), Err)
    }

    fn has_ended(&self) -> bool {
        matches!(self.engine.phase(), Phase::Ended(_))
    }

    /// Runs it to its end.
    fn go(mut self) -> Result<Counts, String> {
        self.commit()?;
        for _ in 0..self.random.usize(10..120) {
            for _ in 0..self.random.usize(..4) {
                self.happen()?;
            }
            self.turn()?;
            if self.has_ended() {
                break;
            }
        }
        let mut rounds = 0;
        loop {
            self.commit_rest()?;
            if self.has_ended() {
                break;
            }
            rounds += 1;
            if rounds > 2_000 {
                let waits = self.engine.waits();
                return Err(format!(
                    "it does not end; it has shown {:#?} and waits for {waits:#?}",
                    self.world.log.lock()
                ));
            }
            self.finish_one()?;
            self.turn()?;
        }
        self.check_messages()?;
        self.check_children()?;
        self.check_events()?;
        Ok(self.counts)
    }

    /// Checks that each line that the code has shown was emitted, in order, once over all its lives.
    fn check_events(&mut self) -> Result<(), String> {
        // It may have ended before anything was durable.
        self.keep_emitted();
        let log = self.world.log.lock();
        let said: Vec<_> = self.before.iter().chain(&*log).filter(|line| *line != END).collect();
        if said.iter().copied().eq(&self.emitted) {
            return Ok(());
        }
        Err(format!("it has shown {said:#?}, and emitted {:#?}", self.emitted))
    }

    /// Gives the flow one of the things that it waits for.
    fn finish_one(&mut self) -> Result<(), String> {
        self.post()?;
        self.end_child();
        let mut steps = std::mem::take(&mut *self.world.steps.lock());
        steps.retain(|(_, told)| !told.is_closed());
        for (_, told) in steps {
            let value = self.world.values.fetch_add(1, Ordering::Relaxed);
            let _ = told.send(Ok(value));
        }
        let callback = self.engine.waits().into_iter().find(|wait| wait.kind == Kind::Callback);
        match callback {
            Some(callback) if self.random.bool() => self.send(&callback.key),
            _ => {
                // Also for a step's wait in this process.
                let due = self.engine.next_due().unwrap_or(self.hand.now() + Duration::from_secs(1));
                self.hand.set(due.max(self.hand.now()));
            }
        }
        Ok(())
    }

    /// Checks that every child that the code began was begun, and that those of a cancelled flow were cancelled if they had not ended.
    fn check_children(&self) -> Result<(), String> {
        let pages = self.pages();
        let ended = pages.last().and_then(|page| page.ended.clone());
        if ended.is_none() && !matches!(self.engine.phase(), Phase::Continued) {
            return Ok(());
        }
        let begun = pages.iter().flat_map(|page| &page.settled).flat_map(|settled| &settled.begun);
        for begun in begun.filter(|begun| begun.key.contains("child:child[")) {
            let Some(born) = self.born.get(&*begun.key) else { return Err(format!("{} was never begun", begun.key)) };
            if ended == Some(Ended::Cancelled) && !born.is_cancelled && !self.told.contains(&*begun.key) {
                return Err(format!("{} goes on, and its parent is cancelled", begun.key));
            }
        }
        Ok(())
    }

    /// Checks that what a callback has given out is the beginning of what came for it, in that order.
    fn check_messages(&self) -> Result<(), String> {
        let log = self.world.log.lock();
        for (callback, came) in &self.taken {
            let got = got(&log, callback);
            if !came.starts_with(&got) {
                return Err(format!("{callback} was sent {came:?}, and gave out {got:?}"));
            }
        }
        Ok(())
    }
}

/// The messages that a callback has given out in this run.
fn got(log: &[String], callback: &str) -> Vec<u64> {
    let (scope, name) = match callback.rsplit_once("/callback:") {
        Some((scope, name)) => (scope, name),
        None => ("", callback.strip_prefix("callback:").unwrap()),
    };
    let says = match name {
        "c#0" => format!("{scope}: got "),
        name => format!("{scope}: {} got ", name.trim_end_matches("#0")),
    };
    log.iter().filter_map(|line| line.strip_prefix(&says)?.parse().ok()).collect()
}

fn ended_child(entry: Entry) -> Option<String> {
    if let Event::ChildEnded { child, .. } = entry.event { Some(child.to_string()) } else { None }
}

fn engine(hand: &Arc<Hand>, code: &Code, pages: Vec<Page>, sabotage: Option<Sabotage>, limits: Limits) -> Engine {
    let (clock, random) = (Arc::new(HandClock(hand.clone())), Arc::new(Half));
    let shared = Shared::new("program/1".into(), clock, random, limits, None, Arc::new(()));
    Engine::new(shared, code.clone(), pages).sabotaged(sabotage)
}

/// Runs `work` in a task of tokio's that has used up its budget.
fn without_budget<T: Send>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut work = Some(work);
    runtime.block_on(poll_fn(move |task: &mut Context<'_>| {
        loop {
            if pin!(tokio::task::consume_budget()).poll(task).is_pending() {
                break;
            }
        }
        Poll::Ready(work.take().expect("it is ready at its first poll")())
    }))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is to be a number")))
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the rate is that of the real clock")]
fn every_replay_shows_what_the_first_run_has_shown_and_no_event_is_lost_or_comes_twice() {
    let (first, schedules) = (number("SEED", 0), number("SCHEDULES", 5_000));
    let (counts, began) = (Mutex::new(Counts::default()), std::time::Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let counts = &counts;
            scope.spawn(move || {
                for seed in (first..first + schedules).filter(|seed| seed % threads == thread) {
                    // Half of them where tokio would cut them short if it could.
                    let run = || Run::new(seed, None).go();
                    let result = if seed % 2 == 0 { run() } else { without_budget(run) };
                    let one = result.unwrap_or_else(|wrong| panic!("SEED={seed} SCHEDULES=1: {wrong}"));
                    let mut counts = counts.lock();
                    counts.entries += one.entries;
                    counts.crashes += one.crashes;
                    counts.messages += one.messages;
                    counts.runs += one.runs;
                    counts.parts += one.parts;
                }
            });
        }
    });
    let (Counts { entries, crashes, messages, runs, parts }, seconds) = (*counts.lock(), began.elapsed().as_secs_f64());
    println!(
        "{schedules} schedules exact, {:.0} a second: {entries} entries, {messages} messages, {crashes} crashes, {runs} runs that went on, {parts} parts of commits",
        f64::from(u32::try_from(schedules).unwrap()) / seconds
    );
}

#[test]
fn each_fault_put_into_the_engine_is_found() {
    let faults = [
        (Sabotage::TwoReleasesPerPoll, false),
        (Sabotage::AllDeliveredAtOnce, false),
        (Sabotage::NotUnconstrained, true),
        (Sabotage::ForgetsWhoWaitsOnSelfWake, false),
        (Sabotage::ConsumesAtDelivery, false),
        (Sabotage::EmitsInReplays, false),
        (Sabotage::EmitsBeforeAllIsTakenIn, false),
        (Sabotage::ForgetsWhatComesAsARunEnds, false),
        (Sabotage::GoesOnWithoutWhatWaits, false),
        (Sabotage::OpensStepsBeforeAllIsWritten, false),
        (Sabotage::TakesAPartForTheWhole, false),
    ];
    for (fault, is_without_budget) in faults {
        let found = (0..3_000).find_map(|seed| {
            let run = || std::panic::catch_unwind(|| Run::new(seed, Some(fault)).go());
            let result = if is_without_budget { without_budget(run) } else { run() };
            match result {
                Ok(Ok(_)) => None,
                Ok(Err(wrong)) => Some((seed, wrong)),
                Err(_) => Some((seed, "a panic".into())),
            }
        });
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{fault:?} was not found"));
        println!("{fault:?}: found by schedule {seed}: {}", wrong.lines().next().unwrap_or_default());
    }
}
