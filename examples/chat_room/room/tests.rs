use stable_interfaces::{Host, MemoryStore, RequestError};

use super::*;

fn room(numbers: std::ops::RangeInclusive<u64>) -> Room {
    let mut room = Room::new(Presence { gone_after: Duration::from_secs(9), listening_since: Timestamp::UNIX_EPOCH });
    let entry = |number| Entry { number, at: Timestamp::UNIX_EPOCH, who: "ann".to_owned(), what: What::Joined };
    room.history.extend(numbers.map(entry));
    room
}

#[test]
fn who_comes_back_gets_what_it_has_not_seen_and_is_told_of_what_it_cannot_get() {
    let seen = |after| {
        let welcome = room(11..=14).welcome(after);
        (welcome.history.iter().map(|entry| entry.number).collect::<Vec<_>>(), welcome.missed)
    };
    assert_eq!(seen(None), (vec![11, 12, 13, 14], 0));
    assert_eq!(seen(Some(12)), (vec![13, 14], 0));
    assert_eq!(seen(Some(14)), (vec![], 0));
    assert_eq!(seen(Some(10)), (vec![11, 12, 13, 14], 0));
    assert_eq!(seen(Some(7)), (vec![11, 12, 13, 14], 3));
    assert_eq!(seen(Some(99)), (vec![11, 12, 13, 14], 0));
}

#[tokio::test]
async fn a_room_keeps_its_ninety_nine_connections_when_the_hundredth_is_refused() {
    let mut host = Host::local(MemoryStore::new());
    let presence = Presence { gone_after: Duration::from_secs(60), listening_since: Timestamp::UNIX_EPOCH };
    let rooms = host.interface(move |_| Room::new(presence)).with_alarms().register().expect("a good name");
    let host = host.start().await.expect("it starts");
    let hello = |name: &str| Hello { name: name.to_owned(), after: None };
    let mut clients = Vec::new();
    for _ in 0..99 {
        // One member with many tabs: more members than that would have to read how they all join.
        let client = rooms.connect("lobby", hello("ann")).await.expect("there is room");
        client.recv().await.expect("a welcome");
        clients.push(client);
    }
    let refused = rooms.connect("lobby", hello(" bob")).await;
    assert!(matches!(refused, Err(RequestError::Rejected(_))), "{refused:?}");
    clients[7].send(Request::Say { tag: 1, text: "still there?".to_owned() }).await.expect("open");
    for client in &clients {
        assert!(client.recv().await.expect("open").contains("still there?"));
    }
    drop(host);
}

#[test]
fn names_that_nobody_could_read_are_refused() {
    for name in ["", " ann", "ann\n", "a\0b", &"a".repeat(65)] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
    assert!(check_name("Ann Müller").is_ok());
}

#[test]
fn events_are_the_json_that_the_page_reads() {
    let said = What::Said { tag: 7, text: "hi".to_owned() };
    let entry = Entry { number: 3, at: Timestamp::from_millis(5), who: "ann".to_owned(), what: said };
    let text = json(&Event::Entry(entry)).expect("an entry is JSON");
    assert_eq!(*text, *r#"{"entry":{"number":3,"at":5,"who":"ann","what":"said","tag":7,"text":"hi"}}"#);
    let request: Request = serde_json::from_str(r#"{"say":{"tag":7,"text":"hi"}}"#).expect("a request");
    assert!(matches!(request, Request::Say { tag: 7, .. }));
    assert!(matches!(serde_json::from_str(r#""here""#), Ok(Request::Here)));
}
