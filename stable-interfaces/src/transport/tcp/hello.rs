//! The first words of a link: who calls, whom, and of which fleet. Both sides look, and whoever refuses says why.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::frame::{Frames, Kind, put};
use crate::clock::within;
use crate::transport::Introduction;

/// The versions of frames that this release speaks.
const PROTOCOLS: [u8; 1] = [1];

/// The time that a caller has for its first words.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream of bytes, with TLS or without.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

/// The words of one side about itself, and whom it takes the other for. Fields of a newer release are stepped over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    protocols: Vec<u8>,
    pub(super) host: String,
    to: String,
    shards: u32,
    hash_version: u32,
    #[serde(default)]
    fleet: Option<String>,
    /// The name that the store of the host has given itself.
    #[serde(default)]
    store: Option<String>,
    /// The reason why the other side is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl Hello {
    pub(super) fn new(own: &Introduction, fleet: Option<&str>, to: &str) -> Hello {
        Hello {
            protocols: PROTOCOLS.to_vec(),
            host: own.host.to_string(),
            to: to.to_owned(),
            shards: own.shards,
            hash_version: own.hash_version,
            fleet: fleet.map(str::to_owned),
            store: own.store.get().and_then(|name| name.as_deref().map(str::to_owned)),
            refused: None,
        }
    }

    /// Refuses a host that cannot be talked to, in words for the people of both sides. `self` is this side's own.
    fn check(&self, other: &Hello) -> Result<(), String> {
        let Hello { host, shards, hash_version, fleet, .. } = other;
        if let Some(reason) = &other.refused {
            return Err(format!("{host:?} has refused: {reason}"));
        }
        if !other.protocols.iter().any(|protocol| PROTOCOLS.contains(protocol)) {
            return Err(format!(
                "{host:?} speaks protocols {:?}, and {:?} speaks {PROTOCOLS:?}",
                other.protocols, self.host
            ));
        }
        if (*shards, *hash_version) != (self.shards, self.hash_version) {
            return Err(format!(
                "{host:?} is of a fleet with {shards} shards (hash version {hash_version}), and {:?} of one with {} (hash version {})",
                self.host, self.shards, self.hash_version
            ));
        }
        if let (Some(theirs), Some(own)) = (fleet, &self.fleet)
            && theirs != own
        {
            return Err(format!("{host:?} is of the fleet {theirs:?}, and {:?} of {own:?}", self.host));
        }
        if let (Some(theirs), Some(own)) = (&other.store, &self.store)
            && theirs != own
        {
            return Err(format!(
                "{host:?} is of the fleet on the store {theirs:?}, and {:?} of that on {own:?}: one of them has the address of a host that was \
                 another's, or is connected to another store",
                self.host
            ));
        }
        Ok(())
    }
}

#[cfg(any(test, fuzzing))]
impl Hello {
    /// Any bytes as a first word: none, or the same when it is written again.
    pub(super) fn try_out(data: &[u8]) {
        let Ok(hello) = serde_json::from_slice::<Hello>(data) else { return };
        let again = serde_json::to_vec(&hello).expect("texts and numbers can be written");
        assert_eq!(serde_json::from_slice::<Hello>(&again).expect("it was just written"), hello);
        let is_refused = hello.refused.is_some() || !hello.protocols.iter().any(|one| PROTOCOLS.contains(one));
        assert_eq!(hello.check(&hello).is_err(), is_refused, "who is of the same fleet is let in");
    }
}

fn refusal(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason)
}

/// Calls: says who this host is, and hears who has answered.
pub(super) async fn call(
    stream: &mut (dyn Wire + 'static),
    own: &Hello,
    frames: &mut Frames,
    incoming: &mut BytesMut,
) -> io::Result<()> {
    say(stream, Kind::Hello, own).await?;
    let welcome = hear(stream, Kind::Welcome, frames, incoming).await?;
    if welcome.refused.is_none() && welcome.host != own.to {
        return Err(refusal(format!("{:?} has answered, and {:?} was called", welcome.host, own.to)));
    }
    own.check(&welcome).map_err(refusal)
}

/// Is called: hears who calls, says who this host is, or why that one is refused. `is_it` holds the name against the certificate.
pub(super) async fn answer(
    stream: &mut (dyn Wire + 'static),
    mut own: Hello,
    is_it: impl Fn(&str) -> Result<(), String>,
    frames: &mut Frames,
    incoming: &mut BytesMut,
) -> io::Result<Hello> {
    let hello = hear(stream, Kind::Hello, frames, incoming).await?;
    let is_called = if hello.to == own.host {
        Ok(())
    } else {
        Err(format!("{:?} calls {:?}, and this is {:?}", hello.host, hello.to, own.host))
    };
    own.to.clone_from(&hello.host);
    let checked = own.check(&hello).and(is_called).and_then(|()| is_it(&hello.host));
    own.refused = checked.err();
    say(stream, Kind::Welcome, &own).await?;
    match own.refused {
        Some(reason) => Err(refusal(reason)),
        None => Ok(hello),
    }
}

async fn say(stream: &mut (dyn Wire + 'static), kind: Kind, hello: &Hello) -> io::Result<()> {
    let mut out = BytesMut::new();
    put(&mut out, kind, 0, &serde_json::to_vec(hello)?);
    stream.write_all(&out).await?;
    stream.flush().await
}

async fn hear(
    stream: &mut (dyn Wire + 'static),
    kind: Kind,
    frames: &mut Frames,
    incoming: &mut BytesMut,
) -> io::Result<Hello> {
    loop {
        if let Some(frame) = frames.next(incoming)? {
            if frame.kind != kind {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{:?} came first", frame.kind)));
            }
            return Ok(serde_json::from_slice(&frame.part)?);
        }
        if stream.read_buf(incoming).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Bounds the first words of a link.
pub(super) async fn in_time<T>(
    own: &Introduction,
    limit: Duration,
    words: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    within(&*own.clock, limit, words).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}
