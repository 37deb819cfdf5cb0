//! Requests that are handled once.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Interface;
use crate::error::RequestError;
use crate::instance::{Handle, StableInterface};

impl<I: StableInterface> Interface<I> {
    /// Sends `message` to the instance `id` and waits for its reply, as [`request`](Self::request) does, and has it handled once under `key`:
    /// whoever asks the same again under that key, at whatever host, gets the same reply, and no handler runs.
    ///
    /// The reply is stored in the commit of the handler's effects. So this asks again by itself where an outcome is
    /// [`Unknown`](RequestError::Unknown), or the instance could not be reached: with pauses, for as long as a request may wait for its turn
    /// ([`handler_timeout`](crate::InterfaceBuilder::handler_timeout)), while owners and stores come and go. What it cannot outlive is its own
    /// process: one that was killed asks again, under the key that it has kept. A message that was not registered with
    /// [`forward`](crate::InterfaceBuilder::forward) cannot be made anew: of such a one this only asks what became of it.
    ///
    /// - A key is 1 to 512 bytes of UTF-8 without NUL, and belongs to one instance.
    /// - Replies are kept for [a day](crate::InterfaceBuilder::keep_replies), and of one instance [the last 10,000](crate::InterfaceBuilder::max_kept_replies).
    ///   What handlers see of their storage, and their limits, have nothing to do with them. What is asked again by itself, and may have been
    ///   forgotten meanwhile, ends as `Unknown` and is not handled twice; who asks anew under a key that is forgotten is handled anew.
    /// - A handler that fails has done nothing, and its error is not kept: the same request runs again. Only what the handler made durable before its
    ///   end, with [`Context::commit`](crate::Context::commit) or a transaction, stays, and is there already when it runs again.
    /// - Messages are told apart by their JSON, which must be the same each time: a `HashMap` in them has its entries in another order. A field that
    ///   is added is left out of it while it says nothing (`#[serde(default, skip_serializing_if = ..)]`), so that a key that was asked before a
    ///   deploy can be asked again after it.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use stable_interfaces::{Context, ContextError, Handle, Host, MemoryStore, RequestError, StableInterface};
    /// # struct Account;
    /// # impl StableInterface for Account {
    /// #     const NAME: &'static str = "account";
    /// #     type Error = ContextError;
    /// # }
    /// #[derive(Serialize, Deserialize)]
    /// struct Deposit { cents: u64 }
    ///
    /// impl Handle<Deposit> for Account {
    ///     type Reply = u64;
    ///     async fn handle(&mut self, cx: &mut Context, Deposit { cents }: Deposit) -> Result<u64, ContextError> {
    ///         let balance = cx.get("balance").await?.unwrap_or(0) + cents;
    ///         cx.put("balance", &balance)?;
    ///         Ok(balance)
    ///     }
    /// }
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut host = Host::local(MemoryStore::new());
    /// # let accounts = host.interface(|_id| Account).forward::<Deposit>("deposit").register()?;
    /// # let _host = host.start().await?;
    /// assert_eq!(accounts.request_once("ada", "payment-7", Deposit { cents: 500 }).await?, 500);
    /// assert_eq!(accounts.request_once("ada", "payment-7", Deposit { cents: 500 }).await?, 500); // Not handled again.
    /// let other = accounts.request_once("ada", "payment-7", Deposit { cents: 900 }).await;
    /// assert!(matches!(other, Err(RequestError::KeyReused { .. })));
    /// # Ok(())
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`RequestError::KeyReused`] if the key is that of another message, [`RequestError::NoStore`] on a host without a store,
    /// [`RequestError::InvalidId`] for a key that cannot be one, [`RequestError::Json`] for a message or a reply that cannot be JSON,
    /// [`RequestError::TooLarge`] for a reply of more than 256 KiB: nothing happened. Else as [`request`](Self::request). An error that
    /// [may have happened](RequestError::may_have_happened) says that time was up: ask again under the same key.
    pub async fn request_once<M>(&self, id: &str, key: &str, message: M) -> Result<I::Reply, RequestError<I::Error>>
    where
        I: Handle<M>,
        I::Reply: Serialize + DeserializeOwned,
        M: Serialize + Send + 'static,
    {
        self.core.ask_once(id, key, message).await
    }
}
