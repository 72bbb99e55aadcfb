//! `edgelet image`: the images of this machine. Works beside a running server, on the same folder.

use super::get::aligned;
use crate::clock::Clock;
use crate::image::manifest::{Platform, Process};
use crate::image::pull::Puller;
use crate::image::{Image, ImageStore};
use anyhow::{Context, bail};
use clap::Subcommand;
use std::collections::BTreeSet;
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
    },
    /// Remove every image not named by --keep
    Prune {
        #[arg(long)]
        keep: Vec<String>,
    },
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let images = ImageStore::open(&arguments.data_dir.join("images"), Clock::real())?;
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
        Command::Remove { images: names } => names.iter().try_for_each(|name| images.remove(name))?,
        Command::Prune { keep } => prune(&images, &keep)?,
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
    let imported = if file.as_os_str() == "-" {
        images.import(stdin().lock(), tag)?
    } else {
        let input = File::open(file).with_context(|| format!("open {}", file.display()))?;
        images.import(std::io::BufReader::new(input), tag)?
    };
    for (id, names) in imported {
        println!("{id} {}", names.join(" "));
    }
    Ok(())
}

fn export(images: &ImageStore, file: &Path, names: &[String]) -> anyhow::Result<()> {
    if file.as_os_str() == "-" {
        let mut out = stdout().lock();
        images.export(names, &mut out)?;
        return Ok(out.flush()?);
    }
    let output = File::create(file).with_context(|| format!("create {}", file.display()))?;
    let mut output = std::io::BufWriter::new(output);
    images.export(names, &mut output)?;
    Ok(output.flush()?)
}

fn prune(images: &ImageStore, keep: &[String]) -> anyhow::Result<()> {
    let mut kept = BTreeSet::new();
    for name in keep {
        let Some(image) = images.get(name)? else { bail!("image {name} not found") };
        kept.insert(image.id);
    }
    images.collect(&kept, true)?.iter().for_each(|id| println!("{id}"));
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
