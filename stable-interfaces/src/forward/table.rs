//! The messages of an interface that may cross from host to host: how each is written and read, captured where its type is known.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

use super::arrival::Arrival;
use super::told::{RemoteError, first_words};
use crate::error::{ContextError, Outcome, RequestError};
use crate::instance::StableInterface;
use crate::instance::kind::InterfaceCore;
use crate::once::OnceKey;
use crate::quiet::{Quiet, drop_quietly, guarded, shown};
use crate::store::BoxError;
use crate::sync::Arc;
use crate::transport::{Answering, Codec};

/// A way to write and to read an interface's own errors.
pub(crate) trait Errors<E> {
    fn write(error: E) -> Result<Vec<u8>, serde_json::Error>;
    fn read(error: &[u8]) -> Result<E, serde_json::Error>;
}

/// As what they are.
#[derive(Debug)]
pub(crate) enum Whole {}

impl<E: Serialize + DeserializeOwned + Display> Errors<E> for Whole {
    fn write(error: E) -> Result<Vec<u8>, serde_json::Error> {
        let why = match guarded(|| serde_json::to_vec(&error)) {
            Ok(Ok(written)) => return Ok(written),
            Ok(Err(why)) => why.to_string(),
            Err(panic) => format!("it panicked: {panic}"),
        };
        let words = shown(&error);
        drop_quietly(error);
        // Its words are all that can be told of it.
        Err(serde_json::Error::custom(format_args!("{} ({why})", first_words(&words))))
    }

    fn read(error: &[u8]) -> Result<E, serde_json::Error> {
        serde_json::from_slice(error)
    }
}

/// As their words and those of their causes.
#[derive(Debug)]
pub(crate) enum Words {}

impl<E: Into<BoxError> + From<RemoteError>> Errors<E> for Words {
    fn write(error: E) -> Result<Vec<u8>, serde_json::Error> {
        let error: BoxError = error.into();
        serde_json::to_vec(&RemoteError::of(&*error))
    }

    fn read(error: &[u8]) -> Result<E, serde_json::Error> {
        serde_json::from_slice::<RemoteError>(error).map(E::from)
    }
}

/// None: no handler runs.
#[derive(Debug)]
pub(super) enum NoErrors {}

impl<E> Errors<E> for NoErrors {
    fn write(_: E) -> Result<Vec<u8>, serde_json::Error> {
        Err(serde_json::Error::custom("an error of a handler, where none runs"))
    }

    fn read(_: &[u8]) -> Result<E, serde_json::Error> {
        Err(serde_json::Error::custom("an error of a handler, where none runs"))
    }
}

/// The form of all that has not chosen another one.
#[derive(Debug)]
pub(crate) enum Json {}

impl Codec for Json {
    fn write<T: Serialize>(value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(value)?)
    }

    fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Writes a value in a form that may be the application's own.
pub(super) fn write_as<T: Serialize, F: Codec>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    F::write(value).map_err(plain_or_custom)
}

/// As [`write_as`], for what is read.
pub(super) fn read_as<T: DeserializeOwned, F: Codec>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    F::read(bytes).map_err(plain_or_custom)
}

fn plain_or_custom(error: BoxError) -> serde_json::Error {
    error.downcast::<serde_json::Error>().map_or_else(serde_json::Error::custom, |error| *error)
}

/// Writes a value of the application, which is named in the error.
pub(crate) fn write_guarded<E>(
    what: impl FnOnce() -> String,
    write: impl FnOnce() -> Result<Vec<u8>, serde_json::Error>,
) -> Result<Vec<u8>, RequestError<E>> {
    match guarded(write) {
        Ok(written) => written.map_err(|error| ContextError::not_written(what(), error).into()),
        Err(panic) => Err(RequestError::Rejected(format!("{} panicked when it was written: {panic}", what()))),
    }
}

/// A request from another host, as the message's own type is to be read from it.
pub(crate) struct Arrived<'a> {
    pub(crate) id: &'a str,
    pub(crate) key: Option<Result<OnceKey, ContextError>>,
    pub(crate) body: &'a [u8],
    pub(crate) arrival: Arc<Arrival>,
}

/// Answers one kind of message.
pub(crate) type AnswerFn<I> = fn(&Arc<InterfaceCore<I>>, Arrived<'_>) -> Answering;

/// Answers one kind of question: with the interface and the question's body.
pub(crate) type QuestionFn<I> = Box<dyn Fn(&Arc<InterfaceCore<I>>, &[u8]) -> Answering + Send + Sync>;

/// A message on its way out, and how its answer is read.
pub(crate) struct Written<R, E> {
    /// The name under which it is registered.
    pub(crate) message: &'static str,
    /// The key under which its reply is to be kept.
    pub(crate) key: Option<OnceKey>,
    pub(crate) body: Vec<u8>,
    pub(crate) read: fn(&[u8]) -> Result<R, serde_json::Error>,
    pub(crate) read_error: fn(&[u8]) -> Result<E, serde_json::Error>,
}

/// A message on its way out, or the reason why it cannot be written; `None` if it may not cross.
pub(crate) type Writing<R, E> = Option<Outcome<Written<R, E>, E>>;

/// The way to write messages of type `M`, and to read their answers.
struct Way<M, R, E> {
    message: &'static str,
    write: fn(&M) -> Result<Vec<u8>, serde_json::Error>,
    read_message: fn(&[u8]) -> Result<M, serde_json::Error>,
    read: fn(&[u8]) -> Result<R, serde_json::Error>,
    read_error: fn(&[u8]) -> Result<E, serde_json::Error>,
}

/// The way of an interface's connections from host to host, whatever they carry.
pub(crate) trait AnyAcross: Any + Send + Sync {
    /// Ends those that clients at other hosts have here: the host is going away.
    fn abandon(&self);
}

/// The messages that may cross.
pub(crate) struct Forwards<I: StableInterface> {
    /// A [`Way`] for each type of message.
    ways: BTreeMap<TypeId, Box<dyn Any + Send + Sync>>,
    answers: BTreeMap<&'static str, AnswerFn<I>>,
    /// Questions to this host, which no instance answers.
    questions: BTreeMap<&'static str, Quiet<QuestionFn<I>>>,
    /// The answers about connections, under names that no message can have.
    own_answers: BTreeMap<&'static str, AnswerFn<I>>,
    across: Option<Box<dyn AnyAcross>>,
    /// The first name that was given twice.
    twice: Option<&'static str>,
}

impl<I: StableInterface> Default for Forwards<I> {
    fn default() -> Forwards<I> {
        let (answers, questions, own_answers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Forwards { ways: BTreeMap::new(), answers, questions, own_answers, across: None, twice: None }
    }
}

impl<I: StableInterface> fmt::Debug for Forwards<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.answers.keys()).entries(self.questions.keys()).finish()
    }
}

impl<I: StableInterface> Forwards<I> {
    /// Lets messages of type `M` cross under a name.
    pub(crate) fn add<M, R, C, F>(&mut self, message: &'static str, answer: AnswerFn<I>)
    where
        M: Serialize + DeserializeOwned + 'static,
        R: DeserializeOwned + 'static,
        C: Errors<I::Error>,
        F: Codec,
    {
        let way: Way<M, R, I::Error> = Way {
            message,
            write: write_as::<M, F>,
            // Of a message with a key it is the JSON that is kept for when it is asked again.
            read_message: |message| serde_json::from_slice(message),
            read: read_as::<R, F>,
            read_error: C::read,
        };
        let had_type = self.ways.insert(TypeId::of::<M>(), Box::new(way)).is_some();
        let had_name = self.answers.insert(message, answer).is_some() || self.questions.contains_key(message);
        if had_type || had_name {
            self.twice.get_or_insert(message);
        }
    }

    /// Answers questions of this name.
    pub(crate) fn add_question(&mut self, question: &'static str, answer: QuestionFn<I>) {
        let had_name = self.questions.insert(question, Quiet::new(answer)).is_some();
        if had_name || self.answers.contains_key(question) {
            self.twice.get_or_insert(question);
        }
    }

    /// Lets connections cross.
    pub(crate) fn add_across(
        &mut self,
        across: impl AnyAcross,
        answers: impl IntoIterator<Item = (&'static str, AnswerFn<I>)>,
    ) {
        self.across = Some(Box::new(across));
        self.own_answers = answers.into_iter().collect();
    }

    /// The way of connections, if they may cross.
    pub(crate) fn across<A: AnyAcross>(&self) -> Option<&A> {
        (self.across.as_deref()? as &dyn Any).downcast_ref()
    }

    /// Ends the connections that clients at other hosts have here.
    pub(crate) fn abandon(&self) {
        if let Some(across) = &self.across {
            across.abandon();
        }
    }

    /// The names, and the first that was given twice or whose message had one already.
    pub(crate) fn names(&self) -> (impl Iterator<Item = &'static str>, Option<&'static str>) {
        (self.answers.keys().chain(self.questions.keys()).copied(), self.twice)
    }

    /// The function that answers questions of this name.
    pub(crate) fn question(&self, question: &str) -> Option<&QuestionFn<I>> {
        self.questions.get(question)?.as_ref()
    }

    /// The function that answers messages of this name.
    pub(crate) fn answer(&self, message: &str) -> Option<AnswerFn<I>> {
        self.answers.get(message).or_else(|| self.own_answers.get(message)).copied()
    }

    /// Writes a message; `None` if its type may not cross.
    pub(crate) fn write<M: 'static, R: 'static>(&self, message: &M) -> Writing<R, I::Error> {
        let way = self.way::<M, R>()?;
        let what = || format!("the message {:?}", way.message);
        let body = write_guarded(what, || (way.write)(message));
        Some(body.map(|body| way.written(body, None)).map_err(Box::new))
    }

    /// As [`write`](Self::write), of a message that is written already, with the key under which its reply is to be kept.
    pub(crate) fn write_keyed<M: 'static, R: 'static>(&self, body: &[u8], key: &OnceKey) -> Writing<R, I::Error> {
        Some(Ok(self.way::<M, R>()?.written(body.to_vec(), Some(key.clone()))))
    }

    /// Reads a message that was written; `None` if its type may not cross.
    pub(crate) fn read<M: 'static, R: 'static>(&self, body: &[u8]) -> Option<Outcome<M, I::Error>> {
        let way = self.way::<M, R>()?;
        Some(match guarded(|| (way.read_message)(body)) {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(error)) => {
                Err(ContextError::not_a::<M>(format_args!("the message {:?}", way.message), error).into())
            }
            Err(panic) => {
                let what = format!("the message {:?} panicked when it was read: {panic}", way.message);
                Err(RequestError::Rejected(what).into())
            }
        })
    }

    fn way<M: 'static, R: 'static>(&self) -> Option<&Way<M, R, I::Error>> {
        self.ways.get(&TypeId::of::<M>())?.downcast_ref()
    }
}

impl<M, R, E> Way<M, R, E> {
    fn written(&self, body: Vec<u8>, key: Option<OnceKey>) -> Written<R, E> {
        Written { message: self.message, key, body, read: self.read, read_error: self.read_error }
    }
}
