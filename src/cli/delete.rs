//! `edgelet delete`: objects by name or by manifest, in the reverse order of the manifest.

use super::connect::Connection;
use super::{get, manifest};
use crate::api::kinds::{KindRef, Kinds};
use crate::api::object::{Object, ObjectExt};
use crate::client::Remote;
use anyhow::{Context, bail};
use futures_util::StreamExt;
use http::Method;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Arguments {
    /// RESOURCE or RESOURCE/NAME
    resource: Option<String>,
    /// Names of objects
    names: Vec<String>,
    /// Manifests: files, folders or `-`
    #[arg(short = 'f', long = "filename", conflicts_with = "resource")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    /// Seconds pods have to end
    #[arg(long)]
    grace_period: Option<i64>,
    /// Do not wait until the objects are gone
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 300)]
    timeout_s: u64,
    /// Missing objects are no error
    #[arg(long)]
    ignore_not_found: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let mut targets: Vec<(KindRef, String, String)> = Vec::new();
    if let Some(resource) = &arguments.resource {
        for (kind, name) in get::targets(resource, &arguments.names)? {
            if name.is_empty() {
                bail!("name what to delete: {}/NAME", kind.plural);
            }
            targets.push((kind, namespace.clone(), name));
        }
    } else if arguments.files.is_empty() {
        bail!("name what to delete, or give manifests with -f");
    } else {
        for object in manifest::read(&arguments.files)?.iter().rev() {
            targets.push(of_object(object, &namespace)?);
        }
    }
    let mut code = ExitCode::SUCCESS;
    for (kind, namespace, name) in targets {
        // What is missing must not keep the others from being deleted.
        if let Err(error) = delete(&remote, &arguments, &kind, &namespace, &name).await {
            eprintln!("error: delete {}/{name}: {}", get::qualified(&kind), super::chain(&error));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// The kind, namespace and name of a manifest's object.
pub fn of_object(object: &Object, namespace: &str) -> anyhow::Result<(KindRef, String, String)> {
    let kind = Kinds::default().kind(object.api_version(), object.kind()).with_context(|| {
        format!("no matches for kind \"{}\" in version \"{}\"", object.kind(), object.api_version())
    })?;
    let namespace = if object.namespace().is_empty() { namespace } else { object.namespace() };
    Ok((kind, namespace.to_owned(), object.name().to_owned()))
}

async fn delete(
    remote: &Remote,
    arguments: &Arguments,
    kind: &KindRef,
    namespace: &str,
    name: &str,
) -> anyhow::Result<()> {
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    if let Some(grace_s) = arguments.grace_period {
        options["gracePeriodSeconds"] = json!(grace_s);
    }
    let answer = match remote.raw(Method::DELETE, &get::path(kind, namespace, name), Some(options)).await {
        Err(status) if status.is_not_found() && arguments.ignore_not_found => return Ok(()),
        answer => answer?,
    };
    println!("{} \"{name}\" deleted", get::qualified(kind));
    let answer: Object = serde_json::from_slice(&answer)?;
    // A `Status` means it is gone; the object itself means it has still to end.
    if arguments.no_wait || answer.kind() == "Status" {
        return Ok(());
    }
    let wait = gone(remote, kind, namespace, name, answer.uid());
    let limit = Duration::from_secs(arguments.timeout_s);
    tokio::time::timeout(limit, wait)
        .await
        .with_context(|| format!("{} {name} still exists after {} s", kind.kind, limit.as_secs()))?
}

/// Waits, by a watch, until the object is gone or another of the same name is there.
async fn gone(remote: &Remote, kind: &KindRef, namespace: &str, name: &str, uid: &str) -> anyhow::Result<()> {
    loop {
        let object: Object = match remote.raw(Method::GET, &get::path(kind, namespace, name), None).await {
            Err(status) if status.is_not_found() => return Ok(()),
            body => serde_json::from_slice(&body?)?,
        };
        if object.uid() != uid {
            return Ok(());
        }
        let query =
            format!("?watch=true&fieldSelector=metadata.name%3D{name}&resourceVersion={}", object.resource_version());
        let path = format!("{}{query}", get::path(kind, namespace, ""));
        let mut lines = remote.lines_as(&path, "application/json").await?;
        while let Some(line) = lines.next().await {
            let event: Object = serde_json::from_slice(&line?)?;
            match event.str_at(&["type"]) {
                "DELETED" => return Ok(()),
                "ERROR" => break,
                _ => {}
            }
        }
    }
}
