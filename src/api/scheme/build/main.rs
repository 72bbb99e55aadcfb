//! Build script: turns types.txt and defaults.txt into the read-only tables of `api::scheme`.
//! Facts in, data out; nothing is fetched.

mod facts;
mod tables;

use std::path::PathBuf;

fn main() {
    let room = PathBuf::from("src/api/scheme");
    println!("cargo::rerun-if-changed={}", room.display());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let read = |name: &str| std::fs::read_to_string(room.join(name)).expect("the facts lie in the scheme's room");
    let facts = facts::parse(&read("types.txt"), &read("defaults.txt"));
    std::fs::write(out.join("scheme.rs"), tables::rust(&facts)).expect("OUT_DIR is writable");
}
