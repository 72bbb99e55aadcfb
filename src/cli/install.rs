//! `edgelet install`: this program as a systemd service of the machine. What to do is a pure list of actions;
//! each is idempotent, so that installing again is an upgrade. Pods go on running meanwhile.

use anyhow::{Context, bail};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub const BINARY: &str = "usr/local/bin/edgelet";
pub const CONFIG_FOLDER: &str = "etc/edgelet";
pub const UNITS: &str = "etc/systemd/system";
const CONFIG: &str = "# Keys are the long flags of `edgelet server --help`, for example:\n# node-name: kitchen\n";

/// A unit and what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    pub unit: &'static str,
    text: &'static str,
}

pub const SERVER: Role = Role { unit: "edgelet.service", text: include_str!("../../systemd/edgelet.service") };
pub const NODE: Role = Role { unit: "edgelet-node.service", text: include_str!("../../systemd/edgelet-node.service") };

#[derive(clap::Args)]
pub struct Arguments {
    /// Install the server, with a node on the same board (the default)
    #[arg(long, conflicts_with = "node")]
    server: bool,
    /// Install a joined board's node; `edgelet join` does this too
    #[arg(long)]
    node: bool,
    /// Install and enable, but start nothing now
    #[arg(long)]
    no_start: bool,
    /// Install into another system's tree, an image's say; starts nothing
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// One step of an installation.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// This program, at this place.
    Program(PathBuf),
    /// A file that is edgelet's own and is always as this version wants it.
    Write(PathBuf, &'static str),
    /// A file that belongs to the owner once it is there.
    Keep(PathBuf, &'static str),
    Systemctl(Vec<String>),
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let role = if arguments.node { NODE } else { SERVER };
    let here = arguments.root == Path::new("/");
    if here && !rustix::process::geteuid().is_root() {
        bail!("edgelet install must run as root (try sudo)");
    }
    if here && !has_systemd() {
        bail!("systemd does not run here: start `edgelet server` from your own init system");
    }
    let joined = Path::new("/var/lib/edgelet/node/node.crt").exists();
    let start = here && !arguments.no_start && (role == SERVER || joined);
    for action in plan(role, &arguments.root, start) {
        perform(&action)?;
    }
    if role == NODE && here && !joined {
        println!("next: edgelet join https://SERVER:6443 --token …  (`edgelet token create` on the server makes one)");
    }
    Ok(ExitCode::SUCCESS)
}

/// What an installation consists of. In another tree systemd is only told what to start at boot.
fn plan(role: Role, root: &Path, start: bool) -> Vec<Action> {
    let systemctl = |words: &[&str]| Action::Systemctl(words.iter().map(|&word| word.to_owned()).collect());
    let mut actions = vec![
        Action::Program(root.join(BINARY)),
        Action::Keep(root.join(CONFIG_FOLDER).join("config.yaml"), CONFIG),
        Action::Write(root.join(UNITS).join(role.unit), role.text),
    ];
    if root == Path::new("/") {
        actions.push(systemctl(&["daemon-reload"]));
        actions.push(systemctl(&["enable", role.unit]));
    } else {
        actions.push(systemctl(&[&format!("--root={}", root.display()), "enable", role.unit]));
    }
    if start {
        // Also when it runs already: this is how a new version takes over.
        actions.push(systemctl(&["restart", role.unit]));
    }
    actions
}

fn perform(action: &Action) -> anyhow::Result<()> {
    match action {
        Action::Program(path) => install_program(path),
        Action::Write(path, text) => {
            write(path, text.as_bytes(), 0o644)?;
            say(&format!("wrote {}", path.display()))
        }
        Action::Keep(path, _) if path.exists() => say(&format!("kept {}", path.display())),
        Action::Keep(path, text) => {
            let folder = path.parent().context("a file of edgelet's lies in a folder")?;
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.with_context(|| format!("make folder {}", folder.display()))?;
            // It may come to hold a token.
            write(path, text.as_bytes(), 0o600)?;
            say(&format!("wrote {}", path.display()))
        }
        Action::Systemctl(words) => systemctl(words),
    }
}

fn say(what: &str) -> anyhow::Result<()> {
    println!("ok    {what}");
    Ok(())
}

/// Where a service finds this program: a copy, unless it is installed already. What lies in somebody's home may go.
pub fn placed_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    if own.starts_with("/usr") {
        return Ok(own);
    }
    let place = Path::new("/").join(BINARY);
    install_program(&place).map(|()| place)
}

fn install_program(path: &Path) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("find this program")?;
    if std::fs::canonicalize(path).is_ok_and(|there| there == own) {
        return say(&format!("this program is {}", path.display()));
    }
    let program = std::fs::read(&own).with_context(|| format!("read {}", own.display()))?;
    write(path, &program, 0o755)?;
    say(&format!("installed {}", path.display()))
}

/// Whole or not at all, also across a power cut: a board that has lost its program never comes back.
fn write(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    let context = || format!("write {}", path.display());
    let folder = path.parent().context("a file of edgelet's lies in a folder")?;
    std::fs::create_dir_all(folder).with_context(context)?;
    let mut name = path.file_name().context("a file has a name")?.to_owned();
    name.push(".new");
    let new = folder.join(name);
    let _ = std::fs::remove_file(&new);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).with_context(context)?;
    std::io::Write::write_all(&mut file, contents).with_context(context)?;
    // Whatever the umask took away.
    file.set_permissions(std::fs::Permissions::from_mode(mode)).with_context(context)?;
    file.sync_all().with_context(context)?;
    std::fs::rename(&new, path).with_context(context)?;
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).with_context(context)
}

/// Runs systemctl, quietly; its own words tell what is wrong.
pub fn systemctl(words: &[String]) -> anyhow::Result<()> {
    let status = Command::new("systemctl").arg("--quiet").args(words).status().context("run systemctl")?;
    let line = words.join(" ");
    if !status.success() {
        bail!("systemctl {line} failed");
    }
    say(&format!("systemctl {line}"))
}

/// As sd_booted(3) finds out.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_ends_with_the_start_and_another_tree_starts_nothing() {
        let words = |actions: Vec<Action>| -> Vec<String> {
            let line = |action| match action {
                Action::Systemctl(words) => Some(words.join(" ")),
                _ => None,
            };
            actions.into_iter().filter_map(line).collect()
        };
        let here = words(plan(SERVER, Path::new("/"), true));
        assert_eq!(here, ["daemon-reload", "enable edgelet.service", "restart edgelet.service"]);
        let image = words(plan(NODE, Path::new("/mnt"), false));
        assert_eq!(image, ["--root=/mnt enable edgelet-node.service"]);
    }

    #[test]
    fn an_owner_s_file_is_kept_and_our_own_is_renewed() {
        let root = tempfile::tempdir().unwrap();
        for text in ["first", "second"] {
            perform(&Action::Write(root.path().join("unit"), text)).unwrap();
            perform(&Action::Keep(root.path().join("etc/config.yaml"), text)).unwrap();
        }
        assert_eq!(std::fs::read_to_string(root.path().join("unit")).unwrap(), "second");
        let config = root.path().join("etc/config.yaml");
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "first");
        assert_eq!(std::fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!root.path().join("unit.new").exists());
    }

    /// What the units promise: a restart leaves pods alone, the watchdog is armed, nothing isolates the mounts.
    #[test]
    fn units_let_pods_live_and_start_one_program() {
        for (role, command) in [(SERVER, "server"), (NODE, "node")] {
            let has = |line: &str| role.text.lines().any(|one| one == line);
            assert!(has(&format!("ExecStart=/{BINARY} {command}")), "{}", role.unit);
            for line in ["Type=notify", "KillMode=process", "Delegate=yes", "Restart=always", "WatchdogSec=60"] {
                assert!(has(line), "{} lacks {line}", role.unit);
            }
            for option in ["Private", "Protect", "ReadOnly", "SystemCall", "NoNewPrivileges", "Restrict"] {
                assert!(!role.text.lines().any(|one| one.starts_with(option)), "{} sets {option}…", role.unit);
            }
        }
    }
}
