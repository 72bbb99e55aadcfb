//! The JSON documents of an image, as far as edgelet reads them.
//! Source: OCI image spec 1.1 (manifest, index, config), Docker distribution manifest v2 schema 2.

use super::reference::is_digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// An index (several platforms) or a manifest (one image); told apart by what it holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    #[serde(default)]
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
}

/// The image's config: how its process is to be run, and the layers it is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default)]
    pub config: Process,
    #[serde(default)]
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Process {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

impl std::str::FromStr for Platform {
    type Err = String;

    /// As tools spell it: `linux/arm64`, `linux/arm/v7`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] if !variant.is_empty() => (os, architecture, variant),
            _ => return Err(format!("platform {text:?} is not OS/ARCHITECTURE[/VARIANT]")),
        };
        if os.is_empty() || architecture.is_empty() {
            return Err(format!("platform {text:?} is not OS/ARCHITECTURE[/VARIANT]"));
        }
        Ok(Self { architecture: architecture.into(), os: os.into(), variant: variant.into() })
    }
}

impl Platform {
    /// The platform this binary was built for, in OCI's words.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            other => (other, ""),
        };
        Self { architecture: architecture.into(), os: "linux".into(), variant: variant.into() }
    }

    /// Whether an image for `self` runs here, and how well: the highest number is the best match.
    /// 32-bit ARM images run on later variants; arm64 without a variant means v8.
    fn fitness(&self, host: &Platform) -> Option<u8> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        let level = |variant: &str| variant.trim_start_matches('v').parse::<u8>().ok();
        match (level(&self.variant), level(&host.variant)) {
            (None, _) => Some(1),
            (Some(wanted), Some(have)) if wanted <= have => Some(1 + wanted),
            _ => None,
        }
    }
}

impl Config {
    /// Reads a config as it came from somewhere. Its diff ids become names of directories, so that each must be a
    /// digest: a path in its place would show a container what lies there.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(bytes).map_err(|error| format!("config: {error}"))?;
        match config.rootfs.diff_ids.iter().find(|diff_id| !is_digest(diff_id)) {
            Some(other) => Err(format!("config: diff id {other:?} is not a sha256 digest")),
            None => Ok(config),
        }
    }
}

impl Manifest {
    pub fn is_index(&self) -> bool {
        !self.manifests.is_empty()
    }

    /// The manifest of an index that fits this machine best.
    pub fn choose(&self, host: &Platform) -> Option<&Descriptor> {
        let fitness = |descriptor: &Descriptor| match &descriptor.platform {
            Some(platform) => platform.fitness(host),
            None => Some(0),
        };
        let fitting = self.manifests.iter().filter_map(|descriptor| Some((fitness(descriptor)?, descriptor)));
        fitting.max_by_key(|(fitness, _)| *fitness).map(|(_, descriptor)| descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[(&str, &str)]) -> Manifest {
        let describe = |(architecture, variant): &(&str, &str)| Descriptor {
            digest: format!("{architecture}{variant}"),
            platform: Some(Platform {
                architecture: (*architecture).into(),
                os: "linux".into(),
                variant: (*variant).into(),
            }),
            ..Descriptor::default()
        };
        Manifest { manifests: platforms.iter().map(describe).collect(), ..Manifest::default() }
    }

    #[test]
    fn platforms_are_read_as_tools_spell_them() {
        let read = |text: &str| text.parse::<Platform>();
        let platform = |architecture: &str, variant: &str| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: variant.into(),
        };
        assert_eq!(read("linux/arm64"), Ok(platform("arm64", "")));
        assert_eq!(read("linux/arm/v7"), Ok(platform("arm", "v7")));
        for wrong in ["arm64", "linux/", "/arm64", "linux/arm/", "linux/arm/v7/x", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_best_fitting_platform_is_chosen() {
        let all = index(&[("amd64", ""), ("arm", "v5"), ("arm", "v6"), ("arm", "v7"), ("arm64", "v8"), ("arm64", "")]);
        let choose = |architecture: &str, variant: &str| {
            let host = Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.into() };
            all.choose(&host).map(|descriptor| descriptor.digest.clone())
        };
        assert_eq!(choose("amd64", ""), Some("amd64".into()));
        assert_eq!(choose("arm", "v7"), Some("armv7".into()));
        assert_eq!(choose("arm", "v6"), Some("armv6".into()));
        assert_eq!(choose("arm64", "v8"), Some("arm64v8".into()));
        assert_eq!(choose("riscv64", ""), None);
    }
}
