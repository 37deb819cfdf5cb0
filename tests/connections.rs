//! Duplex connections: in order, bounded, behind the gate, and closed for both sides or for neither.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use stable_interfaces::testing::{Fault, Method};
use stable_interfaces::{
    CONNECTION_BUFFER, Closed, Connection, Context, Fleet, Host, Interface, MemoryStore, RequestError, SendError,
};
use system_tests::{Failed, Probe, Site, World, act, get, in_time, now_or_never, put, spawn, wait};

const SECOND: Duration = Duration::from_secs(1);
const BRIEFLY: Duration = Duration::from_millis(100);

async fn connect(site: &Site, id: &str) -> Connection<Probe> {
    site.probes.connect(id, "").await.unwrap()
}

/// A message that makes the probe send to all its peers without waiting.
fn broadcast(from: i64, to: i64) -> system_tests::Do<()> {
    act(move |me: &mut Probe, cx: &mut Context| {
        Box::pin(async move {
            for peer in me.peers.all() {
                for message in from..to {
                    peer.try_send(cx, message).map_err(|_| Failed::Told("not sent"))?;
                }
            }
            Ok(())
        })
    })
}

/// A message that makes the probe close all its connections.
fn close_all(reason: &'static str) -> system_tests::Do<()> {
    act(move |me: &mut Probe, cx: &mut Context| {
        Box::pin(async move {
            for peer in me.peers.all() {
                peer.close(cx, reason);
            }
            Ok(())
        })
    })
}

#[tokio::test(start_paused = true)]
async fn an_instance_accepts_rejects_with_a_reason_or_leaves_a_client_unhandled() {
    let world = World::in_memory();
    let site = world.start().await;
    world.script.on_connect(|me, cx, client, meta| {
        Box::pin(async move {
            match meta {
                "accept" => me.peers.keep(client.accept()),
                "reject" => client.reject("the room is full"),
                "fail" => return Err(Failed::Told("no")),
                "fail after an effect" => {
                    cx.put("k", &1)?;
                    return Err(Failed::Told("no"));
                }
                "change one's mind" => {
                    me.peers.keep(client.accept());
                    client.reject("after all");
                }
                "accept and fail" => {
                    me.peers.keep(client.accept());
                    return Err(Failed::Told("after all"));
                }
                _ => {}
            }
            Ok(())
        })
    });
    let answer = async |meta| site.probes.connect("a", meta).await.map(|_| ());
    assert!(answer("accept").await.is_ok());
    world.settle().await;
    assert!(matches!(answer("reject").await, Err(RequestError::Rejected(reason)) if reason == "the room is full"));
    assert!(matches!(answer("nothing").await, Err(RequestError::Unhandled(_))));
    assert!(matches!(answer("fail").await, Err(RequestError::Handler(Failed::Told("no"), _))));
    assert!(matches!(answer("change one's mind").await, Err(RequestError::Rejected(_))));
    assert!(matches!(answer("accept and fail").await, Err(RequestError::Handler(..))));
    let open = act(|me: &mut Probe, _| {
        Box::pin(async move { Ok(me.peers.all().iter().filter(|peer| !peer.is_closed()).count()) })
    });
    assert_eq!(site.probes.request("a", open).await.unwrap(), 0, "no peer of a client that was refused stays open");
    assert_eq!(site.host.connections(), 0, "a refused client keeps no place");
    assert!(matches!(answer("fail after an effect").await, Err(RequestError::Handler(..))));
    assert_eq!(world.script.lives(), 1, "an instance that was reset is built for its next message");
    site.probes.request("a", get("k")).await.unwrap();
    assert_eq!(world.script.lives(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_refused_with_an_error_costs_no_other_client_its_connection() {
    let world = World::in_memory();
    let site = world.start().await;
    world.script.on_connect(|me, _, client, meta| {
        Box::pin(async move {
            if meta == "one too many" {
                return Err(Failed::Told("the room is full"));
            }
            me.peers.keep(client.accept());
            Ok(())
        })
    });
    let mut connections = Vec::new();
    for _ in 0..99 {
        connections.push(site.probes.connect("a", "").await.unwrap());
    }
    let error = site.probes.connect("a", "one too many").await.unwrap_err();
    assert!(matches!(error, RequestError::Handler(Failed::Told("the room is full"), _)), "{error}");
    site.probes.request("a", broadcast(0, 1)).await.unwrap();
    for connection in &connections {
        assert_eq!(in_time(connection.recv()).await.unwrap(), 0, "still open");
    }
    // An error of any other handler rebuilds the instance, which closes them all.
    world.script.on_receive(|_, _, _, _| Box::pin(async { Err(Failed::Told("no")) }));
    connections[0].send(1).await.unwrap();
    for connection in &connections {
        assert_eq!(in_time(connection.recv()).await.unwrap_err(), Closed::Reset);
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_messages_arrive_in_order_both_ways() {
    in_time(async {
        let world = World::in_memory();
        let site = world.start().await;
        // Some handlers are done at once, some wait, some commit: none may overtake another.
        world.script.on_receive(|me, cx, from, message| {
            let sleep = me.sleep(Duration::from_millis(1));
            Box::pin(async move {
                me.memory.push(message.to_string());
                match message % 100 {
                    7 => tokio::task::yield_now().await,
                    13 => sleep.await,
                    21 => cx.put("last", &message)?,
                    22 => {
                        cx.put("last", &message)?;
                        cx.commit().await?;
                    }
                    _ => {}
                }
                let peer = me.peers.of(from).ok_or(Failed::Told("not a peer"))?;
                peer.send(cx, message).await.map_err(|_| Failed::Told("closed"))
            })
        });
        let client = Arc::new(connect(&site, "a").await);
        let sender = client.clone();
        let sending = tokio::spawn(async move {
            for message in 0..10_000 {
                sender.send(message).await.unwrap();
            }
        });
        for message in 0..10_000 {
            assert_eq!(client.recv().await, Ok(message));
        }
        sending.await.unwrap();
        let seen = act(|me: &mut Probe, _| Box::pin(async move { Ok(std::mem::take(&mut me.memory)) }));
        let seen = site.probes.request("a", seen).await.unwrap();
        assert_eq!(seen, (0..10_000).map(|i| i.to_string()).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_instance_holds_its_client_back_and_nothing_is_lost() {
    let world = World::in_memory();
    let site = world.start().await;
    world.script.on_receive(|me, _, _, message| {
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            sleep.await;
            me.memory.push(message.to_string());
            Ok(())
        })
    });
    let client = Arc::new(connect(&site, "a").await);
    let sent = Arc::new(AtomicU64::new(0));
    let (sender, count) = (client.clone(), sent.clone());
    let sending = tokio::spawn(async move {
        for message in 0..200 {
            sender.send(message).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    world.settle().await;
    let buffer = u64::try_from(CONNECTION_BUFFER).unwrap();
    assert_eq!(sent.load(Ordering::SeqCst), buffer, "one runs, the others wait, and the client with them");
    world.pass(10 * SECOND).await;
    assert_eq!(sent.load(Ordering::SeqCst), buffer + 10, "each that is done makes room for one");
    sending.await.unwrap();
    world.pass(SECOND * u32::try_from(CONNECTION_BUFFER).unwrap()).await;
    let seen = act(|me: &mut Probe, _| Box::pin(async move { Ok(me.memory.len()) }));
    assert_eq!(site.probes.request("a", seen).await.unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_holds_its_instance_back_and_nothing_is_lost() {
    let world = World::in_memory();
    let site = world.start().await;
    let client = connect(&site, "a").await;
    let buffer = i64::try_from(CONNECTION_BUFFER).unwrap();
    site.probes.request("a", broadcast(0, buffer)).await.unwrap();
    let full = act(|me: &mut Probe, cx: &mut Context| Box::pin(async move { Ok(me.peers.all()[0].try_send(cx, -1)) }));
    assert_eq!(site.probes.request("a", full).await.unwrap(), Err(SendError::Full));
    let more = act(move |me: &mut Probe, cx: &mut Context| {
        Box::pin(async move { me.peers.all()[0].send(cx, buffer).await.map_err(|_| Failed::Told("closed")) })
    });
    let more = spawn(&site.probes, "a", more);
    world.pass(SECOND).await;
    assert!(!more.is_finished(), "the handler waits for room");
    assert_eq!(client.recv().await, Ok(0));
    more.await.unwrap().unwrap();
    for message in 1..=buffer {
        assert_eq!(client.recv().await, Ok(message));
    }
    assert!(now_or_never(client.recv()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn messages_that_wait_for_a_commit_do_not_make_their_client_slow_but_are_bounded_too() {
    let world = World::in_memory();
    let site = world.start().await;
    let client = connect(&site, "a").await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let committing = spawn(&site.probes, "a", put("k", 1));
    world.settle().await;
    let most = i64::try_from(16 * CONNECTION_BUFFER).unwrap();
    for message in 0..=most {
        let one = act(move |me: &mut Probe, cx: &mut Context| {
            Box::pin(async move {
                if me.peers.all()[0].try_send(cx, message) == Err(SendError::Full) {
                    me.script.note(message.to_string());
                }
                Ok(())
            })
        });
        // Its answer waits for the commit as well.
        drop(spawn(&site.probes, "a", one));
    }
    world.settle().await;
    assert_eq!(world.script.notes(), [most.to_string()], "only the last one finds no room");
    assert!(now_or_never(client.recv()).await.is_none(), "nothing is seen before the commit is durable");
    world.store.release_hanging();
    committing.await.unwrap().unwrap();
    for message in 0..most {
        assert_eq!(client.recv().await, Ok(message));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_tasks_of_a_client_that_receive_neither_sees_what_is_not_durable() {
    let world = World::in_memory();
    let site = world.start().await;
    let client = Arc::new(connect(&site, "a").await);
    let say = |message: i64| {
        act(move |me: &mut Probe, cx: &mut Context| {
            Box::pin(async move {
                cx.put("said", &message)?;
                me.peers.all()[0].try_send(cx, message).unwrap();
                Ok(())
            })
        })
    };
    for _ in 0..2 {
        world.store.fail_next(Method::Commit, Fault::HangAfter);
    }
    let first = spawn(&site.probes, "a", say(1));
    world.settle().await;
    let receiving: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.recv().await })
        })
        .collect();
    world.settle().await;
    let second = spawn(&site.probes, "a", say(2));
    world.settle().await;
    // The first commit is answered, and the second is under way then.
    world.store.release_hanging();
    world.settle().await;
    assert!(first.is_finished() && !second.is_finished());
    assert_eq!(receiving.iter().filter(|task| task.is_finished()).count(), 1);
    world.store.release_hanging();
    world.settle().await;
    let mut received = Vec::new();
    for task in receiving {
        received.push(task.await.unwrap().unwrap());
    }
    received.sort_unstable();
    assert_eq!(received, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_client_sees_nothing_before_it_is_durable() {
    let world = World::in_memory();
    let site = world.start().await;
    world.script.on_receive(|me, cx, from, message| {
        Box::pin(async move {
            cx.put("k", &message)?;
            let peer = me.peers.of(from).ok_or(Failed::Told("not a peer"))?;
            peer.send(cx, message).await.map_err(|_| Failed::Told("closed"))?;
            if message == 9 {
                peer.close(cx, "done");
            }
            Ok(())
        })
    });
    let client = connect(&site, "a").await;
    for message in [1, 2, 9] {
        world.store.fail_next(Method::Commit, Fault::HangAfter);
        client.send(message).await.unwrap();
        assert!(tokio::time::timeout(BRIEFLY, client.recv()).await.is_err());
        assert!(tokio::time::timeout(BRIEFLY, client.closed()).await.is_err());
        world.store.release_hanging();
        assert_eq!(client.recv().await, Ok(message));
    }
    assert_eq!(client.recv().await, Err(Closed::ByInstance("done".into())));
}

#[tokio::test(start_paused = true)]
async fn a_connection_stays_open_that_was_closed_by_a_handler_which_fails_and_keeps_its_memory() {
    let world = World::in_memory();
    let site = world.start().await;
    let client = connect(&site, "a").await;
    let closes_and_fails = act::<()>(|me: &mut Probe, cx: &mut Context| {
        Box::pin(async move {
            for peer in me.peers.all() {
                peer.close(cx, "after all");
            }
            Err(Failed::Refused("no"))
        })
    });
    site.probes.request("a", closes_and_fails).await.unwrap_err();
    site.probes.request("a", broadcast(1, 2)).await.unwrap();
    assert_eq!(client.recv().await, Ok(1));
    site.probes.request("a", close_all("now")).await.unwrap();
    assert_eq!(client.recv().await, Err(Closed::ByInstance("now".into())));
}

#[tokio::test(start_paused = true)]
async fn a_close_alone_waits_for_its_commit_too() {
    let world = World::in_memory();
    let site = world.start().await;
    let closing = || {
        act(|me: &mut Probe, cx: &mut Context| {
            Box::pin(async move {
                cx.put("k", &1)?;
                let peer = me.peers.all().pop().ok_or(Failed::Told("no peer"))?;
                peer.close(cx, "done");
                let refused = peer.send(cx, 1).await;
                assert_eq!(refused, Err(Closed::ByInstance("done".into())), "for this end it is closed at once");
                Ok(())
            })
        })
    };
    let client = connect(&site, "a").await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let request = spawn(&site.probes, "a", closing());
    for _ in 0..2 {
        assert!(tokio::time::timeout(BRIEFLY, client.recv()).await.is_err());
        assert!(tokio::time::timeout(BRIEFLY, client.closed()).await.is_err());
        assert!(tokio::time::timeout(BRIEFLY, client.send(1)).await.is_err());
    }
    world.store.release_hanging();
    request.await.unwrap().unwrap();
    assert_eq!(client.recv().await, Err(Closed::ByInstance("done".into())));
    assert_eq!(client.send(1).await, Err(Closed::ByInstance("done".into())));
    assert_eq!(client.closed().await, Closed::ByInstance("done".into()));

    // A commit that fails takes the reason with it.
    let client = connect(&site, "b").await;
    world.store.set_down(true);
    let request = spawn(&site.probes, "b", closing());
    assert_eq!(client.recv().await, Err(Closed::Reset));
    assert!(matches!(request.await.unwrap(), Err(RequestError::Store(_))));
}

#[tokio::test(start_paused = true)]
async fn a_failed_commit_closes_the_connection_and_its_message_is_never_seen() {
    let world = World::in_memory();
    let site = world.start().await;
    world.script.on_receive(|me, cx, from, message| {
        Box::pin(async move {
            if message > 0 {
                cx.put("k", &message)?;
            }
            let peer = me.peers.of(from).ok_or(Failed::Told("not a peer"))?;
            peer.send(cx, message).await.map_err(|_| Failed::Told("closed"))
        })
    });
    let client = connect(&site, "a").await;
    client.send(0).await.unwrap();
    world.store.set_down(true);
    client.send(1).await.unwrap();
    assert_eq!(client.recv().await, Ok(0), "what was sent before has its place");
    assert_eq!(client.recv().await, Err(Closed::Reset));
    assert_eq!(client.send(2).await, Err(Closed::Reset));
    world.store.set_down(false);
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), None);
    assert_eq!(world.script.lives(), 2);
    drop(client);
    world.settle().await;
    assert_eq!(site.host.connections(), 0);
    assert_eq!(world.script.left(), [], "the new incarnation never had it");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_on_an_unknown_outcome_still_leaves_in_good_order() {
    let world = World::in_memory();
    let host = world.local().commit_timeout(2 * SECOND).store_timeout(SECOND);
    let site = world.launch(host, |probes| probes).await;
    world.script.on_receive(|me, cx, from, message| {
        Box::pin(async move {
            cx.put("k", &message)?;
            let peer = me.peers.of(from).ok_or(Failed::Told("not a peer"))?;
            peer.send(cx, message).await.map_err(|_| Failed::Told("closed"))
        })
    });
    let client = connect(&site, "a").await;
    for _ in 0..3 {
        world.store.fail_next(Method::Commit, Fault::HangAfter);
    }
    client.send(1).await.unwrap();
    assert_eq!(client.recv().await, Err(Closed::Reset), "nobody knows whether the message may be shown");
    let id = client.id();
    drop(client);
    world.store.release_hanging();
    world.pass(10 * SECOND).await;
    assert_eq!(site.probes.request("a", get("k")).await.unwrap(), Some(1), "it did happen");
    assert_eq!(world.script.left().iter().map(|(left, _)| *left).collect::<Vec<_>>(), [id], "told, once");
    assert_eq!(site.host.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_it_left_is_handled_before_its_leaving() {
    let world = World::in_memory();
    let site = world.start().await;
    let busy = spawn(&site.probes, "a", wait(Duration::from_millis(1)));
    busy.await.unwrap().unwrap();
    let client = connect(&site, "a").await;
    world.script.on_receive(|me, _, _, message| {
        let left = me.script.left().len();
        let note = format!("{message} with {left} left");
        Box::pin(async move {
            me.script.note(note);
            Ok(())
        })
    });
    let busy = spawn(&site.probes, "a", wait(SECOND));
    world.settle().await;
    let id = client.id();
    for message in 0..3 {
        client.send(message).await.unwrap();
    }
    client.close();
    busy.await.unwrap().unwrap();
    world.settle().await;
    assert_eq!(world.script.notes(), ["0 with 0 left", "1 with 0 left", "2 with 0 left"]);
    assert_eq!(world.script.left(), [(id, Closed::ByClient)]);
    world.pass(SECOND).await;
    assert_eq!(world.script.left().len(), 1, "told once");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_closes_is_not_told_and_its_client_is_told_after_what_was_sent() {
    let world = World::in_memory();
    let site = world.start().await;
    let client = connect(&site, "a").await;
    site.probes.request("a", broadcast(0, 3)).await.unwrap();
    site.probes.request("a", close_all("enough")).await.unwrap();
    for message in 0..3 {
        assert_eq!(client.recv().await, Ok(message));
    }
    let reason = Closed::ByInstance("enough".into());
    assert_eq!(client.recv().await, Err(reason.clone()));
    assert_eq!(client.recv().await, Err(reason.clone()), "for ever");
    assert_eq!(client.send(1).await, Err(reason.clone()));
    let sent = act(|me: &mut Probe, cx: &mut Context| {
        Box::pin(async move {
            let peer = me.peers.all()[0].clone();
            assert!(peer.is_closed());
            assert_eq!(peer.send(cx, 1).await, Err(Closed::ByInstance("enough".into())));
            Ok(peer.try_send(cx, 1))
        })
    });
    assert_eq!(site.probes.request("a", sent).await.unwrap(), Err(SendError::Closed(reason)));
    drop(client);
    world.settle().await;
    assert_eq!(world.script.left(), []);
    assert_eq!(site.host.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_closed_by_the_handler_that_accepts_it_keeps_nothing() {
    let world = World::in_memory();
    let site = world.start().await;
    world.script.on_connect(|_, cx, client, meta| {
        Box::pin(async move {
            let peer = client.accept();
            peer.send(cx, 1).await.map_err(|_| Failed::Told("closed"))?;
            peer.close(cx, "only this");
            if meta == "commit" {
                cx.put("k", &1)?;
                cx.commit().await?;
            }
            Ok(())
        })
    });
    for meta in ["", "commit"] {
        let client = site.probes.connect("a", meta).await.unwrap();
        assert_eq!(client.recv().await, Ok(1));
        assert_eq!(client.recv().await, Err(Closed::ByInstance("only this".into())));
        drop(client);
        world.settle().await;
        assert_eq!(site.host.connections(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_a_stop_and_a_drain_close_connections_and_say_so() {
    let world = World::in_memory();
    let site = world.start().await;
    let boom = || act(|_, _| Box::pin(async { std::panic::panic_any("boom") }));
    let client = connect(&site, "a").await;
    let panicked: Result<(), _> = site.probes.request("a", boom()).await;
    assert!(matches!(panicked, Err(RequestError::Panicked(_))));
    assert_eq!(client.closed().await, Closed::Reset);

    let client = connect(&site, "a").await;
    site.probes.stop("a").await.unwrap();
    assert_eq!(client.closed().await, Closed::Stopped);

    let client = connect(&site, "a").await;
    let passivate = act(|_, cx: &mut Context| {
        cx.passivate();
        Box::pin(async { Ok(()) })
    });
    site.probes.request("a", passivate).await.unwrap();
    assert_eq!(client.recv().await, Err(Closed::Stopped), "an instance that asks may leave its clients");
    assert!(!site.probes.is_running("a"));

    let client = connect(&site, "a").await;
    let drained = site.host.drain(SECOND).await;
    assert_eq!((drained.unfinished, drained.instances), (0, 0));
    assert_eq!(client.recv().await, Err(Closed::Draining));
    assert_eq!(client.send(1).await, Err(Closed::Draining));

    let site = world.start().await;
    let client = connect(&site, "a").await;
    site.host.crash();
    assert_eq!(client.recv().await, Err(Closed::Draining));
    assert_eq!(world.script.left(), [], "no incarnation outlived its connections");
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_an_earlier_incarnation_reaches_no_later_one() {
    let world = World::in_memory();
    let site = world.start().await;
    let client = connect(&site, "a").await;
    let busy: tokio::task::JoinHandle<system_tests::Answer<()>> = {
        let sleep = act(|me: &mut Probe, _| {
            let sleep = me.sleep(SECOND);
            Box::pin(async move {
                sleep.await;
                std::panic::panic_any("boom")
            })
        });
        spawn(&site.probes, "a", sleep)
    };
    world.settle().await;
    client.send(1).await.unwrap();
    client.send(2).await.unwrap();
    drop(client);
    // Behind these, so that a new incarnation is there when their turn comes.
    let next = spawn(&site.probes, "a", get("k"));
    busy.await.unwrap().unwrap_err();
    next.await.unwrap().unwrap();
    world.script.on_receive(|_, _, _, _| Box::pin(async { std::panic::panic_any("not its client") }));
    world.pass(SECOND).await;
    assert_eq!(world.script.left(), []);
    assert_eq!(world.script.lives(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_stays_in_memory_while_a_client_is_connected_and_leaves_after() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.idle_timeout(60 * SECOND).max_instances(2)).await;
    let client = connect(&site, "a").await;
    world.pass(600 * SECOND).await;
    assert!(site.probes.is_running("a"));
    for id in ["b", "c", "d"] {
        site.probes.request(id, get("k")).await.unwrap();
        assert!(site.probes.is_running("a"), "others make room");
    }
    drop(client);
    world.pass(76 * SECOND).await;
    assert!(!site.probes.is_running("a"));
    assert_eq!(world.script.left().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn past_the_cap_connections_are_refused_at_once_and_each_that_closes_makes_room() {
    let world = World::in_memory();
    let site = world.launch(world.local().max_connections(3), |probes| probes).await;
    let mut clients = vec![connect(&site, "a").await, connect(&site, "b").await, connect(&site, "b").await];
    let refused = now_or_never(site.probes.connect("a", "")).await.expect("refused at once");
    assert!(matches!(refused, Err(RequestError::Overloaded(what)) if what == "connections"));
    assert_eq!(site.host.connections(), 3);
    clients.pop();
    world.settle().await;
    clients.push(connect(&site, "c").await);
    assert!(site.probes.connect("a", "").await.is_err());
    site.probes.stop("b").await.unwrap();
    assert_eq!(site.host.connections(), 2, "those that the instance ended are free as well");
    drop(clients);
    world.settle().await;
    assert_eq!(site.host.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_is_dropped_on_the_way_leaves_nothing_behind() {
    let world = World::in_memory();
    let site = world.launch(world.local(), |probes| probes.idle_timeout(60 * SECOND)).await;
    world.script.on_connect(|me, cx, client, _| {
        let sleep = me.sleep(SECOND);
        Box::pin(async move {
            sleep.await;
            cx.put("k", &1)?;
            me.peers.keep(client.accept());
            Ok(())
        })
    });
    // Dropped unpolled, in the queue, in the handler, behind the gate.
    drop(site.probes.connect("a", ""));
    for pass in [Duration::ZERO, Duration::from_millis(500), SECOND + Duration::from_millis(5)] {
        world.store.fail_next(Method::Commit, Fault::Delay(SECOND));
        let mut connecting = Box::pin(site.probes.connect("a", ""));
        assert!(now_or_never(&mut connecting).await.is_none());
        let second = site.probes.connect("a", "");
        assert!(tokio::time::timeout(pass, second).await.is_err(), "in the queue");
        drop(connecting);
        world.pass(10 * SECOND).await;
        assert_eq!(site.host.connections(), 0);
        let peers = act(|me: &mut Probe, _| Box::pin(async move { Ok(me.peers.all().len()) }));
        assert_eq!(site.probes.request("a", peers).await.unwrap(), 0, "the instance was told");
    }
    world.pass(76 * SECOND).await;
    assert!(!site.probes.is_running("a"));
}

#[tokio::test(start_paused = true)]
async fn a_full_write_queue_holds_no_client_up_and_loses_neither_its_messages_nor_its_leaving() {
    let world = World::in_memory();
    let site = world.launch(world.local().lanes(1).max_queued_commits(2), |probes| probes).await;
    let client = connect(&site, "a").await;
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let writes: Vec<_> = ["b", "c", "d"].into_iter().map(|id| spawn(&site.probes, id, put("k", 1))).collect();
    world.settle().await;
    assert!(matches!(site.probes.request("e", get("k")).await, Err(RequestError::Overloaded(_))));
    client.send(5).await.unwrap();
    assert_eq!(client.recv().await, Ok(5));
    let id = client.id();
    drop(client);
    world.settle().await;
    assert_eq!(world.script.left(), [(id, Closed::ByClient)]);
    assert_eq!(site.host.connections(), 0);
    world.store.release_hanging();
    for write in writes {
        let _ = write.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_on_a_host_whose_lease_ran_out_is_told_and_not_served() {
    let world = World::in_memory();
    let fleet = Fleet::new(["only"], 16).unwrap();
    let site = world.launch(world.member("only", &fleet).lease(15 * SECOND), |probes| probes).await;
    let client = connect(&site, "a").await;
    let second = connect(&site, "a").await;
    world.store.set_down(true);
    world.pass(20 * SECOND).await;
    assert_eq!(client.send(1).await, Err(Closed::Lost));
    assert_eq!(client.recv().await, Err(Closed::Lost));
    drop(client);
    world.store.set_down(false);
    world.pass(20 * SECOND).await;
    site.probes.request("a", get("k")).await.unwrap();
    // Whether the second one outlived that or not, both ends agree.
    match now_or_never(second.closed()).await {
        Some(_) => assert_eq!(site.host.connections(), 0),
        None => {
            second.send(3).await.unwrap();
            assert_eq!(second.recv().await, Ok(3));
            assert_eq!(site.host.connections(), 1);
        }
    }
}

/// Half the messages in each direction, in order, and one answer per message.
async fn exchange(probes: Interface<Probe>, begin: Arc<tokio::sync::Barrier>, messages: i64) {
    let client = probes.connect("one", "").await.unwrap();
    begin.wait().await;
    let sending = async {
        for message in 0..messages {
            client.send(message).await.unwrap();
        }
    };
    let receiving = async {
        for message in 0..messages {
            assert_eq!(client.recv().await, Ok(message));
        }
    };
    tokio::join!(sending, receiving);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_of_one_instance_each_exchange_a_hundred_messages_in_order() {
    let (clients, messages) = if std::env::var_os("QUICK").is_some() { (1_000, 100) } else { (10_000, 100) };
    let world = World::in_memory();
    let mut builder = Host::local(MemoryStore::new());
    let probes = builder.interface(world.factory()).max_waiting(clients).register().unwrap();
    let host = builder.start().await.unwrap();
    let begin = Arc::new(tokio::sync::Barrier::new(clients));
    let connected: Vec<_> =
        (0..clients).map(|_| tokio::spawn(exchange(probes.clone(), begin.clone(), messages))).collect();
    for client in connected {
        client.await.unwrap();
    }
    while world.script.left().len() < clients {
        tokio::task::yield_now().await;
    }
    assert_eq!(host.connections(), 0);
    assert_eq!(probes.running(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_sent_by_a_handler_that_fails_is_never_seen() {
    let world = World::in_memory();
    let site = world.start().await;
    let failed = Arc::new(AtomicBool::new(false));
    let first = failed.clone();
    world.script.on_receive(move |me, cx, from, message| {
        let fails = !first.swap(true, Ordering::SeqCst);
        Box::pin(async move {
            let peer = me.peers.of(from).ok_or(Failed::Told("not a peer"))?;
            peer.send(cx, message).await.map_err(|_| Failed::Told("closed"))?;
            if fails { Err(Failed::Told("after all")) } else { Ok(()) }
        })
    });
    let client = connect(&site, "a").await;
    client.send(1).await.unwrap();
    assert_eq!(client.recv().await, Err(Closed::Reset), "what it sent was an effect, so its instance is reset");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_behind_one_commit_reaches_every_client_once() {
    let world = World::in_memory();
    let site = world.start().await;
    let received = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for _ in 0..2_000 {
        let (client, received) = (connect(&site, "a").await, received.clone());
        clients.push(tokio::spawn(async move {
            assert_eq!(client.recv().await, Ok(7));
            received.fetch_add(1, Ordering::SeqCst);
            client.recv().await
        }));
    }
    world.store.fail_next(Method::Commit, Fault::HangAfter);
    let shout = act(|me: &mut Probe, cx: &mut Context| {
        Box::pin(async move {
            cx.put("k", &1)?;
            for peer in me.peers.all() {
                peer.try_send(cx, 7).map_err(|_| Failed::Told("not sent"))?;
            }
            Ok(())
        })
    });
    let shout = spawn(&site.probes, "a", shout);
    world.settle().await;
    assert_eq!(received.load(Ordering::SeqCst), 0);
    world.store.release_hanging();
    shout.await.unwrap().unwrap();
    site.probes.stop("a").await.unwrap();
    for client in clients {
        assert_eq!(client.await.unwrap(), Err(Closed::Stopped));
    }
    assert_eq!(received.load(Ordering::SeqCst), 2_000);
}
