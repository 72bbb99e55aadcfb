//! Build script: turns types.txt and defaults.txt into the read-only tables of `api::scheme`, and into
//! OpenAPI documents with the descriptions that k8s-openapi's sources carry. Facts in, data out.

mod descriptions;
mod facts;
mod json;
mod openapi;
mod protobuf;
mod schema;
mod tables;

use std::path::PathBuf;

fn main() {
    let room = PathBuf::from("src/api/scheme");
    for input in ["types.txt", "defaults.txt", "build"] {
        println!("cargo::rerun-if-changed={}", room.join(input).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let read = |name: &str| std::fs::read_to_string(room.join(name)).expect("the facts lie in the scheme's room");
    let facts = facts::parse(&read("types.txt"), &read("defaults.txt"));
    std::fs::write(out.join("scheme.rs"), tables::rust(&facts)).expect("OUT_DIR is writable");
    let descriptions = descriptions::read();
    if descriptions.is_empty() {
        println!("cargo::warning=the sources of k8s-openapi are not found: OpenAPI has no descriptions");
    }
    openapi::write(&facts, &descriptions, &out);
}
