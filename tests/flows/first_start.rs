//! Two starts of one ID: the one that was told of first is the flow's, whichever way each of them has gone; and of two that cross, the owner's, if it
//! is told that it has begun it.

use stable_interfaces::store::Op;

use super::*;

fn code() -> FlowsBuilder {
    builder().flow("order", 1, async |flow: Flow, input: String| {
        flow.sleep(60 * SECOND).await;
        Ok(input)
    })
}

on_each_store! {
    async fn a_start_that_was_stored_while_the_owner_was_down_wins_over_one_that_comes_to_it_first(world: World) {
        let (zero, at_zero) = start(code(), world.member("zero", &fleet()).lease(LEASE)).await;
        let id = owned_by("one", 3);
        assert_eq!(at_zero.start("order", &id, "stored").await.unwrap(), Started::Posted);
        // The owner is back, and asked before it can have looked into its inbox.
        let (one, at_one) = start(code(), world.member("one", &fleet()).lease(LEASE)).await;
        assert!(matches!(at_one.start("order", &id, "direct").await, Err(FlowsError::Conflict)));
        assert_eq!(at_one.start("order", &id, "stored").await.unwrap(), Started::Already);
        assert_eq!(at_zero.start("order", &id, "stored").await.unwrap(), Started::Already);
        assert!(matches!(at_zero.start("order", &id, "other").await, Err(FlowsError::Conflict)));
        assert_eq!(result(&at_one, "order", &id).await, "stored");
        one.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn of_a_stored_start_and_one_at_an_owner_that_is_up_the_one_that_was_told_of_first_wins(world: World) {
        let (zero, at_zero) = start(code(), world.member("zero", &fleet()).lease(LEASE)).await;
        let (one, at_one) = start(code(), world.member("one", &fleet()).lease(LEASE)).await;
        for n in 0..20 {
            let id = owned_by("one", 100 + n);
            let stored = async || at_zero.start("order", &id, "stored").await;
            let direct = async || at_one.start("order", &id, "direct").await;
            // The owner may or may not have heard of the stored one by then.
            let begun = if n % 2 == 0 {
                assert_eq!(stored().await.unwrap(), Started::Posted);
                assert!(matches!(direct().await, Err(FlowsError::Conflict)));
                "stored"
            } else {
                assert_eq!(direct().await.unwrap(), Started::New);
                assert!(matches!(stored().await, Err(FlowsError::Conflict)));
                "direct"
            };
            world.pass(61 * SECOND).await;
            assert_eq!(result(&at_one, "order", &id).await, begun);
        }
        one.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_start_that_was_stored_before_its_only_host_was_up_again_wins(world: World) {
        let alone = Fleet::new(["only"], 16).unwrap();
        let (only, flows) = start(code(), world.member("only", &alone).lease(LEASE)).await;
        only.crash();
        drop(flows);
        let guest = Fleet::new(["only", "guest"], 16).unwrap();
        let id = (0..).map(|n| n.to_string());
        let id = id.into_iter().find(|id| guest.locate(&format!("order/{id}")).unwrap().host == "only").unwrap();
        let (host, at_guest) = start(code(), world.member("guest", &guest).lease(LEASE)).await;
        assert_eq!(at_guest.start("order", &id, "stored").await.unwrap(), Started::Posted);
        host.drain(SECOND).await;
        let (only, flows) = start(code(), world.member("only", &alone).lease(LEASE)).await;
        assert!(matches!(flows.start("order", &id, "direct").await, Err(FlowsError::Conflict)));
        assert_eq!(result(&flows, "order", &id).await, "stored");
        only.drain(SECOND).await;
    }
}

/// The end of two starts that cross: one is stored after the flow's owner has looked for such, and before the other one is durable.
#[derive(Debug, Clone, Copy)]
enum Crossing {
    /// The owner's commit lands.
    Lands,
    /// The owner dies before its commit.
    DiesBefore,
    /// The owner dies before it hears that its commit has landed.
    DiesAfter,
}

on_each_store! {
    async fn of_two_starts_that_cross_one_is_told_that_it_has_begun_the_flow_and_the_other_that_it_is_stored(world: World) {
        let (zero, at_zero) = start(code(), world.member("zero", &fleet()).lease(LEASE)).await;
        let mut salt = 200;
        for crossing in [Crossing::Lands, Crossing::DiesBefore, Crossing::DiesAfter] {
            for input in ["direct", "stored"] {
                salt += 1;
                let id = owned_by("one", salt);
                let (one, at_one) = start(code(), world.member("one", &fleet()).lease(LEASE)).await;
                world.pass(SECOND).await;
                world.store.fail_next(Method::Commit, if matches!(crossing, Crossing::DiesAfter) { Fault::HangAfter } else { Fault::Hang });
                let direct = tokio::spawn({
                    let id = id.clone();
                    async move { at_one.start("order", &id, "direct").await }
                });
                world.settle().await;
                let stored = at_zero.start("order", &id, input).await;
                let again = async || at_zero.start("order", &id, input).await;
                let (one, begun) = match crossing {
                    Crossing::Lands => {
                        assert_eq!(stored.unwrap(), Started::Posted, "it is in no page that the owner has read");
                        world.store.release_hanging();
                        assert_eq!(direct.await.unwrap().unwrap(), Started::New);
                        (one, "direct")
                    }
                    Crossing::DiesBefore => {
                        assert_eq!(stored.unwrap(), Started::Posted);
                        one.crash();
                        direct.await.unwrap().unwrap_err();
                        world.store.release_hanging();
                        (start(code(), world.member("one", &fleet()).lease(LEASE)).await.0, input)
                    }
                    Crossing::DiesAfter => {
                        // Its status is stored.
                        match stored {
                            Ok(told) => assert_eq!((told, input), (Started::Already, "direct")),
                            Err(error) => assert!(matches!(error, FlowsError::Conflict) && input == "stored", "{error}"),
                        }
                        one.crash();
                        direct.await.unwrap().unwrap_err();
                        world.store.release_hanging();
                        (start(code(), world.member("one", &fleet()).lease(LEASE)).await.0, "direct")
                    }
                };
                world.pass(SECOND).await;
                // Whatever it was told first, now it is told for good.
                match again().await {
                    Ok(told) => assert_eq!((told, begun), (Started::Already, input), "{crossing:?}"),
                    Err(error) => assert!(matches!(error, FlowsError::Conflict) && begun != input, "{crossing:?}: {error}"),
                }
                world.pass(61 * SECOND).await;
                assert_eq!(result(&at_zero, "order", &id).await, begun, "{crossing:?}");
                one.drain(SECOND).await;
            }
        }
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_start_whose_way_into_the_store_is_long_loses_to_one_that_was_begun_meanwhile(world: World) {
        let (zero, at_zero) = start(code(), world.member("zero", &fleet()).lease(LEASE)).await;
        let (one, at_one) = start(code(), world.member("one", &fleet()).lease(LEASE)).await;
        let mut salt = 300;
        for (fault, input) in [Fault::Hang, Fault::HangAfter].into_iter().flat_map(|fault| [(fault, "direct"), (fault, "stored")]) {
            salt += 1;
            let id = owned_by("one", salt);
            world.pass(SECOND).await;
            world.store.fail_next(Method::Post, fault);
            let stored = tokio::spawn({
                let (at_zero, id) = (at_zero.clone(), id.clone());
                async move { at_zero.start("order", &id, input).await }
            });
            world.settle().await;
            let direct = at_one.start("order", &id, "direct").await;
            world.store.release_hanging();
            let stored = stored.await.unwrap();
            let is_in_store = fault == Fault::HangAfter;
            match (is_in_store, input) {
                // The owner may have heard of it, or finds it.
                (true, "direct") => assert_eq!((direct.unwrap(), stored.unwrap()), (Started::Already, Started::Posted)),
                (true, _) => {
                    assert!(matches!(direct, Err(FlowsError::Conflict)), "{direct:?}");
                    assert_eq!(stored.unwrap(), Started::Posted);
                }
                (false, "direct") => assert_eq!((direct.unwrap(), stored.unwrap()), (Started::New, Started::Posted)),
                (false, _) => {
                    assert_eq!(direct.unwrap(), Started::New);
                    assert!(matches!(stored, Err(FlowsError::Conflict)), "{stored:?}");
                }
            }
            world.pass(61 * SECOND).await;
            let begun = if is_in_store { input } else { "direct" };
            assert_eq!(result(&at_one, "order", &id).await, begun);
        }
        one.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn what_is_stored_behind_a_start_whose_first_turn_fails_is_not_lost(world: World) {
        let code = || builder().flow("order", 1, async |flow: Flow, input: String| {
            let mut go = flow.signal::<String>("go");
            let went = flow.timeout(60 * SECOND, go.next()).await??;
            Ok(format!("{input} {went}"))
        });
        let (zero, at_zero) = start(code(), world.member("zero", &fleet()).lease(LEASE)).await;
        let (called, cancelled) = (owned_by("one", 401), owned_by("one", 402));
        for id in [&called, &cancelled] {
            assert_eq!(at_zero.start("order", id, "stored").await.unwrap(), Started::Posted);
        }
        assert_eq!(at_zero.signal("order", &called, "go", "went").await.unwrap(), Delivered::Posted);
        at_zero.cancel("order", &cancelled).await.unwrap();
        // The first commit of either of them is refused, so its start waits to be tried again, and the other message does not.
        let failed = Mutex::new(Vec::new());
        let flaky = Between::new(world.store.clone()).on_commit(move |write| {
            let mut failed = failed.lock();
            let before = failed.len();
            for op in write.batches.iter().flat_map(|batch| batch.ops.iter()) {
                if let Op::Put { name, key, .. } = op
                    && key.starts_with("page/")
                    && !failed.contains(name)
                {
                    failed.push(name.clone());
                }
            }
            let refusal = || Err(StoreError::Rejected("not now".into()));
            (failed.len() > before).then(|| Ok(write.batches.iter().map(|_| refusal()).collect()))
        });
        let host = world.equip(Host::builder("one", fleet()).store(flaky)).lease(LEASE);
        let (one, at_one) = start(code(), host).await;
        world.pass(10 * SECOND).await;
        assert_eq!(result(&at_one, "order", &called).await, "stored went");
        assert!(matches!(in_time(at_one.ended("order", &cancelled)).await.unwrap(), Outcome::Cancelled));
        one.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn whoever_asks_the_owner_for_a_flow_whose_start_is_stored_finds_it(world: World) {
        let code = || builder().flow("order", 1, async |flow: Flow, _: String| Ok(flow.signal::<String>("go").next().await?));
        let (zero, at_zero) = start(code(), world.member("zero", &fleet()).lease(LEASE)).await;
        let (called, cancelled) = (owned_by("one", 501), owned_by("one", 502));
        for id in [&called, &cancelled] {
            assert_eq!(at_zero.start("order", id, "stored").await.unwrap(), Started::Posted);
        }
        // The owner is asked before it can have looked into its inbox.
        let (one, at_one) = start(code(), world.member("one", &fleet()).lease(LEASE)).await;
        assert_eq!(at_one.signal("order", &called, "go", "went").await.unwrap(), Delivered::Taken);
        at_one.cancel("order", &cancelled).await.unwrap();
        assert_eq!(result(&at_one, "order", &called).await, "went");
        assert!(matches!(in_time(at_one.ended("order", &cancelled)).await.unwrap(), Outcome::Cancelled));
        one.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_cancellation_that_was_stored_before_a_start_is_none_of_the_flow_that_starts(world: World) {
        let (zero, at_zero) = start(code(), world.member("zero", &fleet()).lease(LEASE)).await;
        let id = owned_by("one", 501);
        at_zero.cancel("order", &id).await.unwrap();
        world.pass(SECOND).await;
        assert_eq!(at_zero.start("order", &id, "stored").await.unwrap(), Started::Posted);
        let (one, at_one) = start(code(), world.member("one", &fleet()).lease(LEASE)).await;
        world.pass(61 * SECOND).await;
        assert_eq!(result(&at_one, "order", &id).await, "stored");
        one.drain(SECOND).await;
        zero.drain(SECOND).await;
    }
}
