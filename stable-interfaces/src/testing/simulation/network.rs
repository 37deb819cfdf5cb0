//! The network between the hosts of a simulation: requests and answers as frames, each of which goes its own way.
//!
//! Every life of a host has one end. A request goes to the end that the other host has when it is sent, and to no later one; its answer
//! goes back to the end that has asked. Frames take their time, are lost, come twice, or come long after nobody waits for them any more: who
//! gets one twice knows it by its number. A link on which nothing is heard for [`SILENCE`] is over, and what was asked on it is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::Common;
use super::link::{Link, Pause};
use crate::clock::Clock;
use crate::store::BoxError;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Notify, mpsc, oneshot};
use crate::transport::{Addressee, Door, Introduction, Running, Transport, Undelivered};

/// The time after which a link is over on which nothing is heard.
const SILENCE: Duration = Duration::from_secs(3);
/// The time between two signs of life.
const LOOK: Duration = Duration::from_millis(750);

/// Puts something between a host and its transport.
pub(super) type Between = Arc<dyn Fn(Arc<dyn Transport>) -> Arc<dyn Transport> + Send + Sync>;

/// The network of all hosts, and of those who ask them.
#[derive(Clone)]
pub(super) struct Network(Arc<Inner>);

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

struct Inner {
    common: Arc<Common>,
    state: Mutex<State>,
    /// A notice for when a frame has come to where one is stopped, and for when it may go on.
    stopped: Notify,
    freed: Notify,
    /// Stands between a host and its transport.
    between: Option<Between>,
    /// The frames that are under way.
    frames: Mutex<JoinSet<()>>,
    /// The number of requests that a host has taken.
    taken: AtomicU64,
    /// The number of ends that there were.
    ends: AtomicU64,
}

#[derive(Default)]
struct State {
    ends: BTreeMap<Arc<str>, Arc<End>>,
    ways: BTreeMap<(Arc<str>, Arc<str>), Way>,
    /// The likelihood that a frame meets a fault.
    chance: f64,
    stop: Option<Stop>,
}

/// The way from one host to another.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    is_cut: bool,
    /// The most that a frame takes.
    delay: Duration,
}

/// A place on the way of a request and its answer at which its sender or its receiver may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The request has not been sent.
    Sending,
    /// The request was sent, and has not arrived.
    Arriving,
    /// The answer was made, and has not been sent.
    Answering,
    /// The answer was sent, and has not arrived.
    Returning,
}

impl Place {
    pub(super) const ALL: [Place; 4] = [Place::Sending, Place::Arriving, Place::Answering, Place::Returning];

    pub(super) fn described(self) -> &'static str {
        match self {
            Place::Sending => "before a request was sent",
            Place::Arriving => "before a request arrived",
            Place::Answering => "before an answer was sent",
            Place::Returning => "before an answer arrived",
        }
    }
}

/// A frame that is stopped at a place, or the number of those that pass there first.
#[derive(Debug, Clone)]
enum Stop {
    After(Place, u64),
    /// Stands there: between the host that asks and the one that answers.
    At(Arc<str>, Arc<str>),
}

/// One end of links: a life of a host, or an interface of a process that is none.
struct End {
    host: Arc<str>,
    /// Another number for each of them.
    life: u64,
    pause: Arc<Pause>,
    is_dead: Arc<AtomicBool>,
    /// Requests that have come to it.
    arrivals: mpsc::UnboundedSender<Arrival>,
    /// Requests of its own that have no answer, by number.
    asked: Mutex<BTreeMap<u64, oneshot::Sender<Answered>>>,
    next: AtomicU64,
    /// Requests that have come: whoever asks, and the number.
    seen: Mutex<BTreeSet<(u64, u64)>>,
    /// The lives of others that have been called.
    called: Mutex<BTreeSet<u64>>,
    under_way: Mutex<UnderWay>,
    /// A notice for when a request has been answered that was under way. (A channel that is watched wakes in an order of its own, which does not repeat.)
    answered: Notify,
    has_ended: AtomicBool,
    ending: Notify,
}

type Answered = Result<Bytes, Undelivered>;

/// The requests that a host has taken and not answered.
#[derive(Debug, Clone, Copy, Default)]
struct UnderWay {
    count: usize,
    /// Set once it takes no more.
    is_closing: bool,
}

/// A request, or the answer to one, on its way between the end that asks and the one that answers.
struct Frame {
    from: Arc<End>,
    to: Arc<End>,
    number: u64,
    load: Load,
    /// The host that answers does not end in good order before the answer is on its way's end.
    _taken: Option<Taken>,
}

/// The load of a frame.
enum Load {
    Request(Bytes),
    Answer(Bytes),
    /// The request was not taken.
    Refusal,
}

impl Frame {
    /// The ends from which and to which it goes.
    fn way(&self) -> (&Arc<End>, &Arc<End>) {
        match self.load {
            Load::Request(_) => (&self.from, &self.to),
            Load::Answer(_) | Load::Refusal => (&self.to, &self.from),
        }
    }
}

/// A request that has arrived.
struct Arrival {
    from: Arc<End>,
    number: u64,
    request: Bytes,
}

/// The fate of one frame.
enum Fate {
    /// Arrives after this time.
    Arrives(Duration),
    /// Arrives, and once more so much later.
    ArrivesTwice(Duration, Duration),
    /// Never arrives.
    IsLost,
    /// Arrives so long after its link was given up.
    IsLate(Duration),
}

fn not_sent(reason: &str) -> Undelivered {
    Undelivered::NotSent(reason.into())
}

fn unanswered(reason: &str) -> Undelivered {
    Undelivered::Unanswered(reason.into())
}

impl Network {
    pub(super) fn new(common: Arc<Common>, chance: f64, between: Option<Between>) -> Network {
        let state = Mutex::new(State { chance, ..State::default() });
        let (stopped, freed, frames) = (Notify::new(), Notify::new(), Mutex::default());
        let (taken, ends) = (AtomicU64::new(0), AtomicU64::new(0));
        Network(Arc::new(Inner { common, state, stopped, freed, between, frames, taken, ends }))
    }

    /// The transport of one life of a host, or of an interface of a process that is none.
    pub(super) fn transport(&self, link: &Link) -> Arc<dyn Transport> {
        let (pause, is_dead) = (link.pause.clone(), link.is_dead.clone());
        let life = self.0.ends.fetch_add(1, Ordering::SeqCst);
        let transport = Arc::new(LifeTransport { network: self.0.clone(), life, pause, is_dead, end: OnceLock::new() });
        match &self.0.between {
            Some(between) => between(transport),
            None => transport,
        }
    }

    /// The number of requests that a host has taken for others so far.
    pub(super) fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::SeqCst)
    }

    /// Cuts the way from one host to another.
    pub(super) fn cut(&self, from: &Arc<str>, to: &Arc<str>) {
        self.0.state.lock().ways.entry((from.clone(), to.clone())).or_default().is_cut = true;
    }

    /// Sets the most that a frame takes from one host to another.
    pub(super) fn slow_down(&self, from: &Arc<str>, to: &Arc<str>, delay: Duration) {
        self.0.state.lock().ways.entry((from.clone(), to.clone())).or_default().delay = delay;
    }

    /// Makes the ways between two hosts as they were.
    pub(super) fn mend(&self, one: &Arc<str>, other: &Arc<str>) {
        let mut state = self.0.state.lock();
        state.ways.remove(&(one.clone(), other.clone()));
        state.ways.remove(&(other.clone(), one.clone()));
    }

    /// Stops a frame at a place, once so many have passed there; not if another is to be stopped.
    pub(super) fn stop_at(&self, place: Place, after: u64) -> bool {
        let mut state = self.0.state.lock();
        let is_free = state.stop.is_none();
        if is_free {
            state.stop = Some(Stop::After(place, after));
        }
        is_free
    }

    /// Waits until one is stopped: the host that asks, and the one that answers.
    pub(super) async fn until_stopped(&self) -> (Arc<str>, Arc<str>) {
        loop {
            if let Some(Stop::At(from, to)) = &self.0.state.lock().stop {
                return (from.clone(), to.clone());
            }
            self.0.stopped.notified().await;
        }
    }

    /// Lets the frame go on that was stopped, and stops none.
    pub(super) fn let_go(&self) {
        self.0.state.lock().stop = None;
        self.0.freed.notify_waiters();
    }

    /// Ends all faults.
    pub(super) fn heal(&self) {
        {
            let mut state = self.0.state.lock();
            state.ways.clear();
            state.chance = 0.0;
        }
        self.let_go();
    }

    /// Ends what is under way.
    pub(super) async fn end(&self) {
        let mut frames = std::mem::take(&mut *self.0.frames.lock());
        frames.shutdown().await;
    }
}

impl Inner {
    fn way(&self, from: &End, to: &End) -> Way {
        self.state.lock().ways.get(&(from.host.clone(), to.host.clone())).copied().unwrap_or_default()
    }

    fn is_cut(&self, from: &End, to: &End) -> bool {
        self.way(from, to).is_cut || self.way(to, from).is_cut
    }

    /// Waits if this is where a frame is to be stopped.
    async fn pass(&self, place: Place, from: &Arc<str>, to: &Arc<str>) {
        {
            let mut state = self.state.lock();
            match &mut state.stop {
                Some(Stop::After(at, 0)) if *at == place => state.stop = Some(Stop::At(from.clone(), to.clone())),
                Some(Stop::After(at, left)) if *at == place => {
                    *left -= 1;
                    return;
                }
                _ => return,
            }
        }
        self.stopped.notify_one();
        self.freed.notified().await;
    }

    fn fate(&self, way: Way) -> Fate {
        let random = &self.common.random;
        let chance = self.state.lock().chance;
        let seconds = Duration::from_secs;
        let usual = Duration::from_millis(random.below(4) * random.below(2)) + random.up_to(way.delay);
        if !random.chance(chance) {
            return Fate::Arrives(usual);
        }
        let (name, fate) = match random.below(10) {
            0..2 => ("lost", Fate::IsLost),
            2..4 => ("late", Fate::IsLate(random.up_to(seconds(10)))),
            4..7 => ("twice", Fate::ArrivesTwice(usual, random.up_to(seconds(8)))),
            _ => ("slow", Fate::Arrives(usual + random.up_to(seconds(2)))),
        };
        self.common.fault(&format!("frame {name}"));
        fate
    }

    /// Sends a frame on its way.
    fn send(self: &Arc<Self>, frame: Frame) {
        let (from, to) = frame.way();
        let fate = self.fate(self.way(from, to));
        let this = self.clone();
        let task = async move {
            let clock = &this.common.clock;
            match fate {
                Fate::Arrives(after) => {
                    clock.sleep(after).await;
                    this.arrive(&frame).await;
                }
                Fate::ArrivesTwice(after, again) => {
                    clock.sleep(after).await;
                    this.arrive(&frame).await;
                    clock.sleep(again).await;
                    this.arrive(&frame).await;
                }
                Fate::IsLost => {
                    clock.sleep(SILENCE).await;
                    frame.from.hear(frame.number, Err(unanswered("a frame was lost")));
                }
                Fate::IsLate(after) => {
                    clock.sleep(SILENCE).await;
                    frame.from.hear(frame.number, Err(unanswered("a frame was late")));
                    clock.sleep(after).await;
                    this.arrive(&frame).await;
                }
            }
        };
        let mut frames = self.frames.lock();
        while frames.try_join_next().is_some() {}
        frames.spawn(task);
    }

    /// A frame has come to its end, which has to be there still, and not to stand still.
    async fn arrive(&self, frame: &Frame) {
        let (asks, answers, number) = (&frame.from, &frame.to, frame.number);
        let is_request = matches!(frame.load, Load::Request(_));
        let place = if is_request { Place::Arriving } else { Place::Returning };
        self.pass(place, &asks.host, &answers.host).await;
        let (from, to) = frame.way();
        to.pause.passed().await;
        if self.way(from, to).is_cut {
            self.common.fault("frame on a way that is cut");
            self.common.clock.sleep(SILENCE).await;
            return asks.hear(number, Err(unanswered("the link was cut")));
        }
        match &frame.load {
            Load::Request(request) => {
                if !answers.seen.lock().insert((asks.life, number)) {
                    return self.common.fault("request known by its number");
                }
                if asks.is_dead() {
                    self.common.fault("request of a host that is dead");
                }
                // Where nobody takes it any more, its host has ended.
                drop(answers.arrivals.send(Arrival { from: asks.clone(), number, request: request.clone() }));
            }
            Load::Answer(answer) => asks.hear(number, Ok(answer.clone())),
            Load::Refusal => asks.hear(number, Err(not_sent("it takes no more requests"))),
        }
    }

    /// Waits until nothing has been heard of the other end for as long as that ends a link.
    async fn silence(&self, own: &End, other: &End) {
        let mut silent = Duration::ZERO;
        while silent < SILENCE {
            self.common.clock.sleep(LOOK).await;
            let is_silent = other.pause.is_on() || other.has_ended.load(Ordering::SeqCst) || self.is_cut(own, other);
            silent = if is_silent { silent + LOOK } else { Duration::ZERO };
        }
    }
}

impl End {
    /// The answer to a request has come. One that nobody waits for says nothing.
    fn hear(&self, number: u64, answer: Answered) {
        let asked = self.asked.lock().remove(&number);
        if let Some(asked) = asked {
            drop(asked.send(answer));
        }
    }

    async fn ended(&self) {
        let mut ending = std::pin::pin!(self.ending.notified());
        // Listen first, then look: an end in between is not missed.
        ending.as_mut().enable();
        if !self.has_ended.load(Ordering::SeqCst) {
            ending.await;
        }
    }

    fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }

    /// Takes requests until it is dropped.
    async fn take(
        self: Arc<End>,
        network: Arc<Inner>,
        door: Arc<dyn Door>,
        mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    ) {
        let mut answering = JoinSet::new();
        loop {
            tokio::select! { biased;
                Some(_ended) = answering.join_next(), if !answering.is_empty() => {}
                Some(arrival) = arrivals.recv() => {
                    let (own, network, door) = (self.clone(), network.clone(), door.clone());
                    answering.spawn(async move { own.answer(&network, &*door, arrival).await });
                }
            }
        }
    }

    async fn answer(self: &Arc<End>, network: &Arc<Inner>, door: &dyn Door, arrival: Arrival) {
        let Arrival { from, number, request } = arrival;
        let taken = Taken::begin(self);
        let load = if taken.is_some() {
            network.taken.fetch_add(1, Ordering::SeqCst);
            let answer = door.answer(request).await;
            network.pass(Place::Answering, &from.host, &self.host).await;
            Load::Answer(answer)
        } else {
            Load::Refusal
        };
        self.pause.passed().await;
        if !self.is_dead() {
            network.send(Frame { from, to: self.clone(), number, load, _taken: taken });
        }
    }
}

/// Counts a request that was taken until its answer has come to its end.
struct Taken(Arc<End>);

impl Taken {
    /// `None` if no more are taken.
    fn begin(end: &Arc<End>) -> Option<Taken> {
        let mut under_way = end.under_way.lock();
        (!under_way.is_closing).then(|| {
            under_way.count += 1;
            Taken(end.clone())
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.under_way.lock().count -= 1;
        self.0.answered.notify_one();
    }
}

/// One life's way into the network.
struct LifeTransport {
    network: Arc<Inner>,
    life: u64,
    pause: Arc<Pause>,
    is_dead: Arc<AtomicBool>,
    end: OnceLock<Arc<End>>,
}

impl fmt::Debug for LifeTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LifeTransport").field("life", &self.life).finish_non_exhaustive()
    }
}

/// Takes an end out of the network when its host ends, unless another life has taken its place.
struct Leaves {
    network: Arc<Inner>,
    end: Arc<End>,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.end.has_ended.store(true, Ordering::SeqCst);
        self.end.ending.notify_waiters();
        let mut state = self.network.state.lock();
        if state.ends.get(&self.end.host).is_some_and(|end| end.life == self.end.life) {
            state.ends.remove(&self.end.host);
        }
    }
}

/// Forgets what was asked when nobody waits for the answer any more.
struct Asking<'a>(&'a End, u64);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asked.lock().remove(&self.1);
    }
}

#[async_trait]
impl Transport for LifeTransport {
    fn address(&self) -> Option<Arc<str>> {
        None
    }

    async fn open(&self, own: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError> {
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let end = Arc::new(End {
            host: own.host,
            life: self.life,
            pause: self.pause.clone(),
            is_dead: self.is_dead.clone(),
            arrivals,
            asked: Mutex::default(),
            next: AtomicU64::new(0),
            seen: Mutex::default(),
            called: Mutex::default(),
            under_way: Mutex::default(),
            answered: Notify::new(),
            has_ended: AtomicBool::new(false),
            ending: Notify::new(),
        });
        let network = self.network.clone();
        network.state.lock().ends.insert(end.host.clone(), end.clone());
        self.end.set(end.clone()).map_err(|_| "a transport is opened once")?;
        let leaves = Leaves { network: network.clone(), end: end.clone() };
        Ok(Box::pin(async move {
            let _leaves = leaves;
            match door {
                Some(door) => end.take(network, door, arrived).await,
                None => pending().await,
            }
        }))
    }

    async fn send(&self, to: &Addressee, request: Bytes) -> Answered {
        let (network, own) = (&self.network, self.end.get().ok_or_else(|| not_sent("it has not been opened"))?);
        let (common, random) = (&network.common, &network.common.random);
        own.pause.passed().await;
        network.pass(Place::Sending, &own.host, &to.host).await;
        if own.is_dead() {
            return Err(not_sent("this host is dead"));
        }
        let other = network.state.lock().ends.get(&to.host).cloned();
        let other = other.ok_or_else(|| not_sent("nobody is there"))?;
        let is_called = own.called.lock().contains(&other.life);
        if !is_called {
            if network.is_cut(own, &other) || other.pause.is_on() {
                common.fault("call in vain");
                common.clock.sleep(SILENCE).await;
                return Err(not_sent("nobody answers"));
            }
            own.called.lock().insert(other.life);
        }
        let number = own.next.fetch_add(1, Ordering::SeqCst);
        let (asked, answer) = oneshot::channel();
        own.asked.lock().insert(number, asked);
        let _asking = Asking(own, number);
        let load = Load::Request(request);
        network.send(Frame { from: own.clone(), to: other.clone(), number, load, _taken: None });
        // A machine that has died does not say so.
        let is_told = random.chance(0.7);
        let ended = async {
            match is_told {
                true => other.ended().await,
                false => pending().await,
            }
        };
        let (answer, is_over) = tokio::select! { biased;
            answer = answer => (answer.unwrap_or_else(|_| Err(unanswered("this end has ended"))), false),
            () = own.ended() => (Err(unanswered("this host has ended")), true),
            () = ended => (Err(unanswered("the other host has ended")), true),
            () = network.silence(own, &other) => (Err(unanswered("the other host says nothing any more")), true),
        };
        if is_over {
            own.called.lock().remove(&other.life);
        }
        own.pause.passed().await;
        answer
    }

    async fn close(&self) {
        if let Some(end) = self.end.get() {
            end.under_way.lock().is_closing = true;
            while end.under_way.lock().count > 0 {
                end.answered.notified().await;
            }
        }
    }
}
