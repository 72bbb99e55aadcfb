use super::*;
use crate::api::object::ObjectExt;

/// One line per resource and subresource, as `tests/data/discovery.txt` has them.
fn discovery_lines(row: &Kind) -> Vec<String> {
    let scope = if row.namespaced { "Namespaced" } else { "Cluster" };
    let join = |texts: &[Text]| texts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(" ");
    let (verbs, short, categories) = (join(&row.verbs), join(&row.short_names), join(&row.categories));
    let mut lines = vec![format!("{}|{}|{}|{scope}|{verbs}|{short}|{categories}|", row.plural, row.singular, row.kind)];
    for sub in row.subresources.iter() {
        let version = format!("{}/{}", sub.group, sub.version);
        let version = version.trim_matches('/');
        lines.push(format!("{}/{}||{}|{scope}|{}|||{version}", row.plural, sub.name, sub.kind, join(&sub.verbs)));
    }
    lines
}

#[test]
fn discovery_equals_the_recorded_one() {
    let mut ours = Vec::new();
    for row in builtin() {
        let heading = format!("# {}", row.api_version());
        if !ours.contains(&heading) {
            ours.push(heading);
        }
        ours.extend(discovery_lines(row));
    }
    let recorded = include_str!("../../../tests/data/discovery.txt");
    let recorded: Vec<&str> = recorded.lines().filter(|line| !line.starts_with("##")).collect();
    for (ours, recorded) in ours.iter().zip(&recorded) {
        assert_eq!(ours, recorded);
    }
    assert_eq!(ours.len(), recorded.len());
}

#[test]
fn a_row_is_found_by_resource_and_by_kind() {
    let kinds = Kinds::default();
    for row in builtin() {
        let by_resource = kinds.resource(&row.group, &row.version, &row.plural).expect("served");
        let by_kind = kinds.kind(&row.api_version(), &row.kind).expect("served");
        assert_eq!((&by_resource.kind, &by_kind.plural), (&row.kind, &row.plural));
    }
    assert!(kinds.resource("", "v1", "deployments").is_none());
    assert!(kinds.kind("apps/v1", "Pod").is_none());
}

#[test]
fn versions_of_a_kind_share_a_store_prefix_only_when_one_converts() {
    for (place, row) in builtin().iter().enumerate() {
        let stores_itself = row.storage_version == row.api_version();
        assert_eq!(stores_itself, row.convert.is_none(), "{} {}", row.api_version(), row.kind);
        let mut others = builtin()[..place].iter().filter(|other| other.storage_prefix == row.storage_prefix);
        assert!(others.all(|other| row.storage_version == other.storage_version), "{}", row.storage_prefix);
    }
}

#[test]
fn columns_equal_the_recorded_ones() {
    let recorded = include_str!("../../../tests/data/columns.txt");
    for line in recorded.lines().filter(|line| !line.starts_with("##")) {
        let (resource, columns) = line.split_once(": ").expect("group/version/resource: columns");
        let parts: Vec<&str> = resource.split('/').collect();
        let group = if parts[0] == "core" { "" } else { parts[0] };
        let row = Kinds::default().resource(group, parts[1], parts[2]).expect("served");
        let shown = |column: &Column| {
            let wide = if column.priority == 1 { "(wide)" } else { "" };
            format!("{}{wide}", column.name.to_uppercase())
        };
        let ours: Vec<String> = row.columns.iter().map(shown).collect();
        assert_eq!(ours.join(" | "), columns, "{resource}");
    }
}

#[test]
fn every_printer_fills_its_columns() {
    let (empty, now) = (serde_json::json!({}), Timestamp::UNIX_EPOCH);
    for row in builtin() {
        assert_eq!((row.cells)(&empty, now).len(), row.columns.len(), "{} {}", row.api_version(), row.kind);
    }
}

/// What the registry does to a new object: defaults from data, hooks, validation.
fn created(mut object: Object) -> Result<Object, crate::api::status::Status> {
    use crate::api::status::{Status, Subject};
    use crate::api::{scheme, validation};

    let kind = Kinds::default().kind(object.api_version(), object.kind()).expect("a built-in kind");
    let schema = scheme::find(&kind.schema).expect("built-in kinds are in the scheme");
    scheme::prune(schema, &mut object);
    scheme::apply_defaults(schema, &mut object);
    kind.strategy.default(&mut object);
    if kind.namespaced && object.namespace().is_empty() {
        object.set(&["metadata", "namespace"], "g4".into());
    }
    object.set(&["metadata", "uid"], "UID".into());
    let now = "2026-11-23T01:14:06Z".parse().expect("a time");
    let context = HookContext { now, user: "admin", subresource: "" };
    kind.strategy.prepare_create(&context, &mut object);
    let mut errors = validation::metadata(&kind, &object);
    errors.extend(kind.strategy.validate(&context, &object));
    if errors.is_empty() {
        return Ok(object);
    }
    Err(Status::invalid(Subject { group: &kind.group, kind: &kind.kind, name: object.name() }, errors))
}

#[test]
fn created_objects_equal_the_recorded_ones() {
    #[derive(serde::Deserialize)]
    struct Recorded {
        recorded: String,
        sent: Object,
        answered: Object,
    }
    let cases: Vec<Recorded> =
        serde_json::from_str(include_str!("../../../tests/data/kinds/created.json")).expect("test data");
    let mut wrong = Vec::new();
    for case in cases {
        let mut object = created(case.sent).unwrap_or_else(|status| panic!("{}: {status}", case.recorded));
        for field in ["uid", "namespace"] {
            object.unset(&["metadata", field]);
        }
        if object != case.answered {
            wrong.push(format!("{}:\n  ours     {object}\n  recorded {}", case.recorded, case.answered));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn invalid_objects_are_answered_as_recorded() {
    #[derive(serde::Deserialize)]
    struct Recorded {
        recorded: String,
        sent: Object,
        message: String,
        causes: Vec<crate::api::status::Cause>,
    }
    let cases: Vec<Recorded> =
        serde_json::from_str(include_str!("../../../tests/data/kinds/invalid.json")).expect("test data");
    for case in cases {
        let status = created(case.sent).expect_err(&case.recorded);
        assert_eq!(status.message, case.message, "{}", case.recorded);
        assert_eq!(status.details.map(|details| details.causes), Some(case.causes), "{}", case.recorded);
    }
}
