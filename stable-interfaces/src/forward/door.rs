//! The door of a host: finds out for which interface a request of another host is, and has that answer it.
//!
//! Whatever comes in is answered, and what cannot be read, or is for something that this program does not have, is answered with that.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::ready;

use bytes::Bytes;

use super::told::Told;
use super::wire::{Answer, Request};
use crate::error::RequestError;
use crate::shared::AnyInterface;
use crate::sync::Arc;
use crate::transport::{Answering, Door};

/// The interfaces of one host.
#[derive(Debug)]
pub(crate) struct HostDoor {
    host: Arc<str>,
    build: Arc<str>,
    interfaces: BTreeMap<Arc<str>, Arc<dyn AnyInterface>>,
}

impl HostDoor {
    pub(crate) fn new(host: Arc<str>, build: Arc<str>, interfaces: &[Arc<dyn AnyInterface>]) -> HostDoor {
        let interfaces = interfaces.iter().map(|interface| (interface.name().into(), interface.clone())).collect();
        HostDoor { host, build, interfaces }
    }
}

impl Door for HostDoor {
    fn answer(&self, request: Bytes) -> Answering {
        let request = match Request::decode(&request) {
            Ok(request) => request,
            Err(reason) => return refused(&unhandled(&self.host, &self.build, format_args!("this request: {reason}"))),
        };
        match self.interfaces.get(request.interface) {
            Some(interface) => interface.clone().answer(&request),
            None => {
                let what = format_args!("an interface named {:?}", request.interface);
                refused(&unhandled(&self.host, &self.build, what))
            }
        }
    }
}

/// The error for what the program of this host does not have: it may be older or newer than that of the host that asks.
pub(crate) fn unhandled(host: &str, build: &str, what: std::fmt::Arguments<'_>) -> RequestError<Infallible> {
    let build = if build.is_empty() { String::new() } else { format!(", build {build}") };
    let release = env!("CARGO_PKG_VERSION");
    RequestError::Unhandled(format!("{what} (on {host}{build}, stable-interfaces {release})").into())
}

/// An answer that there is already.
pub(crate) fn refused(error: &RequestError<Infallible>) -> Answering {
    Box::pin(ready(Answer::<Bytes>::Failed(Told::of(error)).encode()))
}
