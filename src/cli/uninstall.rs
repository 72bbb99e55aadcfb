//! `edgelet uninstall`: takes away what `install`, `join` and running have left on this machine: services, pods,
//! bridge, rules, cgroups, folders, the program. It goes on after an error and tells all of them at the end.

use super::install::{BINARY, CONFIG_FOLDER, NODE, SERVER, UNITS, has_systemd, systemctl};
use crate::config::{Config, Typed};
use crate::kubelet::shutdown;
use crate::node;
use anyhow::{Context, bail};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
    /// Keep the cluster's state and the config file
    #[arg(long)]
    keep_data: bool,
    /// Leave the program, the units and the config file to the package manager
    #[arg(long, hide = true)]
    packaged: bool,
    /// Uninstall from another system's tree, an image's say, where nothing runs
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Config file that says where things are [default: /etc/edgelet/config.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let here = arguments.root == Path::new("/");
    if here && !rustix::process::geteuid().is_root() {
        bail!("edgelet uninstall must run as root (try sudo)");
    }
    let file = arguments.config.clone().unwrap_or_else(|| arguments.root.join(CONFIG_FOLDER).join("config.yaml"));
    let config = Typed::read(&file, arguments.config.is_some())?.check()?;
    let folders = folders(arguments, &config);
    if !arguments.yes && !confirmed(&folders)? {
        println!("nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    let mut failures = Vec::new();
    let mut attempt = |outcome: anyhow::Result<()>| failures.extend(outcome.err().map(|error| super::chain(&error)));
    if here && has_systemd() {
        stop_services().into_iter().for_each(&mut attempt);
    }
    if here {
        unused(&config)?;
        attempt(super::block_on(remove_node(config)).map(drop));
        attempt(super::block_on(forget_shutdowns()).map(drop));
    }
    if !arguments.packaged {
        for path in files(&arguments.root) {
            attempt(remove_file(&path));
        }
    }
    for folder in &folders {
        attempt(remove_folder(folder));
    }
    if here && has_systemd() && !arguments.packaged {
        attempt(systemctl(&["daemon-reload".to_owned()]));
    }
    if failures.is_empty() {
        println!("ok    edgelet is gone");
        return Ok(ExitCode::SUCCESS);
    }
    bail!("something is left: {}", failures.join("; "))
}

/// What holds state. Logs of pods lie where other programs may have theirs: their folder goes only when empty.
fn folders(arguments: &Arguments, config: &Config) -> Vec<PathBuf> {
    let inside = |path: &Path| arguments.root.join(path.strip_prefix("/").unwrap_or(path));
    let mut folders = vec![inside(&config.run_directory)];
    if !arguments.keep_data {
        folders.push(inside(&config.data_directory));
        if !arguments.packaged {
            folders.push(arguments.root.join(CONFIG_FOLDER));
        }
    }
    folders
}

fn files(root: &Path) -> [PathBuf; 5] {
    let wants = root.join(UNITS).join("multi-user.target.wants");
    [
        wants.join(SERVER.unit),
        wants.join(NODE.unit),
        root.join(UNITS).join(SERVER.unit),
        root.join(UNITS).join(NODE.unit),
        root.join(BINARY),
    ]
}

fn confirmed(folders: &[PathBuf]) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("this ends all pods and removes edgelet: say --yes if that is meant");
    }
    println!("This ends all pods on this machine and removes edgelet, with:");
    for folder in folders {
        println!("  {}", folder.display());
    }
    print!("Go on? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Those that are there; a unit nobody installed is none to stop.
fn stop_services() -> Vec<anyhow::Result<()>> {
    let places = ["/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"];
    let installed = |unit: &str| places.iter().any(|place| Path::new(place).join(unit).exists());
    let stop = |unit: &str| systemctl(&["disable", "--now", unit].map(str::to_owned));
    [SERVER.unit, NODE.unit].into_iter().filter(|unit| installed(unit)).map(stop).collect()
}

/// Whoever runs it in a terminal must end it first: nothing is taken from under a running server or node.
fn unused(config: &Config) -> anyhow::Result<()> {
    let folders = [&config.run_directory, &config.data_directory];
    folders.into_iter().filter(|folder| folder.exists()).try_for_each(|folder| crate::server::claim(folder).map(drop))
}

async fn remove_node(config: Config) -> anyhow::Result<ExitCode> {
    if !config.run_directory.exists() && !config.data_directory.exists() {
        return Ok(ExitCode::SUCCESS);
    }
    node::remove(&config).await?;
    let _ = std::fs::remove_dir(&config.log_directory);
    println!("ok    pods, network, rules and cgroups are gone");
    Ok(ExitCode::SUCCESS)
}

/// The login manager goes back to how long it waits by itself.
async fn forget_shutdowns() -> anyhow::Result<ExitCode> {
    if shutdown::forget().await.context("have the login manager forget edgelet")? {
        println!("ok    a shutdown no longer waits for pods");
    }
    Ok(ExitCode::SUCCESS)
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => println!("ok    removed {}", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
    }
    Ok(())
}

/// Never through a mount: what a pod had mounted from elsewhere is not ours to delete.
fn remove_folder(path: &Path) -> anyhow::Result<()> {
    let Ok(real) = std::fs::canonicalize(path) else { return Ok(()) };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read the list of mounts")?;
    if let Some(mounted) = mount_below(&mounts, &real) {
        bail!("{} is still mounted: unmount it, then remove {}", mounted.display(), path.display());
    }
    std::fs::remove_dir_all(&real).with_context(|| format!("remove {}", path.display()))?;
    println!("ok    removed {}", path.display());
    Ok(())
}

/// A mount point inside `folder`, not the folder itself (a data partition, say).
pub fn mount_below(mountinfo: &str, folder: &Path) -> Option<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    // The kernel writes blanks as octal numbers.
    let points = points.map(|point| PathBuf::from(point.replace("\\040", " ")));
    points.into_iter().find(|point| point != folder && point.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_deleted_through_a_mount() {
        let mounts = "22 1 179:2 / / rw - ext4 /dev/root rw\n\
                      30 22 179:3 / /var/lib/edgelet rw - ext4 /dev/p3 rw\n\
                      31 30 0:40 / /var/lib/edgelet/volumes/a\\040b rw - tmpfs tmpfs rw\n\
                      32 22 0:41 / /var/lib/edgelet-other rw - tmpfs tmpfs rw\n";
        let below = |folder: &str| mount_below(mounts, Path::new(folder));
        assert_eq!(below("/var/lib/edgelet"), Some("/var/lib/edgelet/volumes/a b".into()));
        assert_eq!(below("/var/lib/edgelet/images"), None);
        assert_eq!(below("/run/edgelet"), None);
    }

    #[test]
    fn nothing_is_taken_from_under_a_running_edgelet() {
        let folder = tempfile::tempdir().unwrap();
        let typed = Typed {
            data_dir: Some(folder.path().to_owned()),
            run_dir: Some(folder.path().join("none")),
            node_name: Some("a".into()),
            ..Typed::default()
        };
        let config = typed.check().unwrap();
        let running = crate::server::claim(folder.path()).unwrap();
        assert!(unused(&config).unwrap_err().to_string().contains("another edgelet uses the folder"));
        drop(running);
        unused(&config).unwrap();
    }

    #[test]
    fn another_tree_is_cleaned_and_kept_data_stays() {
        let root = tempfile::tempdir().unwrap();
        let arguments =
            |keep_data| Arguments { yes: true, keep_data, packaged: false, root: root.path().to_owned(), config: None };
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        for path in files(root.path()) {
            make(path.strip_prefix(root.path()).unwrap().to_str().unwrap());
        }
        make("etc/edgelet/config.yaml");
        make("var/lib/edgelet/state.db");
        make("etc/other");
        assert_eq!(run(&arguments(true)).unwrap(), ExitCode::SUCCESS);
        assert!(root.path().join("var/lib/edgelet/state.db").exists());
        assert!(root.path().join("etc/edgelet/config.yaml").exists());
        assert!(!root.path().join(BINARY).exists());
        assert_eq!(run(&arguments(false)).unwrap(), ExitCode::SUCCESS);
        assert!(!root.path().join("var/lib/edgelet").exists());
        assert!(!root.path().join("etc/edgelet").exists());
        assert!(root.path().join("etc/other").exists());
    }
}
