//! Small typed views for the loops: only the fields a loop reads, never written back.

use serde::Deserialize;

/// Declares views: every field optional in the JSON, camelCase, unknown fields skipped, `null` read as absent.
macro_rules! views {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub struct $name {
                $($(#[$attr])* #[serde(deserialize_with = "crate::api::view::null_as_default")] pub $field: $type,)*
            }
        )*
    };
}

pub mod meta;
pub mod node;
pub mod pod;
pub mod service;
pub mod workload;

/// `null` and absent read the same.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::meta::Any;

    #[test]
    fn null_and_unknown_fields_read_as_absent() {
        let text = r#"{"kind":"Pod","metadata":{"name":"x","creationTimestamp":null,"labels":null,"new":1}}"#;
        let any: Any = serde_json::from_str(text).expect("view");
        assert_eq!((any.metadata.name.as_str(), any.metadata.labels.len()), ("x", 0));
    }
}
