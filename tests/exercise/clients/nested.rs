//! Instances that ask others.

use std::time::Duration;

use stable_interfaces::testing::{Client, What};

use crate::exercise::asking::{ask, request, settle};
use crate::exercise::cell::Step;
use crate::exercise::scout::Errand;
use crate::exercise::{App, Exercise, whole};

impl Exercise {
    /// An instance asks another.
    pub(super) async fn nested(&self, client: &Client<App>, id: &str) {
        let other = Self::some_instance(client);
        let (outer, inner) = (self.next(), self.next());
        let asked = client.history().ask(What::Effect(whole(id, outer)));
        let awaited = self.awaiting.prepare();
        let answer = request(client, id, || {
            self.awaiting.ask(awaited, client.history().ask(What::Effect(whole(&other, inner))));
            vec![Step::Count(outer), Step::Ask(other.clone(), inner, awaited)]
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
        let (of_scout, of_cell) = (self.awaiting.prepare(), self.awaiting.prepare());
        let again = |awaited, effect: String| {
            self.awaiting.ask(awaited, client.history().ask(What::Effect(effect)));
            awaited
        };
        let errand = || Errand {
            cell: cell.to_owned(),
            effects: (mine, its),
            awaited: again(of_cell, whole(cell, its)),
            sleeps,
        };
        if by_cell {
            let asked = client.history().ask(What::Effect(whole(&sender, senders)));
            let answer = request(client, &sender, || {
                let send = Step::Send(scout.clone(), errand(), again(of_scout, whole(&scout, mine)));
                vec![Step::Count(senders), send, Step::Sleep(lasts)]
            });
            settle(client, asked, &answer.await, "nested request by way of a scout");
        } else {
            let asked = client.history().ask(What::Effect(whole(&scout, mine)));
            let answer = ask(client, &scout, |app| {
                let (errand, scout) = (errand(), scout.clone());
                async move { app.scouts().request(&scout, errand).await }
            });
            settle(client, asked, &answer.await, "errand of a scout");
        }
    }
}
