//! Things that last longer than one request: connections and tasks.

use std::collections::BTreeMap;
use std::time::Duration;

use stable_interfaces::testing::{Client, Invariant, Outcome, What};

use crate::exercise::asking::{ask, request, settle};
use crate::exercise::cell::{Reply, Step};
use crate::exercise::{App, Exercise, Odd, whole};

impl Exercise {
    /// A client that sends some messages and waits for their answers, in order.
    pub(super) async fn connection(&self, client: &Client<App>, id: &str) {
        let is_welcome = client.random().chance(0.9);
        let Some((Ok(connection), site)) =
            ask(client, id, |cells| async move { cells.connect(id, is_welcome).await }).await
        else {
            return;
        };
        let mut waiting = BTreeMap::new();
        for _ in 0..client.random().below(8) + 1 {
            let effect = self.next();
            let asked = client.history().ask(What::Effect(whole(id, effect)));
            match connection.send((effect, Odd::some(&site.app().shared, id))).await {
                Ok(()) => drop(waiting.insert(effect, asked)),
                Err(_) => {
                    asked.told(Outcome::Not);
                    break;
                }
            }
            if client.random().chance(0.3) {
                client.sleep(client.random().up_to(Duration::from_millis(500))).await;
            }
        }
        let mut expected = 0;
        while !waiting.is_empty() {
            let received = tokio::select! { biased;
                received = connection.recv() => received,
                // A handler that fails without having done anything says nothing.
                () = client.sleep(Duration::from_secs(20)) => break,
            };
            let Ok(Reply(number, effect, odd)) = received else { break };
            odd.iter().for_each(Odd::arrived);
            if number != expected {
                let what = format!("{id} sent {number} when {expected} was to come");
                client.history().violated(Invariant::InOrder, what);
            }
            expected += 1;
            if let Some(asked) = waiting.remove(&effect) {
                asked.told(Outcome::Done);
                client.count("message on a connection");
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
