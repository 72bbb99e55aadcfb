//! `edgelet token`: tokens that boards join with. A token is shown once, when it is made.

use super::connect::Connection;
use super::get::aligned;
use crate::api::object::{Object, ObjectExt};
use crate::client::{DeleteOptions, ENDPOINTS, ListOptions, Remote, SECRETS};
use crate::clock::Clock;
use crate::pki::bootstrap::{self, BootstrapToken, SECRET_TYPE, USES_LIMIT};
use crate::pki::certificate::{bundle, key_hash};
use crate::pki::join_token::JoinToken;
use anyhow::{Context, bail};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a token and print it
    Create(Create),
    /// List the tokens that exist, without their secrets
    List(List),
    /// Make tokens useless
    Revoke(Revoke),
}

#[derive(clap::Args)]
struct Create {
    /// How long the token is good: 30m, 24h, 7d; 0 = until it is revoked
    #[arg(long, default_value = "24h", value_name = "TIME")]
    ttl: String,
    /// How many nodes may join with it [default: any number]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(USES_LIMIT)))]
    uses: Option<u32>,
    /// The only node that may join with it
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Labels of the nodes that join with it, KEY=VALUE
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    labels: Vec<String>,
    /// What it is for
    #[arg(long, default_value = "", value_name = "TEXT")]
    description: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args)]
struct Revoke {
    /// Ids of tokens, or whole tokens
    #[arg(required = true)]
    tokens: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Create(create) => create.run().await?,
        Command::List(list) => list.run().await?,
        Command::Revoke(revoke) => revoke.run().await?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let lifetime = lifetime(&self.ttl)?;
        let remote = self.connection.open()?;
        let pem = remote.raw(Method::GET, "/cacerts", None).await.context("ask the server for its authority")?;
        let current = bundle(&pem)?.into_iter().next().context("the server sent no authority")?;
        let token = JoinToken::generate(key_hash(&current).context("the server's authority is unreadable")?)?;
        let record = BootstrapToken {
            expires: lifetime.map(|lifetime| Clock::real().now() + lifetime),
            description: self.description.clone(),
            uses: self.uses,
            node_name: self.node_name.clone().unwrap_or_default(),
            node_labels: labels(&self.labels)?,
            ..BootstrapToken::for_nodes(&token.id, token.secret())
        };
        remote.create(SECRETS, bootstrap::NAMESPACE, record.object()).await.context("store the token")?;
        println!("{}", token.text());
        let server = advertised(&remote).await.unwrap_or_else(|| remote.access().server.clone());
        eprintln!("On the board: edgelet join {server} --token TOKEN");
        Ok(())
    }
}

/// Where boards find the server: not the loopback address that the admin's kubeconfig names.
async fn advertised(remote: &Remote) -> Option<String> {
    let endpoints = remote.get(ENDPOINTS, "default", "kubernetes").await.ok()?.object().ok()?;
    let subset = endpoints.at(&["subsets"])?.get(0)?;
    let ip = subset.at(&["addresses"])?.get(0)?.str_at(&["ip"]).to_owned();
    let port = subset.at(&["ports"])?.get(0)?.int_at(&["port"])?;
    Some(format!("https://{ip}:{port}"))
}

/// `None`: for ever.
fn lifetime(text: &str) -> anyhow::Result<Option<SignedDuration>> {
    if text == "0" {
        return Ok(None);
    }
    let wrong = || format!("--ttl {text:?}: give a number and s, m, h or d, such as 24h");
    let (number, unit_s) = match text.char_indices().last().with_context(wrong)? {
        (at, 's') => (&text[..at], 1),
        (at, 'm') => (&text[..at], 60),
        (at, 'h') => (&text[..at], 3600),
        (at, 'd') => (&text[..at], 24 * 3600),
        _ => bail!(wrong()),
    };
    let number: u32 = number.parse().ok().with_context(wrong)?;
    if number == 0 {
        bail!(wrong());
    }
    Ok(Some(SignedDuration::from_secs(i64::from(number) * unit_s)))
}

fn labels(typed: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    use crate::api::validation::name;
    let mut labels = BTreeMap::new();
    for label in typed {
        let (key, value) = label.split_once('=').with_context(|| format!("--labels {label:?}: must be KEY=VALUE"))?;
        if let Some(problem) = name::qualified(key).into_iter().chain(name::label_value(value)).next() {
            bail!("--labels {label:?}: {problem}");
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.connection.open()?;
        let options = ListOptions { field_selector: format!("type={SECRET_TYPE}"), ..ListOptions::default() };
        let listed = remote.list(SECRETS, bootstrap::NAMESPACE, &options).await?;
        let tokens: Vec<Object> = listed.items.iter().map(|item| item.object()).collect::<Result<_, _>>()?;
        print!("{}", render(&tokens, Clock::real().now()));
        Ok(())
    }
}

fn render(secrets: &[Object], now: Timestamp) -> String {
    let mut lines =
        vec![["ID", "EXPIRES IN", "USES LEFT", "NODE", "LABELS", "JOINED", "DESCRIPTION"].map(str::to_owned).to_vec()];
    for secret in secrets {
        let Ok(token) = BootstrapToken::of(secret) else { continue };
        let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let labels: Vec<String> = token.node_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let joined: Vec<&str> = token.used_by.iter().map(|one| one.node.as_str()).collect();
        lines.push(vec![
            token.id.clone(),
            token.expires.map_or("never".to_owned(), |at| left(at, now)),
            token.uses_left().map_or("any".to_owned(), |left| left.to_string()),
            or_none(token.node_name.clone()),
            or_none(labels.join(",")),
            or_none(joined.join(",")),
            or_none(token.description.clone()),
        ]);
    }
    aligned(&lines)
}

fn left(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.duration_since(now).as_secs();
    match seconds {
        ..1 => "expired".to_owned(),
        1..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

impl Revoke {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.connection.open()?;
        for typed in &self.tokens {
            let id = JoinToken::parse(typed).map_or_else(|_| typed.clone(), |token| token.id);
            let name = bootstrap::secret_name(&id);
            let deleted = remote.delete(SECRETS, bootstrap::NAMESPACE, &name, &DeleteOptions::default()).await;
            match deleted {
                Err(error) if error.is_not_found() => bail!("there is no token {id:?}: see `edgelet token list`"),
                done => done.with_context(|| format!("revoke token {id}"))?,
            }
            println!("token {id} revoked");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        let cases =
            [("0", Some(None)), ("30m", Some(Some(1800))), ("7d", Some(Some(604_800))), ("", None), ("h", None)];
        for (text, expected) in cases {
            let got = lifetime(text).ok().map(|lifetime| lifetime.map(|lifetime| lifetime.as_secs()));
            assert_eq!(got, expected, "{text}");
        }
        assert!(lifetime("0h").is_err() && lifetime("5x").is_err());
    }

    #[test]
    fn tokens_are_listed_without_their_secrets() {
        let token = BootstrapToken {
            uses: Some(3),
            expires: Some("2026-11-23T05:00:00Z".parse().unwrap()),
            ..BootstrapToken::for_nodes("abcdef", "0123456789abcdef")
        };
        let text = render(&[token.object()], "2026-11-23T00:00:00Z".parse().unwrap());
        assert_eq!(text.lines().nth(1), Some("abcdef   5h           3           -      -        -        -"));
        assert!(!text.contains("0123456789abcdef"));
    }

    #[test]
    fn labels_are_checked() {
        assert_eq!(labels(&["a=b".into()]).unwrap()["a"], "b");
        assert!(labels(&["a".into()]).is_err() && labels(&["a=b c".into()]).is_err());
    }
}
