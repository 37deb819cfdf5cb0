//! A call of a callback, from whichever side it comes.

use std::sync::Arc;

use bytes::Bytes;

/// A call of a callback.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Call {
    pub(super) id: Option<String>,
    pub(super) headers: Vec<(Arc<str>, Arc<str>)>,
    pub(super) body: Bytes,
}

impl std::fmt::Debug for Call {
    /// Shows a call without its body and the values of its headers, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Call")
            .field("id", &self.id)
            .field("headers", &headers)
            .field("bytes", &self.body.len())
            .finish()
    }
}

impl Call {
    /// A call with this body: at most 256 KiB, or what [`FlowsBuilder::max_value`](crate::FlowsBuilder::max_value) says, at the host that owns the flow, and 192 KiB at one that
    /// cannot reach that host.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> Call {
        Call { body: body.into(), ..Call::default() }
    }

    /// The sender's ID for it: the flow takes one call of an ID for a callback, for as long as it is going. Default: none, and each
    /// call counts.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Call {
        self.id = Some(id.into());
        self
    }

    /// Adds a header. It is kept for the flow's code, unless its callback has a [policy](crate::FlowsBuilder::callback_policy) that does not name it.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Call {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The body, as it came.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The headers, in the order in which they were given.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The first value of a header, whose name is compared without regard to case.
    #[must_use]
    pub fn header_value(&self, name: &str) -> Option<&str> {
        self.header_values(name).next()
    }

    pub(crate) fn header_values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Gives the call an ID, if it has none.
    #[cfg(feature = "testing")]
    pub(crate) fn or_id(mut self, id: impl FnOnce() -> String) -> Call {
        self.id.get_or_insert_with(id);
        self
    }

    pub(crate) fn keep_headers(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.headers.retain(|(name, _)| is_kept(name));
    }

    pub(super) fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
        self.body.len() + headers + self.id.as_ref().map_or(0, String::len)
    }
}
