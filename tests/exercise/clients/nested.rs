//! Instances that ask others.

use std::sync::Arc;
use std::time::Duration;

use stable_interfaces::testing::{Client, Outcome, What};

use crate::exercise::asking::{Awaited, ask, request, settle};
use crate::exercise::cell::Step;
use crate::exercise::scout::Errand;
use crate::exercise::{App, Exercise, whole};

impl Exercise {
    /// An instance asks another.
    pub(super) async fn nested(&self, client: &Client<App>, id: &str) {
        let other = Self::some_instance(client);
        let (outer, inner) = (self.next(), self.next());
        let asked = client.history().ask(What::Effect(whole(id, outer)));
        let awaited: Awaited = Arc::default();
        let answer = request(client, id, |cells| {
            let asked_inner = client.history().ask(What::Effect(whole(&other, inner)));
            // What was asked for by an earlier try was refused for certain.
            if let Some(before) = awaited.lock().replace(asked_inner) {
                before.told(Outcome::Not);
            }
            vec![Step::Count(outer), Step::Ask(cells, other.clone(), inner, awaited.clone())]
        })
        .await;
        settle(client, asked, &answer, "nested request");
    }

    /// A scout is sent to a cell, by a client or by another cell, which then takes its time.
    pub(super) async fn errand(&self, client: &Client<App>, cell: &str) {
        let (scout, sender) = (Self::some_scout(client), Self::some_instance(client));
        let (mine, its, senders) = (self.next(), self.next(), self.next());
        let (sleeps, lasts) =
            (client.random().up_to(Duration::from_millis(600)), client.random().up_to(Duration::from_secs(2)));
        let by_cell = client.random().chance(0.5);
        let (of_scout, of_cell): (Awaited, Awaited) = (Arc::default(), Arc::default());
        let again = |awaited: &Awaited, effect: String| {
            // What was asked for by an earlier try was refused for certain.
            if let Some(before) = awaited.lock().replace(client.history().ask(What::Effect(effect))) {
                before.told(Outcome::Not);
            }
            awaited.clone()
        };
        let errand = |app: App| Errand {
            app,
            cell: cell.to_owned(),
            effects: (mine, its),
            awaited: again(&of_cell, whole(cell, its)),
            sleeps,
        };
        if by_cell {
            let asked = client.history().ask(What::Effect(whole(&sender, senders)));
            let answer = request(client, &sender, |app| {
                let errand = errand(app.clone());
                let send = Step::Send(app, scout.clone(), errand, again(&of_scout, whole(&scout, mine)));
                vec![Step::Count(senders), send, Step::Sleep(lasts)]
            });
            settle(client, asked, &answer.await, "nested request by way of a scout");
        } else {
            let asked = client.history().ask(What::Effect(whole(&scout, mine)));
            let answer = ask(client, &scout, |app| {
                let (errand, scout) = (errand(app.clone()), scout.clone());
                async move { app.scouts().request(&scout, errand).await }
            });
            settle(client, asked, &answer.await, "errand of a scout");
        }
    }
}
