//! `regex-lite` under the name that libcontainer asks for. Classes such as `\\d` are ASCII here.

pub use regex_lite::{Regex, RegexBuilder};
