//! Alarms: set from inside and from outside, moved, cancelled, hurried, listed, and in order.

use std::time::Duration;

use stable_interfaces::Alarm;
use stable_interfaces::testing::{Client, Invariant, Pending, Setting, Site, What};

use crate::exercise::asking::{ask, request, settle, settle_if};
use crate::exercise::cell::Step;
use crate::exercise::kind::Kind;
use crate::exercise::{App, Exercise, whole};

impl Exercise {
    /// An alarm that nobody else touches.
    pub(super) async fn alarm(&self, client: &Client<App>, id: &str, inside: bool) {
        let kinds = [
            Kind::Plain,
            Kind::Plain,
            Kind::Plain,
            Kind::Again,
            Kind::Fails,
            Kind::Panics,
            Kind::Overruns,
            Kind::Doomed,
            Kind::Slow,
            Kind::Halves,
        ];
        let kind = client.random().pick(&kinds).copied().unwrap_or(Kind::Plain);
        self.set(client, id, kind, inside, None).await;
    }

    fn some_delay(client: &Client<App>) -> Duration {
        let most = client.random().pick(&[0, 1_000, 5_000, 60_000]).copied().unwrap_or(0);
        client.random().up_to(Duration::from_millis(most))
    }

    /// Sets an alarm; with `shared` one that has been set before, perhaps.
    pub(super) async fn set(&self, client: &Client<App>, id: &str, kind: Kind, inside: bool, shared: Option<&str>) {
        let effect = self.next();
        let alarm = shared.map_or_else(|| format!("a-{effect}"), str::to_owned);
        let due = client.now() + Self::some_delay(client);
        let meta = kind.meta(effect);
        let if_absent = client.random().chance(if shared.is_some() { 0.3 } else { 0.05 });
        let setting = Setting {
            alarm: format!("{id}/{alarm}"),
            effect: whole(id, effect),
            due,
            times: kind.times(),
            alone: None,
        };
        let asked = client.history().ask(What::Set(setting));
        if !inside {
            let (alarm, meta) = (&alarm, &meta);
            if if_absent {
                let answer =
                    ask(client, id, |cells| async move { cells.set_alarm_if_absent(id, alarm, due, meta).await });
                settle_if(client, asked, &answer.await, "alarm set from outside", |set| *set);
            } else {
                let answer = ask(client, id, |cells| async move { cells.set_alarm(id, alarm, due, meta).await });
                settle(client, asked, &answer.await, "alarm set from outside");
            }
            return;
        }
        let counted = self.next();
        let counts = client.history().ask(What::Effect(whole(id, counted)));
        let answer = request(client, id, || {
            let set = if if_absent {
                Step::SetIfAbsent(alarm.clone(), due, meta.clone())
            } else {
                Step::Set(alarm.clone(), due, meta.clone())
            };
            vec![Step::Count(counted), set]
        })
        .await;
        settle(client, counts, &answer, "request");
        settle_if(client, asked, &answer, "alarm set from inside", |said| !if_absent || said.flags == [true]);
    }

    /// An alarm that others set, move, cancel and hurry as well.
    pub(super) async fn shared_alarm(&self, client: &Client<App>, id: &str) {
        let random = client.random();
        let alarm = format!("s-{}", random.below(2));
        let name = format!("{id}/{alarm}");
        let inside = random.chance(0.5);
        match random.below(10) {
            0..5 => self.set(client, id, Kind::Plain, inside, Some(&alarm)).await,
            5..8 => {
                let asked = client.history().ask(What::Cancel(name));
                self.cancel_it(client, id, &alarm, inside, asked).await;
            }
            _ => {
                let asked = client.history().ask(What::FireNow(name));
                if inside {
                    let answer = request(client, id, || vec![Step::FireNow(alarm.clone())]).await;
                    settle_if(client, asked, &answer, "alarm fired now", |said| said.flags == [true]);
                } else {
                    let alarm = &alarm;
                    let answer = ask(client, id, |cells| async move { cells.fire_now(id, alarm).await }).await;
                    settle_if(client, asked, &answer, "alarm fired now", |fired| *fired);
                }
            }
        }
    }

    async fn cancel_it(&self, client: &Client<App>, id: &str, alarm: &str, inside: bool, asked: Pending) {
        if inside {
            let answer = request(client, id, || vec![Step::Cancel(alarm.to_owned())]).await;
            settle(client, asked, &answer, "alarm cancelled");
        } else {
            let answer = ask(client, id, |cells| async move { cells.cancel_alarm(id, alarm).await }).await;
            settle(client, asked, &answer, "alarm cancelled");
        }
    }

    /// Sets an alarm, and cancels it at about the time when it fires.
    pub(super) async fn cancel(&self, client: &Client<App>, id: &str) {
        let alarm = format!("c-{}", self.next());
        self.set(client, id, Kind::Slow, client.random().chance(0.5), Some(&alarm)).await;
        client.sleep(client.random().up_to(Duration::from_secs(2))).await;
        let asked = client.history().ask(What::Cancel(format!("{id}/{alarm}")));
        self.cancel_it(client, id, &alarm, client.random().chance(0.5), asked).await;
    }

    /// An alarm just set is listed.
    pub(super) async fn list(&self, client: &Client<App>, id: &str) {
        let effect = self.next();
        let alarm = format!("l-{effect}");
        let due = client.now() + Duration::from_secs(30);
        let setting =
            Setting { alarm: format!("{id}/{alarm}"), effect: whole(id, effect), due, times: (1, 1), alone: None };
        let asked = client.history().ask(What::Set(setting));
        let meta = Kind::Plain.meta(effect);
        let (alarm, meta) = (&alarm, &meta);
        let answer = ask(client, id, |cells| async move { cells.set_alarm(id, alarm, due, meta).await }).await;
        if !settle(client, asked, &answer, "alarm set from outside") {
            return;
        }
        let listed = if client.random().chance(0.5) {
            let answer = request(client, id, || vec![Step::List]).await;
            answer.and_then(|(answer, site)| Some((answer.ok()?.alarms, site)))
        } else {
            let answer = ask(client, id, |cells| async move { cells.alarms(id).await }).await;
            let ids = |alarms: Vec<Alarm>| alarms.iter().map(|alarm| alarm.id().to_owned()).collect();
            answer.and_then(|(answer, site)| Some((answer.ok().map(ids)?, site)))
        };
        let Some((listed, site)) = listed else { return };
        client.count("alarms listed");
        // Whichever host it was that answered.
        let is_early = |site: &Site<App>| site.life().latest() < due && site.life().is_current();
        if client.now() < due && client.all().iter().all(is_early) && !listed.contains(alarm) {
            let what = format!("{id}/{alarm} was set and is not listed by life {}", site.life().number());
            client.history().violated(Invariant::Read, what);
        }
    }

    pub(super) async fn scout_alarm(&self, client: &Client<App>) {
        let (scout, effect) = (Self::some_scout(client), self.next());
        let kind = if client.random().chance(0.3) { Kind::Fails } else { Kind::Plain };
        let (alarm, due) = (format!("a-{effect}"), client.now() + Self::some_delay(client));
        let setting = Setting {
            alarm: format!("{scout}/{alarm}"),
            effect: whole(&scout, effect),
            due,
            times: kind.times(),
            alone: None,
        };
        let asked = client.history().ask(What::Set(setting));
        let (id, alarm, meta) = (&scout, &alarm, &kind.meta(effect));
        let answer = ask(client, id, |app| async move { app.scouts().set_alarm(id, alarm, due, meta).await });
        settle(client, asked, &answer.await, "alarm of a scout");
    }

    /// Alarms of instances that nothing else happens to, in one shard, about the same time: they have to start in order.
    pub(super) async fn order(&self, client: &Client<App>) {
        let Some(shard) = client.shard_of(&Self::some_instance(client)) else { return };
        let due = client.now() + Duration::from_secs(3);
        for _ in 0..4 {
            let effect = self.next();
            let Some(id) = (0..10_000).map(|n| format!("o-{effect}-{n}")).find(|id| client.shard_of(id) == Some(shard))
            else {
                return;
            };
            let due = due + Duration::from_millis(client.random().below(3));
            let setting = Setting {
                alarm: format!("{id}/x"),
                effect: whole(&id, effect),
                due,
                times: (1, 1),
                alone: Some((shard, id.clone())),
            };
            let asked = client.history().ask(What::Set(setting));
            let (meta, id) = (Kind::Plain.meta(effect), id.as_str());
            let meta = &meta;
            let answer = ask(client, id, |cells| async move { cells.set_alarm(id, "x", due, meta).await }).await;
            settle(client, asked, &answer, "alarm set from outside");
        }
    }
}
