//! Requests under keys: asked at one door after the other until they are answered, and once more after that.

use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::RequestError;
use stable_interfaces::testing::{Client, Outcome, Site, What};

use crate::exercise::asking::{fits_together, outcome, said_arrived};
use crate::exercise::cell::Step;
use crate::exercise::{App, Exercise, Flaw, whole};

/// A key of an instance, and what is asked under it.
#[derive(Debug, Clone, Copy)]
struct Keyed<'a> {
    id: &'a str,
    key: &'a str,
    effect: u64,
}

impl Exercise {
    /// A request under a key, and now and then another message under the same key at about the same time.
    pub(super) async fn key(&self, client: &Client<App>, id: &str) {
        let (key, effect, other) = (format!("k-{}", self.next()), self.next(), self.next());
        let is_contested = client.random().chance(0.25);
        let after = client.random().up_to(Duration::from_secs(3)) * u32::from(client.random().chance(0.7));
        let contest = async {
            if is_contested {
                client.sleep(after).await;
                self.insist(client, Keyed { id, key: &key, effect: other }).await;
            }
        };
        tokio::join!(self.insist(client, Keyed { id, key: &key, effect }), contest);
    }

    /// Asks until it is answered, and some times after that.
    async fn insist(&self, client: &Client<App>, keyed: Keyed<'_>) {
        let random = client.random();
        let (mut more, mut tries) = (random.below(3), 0_u64);
        let mut holder: Option<Arc<str>> = None;
        loop {
            let site = match holder.take() {
                Some(name) => client.named(&name).await,
                None if random.chance(0.6) => client.any().await,
                None => client.owner_of(keyed.id).await,
            };
            if let Some(site) = site {
                match self.ask_once(client, keyed, &site, tries).await {
                    Some(Ok(())) if more == 0 => return,
                    Some(Ok(())) => {
                        more -= 1;
                        client.sleep(random.up_to(Duration::from_secs(20))).await;
                    }
                    Some(Err(RequestError::KeyReused { .. })) => return,
                    Some(Err(RequestError::NotOwner { holder: named })) => holder = Some(named),
                    Some(Err(_)) | None => {}
                }
                tries += 1;
            }
            client.sleep(random.up_to(Duration::from_secs(1))).await;
        }
    }

    /// Asks at one door, perhaps not until the answer comes.
    async fn ask_once(
        &self,
        client: &Client<App>,
        keyed: Keyed<'_>,
        site: &Site<App>,
        tries: u64,
    ) -> Option<Result<(), RequestError<()>>> {
        let (history, random) = (client.history(), client.random());
        let Keyed { id, key, effect } = keyed;
        let asked = history.ask(What::Keyed { key: whole_key(id, key), effect: whole(id, effect) });
        let message = site.app().message(id, vec![Step::Count(effect), Step::Stumble, Step::Draw]);
        let own_key = match self.flaw {
            Some(Flaw::DrawsKeys) => format!("{key}-{tries}"),
            _ => key.to_owned(),
        };
        let (is_patient, patience) = (random.chance(0.8), random.up_to(Duration::from_secs(3)));
        let asking = Box::pin(site.app().request_once(id, &own_key, message));
        let answer = tokio::select! { biased;
            answer = asking => answer,
            () = client.sleep(patience), if !is_patient => {
                client.count("request with a key that was given up");
                return None;
            }
        };
        said_arrived(&answer);
        fits_together(client, &answer);
        let outcome = outcome(&answer);
        asked.told_by(outcome, site.life().number(), site.life().now());
        match answer {
            Ok(said) => {
                history.replied(&whole_key(id, key), said.value);
                client.count(if tries == 0 { "request with a key" } else { "request with a key again" });
                if site.app().is_outside {
                    client.count("request with a key of a process that is no host");
                }
                Some(Ok(()))
            }
            Err(RequestError::KeyReused { key: told }) => {
                history.key_reused(&whole_key(id, key));
                client.count("key of another message");
                Some(Err(RequestError::KeyReused { key: told }))
            }
            Err(RequestError::NotOwner { holder }) => Some(Err(RequestError::NotOwner { holder })),
            Err(_) => {
                if outcome == Outcome::Unknown {
                    client.count("request with a key whose outcome was not known");
                }
                None
            }
        }
    }
}

/// The whole name of a key.
fn whole_key(id: &str, key: &str) -> String {
    format!("{id}/{key}")
}
