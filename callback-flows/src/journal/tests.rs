//! Pages as they are written: golden ones of each format, and damaged ones.

use super::format::FORMAT;
use super::*;
use crate::hash::hex;

/// A page with everything that there is.
pub(crate) fn full_page() -> Page {
    let text = |text: &str| Arc::<str>::from(text);
    let message = Message {
        id: text("m-1"),
        headers: vec![(text("content-type"), text("application/json"))],
        body: Bytes::from_static(b"{\"by\":\"ada\"}"),
    };
    let events = [
        Event::Start { version: 2, run: 1, seed: 0x0123_4567_89ab_cdef, input: Bytes::from_static(b"17") },
        Event::Result { step: text("step:a#0"), outcome: StepOutcome::Done(Bytes::from_static(b"true")) },
        Event::Result {
            step: text("b/step:c[k]#1"),
            outcome: StepOutcome::Failed { error: text("refused"), attempts: 300 },
        },
        Event::Result { step: text("step:once#0"), outcome: StepOutcome::Interrupted },
        Event::Result { step: text("step:big#0"), outcome: StepOutcome::TooLarge(1 << 40) },
        Event::Attempt {
            step: text("step:d#0"),
            attempt: 7,
            error: text("busy"),
            again_at: Timestamp::from_millis(1_700_000_060_000),
        },
        Event::Intent { step: text("step:once#0") },
        Event::Message { callback: text("callback:accept#0"), message },
        Event::Fired { timer: text("timer:5s#0") },
        Event::Cancel,
    ];
    let at = |n: usize| Timestamp::from_millis(1_700_000_000_000 + i64::try_from(n).unwrap());
    let entries = events.into_iter().enumerate();
    let entries = entries.map(|(n, event)| Entry { seq: n as u64, at: at(n), event }).collect();
    let begun = |key: &str, detail| Begun { key: key.into(), detail };
    let settled = vec![
        Settled { seq: 0, begun: vec![begun("step:a#0", Detail::Input(42)), begun("callback:accept#0", Detail::None)] },
        Settled { seq: 1, begun: vec![begun("timer:5s#0", Detail::Due(at(5_000)))] },
    ];
    Page { entries, settled, settled_to: 10, ended: Some(Ended::Failed(text("no taker"))), continues: false }
}

pub(super) fn bytes_of(hex: &str) -> Bytes {
    let digits: Vec<_> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect::<Vec<_>>().into()
}

#[test]
fn a_page_of_the_first_format_is_read_and_written_as_ever() {
    let golden = bytes_of(include_str!("format-1.hex"));
    let hex = hex(&full_page().encode().page);
    assert_eq!(bytes_of(&hex), golden, "written as {hex}");
    assert_eq!(Page::decode(&golden.into()), Ok(full_page()));
}

/// A page with everything about children.
pub(super) fn page_of_children() -> Page {
    let text = |text: &str| Arc::<str>::from(text);
    let outcomes = [
        ChildOutcome::Done(Bytes::from_static(b"{\"by\":\"ada\"}")),
        ChildOutcome::Failed(text("no taker")),
        ChildOutcome::Cancelled,
        ChildOutcome::Purged,
        ChildOutcome::TooLarge(1 << 40),
        ChildOutcome::Conflict,
        ChildOutcome::Unknown(text("odrer")),
        ChildOutcome::Refused(text("an ID that cannot be one")),
    ];
    let ended = outcomes.into_iter().enumerate();
    let ended = ended.map(|(n, outcome)| Event::ChildEnded { child: format!("child:order[{n}]#0").into(), outcome });
    let posted =
        Event::Posted { starts: vec![text("child:order[0]#0"), text("b/child:x[1]#2")], cancels: vec![text("c")] };
    let at = |n: usize| Timestamp::from_millis(1_700_000_000_000 + i64::try_from(n).unwrap());
    let events = ended.chain([posted]).enumerate();
    let entries = events.map(|(n, event)| Entry { seq: n as u64, at: at(n), event }).collect();
    Page { entries, ..Page::default() }
}

#[test]
fn a_page_about_children_is_read_and_written_as_ever() {
    let golden = bytes_of(include_str!("format-1-children.hex"));
    let hex = hex(&page_of_children().encode().page);
    assert_eq!(bytes_of(&hex), golden, "written as {hex}");
    assert_eq!(Page::decode(&golden.into()), Ok(page_of_children()));
}

/// A page with the start of a run that goes on.
pub(super) fn page_of_a_continued_run() -> Page {
    let at = |n: i64| Timestamp::from_millis(1_700_000_000_000 + n);
    let message = |seq: u64, body: &'static str| {
        let (id, body) = (format!("m-{seq}").into(), Bytes::from_static(body.as_bytes()));
        let message = Message { id, headers: Vec::new(), body };
        Entry { seq, at: at(seq.cast_signed()), event: Event::Message { callback: "callback:c#1".into(), message } }
    };
    let carried = vec![
        Carried { key: "callback:c#0".into(), run: 1, callback: "callback:c#1".into(), unread: vec![3, 500] },
        Carried { key: "signal:s#0".into(), run: 0, callback: "signal:s#0".into(), unread: Vec::new() },
    ];
    let input = Bytes::from_static(b"{\"sum\":7}");
    let start = Event::Continued { version: 2, run: 3, seed: 0x0123_4567_89ab_cdef, input, carried };
    let begun = vec![Begun { key: "callback:c#0".into(), detail: Detail::None }];
    let entries = vec![message(3, "1"), message(500, "2"), Entry { seq: 2_000, at: at(2_000), event: start }];
    Page { entries, settled: vec![Settled { seq: 2_000, begun }], settled_to: 2_001, ..Page::default() }
}

#[test]
fn a_page_of_a_continued_run_is_read_and_written_as_ever() {
    let golden = bytes_of(include_str!("format-1-continued.hex"));
    let hex = hex(&page_of_a_continued_run().encode().page);
    assert_eq!(bytes_of(&hex), golden, "written as {hex}");
    assert_eq!(Page::decode(&golden.into()), Ok(page_of_a_continued_run()));
}

#[test]
fn a_page_that_goes_on_is_read_and_written_as_ever() {
    let page = Page { continues: true, ..full_page() };
    let golden = bytes_of(include_str!("format-3.hex"));
    let hex = hex(&page.encode().page);
    assert_eq!(bytes_of(&hex), golden, "written as {hex}");
    assert_eq!(Page::decode(&golden.into()), Ok(page));
}

#[test]
fn every_ending_comes_back() {
    for ended in [None, Some(Ended::Done(Bytes::from_static(b"1"))), Some(Ended::Cancelled)] {
        let page = Page { ended, ..Page::default() };
        assert_eq!(Page::decode(&page.encode()), Ok(page));
    }
}

#[test]
fn a_page_of_a_newer_format_is_told_from_a_damaged_one() {
    let mut page = full_page().encode().page.to_vec();
    page[0] = FORMAT + 1;
    assert_eq!(Page::decode(&Bytes::from(page).into()), Err(Unreadable::Newer(FORMAT + 1)));
    assert_eq!(Page::decode(&Bytes::new().into()), Err(Unreadable::Corrupt));
}

#[test]
fn a_page_that_is_cut_short_or_goes_on_is_damaged() {
    let page = full_page().encode().page;
    for length in 0..page.len() {
        assert_eq!(Page::decode(&page.slice(..length).into()), Err(Unreadable::Corrupt), "{length} bytes");
    }
    let mut longer = page.to_vec();
    longer.push(0);
    assert_eq!(Page::decode(&Bytes::from(longer).into()), Err(Unreadable::Corrupt));
}

#[test]
fn a_damaged_page_is_never_more_than_an_error() {
    let page = full_page().encode().page;
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        let mut damaged = page.to_vec();
        let at = random.usize(1..damaged.len());
        damaged[at] = random.u8(..);
        let _ = Page::decode(&Bytes::from(damaged).into());
    }
}
