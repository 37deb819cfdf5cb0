//! From an ID to the host that serves it, through whole hosts; the functions alone are tested in the crate.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use stable_interfaces::{Fleet, FleetError};
use system_tests::{Probe, act, on_each_store};

on_each_store! {
    async fn every_instance_is_served_by_exactly_the_host_that_all_hosts_name(world: World) {
        let fleet = Fleet::expand("host-{0..2}", 96).unwrap();
        let mut sites = Vec::new();
        for name in ["host-0", "host-1", "host-2"] {
            sites.push(world.launch(world.member(name, &fleet), |probes| probes).await);
        }
        let mut served = BTreeMap::<String, u32>::new();
        for i in 0..300 {
            let id = format!("order-{i}");
            let owner = fleet.locate(&id).unwrap().host.to_owned();
            for site in &sites {
                assert_eq!(*site.host.owner_of(&id).unwrap(), *owner);
                assert_eq!(site.host.owns(&id).unwrap(), site.host.name() == owner);
                let whole = act(|me: &mut Probe, cx| {
                    let seen = (me.id.clone(), cx.id().to_owned(), cx.host().to_owned(), cx.shard());
                    Box::pin(std::future::ready(Ok(seen)))
                });
                match site.probes.request(&id, whole).await {
                    Ok((built, asked, host, shard)) => {
                        assert_eq!((&built, &asked, &host), (&id, &id, &owner));
                        assert_eq!(shard, fleet.locate(&id).unwrap().shard);
                        *served.entry(host).or_default() += 1;
                    }
                    Err(error) => assert_eq!(
                        error.to_string(),
                        format!("this host does not own the instance; {owner} does")
                    ),
                }
            }
        }
        assert_eq!(served.len(), 3);
        assert_eq!(served.values().sum::<u32>(), 300);
    }
}

#[test]
fn a_fleet_that_cannot_be_is_refused_by_its_constructor() {
    assert!(matches!(Fleet::new(["a", "b", "a"], 64), Err(FleetError::DuplicateHost(name)) if name == "a"));
    assert!(Fleet::new(["a"], 0).is_err());
    assert!(Fleet::new(["a", "b"], 1).is_err());
    assert!(Fleet::new(Vec::<String>::new(), 64).is_err());
}
