//! Messages in a flow's inbox that are none of its own: nobody's, and those of a newer program.

use stable_interfaces::NewPost;

use super::*;

on_each_store! {
    async fn a_message_that_is_no_command_holds_up_no_limit(world: World) {
        let partner = Arc::<Partner>::default();
        let (host, flows) = start(orders(&partner), world.local()).await;
        let tool = FleetClient::new(Arc::new(world.store.clone()), Fleet::new(["local"], 1_024).unwrap())
            .clock(Arc::new(world.clock.clone()));
        flows.start("order", "17", &new_order("17")).await.unwrap();
        for body in [&b"hello"[..], b"", &[1, 99]] {
            tool.post("flow", "order/17", NewPost::new(body.to_vec())).await.unwrap();
        }
        assert_eq!(result(&flows, "order", "17").await, "no taker");
        assert!((5_000..5_100).contains(&world.now()), "{}", world.now());
        host.drain(SECOND).await;
    }
}

on_each_store! {
    async fn a_message_of_a_newer_program_is_waited_for_without_haste_and_a_call_before_it_is_taken(world: World) {
        let partner = Arc::<Partner>::default();
        let commits = Arc::new(AtomicUsize::new(0));
        let counted = commits.clone();
        let host = world.local_behind(|between| between.on_answer(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        let (host, flows) = start(orders(&partner), host).await;
        let tool = FleetClient::new(Arc::new(world.store.clone()), Fleet::new(["local"], 1_024).unwrap())
            .clock(Arc::new(world.clock.clone()));
        for id in ["called", "late"] {
            flows.start("order", id, &new_order(id)).await.unwrap();
        }
        world.pass(SECOND).await;
        for id in ["called", "late"] {
            tool.post("flow", &format!("order/{id}"), NewPost::new(vec![2, 1, 2])).await.unwrap();
        }
        world.pass(SECOND).await;
        flows.deliver(&partner.url("called"), accept("ada")).await.unwrap();
        assert_eq!(result(&flows, "order", "called").await, "taken by ada");
        // It may be a call that came before the limit.
        let before = commits.load(Ordering::Relaxed);
        world.pass(600 * SECOND).await;
        assert_eq!(status(&flows, "order", "late").await.state, State::Going);
        let commits = commits.load(Ordering::Relaxed) - before;
        assert!(commits < 1_000, "{commits} in ten minutes");
        // Nor does a call fire it that comes after it.
        assert_eq!(flows.deliver(&partner.url("late"), accept("eve")).await.unwrap(), Delivered::Posted);
        world.pass(60 * SECOND).await;
        assert_eq!(status(&flows, "order", "late").await.state, State::Going);
        host.drain(SECOND).await;
    }
}
