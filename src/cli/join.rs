//! `edgelet join URL --token T`: makes this board a node, each step printed as it happens.
//! Every failure says what to do. Nothing is kept of the token; the node's key never leaves the board.

use super::node as node_command;
use super::{check, install};
use crate::api::object::ObjectExt;
use crate::api::status::Status;
use crate::client::uplink::State;
use crate::client::{ListOptions, NODES, Remote, WatchEvent};
use crate::clock::{Clock, monotonic};
use crate::config::Typed;
use crate::network::claim;
use crate::network::resolve::Resolver;
use crate::node::joining::{Joining, Step};
use crate::node::{joined, time};
use crate::pki::certificate;
use crate::pki::join_token::JoinToken;
use crate::pki::node_identity::{Joined, NodeIdentity};
use anyhow::{Context, bail};
use futures_util::StreamExt;
use jiff::SignedDuration;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const DEFAULT_PORT: u16 = 6443;
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const UNIT: &str = include_str!("../../systemd/edgelet-node.service");
const UNIT_NAME: &str = "edgelet-node.service";
const UNIT_FILE: &str = "/etc/systemd/system/edgelet-node.service";
/// Where a package puts it.
const PACKAGED_UNIT_FILE: &str = "/usr/lib/systemd/system/edgelet-node.service";

#[derive(clap::Args)]
pub struct Arguments {
    /// The server, https://HOST:PORT [default: `server` of the config file]
    #[arg(value_name = "URL")]
    server: Option<String>,
    /// What `edgelet token create` printed on the server [default: `token` of the config file]
    #[arg(long, env = "EDGELET_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Labels the node registers with, KEY=VALUE[,KEY=VALUE]
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    labels: Vec<String>,
    /// Run the node here until Ctrl-C instead of as a systemd service
    #[arg(long)]
    foreground: bool,
    /// Config file; flags win over it, and are kept in it [default: /etc/edgelet/config.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    typed: Typed,
}

pub fn run(mut arguments: Arguments) -> anyhow::Result<ExitCode> {
    crate::telemetry::init("warn");
    let config_file = arguments.config.clone().unwrap_or_else(|| node_command::CONFIG_FILE.into());
    let file = Typed::read(&config_file, arguments.config.is_some())?;
    arguments.typed.node_label.append(&mut arguments.labels);
    let typed = arguments.typed.over(file);
    let server = arguments.server.or_else(|| typed.server.clone());
    let server = server_url(&server.context("name the server: edgelet join https://SERVER:6443 --token …")?)?;
    let token = arguments.token.or_else(|| typed.token.clone());
    let token = token.context("name the token with --token: `edgelet token create` on the server makes one")?;
    node_command::require_root("edgelet join")?;
    let foreground = arguments.foreground || !install::has_systemd();
    if foreground && !arguments.foreground {
        println!("systemd does not run here: the node runs in the foreground");
    }
    let typed = Typed { server: Some(server.clone()), token: None, ..typed };
    let plan = Plan { server, token, typed, clock: Clock::real() };
    super::block_on(join(plan, config_file, foreground))
}

async fn join(plan: Plan, config_file: PathBuf, foreground: bool) -> anyhow::Result<ExitCode> {
    let begun = monotonic();
    let identity = joined::identity(&node_command::data_directory(&plan.typed));
    let joined = match identity.load()? {
        Some(joined) if joined.server == plan.server && plan.is_for_another(&joined)? => plan.enroll(&identity).await?,
        Some(joined) if joined.server == plan.server => {
            say("this board has joined before; its key and certificate are kept");
            joined
        }
        Some(joined) => bail!(
            "this board belongs to {}: remove {} to join another cluster",
            joined.server,
            identity.directory().display()
        ),
        None => plan.enroll(&identity).await?,
    };
    if foreground {
        return node_command::foreground(plan.typed, identity, joined, plan.clock, true).await;
    }
    install(&plan.typed, &config_file)?;
    let remote = Remote::with_clock(joined::access(&joined), Resolver::default(), plan.clock)?;
    let name = joined.node_name().context("the certificate names no node")?;
    wait_until_ready(&remote, &name, &watch::channel(State::Connected).1).await?;
    say(&format!("joined in {:.1} s; `journalctl -u {UNIT_NAME}` shows the node's log", begun.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

fn say(what: &str) {
    println!("ok    {what}");
}

/// What it takes to become a node.
pub struct Plan {
    pub server: String,
    pub token: String,
    pub typed: Typed,
    pub clock: Clock,
}

impl Plan {
    /// Whether the token was made by another cluster than the one the board belongs to, as after its server was set
    /// up anew.
    fn is_for_another(&self, joined: &Joined) -> anyhow::Result<bool> {
        let Ok(token) = JoinToken::parse(&self.token) else { return Ok(false) };
        Ok(!certificate::bundle(joined.ca_pem.as_bytes())?.iter().any(|authority| token.pins(authority)))
    }

    /// From a token to a certificate; what was achieved before a failure is used again by the next attempt.
    pub async fn enroll(&self, identity: &NodeIdentity) -> anyhow::Result<Joined> {
        let obstacles = check::obstacles();
        if !obstacles.is_empty() {
            bail!("this board cannot run pods yet (`edgelet check` tells more):\n  {}", obstacles.join("\n  "));
        }
        // Before the token is used up: the node could not start.
        let config = self.typed.clone().check()?;
        claim::bridge(&config.bridge)?;
        say("this board can run pods");
        let joining = Joining {
            server: self.server.clone(),
            token: JoinToken::parse(&self.token)?,
            node_name: config.node_name,
            reach: Arc::new(Resolver::default()),
            clock: self.clock.clone(),
        };
        let tell = |step| self.tell(&joining.node_name, step);
        joining.enroll(identity, &tell).await.map_err(|error| self.explain(error))
    }

    fn tell(&self, node: &str, step: Step) {
        match step {
            Step::Trusted => say(&format!("{} is the server the token was made for", self.server)),
            Step::FormerForgotten => say("what this board kept of another cluster is forgotten"),
            Step::ClockAgrees => say("the clock agrees with the server's"),
            Step::ClockCorrected { off, said } => {
                let (off_s, way) = (off.as_secs().abs(), if off.is_negative() { "behind" } else { "ahead of" });
                let off = SignedDuration::from_secs(off_s);
                println!(
                    "warn  this board's clock is {off:#} {way} the server's, which counts ({said}). Install an NTP client: \
                     apt install systemd-timesyncd"
                );
            }
            Step::Certified { until } => say(&format!("node {node} has a certificate until {until}")),
            Step::Informed => say("the server has told the cluster's addresses"),
        }
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let Some(refusal) = error.downcast_ref::<Status>() else { return error };
        match advice(refusal, &self.server) {
            Some(advice) => anyhow::anyhow!("{advice} ({})", super::chain(&error)),
            None => error.context("the server refused"),
        }
    }
}

/// What to do about a failure on the way to the server.
fn advice(error: &Status, server: &str) -> Option<String> {
    let text = error.message.as_str();
    let has = |part: &str| text.contains(part);
    let advice = if has("tls handshake eof") || has("InvalidContentType") || has("corrupt message") {
        format!("the port of {server} does not speak TLS: is it the API's (6443 as a rule)?")
    } else if has("Connection refused") {
        format!("nothing listens at {server}: is `edgelet server` running there, and is the port right?")
    } else if has("timed out") || has("does not answer") || error.code == 504 {
        format!("{server} does not answer: check the address, the cable and the firewall (TCP port 6443 must be open)")
    } else if has("No route to host") || has("Network is unreachable") || has("Network unreachable") {
        format!("there is no way to {server}: check this board's network (`ip route`)")
    } else if has("resolve ") || has("dns error") {
        format!("the name in {server} cannot be resolved: use the server's IP address, or mend DNS")
    } else if time::is_about_dates(text) {
        "the certificates do not fit this board's clock: set it (`date`), or install an NTP client".to_owned()
    } else if has("UnknownIssuer") || has("invalid peer certificate") {
        "the server shows a certificate that the token does not vouch for: check the address, or make a new token \
         with `edgelet token create` on the server"
            .to_owned()
    } else if error.code == 401 {
        "the server does not know this token, or it has expired, been used or been revoked: make another with \
         `edgelet token create` on the server"
            .to_owned()
    } else if error.code == 404 {
        format!("{server} is no edgelet server, or an older one: check the address and the version")
    } else {
        return None;
    };
    Some(advice)
}

/// `board`, `board:6443` and `https://board` all mean the same.
fn server_url(text: &str) -> anyhow::Result<String> {
    let text = text.trim();
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: http::Uri =
        with_scheme.trim_end_matches('/').parse().with_context(|| format!("{text:?} is no address of a server"))?;
    let host = uri.host().filter(|host| !host.is_empty());
    let (Some("https"), Some(host)) = (uri.scheme_str(), host) else {
        bail!("{text:?} is no address of a server: it must look like https://HOST:6443");
    };
    Ok(format!("https://{host}:{}", uri.port_u16().unwrap_or(DEFAULT_PORT)))
}

/// Writes the config file and the unit, and starts the service now and at every boot.
fn install(typed: &Typed, config_file: &Path) -> anyhow::Result<()> {
    let context = |path: &Path| format!("write {}", path.display());
    if let Some(folder) = config_file.parent() {
        std::fs::create_dir_all(folder).with_context(|| context(folder))?;
    }
    std::fs::write(config_file, typed.to_yaml()).with_context(|| context(config_file))?;
    say(&format!("wrote {}", config_file.display()));
    let program = install::placed_program()?;
    place_unit(&unit(&program, config_file), Path::new(PACKAGED_UNIT_FILE), Path::new(UNIT_FILE))?;
    for arguments in [&["daemon-reload"][..], &["enable", UNIT_NAME], &["restart", UNIT_NAME]] {
        let status = Command::new("systemctl").arg("--quiet").args(arguments).status().context("run systemctl")?;
        if !status.success() {
            bail!("systemctl {} failed: see `journalctl -u {UNIT_NAME}`", arguments.join(" "));
        }
    }
    say(&format!("{UNIT_NAME} is enabled and runs"));
    Ok(())
}

/// Where a package brings the same unit, that one: a copy of ours would hide those of later versions.
fn place_unit(unit: &str, packaged: &Path, own: &Path) -> anyhow::Result<()> {
    if std::fs::read_to_string(packaged).is_ok_and(|text| text == unit) {
        return match std::fs::remove_file(own) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", own.display()))
            }
            _ => Ok(()),
        };
    }
    std::fs::write(own, unit).with_context(|| format!("write {}", own.display()))
}

/// The unit for a program and a config file that may lie elsewhere.
fn unit(program: &Path, config_file: &Path) -> String {
    let mut start = format!("ExecStart={} node", program.display());
    if config_file != Path::new(node_command::CONFIG_FILE) {
        start = format!("{start} --config {}", config_file.display());
    }
    let line = |line: &str| if line.starts_with("ExecStart=") { start.clone() } else { line.to_owned() };
    UNIT.lines().map(line).map(|line| line + "\n").collect()
}

/// Watches the Node until it is Ready, and says what is missing meanwhile.
pub async fn wait_until_ready(remote: &Remote, name: &str, state: &watch::Receiver<State>) -> anyhow::Result<()> {
    let ready = async {
        loop {
            if watch_until_ready(remote, name).await? {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    match tokio::time::timeout(READY_TIMEOUT, ready).await {
        Ok(Ok(())) => {
            say(&format!("node {name} is Ready"));
            Ok(())
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let why = match &*state.borrow() {
                State::Failed(error) => error.message.clone(),
                _ => format!("see the node's log, and `kubectl describe node {name}` on the server"),
            };
            bail!("node {name} did not become Ready in {} s: {why}", READY_TIMEOUT.as_secs())
        }
    }
}

/// False when the watch ended, or the server could not be asked, and another look is worth it.
async fn watch_until_ready(remote: &Remote, name: &str) -> anyhow::Result<bool> {
    let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let Ok(mut events) = remote.watch(NODES, "", &options).await else { return Ok(false) };
    while let Some(Ok(event)) = events.next().await {
        let (WatchEvent::Added(item) | WatchEvent::Modified(item)) = event else { continue };
        let node = item.object()?;
        let conditions = node.at(&["status", "conditions"]).and_then(|all| all.as_array());
        let mut conditions = conditions.into_iter().flatten();
        if conditions.any(|one| one["type"] == "Ready" && one["status"] == "True") {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers() {
        let cases = [
            ("board", "https://board:6443"),
            ("https://board/", "https://board:6443"),
            ("192.0.2.1:7443", "https://192.0.2.1:7443"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:6443"),
        ];
        for (text, url) in cases {
            assert_eq!(server_url(text).unwrap(), url);
        }
        for text in ["http://board", "", "https://"] {
            assert!(server_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_unit_that_a_package_brings_is_not_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let (packaged, own) = (folder.path().join("packaged"), folder.path().join("own"));
        place_unit("ours", &packaged, &own).unwrap();
        assert_eq!(std::fs::read_to_string(&own).unwrap(), "ours");
        std::fs::write(&packaged, "another program's").unwrap();
        place_unit("ours", &packaged, &own).unwrap();
        assert!(own.exists());
        std::fs::write(&packaged, "ours").unwrap();
        place_unit("ours", &packaged, &own).unwrap();
        assert!(!own.exists());
        place_unit("ours", &packaged, &own).unwrap();
    }

    #[test]
    fn every_failure_says_what_to_do() {
        let unavailable = |text: &str| Status::unavailable(text);
        let cases = [
            (unavailable("tcp connect error: Connection refused (os error 111)"), "nothing listens at S"),
            (unavailable("client error (Connect): tls handshake eof"), "does not speak TLS"),
            (Status::timeout("operation timed out"), "firewall"),
            (unavailable("No route to host (os error 113)"), "ip route"),
            (unavailable("resolve board: no records"), "DNS"),
            (unavailable("invalid peer certificate: certificate not valid yet: NotValidYet"), "clock"),
            (unavailable("invalid peer certificate: UnknownIssuer"), "edgelet token create"),
            (Status::unauthorized(), "edgelet token create"),
            (Status::new(404, "NotFound", "x"), "no edgelet server"),
        ];
        for (error, part) in cases {
            let advice = advice(&error, "S").unwrap_or_default();
            assert!(advice.contains(part), "{}: {advice}", error.message);
        }
        // The server's own words are advice already.
        assert_eq!(advice(&Status::new(403, "Forbidden", "run `edgelet node forget a`"), "S"), None);
    }

    #[test]
    fn the_unit_runs_this_program_and_lets_pods_live() {
        let text = unit(Path::new("/opt/edgelet"), Path::new("/etc/other.yaml"));
        assert!(text.contains("\nExecStart=/opt/edgelet node --config /etc/other.yaml\n"));
        assert!(text.contains("\nKillMode=process\nDelegate=yes\n"));
        assert!(unit(Path::new("/usr/local/bin/edgelet"), Path::new(node_command::CONFIG_FILE)) == UNIT);
    }

    #[test]
    fn the_config_file_keeps_what_was_typed_but_not_the_token() {
        let typed: Typed = serde_yaml::from_str("server: https://a:6443\ntoken: secret\nnode-label: [a=b]\n").unwrap();
        assert_eq!(typed.to_yaml(), "node-label:\n- a=b\nserver: https://a:6443\n");
    }
}
