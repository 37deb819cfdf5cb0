//! The ways in for a request: any host of the fleet, as behind a load balancer.

use std::sync::Arc;

use reqwest::Url;

/// The URLs of all hosts.
#[derive(Debug, Clone)]
pub(crate) struct Doors(Arc<[Url]>);

impl Doors {
    /// There is at least one.
    pub(crate) fn new(hosts: impl IntoIterator<Item = Url>) -> Doors {
        Doors(hosts.into_iter().collect())
    }

    /// One of them, drawn by chance.
    pub(crate) fn any(&self) -> &Url {
        &self.0[fastrand::usize(..self.0.len())]
    }

    /// The same path, through any of them.
    pub(crate) fn through_any(&self, url: &str) -> String {
        let door = self.any();
        match Url::parse(url) {
            Ok(url) => door.join(url.path()).map_or_else(|_| url.to_string(), |url| url.to_string()),
            // Not for us to mend: sending it fails, and is counted.
            Err(_) => url.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_keeps_its_path_through_every_door() {
        let hosts = ["http://127.0.0.1:1", "http://127.0.0.1:2"];
        let doors = Doors::new(hosts.map(|url| Url::parse(url).expect("a URL")));
        let seen: std::collections::BTreeSet<String> =
            (0..200).map(|_| doors.through_any("http://127.0.0.1:3/callbacks/t0-a%2Fb")).collect();
        let wanted = hosts.map(|host| format!("{host}/callbacks/t0-a%2Fb"));
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), wanted);
    }
}
