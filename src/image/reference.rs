//! Image references: `[REGISTRY/]NAME[:TAG][@DIGEST]`, with Docker Hub's short forms.
//! Source: github.com/distribution/reference (grammar), OCI distribution spec 1.1 §pulling manifests.

use std::fmt;

/// A parsed, fully spelt reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`, …
    pub registry: String,
    /// `library/nginx`.
    pub repository: String,
    /// Empty when only a digest was given.
    pub tag: String,
    /// `sha256:…`, or empty.
    pub digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name \"{name}\": {why}")]
pub struct ReferenceError {
    name: String,
    why: &'static str,
}

const HUB: &str = "docker.io";
const NAME_LIMIT_BYTES: usize = 255;
const TAG_LIMIT_BYTES: usize = 128;

impl Reference {
    /// Parses what a pod's `image` field holds; `latest` when neither tag nor digest is given.
    pub fn parse(name: &str) -> Result<Self, ReferenceError> {
        let fail = |why| ReferenceError { name: name.to_owned(), why };
        let (rest, digest) = name.split_once('@').unwrap_or((name, ""));
        if name.contains('@') && !is_digest(digest) {
            return Err(fail("invalid reference format: not a sha256 digest"));
        }
        let (path, tag) = split_tag(rest);
        let (registry, repository) = split_registry(path);
        if repository.is_empty() || path.len() > NAME_LIMIT_BYTES {
            return Err(fail("invalid reference format: the name is empty or too long"));
        }
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(fail("invalid reference format: repository name must be lowercase"));
        }
        if !repository.split('/').all(is_component) {
            return Err(fail("invalid reference format"));
        }
        let tag = match tag {
            Some(tag) if !is_tag(tag) => return Err(fail("invalid reference format: not a tag")),
            Some(tag) => tag,
            None if digest.is_empty() => "latest",
            None => "",
        };
        Ok(Self { registry, repository, tag: tag.to_owned(), digest: digest.to_owned() })
    }

    /// What a registry is asked for: the digest when there is one.
    pub fn manifest_name(&self) -> &str {
        if self.digest.is_empty() { &self.tag } else { &self.digest }
    }

    /// The same repository at a digest.
    pub fn at_digest(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if !self.tag.is_empty() {
            write!(f, ":{}", self.tag)?;
        }
        if !self.digest.is_empty() {
            write!(f, "@{}", self.digest)?;
        }
        Ok(())
    }
}

/// A colon after the last slash starts the tag; one before it is a port.
fn split_tag(rest: &str) -> (&str, Option<&str>) {
    match rest.rfind(':') {
        Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
        _ => (rest, None),
    }
}

/// The first part is a registry when it looks like a host; otherwise Docker Hub is meant.
fn split_registry(path: &str) -> (String, String) {
    if let Some((first, repository)) = path.split_once('/')
        && (first.contains(['.', ':']) || first == "localhost")
    {
        let registry = if first == "index.docker.io" { HUB } else { first };
        return (registry.to_owned(), with_library(registry, repository));
    }
    (HUB.to_owned(), with_library(HUB, path))
}

fn with_library(registry: &str, repository: &str) -> String {
    if registry == HUB && !repository.is_empty() && !repository.contains('/') {
        return format!("library/{repository}");
    }
    repository.to_owned()
}

fn is_component(part: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    alphanumeric(part.chars().next())
        && alphanumeric(part.chars().last())
        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
}

fn is_tag(tag: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !tag.is_empty()
        && tag.len() <= TAG_LIMIT_BYTES
        && tag.starts_with(first)
        && tag.chars().all(|c| first(c) || c == '.' || c == '-')
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(digest: &str) -> bool {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    digest.strip_prefix("sha256:").is_some_and(|rest| rest.len() == 64 && rest.bytes().all(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_spelt_out() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("team/app", "docker.io/team/app:latest"),
            ("localhost/app:x", "localhost/app:x"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
            ("registry.example.com/a/b:v1.0_2", "registry.example.com/a/b:v1.0_2"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ];
        for (name, spelt) in cases {
            assert_eq!(Reference::parse(name).unwrap().to_string(), spelt, "{name}");
        }
        let pinned = Reference::parse(&format!("nginx@{digest}")).unwrap();
        assert_eq!((pinned.tag.as_str(), pinned.manifest_name()), ("", digest.as_str()));
    }

    #[test]
    fn malformed_names_are_refused() {
        for name in ["", ":tag", "UPPER", "a/UPPER", "a:", "a@sha256:1", "a//b", "a:b:c", "-a", "a b", "a@x"] {
            assert!(Reference::parse(name).is_err(), "{name}");
        }
    }
}
