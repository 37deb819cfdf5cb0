//! Programs at random, and the world that they act on.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::engine::{BoxFuture, Code, Stop};
use crate::step::Retry;
use crate::{Callback, Flow, FlowError};

/// A program, or a part of one.
#[derive(Debug, Clone)]
pub(super) enum Node {
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
    pub(super) fn random(random: &mut Rng, depth: u32) -> Node {
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
    pub(super) fn callbacks(&self, at: &str, all: &mut Vec<String>) {
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
pub(super) struct World {
    /// The lines that the code has shown in this life.
    pub(super) log: Mutex<Vec<String>>,
    pub(super) steps: Mutex<Vec<Under>>,
    pub(super) wakers: Mutex<Vec<Waker>>,
    pub(super) values: AtomicU64,
    /// Steps whose results are kept.
    pub(super) kept: Mutex<HashSet<String>>,
    pub(super) wrong: Mutex<Option<String>>,
    /// A part of what the code has decided is not durable.
    pub(super) has_rest: AtomicBool,
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

type BoxedIn<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

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
pub(super) const ALONG: &str = "along";

/// The line at the end of each run, which is not emitted.
pub(super) const END: &str = "the end";

/// A program that is run so many times, each as the next run of its flow, and perhaps fails at its end.
pub(super) fn code_of(program: Arc<Node>, world: Arc<World>, runs: u32, fails: bool) -> Code {
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
