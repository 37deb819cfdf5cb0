//! The application's code panics, or looks at its own instance and at another one, wherever this library calls, shows or drops it.
//!
//! Each [`Way`] is one such place of the public API. It may cost its own message; everybody else goes on, and the host drains in
//! good order. A way that locks itself out is found by a watchdog outside its runtime.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{
    Alarm, Connecting, ConnectionId, Context, ContextError, Directive, Handle, Health, Host, InstanceRef, Interface,
    Message, NewPost, OnAlarm, OnConnect, OnMessage, Peer, RequestError, RetryPolicy, StableInterface,
};
use system_tests::{BoxFuture, World};
use tokio::task::JoinHandle;

const SECOND: Duration = Duration::from_secs(1);

/// Conduct of the application's code wherever it is called, shown or dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Panics,
    LooksBack,
}

/// The state that all [`Odd`]s of a scene share.
struct Manner {
    habit: Habit,
    cells: OnceLock<Interface<Cell>>,
    acted: AtomicU64,
    fired: Mutex<Vec<String>>,
}

/// The payload of a panic that panics too when it is dropped.
struct Payload(u32);

impl Drop for Payload {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Payload(self.0 - 1));
        }
    }
}

impl Manner {
    fn act(&self) {
        self.acted.fetch_add(1, Ordering::SeqCst);
        match self.habit {
            Habit::Panics => std::panic::panic_any(Payload(2)),
            Habit::LooksBack => {
                if let Some(cells) = self.cells.get() {
                    let _seen = (cells.is_running("a"), cells.is_running("b"), cells.running());
                }
            }
        }
    }
}

/// A value whose every trait method does what its scene's manner is.
struct Odd(Arc<Manner>);

impl Odd {
    /// Lets it go without a sound: for those that a test gets back.
    fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.0.act();
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.act();
        f.write_str("odd")
    }
}

impl fmt::Debug for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.act();
        f.write_str("Odd")
    }
}

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.act();
        serializer.serialize_str("odd")
    }
}

impl AsRef<[u8]> for Odd {
    fn as_ref(&self) -> &[u8] {
        b"odd"
    }
}

/// An error that is as odd.
#[derive(Debug)]
struct Oops(Odd);

impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Oops {}

thread_local! {
    /// `From` is given no manner, so it finds the one of its thread's scene here.
    static MANNER: OnceLock<Arc<Manner>> = const { OnceLock::new() };
}

impl From<ContextError> for Oops {
    fn from(_: ContextError) -> Oops {
        let manner = MANNER.with(|manner| manner.get().cloned()).expect("each scene has its thread");
        manner.act();
        Oops(Odd(manner))
    }
}

type Act =
    Box<dyn for<'a> FnOnce(&'a mut Cell, &'a mut Context) -> BoxFuture<'a, Result<Option<Odd>, Oops>> + Send + 'static>;

/// A message that does what it was made for; the odd value beside it goes with it wherever it goes.
struct Do(Act);

fn act(
    handler: impl for<'a> FnOnce(&'a mut Cell, &'a mut Context) -> BoxFuture<'a, Result<Option<Odd>, Oops>> + Send + 'static,
) -> Do {
    Do(Box::new(handler))
}

/// An instance of this test.
struct Cell {
    manner: Arc<Manner>,
    kept: Option<Odd>,
    peer: Option<Peer<Odd>>,
    stops_oddly: bool,
}

impl StableInterface for Cell {
    const NAME: &'static str = "cell";
    type Error = Oops;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), Oops> {
        if cx.id() == "unstartable" { Err(Oops(Odd(self.manner.clone()))) } else { Ok(()) }
    }

    async fn on_stop(&mut self) {
        if self.stops_oddly {
            self.manner.act();
        }
    }
}

impl Handle<Do> for Cell {
    type Reply = Option<Odd>;

    async fn handle(&mut self, cx: &mut Context, Do(act): Do) -> Result<Option<Odd>, Oops> {
        act(self, cx).await
    }
}

impl OnAlarm for Cell {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), Oops> {
        let name = format!("{}/{}", cx.id(), alarm.id());
        self.manner.fired.lock().push(name);
        if alarm.id() == "fails" { Err(Oops(Odd(self.manner.clone()))) } else { Ok(()) }
    }
}

impl OnMessage for Cell {
    async fn on_message(&mut self, _: &mut Context, message: &Message) -> Result<(), Oops> {
        if message.id().starts_with("fails") { Err(Oops(Odd(self.manner.clone()))) } else { Ok(()) }
    }
}

impl OnConnect for Cell {
    type Meta = (&'static str, Odd);
    type Incoming = (bool, Odd);
    type Outgoing = Odd;

    async fn on_connect(
        &mut self,
        _: &mut Context,
        client: &mut Connecting<Odd>,
        (how, meta): (&'static str, Odd),
    ) -> Result<(), Oops> {
        match how {
            "drops its meta" => drop(meta),
            "fails" => {
                meta.forget();
                return Err(Oops(Odd(self.manner.clone())));
            }
            "rejects" => {
                meta.forget();
                client.reject("no");
            }
            _ => {
                meta.forget();
                self.peer = Some(client.accept());
            }
        }
        Ok(())
    }

    async fn on_receive(
        &mut self,
        _: &mut Context,
        _: ConnectionId,
        (fails, message): (bool, Odd),
    ) -> Result<(), Oops> {
        if fails {
            return Err(Oops(message));
        }
        message.forget();
        Ok(())
    }
}

/// A host with cells that have a habit.
struct Scene {
    world: World,
    manner: Arc<Manner>,
    host: Host,
    cells: Interface<Cell>,
}

impl Scene {
    async fn open(habit: Habit) -> Scene {
        let world = World::in_memory();
        let manner =
            Arc::new(Manner { habit, cells: OnceLock::new(), acted: AtomicU64::new(0), fired: Mutex::default() });
        MANNER.with(|place| drop(place.set(manner.clone())));
        let mut host = world.local();
        let (of_cells, captured) = (manner.clone(), Odd(manner.clone()));
        let factory = move |id: &str| {
            let _whole = &captured;
            if id == "unbuildable" {
                of_cells.act();
            }
            Cell { manner: of_cells.clone(), kept: None, peer: None, stops_oddly: false }
        };
        let policy = RetryPolicy::new().first(SECOND).longest(SECOND).attempts(2);
        let cells = host
            .interface(factory)
            .with_alarms()
            .with_inbox()
            .retry(policy)
            .max_waiting(4)
            .handler_timeout(30 * SECOND)
            .register()
            .unwrap();
        let host = host.start().await.unwrap();
        assert!(manner.cells.set(cells.clone()).is_ok());
        Scene { world, manner, host, cells }
    }

    fn odd(&self) -> Odd {
        Odd(self.manner.clone())
    }

    /// Asks an instance, and forgets a reply.
    async fn ask(&self, id: &str, message: Do) -> Result<(), RequestError<()>> {
        match self.cells.request(id, message).await {
            Ok(reply) => {
                reply.into_iter().for_each(Odd::forget);
                Ok(())
            }
            Err(RequestError::Handler(Oops(odd), ..)) => {
                odd.forget();
                Err(RequestError::Rejected("its own error".to_owned()))
            }
            Err(RequestError::Panicked(text)) => Err(RequestError::Panicked(text)),
            Err(error) => {
                let text = if matches!(error, RequestError::Unknown(_)) { "unknown" } else { "something else" };
                Err(RequestError::Rejected(text.to_owned()))
            }
        }
    }

    fn spawn(&self, id: &'static str, message: Do) -> JoinHandle<()> {
        let cells = self.cells.clone();
        tokio::spawn(async move {
            match cells.request(id, message).await {
                Ok(reply) => reply.into_iter().for_each(Odd::forget),
                Err(error) => std::mem::forget(error),
            }
        })
    }

    /// A message that does nothing, for as long as this.
    fn waits(&self, duration: Duration) -> Do {
        let sleep = stable_interfaces::clock::Clock::sleep(&self.world.clock, duration);
        act(move |_, _| {
            Box::pin(async move {
                sleep.await;
                Ok(None)
            })
        })
    }

    /// A message with an odd value in it, which its handler keeps.
    fn keeps(&self) -> Do {
        let odd = self.odd();
        act(move |me, _| {
            let old = me.kept.replace(odd);
            Box::pin(async move {
                old.into_iter().for_each(Odd::forget);
                Ok(None)
            })
        })
    }

    /// Everybody goes on: instances answer, alarms of every firing task fire.
    async fn goes_on(&self, after: &str) {
        assert_eq!(self.host.health(), Health::Running, "{after}");
        self.manner.fired.lock().clear();
        let ids: Vec<String> = (0..16).map(|n| format!("other-{n}")).chain(["a".into(), "b".into()]).collect();
        for id in &ids {
            self.ask(id, act(|_, _| Box::pin(std::future::ready(Ok(None)))))
                .await
                .unwrap_or_else(|_| panic!("{after}: {id}"));
            let due = self.world.at(self.world.now());
            let set = self.cells.set_alarm(id, "sound", due, &()).await;
            assert!(set.is_ok(), "{after}: {id}");
        }
        self.world.pass(5 * SECOND).await;
        let fired = self.manner.fired.lock().clone();
        for id in &ids {
            assert!(fired.contains(&format!("{id}/sound")), "{after}: the alarm of {id} did not fire");
        }
    }
}

/// One place where the application's code is called, shown or dropped.
struct Way {
    name: &'static str,
    go: for<'a> fn(&'a Scene) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
}

macro_rules! ways {
    ($($name:literal => |$scene:ident| $body:block)*) => {
        const WAYS: &[Way] = &[$(Way { name: $name, go: |$scene| Box::pin(async move $body) }),*];
    };
}

ways! {
    "the error of an alarm is shown" => |s| {
        for n in 0..16 {
            let id = format!("other-{n}");
            let set = s.cells.set_alarm(&id, "fails", s.world.at(0), &()).await;
            assert!(set.is_ok());
        }
        s.world.pass(10 * SECOND).await;
        let Ok(dead) = s.cells.dead_letters(None, 100).await else { panic!("dead letters are read") };
        assert_eq!(dead.len(), 16, "each was tried again, and given up");
    }
    "the error of a message from an inbox is shown" => |s| {
        for n in 0..4 {
            let posted = s.cells.post("a", NewPost::new("m").id(format!("fails-{n}"))).await;
            assert!(posted.is_ok());
        }
        s.world.pass(10 * SECOND).await;
        let Ok(dead) = s.cells.dead_letters(None, 100).await else { panic!("dead letters are read") };
        assert_eq!(dead.len(), 4);
    }
    "the bytes of a message to an inbox belong to the application" => |s| {
        let own = bytes::Bytes::from_owner(s.odd());
        let posted = s.cells.post("a", NewPost::new(own)).await;
        assert!(posted.is_ok());
        s.world.pass(SECOND).await;
    }
    "the bytes of a value belong to the application" => |s| {
        let odd = s.odd();
        let put = act(move |_, cx| Box::pin(async move {
            let own = bytes::Bytes::from_owner(odd);
            assert!(cx.put_bytes("k", own.clone()).is_ok());
            assert!(cx.put_bytes("l", own).is_ok());
            Ok(None)
        }));
        let _ = s.ask("a", put).await;
    }
    "the error of on_start is shown, and others wait for that" => |s| {
        let tasks = [(); 3].map(|()| s.spawn("unstartable", s.keeps()));
        s.world.settle().await;
        let set = s.cells.set_alarm("unstartable", "fails", s.world.at(0), &()).await;
        assert!(set.is_ok());
        s.world.pass(SECOND).await;
        for task in tasks {
            task.await.unwrap();
        }
    }
    "an instance is built" => |s| {
        let _ = s.ask("unbuildable", s.keeps()).await;
        let set = s.cells.set_alarm("unbuildable", "sound", s.world.at(0), &()).await;
        assert!(set.is_ok());
        s.world.pass(SECOND).await;
    }
    "a message is dropped because too many wait" => |s| {
        let slow = s.spawn("a", s.waits(SECOND));
        s.world.settle().await;
        let tasks: Vec<_> = (0..8).map(|_| s.spawn("a", s.keeps())).collect();
        for task in tasks {
            task.await.unwrap();
        }
        slow.await.unwrap();
    }
    "a message is dropped because its time is over" => |s| {
        let slow = s.spawn("a", s.waits(29 * SECOND));
        s.world.settle().await;
        let late = s.spawn("a", s.waits(20 * SECOND));
        let tasks = [(); 2].map(|()| s.spawn("a", s.keeps()));
        s.world.pass(90 * SECOND).await;
        for task in tasks.into_iter().chain([slow, late]) {
            task.await.unwrap();
        }
    }
    "a message is dropped by its handler" => |s| {
        let odd = s.odd();
        let drops = act(move |_, _| Box::pin(async move { drop(odd); Ok(None) }));
        let _ = s.ask("a", drops).await;
    }
    "a message is dropped because the host may not act" => |s| {
        let odd = s.odd();
        let drops = act(move |_, _| Box::pin(async move { drop(odd); Ok(None) }));
        let asked = s.cells.request("", drops).await;
        assert!(matches!(asked, Err(RequestError::InvalidId { .. })));
        std::mem::forget(asked);
    }
    "a handler runs out of time" => |s| {
        let odds = [s.odd(), s.odd()];
        let hangs = act(move |me, cx| Box::pin(async move {
            let [one, other] = odds;
            me.kept = Some(one);
            cx.after_commit(move || other.forget());
            std::future::pending::<()>().await;
            Ok(None)
        }));
        let hanging = s.spawn("a", hangs);
        s.world.pass(40 * SECOND).await;
        hanging.await.unwrap();
    }
    "a handler panics, and everything is dropped while it does" => |s| {
        let odds = [s.odd(), s.odd(), s.odd()];
        let panics = act(move |me, cx| {
            let [one, other, third] = odds;
            me.kept = Some(one);
            cx.after_commit(move || other.forget());
            cx.after_commit(move || third.forget());
            me.peer = None;
            std::panic::panic_any(Payload(3));
        });
        assert!(matches!(s.ask("a", panics).await, Err(RequestError::Panicked(_))));
    }
    "a reply is dropped because its sender has gone" => |s| {
        for fails in [false, true] {
            let (odd, sleep) = (s.odd(), stable_interfaces::clock::Clock::sleep(&s.world.clock, SECOND));
            let slow = act(move |_, _| Box::pin(async move {
                sleep.await;
                if fails { Err(Oops(odd)) } else { Ok(Some(odd)) }
            }));
            let sender = s.spawn("a", slow);
            s.world.settle().await;
            sender.abort();
            s.world.pass(2 * SECOND).await;
        }
    }
    "a reply is dropped because its commit has failed" => |s| {
        s.world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
        let odds = [s.odd(), s.odd()];
        let puts = act(move |me, cx| Box::pin(async move {
            let [one, other] = odds;
            me.kept = Some(one);
            assert!(cx.put("k", &1).is_ok());
            Ok(Some(other))
        }));
        let asked = s.spawn("a", puts);
        s.world.pass(60 * SECOND).await;
        s.world.store.heal();
        asked.await.unwrap();
        s.world.pass(5 * SECOND).await;
    }
    "effects are dropped because the handler has failed" => |s| {
        let odds = [s.odd(), s.odd(), s.odd()];
        let fails = act(move |me, cx| Box::pin(async move {
            let [one, other, error] = odds;
            cx.after_commit(move || one.forget());
            assert!(cx.spawn(move |_: InstanceRef<Cell>| async move { other.forget() }).is_ok());
            let _ = me;
            Err(Oops(error))
        }));
        let _ = s.ask("a", fails).await;
    }
    "what is to run after a commit panics" => |s| {
        let odd = s.odd();
        let notes = act(move |_, cx| Box::pin(async move {
            assert!(cx.put("k", &1).is_ok());
            cx.after_commit(move || drop(odd));
            Ok(None)
        }));
        assert!(s.ask("a", notes).await.is_ok());
        s.world.pass(SECOND).await;
    }
    "what is to run after a commit never runs" => |s| {
        s.world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
        let odds = [s.odd(), s.odd()];
        let notes = act(move |_, cx| Box::pin(async move {
            let [one, other] = odds;
            assert!(cx.put("k", &1).is_ok());
            cx.after_commit(move || one.forget());
            assert!(cx.spawn(move |_: InstanceRef<Cell>| async move { other.forget() }).is_ok());
            Ok(None)
        }));
        let asked = s.spawn("a", notes);
        s.world.pass(60 * SECOND).await;
        s.world.store.heal();
        asked.await.unwrap();
        s.world.pass(5 * SECOND).await;
    }
    "a task of an instance panics, where it is built and where it runs" => |s| {
        for early in [true, false] {
            let odd = s.odd();
            let spawns = act(move |_, cx| Box::pin(async move {
                let spawned = cx.spawn(move |_: InstanceRef<Cell>| {
                    let mut odd = Some(odd);
                    if early {
                        drop(odd.take());
                    }
                    async move { drop(odd) }
                });
                assert!(spawned.is_ok());
                Ok(None)
            }));
            assert!(s.ask("a", spawns).await.is_ok());
            s.world.pass(SECOND).await;
        }
    }
    "a task of an instance is dropped" => |s| {
        let odd = s.odd();
        let spawns = act(move |_, cx| Box::pin(async move {
            let spawned = cx.spawn(move |_: InstanceRef<Cell>| async move {
                let _odd = odd;
                std::future::pending::<()>().await;
            });
            assert!(spawned.is_ok());
            Ok(None)
        }));
        assert!(s.ask("a", spawns).await.is_ok());
        s.world.pass(SECOND).await;
        assert!(s.cells.stop("a").await.is_ok());
    }
    "a turn of a task is dropped" => |s| {
        let odd = s.odd();
        let clock = s.world.clock.clone();
        let spawns = act(move |_, cx| Box::pin(async move {
            let spawned = cx.spawn(move |me: InstanceRef<Cell>| async move {
                stable_interfaces::clock::Clock::sleep(&clock, SECOND).await;
                let turn = me.turn(move |_, _| { odd.forget(); Ok(()) }).await;
                std::mem::forget(turn);
            });
            assert!(spawned.is_ok());
            Ok(None)
        }));
        assert!(s.ask("a", spawns).await.is_ok());
        let slow = s.spawn("a", s.waits(29 * SECOND));
        s.world.pass(2 * SECOND).await;
        let panics = s.spawn("a", act(|_, _| panic!("a panic that ends the incarnation")));
        slow.await.unwrap();
        panics.await.unwrap();
        s.world.pass(SECOND).await;
    }
    "an instance is stopped, and dropped" => |s| {
        for stops_oddly in [false, true] {
            assert!(s.ask("a", s.keeps()).await.is_ok());
            let odd_stop = act(move |me, _| { me.stops_oddly = stops_oddly; Box::pin(std::future::ready(Ok(None))) });
            assert!(s.ask("a", odd_stop).await.is_ok());
            let stopped = s.cells.stop("a").await;
            assert_eq!(stopped.is_ok(), !stops_oddly || s.manner.habit == Habit::LooksBack);
            std::mem::forget(stopped);
        }
    }
    "an instance is passivated" => |s| {
        assert!(s.ask("a", s.keeps()).await.is_ok());
        let leaves = act(|_, cx| { cx.passivate(); Box::pin(std::future::ready(Ok(None))) });
        assert!(s.ask("a", leaves).await.is_ok());
        s.world.pass(SECOND).await;
        assert!(!s.cells.is_running("a"));
    }
    "a context's error is made the application's" => |s| {
        let fails = act(|_, cx| Box::pin(async move { cx.put("", &1)?; Ok(None) }));
        assert!(s.ask("a", fails).await.is_err());
    }
    "a value is serialized" => |s| {
        let odd = ManuallyDrop::new(s.odd());
        let puts = act(move |_, cx| {
            let put = cx.put("k", &*odd);
            Box::pin(async move { put?; Ok(None) })
        });
        let _ = s.ask("a", puts).await;
        let odd = ManuallyDrop::new(s.odd());
        let sets = act(move |_, cx| {
            let at = cx.now();
            let set = cx.set_alarm("sound", at, &*odd);
            Box::pin(async move { set?; Ok(None) })
        });
        let _ = s.ask("a", sets).await;
    }
    "a client is refused" => |s| {
        for how in ["drops its meta", "fails", "rejects"] {
            let refused = s.cells.connect("a", (how, s.odd())).await;
            assert!(refused.is_err(), "{how}");
            std::mem::forget(refused);
        }
        let refused = s.cells.connect("unstartable", ("accepts", s.odd())).await;
        assert!(refused.is_err());
        std::mem::forget(refused);
    }
    "a client goes before it has taken what was sent" => |s| {
        let client = s.cells.connect("a", ("accepts", s.odd())).await.ok().unwrap();
        let odds = [s.odd(), s.odd()];
        let sends = act(move |me, cx| Box::pin(async move {
            let peer = me.peer.clone().unwrap();
            for odd in odds {
                assert!(peer.send(cx, odd).await.is_ok());
            }
            Ok(None)
        }));
        assert!(s.ask("a", sends).await.is_ok());
        drop(client);
        s.world.pass(SECOND).await;
    }
    "a message is sent to a client that has just gone" => |s| {
        let client = s.cells.connect("a", ("accepts", s.odd())).await.ok().unwrap();
        let (odds, sleep) = ([s.odd(), s.odd()], stable_interfaces::clock::Clock::sleep(&s.world.clock, SECOND));
        let sends = act(move |me, cx| Box::pin(async move {
            let peer = me.peer.take().unwrap();
            for odd in odds {
                assert!(peer.try_send(cx, odd).is_ok());
            }
            drop(peer);
            sleep.await;
            Ok(None)
        }));
        let sending = s.spawn("a", sends);
        s.world.settle().await;
        drop(client);
        sending.await.unwrap();
        s.world.pass(SECOND).await;
    }
    "what was sent does not become durable" => |s| {
        let client = s.cells.connect("a", ("accepts", s.odd())).await.ok().unwrap();
        s.world.store.set_chance(Method::Commit, Fault::FailBefore, 1.0);
        let odds = [s.odd(), s.odd()];
        let sends = act(move |me, cx| Box::pin(async move {
            let peer = me.peer.clone().unwrap();
            for odd in odds {
                assert!(peer.try_send(cx, odd).is_ok());
            }
            assert!(cx.put("k", &1).is_ok());
            Ok(None)
        }));
        let sending = s.spawn("a", sends);
        let receiving = tokio::spawn(async move {
            let received = client.recv().await;
            assert!(received.is_err());
        });
        s.world.pass(60 * SECOND).await;
        s.world.store.heal();
        sending.await.unwrap();
        receiving.await.unwrap();
        s.world.pass(5 * SECOND).await;
    }
    "messages of a client fail, and are dropped with their connection" => |s| {
        let client = s.cells.connect("a", ("accepts", s.odd())).await.ok().unwrap();
        assert!(client.send((true, s.odd())).await.is_ok());
        s.world.settle().await;
        let slow = s.spawn("a", act(|_, cx| Box::pin(async move {
            cx.passivate();
            Ok(None)
        })));
        for _ in 0..3 {
            drop(client.send((false, s.odd())).await);
        }
        slow.await.unwrap();
        s.world.pass(SECOND).await;
        assert!(client.send((false, s.odd())).await.is_err());
    }
    "a directive is given" => |s| {
        let set = s.cells.direct("a", Directive::cancel_alarm("fails").unwrap()).await;
        assert!(set.is_ok());
        s.world.pass(SECOND).await;
    }
}

/// Runs a scene on a thread and a runtime of its own, and says how it failed. One that does not end in time has locked itself out.
fn on_a_thread<F: Future<Output = ()>>(scene: impl FnOnce() -> F + Send + 'static) -> Result<(), String> {
    let (done, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _done = done;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { scene().await });
        // Its tasks are dropped here, and what they hold with them.
        drop(runtime);
    });
    if ended.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
        return Err("it has locked itself out".to_owned());
    }
    thread.join().map_err(|panic| {
        let text =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|&text| text.into()));
        std::mem::forget(panic);
        text.unwrap_or_else(|| "a panic of the application came through".to_owned())
    })
}

/// Those panics that are meant are not printed.
fn print_no_payload() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.payload().is::<Payload>() {
                print(panic);
            }
        }));
    });
}

fn go_all_ways(habit: Habit) {
    print_no_payload();
    let go = |way: &'static Way| {
        on_a_thread(move || async move {
            let scene = Scene::open(habit).await;
            (way.go)(&scene).await;
            scene.goes_on(way.name).await;
            let drained = scene.host.drain(20 * SECOND).await;
            assert!(drained.unfinished == 0 && drained.released, "{drained:?}");
        })
    };
    let failed: Vec<_> = WAYS.iter().filter_map(|way| go(way).err().map(|error| (way.name, error))).collect();
    assert!(failed.is_empty(), "{habit:?}: {failed:#?}");
}

#[test]
fn a_panic_of_the_application_costs_its_own_message_at_most_wherever_it_happens() {
    go_all_ways(Habit::Panics);
}

#[test]
fn nothing_of_the_application_is_called_shown_or_dropped_under_a_lock() {
    go_all_ways(Habit::LooksBack);
}

/// A host that goes away drops everything at once: what rests, what waits, what runs.
fn go_away(habit: Habit) {
    print_no_payload();
    let gone = on_a_thread(move || async move {
        let scene = Scene::open(habit).await;
        for id in ["a", "b"] {
            assert!(scene.ask(id, scene.keeps()).await.is_ok());
        }
        let client = scene.cells.connect("a", ("accepts", scene.odd())).await.ok().unwrap();
        let odds = [scene.odd(), scene.odd(), scene.odd()];
        let holds = act(move |me, cx| {
            Box::pin(async move {
                let [sent, spawned, held] = odds;
                assert!(me.peer.clone().unwrap().try_send(cx, sent).is_ok());
                let task = move |_: InstanceRef<Cell>| async move {
                    let _spawned = spawned;
                    std::future::pending::<()>().await;
                };
                assert!(cx.spawn(task).is_ok());
                assert!(cx.commit().await.is_ok());
                let _held = held;
                std::future::pending::<()>().await;
                Ok(None)
            })
        });
        let mut asked = vec![scene.spawn("a", holds)];
        scene.world.settle().await;
        asked.extend((0..3).map(|_| scene.spawn("a", scene.keeps())));
        scene.world.settle().await;
        let Scene { world, host, cells, manner } = scene;
        let before = manner.acted.load(Ordering::SeqCst);
        drop(host);
        world.settle().await;
        drop(client);
        for task in asked {
            task.await.unwrap();
        }
        assert!(manner.acted.load(Ordering::SeqCst) >= before + 8, "what it had was dropped, each by itself");
        drop(cells);
    });
    assert_eq!(gone, Ok(()), "{habit:?}");
}

#[test]
fn a_host_that_is_dropped_survives_what_it_drops() {
    go_away(Habit::Panics);
    go_away(Habit::LooksBack);
}
