//! The methods of a store, by name.

/// A method of [`Store`](crate::store::Store).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// [`Store::claim`](crate::store::Store::claim).
    Claim,
    /// [`Store::renew`](crate::store::Store::renew).
    Renew,
    /// [`Store::release`](crate::store::Store::release).
    Release,
    /// [`Store::cordon`](crate::store::Store::cordon).
    Cordon,
    /// [`Store::members`](crate::store::Store::members).
    Members,
    /// [`Store::commit`](crate::store::Store::commit).
    Commit,
    /// [`Store::post`](crate::store::Store::post).
    Post,
    /// [`Store::watch`](crate::store::Store::watch).
    Watch,
    /// [`Store::load`](crate::store::Store::load).
    Load,
    /// [`Store::read`](crate::store::Store::read).
    Read,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 10] = [
        Method::Claim,
        Method::Renew,
        Method::Release,
        Method::Cordon,
        Method::Members,
        Method::Commit,
        Method::Post,
        Method::Watch,
        Method::Load,
        Method::Read,
    ];
}
