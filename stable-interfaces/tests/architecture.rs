//! The floors of the core: which file may use which, and why. And for each library, how long a file may be.
//!
//! Every path of the sources counts, not only imports: each that begins with `crate`, `self` or `super` is followed through the
//! re-exports to the file that declares what it names. A file may use its own floor and those below it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::Visit;

/// A floor: its name, the reason that is printed when something below it uses it, and its files. A name ending in `/` is all in that
/// directory that no other floor names.
type Floor = (&'static str, &'static str, &'static [&'static str]);

/// From the ground up.
const FLOORS: [Floor; 14] = [
    (
        "ground",
        "is the ground: it would know what is built on it",
        &["clock.rs", "clock/", "id.rs", "json.rs", "metrics.rs", "quiet.rs", "setting.rs", "sync.rs", "sync/"],
    ),
    (
        "store",
        "is what a store is written against: a store knows no host and no instance",
        &["store/", "fleet.rs", "fleet/", "error.rs"],
    ),
    (
        "wire",
        "is what hosts say to each other, as bytes and data: it knows no host and no instance",
        &["transport.rs", "transport/", "forward/reach.rs", "forward/told.rs", "forward/traces.rs", "forward/wire.rs"],
    ),
    (
        "rows",
        "is plain data and windows: nothing in it runs, so nothing in it may need what does",
        &["alarm.rs", "alarm/", "inbox.rs", "inbox/", "dead.rs", "directive.rs", "crowds.rs", "once.rs"],
    ),
    ("shards", "is told what became durable: it must not need the committer that tells it", &["shards.rs", "shards/"]),
    ("commit", "makes effects durable, whoever had them: it knows no instance and no host", &["commit.rs", "commit/"]),
    (
        "shared",
        "is what all parts of a host share: it declares what it asks of an interface, and the interface implements it",
        &["forward/door.rs", "shared.rs", "shared/", "tasks.rs"],
    ),
    (
        "recorded",
        "is what a handler leaves behind, as data: it must not need the handler's context",
        &[
            "connection.rs",
            "forward/arrival.rs",
            "instance/chain.rs",
            "instance/life.rs",
            "instance/range.rs",
            "instance/recorded.rs",
        ],
    ),
    (
        "machine",
        "is pure: it decides about one instance, and must not know the slot that locks it, a clock, or the application's code",
        &["instance/answer.rs", "instance/machine.rs", "instance/machine/", "instance/queue.rs"],
    ),
    (
        "handler",
        "is what an application implements, and what its handlers are given: it knows its instance by a trait alone",
        &["instance.rs", "instance/context.rs", "instance/context/", "instance/enlist.rs", "instance/peer.rs"],
    ),
    (
        "slot",
        "is where one instance is: it knows messages by a trait alone, not how they are run",
        &[
            "forward/table.rs",
            "instance/job.rs",
            "instance/kind.rs",
            "instance/living.rs",
            "instance/slot.rs",
            "instance/slot/",
            "instance/table.rs",
        ],
    ),
    (
        "turn",
        "runs messages on slots, from wherever they come: it must not know what the interface makes of that",
        &["forward.rs", "forward/", "instance/"],
    ),
    ("interface", "is used by hosts: it reaches its own by what all parts share", &["interface.rs", "interface/"]),
    (
        "face",
        "is what a user sees: nothing else is above it",
        &["lib.rs", "store.rs", "fleet_client.rs", "host.rs", "host/"],
    ),
];

/// The libraries whose files are to be read at once.
const LIBRARIES: [&str; 3] = ["stable-interfaces", "alarm-backends", "callback-flows"];
/// The most lines of a file, its own tests and models in files beside it not counted.
const LONGEST: usize = 650;
/// The most names at the root of the crate.
const MOST_NAMES: usize = 50;

/// Sources that are tests or tools of the crate: they may use everything.
fn is_outside(path: &str) -> bool {
    let tools = ["testing/", "schedules/"].iter().any(|part| path.starts_with(part));
    let name = path.rsplit('/').next().unwrap();
    tools
        || ["cases.rs", "fuzzing.rs", "schedules.rs", "testing.rs"].contains(&path)
        || ["tests.rs", "model.rs"].contains(&name)
        || path.contains("/model/")
}

/// The number of the floor that a file stands on.
fn floor_of(path: &str) -> Option<usize> {
    let exact = FLOORS.iter().position(|(_, _, files)| files.contains(&path));
    let part = || {
        let parts = FLOORS.iter().enumerate().flat_map(|(at, (_, _, files))| files.iter().map(move |file| (at, file)));
        let mut parts: Vec<_> = parts.filter(|(_, file)| file.ends_with('/') && path.starts_with(**file)).collect();
        parts.sort_by_key(|(_, file)| file.len());
        parts.last().map(|(at, _)| *at)
    };
    exact.or_else(part)
}

/// The sources of the core, by their path under `src`.
fn sources() -> BTreeMap<String, String> {
    sources_of("stable-interfaces")
}

/// The sources of a crate of the workspace, by their path under its `src`.
fn sources_of(library: &str) -> BTreeMap<String, String> {
    fn walk(directory: &Path, root: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(library).join("src");
    let mut found = BTreeMap::new();
    walk(&root, &root, &mut found);
    found
}

/// The module that a file is, as the names from the root on.
fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").unwrap();
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// The paths of one file that stay in the crate, and what its module re-exports from where.
struct Paths {
    module: Vec<String>,
    /// The number of modules within the file that are open.
    inner: Vec<String>,
    used: Vec<(Vec<String>, usize)>,
    exported: Vec<(String, Vec<String>)>,
}

impl Paths {
    fn of(path: &str, source: &str) -> Paths {
        let file = syn::parse_file(source).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut paths = Paths { module: module_of(path), inner: Vec::new(), used: Vec::new(), exported: Vec::new() };
        paths.visit_file(&file);
        paths
    }

    /// A path from the root of the crate on, if it says where it begins.
    fn absolute(&self, names: &[String]) -> Option<Vec<String>> {
        let mut here: Vec<String> = self.module.iter().chain(&self.inner).cloned().collect();
        let mut names = names;
        match names.first().map(String::as_str) {
            Some("crate") => here.clear(),
            Some("self" | "super") => {}
            _ => return None,
        }
        while let Some(first) = names.first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => drop(here.pop()),
                _ => break,
            }
            names = &names[1..];
        }
        here.extend(names.iter().cloned());
        Some(here)
    }

    fn note_use(&mut self, tree: &syn::UseTree, before: &mut Vec<String>, is_exported: bool) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_use(&path.tree, before, is_exported);
                before.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_use(tree, before, is_exported)),
            syn::UseTree::Name(_) | syn::UseTree::Rename(_) | syn::UseTree::Glob(_) => {
                let (name, known_as, line) = match tree {
                    syn::UseTree::Name(name) => (Some(&name.ident), Some(&name.ident), name.ident.span().start().line),
                    syn::UseTree::Rename(name) => {
                        (Some(&name.ident), Some(&name.rename), name.ident.span().start().line)
                    }
                    syn::UseTree::Glob(glob) => (None, None, glob.star_token.spans[0].start().line),
                    _ => return,
                };
                let mut names = before.clone();
                names.extend(name.map(ToString::to_string).filter(|name| name != "self"));
                // A re-export may name a module of its own without saying so.
                let absolute = self.absolute(&names).or_else(|| {
                    let own = std::iter::once("self".to_owned()).chain(names.iter().cloned()).collect::<Vec<_>>();
                    is_exported.then(|| self.absolute(&own)).flatten()
                });
                let Some(absolute) = absolute else { return };
                if is_exported && let Some(known_as) = known_as {
                    self.exported.push((known_as.to_string(), absolute.clone()));
                }
                self.used.push((absolute, line));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = item.attrs.iter().any(|attribute| matches!(&attribute.meta, syn::Meta::List(list) if list.path.is_ident("cfg") && list.tokens.to_string().contains("test")));
        if item.content.is_some() && !is_test {
            self.inner.push(item.ident.to_string());
            syn::visit::visit_item_mod(self, item);
            self.inner.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_exported = !matches!(item.vis, syn::Visibility::Inherited);
        self.note_use(&item.tree, &mut Vec::new(), is_exported);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names.len() > 1
            && let Some(absolute) = self.absolute(&names)
        {
            let line = path.segments[0].ident.span().start().line;
            self.used.push((absolute, line));
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

/// Says whether something is compiled for tests alone.
fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    let is_test = |list: &syn::MetaList| {
        let condition = list.tokens.to_string();
        list.path.is_ident("cfg") && (condition.contains("test") || condition.contains("testing"))
    };
    attributes.iter().any(|attribute| matches!(&attribute.meta, syn::Meta::List(list) if is_test(list)))
}

/// Lists what a file uses of the others: which, by which path, on which line.
fn crossings(sources: &BTreeMap<String, String>) -> Vec<String> {
    let parsed: BTreeMap<&String, Paths> =
        sources.iter().map(|(path, source)| (path, Paths::of(path, source))).collect();
    let files: BTreeMap<Vec<String>, &String> = sources.keys().map(|path| (module_of(path), path)).collect();
    let exports: BTreeMap<(Vec<String>, &str), &Vec<String>> = parsed
        .values()
        .flat_map(|paths| paths.exported.iter().map(|(name, from)| ((paths.module.clone(), name.as_str()), from)))
        .collect();
    // The file that declares what a path names.
    let declares = |path: &[String]| {
        let mut path = path.to_vec();
        // Each step follows one re-export; they are not nested deeper.
        for _ in 0..8 {
            let depth = (0..=path.len()).rev().find(|depth| files.contains_key(&path[..*depth]))?;
            let (module, rest) = path.split_at(depth);
            match rest.first().and_then(|name| exports.get(&(module.to_vec(), name.as_str()))) {
                Some(from) if from.as_slice() != &path[..=depth] => {
                    path = from.iter().chain(&rest[1..]).cloned().collect();
                }
                _ => return Some(files[module].clone()),
            }
        }
        None
    };
    let mut found = BTreeSet::new();
    for (path, paths) in &parsed {
        if is_outside(path) {
            continue;
        }
        let Some(floor) = floor_of(path) else {
            found.insert(format!("{path} stands on no floor: give it one in FLOORS"));
            continue;
        };
        for (used, line) in &paths.used {
            let Some(target) = declares(used) else { continue };
            if is_outside(&target) || target == "lib.rs" {
                continue;
            }
            let above = floor_of(&target);
            if above.is_some_and(|above| above > floor) {
                let (name, reason, _) = FLOORS[floor];
                let above = above.map_or("", |above| FLOORS[above].0);
                found.insert(format!(
                    "{path}:{line} uses `{}` of {target}, which is on floor \"{above}\"; \"{name}\" {reason}",
                    used.join("::")
                ));
            }
        }
    }
    found.into_iter().collect()
}

#[test]
fn no_file_uses_one_above_its_floor() {
    let crossings = crossings(&sources());
    assert!(crossings.is_empty(), "{} crossings:\n{}", crossings.len(), crossings.join("\n"));
}

#[test]
fn a_planted_crossing_is_found_whatever_way_it_is_written() {
    let planted = [
        ("clock.rs", "use crate::instance::slot::Slot;", "instance/slot.rs"),
        ("shards/firing.rs", "use super::super::host::Host;", "host.rs"),
        ("commit/gate.rs", "fn f() { crate::shared::name(); }", "shared.rs"),
        ("instance/slot.rs", "use super::{queue::Queue, turn::{Running}};", "instance/turn.rs"),
        ("store/row.rs", "fn f(_: &super::super::instance::context::Context) {}", "instance/context.rs"),
        // By a name that another floor passes on.
        ("inbox.rs", "use crate::store::Enlistment;", "instance/enlist.rs"),
        ("inbox.rs", "use crate::Context;", "instance/context.rs"),
        ("instance/machine.rs", "fn f(_: &super::slot::Slot<()>) {}", "instance/slot.rs"),
        ("alarm/retry.rs", "mod inner { use super::super::super::host::Host; }", "host.rs"),
    ];
    for (path, line, above) in planted {
        let mut sources = sources();
        sources.get_mut(path).unwrap().push_str(line);
        let crossings = crossings(&sources);
        assert_eq!(crossings.len(), 1, "{line:?} in {path}: {crossings:?}");
        let (_, reason, _) = FLOORS[floor_of(path).unwrap()];
        assert!(crossings[0].starts_with(path) && crossings[0].contains(above) && crossings[0].ends_with(reason));
    }
    let mut with_a_new_file = sources();
    with_a_new_file.insert("util.rs".into(), "//! Anything.".into());
    assert_eq!(crossings(&with_a_new_file), ["util.rs stands on no floor: give it one in FLOORS"]);
}

/// Parts of what stands below the machine that it may not use all the same: they act, wait or tell the time.
const NOT_PURE: [&str; 8] =
    ["clock", "sync::Mutex", "sync::Semaphore", "sync::atomic", "sync::oneshot", "shared", "tasks::Tasks", "metrics"];

#[test]
fn the_machine_is_pure() {
    let sources = sources();
    let files: Vec<_> =
        sources.keys().filter(|path| path.starts_with("instance/machine") && !is_outside(path)).collect();
    assert!(files.len() > 3);
    for path in files {
        for (used, line) in Paths::of(path, &sources[path]).used {
            let used = used.join("::");
            let found = NOT_PURE.iter().find(|part| used == **part || used.starts_with(&format!("{part}::")));
            assert!(found.is_none(), "{path}:{line} uses {used}: it is asked of the hands");
        }
    }
}

#[test]
fn what_a_floor_may_use_is_allowed() {
    let mut sources = sources();
    sources
        .get_mut("instance/turn.rs")
        .unwrap()
        .push_str("use crate::store::AlarmRow; fn f() { super::drive::g(); crate::clock::h(); }");
    assert_eq!(crossings(&sources), [""; 0]);
}

#[test]
fn no_file_is_too_long_to_be_read_at_once() {
    for library in LIBRARIES {
        let sources = sources_of(library);
        assert!(sources.len() > 40, "{library} has {} files", sources.len());
        for (path, source) in sources.iter().filter(|(path, _)| !is_outside(path)) {
            let lines = source.lines().count();
            assert!(
                lines <= LONGEST,
                "{library}/src/{path} has {lines} lines: find its second idea, and give that a file"
            );
        }
    }
}

#[test]
fn the_root_of_the_crate_has_few_names() {
    let file = syn::parse_file(&sources()["lib.rs"]).unwrap();
    fn names(tree: &syn::UseTree) -> usize {
        match tree {
            syn::UseTree::Path(path) => names(&path.tree),
            syn::UseTree::Group(group) => group.items.iter().map(names).sum(),
            _ => 1,
        }
    }
    let is_public = |visibility: &syn::Visibility| matches!(visibility, syn::Visibility::Public(_));
    let count: usize = file
        .items
        .iter()
        .map(|item| match item {
            syn::Item::Use(item) if is_public(&item.vis) => names(&item.tree),
            _ => 0,
        })
        .sum();
    assert!(
        (30..=MOST_NAMES).contains(&count),
        "{count} names at the root; those for who writes a store are in `store`"
    );
}

#[test]
fn the_architecture_shows_these_floors() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("The floors\n")).expect("it has that section");
    let shown: Vec<_> =
        section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).skip(1).collect();
    let row = |(name, reason, files): &Floor| {
        let files: Vec<_> = files.iter().map(|file| format!("`{file}`")).collect();
        format!("| {name} | {} | {reason} |", files.join(" "))
    };
    let floors: Vec<_> = FLOORS.iter().rev().map(row).collect();
    assert_eq!(shown, floors, "the table of floors is to read:\n{}", floors.join("\n"));
}
