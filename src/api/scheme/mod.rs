//! The scheme: what every type of the stable Kubernetes API looks like, as read-only data.
//! Facts: types.txt (generate.py writes it from upstream's schema), defaults.txt (by hand); the build
//! script turns both into statics. Everything generic walks this table; nothing here is per kind.

mod fill;
pub mod openapi;
mod prune;

pub use fill::apply_defaults;
pub use prune::prune;

/// A type of the table. Copy; lives as long as the program.
pub type TypeRef = &'static Type;

#[derive(Debug)]
pub struct Type {
    /// `io.k8s.api.core.v1.Pod`
    pub name: &'static str,
    /// Server-side apply treats the whole as one value.
    pub atomic: bool,
    /// Whether `apply_defaults` finds anything at or below this type.
    filled: bool,
    /// Sorted by name.
    pub fields: &'static [Field],
    defaults: &'static [Default],
}

#[derive(Debug)]
pub struct Field {
    /// As in JSON.
    pub name: &'static str,
    pub shape: Shape,
    /// The protobuf tag; a path where Go embeds a struct that JSON flattens; zeros where there is none.
    pub tags: [u8; 3],
    flags: u8,
    more: &'static More,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    One(Kind),
    List(Kind),
    /// Keys are strings.
    Map(Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    String,
    Int32,
    Int64,
    Double,
    Bool,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// An object of any kind.
    Raw,
    FieldsV1,
    /// Any JSON value.
    Json,
    /// A list of strings that protobuf wraps in a message.
    Strings,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStrings,
    /// Index into the table; `type_ref` follows it.
    Ref(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Unset,
    Map,
    Set,
    Atomic,
}

/// What few fields have. The two key systems differ: list type and keys are server-side apply's, the
/// rest is strategic merge's.
#[derive(Debug)]
pub struct More {
    /// The Go name of a scalar's type where it is not plain: `v1.RestartPolicy`.
    pub go_type: &'static str,
    pub list: ListType,
    pub list_keys: &'static [&'static str],
    pub map_atomic: bool,
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
    pub merge_key: &'static str,
}

#[derive(Debug)]
struct Default {
    path: &'static [&'static str],
    /// JSON.
    value: &'static str,
    when: Option<(&'static str, &'static [&'static str])>,
    unless: &'static str,
}

/// A resource that upstream's stable API serves.
#[derive(Debug)]
pub struct Root {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    schema: u16,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [RootSubresource],
}

#[derive(Debug)]
pub struct RootSubresource {
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

#[allow(clippy::all, reason = "generated")]
mod data {
    use super::{Default, Field, Kind, ListType, More, Root, RootSubresource, Shape, Type};
    include!(concat!(env!("OUT_DIR"), "/scheme.rs"));
}

/// By name: `io.k8s.api.core.v1.Pod`.
pub fn find(name: &str) -> Option<TypeRef> {
    data::TYPES.binary_search_by(|one| one.name.cmp(name)).ok().map(|at| &data::TYPES[at])
}

/// Every resource of the stable groups, sorted by group, version, plural.
pub fn roots() -> &'static [Root] {
    &data::ROOTS
}

/// The type of a resource's kind or of what a subresource takes, by `apiVersion` and kind.
pub fn find_kind(api_version: &str, kind: &str) -> Option<TypeRef> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let root = roots().iter().find(|root| root.group == group && root.version == version && root.kind == kind);
    root.map(Root::type_ref).or_else(|| {
        let package = match group.split('.').next() {
            None | Some("") => "core",
            Some(first) => first,
        };
        find(&format!("io.k8s.api.{package}.{version}.{kind}"))
    })
}

impl Root {
    pub fn type_ref(&self) -> TypeRef {
        &data::TYPES[usize::from(self.schema)]
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        let fields = self.fields;
        fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|at| &fields[at])
    }

    /// `Pod`
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// `v1.Pod`, as Go prints the type.
    pub fn go_name(&self) -> &'static str {
        let dots = self.name.rmatch_indices('.').nth(1);
        dots.map_or(self.name, |(at, _)| &self.name[at + 1..])
    }
}

impl Field {
    const REQUIRED: u8 = 1;
    const POINTER: u8 = 2;
    const ALWAYS: u8 = 4;
    const FILLS: u8 = 8;

    /// The schema asks for it. Most are still optional in Go.
    pub fn required(&self) -> bool {
        self.flags & Self::REQUIRED != 0
    }

    /// A pointer in Go: a zero differs from absence and is kept.
    pub fn pointer(&self) -> bool {
        self.flags & Self::POINTER != 0
    }

    /// Printed even when empty.
    pub fn always(&self) -> bool {
        self.flags & Self::ALWAYS != 0
    }

    /// A plain struct or scalar that Go prints although nobody set it.
    fn fills(&self) -> bool {
        self.flags & Self::FILLS != 0
    }

    pub fn more(&self) -> &'static More {
        self.more
    }

    /// How Go prints the type of this field.
    pub fn go_type(&self) -> String {
        match self.shape {
            _ if !self.more.go_type.is_empty() => self.more.go_type.to_owned(),
            Shape::One(kind) => kind.go_type().to_owned(),
            Shape::List(kind) => format!("[]{}", kind.go_type()),
            Shape::Map(kind) => format!("map[string]{}", kind.go_type()),
        }
    }
}

impl Shape {
    pub fn kind(self) -> Kind {
        match self {
            Self::One(kind) | Self::List(kind) | Self::Map(kind) => kind,
        }
    }
}

impl Kind {
    pub fn type_ref(self) -> Option<TypeRef> {
        match self {
            Self::Ref(at) => Some(&data::TYPES[usize::from(at)]),
            Self::SchemaOrArray | Self::SchemaOrBool | Self::SchemaOrStrings => {
                find("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            }
            _ => None,
        }
    }

    pub fn go_type(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Double => "float64",
            Self::Bool => "bool",
            Self::Bytes => "[]uint8",
            Self::Time => "v1.Time",
            Self::MicroTime => "v1.MicroTime",
            Self::Quantity => "resource.Quantity",
            Self::IntOrString => "intstr.IntOrString",
            Self::Raw => "runtime.RawExtension",
            Self::FieldsV1 => "v1.FieldsV1",
            Self::Json => "v1.JSON",
            Self::Strings => "v1.ExtraValue",
            Self::SchemaOrArray => "v1.JSONSchemaPropsOrArray",
            Self::SchemaOrBool => "v1.JSONSchemaPropsOrBool",
            Self::SchemaOrStrings => "v1.JSONSchemaPropsOrStringArray",
            Self::Ref(at) => data::TYPES[usize::from(at)].go_name(),
        }
    }
}

impl More {
    const NONE: Self = Self {
        go_type: "",
        list: ListType::Unset,
        list_keys: &[],
        map_atomic: false,
        merge: false,
        replace: false,
        retain_keys: false,
        merge_key: "",
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_types_fields_and_both_key_systems() {
        let pod = find("io.k8s.api.core.v1.PodSpec").expect("pods are in the table");
        let containers = pod.field("containers").expect("containers");
        assert!(containers.required() && containers.more().merge);
        assert_eq!((containers.tags, containers.more().merge_key), ([2, 0, 0], "name"));
        let container = containers.shape.kind().type_ref().expect("a type");
        assert_eq!((container.short_name(), container.go_name()), ("Container", "v1.Container"));
        let ports = container.field("ports").expect("ports");
        assert_eq!(ports.more().list_keys, ["containerPort", "protocol"]);
        assert_eq!(ports.more().merge_key, "containerPort");
        assert!(pod.field("bogus").is_none());
        assert!(find("io.k8s.api.core.v1.Nothing").is_none());
    }

    #[test]
    fn embedded_structs_keep_their_tag_path() {
        let volume = find("io.k8s.api.core.v1.Volume").expect("volumes are in the table");
        assert_eq!(volume.field("emptyDir").expect("emptyDir").tags, [2, 2, 0]);
        let rule = find("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations").expect("rules");
        assert_eq!(rule.field("apiGroups").expect("apiGroups").tags, [2, 2, 1]);
    }

    #[test]
    fn roots_name_their_types_and_subresources() {
        let root = roots().iter().find(|root| root.group == "apps" && root.plural == "deployments");
        let root = root.expect("deployments are served");
        assert_eq!(root.type_ref().name, "io.k8s.api.apps.v1.Deployment");
        let scale = root.subresources.iter().find(|sub| sub.name == "scale").expect("scale");
        assert_eq!((scale.group, scale.kind), ("autoscaling", "Scale"));
        assert!(roots().iter().all(|root| root.type_ref().short_name() == root.kind));
        assert!(find_kind("policy/v1", "Eviction").is_some());
        assert!(find_kind("authentication.k8s.io/v1", "TokenRequest").is_some());
    }
}
