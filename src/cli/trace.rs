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
    let pod = arguments.pod.rsplit('/').next().unwrap_or_default();
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
    fn steps_are_shown_with_both_times() {
        let at = |ms: i64| jiff::Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let step = |ms, what: &str| Step { at: at(ms), room: "r".into(), what: what.into() };
        let text = render(&[step(0, "created"), step(2, "bound"), step(12, "started")]);
        assert_eq!(text.lines().last(), Some("12.0 ms   +10.0 ms   r      started"));
    }
}
