//! `edgelet certificate`: how long certificates last, and their rotation.

use super::connect::Connection;
use super::get::aligned;
use crate::api::object::{Object, ObjectExt};
use crate::client::Remote;
use crate::pki::certificate::{bundle, validity};
use anyhow::{Context, bail};
use http::Method;
use jiff::Timestamp;
use std::process::ExitCode;

const AUTHORITIES: &str = "/edgelet/v1/authorities";
/// Digits of a key's hash that people need.
const SHORT: usize = 16;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show when certificates end, and which authorities count
    Check(Check),
    /// Give the server a new certificate and key now
    Rotate(Rotate),
    /// Make a new authority; the old one counts beside it until --finish
    RotateCa(RotateCa),
}

#[derive(clap::Args)]
struct Check {
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args)]
struct Rotate {
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args)]
struct RotateCa {
    /// End the rotation: the old authority counts no longer; boards that were away still come back with their key
    #[arg(long)]
    finish: bool,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Check(check) => {
            let remote = check.connection.open()?;
            print!("{}", render(&ask(&remote, Method::GET, AUTHORITIES).await?, own_end(&remote)));
        }
        Command::Rotate(rotate) => {
            let remote = rotate.connection.open()?;
            let answer = ask(&remote, Method::POST, "/edgelet/v1/certificates/rotate").await?;
            println!(
                "the server has a new certificate, good until {}",
                answer.str_at(&["serverCertificate", "notAfter"])
            );
        }
        Command::RotateCa(rotate) => rotate.run().await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(remote: &Remote, method: Method, path: &str) -> anyhow::Result<Object> {
    let body = remote.raw(method, path, None).await.with_context(|| format!("ask the server for {path}"))?;
    Ok(serde_json::from_slice(&body)?)
}

/// When the certificate in the kubeconfig ends.
fn own_end(remote: &Remote) -> Option<Timestamp> {
    let certificates = bundle(&remote.access().client_certificate_pem).ok()?;
    validity(certificates.first()?).map(|(_, to)| to)
}

fn short(key: &str) -> String {
    key.chars().take(SHORT).collect()
}

fn former(answer: &Object) -> &[Object] {
    answer.at(&["former"]).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn counts(authority: &Object) -> bool {
    authority.at(&["trusted"]) == Some(&Object::Bool(true))
}

fn render(answer: &Object, own_end: Option<Timestamp>) -> String {
    let line = |what: &str, ends: &str, note: String| vec![what.to_owned(), ends.to_owned(), note];
    let mut lines = vec![line("CERTIFICATE", "ENDS", "NOTE".to_owned())];
    let current = format!("current, key {}", short(answer.str_at(&["current", "key"])));
    lines.push(line("authority", answer.str_at(&["current", "notAfter"]), current));
    for one in former(answer) {
        let state = if counts(one) { "still counts" } else { "counts no longer" };
        let note = format!("{state}, replaced {}, key {}", one.str_at(&["since"]), short(one.str_at(&["key"])));
        lines.push(line("former authority", one.str_at(&["notAfter"]), note));
    }
    let server = answer.str_at(&["serverCertificate", "notAfter"]);
    lines.push(line("server", server, "renewed by itself in its last third".to_owned()));
    if let Some(end) = own_end {
        lines.push(line("this kubeconfig", &crate::clock::rfc3339(end), String::new()));
    }
    aligned(&lines)
}

impl RotateCa {
    /// Asked for again after a crash it goes on where it was: the key it starts from is part of the question.
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.connection.open()?;
        let before = ask(&remote, Method::GET, AUTHORITIES).await?;
        let under_way = former(&before).iter().find(|one| counts(one));
        if self.finish {
            if under_way.is_none() {
                bail!("no rotation is under way: begin one with `edgelet certificate rotate-ca`");
            }
            ask(&remote, Method::POST, "/edgelet/v1/authorities/finish").await?;
            println!("the former authority counts no longer");
            return Ok(());
        }
        if let Some(former) = under_way {
            println!("a rotation is under way since {}; both authorities count", former.str_at(&["since"]));
        } else {
            let from = before.str_at(&["current", "key"]);
            let after = ask(&remote, Method::POST, &format!("{AUTHORITIES}/rotate?from={from}")).await?;
            println!(
                "the authority has a new key, {}; the old one counts beside it",
                short(after.str_at(&["current", "key"]))
            );
        }
        println!(
            "when every node and kubeconfig has a certificate of the new one: edgelet certificate rotate-ca --finish"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_check_shows() {
        let answer = json!({
            "current": {"key": "0123456789abcdef0123", "notAfter": "2036-11-20T00:00:00Z"},
            "former": [{"key": "f".repeat(64), "notAfter": "2035-01-01T00:00:00Z", "since": "2026-11-23T00:00:00Z",
                "trusted": true}],
            "serverCertificate": {"notAfter": "2027-11-23T00:00:00Z"},
        });
        let text = render(&answer, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "authority          2036-11-20T00:00:00Z   current, key 0123456789abcdef");
        assert!(lines[2].contains("still counts, replaced 2026-11-23T00:00:00Z"), "{text}");
        assert_eq!(lines.len(), 4);
    }
}
