//! The server that the drill's hosts share: one of its own, which it kills too, or one it was told to use, which it never does.

use std::sync::Arc;

use alarm_backends::testing::servers::{Postgres, Redis};
use examples::BoxError;

use crate::store::Kind;

/// A private server that runs until this is dropped, and then is gone with its data.
#[derive(Debug, Clone)]
pub(crate) enum Private {
    Postgres(Arc<Postgres>),
    Redis(Arc<Redis>),
}

impl Private {
    /// Starts one; it writes durably, as it does by default.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub(crate) async fn start(kind: Kind) -> Result<Private, BoxError> {
        let start = move || match kind {
            Kind::Redis => Private::Redis(Arc::new(Redis::start())),
            Kind::Postgres | Kind::Fjall => Private::Postgres(Arc::new(Postgres::start())),
        };
        // What it panics with has been said on standard error.
        tokio::task::spawn_blocking(start).await.map_err(|_| format!("cannot start a private {}", kind.name()).into())
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Private::Postgres(server) => server.url("postgres"),
            Private::Redis(server) => server.url(),
        }
    }

    /// Ends it as a power switch would: SIGKILL.
    pub(crate) async fn kill(&self) -> Result<(), BoxError> {
        self.with(|server| match server {
            Private::Postgres(server) => server.kill9(),
            Private::Redis(server) => server.kill9(),
        })
        .await
    }

    /// Starts it again on the same data; returns when it takes connections.
    pub(crate) async fn restart(&self) -> Result<(), BoxError> {
        self.with(|server| match server {
            Private::Postgres(server) => server.restart(),
            Private::Redis(server) => server.restart(),
        })
        .await
    }

    async fn with(&self, work: impl FnOnce(&Private) + Send + 'static) -> Result<(), BoxError> {
        let server = self.clone();
        Ok(tokio::task::spawn_blocking(move || work(&server)).await?)
    }
}
