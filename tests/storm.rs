//! The storm breaker: an alarm that sets itself again and again at once is slowed down and reported, and disturbs nobody.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use system_tests::{World, get, in_time, put};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn an_alarm_that_sets_itself_again_at_once_fires_no_more_often_than_it_may() {
    in_time(async {
        let world = World::in_memory();
        world.script.on_alarm(|_, cx, alarm| {
            let again = alarm.id() == "runaway";
            Box::pin(async move {
                if again {
                    let n = cx.get::<i64>("n").await?.unwrap_or(0) + 1;
                    cx.put("n", &n)?;
                    cx.set_alarm("runaway", cx.now(), &())?;
                }
                Ok(())
            })
        });
        let site = world.launch(world.local().max_fires_per_second(100), |probes| probes).await;
        site.probes.set_alarm("bad", "runaway", world.at(0), &()).await.unwrap();
        for i in 0..50 {
            site.probes.set_alarm(&format!("good-{i}"), "x", world.at(500 + 100 * i), &()).await.unwrap();
        }
        world.pass(10 * SECOND).await;
        let bad = world.script.fired().iter().filter(|fired| fired.instance == "bad").count();
        assert!((900..=1_200).contains(&bad), "{bad} in ten seconds");
        let fired = world.script.fired();
        let good: Vec<_> = fired.iter().filter(|fired| fired.instance != "bad").collect();
        assert_eq!(good.len(), 50);
        for (i, fired) in good.iter().enumerate() {
            let due = 500 + 100 * i64::try_from(i).unwrap();
            assert!((due..due + 10).contains(&fired.at), "{fired:?}");
        }
        // It lost nothing either: it is only slower, and ends when it is told to.
        let n = site.probes.request("bad", get("n")).await.unwrap().unwrap();
        assert_eq!(n, i64::try_from(bad).unwrap());
        site.probes.request("bad", put("k", 1)).await.unwrap();
        site.probes.cancel_alarm("bad", "runaway").await.unwrap();
        let fired = world.script.fired().len();
        world.pass(10 * SECOND).await;
        assert!(world.script.fired().len() <= fired + 1);
        assert_eq!(world.dump().alarms().count(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn many_alarms_of_one_instance_that_are_due_together_fire_in_the_seconds_that_takes() {
    let world = World::in_memory();
    let site = world.launch(world.local().max_fires_per_second(100), |probes| probes).await;
    for i in 0..350 {
        site.probes.set_alarm("a", &format!("x-{i}"), world.at(10_000), &()).await.unwrap();
    }
    world.pass(10_500 * SECOND / 1_000).await;
    assert_eq!(world.script.fired().len(), 100);
    world.pass(10 * SECOND).await;
    assert_eq!(world.script.fired().len(), 350, "slowed, and none lost");
    assert!(world.script.fired().iter().all(|fired| fired.at < 14_500));
}
