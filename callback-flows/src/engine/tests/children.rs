//! Children: what is posted when, and what comes of it.

use super::*;
use crate::ChildError;
use crate::engine::{Post, What};
use crate::journal::ChildOutcome;

impl Tested {
    /// The posts that went out since this was last asked: `begin 17`, `cancel 17`.
    fn posts(&mut self) -> Vec<String> {
        self.posted.drain(..).map(|post| described(&post)).collect()
    }

    /// The posts that went out so far have arrived, which is noted.
    fn note_posts(&mut self, posts: &[Post], millis: i64) {
        posts.iter().for_each(|post| self.engine.note_posted(post));
        if self.engine.waits_for_posts() {
            self.engine.record_posted(at(millis));
        }
        self.turn(millis);
    }

    fn end_child(&mut self, millis: i64, child: &str, outcome: ChildOutcome) {
        self.engine.append(at(millis), Event::ChildEnded { child: child.into(), outcome });
        self.turn(millis);
    }
}

fn described(post: &Post) -> String {
    match post.what {
        What::Start(_) => format!("begin {}", post.id),
        What::Cancel => format!("cancel {}", post.id),
    }
}

fn done(value: &'static str) -> ChildOutcome {
    ChildOutcome::Done(Bytes::from_static(value.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn a_child_is_posted_again_by_each_replay_until_the_journal_says_that_it_was() {
    let mut flow = Tested::start(async |flow: Flow| {
        let mut child = flow.spawn("order", "17", "a pizza");
        Ok(child.result::<u32>().await?.to_string())
    });
    let first = flow.posted.clone();
    assert_eq!(flow.posts(), ["begin 17"]);
    assert!(matches!(&first[0].what, What::Start(Ok(input)) if **input == *b"\"a pizza\""));
    assert_eq!((&*first[0].name, &*first[0].child), ("order", "child:order[17]#0"));
    flow.turn(1);
    assert_eq!(flow.posts(), [""; 0], "once in each life");
    flow.replay();
    assert_eq!(flow.posts(), ["begin 17"], "it is not known to have gone out");
    flow.note_posts(&first, 2);
    assert!(flow.engine.has_posts(), "that is not worth a commit");
    flow.engine.record_posted(at(3));
    flow.turn(3);
    assert!(!flow.engine.has_posts());
    flow.replay();
    assert_eq!(flow.posts(), [""; 0]);
    flow.end_child(4, "child:order[17]#0", done("7"));
    assert_eq!(flow.result(), "7");
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_child_that_lost_a_race_does_not_swallow_its_end() {
    let mut flow = Tested::start(async |flow: Flow| {
        let mut child = flow.spawn("order", "17", &());
        let in_time = flow.timeout(seconds(5), child.result::<u32>()).await.is_ok();
        flow.callback::<()>("go").next_raw().await;
        let (once, twice) = (child.result::<u32>().await?, child.result::<u32>().await?);
        Ok(format!("{in_time} {once} {twice}"))
    });
    flow.pass(5_000);
    flow.end_child(6_000, "child:order[17]#0", done("7"));
    flow.replay();
    flow.send(7_000, "callback:go#0", "null");
    assert_eq!(flow.result(), "false 7 7");
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_result_says_why() {
    let ends = [
        (ChildOutcome::Failed("no taker".into()), ChildError::Failed("no taker".into())),
        (ChildOutcome::Cancelled, ChildError::Cancelled),
        (ChildOutcome::Conflict, ChildError::Conflict),
        (ChildOutcome::Purged, ChildError::Purged),
        (ChildOutcome::TooLarge(1 << 20), ChildError::TooLarge(1 << 20)),
        (ChildOutcome::Unknown("odrer".into()), ChildError::UnknownFlow("odrer".into())),
        (ChildOutcome::Refused("no ID".into()), ChildError::Refused("no ID".into())),
    ];
    for (told, expected) in ends {
        let mut flow = Tested::start(async |flow: Flow| {
            let error = flow.spawn("order", "17", &()).result::<u32>().await.unwrap_err();
            Ok(format!("{error:?}"))
        });
        flow.end_child(1, "child:order[17]#0", told);
        flow.replay();
        assert_eq!(flow.result(), format!("{expected:?}"));
    }
    let mut flow = Tested::start(async |flow: Flow| {
        Ok(flow.spawn("order", "17", &()).result::<u32>().await.unwrap_err().to_string())
    });
    flow.end_child(1, "child:order[17]#0", done("\"seven\""));
    assert!(flow.result().starts_with("the child's result is of another type"), "{}", flow.result());
}

#[tokio::test(start_paused = true)]
async fn two_handles_of_one_child_at_once_are_found_and_one_after_the_other_is_fine() {
    let flow = Tested::start(async |flow: Flow| {
        let (_a, _b) = (flow.spawn("order", "17", &()), flow.spawn("order", "17", &()));
        pending_callback(&flow).await
    });
    flow.assert_blocked(BlockedKind::TwoAtOnce, "two `order` at once: let go of the first one of this ID");
    let mut flow = Tested::start(async |flow: Flow| {
        drop(flow.spawn("order", "17", &()));
        let (mut again, mut other) = (flow.spawn("order", "17", &()), flow.spawn("order", "18", &()));
        let mut beside = flow.branch("b").spawn("order", "17", &());
        let all = tokio::join!(again.result::<u32>(), other.result::<u32>(), beside.result::<u32>());
        Ok(format!("{} {} {}", all.0?, all.1?, all.2?))
    });
    assert_eq!(flow.posts(), ["begin 17", "begin 17", "begin 18", "begin 17"]);
    for (child, value) in [("child:order[17]#1", "1"), ("b/child:order[17]#0", "3"), ("child:order[18]#0", "2")] {
        flow.end_child(1, child, done(value));
    }
    // Of one that nobody holds.
    flow.replay();
    flow.end_child(1, "child:order[17]#0", done("0"));
    flow.note_posts(&[], 2);
    assert_eq!(flow.result(), "1 2 3");
}

#[tokio::test(start_paused = true)]
async fn a_flow_does_not_end_before_its_children_are_begun() {
    let mut flow = Tested::start(async |flow: Flow| {
        for id in ["1", "2"] {
            drop(flow.spawn("order", id, &()));
        }
        Ok("done".to_owned())
    });
    flow.assert_waits_for(&["posts:children#0"]);
    flow.replay();
    flow.assert_waits_for(&["posts:children#0"]);
    let posts = flow.posted.split_off(2);
    assert_eq!(posts.iter().map(described).collect::<Vec<_>>(), ["begin 1", "begin 2"]);
    flow.note_posts(&posts[..1], 1);
    flow.assert_waits_for(&["posts:children#0"]);
    flow.replay();
    flow.note_posts(&posts[1..], 2);
    assert_eq!(flow.result(), "done");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_flow_cancels_those_of_its_children_that_have_not_ended() {
    let mut flow = Tested::start(async |flow: Flow| {
        let mut children: Vec<_> = ["1", "2", "3"].iter().map(|id| flow.spawn("order", id, &())).collect();
        children[0].result::<u32>().await?;
        pending_callback(&flow).await
    });
    let posts = std::mem::take(&mut flow.posted);
    flow.note_posts(&posts[..2], 1);
    flow.end_child(2, "child:order[1]#0", done("1"));
    flow.engine.append(at(3), Event::Cancel);
    flow.turn(3);
    assert_eq!(flow.posts(), ["cancel 2"], "the third one is not known to be there");
    flow.assert_waits_for(&["posts:children#0"]);
    flow.replay();
    let again = flow.posted.clone();
    assert_eq!(flow.posts(), ["begin 3", "cancel 2"]);
    flow.note_posts(&again, 4);
    let last = flow.posted.clone();
    assert_eq!(flow.posts(), ["cancel 3"]);
    flow.note_posts(&last, 5);
    assert_eq!(*flow.engine.phase(), Phase::Ended(Ended::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn a_child_with_another_input_than_it_had_then_blocks() {
    let run = |input: u32| {
        code(move |flow: Flow| async move { Ok(flow.spawn("order", "17", &input).result::<u32>().await?.to_string()) })
    };
    let mut flow = Tested::start_with(Limits::default(), run(1));
    flow.replay_with(run(2));
    flow.assert_blocked(BlockedKind::Differs, "`child:order[17]#0` has another input than it had then");
    assert_eq!(flow.posts().len(), 1, "and nothing is posted");
    flow.replay_with(run(1));
    flow.end_child(1, "child:order[17]#0", done("7"));
    assert_eq!(flow.result(), "7");
}
