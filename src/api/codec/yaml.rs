//! Objects into YAML as upstream's server writes it: block style, sorted keys, strings quoted wherever
//! a YAML 1.1 reader (Go's) would take them for something else.

use serde_json::Value;
use std::fmt::Write;

pub fn write(object: &Value) -> String {
    let mut out = String::new();
    block(object, 0, &mut out);
    out
}

/// A value at the start of a line that has been indented already.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (at, (key, child)) in map.iter().enumerate() {
                if at > 0 {
                    pad(indent, out);
                }
                scalar_text(key, 0, out);
                out.push(':');
                member(child, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    pad(indent, out);
                }
                out.push_str("- ");
                block(item, indent + 2, out);
            }
        }
        other => {
            scalar(other, indent, out);
            out.push('\n');
        }
    }
}

/// What stands after `key:`. Lists are not indented below their key.
fn member(value: &Value, indent: usize, out: &mut String) {
    let below = match value {
        Value::Object(map) if !map.is_empty() => Some(indent + 2),
        Value::Array(items) if !items.is_empty() => Some(indent),
        _ => None,
    };
    match below {
        Some(below) => {
            out.push('\n');
            pad(below, out);
            block(value, below, out);
        }
        None => {
            out.push(' ');
            scalar(value, indent + 2, out);
            out.push('\n');
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::String(text) => scalar_text(text, indent, out),
        other => write!(out, "{other}").expect("strings grow"),
    }
}

fn scalar_text(text: &str, indent: usize, out: &mut String) {
    let literal = indent > 0 && text.contains('\n') && !text.starts_with([' ', '\n', '\t']) && printable(text);
    if literal {
        let chomp = match text {
            _ if !text.ends_with('\n') => "|-",
            _ if text.ends_with("\n\n") => "|+",
            _ => "|",
        };
        out.push_str(chomp);
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            out.push('\n');
            if !line.is_empty() {
                pad(indent, out);
                out.push_str(line);
            }
        }
    } else if plain(text) {
        out.push_str(text);
    } else {
        write!(out, "{}", Value::from(text)).expect("strings grow");
    }
}

fn printable(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control())
}

/// Whether text reads back as the same string without quotes.
fn plain(text: &str) -> bool {
    const WORDS: [&str; 11] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"];
    let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '/' || c == '_');
    let safe = |c: char| c.is_alphanumeric() || " -_./:,()[]{}<>='\"@!$%^&*+;|?\\~#`".contains(c);
    starts
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && text.chars().all(safe)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn writes_what_reads_back_as_the_same() {
        let object = json!({
            "metadata": {"name": "y", "labels": {}, "creationTimestamp": "2026-11-23T00:58:45Z"},
            "spec": {"containers": [{"args": ["a b", "-c", "12", ""], "image": "k8s.io/pause:3"}, {}], "m": 1.5},
            "data": {"script": "#!/bin/sh\n\necho a: b\n", "no-end": "x\ny", "tabs": "\t\nx", "k: v": null},
        });
        let expected = "\
data:
  \"k: v\": null
  no-end: |-
    x
    y
  script: |
    #!/bin/sh

    echo a: b
  tabs: \"\\t\\nx\"
metadata:
  creationTimestamp: \"2026-11-23T00:58:45Z\"
  labels: {}
  name: \"y\"
spec:
  containers:
  - args:
    - a b
    - \"-c\"
    - \"12\"
    - \"\"
    image: k8s.io/pause:3
  - {}
  m: 1.5
";
        assert_eq!(write(&object), expected);
        assert_eq!(serde_yaml::from_str::<Value>(expected).expect("valid YAML"), object);
    }
}
