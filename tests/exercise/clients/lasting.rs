//! Things that last longer than one request: connections and tasks.

use std::collections::BTreeMap;
use std::time::Duration;

use stable_interfaces::Closed;
use stable_interfaces::testing::{Client, Invariant, Outcome, What};

use crate::exercise::asking::{ask, request, settle};
use crate::exercise::cell::{Item, Reply, Step};
use crate::exercise::{App, Exercise, INSTANCES, Odd, whole};

/// A client that has heard nothing for so long says something more. It goes on until it is answered or the connection ends: one that ends
/// without a word is a client that waits for ever.
const SILENT_FOR: Duration = Duration::from_secs(20);
/// The time after which every host has found out which clients are gone.
const GONE_AFTER: Duration = Duration::from_secs(90);

impl Exercise {
    /// A client that sends some messages, at once or over a time in which its instance may move, and waits for their answers, in order.
    pub(super) async fn connection(&self, client: &Client<App>, id: &str) {
        let random = client.random();
        let is_welcome = random.chance(0.9);
        let Some((Ok(connection), site)) =
            ask(client, id, |cells| async move { cells.connect(id, is_welcome).await }).await
        else {
            return;
        };
        let (mut waiting, mut sent, mut expected) = (BTreeMap::new(), 0, 0);
        let mut to_send = random.below(8) + 1;
        let pause = Duration::from_millis(*random.pick(&[0, 500, 10_000, 10_000]).unwrap_or(&0));
        let ended = loop {
            if sent < to_send {
                let effect = self.next();
                let asked = client.history().ask(What::Effect(whole(id, effect)));
                if let Err(closed) = connection.send(Item(sent, effect, Odd::some(&site.app().shared, id))).await {
                    asked.told(Outcome::Not);
                    break closed;
                }
                waiting.insert(effect, asked);
                sent += 1;
            } else if waiting.is_empty() {
                break Closed::ByClient;
            }
            let patience = if sent < to_send { random.up_to(pause) } else { SILENT_FOR };
            let received = tokio::select! { biased;
                received = connection.recv() => received,
                () = client.sleep(patience) => {
                    // A handler that fails without having done anything says nothing; but then it answers, or the connection ends.
                    to_send += u64::from(sent == to_send);
                    continue;
                }
            };
            match received {
                Ok(Reply(number, effect, odd)) => {
                    odd.iter().for_each(Odd::arrived);
                    if number != expected {
                        let what = format!("{id} sent {number} when {expected} was to come");
                        client.history().violated(Invariant::Connected, what);
                    }
                    expected = number + 1;
                    if let Some(asked) = waiting.remove(&effect) {
                        asked.told(Outcome::Done);
                        client.count("message on a connection");
                        if site.app().is_outside {
                            client.count("message on a connection of a process that is no host");
                        }
                    }
                    // What came before it in order, and was not answered, failed.
                    waiting.retain(|other, _| *other > effect);
                }
                Err(closed) => break closed,
            }
        };
        client.count(match ended {
            Closed::ByClient => "connection closed by its client",
            Closed::ByInstance(_) => "connection closed by its instance",
            Closed::Moved { .. } => "connection of an instance that moved",
            Closed::Unreachable { .. } => "connection whose link was lost",
            Closed::Uncrossable(what) => {
                client.history().violated(Invariant::Connected, format!("{id}: {what}"));
                "connection that could not cross"
            }
            _ => "connection of an instance that ended",
        });
    }

    /// Checks that no instance has a connection when all clients are gone, whichever way those ended.
    pub(in crate::exercise) async fn look_for_connections(&self, client: &Client<App>) {
        client.sleep(GONE_AFTER).await;
        for n in 0..INSTANCES {
            let id = format!("i-{n}");
            if let Some((Ok(said), _)) = request(client, &id, || vec![Step::Peers]).await
                && said.value > 0
            {
                let what = format!("{id} has {} connections of clients that are gone", said.value);
                client.history().violated(Invariant::Connected, what);
            }
        }
    }

    pub(super) async fn task(&self, client: &Client<App>, id: &str) {
        let effects: Vec<_> = (0..client.random().below(4) + 1).map(|_| self.next()).collect();
        let counted = self.next();
        let asked = client.history().ask(What::Effect(whole(id, counted)));
        let answer = request(client, id, || vec![Step::Count(counted), Step::Spawn(effects.clone())]).await;
        settle(client, asked, &answer, "task started");
    }
}
