//! Two starts of one ID: the one that was told of first is the flow's, whichever way each of them has gone.

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
