//! What form an answer takes, from `Accept`, and what form a body has, from `Content-Type`.

use crate::api::codec::MediaType;
use crate::api::status::{Result, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

/// What is shown of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shape {
    #[default]
    Object,
    /// `meta.k8s.io` version.
    Table(&'static str),
    Metadata(&'static str),
    /// `apidiscovery.k8s.io` version.
    Discovery(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Representation {
    pub format: Format,
    pub shape: Shape,
}

impl Representation {
    pub fn content_type(self) -> &'static str {
        match (self.format, self.shape) {
            (Format::Json, Shape::Discovery("v2")) => {
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            }
            (Format::Json, Shape::Discovery(_)) => {
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
            }
            (Format::Json, _) => "application/json",
            (Format::Yaml, _) => "application/yaml",
            (Format::Protobuf, _) => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// Which shapes an endpoint can give beyond plain objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shapes {
    Plain,
    /// Get and watch of objects, lists.
    Objects,
    Discovery,
}

/// Media ranges beyond these are not looked at.
const CLAUSES_LIMIT: usize = 64;

/// The best form both sides know. `protobuf`: whether the answer can be encoded so.
pub fn accept(header: &str, shapes: Shapes, protobuf: bool) -> Result<Representation> {
    if header.trim().is_empty() {
        return Ok(Representation::default());
    }
    let mut clauses: Vec<Clause> = header.split(',').take(CLAUSES_LIMIT).map(Clause::parse).collect();
    // A stable sort: among equals the client's order decides, wildcards come last.
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality).then(a.is_wild().cmp(&b.is_wild())));
    let found = clauses.iter().filter(|clause| clause.quality > 0.0).find_map(|clause| clause.offer(shapes, protobuf));
    found
        .ok_or_else(|| not_acceptable(&["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]))
}

pub fn not_acceptable(available: &[&str]) -> Status {
    let list = available.join(", ");
    let mut status = Status::not_acceptable(format!("406: Not Acceptable\n\nAvailable representations: {list}"));
    status.details = Some(Box::default());
    status
}

struct Clause<'a> {
    media: &'a str,
    quality: f32,
    kind: &'a str,
    group: &'a str,
    version: &'a str,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut clause = Self { media, quality: 1.0, kind: "", group: "", version: "" };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => clause.quality = value.parse().unwrap_or(0.0),
                "as" => clause.kind = value,
                "g" => clause.group = value,
                "v" => clause.version = value,
                _ => {}
            }
        }
        clause
    }

    fn is_wild(&self) -> bool {
        self.media.ends_with('*')
    }

    fn offer(&self, shapes: Shapes, protobuf: bool) -> Option<Representation> {
        let format = match self.media {
            "*/*" | "*" | "application/*" | "application/json" => Format::Json,
            "application/yaml" => Format::Yaml,
            "application/vnd.kubernetes.protobuf" if protobuf => Format::Protobuf,
            _ => return None,
        };
        let shape = self.shape(shapes)?;
        // Tables exist as text only.
        let known = format != Format::Protobuf || shape == Shape::Object;
        known.then_some(Representation { format, shape })
    }

    fn shape(&self, shapes: Shapes) -> Option<Shape> {
        let versioned = |known: &[&'static str]| known.iter().find(|one| **one == self.version).copied();
        let meta = |group: &str| group == "meta.k8s.io";
        match (self.kind, shapes) {
            ("", _) => Some(Shape::Object),
            ("Table", Shapes::Objects) if meta(self.group) => versioned(&["v1", "v1beta1"]).map(Shape::Table),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", Shapes::Objects) if meta(self.group) => {
                versioned(&["v1", "v1beta1"]).map(Shape::Metadata)
            }
            ("APIGroupDiscoveryList", Shapes::Discovery) if self.group == "apidiscovery.k8s.io" => {
                versioned(&["v2", "v2beta1"]).map(Shape::Discovery)
            }
            _ => None,
        }
    }
}

/// The media type without its parameters, in lower case; JSON when the client names none.
pub fn media_type(header: &str) -> String {
    let media = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media.is_empty() { "application/json".to_owned() } else { media }
}

pub fn body_format(content_type: &str) -> Result<MediaType> {
    match media_type(content_type).as_str() {
        "application/json" => Ok(MediaType::Json),
        "application/yaml" => Ok(MediaType::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(MediaType::Protobuf),
        _ => Err(unsupported(&["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"])),
    }
}

pub fn unsupported(accepted: &[&str]) -> Status {
    let list = accepted.join(", ");
    Status::unsupported_media_type(format!(
        "the body of the request was in an unknown format - accepted media types include: {list}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

    #[test]
    fn the_best_known_clause_wins() {
        let of = |format, shape| Some(Representation { format, shape });
        let cases = [
            ("", Shapes::Objects, of(Format::Json, Shape::Object)),
            ("*/*", Shapes::Objects, of(Format::Json, Shape::Object)),
            (TABLE, Shapes::Objects, of(Format::Json, Shape::Table("v1"))),
            (TABLE, Shapes::Plain, of(Format::Json, Shape::Object)),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", Shapes::Objects, None),
            ("application/yaml;q=0.9,application/json;q=0.8", Shapes::Objects, of(Format::Yaml, Shape::Object)),
            ("application/json;q=0.1,application/yaml", Shapes::Objects, of(Format::Yaml, Shape::Object)),
            ("application/vnd.kubernetes.protobuf,application/json", Shapes::Objects, of(Format::Json, Shape::Object)),
            ("application/cbor,*/*;q=0.5", Shapes::Objects, of(Format::Json, Shape::Object)),
            ("text/plain", Shapes::Objects, None),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                Shapes::Discovery,
                of(Format::Json, Shape::Discovery("v2")),
            ),
        ];
        for (header, shapes, expected) in cases {
            assert_eq!(accept(header, shapes, false).ok(), expected, "{header}");
        }
    }

    #[test]
    fn refusals_list_what_is_available() {
        let error = accept("text/plain", Shapes::Objects, false).unwrap_err();
        assert_eq!(error.code, 406);
        assert!(error.message.ends_with("application/json, application/yaml, application/vnd.kubernetes.protobuf"));
        let error = body_format("application/x-www-form-urlencoded").unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (415, "UnsupportedMediaType"));
        assert_eq!(body_format("application/json; charset=utf-8").unwrap(), MediaType::Json);
    }
}
