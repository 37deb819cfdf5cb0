//! The README's first program: a reminder that greets once, ten seconds after it was last asked, whatever happens in between.
//!
//! ```text
//! cargo run --release --example greeter    # keeps it in `data`, in the current directory; Ctrl-C ends it
//! ```

use std::time::Duration;

use alarm_backends::FjallStore;
use stable_interfaces::{Alarm, Context, ContextError, Handle, Host, OnAlarm, StableInterface};

/// A reminder that greets once, ten seconds after it was last asked.
struct Greeter {
    asked: u64,
}

impl StableInterface for Greeter {
    const NAME: &'static str = "greeter";
    type Error = ContextError;

    async fn on_start(&mut self, cx: &mut Context) -> Result<(), ContextError> {
        self.asked = cx.get("asked").await?.unwrap_or(0);
        Ok(())
    }
}

struct Ask;

impl Handle<Ask> for Greeter {
    type Reply = u64;

    async fn handle(&mut self, cx: &mut Context, _: Ask) -> Result<u64, ContextError> {
        let asked = self.asked + 1;
        cx.put("asked", &asked)?;
        cx.set_alarm("greet", cx.now() + Duration::from_secs(10), &"hello")?;
        self.asked = asked; // Memory changes last, when nothing can fail any more.
        Ok(asked) // Both are durable, together, before the caller gets this.
    }
}

impl OnAlarm for Greeter {
    async fn on_alarm(&mut self, cx: &mut Context, alarm: &Alarm) -> Result<(), ContextError> {
        println!("{} to {} after {} times", alarm.meta::<String>()?, cx.id(), self.asked);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    examples::no_arguments("greeter");
    let mut host = Host::local(FjallStore::open("data")?);
    let greeters = host.interface(|_id| Greeter { asked: 0 }).with_alarms().register()?;
    let host = host.start().await?;

    println!("asked {} times", greeters.request("alice", Ask).await?);

    // Kill the process here if you like: run again, it greets all the same.
    host.run_until(tokio::signal::ctrl_c()).await?;
    Ok(())
}
