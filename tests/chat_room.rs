//! The example `chat_room` as a user runs it: its exit status and its last line are its promise.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use system_tests::example::Example;

static CHAT: Example = Example::new("chat_room");

/// Serving that ends by itself, should it wrongly start: [`Example::run`] gives it no standard input.
fn serve<'a>(data: &'a str, listen: &'a str) -> [&'a str; 5] {
    ["--until-stdin-ends", "--data", data, "--listen", listen]
}

#[test]
fn the_self_test_loses_nothing_through_a_kill_and_notices_who_stays_away() {
    let output = CHAT.run(&["--self-test"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(last.starts_with("4 rooms, 20 members, "), "{said}");
    for promise in ["none lost, twice, out of order or astray", "4 who stayed away announced gone", "lost none"] {
        assert!(last.contains(promise), "{promise}: {said}");
    }
    // Those who come back say all of their 12 messages; a third of everything was acknowledged before the kill.
    let messages: u32 = last.split(' ').nth(4).and_then(|word| word.parse().ok()).unwrap_or(0);
    assert!((4 * 4 * 12..=4 * 5 * 12).contains(&messages), "{said}");
}

#[test]
fn the_page_is_complete_in_itself() {
    let data = tempfile::tempdir().expect("a directory");
    let serving = CHAT.serve(&["--data", &data.path().join("rooms").display().to_string()]);
    let mut stream = TcpStream::connect(serving.address()).expect("it listens");
    write!(stream, "GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", serving.address()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in UTF-8");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\ncontent-type: text/html; charset=utf-8\r\n"), "{answer}");
    assert!(answer.trim_end().ends_with("</html>"), "{answer}");
    for elsewhere in ["src=", "href=", "http://", "https://", "@import", "url("] {
        assert!(!answer.contains(elsewhere), "{elsewhere}");
    }
}

#[test]
fn bad_arguments_are_refused() {
    CHAT.assert_refuses(&["--prot", "5"], "--prot");
    CHAT.assert_refuses(&["--listen", "here"], "here");
    CHAT.assert_refuses(&["--gone-after", "0"], "--gone-after");
    CHAT.assert_refuses(&["--self-test", "--data", "x"], "--self-test");
    CHAT.assert_refuses(&["join", "lobby"], "NAME");
}

#[test]
fn a_port_in_use_is_refused() {
    let data = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    CHAT.assert_refuses(&serve(&data.path().display().to_string(), &address), &address);
}

#[test]
fn a_directory_that_another_process_holds_or_that_is_none_is_refused() {
    let data = tempfile::tempdir().expect("a directory");
    let rooms = data.path().join("rooms").display().to_string();
    let serving = CHAT.serve(&["--data", &rooms]);
    CHAT.assert_refuses(&serve(&rooms, "127.0.0.1:0"), &rooms);
    drop(serving);
    // A process that was killed holds nothing back.
    drop(CHAT.serve(&["--data", &rooms]));

    let file = tempfile::NamedTempFile::new().expect("a file");
    let file = file.path().display().to_string();
    CHAT.assert_refuses(&serve(&file, "127.0.0.1:0"), &file);
}

#[test]
fn a_client_that_no_room_takes_is_told_why() {
    let data = tempfile::tempdir().expect("a directory");
    let serving = CHAT.serve(&["--data", &data.path().join("rooms").display().to_string()]);
    let output = CHAT.run(&["join", "lobby", &"n".repeat(65), "--server", serving.address()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("a name has 1 to 64 bytes"), "{output:?}");
}

/// Joins a room, sends bytes as they are, and returns the code and the reason of the frame that closes it.
fn closed_with(address: &str, sent: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==";
    write!(stream, "GET /chat?room=lobby&name=ann HTTP/1.1\r\nhost: {address}\r\n{upgrade}\r\n\r\n").expect("it reads");
    stream.write_all(sent).expect("it reads");
    let mut answer = Vec::new();
    // What follows the closing frame, and however the connection ends, is of no importance.
    let _ = stream.read_to_end(&mut answer);
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").expect("a whole header");
    let mut frames = &answer[head + 4..];
    while let [first, length, rest @ ..] = frames {
        let (length, rest) = match *length {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            length => (usize::from(length), rest),
        };
        if *first == 0x88 {
            let reason = String::from_utf8(rest[2..length].to_vec()).expect("a reason is UTF-8");
            return (u16::from_be_bytes([rest[0], rest[1]]), reason);
        }
        frames = &rest[length..];
    }
    (0, String::from_utf8_lossy(&answer).into_owned())
}

/// A frame of a client, masked with zeros: its first byte, then the payload.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short one").to_be_bytes();
    [&[first, 0x80 | 126, length[0], length[1], 0, 0, 0, 0], payload].concat()
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_how() {
    let data = tempfile::tempdir().expect("a directory");
    let serving = CHAT.serve(&["--data", &data.path().join("rooms").display().to_string()]);
    let large = vec![b' '; 20_000];
    for (code, broken, sent) in [
        (1007, "text that is no UTF-8", frame(0x81, b"\"\xff\"")),
        (1007, "such text in two pieces", [frame(0x01, b"\"\xff"), frame(0x80, b"\"")].concat()),
        (
            1009,
            "a frame of a megabyte, of which only the head is sent",
            vec![0x81, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0],
        ),
        (1009, "a frame that is too large", frame(0x81, &[&*large, &large].concat())),
        (1009, "a message that is too large, in two pieces", [frame(0x01, &large), frame(0x80, &large)].concat()),
        (1002, "a frame without a mask", vec![0x81, 0x06, b'"', b'h', b'e', b'r', b'e', b'"']),
        (1002, "reserved bits", frame(0xc1, b"\"here\"")),
        (1002, "a kind of frame that there is not", frame(0x83, b"")),
        (1002, "a piece of nothing", frame(0x80, b"x")),
        (1008, "no request", frame(0x81, b"\"sing\"")),
        (1000, "nothing: it leaves", frame(0x81, b"\"leave\"")),
    ] {
        let (found, reason) = closed_with(serving.address(), &sent);
        assert_eq!(found, code, "{broken}: {reason}");
        assert!(!reason.is_empty(), "{broken}");
    }
}

#[test]
fn a_room_may_have_any_name_that_can_be_read() {
    let data = tempfile::tempdir().expect("a directory");
    let serving = CHAT.serve(&["--data", &data.path().join("rooms").display().to_string()]);
    for room in [".", "..", "a/b", "%2e", "?", "#", "日本"] {
        // Its input is at its end, so it leaves again.
        let output = CHAT.run(&["join", "--server", serving.address(), "--", room, "ann"]);
        assert!(output.status.success(), "{room}: {output:?}");
    }
}

#[test]
fn a_host_ends_when_its_parent_is_gone_and_says_nothing_of_it() {
    let data = tempfile::tempdir().expect("a directory");
    let rooms = data.path().join("rooms").display().to_string();
    // Standard input that ends at once is what is left of a parent that died.
    let ended = CHAT.run(&serve(&rooms, "127.0.0.1:0"));
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}
