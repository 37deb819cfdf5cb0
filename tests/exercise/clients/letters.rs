//! Durable messages, and what becomes of those and of alarms that could not be handled.

use stable_interfaces::testing::{Client, Outcome, Site, What};
use stable_interfaces::{DeadKind, NewPost, Posted};

use crate::exercise::asking::{outcome, settle_if};
use crate::exercise::kind::Kind;
use crate::exercise::{App, Exercise, Handles, whole};

impl Exercise {
    pub(super) async fn post(&self, client: &Client<App>, id: &str) {
        let kinds = [Kind::Plain, Kind::Plain, Kind::Fails, Kind::Panics, Kind::Doomed, Kind::Slow, Kind::Halves];
        let kind = client.random().pick(&kinds).copied().unwrap_or(Kind::Plain);
        let effect = self.next();
        let Some(site) = client.any().await else { return };
        let post = || {
            let message = NewPost::json(&kind.meta(effect)).expect("JSON").id(format!("m-{effect}"));
            site.app().post(id, message.header("kind", "simulated"))
        };
        let what = || What::Post { message: format!("{id}/m-{effect}"), effect: whole(id, effect) };
        let asked = client.history().ask(what());
        let answer = post().await;
        if answer.is_ok() {
            client.count("post");
        }
        asked.told(outcome(&answer));
        // What a handler has done by halves it does not do again for another message of the same effect.
        if client.random().chance(0.1) && kind != Kind::Halves {
            // Dropped while the first is there.
            let asked = client.history().ask(what());
            let answer = post().await;
            asked.told(if matches!(answer, Ok(Posted::Duplicate)) { Outcome::Not } else { outcome(&answer) });
        }
    }

    /// A message whose ID is posted again and again at about the time when it is handled, and mostly in the same millisecond.
    pub(super) async fn post_again(&self, client: &Client<App>, id: &str) {
        let effect = self.next();
        let Some(site) = client.owner_of(id).await else { return };
        for _ in 0..client.random().below(4) + 2 {
            let what = What::Post { message: format!("{id}/m-{effect}"), effect: whole(id, effect) };
            let asked = client.history().ask(what);
            let message = NewPost::json(&Kind::Plain.meta(effect)).expect("JSON").id(format!("m-{effect}"));
            let answer = site.app().post(id, message).await;
            asked.told(if matches!(answer, Ok(Posted::Duplicate)) { Outcome::Not } else { outcome(&answer) });
            if answer.is_ok() {
                client.count("post of one ID");
            }
            for _ in 0..client.random().below(120) {
                tokio::task::yield_now().await;
            }
        }
    }

    pub(super) async fn dead(&self, client: &Client<App>) {
        let Some(site) = client.any().await else { return };
        let Ok(dead) = site.app().dead_letters(None, 20).await else { return };
        client.count("dead letters listed");
        if let Some(dead) = client.random().pick(&dead) {
            self.requeue_or_discard(client, &site, dead, client.random().chance(0.7)).await;
        }
    }

    pub(in crate::exercise) async fn requeue_or_discard(
        &self,
        client: &Client<App>,
        site: &Site<App>,
        dead: &stable_interfaces::Dead,
        requeue: bool,
    ) {
        let meta = match dead.kind() {
            DeadKind::Alarm(alarm) => alarm.meta(),
            DeadKind::Message(message) => message.json(),
            _ => return,
        };
        let Ok(meta) = meta else { return };
        let effect = whole(dead.instance(), Kind::from_meta(&meta).1);
        let Handles { cells, scouts } = &*site.app().handles;
        let is_scouts = dead.instance().starts_with("r-");
        if requeue {
            let asked = client.history().ask(What::Requeue(effect));
            let answer = if is_scouts { scouts.requeue(dead).await } else { cells.requeue(dead).await };
            settle_if(client, asked, &Some((answer, site.clone())), "dead letter requeued", |done| *done);
        } else {
            let asked = client.history().ask(What::Discard(effect));
            let answer = if is_scouts { scouts.discard(dead).await } else { cells.discard(dead).await };
            settle_if(client, asked, &Some((answer, site.clone())), "dead letter discarded", |done| *done);
        }
    }
}
