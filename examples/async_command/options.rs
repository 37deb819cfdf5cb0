//! The ways in which a client may learn of what has become of its command, each with a line for the shell.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::store::Home;

/// An option of the decision record: its numbers, what the client does, and what to type. `@` stands for the server.
const OPTIONS: [(&str, &str, &str); 9] = [
    ("1.1", "poll the resource: 404 until it exists, or for ever if it never will", "curl -i @/locations/lisbon"),
    (
        "1.2, 4",
        "ask for a location under an ID of your own ..",
        "curl -i -X PUT @/flows/location/lisbon --json '{\"name\":\"Lisbon\",\"slow\":30}'",
    ),
    ("", ".. and poll the command: 200, with what it waits for", "curl -i @/flows/location/lisbon"),
    ("", ".. or let one request wait for its end", "curl -i @/flows/location/lisbon -H 'Prefer: wait=30'"),
    ("", ".. or be sent to what it has made: 303", "curl -i '@/flows/location/lisbon?follow=1'"),
    ("2.1, 5", "hear of the ends of all commands", "curl -N '@/flows/events?only=succeeded,failed'"),
    ("2.2, 2", "hear what this one says: location-created", "curl -N @/flows/location/lisbon/events"),
    ("2.3, 6", "hear only of those that fail", "curl -N '@/flows/events?only=failed,blocked'"),
    (
        "",
        "see one fail, and its name and plot given back",
        "curl -i -X PUT @/flows/location/atlantis --json '{\"name\":\"Atlantis\",\"fail\":1}'",
    ),
];

/// Says what there is to try, line by line.
pub(crate) fn to_try(address: SocketAddr, home: &Home) -> String {
    let kept = match home {
        Home::Directory(data) => data.display().to_string(),
        // Without the URL, which may hold a password.
        Home::Server(server) => server.kind.name().to_owned(),
    };
    let mut text = format!(
        "  Open it in a browser, or try each option in a shell. Locations are kept in {}. Kill this process (kill -9 {})\n  \
         and start it again: what was accepted goes on.\n\n",
        kept,
        std::process::id(),
    );
    for (number, what, line) in OPTIONS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {number:<7} {what}\n            {}", line.replace('@', &address.to_string()));
    }
    text
}
