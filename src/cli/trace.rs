//! `edgelet trace pod/NAME`: a pod's way through the workflow, from what the components recorded.

use super::connect::Connection;
use super::get::aligned;
use crate::telemetry::Step;
use anyhow::bail;
use http::Method;
use jiff::Unit;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// pod/NAME or NAME
    pod: String,
    #[command(flatten)]
    connection: Connection,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let remote = arguments.connection.open()?;
    let namespace = arguments.connection.namespace(&remote);
    let pod = pod_name(&arguments.pod)?;
    let body = remote.raw(Method::GET, &format!("/edgelet/v1/trace/{namespace}/{pod}"), None).await?;
    if arguments.json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(ExitCode::SUCCESS);
    }
    let Answer { steps } = serde_json::from_slice(&body)?;
    if steps.is_empty() {
        bail!(
            "nothing is recorded of pod {namespace}/{pod}: it is older than this server's start, or too many came after it"
        );
    }
    print!("{}", render(&steps));
    Ok(ExitCode::SUCCESS)
}

/// Steps are recorded of pods alone.
fn pod_name(text: &str) -> anyhow::Result<&str> {
    match text.split_once('/') {
        None => Ok(text),
        Some(("pod" | "pods" | "po", name)) if !name.is_empty() => Ok(name),
        Some((kind, _)) => bail!("trace takes pods, not {kind:?}: `edgelet get pods` lists them, then trace pod/NAME"),
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    steps: Vec<Step>,
}

/// One line per step: milliseconds since the first, since the one before, who and what.
pub fn render(steps: &[Step]) -> String {
    let mut lines = vec![["AT", "STEP", "ROOM", "WHAT"].map(str::to_owned).to_vec()];
    let mut before = None;
    let first = steps.first().map(|step| step.at);
    for step in steps {
        let since = |then: Option<jiff::Timestamp>| {
            let then = then.unwrap_or(step.at);
            (step.at - then).total(Unit::Microsecond).unwrap_or(0.0) / 1000.0
        };
        lines.push(vec![
            format!("{:.1} ms", since(first)),
            format!("+{:.1} ms", since(before)),
            step.room.clone(),
            step.what.clone(),
        ]);
        before = Some(step.at);
    }
    aligned(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_are_traced() {
        assert_eq!((pod_name("pod/a").unwrap(), pod_name("a").unwrap()), ("a", "a"));
        let refused = pod_name("deployment/web").unwrap_err().to_string();
        assert!(refused.starts_with("trace takes pods, not \"deployment\""), "{refused}");
    }

    #[test]
    fn steps_are_shown_with_both_times() {
        let at = |ms: i64| jiff::Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let step = |ms, what: &str| -> Step {
            serde_json::from_value(serde_json::json!({"at": at(ms), "room": "r", "what": what})).unwrap()
        };
        let text = render(&[step(0, "created"), step(2, "bound"), step(12, "started")]);
        assert_eq!(text.lines().last(), Some("12.0 ms   +10.0 ms   r      started"));
    }
}
