//! Transports that are broken on purpose, each in one way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use stable_interfaces::store::BoxError;
use stable_interfaces::transport::{Addressee, Door, Introduction, Running, Transport, Undelivered};

/// The way in which a transport is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HowSent {
    /// Gives some answers twice: to what was asked, and to what is asked after it.
    AnswersTwice,
    /// Sends once more what was sent and has no answer.
    ResendsAfterALoss,
    /// Says of what was sent and has no answer that it was not sent.
    CallsLossesNotSent,
    /// Sends some requests twice, and gives the second answer.
    AsksTwice,
    /// Says nothing of what was lost.
    LosesWithoutAWord,
    /// As [`CallsLossesNotSent`](Self::CallsLossesNotSent), in processes that are no hosts.
    CallsLossesNotSentOutside,
}

/// A broken transport.
#[derive(Debug)]
pub struct BrokenTransport {
    inner: Arc<dyn Transport>,
    how: HowSent,
    answers: AtomicU64,
    /// Set where nobody can be asked by it.
    is_outside: AtomicBool,
    /// Answers that come once more.
    kept: Mutex<VecDeque<Bytes>>,
}

impl BrokenTransport {
    /// `inner`, broken like this.
    #[must_use]
    pub fn new(inner: Arc<dyn Transport>, how: HowSent) -> BrokenTransport {
        BrokenTransport {
            inner,
            how,
            answers: AtomicU64::new(0),
            is_outside: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }
}

#[async_trait]
impl Transport for BrokenTransport {
    fn address(&self) -> Option<Arc<str>> {
        self.inner.address()
    }

    async fn open(&self, own: Introduction, door: Option<Arc<dyn Door>>) -> Result<Running, BoxError> {
        self.is_outside.store(door.is_none(), Ordering::Relaxed);
        self.inner.open(own, door).await
    }

    async fn send(&self, to: &Addressee, request: Bytes) -> Result<Bytes, Undelivered> {
        if self.how == HowSent::AsksTwice && self.answers.fetch_add(1, Ordering::Relaxed).is_multiple_of(10) {
            drop(self.inner.send(to, request.clone()).await);
        }
        let answer = self.inner.send(to, request.clone()).await;
        let is_outside = self.is_outside.load(Ordering::Relaxed);
        match (self.how, answer) {
            (HowSent::CallsLossesNotSentOutside, Err(Undelivered::Unanswered(reason))) if is_outside => {
                Err(Undelivered::NotSent(reason))
            }
            (HowSent::ResendsAfterALoss, Err(Undelivered::Unanswered(_))) => self.inner.send(to, request).await,
            (HowSent::LosesWithoutAWord, Err(Undelivered::Unanswered(_))) => std::future::pending().await,
            (HowSent::CallsLossesNotSent, Err(Undelivered::Unanswered(reason))) => Err(Undelivered::NotSent(reason)),
            (HowSent::AnswersTwice, Ok(answer)) => {
                let before = self.kept.lock().pop_front();
                if self.answers.fetch_add(1, Ordering::Relaxed).is_multiple_of(10) {
                    self.kept.lock().push_back(answer.clone());
                }
                Ok(before.unwrap_or(answer))
            }
            (_, answer) => answer,
        }
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
