//! Questions: asked of a host by its name, and answered there by a function beside all instances.
//!
//! A question is sent once and never sent on. Whether it has an answer is known as well as of a request.

use std::future::Future;
use std::time::Duration;

use super::send::{Said, read_answer, unreachable_of};
use super::serve::{read, written};
use super::table::{Errors, NoErrors, QuestionFn, Written, write_guarded};
use super::wire::Request;
use crate::error::RequestError;
use crate::instance::StableInterface;
use crate::instance::kind::InterfaceCore;
use crate::quiet::{guarded, run};
use crate::sync::Arc;
use crate::transport::{Addressee, Answering, MAX_MESSAGE_BYTES, Question, Undelivered};

/// The function that answers questions of type `Q`.
pub(crate) fn answer_question<I, Q, F, Fut>(answer: F) -> QuestionFn<I>
where
    I: StableInterface,
    Q: Question,
    F: Fn(Arc<InterfaceCore<I>>, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Q::Answer> + Send + 'static,
{
    let answer = Arc::new(answer);
    Box::new(move |core, body| {
        let question = match read::<Q>(body) {
            Ok(question) => question,
            Err(error) => return super::door::refused(&error),
        };
        let (core, answer) = (core.clone(), answer.clone());
        Box::pin(async move {
            let question = question.into_inner().expect("the question is there until it is answered");
            let outcome = match guarded(|| answer(core, question)) {
                Ok(answering) => run(Box::pin(answering)).await,
                Err(panic) => Err(panic),
            };
            written::<Q::Answer, I::Error, NoErrors>(outcome.map_err(RequestError::Panicked)).encode()
        }) as Answering
    })
}

impl<I: StableInterface> InterfaceCore<I> {
    /// Asks a host, which may be this one.
    pub(crate) async fn ask_of_host<Q: Question>(
        self: &Arc<Self>,
        host: &str,
        question: &Q,
    ) -> Result<Q::Answer, RequestError<I::Error>> {
        self.require_started()?;
        let what = || format!("the question {:?}", Q::NAME);
        let body = write_guarded::<I::Error>(what, || serde_json::to_vec(question))?;
        if body.len() > MAX_MESSAGE_BYTES {
            let bytes = body.len();
            return Err(RequestError::TooLarge(format!("{} has {bytes} bytes, more than {MAX_MESSAGE_BYTES}", what())));
        }
        let request = Request {
            interface: I::NAME,
            message: Q::NAME,
            id: "",
            key: None,
            since: None,
            given: Duration::ZERO,
            waits: None,
            callers: Vec::new(),
            sent_by: None,
            trace: None,
            body: &body,
        };
        let written: Written<Q::Answer, I::Error> = Written {
            message: Q::NAME,
            key: None,
            body: Vec::new(),
            read: |answer| serde_json::from_slice(answer),
            read_error: NoErrors::read,
        };
        let host: Arc<str> = host.into();
        let answer = if *host == *self.host.name {
            super::serve::answer(self, &request).await
        } else {
            let to = Addressee { host: host.clone(), address: self.host.address_of(&host) };
            let Some(reach) = self.host.reach() else { return Err(unreachable_of(&host)) };
            match reach.send(&to, request.encode()).await {
                Some(Ok(answer)) => answer,
                Some(Err(Undelivered::NotSent(_))) => return Err(unreachable_of(&host)),
                Some(Err(Undelivered::Unanswered(_))) => return Err(RequestError::unknown(unreachable_of(&host))),
                None => return Err(RequestError::Overloaded("requests to another host".into())),
            }
        };
        match read_answer(&answer, &written, &host) {
            Said::Done(outcome) => outcome.map_err(|error| *error),
            Said::NotHere(error) => Err(error),
        }
    }
}
