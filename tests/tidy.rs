//! The house rules that a compiler does not check: floors, unsafe, sizes, openings, the README's commands.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test ends at the first surprise"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Room → floor. A file imports downward only.
const FLOORS: &[(&str, u32)] = &[
    ("sys", 0),
    ("clock", 0),
    ("telemetry", 0),
    ("supervise", 0),
    ("api", 1),
    ("store", 2),
    ("image", 2),
    ("network", 2),
    ("pki", 2),
    ("registry", 3),
    ("runtime", 3),
    ("backup", 3),
    ("tunnel", 3),
    ("apiserver", 4),
    ("client", 4),
    ("scheduler", 5),
    ("controllers", 5),
    ("kubelet", 5),
    ("proxy", 5),
    ("dns", 5),
    ("peers", 5),
    ("server", 6),
    ("node", 6),
    ("config", 6),
    ("cli", 7),
    ("main", 7),
    ("lib", 8),
];

/// On the ground floor and in the wiring neighbours may know each other; nowhere else.
/// The loops: they meet through objects only.
const LOOPS: u32 = 5;
/// Files that may be longer: uniform tables, where length is no complexity.
const TABLES: &[&str] = &["src/api/kinds/", "src/api/scheme/", "src/api/view/"];
const FILE_LIMIT_LINES: usize = 700;
const OPENING_LIMIT_LINES: usize = 6;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The part of a file that is compiled into the product.
fn product(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap()
}

fn room(file: &str) -> &str {
    let inner = file.strip_prefix("src/").unwrap();
    inner.split('/').next().unwrap().trim_end_matches(".rs")
}

fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/")
}

#[test]
fn files_import_downward_only() {
    let floors: BTreeMap<&str, u32> = FLOORS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in sources("src").iter().filter(|(file, _)| !is_test_file(file)) {
        let (from, floor) = (room(file), floors[room(file)]);
        for (number, line) in product(text).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for (at, _) in code.match_indices("crate::") {
                let rest = &code[at + "crate::".len()..];
                let to: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let Some(target) = floors.get(to.as_str()).copied() else { continue };
                let wiring = target == floor && (floor == 0 || floor == 6);
                let past_the_client = floor == LOOPS && (to == "registry" || to == "store");
                if to != from && ((target >= floor && !wiring) || past_the_client) {
                    wrong.push(format!("{file}:{}: {from} (floor {floor}) imports {to} (floor {target})", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_has_a_floor() {
    for (file, _) in sources("src") {
        assert!(FLOORS.iter().any(|(room_name, _)| *room_name == room(&file)), "{file} is in no room of the table");
    }
}

#[test]
fn unsafe_code_lives_in_sys_and_the_shim() {
    for (file, text) in sources("src") {
        let allowed = file.starts_with("src/sys/") || file.starts_with("src/runtime/shim/");
        let code = text.lines().any(|line| line.split("//").next().unwrap().contains("unsafe {"));
        assert!(allowed || !code, "{file} has unsafe code: it belongs into src/sys");
    }
}

#[test]
fn files_open_with_what_they_own_and_stay_readable() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let opening = text.lines().take_while(|line| line.starts_with("//!")).count();
        if opening == 0 && !is_test_file(&file) {
            wrong.push(format!("{file}: does not say in `//!` lines what it owns"));
        }
        if opening > OPENING_LIMIT_LINES && file != "src/lib.rs" && file != "src/tunnel.rs" {
            wrong.push(format!("{file}: opens with {opening} lines; {OPENING_LIMIT_LINES} is the most"));
        }
        let lines = product(&text).lines().count();
        let table = TABLES.iter().any(|folder| file.starts_with(folder));
        if lines > FILE_LIMIT_LINES && !table && !is_test_file(&file) {
            wrong.push(format!("{file}: {lines} lines; split it by concept"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_unfinished_is_left() {
    for (file, text) in sources("src").into_iter().chain(sources("tests")) {
        if file == "tests/tidy.rs" {
            continue;
        }
        for mark in ["todo!(", "unimplemented!(", "FIXME", "XXX", "#[ignore"] {
            assert!(!text.contains(mark), "{file} holds {mark}");
        }
    }
}

#[test]
fn the_top_level_holds_only_what_it_may() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "cross.toml",
        "systemd",
        "images",
        "tests",
        "benches",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "target",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = allowed.contains(&name.as_str()) || name.starts_with('.') || name.ends_with(".toml");
        assert!(known, "{name} does not belong at the top level");
    }
}

/// Paths in README and CONTRIBUTING exist, and so do the scripts they call.
#[test]
fn the_documents_name_files_that_exist() {
    for document in ["README.md", "CONTRIBUTING.md", "benches/README.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for word in text.split(|c: char| c.is_whitespace() || "`()[],;\"'".contains(c)) {
            let path = word.trim_end_matches(['.', ':']);
            let ours =
                ["src/", "tests/", "benches/", "images/", "systemd/", ".ci/"].iter().any(|top| path.starts_with(top));
            if ours && !path.contains(['*', '{', '<', '$']) && !path.chars().any(char::is_uppercase) {
                assert!(Path::new(&root().join(path)).exists(), "{document} names {path}, which does not exist");
            }
        }
    }
}

#[test]
fn every_subcommand_is_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["server", "demo", "apply", "get", "delete", "logs", "exec", "image", "check", "trace", "version"] {
        assert!(readme.contains(&format!("edgelet {command}")), "README.md does not show `edgelet {command}`");
    }
}
