//! The shapes of names: DNS labels and subdomains, qualified names, label values, ports and the like.
//! Each check answers what is wrong in upstream's words (k8s.io/apimachinery/pkg/util/validation).

pub const SUBDOMAIN_LIMIT_BYTES: usize = 253;
pub const LABEL_LIMIT_BYTES: usize = 63;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_1035_FORMAT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_WORDS: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// RFC 1123 subdomain: most names.
pub fn subdomain(value: &str) -> Vec<String> {
    let mut problems = too_long(value, SUBDOMAIN_LIMIT_BYTES);
    if !is_subdomain(value) {
        problems.push(unmatched(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN_FORMAT,
            &["example.com"],
        ));
    }
    problems
}

/// RFC 1123 label: namespaces, containers, volumes.
pub fn label(value: &str) -> Vec<String> {
    let mut problems = too_long(value, LABEL_LIMIT_BYTES);
    if !is_label(value) {
        problems.push(unmatched(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            LABEL_FORMAT,
            &["my-name", "123-abc"],
        ));
    }
    problems
}

/// RFC 1035 label: Services.
pub fn label_1035(value: &str) -> Vec<String> {
    let mut problems = too_long(value, LABEL_LIMIT_BYTES);
    if !is_label(value) || !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        problems.push(unmatched(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            LABEL_1035_FORMAT,
            &["my-name", "abc-123"],
        ));
    }
    problems
}

/// `*.example.com`
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    let mut problems = too_long(value, SUBDOMAIN_LIMIT_BYTES);
    if !value.strip_prefix("*.").is_some_and(is_subdomain) {
        problems.push(unmatched(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{SUBDOMAIN_FORMAT}"),
            &["*.example.com"],
        ));
    }
    problems
}

/// One segment of a URL path: RBAC names.
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    let forbidden = ["/", "%"].into_iter().filter(|part| value.contains(part));
    forbidden.map(|part| format!("may not contain '{part}'")).collect()
}

/// `name` or `prefix.example.com/name`: label and annotation keys, finalizers, conditions.
pub fn qualified(value: &str) -> Vec<String> {
    let parts: Vec<&str> = value.split('/').collect();
    let mut problems = Vec::new();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            let wrong = if prefix.is_empty() { vec!["must be non-empty".to_owned()] } else { subdomain(prefix) };
            problems.extend(wrong.into_iter().map(|problem| format!("prefix part {problem}")));
            name
        }
        _ => {
            let shape = unmatched(QUALIFIED_WORDS, QUALIFIED_FORMAT, &["MyName", "my.name", "123-abc"]);
            return vec![format!(
                "a qualified name {shape} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_LIMIT_BYTES {
        problems.push(format!("name part {}", too_long_words(LABEL_LIMIT_BYTES)));
    }
    if !is_qualified_part(name) {
        let shape = unmatched(QUALIFIED_WORDS, QUALIFIED_FORMAT, &["MyName", "my.name", "123-abc"]);
        problems.push(format!("name part {shape}"));
    }
    problems
}

pub fn label_value(value: &str) -> Vec<String> {
    let mut problems = too_long(value, LABEL_LIMIT_BYTES);
    if !value.is_empty() && !is_qualified_part(value) {
        problems.push(unmatched(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({QUALIFIED_FORMAT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    problems
}

/// Keys of ConfigMaps and Secrets: a file name.
pub fn config_key(value: &str) -> Vec<String> {
    let mut problems = too_long(value, SUBDOMAIN_LIMIT_BYTES);
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(allowed) {
        problems.push(unmatched(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => problems.push("must not be '.'".to_owned()),
        ".." => problems.push("must not be '..'".to_owned()),
        other if other.starts_with("..") => problems.push("must not start with '..'".to_owned()),
        _ => {}
    }
    problems
}

/// Environment variables: any printable ASCII but `=`.
pub fn env_var(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["must be non-empty".to_owned()];
    }
    if value.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// Names of ports: at most 15 of `[a-z0-9-]`, one letter at least (IANA service names).
pub fn port(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 15);
    if !value.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|c| c.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        problems.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        problems.push("must not begin or end with a hyphen".to_owned());
    }
    problems
}

pub fn is_label(value: &str) -> bool {
    let middle = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !value.is_empty() && value.bytes().all(middle) && !value.starts_with('-') && !value.ends_with('-')
}

pub fn is_subdomain(value: &str) -> bool {
    value.split('.').all(is_label)
}

fn is_qualified_part(value: &str) -> bool {
    let middle = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.iter().all(|c| middle(*c)) && edge(bytes.first()) && edge(bytes.last())
}

fn too_long(value: &str, limit_bytes: usize) -> Vec<String> {
    if value.len() > limit_bytes { vec![too_long_words(limit_bytes)] } else { Vec::new() }
}

fn too_long_words(limit_bytes: usize) -> String {
    format!("must be no more than {limit_bytes} bytes")
}

/// Upstream's sentence for a value that does not match a pattern, its spaces included.
pub fn unmatched(words: &str, format: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    let examples = if examples.is_empty() { String::new() } else { format!("e.g. {}", examples.join(" or ")) };
    format!("{words} ({examples}regex used for validation is '{format}')")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&str) -> Vec<String>;

    #[test]
    fn names_are_judged_by_their_rule() {
        let good: [(Rule, &[&str]); 7] = [
            (subdomain, &["a", "a.b", "1-2.x"]),
            (label, &["a", "1a-b"]),
            (label_1035, &["a", "a-1"]),
            (qualified, &["a", "A_b.c", "example.com/x"]),
            (label_value, &["", "v1.2_x"]),
            (config_key, &["a.b", "..a".trim_start_matches("..")]),
            (port, &["http", "a-1"]),
        ];
        for (check, values) in good {
            for value in values {
                assert_eq!(check(value), Vec::<String>::new(), "{value}");
            }
        }
        let bad: [(Rule, &[&str]); 7] = [
            (subdomain, &["", "A", "a..b", "-a", "a_b"]),
            (label, &["a.b", "a-", ""]),
            (label_1035, &["1a"]),
            (qualified, &["", "/a", "a/b/c", "a b", "EXAMPLE.com/x", "a-"]),
            (label_value, &["-", "a b"]),
            (config_key, &["", "..", "..a", "a b"]),
            (port, &["", "80", "a--b", "-a", "abcdefghijklmnop"]),
        ];
        for (check, values) in bad {
            for value in values {
                assert_ne!(check(value), Vec::<String>::new(), "{value}");
            }
        }
    }
}
