//! A live fleet of other processes that is asked without a pause while its hosts come and go.
//!
//! Each host is a process with a door, a socket at which this process asks: any door for any instance. An instance that is asked counts, and has an alarm
//! that it sets anew whenever it has fired; its host says at the door how late it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use callback_flows::{Flow, FlowResult, Flows, UrlKeys};
use serde::{Deserialize, Serialize};
use stable_interfaces::store::{Claim, ClaimKind, HASH_VERSION, Incarnation, Placement, Presence, Renewal};
use stable_interfaces::transport::TcpTransport;
use stable_interfaces::{
    Alarm, Context, ContextError, Fleet, Handle, Host, Interface, OnAlarm, StableInterface, Store,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alarms::wall_millis;
use crate::measure::cpu_time;
use crate::other_process::OtherProcess;
use crate::stores::{Backend, Metered};

/// The number of shards.
pub const SHARDS: u32 = 256;
/// The instances that are asked.
pub const IDS: usize = 128;
/// Every so many shards have a flow with a long step, where there are such flows.
const SHARDS_PER_FLOW: u32 = 10;
/// The pause between two questions to an instance.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// The time from an alarm to the next one.
const ALARM_EVERY: Duration = Duration::from_millis(200);
/// The time that the step of a flow takes.
pub const STEP: Duration = Duration::from_secs(10);

/// The ID of an instance by its number.
#[must_use]
pub fn id(number: usize) -> String {
    format!("instance-{number:04}")
}

fn fleet() -> Fleet {
    Fleet::live(SHARDS).expect("there are shards enough")
}

/// The IDs of the flows of one run, one in every tenth shard.
fn flow_ids(run: usize) -> Vec<String> {
    let fleet = fleet();
    let in_shard = |shard: u32| {
        let is_there = |id: &String| fleet.shard_of(&format!("long/{id}")).is_ok_and(|of| of.0 == shard);
        (0..).map(|number| format!("flow-{run}-{number}")).find(is_there).expect("each shard has IDs")
    };
    (0..SHARDS).step_by(SHARDS_PER_FLOW as usize).map(in_shard).collect()
}

/// Says something at every door of a host.
#[derive(Debug, Clone, Default)]
struct Doors(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    doors: Vec<mpsc::UnboundedSender<String>>,
    /// The lines that were said before somebody came to a door: the latest alarms are those of a host that has just started.
    early: Vec<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Doors {
    fn say(&self, line: &str) {
        let Said { doors, early } = &mut *lock(&self.0);
        match doors.is_empty() {
            true => early.push(line.to_owned()),
            false => doors.retain(|door| door.send(line.to_owned()).is_ok()),
        }
    }

    fn open(&self, door: mpsc::UnboundedSender<String>) {
        let Said { doors, early } = &mut *lock(&self.0);
        early.drain(..).for_each(|line| drop(door.send(line)));
        doors.push(door);
    }
}

/// An instance that is asked, and wakes itself up.
#[derive(Debug)]
struct Asked {
    count: u64,
    doors: Doors,
}

impl StableInterface for Asked {
    const NAME: &'static str = "asked";
    type Error = ContextError;
}

#[derive(Debug, Serialize, Deserialize)]
struct Ask;

impl Handle<Ask> for Asked {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, _: Ask) -> Result<u64, ContextError> {
        self.count += 1;
        Ok(self.count)
    }
}

/// Has an instance set its first alarm.
#[derive(Debug, Serialize, Deserialize)]
struct Begin;

impl Handle<Begin> for Asked {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, _: Begin) -> Result<u64, ContextError> {
        cx.set_alarm("tick", cx.now() + ALARM_EVERY, &())?;
        Ok(0)
    }
}

impl OnAlarm for Asked {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        let late = wall_millis() - alarm.scheduled_at().as_millis() as f64;
        self.doors.say(&format!("alarm {} {late:.1}", cx.id()));
        let next = alarm.scheduled_at() + ALARM_EVERY;
        let next = next.max(cx.now());
        cx.set_alarm("tick", next, &())
    }
}

/// A flow whose one step takes long. It ends with the number of the process that recorded it.
async fn long(doors: Doors, flow: Flow, id: String) -> FlowResult<u32> {
    let ran = flow.step("long").run(|_| async {
        doors.say(&format!("step {id}"));
        tokio::time::sleep(STEP).await;
        Ok::<_, std::io::Error>(std::process::id())
    });
    let by = ran.await?;
    doors.say(&format!("over {id} {by}"));
    Ok(by)
}

/// The other process: a host of the fleet with a door. It ends when its input does, after it has drained.
///
/// # Panics
/// If it cannot start.
pub async fn host(backend: &dyn Backend, name: &str, store: &str, lease: Duration) {
    let doors = Doors::default();
    let mut builder = Host::builder(name, fleet()).lease(lease).shared_store(backend.at(store).open().await);
    builder = builder.transport(TcpTransport::listen("127.0.0.1:0"));
    let of_instances = doors.clone();
    let asked = builder.interface(move |_| Asked { count: 0, doors: of_instances.clone() }).with_alarms();
    let asked = asked.forward::<Ask>("ask").forward::<Begin>("begin").register().expect("its name is good");
    let of_flows = doors.clone();
    let keys = UrlKeys::new("k1", "sixteen bytes or more").expect("the secret is long enough");
    let flows = Flows::builder()
        .flow("long", 1, move |flow, id| long(of_flows.clone(), flow, id))
        .callbacks("https://flows.example/callbacks", keys)
        .register(&mut builder)
        .expect("they can be registered");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there are ports");
    println!("starting {}", listener.local_addr().expect("it is bound"));
    let host = Arc::new(builder.start().await.expect("the host can start"));
    println!("started");
    let serving = tokio::spawn(serve(listener, host.clone(), asked, flows, doors));
    let of_readiness = host.clone();
    let readiness = tokio::spawn(async move {
        while !of_readiness.is_ready(Duration::from_secs(1)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("ready {}", of_readiness.shards().len());
    });
    let (end, is_over) = oneshot::channel();
    std::thread::spawn(move || {
        // A line, or the end of all.
        let _ = std::io::stdin().read_line(&mut String::new());
        end.send(())
    });
    let drained = host.run_until(is_over).await;
    println!("drained {}", drained.is_ok_and(|drained| drained.released));
    readiness.abort();
    serving.abort();
}

/// Answers at the door, in whatever order.
async fn serve(listener: TcpListener, host: Arc<Host>, asked: Interface<Asked>, flows: Flows, doors: Doors) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        let (say, said) = mpsc::unbounded_channel();
        doors.open(say.clone());
        tokio::spawn(write(writer, said));
        let (host, asked, flows) = (host.clone(), asked.clone(), flows.clone());
        tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let (host, asked, flows, say) = (host.clone(), asked.clone(), flows.clone(), say.clone());
                tokio::spawn(async move {
                    let mut words = line.split(' ');
                    let [number, what, id] = [(); 3].map(|()| words.next().unwrap_or_default());
                    let done = match what {
                        "ask" => asked.request(id, Ask).await.map(drop).map_err(|error| error.to_string()),
                        "begin" => asked.request(id, Begin).await.map(drop).map_err(|error| error.to_string()),
                        "shards" => Err(host.shards().len().to_string()),
                        _ => flows.start("long", id, &id).await.map(drop).map_err(|error| error.to_string()),
                    };
                    // Whoever asked may have gone.
                    let _ = match done {
                        Ok(()) => say.send(format!("{number} ok")),
                        Err(error) => say.send(format!("{number} {error}")),
                    };
                });
            }
        });
    }
}

async fn write(mut writer: OwnedWriteHalf, mut lines: mpsc::UnboundedReceiver<String>) {
    let mut out = String::new();
    while let Some(line) = lines.recv().await {
        out.push_str(&line);
        out.push('\n');
        while let Ok(line) = lines.try_recv() {
            out.push_str(&line);
            out.push('\n');
        }
        if writer.write_all(out.as_bytes()).await.is_err() {
            return;
        }
        out.clear();
    }
}

/// One host as this process sees it.
#[derive(Debug)]
pub struct Site {
    process: OtherProcess,
    door: Arc<Door>,
    /// The time that its process took to come to its start.
    pub to_start: Duration,
}

/// The way to the door of one host.
#[derive(Debug)]
pub struct Door {
    name: String,
    ask: mpsc::UnboundedSender<String>,
    asked: Mutex<HashMap<u64, oneshot::Sender<String>>>,
    next: AtomicU64,
    /// Says whether it is to be used: a load balancer takes one out that is about to stop.
    is_open: AtomicBool,
}

/// The longest time between two answers of one instance.
#[derive(Debug, Clone, Copy)]
struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gap {
    fn end(&mut self, now: Instant) {
        self.longest = self.longest.max(now.duration_since(self.last));
        self.last = now;
    }

    /// The longest one, that which has not ended among them, and begins anew.
    fn take(&mut self, now: Instant) -> Duration {
        std::mem::take(&mut self.longest).max(now.duration_since(self.last))
    }
}

/// The sights of one part of the measurement.
#[derive(Debug, Default)]
pub struct Seen {
    /// By the number of an instance.
    gaps: Mutex<Vec<Gap>>,
    /// Answers that were errors, by their words.
    errors: Mutex<HashMap<String, u64>>,
    answers: AtomicU64,
    /// Questions at a door that was lost with its host.
    cut: AtomicU64,
    alarms: AtomicU64,
    late: Mutex<f64>,
    /// The time of the last alarm of each instance.
    last_alarm: Mutex<HashMap<String, Instant>>,
    steps: Mutex<HashMap<String, u32>>,
    over: Mutex<HashMap<String, Vec<String>>>,
}

/// The figures of one part.
#[derive(Debug)]
pub struct Figures {
    /// Sorted, in milliseconds: for each instance the longest time without an answer.
    pub longest: Vec<f64>,
    /// The number of answers.
    pub answers: u64,
    /// Answers that were errors, by their words.
    pub errors: HashMap<String, u64>,
    /// Questions at a door that was lost with its host.
    pub cut: u64,
    /// Alarms that have fired.
    pub alarms: u64,
    /// The longest time by which one was late, in milliseconds; or is, if it has not fired.
    pub late: f64,
    /// Flows that are over, and those among them of which two ends were said.
    pub over: (usize, usize),
    /// Steps that have begun, those that were begun again among them.
    pub steps: u32,
}

impl Seen {
    fn hear(&self, line: &str) {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("alarm"), Some(id), Some(late)) => {
                self.alarms.fetch_add(1, Ordering::Relaxed);
                lock(&self.last_alarm).insert(id.to_owned(), Instant::now());
                let (late, mut longest) = (late.parse().unwrap_or(f64::NAN), lock(&self.late));
                *longest = longest.max(late);
            }
            (Some("step"), Some(id), None) => *lock(&self.steps).entry(id.to_owned()).or_default() += 1,
            (Some("over"), Some(id), Some(by)) => {
                lock(&self.over).entry(id.to_owned()).or_default().push(by.to_owned());
            }
            _ => {}
        }
    }

    /// Begins anew, and gives what was seen until now.
    fn take(&self) -> Figures {
        let now = Instant::now();
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let mut longest: Vec<_> = lock(&self.gaps).iter_mut().map(|gap| millis(gap.take(now))).collect();
        longest.sort_by(f64::total_cmp);
        let overdue = |last: &Instant| millis(now.duration_since(*last).saturating_sub(ALARM_EVERY));
        let late = lock(&self.last_alarm).values().map(overdue).fold(std::mem::take(&mut *lock(&self.late)), f64::max);
        let over = std::mem::take(&mut *lock(&self.over));
        // A code that is run again from the top says its end again: the same one, or it was recorded twice.
        let twice = over.values().filter(|by| by.iter().any(|one| *one != by[0])).count();
        Figures {
            longest,
            answers: self.answers.swap(0, Ordering::Relaxed),
            errors: std::mem::take(&mut *lock(&self.errors)),
            cut: self.cut.swap(0, Ordering::Relaxed),
            alarms: self.alarms.swap(0, Ordering::Relaxed),
            late,
            over: (over.len(), twice),
            steps: std::mem::take(&mut *lock(&self.steps)).values().sum(),
        }
    }
}

impl Door {
    async fn connect(name: &str, address: &str, seen: Arc<Seen>) -> Arc<Door> {
        let stream = TcpStream::connect(address).await.expect("the host listens");
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        let (ask, lines) = mpsc::unbounded_channel();
        tokio::spawn(write(writer, lines));
        let (asked, next) = Default::default();
        let door = Arc::new(Door { name: name.to_owned(), ask, asked, next, is_open: AtomicBool::new(true) });
        let of_answers = door.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match line.split_once(' ').and_then(|(number, answer)| Some((number.parse().ok()?, answer))) {
                    Some((number, answer)) => {
                        let asked = lock(&of_answers.asked).remove(&number);
                        drop(asked.map(|asked| asked.send(answer.to_owned())));
                    }
                    None => seen.hear(&line),
                }
            }
            of_answers.is_open.store(false, Ordering::Release);
            lock(&of_answers.asked).clear();
        });
        door
    }

    /// Has something done; `None` if the door was lost meanwhile.
    async fn ask(&self, what: &str, id: &str) -> Option<String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.asked).insert(number, answer);
        if !self.is_open.load(Ordering::Acquire) {
            lock(&self.asked).remove(&number);
            return None;
        }
        let _ = self.ask.send(format!("{number} {what} {id}"));
        answered.await.ok()
    }
}

/// The fleet, and those who ask.
#[derive(Debug)]
pub struct World {
    store: String,
    backend: &'static str,
    lease: Duration,
    sites: HashMap<String, Site>,
    doors: Arc<Mutex<Vec<Arc<Door>>>>,
    seen: Arc<Seen>,
    is_over: Arc<AtomicBool>,
}

impl World {
    /// A fleet on a store at this address, without hosts.
    #[must_use]
    pub fn new(backend: &'static str, store: String, lease: Duration) -> World {
        let (doors, seen, is_over) = Default::default();
        World { store, backend, lease, sites: HashMap::new(), doors, seen, is_over }
    }

    /// Starts a host and waits until it has started; its door is used from then on.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(&mut self, name: &str) {
        let begun = Instant::now();
        let lease = self.lease.as_millis().to_string();
        let mut process = OtherProcess::start(&["host", self.backend, &self.store, name, &lease]);
        let starting = process.hear().await.expect("the host starts");
        let to_start = begun.elapsed();
        let address = starting.strip_prefix("starting ").expect("it says where its door is").to_owned();
        assert_eq!(process.hear().await.as_deref(), Some("started"), "{name} has started");
        let door = Door::connect(name, &address, self.seen.clone()).await;
        lock(&self.doors).push(door.clone());
        self.sites.insert(name.to_owned(), Site { process, door, to_start });
    }

    /// Waits until a host says that it is ready, and gives the number of its shards.
    ///
    /// # Panics
    /// If it never is.
    pub async fn ready(&mut self, name: &str) -> usize {
        let said = self.site(name).process.hear().await.expect("the host is ready some time");
        said.strip_prefix("ready ").and_then(|shards| shards.parse().ok()).expect("it says how many shards it has")
    }

    fn site(&mut self, name: &str) -> &mut Site {
        self.sites.get_mut(name).expect("the host was started")
    }

    /// The time that the process of a host took to come to its start.
    #[must_use]
    pub fn to_start(&self, name: &str) -> Duration {
        self.sites[name].to_start
    }

    /// The number of shards that a host owns now.
    ///
    /// # Panics
    /// If it cannot say.
    pub async fn shards_of(&self, name: &str) -> usize {
        let said = self.sites[name].door.ask("shards", "").await;
        said.and_then(|said| said.parse().ok()).expect("the host says how many shards it has")
    }

    /// Nobody asks at a door any more, as if a load balancer had taken it out.
    fn shut(&mut self, name: &str) {
        lock(&self.doors).retain(|door| door.name != name);
    }

    /// Kills a host. Its door is in use until it is lost.
    pub fn kill(&mut self, name: &str) {
        let mut site = self.sites.remove(name).expect("the host was started");
        site.process.kill();
        site.door.is_open.store(false, Ordering::Release);
        self.shut(name);
    }

    /// Tells a host to leave and waits until it has; says whether it gave everything back.
    pub async fn drain(&mut self, name: &str) -> bool {
        self.shut(name);
        let mut site = self.sites.remove(name).expect("the host was started");
        site.process.tell("leave");
        loop {
            match site.process.hear().await {
                Some(said) if said.starts_with("ready") => {}
                said => return said.as_deref() == Some("drained true"),
            }
        }
    }

    fn any_door(doors: &Mutex<Vec<Arc<Door>>>, draw: &mut u64) -> Option<Arc<Door>> {
        let doors = lock(doors);
        // Xorshift (Marsaglia, 2003).
        *draw ^= *draw << 13;
        *draw ^= *draw >> 7;
        *draw ^= *draw << 17;
        let count = doors.len() as u64;
        doors.get(usize::try_from((*draw >> 32) % count.max(1)).expect("it is an index")).cloned()
    }

    /// Has every instance set its first alarm, and asks them all until the end.
    ///
    /// # Panics
    /// If one cannot.
    pub async fn begin(&self) {
        let mut draw = 0x9E37_79B9_7F4A_7C15;
        for number in 0..IDS {
            let door = World::any_door(&self.doors, &mut draw).expect("there are hosts");
            let said = door.ask("begin", &id(number)).await;
            assert_eq!(said.as_deref(), Some("ok"), "{number}");
        }
        let now = Instant::now();
        lock(&self.seen.gaps).resize(IDS, Gap { last: now, longest: Duration::ZERO });
        lock(&self.seen.last_alarm).extend((0..IDS).map(|number| (id(number), now)));
        for number in 0..IDS {
            let (doors, seen, is_over) = (self.doors.clone(), self.seen.clone(), self.is_over.clone());
            tokio::spawn(async move {
                let (id, mut draw) = (id(number), 0x9E37_79B9_7F4A_7C15 ^ (number as u64 + 1));
                while !is_over.load(Ordering::Relaxed) {
                    let next = Instant::now() + ASK_EVERY;
                    let answer = match World::any_door(&doors, &mut draw) {
                        Some(door) => door.ask("ask", &id).await,
                        None => None,
                    };
                    match answer.as_deref() {
                        Some("ok") => {
                            lock(&seen.gaps)[number].end(Instant::now());
                            seen.answers.fetch_add(1, Ordering::Relaxed);
                        }
                        Some(error) => {
                            // Without what differs from instance to instance.
                            let words = error.replace(&id, "..");
                            *lock(&seen.errors).entry(words).or_default() += 1;
                        }
                        None => drop(seen.cut.fetch_add(1, Ordering::Relaxed)),
                    }
                    tokio::time::sleep_until(next).await;
                }
            });
        }
    }

    /// Starts a flow with a long step in every tenth shard.
    ///
    /// # Panics
    /// If one cannot be started.
    pub async fn begin_flows(&self, run: usize) {
        let mut draw = 0x9E37_79B9_7F4A_7C15;
        for id in flow_ids(run) {
            let door = World::any_door(&self.doors, &mut draw).expect("there are hosts");
            let said = door.ask("flow", &id).await;
            assert_eq!(said.as_deref(), Some("ok"), "{id}");
        }
    }

    /// Waits a while, and gives what was seen since this was last called.
    pub async fn watch(&self, time: Duration) -> Figures {
        tokio::time::sleep(time).await;
        self.seen.take()
    }

    /// Ends those who ask.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// The name of the host that is measured while it is idle.
const IDLE: &str = "host-idle";

/// Makes others members of a fleet that do nothing but to renew their leases, until the task is dropped.
///
/// # Panics
/// If the store does not take them.
pub async fn renew(store: Arc<dyn Store>, others: usize, lease: Duration) {
    let presence = |number: usize| Presence {
        address: Some(format!("10.0.{}.{}:7000", number / 250, number % 250).into()),
        build: "1".into(),
        placement: Placement::Live,
        placement_version: 1,
        ..Presence::default()
    };
    let renew = |number: usize| {
        let (store, incarnation) = (store.clone(), Incarnation(number as u64 + 1));
        let claim = Claim {
            incarnation,
            host: format!("host-{number}").into(),
            shards: Vec::new(),
            given_up: Vec::new(),
            shard_count: SHARDS,
            hash_version: HASH_VERSION,
            lease,
            kind: ClaimKind::Start,
            presence: presence(number),
        };
        async move {
            // Not all of them at once.
            tokio::time::sleep(lease / 3 * u32::try_from(number).unwrap_or(0) / u32::try_from(others).unwrap_or(1))
                .await;
            store.claim(&claim).await.expect("the store takes a member");
            let renewal = Renewal { incarnation, lease, presence: claim.presence };
            loop {
                tokio::time::sleep(lease / 3).await;
                store.renew(&renewal).await.expect("the store renews a lease");
            }
        }
    };
    let mut tasks: JoinSet<()> = (0..others).map(renew).collect();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("the store goes on");
    }
}

/// The milliseconds of processor time that an idle host takes in a second, and its calls of the store in a third of a lease. To be run in a fresh process.
///
/// # Panics
/// If it cannot start.
pub async fn idle(store: Arc<dyn Store>, lease: Duration, time: Duration) -> (f64, f64) {
    let store = Metered::new(store);
    let mut builder = Host::builder(IDLE, fleet()).lease(lease).store(store.clone());
    builder = builder.transport(TcpTransport::listen("127.0.0.1:0"));
    let doors = Doors::default();
    let asked = builder.interface(move |_| Asked { count: 0, doors: doors.clone() }).with_alarms();
    asked.forward::<Ask>("ask").register().expect("its name is good");
    let host = builder.start().await.expect("the host can start");
    tokio::time::sleep(2 * lease).await;
    let (cpu, calls) = (cpu_time(), store.all_calls());
    tokio::time::sleep(time).await;
    let (cpu, calls) = (cpu_time() - cpu, store.all_calls() - calls);
    drop(host);
    (cpu.as_secs_f64() * 1e3 / time.as_secs_f64(), calls as f64 * lease.as_secs_f64() / 3.0 / time.as_secs_f64())
}
