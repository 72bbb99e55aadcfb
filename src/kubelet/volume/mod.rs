//! A pod's volumes resolved to what the runtime publishes; one file per source.
//! What they refer to is held while the pod lives, so that changes follow without polling.

mod config_map;
mod downward_api;
mod empty_dir;
mod host_path;
mod projected;
mod secret;
pub mod token;

use super::downward::Downward;
use super::references::{Key, Missing, Reference};
use crate::api::view::pod::{KeyToPath, Pod, Volume};
use crate::client::{CONFIGMAPS, Item, Resource, SECRETS};
use crate::runtime::{VolumeContent, VolumeFile};
use base64::Engine;
use bytes::Bytes;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use token::Tokens;

const DEFAULT_FILE_MODE: u32 = 0o644;

/// What the objects of a pod are read from.
pub struct Source<'a> {
    pub held: &'a BTreeMap<Key, Reference>,
    pub tokens: &'a Tokens,
    pub downward: Downward<'a>,
}

/// The files of a source by path.
type Files = BTreeMap<String, VolumeFile>;

/// The contents of one volume; an error is what follows `MountVolume.SetUp failed for volume "x" : `.
pub async fn content(volume: &Volume, source: &Source<'_>) -> Result<VolumeContent, String> {
    let fs_group = source.downward.pod.spec.security_context.fs_group;
    let files = |files: Files| VolumeContent::Files { files, fs_group };
    if let Some(empty) = &volume.empty_dir {
        Ok(empty_dir::content(empty, fs_group))
    } else if let Some(host) = &volume.host_path {
        Ok(host_path::content(host))
    } else if let Some(wanted) = &volume.config_map {
        config_map::files(wanted, None, source).await.map(files)
    } else if let Some(wanted) = &volume.secret {
        secret::files(wanted, None, source).await.map(files)
    } else if let Some(wanted) = &volume.downward_api {
        downward_api::files(wanted, None, &source.downward).map(files)
    } else if let Some(wanted) = &volume.projected {
        projected::files(wanted, source).await.map(files)
    } else {
        Err("volume type is not supported by this node".to_owned())
    }
}

/// Every ConfigMap and Secret that a pod's volumes, variables and images refer to.
pub fn references(pod: &Pod) -> BTreeSet<Key> {
    let mut found = BTreeSet::new();
    let mut add = |resource: Resource, name: &str| {
        found.insert(Key { resource, namespace: pod.metadata.namespace.clone(), name: name.to_owned() });
    };
    pod.spec.image_pull_secrets.iter().for_each(|secret| add(SECRETS, &secret.name));
    for volume in &pod.spec.volumes {
        volume.config_map.iter().for_each(|map| add(CONFIGMAPS, &map.name));
        volume.secret.iter().for_each(|secret| add(SECRETS, &secret.secret_name));
        for projection in volume.projected.iter().flat_map(|projected| &projected.sources) {
            projection.config_map.iter().for_each(|map| add(CONFIGMAPS, &map.name));
            projection.secret.iter().for_each(|secret| add(SECRETS, &secret.name));
        }
    }
    for (_, container) in super::memory::containers(pod) {
        for from in &container.env_from {
            from.config_map_ref.iter().for_each(|map| add(CONFIGMAPS, &map.name));
            from.secret_ref.iter().for_each(|secret| add(SECRETS, &secret.name));
        }
        for from in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
            from.config_map_key_ref.iter().for_each(|map| add(CONFIGMAPS, &map.name));
            from.secret_key_ref.iter().for_each(|secret| add(SECRETS, &secret.name));
        }
    }
    found
}

/// The data of a ConfigMap or Secret, decoded.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Payload {
    #[serde(deserialize_with = "crate::api::view::null_as_default")]
    data: BTreeMap<String, String>,
    #[serde(deserialize_with = "crate::api::view::null_as_default")]
    binary_data: BTreeMap<String, String>,
}

/// Key to bytes. `None`: the object is not there.
pub async fn data(held: &BTreeMap<Key, Reference>, key: &Key) -> Result<Option<BTreeMap<String, Bytes>>, String> {
    let Some(reference) = held.get(key) else { return Ok(None) };
    match reference.get().await {
        Ok(item) => decode(&item, key.resource == SECRETS).map(Some),
        Err(Missing::NotFound) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn decode(item: &Item, is_secret: bool) -> Result<BTreeMap<String, Bytes>, String> {
    let payload: Payload = item.view().map_err(|error| error.to_string())?;
    let plain = |(key, text): (String, String)| Ok((key, Bytes::from(text)));
    let encoded = |(key, text): (String, String)| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        bytes.map(|bytes| (key.clone(), Bytes::from(bytes))).map_err(|error| format!("decode key {key}: {error}"))
    };
    let binary = payload.binary_data.into_iter().map(encoded);
    if is_secret {
        payload.data.into_iter().map(encoded).collect()
    } else {
        payload.data.into_iter().map(plain).chain(binary).collect()
    }
}

/// All keys, or those that `items` name. `what` words a key that is missing.
fn select(
    data: BTreeMap<String, Bytes>,
    items: &[KeyToPath],
    mode: u32,
    optional: bool,
    what: &str,
) -> Result<Files, String> {
    if items.is_empty() {
        return Ok(data.into_iter().map(|(key, bytes)| (key, VolumeFile { bytes, mode })).collect());
    }
    let mut files = Files::new();
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let file = VolumeFile { bytes: bytes.clone(), mode: item.mode.unwrap_or(mode) };
                files.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(format!("{what}: {}", item.key)),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(value: serde_json::Value) -> Item {
        Item(Bytes::from(value.to_string()))
    }

    #[test]
    fn keys_become_files() {
        let data = decode(&item(json!({"data": {"a": "1"}, "binaryData": {"b": "AAE="}})), false).expect("decoded");
        assert_eq!(data["b"].as_ref(), [0, 1]);
        let secret = decode(&item(json!({"data": {"s": "dA=="}})), true).expect("decoded");
        assert_eq!(secret["s"].as_ref(), b"t");
        let items: Vec<KeyToPath> =
            serde_json::from_value(json!([{"key": "a", "path": "d/f", "mode": 256}])).expect("items");
        let files = select(data.clone(), &items, 0o644, false, "missing").expect("selected");
        assert_eq!((files.len(), files["d/f"].mode), (1, 0o400));
        let items: Vec<KeyToPath> = serde_json::from_value(json!([{"key": "z", "path": "f"}])).expect("items");
        assert_eq!(select(data.clone(), &items, 0o644, false, "missing"), Err("missing: z".to_owned()));
        assert_eq!(select(data, &items, 0o644, true, "missing").map(|files| files.len()), Ok(0));
    }

    #[test]
    fn references_of_volumes_and_variables_are_found() {
        let pod = json!({"metadata": {"namespace": "n"}, "spec": {
            "volumes": [
                {"name": "a", "configMap": {"name": "one"}},
                {"name": "b", "secret": {"secretName": "two"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "three"}}, {"secret": {"name": "four"}}]}},
            ],
            "containers": [{"name": "x",
                "envFrom": [{"secretRef": {"name": "five"}}],
                "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "six", "key": "k"}}}]}],
        }});
        let pod = serde_json::from_value(pod).expect("a pod");
        let names: BTreeSet<String> =
            references(&pod).into_iter().map(|key| format!("{}/{}", key.resource.plural, key.name)).collect();
        let want =
            ["configmaps/one", "configmaps/six", "configmaps/three", "secrets/five", "secrets/four", "secrets/two"];
        assert_eq!(names.into_iter().collect::<Vec<_>>(), want);
    }
}
