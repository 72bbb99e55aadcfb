//! Image archives: `docker save` and OCI layout tars in, OCI layout (readable by `docker load` too) out.
//! Source: OCI image spec 1.1, image-layout.md; Docker image spec 1.2 (manifest.json).

use super::build::{copy_hashed, write_layer};
use super::manifest::{Config, Descriptor, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Platform};
use super::reference::Reference;
use super::unpack::{decompress, digest};
use super::{ImageError, ImageStore, Result, disk};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Imports every image of an archive that runs here; `tag` names an image that has no name.
    /// Returns ids with their names. Blocking.
    pub fn import(&self, input: impl Read, tag: Option<&str>) -> Result<Vec<(String, Vec<String>)>> {
        let _adding = self.adding()?;
        let staging = self.staging("import")?;
        if !extract(input, &staging.path).map_err(|error| ImageError::Archive(error.to_string()))? {
            return Err(ImageError::NoArchive);
        }
        let index = staging.path.join("index.json");
        let docker = staging.path.join("manifest.json");
        if docker.is_file() {
            self.import_docker(&staging.path, &docker, tag)
        } else if index.is_file() {
            self.import_layout(&staging.path, &index, tag)
        } else {
            Err(ImageError::NoArchive)
        }
    }

    fn import_docker(&self, root: &Path, list: &Path, tag: Option<&str>) -> Result<Vec<(String, Vec<String>)>> {
        let entries: Vec<DockerEntry> = read_json(list)?;
        let mut imported = Vec::new();
        for entry in entries {
            let config = read(&inside(root, &entry.config)?)?;
            let mut names = entry.repo_tags.unwrap_or_default();
            if names.is_empty() {
                names.extend(tag.map(str::to_owned));
            }
            let layers = entry.layers.iter().map(|layer| inside(root, layer)).collect::<Result<Vec<_>>>()?;
            imported.push(self.import_one(&config, &layers, &names, "")?);
        }
        Ok(imported)
    }

    fn import_layout(&self, root: &Path, index: &Path, tag: Option<&str>) -> Result<Vec<(String, Vec<String>)>> {
        let index: Manifest = read_json(index)?;
        let mut imported = Vec::new();
        for top in &index.manifests {
            let names: Vec<String> = [IMAGE_NAME, REF_NAME]
                .iter()
                .find_map(|key| top.annotations.get(*key).cloned())
                .or_else(|| tag.map(str::to_owned))
                .into_iter()
                .collect();
            let manifest = resolve(root, top)?;
            let Some(config) = &manifest.config else {
                return Err(ImageError::Archive(format!("manifest {} has no config", top.digest)));
            };
            let config = blob(root, config)?;
            let layers =
                manifest.layers.iter().map(|layer| blob_path(root, &layer.digest)).collect::<Result<Vec<_>>>()?;
            imported.push(self.import_one(&config, &layers, &names, &top.digest)?);
        }
        Ok(imported)
    }

    fn import_one(
        &self,
        config: &[u8],
        layers: &[std::path::PathBuf],
        names: &[String],
        digest: &str,
    ) -> Result<(String, Vec<String>)> {
        let parsed = Config::parse(config).map_err(ImageError::Archive)?;
        if parsed.rootfs.diff_ids.len() != layers.len() {
            return Err(ImageError::Archive("config and manifest count different layers".into()));
        }
        let mut size_bytes = 0;
        for (diff_id, path) in parsed.rootfs.diff_ids.iter().zip(layers) {
            size_bytes += if self.has_layer(diff_id) {
                self.layer_size(diff_id)?
            } else {
                self.add_layer(File::open(path).map_err(disk(path))?, diff_id)?
            };
        }
        let spelt: Vec<String> =
            names.iter().map(|name| Ok(Reference::parse(name)?.to_string())).collect::<Result<_>>()?;
        let mut id = String::new();
        let named = |name: &str| match Reference::parse(name) {
            Ok(reference) if !digest.is_empty() => reference.at_digest(digest),
            _ => String::new(),
        };
        if spelt.is_empty() {
            id = self.add_image(config, "", "", size_bytes)?;
        }
        for name in &spelt {
            id = self.add_image(config, name, &named(name), size_bytes)?;
        }
        Ok((id, spelt))
    }

    /// Writes images as one archive that edgelet, containerd, podman and docker read. Blocking.
    /// Layers are packed anew, so their digests may differ from the registry's; contents do not.
    pub fn export(&self, names: &[String], output: &mut dyn Write) -> Result<()> {
        let staging = self.staging("export")?;
        let blobs = staging.path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(disk(&blobs))?;
        let mut manifests = Vec::new();
        let mut docker = Vec::new();
        for name in names {
            let Some(image) = self.get(name)? else { return Err(ImageError::NotFound(name.clone())) };
            let spelt = if super::is_digest(name) { String::new() } else { Reference::parse(name)?.to_string() };
            let (descriptor, entry) = pack(&image, &spelt, &blobs)?;
            manifests.push(descriptor);
            docker.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        let put = |name: &str, value: &serde_json::Value| {
            let path = staging.path.join(name);
            std::fs::write(&path, value.to_string()).map_err(disk(&path))
        };
        put("index.json", &index)?;
        put("manifest.json", &json!(docker))?;
        put("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        write_layer(&staging.path, output).map_err(disk(&staging.path))
    }
}

/// Packs one image into blobs; its descriptor for the index and its entry for `manifest.json`.
fn pack(image: &super::Image, name: &str, blobs: &Path) -> Result<(Descriptor, serde_json::Value)> {
    let mut config = (*image.config).clone();
    let mut layers = Vec::new();
    config.rootfs.diff_ids.clear();
    for layer in &image.layers {
        let descriptor = pack_layer(layer, blobs)?;
        config.rootfs.diff_ids.push(descriptor.digest.clone());
        layers.push(descriptor);
    }
    let config = pack_json(&serde_json::to_value(&config).unwrap_or_default(), OCI_CONFIG, blobs)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.into(),
        config: Some(config.clone()),
        layers: layers.clone(),
        ..Manifest::default()
    };
    let mut descriptor = pack_json(&serde_json::to_value(&manifest).unwrap_or_default(), OCI_MANIFEST, blobs)?;
    if !name.is_empty() {
        descriptor.annotations.insert(IMAGE_NAME.into(), name.to_owned());
        descriptor.annotations.insert(REF_NAME.into(), name.to_owned());
    }
    let file = |descriptor: &Descriptor| format!("blobs/sha256/{}", descriptor.digest.trim_start_matches("sha256:"));
    let tags: Vec<&str> = if name.is_empty() { Vec::new() } else { vec![name] };
    let entry = json!({
        "Config": file(&config), "RepoTags": tags, "Layers": layers.iter().map(file).collect::<Vec<_>>(),
    });
    Ok((descriptor, entry))
}

fn pack_layer(layer: &Path, blobs: &Path) -> Result<Descriptor> {
    let temporary = blobs.join("packing");
    let mut file = File::create(&temporary).map_err(disk(&temporary))?;
    write_layer(layer, &mut file).map_err(disk(layer))?;
    let file = File::open(&temporary).map_err(disk(&temporary))?;
    let (digest, size) = copy_hashed(file, &mut io::sink()).map_err(disk(&temporary))?;
    let target = blobs.join(digest.trim_start_matches("sha256:"));
    std::fs::rename(&temporary, &target).map_err(disk(&target))?;
    Ok(Descriptor { media_type: OCI_LAYER.into(), digest, size, ..Descriptor::default() })
}

fn pack_json(value: &serde_json::Value, media_type: &str, blobs: &Path) -> Result<Descriptor> {
    let bytes = value.to_string().into_bytes();
    let digest = digest(Sha256::new_with_prefix(&bytes));
    let path = blobs.join(digest.trim_start_matches("sha256:"));
    std::fs::write(&path, &bytes).map_err(disk(&path))?;
    Ok(Descriptor { media_type: media_type.into(), digest, size: bytes.len() as u64, ..Descriptor::default() })
}

/// Follows nested indexes down to the manifest for this machine.
fn resolve(root: &Path, top: &Descriptor) -> Result<Manifest> {
    const DEPTH_LIMIT: usize = 4;
    let host = Platform::host();
    let mut descriptor = top.clone();
    for _ in 0..DEPTH_LIMIT {
        let manifest: Manifest = serde_json::from_slice(&blob(root, &descriptor)?)
            .map_err(|error| ImageError::Archive(format!("manifest {}: {error}", descriptor.digest)))?;
        if !manifest.is_index() {
            return Ok(manifest);
        }
        let Some(chosen) = manifest.choose(&host) else {
            return Err(ImageError::Archive(format!("no image for {}/{}", host.os, host.architecture)));
        };
        descriptor = chosen.clone();
    }
    Err(ImageError::Archive("indexes nested too deeply".into()))
}

/// A blob's bytes, its digest checked.
fn blob(root: &Path, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let bytes = read(&blob_path(root, &descriptor.digest)?)?;
    let actual = digest(Sha256::new_with_prefix(&bytes));
    if actual != descriptor.digest {
        return Err(ImageError::Archive(format!("blob {} has digest {actual}", descriptor.digest)));
    }
    Ok(bytes)
}

fn blob_path(root: &Path, digest: &str) -> Result<std::path::PathBuf> {
    if !super::is_digest(digest) {
        return Err(ImageError::Archive(format!("{digest:?} is not a sha256 digest")));
    }
    Ok(root.join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
}

/// A path named by the archive's own metadata; one that would leave the archive is refused.
fn inside(root: &Path, name: &str) -> Result<std::path::PathBuf> {
    if Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(root.join(name));
    }
    Err(ImageError::Archive(format!("path {name:?} leaves the archive")))
}

/// Only plain files, hard links between them and directories are taken from the archive. False: it begins with
/// something else than a tar's entry, which an error would quote.
fn extract(input: impl Read, target: &Path) -> io::Result<bool> {
    let mut archive = tar::Archive::new(decompress(input)?);
    for (index, entry) in archive.entries()?.enumerate() {
        let mut entry = match entry {
            Err(_) if index == 0 => return Ok(false),
            entry => entry?,
        };
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Directory | tar::EntryType::Link => {
                entry.unpack_in(target)?;
            }
            // `docker save` of old links repeated layers by symlink; nothing else may follow one.
            tar::EntryType::Symlink => copy_link(&entry, target)?,
            _ => {}
        }
    }
    Ok(true)
}

fn copy_link(entry: &tar::Entry<impl Read>, target: &Path) -> io::Result<()> {
    let (Some(link), path) = (entry.link_name()?, entry.path()?) else { return Ok(()) };
    let mut source = path.parent().unwrap_or(Path::new("")).to_path_buf();
    for part in link.components() {
        match part {
            Component::ParentDir if source.pop() => {}
            Component::Normal(name) => source.push(name),
            Component::CurDir => {}
            _ => return Err(io::Error::other(format!("link {} leaves the archive", link.display()))),
        }
    }
    let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain(&path) || !plain(&source) {
        return Err(io::Error::other(format!("link {} leaves the archive", path.display())));
    }
    std::fs::hard_link(target.join(source), target.join(path))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(disk(path))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|error| ImageError::Archive(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Process;
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn an_exported_image_is_imported_with_its_files_links_and_whiteouts() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("bin")).unwrap();
        std::fs::write(tree.path().join("bin/app"), "#!").unwrap();
        std::fs::hard_link(tree.path().join("bin/app"), tree.path().join("bin/same")).unwrap();
        std::os::unix::fs::symlink("app", tree.path().join("bin/link")).unwrap();
        let images = ImageStore::open(from.path(), Clock::real()).unwrap();
        let process = Process { entrypoint: Some(vec!["/bin/app".into()]), ..Process::default() };
        let id = images.build(tree.path(), process, "localhost/app:v1").unwrap();
        let mut bytes = Vec::new();
        images.export(&["localhost/app:v1".into()], &mut bytes).unwrap();
        let other = ImageStore::open(to.path(), Clock::real()).unwrap();
        let imported = other.import(bytes.as_slice(), None).unwrap();
        assert_eq!(imported, vec![(id, vec!["localhost/app:v1".to_owned()])]);
        let layer = &other.get("localhost/app:v1").unwrap().unwrap().layers[0];
        assert_eq!(std::fs::read(layer.join("bin/same")).unwrap(), b"#!");
        assert_eq!(std::fs::read_link(layer.join("bin/link")).unwrap(), Path::new("app"));
    }

    #[test]
    fn an_image_whose_layer_is_a_folder_of_the_host_is_refused() {
        let (directory, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let images = ImageStore::open(directory.path(), Clock::real()).unwrap();
        for diff_id in [host.path().display().to_string(), "sha256:/etc".to_owned(), "sha256:../configs".to_owned()] {
            let config = json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}}).to_string();
            let tree = tempfile::tempdir().unwrap();
            let list = json!([{"Config": "config.json", "RepoTags": ["localhost/evil:v1"], "Layers": ["layer.tar"]}]);
            for (name, text) in
                [("config.json", config), ("manifest.json", list.to_string()), ("layer.tar", String::new())]
            {
                std::fs::write(tree.path().join(name), text).unwrap();
            }
            let mut bytes = Vec::new();
            write_layer(tree.path(), &mut bytes).unwrap();
            let error = images.import(bytes.as_slice(), None).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("read image archive: config: diff id {diff_id:?} is not a sha256 digest")
            );
            assert!(images.get("localhost/evil:v1").unwrap().is_none());
        }
    }

    #[test]
    fn an_archive_that_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let images = ImageStore::open(directory.path(), Clock::real()).unwrap();
        let manifest = "kind: Deployment\n".repeat(100);
        for text in ["not a tar at all", manifest.as_str()] {
            let error = images.import(text.as_bytes(), None).unwrap_err();
            assert!(matches!(error, ImageError::NoArchive), "{error}");
        }
    }
}
