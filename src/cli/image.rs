//! `edgelet image`: the images of this machine. Works beside a running server, on the same folder.

use super::get::aligned;
use crate::clock::Clock;
use crate::image::manifest::{Platform, Process};
use crate::image::pull::Puller;
use crate::image::{Image, ImageError, ImageStore};
use crate::runtime::libcontainer::{Users, images_in_use};
use anyhow::{Context, bail};
use clap::Subcommand;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder of the server's or node's state
    #[arg(long, global = true, default_value = "/var/lib/edgelet", value_name = "DIR")]
    data_dir: PathBuf,
    /// Folder with the records of running pods [default: what the server or node noted in its data folder]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List images
    #[command(visible_alias = "ls")]
    List,
    /// Pull an image from its registry
    Pull {
        image: String,
        /// Registries that speak plain HTTP, HOST:PORT
        #[arg(long)]
        insecure_registry: Vec<String>,
    },
    /// Import an archive (`docker save` or OCI layout; `-` = standard input)
    Import {
        file: PathBuf,
        /// Name for an image that has none in the archive
        #[arg(short, long)]
        tag: Option<String>,
    },
    /// Write images as one archive (`-` = standard output)
    Export {
        file: PathBuf,
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Make an image of a folder or of one static binary
    Build {
        /// The folder that becomes the root, or a binary that becomes /bin/NAME and the entrypoint
        source: PathBuf,
        #[arg(short, long)]
        tag: String,
        /// What the programs in it run on, OS/ARCHITECTURE[/VARIANT] [default: this machine's]
        #[arg(long)]
        platform: Option<Platform>,
        /// Environment, NAME=VALUE
        #[arg(long)]
        env: Vec<String>,
        #[arg(long, default_value = "")]
        workdir: String,
        #[arg(long, default_value = "")]
        user: String,
        /// The entrypoint's first word (arguments after `--`)
        #[arg(long)]
        entrypoint: Option<String>,
        /// Arguments of the image's command
        #[arg(last = true)]
        cmd: Vec<String>,
    },
    /// Give an image one more name
    Tag { image: String, name: String },
    /// Remove images
    #[command(visible_alias = "rm")]
    Remove {
        #[arg(required = true)]
        images: Vec<String>,
        /// Those that containers on this machine use, too
        #[arg(short, long)]
        force: bool,
    },
    /// Remove every image that no container on this machine uses and --keep does not name
    Prune {
        #[arg(long)]
        keep: Vec<String>,
    },
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let folder = arguments.data_dir.join("images");
    let adds = matches!(arguments.command, Command::Pull { .. } | Command::Import { .. } | Command::Build { .. });
    if !adds && !folder.try_exists().with_context(|| format!("read {}", folder.display()))? {
        eprintln!("there are no images in {}: no server or node has run with this data folder", folder.display());
        return Ok(if matches!(arguments.command, Command::List) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let images = ImageStore::open(&folder, Clock::real())?;
    let in_use = || {
        let noted = || crate::node::run_directory_of(&arguments.data_dir);
        images_in_use(&arguments.run_dir.clone().unwrap_or_else(noted)).context("learn which images are used")
    };
    match arguments.command {
        Command::List => print!("{}", table(&images.list()?)),
        Command::Pull { image, insecure_registry } => {
            let resolver = crate::network::resolve::Resolver::default();
            let puller = Puller::new(Arc::new(resolver), insecure_registry)?;
            println!("{}", images.pull(&puller, &image, &[]).await?);
        }
        Command::Import { file, tag } => import(&images, &file, tag.as_deref())?,
        Command::Export { file, images: names } => export(&images, &file, &names)?,
        Command::Build { source, tag, platform, env, workdir, user, entrypoint, cmd } => {
            let process = Process {
                env: (!env.is_empty()).then_some(env),
                entrypoint: entrypoint.map(|word| vec![word]),
                cmd: (!cmd.is_empty()).then_some(cmd),
                working_dir: workdir,
                user,
                ..Process::default()
            };
            let platform = platform.unwrap_or_else(Platform::host);
            println!("{}", build(&images, &source, platform, process, &tag)?);
        }
        Command::Tag { image, name } => images.tag(&image, &name)?,
        Command::Remove { images: names, force } => {
            let used = if force { Users::new() } else { in_use()? };
            return Ok(remove(&images, &names, &used));
        }
        Command::Prune { keep } => prune(&images, &keep, &in_use()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An image of a folder, or of one static binary.
fn build(
    images: &ImageStore,
    source: &Path,
    platform: Platform,
    process: Process,
    tag: &str,
) -> anyhow::Result<String> {
    if source.is_dir() {
        return Ok(images.build_for(platform, source, process, tag)?);
    }
    let name = source.file_name().context("name a folder or a binary")?.to_string_lossy();
    build_binary(images, source, &name, platform, process, tag)
}

/// An image with one static binary of this machine's as `/bin/NAME`.
pub fn build_as(images: &ImageStore, source: &Path, name: &str, process: Process, tag: &str) -> anyhow::Result<String> {
    build_binary(images, source, name, Platform::host(), process, tag)
}

fn build_binary(
    images: &ImageStore,
    source: &Path,
    name: &str,
    platform: Platform,
    mut process: Process,
    tag: &str,
) -> anyhow::Result<String> {
    let root = images.scratch()?;
    let bin = root.path().join("bin");
    std::fs::create_dir(&bin).context("make bin")?;
    let target = bin.join(name);
    // A hard link costs no space; across file systems it must be a copy.
    if std::fs::hard_link(source, &target).is_err() {
        std::fs::copy(source, &target).with_context(|| format!("read {}", source.display()))?;
    }
    if process.entrypoint.is_none() {
        process.entrypoint = Some(vec![format!("/bin/{name}")]);
    }
    Ok(images.build_for(platform, root.path(), process, tag)?)
}

fn import(images: &ImageStore, file: &Path, tag: Option<&str>) -> anyhow::Result<()> {
    let (imported, name) = if file.as_os_str() == "-" {
        (images.import(stdin().lock(), tag), "standard input".into())
    } else {
        let input = File::open(file).with_context(|| format!("open {}", file.display()))?;
        (images.import(std::io::BufReader::new(input), tag), file.display().to_string())
    };
    let imported = match imported {
        Err(error @ ImageError::NoArchive) => bail!("{name} is {error}"),
        imported => imported?,
    };
    for (id, names) in imported {
        println!("{id} {}", names.join(" "));
    }
    Ok(())
}

/// Whatever stood in the file stays until the archive is complete.
fn export(images: &ImageStore, file: &Path, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        if images.get(name)?.is_none() {
            bail!("image {name} not found");
        }
    }
    if file.as_os_str() == "-" {
        let mut out = stdout().lock();
        images.export(names, &mut out)?;
        return Ok(out.flush()?);
    }
    if std::fs::metadata(file).is_ok_and(|meta| !meta.is_file()) {
        // A device or a pipe: it is written to, not replaced.
        let output = File::options().write(true).open(file).with_context(|| format!("open {}", file.display()))?;
        let mut output = std::io::BufWriter::new(output);
        images.export(names, &mut output)?;
        return Ok(output.flush()?);
    }
    // A link goes on pointing at what it points at.
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let mut name = file.file_name().context("name a file")?.to_owned();
    name.push(format!(".tmp{:08x}", fastrand::u32(..)));
    let temporary = file.with_file_name(name);
    let written = write_archive(images, &temporary, names)
        .and_then(|()| std::fs::rename(&temporary, &file).with_context(|| format!("rename {}", temporary.display())));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn write_archive(images: &ImageStore, file: &Path, names: &[String]) -> anyhow::Result<()> {
    let output = File::create_new(file).with_context(|| format!("create {}", file.display()))?;
    let mut output = std::io::BufWriter::new(output);
    images.export(names, &mut output)?;
    let output = output.into_inner().with_context(|| format!("write {}", file.display()))?;
    output.sync_all().with_context(|| format!("write {}", file.display()))
}

/// Goes on after an error.
fn remove(images: &ImageStore, names: &[String], used: &Users) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        if let Err(error) = remove_one(images, name, used) {
            eprintln!("error: {}", super::chain(&error));
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn remove_one(images: &ImageStore, name: &str, used: &Users) -> anyhow::Result<()> {
    let Some(image) = images.get(name)? else { bail!("image {name} not found") };
    if let Some(pods) = used.get(&image.id) {
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        bail!(
            "image {name} is used on this machine by {}: without it their containers cannot start again (--force \
             removes it all the same)",
            pods.join(", ")
        );
    }
    images.remove(name)?;
    println!("removed {name}");
    Ok(())
}

fn prune(images: &ImageStore, keep: &[String], used: &Users) -> anyhow::Result<()> {
    let mut kept: BTreeSet<String> = used.keys().cloned().collect();
    for name in keep {
        let Some(image) = images.get(name)? else { bail!("image {name} not found") };
        kept.insert(image.id);
    }
    let names: BTreeMap<String, String> =
        images.list()?.into_iter().map(|image| (image.id, image.names.join(" "))).collect();
    let gone = images.collect(&kept, true)?;
    for id in &gone {
        println!("removed {id} {}", names.get(id).map_or("", String::as_str));
    }
    let left = names.len().saturating_sub(gone.len());
    println!(
        "{} removed, {left} kept ({} in use)",
        gone.len(),
        used.keys().filter(|id| names.contains_key(*id)).count()
    );
    Ok(())
}

fn table(images: &[Image]) -> String {
    let mut lines = vec![["IMAGE", "ID", "SIZE"].map(str::to_owned).to_vec()];
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = format!("{:.1} MB", f64::from(u32::try_from(image.size_bytes >> 10).unwrap_or(u32::MAX)) / 1024.0);
        let none = ["<none>".to_owned()];
        let names = if image.names.is_empty() { none.as_slice() } else { image.names.as_slice() };
        lines.extend(names.iter().map(|name| vec![name.clone(), id.clone(), size.clone()]));
    }
    aligned(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> ImageStore {
        let images = ImageStore::open(directory, Clock::real()).unwrap();
        let tree = tempfile::tempdir().unwrap();
        for (name, text) in [("a", "1"), ("b", "2")] {
            std::fs::write(tree.path().join("file"), text).unwrap();
            images.build(tree.path(), Process::default(), &format!("localhost/{name}:v1")).unwrap();
        }
        images
    }

    #[test]
    fn an_export_that_fails_leaves_what_was_in_the_file() {
        let (directory, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let images = store(directory.path());
        let file = out.path().join("precious.tar");
        std::fs::write(&file, "precious").unwrap();
        let refused = export(&images, &file, &["localhost/none:v1".into()]).unwrap_err();
        assert_eq!(refused.to_string(), "image localhost/none:v1 not found");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        export(&images, &file, &["localhost/a:v1".into()]).unwrap();
        assert!(std::fs::read(&file).unwrap().len() > 512);
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn an_image_for_another_platform_has_a_size_though_its_layer_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let images = store(directory.path());
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("file"), "1").unwrap();
        let other: Platform = "linux/s390x".parse().unwrap();
        build(&images, tree.path(), other, Process::default(), "localhost/a:other").unwrap();
        assert_eq!(images.get("localhost/a:other").unwrap().unwrap().size_bytes, 1);
    }

    #[test]
    fn images_that_containers_use_stay() {
        let directory = tempfile::tempdir().unwrap();
        let images = store(directory.path());
        let id = images.get("localhost/a:v1").unwrap().unwrap().id;
        let used = Users::from([(id, BTreeSet::from(["default/web".to_owned()]))]);
        let refused = remove_one(&images, "localhost/a:v1", &used).unwrap_err().to_string();
        assert!(refused.contains("is used on this machine by default/web"), "{refused}");
        prune(&images, &[], &used).unwrap();
        let names: Vec<String> = images.list().unwrap().into_iter().flat_map(|image| image.names).collect();
        assert_eq!(names, ["localhost/a:v1"]);
        remove_one(&images, "localhost/a:v1", &Users::new()).unwrap();
        assert!(images.list().unwrap().is_empty());
    }
}
