//! The ways in for a request: any host of the fleet, as behind a load balancer that does not notice who is dead.

use std::sync::{Arc, Mutex, MutexGuard};

use reqwest::Url;

/// A way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) url: Url,
    /// Says whether its host stays through all that happens to the others.
    pub(crate) stays: bool,
}

/// The ways in. There is at least one.
#[derive(Debug, Clone)]
pub(crate) struct Doors(Arc<Mutex<Vec<Door>>>);

impl Doors {
    /// The hosts at these URLs, each of which may leave.
    pub(crate) fn new(hosts: impl IntoIterator<Item = Url>) -> Doors {
        Doors(Arc::new(Mutex::new(hosts.into_iter().map(|url| Door { url, stays: false }).collect())))
    }

    /// The hosts at these URLs, of which the first stays if there are others.
    pub(crate) fn with_one_that_stays(hosts: impl IntoIterator<Item = Url>) -> Doors {
        let doors = Doors::new(hosts);
        if let [first, _, ..] = &mut doors.lock()[..] {
            first.stays = true;
        }
        doors
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Door>> {
        self.0.lock().expect("nobody panics while choosing a door")
    }

    /// Adds the door of a host that has come.
    pub(crate) fn open(&self, url: Url) {
        self.lock().push(Door { url, stays: false });
    }

    /// Takes out the door of a host that is about to leave.
    pub(crate) fn close(&self, url: &Url) {
        self.lock().retain(|door| door.url != *url);
    }

    /// One of them, drawn by chance: mostly one that stays, if there is one.
    pub(crate) fn any(&self) -> Door {
        let doors = self.lock();
        let stays = doors.iter().find(|door| door.stays).filter(|_| fastrand::u8(..4) > 0);
        stays.unwrap_or_else(|| &doors[fastrand::usize(..doors.len())]).clone()
    }

    /// The same path, through any of them.
    pub(crate) fn through_any(&self, url: &str) -> (String, Door) {
        let door = self.any();
        let there = match Url::parse(url) {
            Ok(url) => door.url.join(url.path()).map_or_else(|_| url.to_string(), |url| url.to_string()),
            // Not for us to mend: sending it fails, and is counted.
            Err(_) => url.to_owned(),
        };
        (there, door)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn url(port: u16) -> Url {
        Url::parse(&format!("http://127.0.0.1:{port}")).expect("a URL")
    }

    #[test]
    fn a_callback_keeps_its_path_through_every_door() {
        let doors = Doors::new([url(1), url(2)]);
        let seen: BTreeSet<String> =
            (0..400).map(|_| doors.through_any("http://127.0.0.1:3/callbacks/t0-a%2Fb").0).collect();
        let wanted = [1, 2].map(|port| format!("http://127.0.0.1:{port}/callbacks/t0-a%2Fb"));
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn the_first_of_several_doors_stays_and_the_others_come_and_go() {
        assert!(!Doors::with_one_that_stays([url(1)]).any().stays);
        let doors = Doors::with_one_that_stays([url(1), url(2)]);
        doors.open(url(3));
        doors.close(&url(2));
        let seen: BTreeSet<(u16, bool)> =
            (0..400).map(|_| doors.any()).map(|door| (door.url.port().expect("its port"), door.stays)).collect();
        assert_eq!(seen, BTreeSet::from([(1, true), (3, false)]));
    }
}
