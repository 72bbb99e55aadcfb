//! What a request is about: verb, group, version, resource, subresource, namespace and name, from the
//! method, the path and three query parameters. Behaviour of upstream's RequestInfoFactory.

use super::query::Query;
use http::Method;

/// Parts of the path after the resource's name that belong to a namespace itself.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// Decoded, with the leading slash.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; for
    /// other paths the method in lower case.
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Whether the path has a namespace in front of the resource.
    pub in_namespace: bool,
    /// Segments after the subresource: the path of a proxy request.
    pub rest: Vec<String>,
    /// Of a list, watch or deletion of a collection.
    pub field_selector: String,
    /// `/watch/` in the path: a watch, whatever the query says.
    pub legacy_watch: bool,
}

impl RequestInfo {
    pub fn parse(method: &Method, raw_path: &str, query: &Query) -> Self {
        let path = percent_decode(raw_path);
        let mut info = Self { path, verb: plain_verb(method), ..Self::default() };
        let path = info.path.clone();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let parts = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = resource_verb(method);
        info.parse_resource(parts, query);
        info
    }

    fn parse_resource(&mut self, parts: &[&str], query: &Query) {
        let mut parts = parts;
        if let ["watch", rest @ ..] = parts
            && !rest.is_empty()
        {
            self.legacy_watch = true;
            parts = rest;
        }
        if let ["namespaces", namespace, rest @ ..] = parts {
            self.namespace = (*namespace).to_owned();
            if let [first, ..] = rest
                && !NAMESPACE_SUBRESOURCES.contains(first)
            {
                self.in_namespace = true;
                parts = rest;
            }
        }
        let mut parts = parts.iter().map(|part| (*part).to_owned());
        self.resource = parts.next().unwrap_or_default();
        self.name = parts.next().unwrap_or_default();
        self.subresource = parts.next().unwrap_or_default();
        self.rest = parts.collect();
        self.refine_verb(query);
    }

    /// A get without a name is a list or a watch; a delete without one deletes the collection.
    fn refine_verb(&mut self, query: &Query) {
        if self.legacy_watch && self.verb == "get" {
            self.verb = "watch";
        } else if self.name.is_empty() && self.verb == "get" {
            self.verb = if query.flag("watch") { "watch" } else { "list" };
        } else if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection";
        }
        // A list of one named object is authorized as that object.
        if self.name.is_empty() && matches!(self.verb, "list" | "watch" | "deletecollection") {
            self.field_selector = query.text("fieldSelector");
            self.name = named_by_field(&self.field_selector).unwrap_or_default();
        }
    }

    /// Requests that may last: they do not count against the limit of requests in flight.
    pub fn is_long_running(&self) -> bool {
        let streams = ["attach", "exec", "proxy", "log", "portforward"];
        self.verb == "watch" || (self.is_resource && streams.contains(&self.subresource.as_str()))
    }

    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch" | "head" | "options")
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::OPTIONS => "options",
        _ => "get",
    }
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::GET | Method::HEAD => "get",
        _ => "",
    }
}

/// The name when the selector has `metadata.name=NAME` as one of its terms.
fn named_by_field(selector: &str) -> Option<String> {
    let terms = selector.split(',').filter_map(|term| term.split_once('='));
    let mut names = terms.filter(|(field, _)| *field == "metadata.name");
    let name = names.next()?.1.trim_start_matches('=');
    (!name.is_empty()).then(|| name.to_owned())
}

/// `%2F` and the like; what is no escape stays as it is.
pub fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match escape.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, target: &str) -> RequestInfo {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        RequestInfo::parse(&method, path, &Query::parse(query))
    }

    #[test]
    fn resource_paths_by_method() {
        // method, target, verb, group, version, namespace, resource, subresource, name
        let cases = [
            (Method::GET, "/api/v1/pods", "list", "", "v1", "", "pods", "", ""),
            (Method::GET, "/api/v1/pods?watch=1", "watch", "", "v1", "", "pods", "", ""),
            (Method::GET, "/api/v1/watch/pods", "watch", "", "v1", "", "pods", "", ""),
            (Method::GET, "/api/v1/watch/namespaces/a/pods/b", "watch", "", "v1", "a", "pods", "", "b"),
            (Method::GET, "/api/v1/namespaces", "list", "", "v1", "", "namespaces", "", ""),
            (Method::GET, "/api/v1/namespaces/a", "get", "", "v1", "a", "namespaces", "", "a"),
            (Method::PUT, "/api/v1/namespaces/a/finalize", "update", "", "v1", "a", "namespaces", "finalize", "a"),
            (Method::POST, "/api/v1/namespaces/a/pods", "create", "", "v1", "a", "pods", "", ""),
            (Method::GET, "/api/v1/namespaces/a/pods/b?watch=1", "get", "", "v1", "a", "pods", "", "b"),
            (Method::GET, "/api/v1/namespaces/a/pods/b/log", "get", "", "v1", "a", "pods", "log", "b"),
            (Method::DELETE, "/api/v1/namespaces/a/pods", "deletecollection", "", "v1", "a", "pods", "", ""),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch",
                "apps",
                "v1",
                "a",
                "deployments",
                "scale",
                "d",
            ),
            (Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list", "", "v1", "", "pods", "", "x"),
            (Method::GET, "/api/v1/nodes/n/proxy/a/b", "get", "", "v1", "", "nodes", "proxy", "n"),
        ];
        for (method, target, verb, group, version, namespace, resource, subresource, name) in cases {
            let info = parse(method, target);
            assert!(info.is_resource, "{target}");
            let got =
                [info.verb, &info.group, &info.version, &info.namespace, &info.resource, &info.subresource, &info.name];
            assert_eq!(got, [verb, group, version, namespace, resource, subresource, name], "{target}");
        }
    }

    #[test]
    fn other_paths_are_not_resources() {
        for target in ["/", "/healthz", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/openapi/v2"] {
            let info = parse(Method::GET, target);
            assert!(!info.is_resource, "{target}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn escapes_are_decoded_before_the_path_is_split() {
        assert_eq!(percent_decode("/a%2Fb%20%zz%"), "/a/b %zz%");
        assert_eq!(parse(Method::GET, "/api/v1/nodes/n/proxy/a/b").rest, ["a", "b"]);
    }
}
