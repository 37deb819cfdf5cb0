//! Mistakes that the compiler finds, and its words for each: those who make one are to see its remedy.
//!
//! Each file of `compile/` and `compile_forwarding/` is compiled as a program of its own against the library it is about as that was built for these tests, so nothing more
//! is built. A line `//~ WORDS` says what the compiler has to say, in this order; a file without one has to compile.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A library as it was built, and what else was: the newest first.
fn libraries(built: &Path, name: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(built).unwrap().map(|file| file.unwrap().path());
    let start = format!("lib{name}-");
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(&start) && name.ends_with(".rlib")
    };
    let mut all: Vec<_> = files.filter(is_it).collect();
    all.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().modified().unwrap()));
    all
}

/// Compiles a file, without making anything of it. `Err` has what the compiler said.
fn compile(file: &Path, name: &str, library: &Path, into: &Path) -> Result<(), String> {
    let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let compiled = Command::new(compiler)
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--color=never", "-Awarnings"])
        .args([Path::new("-L"), library.parent().unwrap(), Path::new("-o"), &into.join("made.rmeta"), file])
        .arg(format!("--extern={name}={}", library.display()))
        .output()
        .unwrap();
    if compiled.status.success() { Ok(()) } else { Err(String::from_utf8(compiled.stderr).unwrap()) }
}

#[test]
fn mistakes_that_the_compiler_finds_are_told_in_words_that_mend_them() {
    told("callback_flows", "flows/compile", 5);
}

#[test]
fn what_cannot_cross_from_host_to_host_is_told_in_words_that_mend_it() {
    told("stable_interfaces", "flows/compile_forwarding", 6);
}

/// Compiles the samples of a directory, of which at least so many are mistakes, against a library.
fn told(name: &str, samples: &str, least: usize) {
    let (program, into) = (std::env::current_exe().unwrap(), tempfile::tempdir().unwrap());
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join(samples);
    let right = samples.join("fits.rs");
    // Of several, that one fits which was built with the features of what is beside it.
    let libraries = libraries(program.parent().unwrap(), name);
    let fits = libraries.iter().find(|library| compile(&right, name, library, into.path()).is_ok());
    let library = fits.unwrap_or_else(|| {
        let first = libraries.first().map(|library| compile(&right, name, library, into.path()));
        panic!("none of {libraries:?} fits {}: {first:?}", right.display())
    });
    let mut mistakes = 0;
    for sample in std::fs::read_dir(samples).unwrap() {
        let sample = sample.unwrap().path();
        let source = std::fs::read_to_string(&sample).unwrap();
        let words: Vec<_> = source.lines().filter_map(|line| line.trim().strip_prefix("//~ ")).collect();
        match compile(&sample, name, library, into.path()) {
            Ok(()) => assert!(words.is_empty(), "{} compiles", sample.display()),
            Err(said) => {
                let mut rest = &*said;
                for words in &words {
                    let at =
                        rest.find(words).unwrap_or_else(|| panic!("{}: no {words:?} in\n{said}", sample.display()));
                    rest = &rest[at + words.len()..];
                }
                assert!(!words.is_empty(), "{}: {said}", sample.display());
                mistakes += 1;
            }
        }
    }
    assert!(mistakes >= least, "only {mistakes}");
}
