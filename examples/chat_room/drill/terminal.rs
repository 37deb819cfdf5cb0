//! A room in a terminal: a line of input is said, and what happens is a line of output.

use std::net::SocketAddr;

use tokio::sync::mpsc;

use crate::drill::client::{Member, News};

/// The options of the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) server: SocketAddr,
    pub(crate) room: String,
    pub(crate) name: String,
}

/// Talks until the input ends, then leaves the room. An error says why it was not let in.
pub(crate) async fn talk(Options { server, room, name }: Options) -> Result<(), String> {
    let mut lines = input();
    let mut member = Member::new(server, &room, &name);
    let mut leaving = false;
    let mut is_out = true;
    loop {
        if is_out {
            eprintln!("* connecting to {server}");
            is_out = false;
            for news in member.join().await {
                show(&news)?;
            }
        }
        tokio::select! { biased;
            news = member.next() => {
                is_out = matches!(news, News::Out(_));
                if is_out && leaving {
                    return Ok(());
                }
                show(&news)?;
            }
            line = lines.recv(), if !leaving => match line {
                Some(line) if line.is_empty() => {}
                Some(line) => member.say(fastrand::u64(..1 << 53), line).await,
                None => { leaving = true; member.leave().await }
            },
        }
    }
}

fn show(news: &News) -> Result<(), String> {
    match news {
        News::In { members, missed } => {
            if *missed > 0 {
                println!("* {missed} earlier messages are no longer kept");
            }
            println!("* here: {}", members.join(", "));
        }
        News::Entry(entry) => println!("{entry}"),
        News::Out(reason) => eprintln!("* disconnected: {reason}"),
        News::Refused(reason) => return Err(reason.clone()),
    }
    Ok(())
}

/// The lines of standard input, read on a thread of its own: one that waits for input would keep the runtime from ending.
fn input() -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if send.blocking_send(line.trim().to_owned()).is_err() {
                return;
            }
        }
    });
    lines
}
