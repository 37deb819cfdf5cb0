//! The operations of clients, drawn at random: one operation after the other, each with its promise written down before it is asked for.

mod alarms;
mod keys;
mod lasting;
mod letters;
mod nested;

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stable_interfaces::testing::{Client, Invariant, Outcome, What};

use super::asking::{ask, outcome, request, settle};
use super::cell::Step;
use super::kind::Kind;
use super::{App, Exercise, INSTANCES, SCOUTS, whole};

type Operation = (u64, &'static str);

/// The operations of clients, and their weights.
const OPERATIONS: [Operation; 24] = [
    (17, "count"),
    (12, "alarm from inside"),
    (10, "alarm from outside"),
    (12, "shared alarm"),
    (4, "cancel"),
    (3, "list"),
    (6, "add"),
    (5, "read"),
    (9, "post"),
    (2, "post again"),
    (6, "connection"),
    (8, "task"),
    (2, "hold"),
    (2, "passivate"),
    (2, "stop"),
    (4, "dead"),
    (3, "nested"),
    (4, "errand"),
    (3, "alarm of a scout"),
    (1, "cycle"),
    (3, "order"),
    (2, "burst"),
    (3, "dropped"),
    (8, "key"),
];

impl Exercise {
    fn next(&self) -> u64 {
        self.effects.fetch_add(1, Ordering::Relaxed)
    }

    fn some_instance(client: &Client<App>) -> String {
        let random = client.random();
        // Some are asked much more than others.
        let n = if random.chance(0.4) { random.below(3) } else { random.below(INSTANCES) };
        format!("i-{n}")
    }

    fn some_scout(client: &Client<App>) -> String {
        format!("r-{}", client.random().below(SCOUTS))
    }

    pub(super) async fn something(&self, client: &Client<App>) {
        let mut drawn = client.random().below(OPERATIONS.iter().map(|(weight, _)| weight).sum());
        let operation = OPERATIONS.iter().find(|(weight, _)| match drawn.checked_sub(*weight) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
        let id = Self::some_instance(client);
        match operation.map_or("", |(_, name)| *name) {
            "count" => self.count(client, &id).await,
            "alarm from inside" => self.alarm(client, &id, true).await,
            "alarm from outside" => self.alarm(client, &id, false).await,
            "shared alarm" => self.shared_alarm(client, &id).await,
            "cancel" => self.cancel(client, &id).await,
            "list" => self.list(client, &id).await,
            "add" => self.add(client, &id).await,
            "read" => self.read(client, &id).await,
            "post" => self.post(client, &id).await,
            "post again" => self.post_again(client, &id).await,
            "connection" => self.connection(client, &id).await,
            "task" => self.task(client, &id).await,
            "hold" => self.set(client, &id, Kind::Holds, true, None).await,
            "passivate" => {
                let answer = request(client, &id, || vec![Step::Passivate]).await;
                if matches!(answer, Some((Ok(_), _))) {
                    client.count("passivate");
                }
            }
            "stop" => {
                let answer = ask(client, &id, |cells| {
                    let id = id.clone();
                    async move { cells.stop(&id).await }
                });
                if matches!(answer.await, Some((Ok(()), _))) {
                    client.count("stop");
                }
            }
            "dead" => self.dead(client).await,
            "nested" => self.nested(client, &id).await,
            "errand" => self.errand(client, &id).await,
            "alarm of a scout" => self.scout_alarm(client).await,
            "cycle" => {
                let (other, back) = (Self::some_instance(client), self.awaiting.prepare());
                let answer = request(client, &id, || vec![Step::Cycle(other.clone(), back)]).await;
                if let Some((Ok(said), _)) = answer {
                    client.count("cycle found");
                    if said.flags == [false] {
                        client.history().violated(Invariant::OneAtATime, "a call cycle came to a good end");
                    }
                }
            }
            "order" => self.order(client).await,
            "burst" => self.burst(client, &id).await,
            "key" => self.key(client, &id).await,
            _ => self.dropped(client, &id).await,
        }
    }

    /// Some effects together, perhaps with a commit in between, and not always with a good end.
    async fn count(&self, client: &Client<App>, id: &str) {
        let random = client.random();
        let ask = |effect| client.history().ask(What::Effect(whole(id, effect)));
        let (first, last) = (self.next(), self.next());
        let commits = random.chance(0.3);
        let early = self.awaiting.prepare();
        if commits {
            self.awaiting.ask(early, ask(first));
        }
        let asked = ask(last);
        let both = (!commits).then(|| ask(first));
        let (sleeps, ends, scratches) =
            (random.up_to(Duration::from_millis(300)), random.below(100), random.chance(0.2));
        let answer = request(client, id, || {
            let mut steps = vec![Step::Count(first)];
            if commits {
                steps.push(Step::Commit(early));
            }
            if ends % 3 == 0 {
                steps.push(Step::Sleep(sleeps));
            }
            if scratches {
                steps.push(Step::Scratch);
            }
            steps.push(Step::Count(last));
            match ends {
                0..8 => steps.push(Step::Fail),
                8..12 => steps.push(Step::Panic),
                12..14 => steps.push(Step::Overrun),
                14..17 => steps.push(Step::Spoil),
                17..20 => steps = vec![Step::Spoil],
                _ => {}
            }
            steps
        })
        .await;
        if let Some(both) = both {
            settle(client, both, &answer, "storage");
        } else if let Some((answer, _)) = &answer {
            if outcome(answer) == Outcome::Not {
                client.history().denied(&whole(id, first));
            }
        } else {
            self.awaiting.tell(early, Outcome::Not);
        }
        let rest = answer.as_ref().map(|(answer, site)| (Outcome::of_rest(answer), site));
        match rest {
            // A definite word on the one effect, though not on the other.
            Some((Outcome::Not, site)) if commits => {
                asked.told_by(Outcome::Not, site.life().number(), site.life().now());
            }
            _ => drop(settle(client, asked, &answer, "request")),
        }
    }

    /// Raises a counter that is read as well.
    async fn add(&self, client: &Client<App>, id: &str) {
        let asked = client.history().ask(What::Effect(format!("{id}/n")));
        let answer = request(client, id, || vec![Step::Add]).await;
        settle(client, asked, &answer, "request");
    }

    async fn read(&self, client: &Client<App>, id: &str) {
        let look = client.history().look(&format!("{id}/n"));
        let answer = request(client, id, || vec![Step::Read]).await;
        if let Some((Ok(said), _)) = answer {
            client.count("read");
            // One that has been replaced may answer from memory until it learns of that.
            if said.is_current {
                look.saw(said.value);
            }
        }
    }

    /// Many requests of one instance at once.
    async fn burst(&self, client: &Client<App>, id: &str) {
        let one = || async {
            let effect = self.next();
            let asked = client.history().ask(What::Effect(whole(id, effect)));
            let answer = request(client, id, || vec![Step::Count(effect)]).await;
            settle(client, asked, &answer, "request");
        };
        let mut all: Vec<_> = (0..12).map(|_| Box::pin(one())).collect();
        std::future::poll_fn(|cx| {
            all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
            if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    /// A request that its sender does not wait for.
    async fn dropped(&self, client: &Client<App>, id: &str) {
        let effect = self.next();
        let asked = client.history().ask(What::Effect(whole(id, effect)));
        let work = request(client, id, || vec![Step::Count(effect), Step::Sleep(Duration::from_millis(100))]);
        let answer = tokio::select! { biased;
            answer = work => answer,
            () = client.sleep(client.random().up_to(Duration::from_millis(120))) => return drop(asked),
        };
        settle(client, asked, &answer, "request");
    }
}
