//! `edgelet get`: objects as the server's own table, or as YAML, JSON or names.

use super::connect::Connection;
use super::local::{self, Local};
use crate::api::kinds::{KindRef, Kinds};
use crate::api::object::{Object, ObjectExt};
use crate::client::remote::encoded;
use anyhow::{Context, bail};
use clap::ValueEnum;
use futures_util::StreamExt;
use std::process::ExitCode;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

#[derive(clap::Args)]
pub struct Arguments {
    /// RESOURCE, RESOURCE/NAME or RESOURCE[,RESOURCE…], as `pods`, `po`, `deploy/web`
    resource: String,
    /// Names of objects
    names: Vec<String>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    local: Local,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Label selector, `app=web,tier!=db`
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// Field selector, `status.phase=Running`
    #[arg(long, default_value = "")]
    field_selector: String,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Yaml,
    Json,
    Name,
}

/// A resource type as people write it: plural, singular, short name or kind, any with `.group`.
pub fn find_kind(typed: &str) -> anyhow::Result<KindRef> {
    let typed = typed.to_ascii_lowercase();
    let (name, group) = typed.split_once('.').map_or((typed.as_str(), None), |(name, group)| (name, Some(group)));
    let matches = |kind: &&KindRef| {
        let named = kind.plural == name
            || kind.singular == name
            || kind.kind.eq_ignore_ascii_case(name)
            || kind.short_names.iter().any(|short| short == name);
        named && group.is_none_or(|group| kind.group == group) && kind.verbs.iter().any(|verb| verb == "get")
    };
    let kinds = Kinds::default().all();
    kinds.iter().find(matches).cloned().with_context(|| format!("the server doesn't have a resource type \"{typed}\""))
}

/// The REST path of a collection or an object of any kind.
pub fn path(kind: &KindRef, namespace: &str, name: &str) -> String {
    let root = if kind.group.is_empty() { "/api" } else { "/apis" };
    let mut path = format!("{root}/{}", kind.api_version());
    if kind.namespaced && !namespace.is_empty() {
        path = format!("{path}/namespaces/{namespace}");
    }
    path = format!("{path}/{}", kind.plural);
    if name.is_empty() { path } else { format!("{path}/{}", encoded(name)) }
}

/// `TYPE/NAME` or `TYPE NAME…` or `TYPE,TYPE` to pairs; an empty name means all.
pub fn targets(resource: &str, names: &[String]) -> anyhow::Result<Vec<(KindRef, String)>> {
    if let Some((kind, name)) = resource.split_once('/') {
        if !names.iter().all(|name| name.contains('/')) {
            bail!(
                "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form"
            );
        }
        let mut found = vec![(find_kind(kind)?, name.to_owned())];
        for pair in names {
            found.extend(targets(pair, &[])?);
        }
        return Ok(found);
    }
    let mut found = Vec::new();
    for kind in resource.split(',') {
        let kind = find_kind(kind)?;
        if names.is_empty() {
            found.push((kind, String::new()));
        } else {
            found.extend(names.iter().map(|name| (kind.clone(), name.clone())));
        }
    }
    Ok(found)
}

pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.local.local {
        return run_local(&arguments).await;
    }
    let remote = arguments.connection.open()?;
    let namespace = if arguments.all_namespaces { String::new() } else { arguments.connection.namespace(&remote) };
    let targets = targets(&arguments.resource, &arguments.names)?;
    let many = targets.len() > 1;
    if many && arguments.watch {
        bail!("--watch takes one resource type or one object");
    }
    let mut above = false;
    for (kind, name) in &targets {
        let query = query(&arguments, name);
        let path = format!("{}{query}", path(kind, &namespace, name));
        match arguments.output {
            Output::Table | Output::Wide => {
                let body = remote.raw_as(&path, TABLE).await?;
                let table: Object = serde_json::from_slice(&body)?;
                let widths = print_table(&table, &arguments, kind, many, above);
                above |= !widths.is_empty();
                if arguments.watch {
                    watch(&remote, kind, &namespace, name, &arguments, &table, widths).await?;
                }
            }
            output => {
                let body = remote.raw_as(&path, "application/json").await?;
                print_object(serde_json::from_slice(&body)?, kind, output)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The same from this board's replica.
async fn run_local(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.watch || !arguments.field_selector.is_empty() {
        bail!("--watch and --field-selector need the server");
    }
    let asked = arguments.connection.namespace.as_deref().unwrap_or("default");
    let namespace = if arguments.all_namespaces { "" } else { asked };
    let targets = targets(&arguments.resource, &arguments.names)?;
    let many = targets.len() > 1;
    let mut above = false;
    for (kind, name) in &targets {
        let mut objects = arguments.local.objects(kind, namespace, name, &arguments.selector).await?;
        match arguments.output {
            Output::Table | Output::Wide => {
                above |= !print_table(&local::table(kind, objects), arguments, kind, many, above).is_empty();
            }
            output if !name.is_empty() && objects.len() == 1 => print_object(objects.remove(0), kind, output)?,
            output => {
                let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects, "metadata": {}});
                print_object(list, kind, output)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn query(arguments: &Arguments, name: &str) -> String {
    let mut pairs = Vec::new();
    if name.is_empty() {
        for (key, value) in [("labelSelector", &arguments.selector), ("fieldSelector", &arguments.field_selector)] {
            if !value.is_empty() {
                pairs.push(format!("{key}={}", encoded(value)));
            }
        }
    }
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

async fn watch(
    remote: &crate::client::Remote,
    kind: &KindRef,
    namespace: &str,
    name: &str,
    arguments: &Arguments,
    table: &Object,
    mut widths: Vec<usize>,
) -> anyhow::Result<()> {
    let mut pairs = vec!["watch=true".to_owned(), format!("resourceVersion={}", table.resource_version())];
    let mut fields = arguments.field_selector.clone();
    if !name.is_empty() {
        fields = format!("metadata.name={name}");
    }
    for (key, value) in [("labelSelector", &arguments.selector), ("fieldSelector", &fields)] {
        if !value.is_empty() {
            pairs.push(format!("{key}={}", encoded(value)));
        }
    }
    let path = format!("{}?{}", path(kind, namespace, ""), pairs.join("&"));
    let mut events = remote.lines_as(&path, TABLE).await?;
    while let Some(line) = events.next().await {
        let event: Object = serde_json::from_slice(&line?)?;
        if event.str_at(&["type"]) == "ERROR" {
            bail!("{}", event.str_at(&["object", "message"]));
        }
        let rows = event.at(&["object", "rows"]).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
        let with_head = widths.is_empty();
        print!("{}", aligned_to(&lines(table, rows, arguments, kind, false, with_head), &mut widths));
    }
    Ok(())
}

/// The columns shown: priority 0, or all with `-o wide`.
fn wanted(table: &Object, arguments: &Arguments) -> Vec<(usize, String)> {
    let columns = table.at(&["columnDefinitions"]).and_then(Object::as_array);
    let wide = arguments.output == Output::Wide;
    let shown = |column: &Object| wide || column.int_at(&["priority"]).unwrap_or(0) == 0;
    let columns = columns.map(Vec::as_slice).unwrap_or_default().iter().enumerate();
    columns
        .filter(|(_, column)| shown(column))
        .map(|(at, column)| (at, column.str_at(&["name"]).to_uppercase()))
        .collect()
}

fn cells(row: &Object, wanted: &[(usize, String)]) -> Vec<String> {
    let cells = row.at(&["cells"]).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |value: Option<&Object>| match value {
        Some(Object::String(text)) => text.clone(),
        None | Some(Object::Null) => "<none>".to_owned(),
        Some(other) => other.to_string(),
    };
    wanted.iter().map(|(at, _)| text(cells.get(*at))).collect()
}

/// The widths of the columns; none if there was nothing to print. Stands apart from a table above it.
fn print_table(table: &Object, arguments: &Arguments, kind: &KindRef, many: bool, above: bool) -> Vec<usize> {
    let mut widths = Vec::new();
    let rows = table.at(&["rows"]).and_then(Object::as_array).map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() && !many {
        if kind.namespaced && !arguments.all_namespaces {
            let namespace = arguments.connection.namespace.as_deref().unwrap_or("default");
            eprintln!("No resources found in {namespace} namespace.");
        } else {
            eprintln!("No resources found");
        }
        return widths;
    }
    let text = aligned_to(&lines(table, rows, arguments, kind, many, true), &mut widths);
    print!("{}{text}", if above && !text.is_empty() { "\n" } else { "" });
    widths
}

/// Rows as they are shown, below the names of the columns if these are wanted.
fn lines(
    table: &Object,
    rows: &[Object],
    arguments: &Arguments,
    kind: &KindRef,
    many: bool,
    with_head: bool,
) -> Vec<Vec<String>> {
    let wanted = wanted(table, arguments);
    let with_namespace = arguments.all_namespaces && kind.namespaced;
    let mut lines: Vec<Vec<String>> = Vec::new();
    if with_head && !rows.is_empty() {
        let names = wanted.iter().map(|(_, name)| name.clone());
        lines.push(with_namespace.then(|| "NAMESPACE".to_owned()).into_iter().chain(names).collect());
    }
    for row in rows {
        let mut line = cells(row, &wanted);
        if with_namespace {
            line.insert(0, row.str_at(&["object", "metadata", "namespace"]).to_owned());
        }
        if many && let Some(name) = line.get_mut(usize::from(with_namespace)) {
            *name = format!("{}/{name}", qualified(kind));
        }
        lines.push(line);
    }
    lines
}

/// `deployment.apps`, or `pod` in the core group.
pub fn qualified(kind: &KindRef) -> String {
    if kind.group.is_empty() { kind.singular.to_string() } else { format!("{}.{}", kind.singular, kind.group) }
}

/// Columns padded to their widest cell, three spaces apart; no spaces at the ends of lines.
pub fn aligned(lines: &[Vec<String>]) -> String {
    aligned_to(lines, &mut Vec::new())
}

/// The same below lines whose columns have these widths, which grow where they must.
fn aligned_to(lines: &[Vec<String>], widths: &mut Vec<usize>) -> String {
    for line in lines {
        widths.resize(widths.len().max(line.len()), 0);
        widths.iter_mut().zip(line).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    let mut text = String::new();
    for line in lines {
        let padded: Vec<String> =
            line.iter().zip(widths.iter()).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text.push_str(padded.join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn print_object(mut object: Object, kind: &KindRef, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Name => {
            let one = std::slice::from_ref(&object);
            let items = object.at(&["items"]).and_then(Object::as_array).map_or(one, Vec::as_slice);
            items.iter().for_each(|item| println!("{}/{}", qualified(kind), item.name()));
        }
        Output::Json => println!("{}", serde_json::to_string_pretty(&object)?),
        _ => {
            // As kubectl shows it: nobody reads managed fields.
            object.unset(&["metadata", "managedFields"]);
            print!("{}", serde_yaml::to_string(&object)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_types_are_found_by_every_name_they_have() {
        for typed in ["pods", "pod", "po", "Pod"] {
            assert_eq!(find_kind(typed).unwrap().plural, "pods");
        }
        assert_eq!(find_kind("deploy").unwrap().group, "apps");
        assert_eq!(find_kind("events.events.k8s.io").unwrap().group, "events.k8s.io");
        let error = find_kind("nothing").err().unwrap().to_string();
        assert_eq!(error, "the server doesn't have a resource type \"nothing\"");
    }

    #[test]
    fn targets_take_both_forms() {
        let names = |resource: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            targets(resource, &names).map(|found| {
                found.into_iter().map(|(kind, name)| format!("{}/{name}", kind.plural)).collect::<Vec<_>>()
            })
        };
        assert_eq!(names("po,svc", &[]).unwrap(), ["pods/", "services/"]);
        assert_eq!(names("po", &["a", "b"]).unwrap(), ["pods/a", "pods/b"]);
        assert_eq!(names("po/a", &["svc/b"]).unwrap(), ["pods/a", "services/b"]);
        assert!(names("po/a", &["b"]).is_err());
    }

    #[test]
    fn tables_are_aligned_without_trailing_spaces() {
        let lines = [vec!["NAME".to_owned(), "A".to_owned()], vec!["x".to_owned(), String::new()]];
        assert_eq!(aligned(&lines), "NAME   A\nx\n");
    }

    /// It printed rows without a head, without namespaces and in no columns.
    #[test]
    fn what_a_watch_prints_stands_below_the_columns() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let mut widths = Vec::new();
        assert_eq!(aligned_to(&[row(["NAME", "AGE"]), row(["web-1", "5s"])], &mut widths), "NAME    AGE\nweb-1   5s\n");
        assert_eq!(aligned_to(&[row(["db", "1s"])], &mut widths), "db      1s\n");
        assert_eq!(aligned_to(&[row(["longer-name", "1s"])], &mut widths), "longer-name   1s\n");
        assert_eq!(widths, [11, 3]);
    }
}
