//! The scripts of an application, and the closed sets of them that flows begin with.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rhai::{AST, Engine, EvalAltResult, Module, ModuleResolver, Position, Scope};

use super::check::{Known, Seen, look};
use super::dispatch::Dispatch;
use super::failure::{Place, file_of};
use super::run;
use crate::flows::MAX_POSTED_BYTES;
use crate::hash::short_hash;

/// The number of sets whose trees are kept: those of flows that have run last.
const KEPT_SETS: usize = 64;
/// The longest name of a script, in bytes.
const MAX_NAME: usize = 64;

/// The reason why scripts cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct ScriptError {
    place: String,
    reason: String,
}

impl ScriptError {
    pub(super) fn new(place: impl ToString, reason: impl Into<String>) -> ScriptError {
        ScriptError { place: place.to_string(), reason: reason.into() }
    }

    /// The place: the file, and where it is known the line and the column, such as `checkout.rhai:3:5`.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// A script with its tree.
#[derive(Debug)]
pub(super) struct Checked {
    text: Arc<str>,
    ast: AST,
    seen: Seen,
}

impl Checked {
    pub(super) fn ast(&self) -> &AST {
        &self.ast
    }
}

/// A closed set of scripts: with each, all those that it names.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) hash: Arc<str>,
    scripts: BTreeMap<Arc<str>, Arc<Checked>>,
}

impl Compiled {
    pub(super) fn script(&self, name: &str) -> Option<&Arc<Checked>> {
        self.scripts.get(name)
    }

    /// The name of a script of the set.
    pub(super) fn name(&self, name: &str) -> Option<Arc<str>> {
        self.scripts.get_key_value(name).map(|(name, _)| name.clone())
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.scripts.iter().map(|(name, script)| (&**name, &*script.text))
    }
}

/// A hash of texts by their names.
fn hash_of<'a>(sources: impl Iterator<Item = (&'a str, &'a str)>) -> Arc<str> {
    let mut all = Vec::new();
    for (name, text) in sources {
        for part in [name, text] {
            all.extend_from_slice(&part.len().to_le_bytes());
            all.extend_from_slice(part.as_bytes());
        }
    }
    short_hash(&all).into()
}

/// Compiles and finds scripts.
#[derive(Debug)]
pub(super) struct Library {
    directories: Vec<PathBuf>,
    /// Scripts from memory, by their names. They come before files.
    texts: BTreeMap<String, Arc<str>>,
    /// The functions that are called, by name.
    dispatches: BTreeMap<String, Arc<Dispatch>>,
    known: Known,
    /// The newest text of each script that was compiled.
    newest: Mutex<HashMap<Arc<str>, Arc<Checked>>>,
    sets: Mutex<Sets>,
}

/// Sets that were compiled.
#[derive(Debug, Default)]
struct Sets {
    by_hash: HashMap<Arc<str>, Arc<Compiled>>,
    /// The hashes of all of them, in the order in which they came.
    order: VecDeque<Arc<str>>,
}

impl Library {
    pub(super) fn new(
        directories: Vec<PathBuf>,
        texts: BTreeMap<String, Arc<str>>,
        dispatches: BTreeMap<String, Arc<Dispatch>>,
        known: Known,
    ) -> Library {
        Library { directories, texts, dispatches, known, newest: Mutex::default(), sets: Mutex::default() }
    }

    /// The names of all scripts that there are now.
    pub(super) fn names(&self) -> Result<Vec<String>, ScriptError> {
        let mut names: Vec<_> = self.texts.keys().cloned().collect();
        for directory in &self.directories {
            let unreadable = |error: std::io::Error| ScriptError::new(directory.display(), error.to_string());
            for entry in std::fs::read_dir(directory).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                if path.extension().is_none_or(|extension| extension != "rhai") {
                    continue;
                }
                let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                if !is_name(name) {
                    return Err(ScriptError::new(path.display(), no_name()));
                }
                names.push(name.to_owned());
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The text of a script as it is now.
    fn read(&self, name: &str) -> Result<Option<Arc<str>>, ScriptError> {
        if !is_name(name) {
            return Ok(None);
        }
        if let Some(text) = self.texts.get(name) {
            return Ok(Some(text.clone()));
        }
        for directory in &self.directories {
            let path = directory.join(file_of(name));
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(Some(text.into())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(ScriptError::new(path.display(), error.to_string())),
            }
        }
        Ok(None)
    }

    /// The script of this name as it is now, compiled and checked.
    fn newest(&self, engine: &Engine, name: &str) -> Result<Option<Arc<Checked>>, ScriptError> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        if let Some(checked) = self.newest.lock().get(name).filter(|checked| checked.text == text) {
            return Ok(Some(checked.clone()));
        }
        let checked = Arc::new(compile(engine, name, &text)?);
        if let Some((position, reason)) = self.known.missing_in(&checked.seen) {
            return Err(ScriptError::new(Place::new(&file_of(name), position), reason));
        }
        self.newest.lock().insert(name.into(), checked.clone());
        Ok(Some(checked))
    }

    /// The set that a flow with this main script begins with now.
    pub(super) fn set_of(&self, engine: &Engine, main: &str) -> Result<Arc<Compiled>, ScriptError> {
        let mut scripts = BTreeMap::new();
        self.gather(main, &mut scripts, |name| self.newest(engine, name))?;
        if scripts.is_empty() {
            return Err(ScriptError::new("script", format!("there is no script {main:?}")));
        }
        let bytes = scripts.values().map(|script| script.text.len()).sum::<usize>();
        if bytes > MAX_POSTED_BYTES {
            let reason =
                format!("it has {bytes} bytes with the scripts that it names, and may have {MAX_POSTED_BYTES}");
            return Err(ScriptError::new(file_of(main), reason));
        }
        Ok(self.keep(scripts))
    }

    /// The part of a set that a flow with this main script needs.
    pub(super) fn part_of(&self, set: &Compiled, main: &str) -> Result<Arc<Compiled>, ScriptError> {
        let mut scripts = BTreeMap::new();
        self.gather(main, &mut scripts, |name| Ok(set.script(name).cloned()))?;
        Ok(self.keep(scripts))
    }

    /// Adds a script and all those that it names.
    fn gather(
        &self,
        main: &str,
        scripts: &mut BTreeMap<Arc<str>, Arc<Checked>>,
        find: impl Fn(&str) -> Result<Option<Arc<Checked>>, ScriptError>,
    ) -> Result<(), ScriptError> {
        // With those that were looked for already.
        let mut left: Vec<(String, Option<Arc<Checked>>)> = vec![(main.to_owned(), None)];
        while let Some((name, found)) = left.pop() {
            if scripts.contains_key(&*name) {
                continue;
            }
            let found = if found.is_some() { found } else { find(&name)? };
            let Some(script) = found else { continue };
            let literals = script.seen.literals.iter().filter(|literal| is_name(literal));
            left.extend(literals.map(|literal| (literal.clone(), None)));
            for call in &script.seen.calls {
                let Some(dispatch) = self.dispatches.get(&call.name) else { continue };
                for after in dispatch.scripts_after() {
                    if scripts.contains_key(&*after) {
                        continue;
                    }
                    let Some(found) = find(&after)? else {
                        let place = Place::new(&file_of(&name), call.position());
                        let reason =
                            format!("`{}` needs the script `{}`, which is not there", call.name, file_of(&after));
                        return Err(ScriptError::new(place, reason));
                    };
                    left.push((after, Some(found)));
                }
            }
            scripts.insert(name.into(), script);
        }
        Ok(())
    }

    /// The set that a flow has begun with.
    pub(super) fn set_from(
        &self,
        engine: &Engine,
        sources: &BTreeMap<Box<str>, Box<str>>,
    ) -> Result<Arc<Compiled>, ScriptError> {
        let hash = hash_of(sources.iter().map(|(name, text)| (&**name, &**text)));
        if let Some(set) = self.sets.lock().by_hash.get(&hash) {
            return Ok(set.clone());
        }
        let compile = |name: &str, text: &str| Ok((name.into(), Arc::new(compile(engine, name, &text.into())?)));
        let compiled = sources.iter().map(|(name, text)| compile(name, text));
        Ok(self.keep(compiled.collect::<Result<_, ScriptError>>()?))
    }

    fn keep(&self, scripts: BTreeMap<Arc<str>, Arc<Checked>>) -> Arc<Compiled> {
        let hash = hash_of(scripts.iter().map(|(name, script)| (&**name, &*script.text)));
        let mut sets = self.sets.lock();
        let Sets { by_hash, order } = &mut *sets;
        if let Some(set) = by_hash.get(&hash) {
            return set.clone();
        }
        if order.len() >= KEPT_SETS
            && let Some(oldest) = order.pop_front()
        {
            by_hash.remove(&oldest);
        }
        let set = Arc::new(Compiled { hash: hash.clone(), scripts });
        by_hash.insert(hash.clone(), set.clone());
        order.push_back(hash);
        set
    }
}

/// Tells whether a text can be the name of a script.
pub(super) fn is_name(name: &str) -> bool {
    let may_be = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(may_be)
}

/// The reason why a text cannot be the name of a script.
pub(super) fn no_name() -> String {
    format!("the name of a script has 1 to {MAX_NAME} of `a-z`, `0-9`, `_`, `-`")
}

fn compile(engine: &Engine, name: &str, text: &Arc<str>) -> Result<Checked, ScriptError> {
    let file = file_of(name);
    let mut ast = engine.compile(&**text).map_err(|error| {
        let reason = error.err_type().to_string();
        ScriptError::new(Place::new(&file, error.position()), reason)
    })?;
    ast.set_source(file);
    let seen = look(&ast);
    Ok(Checked { text: text.clone(), ast, seen })
}

/// Finds what scripts import: among the scripts that their flow has begun with.
pub(super) struct Imports;

impl ModuleResolver for Imports {
    fn resolve(
        &self,
        engine: &Engine,
        _: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Arc<Module>, Box<EvalAltResult>> {
        let not_found = || EvalAltResult::ErrorModuleNotFound(path.into(), position);
        let compiled = run::compiled().ok_or_else(not_found)?;
        let script = compiled.script(path).ok_or_else(not_found)?;
        let module = Module::eval_ast_as_new(Scope::new(), script.ast(), engine);
        module.map(Arc::new).map_err(|error| EvalAltResult::ErrorInModule(path.into(), error, position).into())
    }
}
