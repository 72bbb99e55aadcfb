//! Paths of resources to verbs of the registry. The row of the table says which exist.

use super::auth::rbac::Attributes;
use super::auth::{escalation, refusal, reviews};
use super::negotiate::{self, Shapes};
use super::present::{self, Presenter};
use super::query::{self, WriteOptions};
use super::respond::{self, Style};
use super::{ApiServer, Call, body, content_type, streaming, watch};
use crate::api::kinds::{Kind, KindRef, Subresource};
use crate::api::object::{Object, ObjectExt};
use crate::api::selector::FieldSelector;
use crate::api::status::{FieldError, Result, Status, Subject};
use crate::registry::{Context, Decoded, DeleteOptions, Deleted, PatchType, Written, returns_deleted_object};
use crate::store::Entry;
use axum::body::Body;
use axum::response::Response;
use http::header::USER_AGENT;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

const NOT_ALLOWED: &str = "the server does not allow this method on the requested resource";

pub async fn answer(server: &ApiServer, call: Call, body: Body) -> Result<Response> {
    let info = &call.info;
    let kinds = &server.registry().kinds;
    let Some(kind) = kinds.resource(&info.group, &info.version, &info.resource) else {
        let served = kinds.all().iter().any(|row| row.group == info.group && row.version == info.version);
        return if served { Err(Status::page_not_found()) } else { Ok(respond::page_not_found()) };
    };
    check_scope(&call, &kind)?;
    if info.subresource.is_empty() {
        return resource(server, call, kind, body).await;
    }
    let Some(sub) = kind.subresource(&info.subresource).cloned() else {
        return Err(Status::page_not_found());
    };
    let allowed = sub.verbs.iter().any(|verb| verb == info.verb);
    if !allowed {
        return Err(Status::method_not_allowed_here());
    }
    subresource(server, call, kind, &sub, body).await
}

impl Status {
    fn method_not_allowed_here() -> Self {
        let mut status = Self::method_not_allowed(NOT_ALLOWED);
        status.details = Some(Box::default());
        status
    }
}

/// Whether the path has a namespace where the kind wants one, and no more segments than it should.
fn check_scope(call: &Call, kind: &Kind) -> Result<()> {
    let info = &call.info;
    let proxied = info.subresource == "proxy";
    if !info.rest.is_empty() && !proxied {
        return Err(Status::page_not_found());
    }
    if !kind.namespaced && info.in_namespace {
        return Err(Status::page_not_found());
    }
    let across = kind.namespaced && !info.in_namespace;
    let addressed = !info.name.is_empty() && !matches!(info.verb, "list" | "watch" | "deletecollection");
    if across && addressed {
        return Err(Status::page_not_found());
    }
    Ok(())
}

async fn resource(server: &ApiServer, call: Call, kind: KindRef, body: Body) -> Result<Response> {
    let info = &call.info;
    let named = !info.name.is_empty();
    let across = kind.namespaced && !info.in_namespace;
    let misplaced = match info.verb {
        "create" => named || across,
        "update" | "patch" | "delete" => !named,
        "deletecollection" => across,
        _ => false,
    };
    let verb = if info.verb == "delete" && !named { "deletecollection" } else { info.verb };
    if misplaced || !kind.verbs.iter().any(|known| known == verb) {
        return Err(Status::method_not_allowed_here());
    }
    match verb {
        "get" => get(server, &call, &kind).await,
        "list" => list(server, &call, &kind).await,
        "watch" => watch_kind(server, &call, kind).await,
        "create" if reviews::is_review(&kind) => reviews::answer(server, &call, &kind, body).await,
        "create" => create(server, &call, &kind, body).await,
        "update" => update(server, &call, &kind, "", body).await,
        "patch" => patch(server, &call, &kind, "", body).await,
        "delete" => delete(server, &call, &kind, body).await,
        "deletecollection" => delete_collection(server, &call, &kind, body).await,
        _ => Err(Status::method_not_allowed_here()),
    }
}

async fn subresource(server: &ApiServer, call: Call, kind: KindRef, sub: &Subresource, body: Body) -> Result<Response> {
    match (&*kind.plural, &*sub.name) {
        ("pods", "log" | "exec" | "attach" | "portforward") | (_, "proxy") => {
            return streaming::answer(server, call, &kind, body).await;
        }
        _ => {}
    }
    match call.info.verb {
        "get" => get_subresource(server, &call, &kind, sub).await,
        "update" => update(server, &call, &kind, &sub.name, body).await,
        "patch" => patch(server, &call, &kind, &sub.name, body).await,
        "create" => create_subresource(server, &call, &kind, sub, body).await,
        _ => Err(Status::method_not_allowed_here()),
    }
}

/// The namespace to ask the registry for: paths of namespaces themselves name one too.
fn namespace<'a>(call: &'a Call, kind: &Kind) -> &'a str {
    if kind.namespaced { &call.info.namespace } else { "" }
}

pub(super) async fn get_pod(server: &ApiServer, namespace: &str, name: &str) -> Result<Arc<Entry>> {
    let kind = server.registry().kinds.resource("", "v1", "pods").ok_or_else(Status::page_not_found)?;
    server.registry().get(&kind, namespace, name).await
}

async fn get(server: &ApiServer, call: &Call, kind: &KindRef) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let entry = server.registry().get(kind, namespace(call, kind), &call.info.name).await?;
    present(server, call, kind, StatusCode::OK, &entry, style)
}

async fn get_subresource(server: &ApiServer, call: &Call, kind: &KindRef, sub: &Subresource) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let (namespace, name) = (namespace(call, kind), &call.info.name);
    if sub.name == "scale" {
        let scale = server.registry().get_scale(kind, namespace, name).await?;
        return Ok(respond::object(StatusCode::OK, &scale, style.plain()));
    }
    let entry = server.registry().get(kind, namespace, name).await?;
    present(server, call, kind, StatusCode::OK, &entry, style)
}

async fn list(server: &ApiServer, call: &Call, kind: &KindRef) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let options = query::list_options(&call.query)?;
    let list = server.registry().list(kind, namespace(call, kind), &options).await?;
    let presenter = Presenter::new(kind, style.representation.shape, &call.query, server.clock().now())?;
    Ok(respond::pieces(StatusCode::OK, presenter.list(&list)?, style))
}

async fn watch_kind(server: &ApiServer, call: &Call, kind: KindRef) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    // Only JSON can be told apart line by line.
    if !style.json() {
        return Err(negotiate::not_acceptable(&["application/json"]));
    }
    let mut options = query::list_options(&call.query)?;
    let name = &call.info.name;
    // The old paths name the object, new ones select it.
    if call.info.legacy_watch && !name.is_empty() {
        options.field_selector = selector_of_named(name, &options.field_selector)?;
    }
    let namespace = namespace(call, &kind).to_owned();
    watch::answer(server, call, kind, &namespace, &options, style).await
}

/// The request was allowed for the object in its path: a selector beside it may not lead to others.
fn selector_of_named(name: &str, given: &str) -> Result<String> {
    if given.is_empty() {
        return Ok(format!("metadata.name={name}"));
    }
    match FieldSelector::parse(given)?.exact("metadata.name") {
        Some(exact) if exact == name => Ok(given.to_owned()),
        _ => Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name")),
    }
}

fn context(call: &Call, options: &WriteOptions) -> Context {
    let field_manager = match options.field_manager.as_str() {
        "" => manager_of_agent(&call.headers),
        named => named.to_owned(),
    };
    let WriteOptions { dry_run, field_validation, .. } = *options;
    Context { user: call.user.clone(), dry_run, field_manager, field_validation }
}

/// The same without storing anything: what a write would come to, so that it can be judged first.
fn tried(context: &Context) -> Context {
    Context { dry_run: true, ..context.clone() }
}

/// Whether the writer has the rights that the outcome would give; the outcome.
async fn check_grant(
    server: &ApiServer,
    call: &Call,
    kind: &Kind,
    tried: &Written,
    old: Option<&Entry>,
) -> Result<Object> {
    let decode = |entry: &Entry| serde_json::from_slice::<Object>(&entry.bytes).map_err(Status::internal);
    let (new, old) = (decode(&tried.entry)?, old.map(decode).transpose()?);
    server.auth().check_grant(&call.user, kind, namespace(call, kind), &new, old.as_ref()).await?;
    Ok(new)
}

/// Stores what was tried once it is judged, on the very state it was tried on: on another one the same change
/// might give more.
async fn store_judged(
    server: &ApiServer,
    call: &Call,
    kind: &KindRef,
    context: &Context,
    tried: Written,
    old: Option<&Entry>,
) -> Result<Written> {
    let (namespace, name) = (namespace(call, kind), &call.info.name);
    if old.is_some_and(|old| old.revision != tried.entry.revision) {
        return Err(Status::modified(Subject { group: &kind.group, kind: &kind.plural, name }));
    }
    let mut object = check_grant(server, call, kind, &tried, old).await?;
    if tried.created {
        // The trial's own: an object that is to be made has none yet.
        object.unset(&["metadata", "uid"]);
    }
    let judged = Decoded { object, warnings: Vec::new() };
    let written = server.registry().update(context, kind, "", namespace, name, judged).await?;
    Ok(Written { warnings: tried.warnings, ..written })
}

/// The program's name in `User-Agent`, as upstream names managers that do not name themselves.
fn manager_of_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let name: String = agent.split('/').next().unwrap_or_default().chars().take(128).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

async fn create(server: &ApiServer, call: &Call, kind: &KindRef, body: Body) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let options = query::write_options(&call.query, "CreateOptions")?;
    let object = body::object(call, body, kind, None, options.field_validation).await?;
    let context = context(call, &options);
    let registry = server.registry();
    if escalation::guards(kind, &call.user) {
        let tried = registry.create(&tried(&context), kind, namespace(call, kind), object.clone()).await?;
        check_grant(server, call, kind, &tried, None).await?;
    }
    let written = registry.create(&context, kind, namespace(call, kind), object).await?;
    wrote(server, call, kind, "", &written, style)
}

async fn update(server: &ApiServer, call: &Call, kind: &KindRef, sub: &str, body: Body) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let options = query::write_options(&call.query, "UpdateOptions")?;
    let object = body::object(call, body, kind, kind.subresource(sub), options.field_validation).await?;
    let context = context(call, &options);
    let (namespace, name) = (namespace(call, kind), &call.info.name);
    let registry = server.registry();
    if sub.is_empty() {
        check_create(server, call, kind).await?;
    }
    if escalation::guards(kind, &call.user) {
        let old = registry.get(kind, namespace, name).await.ok();
        let tried = registry.update(&tried(&context), kind, sub, namespace, name, object).await?;
        let written = store_judged(server, call, kind, &context, tried, old.as_deref()).await?;
        return wrote(server, call, kind, sub, &written, style);
    }
    let written = registry.update(&context, kind, sub, namespace, name, object).await?;
    wrote(server, call, kind, sub, &written, style)
}

/// To put an object where there is none is to create it, which is a right of its own.
async fn check_create(server: &ApiServer, call: &Call, kind: &KindRef) -> Result<()> {
    if !kind.create_on_update {
        return Ok(());
    }
    match server.registry().get(kind, namespace(call, kind), &call.info.name).await {
        Err(error) if error.is_not_found() => {}
        _ => return Ok(()),
    }
    let attributes = Attributes { verb: "create", ..call.info.attributes() };
    let access = server.auth().access(&call.user, &attributes).await;
    if access.allowed { Ok(()) } else { Err(refusal(&call.user, &attributes, &access.reason)) }
}

async fn patch(server: &ApiServer, call: &Call, kind: &KindRef, sub: &str, body: Body) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let options = query::write_options(&call.query, "PatchOptions")?;
    let patch_type = patch_type(call, kind, &options)?;
    let bytes = body::read(body).await?;
    let patch = body::patch(&patch_type, &bytes)?;
    let context = context(call, &options);
    let (namespace, name) = (namespace(call, kind), &call.info.name);
    let registry = server.registry();
    if escalation::guards(kind, &call.user) {
        let old = registry.get(kind, namespace, name).await.ok();
        let tried = registry.patch(&tried(&context), kind, sub, namespace, name, patch_type, patch).await?;
        let written = store_judged(server, call, kind, &context, tried, old.as_deref()).await?;
        return wrote(server, call, kind, sub, &written, style);
    }
    let written = registry.patch(&context, kind, sub, namespace, name, patch_type, patch).await?;
    wrote(server, call, kind, sub, &written, style)
}

fn patch_type(call: &Call, kind: &KindRef, options: &WriteOptions) -> Result<PatchType> {
    const JSON: &str = "application/json-patch+json";
    const MERGE: &str = "application/merge-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    const APPLY: &str = "application/apply-patch+yaml";
    // Strategic merge needs the scheme, which custom kinds are not in.
    let custom = matches!(kind, KindRef::Shared(_));
    let patch_type = match negotiate::media_type(content_type(call)).as_str() {
        JSON => PatchType::Json,
        MERGE => PatchType::Merge,
        STRATEGIC if !custom => PatchType::Strategic,
        APPLY => PatchType::Apply { force: options.force.unwrap_or(false) },
        _ if custom => return Err(negotiate::unsupported(&[JSON, MERGE, APPLY])),
        _ => return Err(negotiate::unsupported(&[JSON, MERGE, STRATEGIC, APPLY])),
    };
    let mut errors = Vec::new();
    let apply = matches!(patch_type, PatchType::Apply { .. });
    if apply && options.field_manager.is_empty() {
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
    }
    if !apply && options.force.is_some() {
        errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
    }
    if errors.is_empty() {
        return Ok(patch_type);
    }
    Err(Status::invalid(Subject { group: "meta.k8s.io", kind: "PatchOptions", name: "" }, errors))
}

async fn create_subresource(
    server: &ApiServer,
    call: &Call,
    kind: &KindRef,
    sub: &Subresource,
    body: Body,
) -> Result<Response> {
    let style = call.style(Shapes::Plain)?;
    let options = query::write_options(&call.query, "CreateOptions")?;
    let object = body::object(call, body, kind, Some(sub), options.field_validation).await?;
    let warnings = object.warnings.clone();
    let context = context(call, &options);
    let (namespace, name) = (namespace(call, kind), &call.info.name);
    let made = server.registry().create_subresource(&context, kind, &sub.name, namespace, name, object).await?;
    let mut response = respond::object(StatusCode::CREATED, &made, style);
    respond::add_warnings(&mut response, &warnings);
    Ok(response)
}

async fn delete_options(call: &Call, body: Body) -> Result<(DeleteOptions, bool)> {
    let body = body::delete_options(call, body).await?;
    query::delete_options(&call.query, body.as_ref().map(|decoded: &Decoded| &decoded.object))
}

fn delete_context(call: &Call, dry_run: bool) -> Context {
    let field_manager = manager_of_agent(&call.headers);
    Context { user: call.user.clone(), dry_run, field_manager, ..Context::default() }
}

async fn delete(server: &ApiServer, call: &Call, kind: &KindRef, body: Body) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let (options, dry_run) = delete_options(call, body).await?;
    let context = delete_context(call, dry_run);
    let name = &call.info.name;
    match server.registry().delete(&context, kind, namespace(call, kind), name, &options).await? {
        Deleted::Gone(entry) if !returns_deleted_object(kind) => {
            let subject = Subject { group: &kind.group, kind: &kind.plural, name };
            let success = Status::success(subject, &present::uid(&entry));
            Ok(respond::object(StatusCode::OK, &success, style.plain()))
        }
        Deleted::Gone(entry) | Deleted::Pending(entry) => present(server, call, kind, StatusCode::OK, &entry, style),
    }
}

async fn delete_collection(server: &ApiServer, call: &Call, kind: &KindRef, body: Body) -> Result<Response> {
    let style = call.style(Shapes::Objects)?;
    let list = query::list_options(&call.query)?;
    let (options, dry_run) = delete_options(call, body).await?;
    let context = delete_context(call, dry_run);
    let registry = server.registry();
    let deleted = registry.delete_collection(&context, kind, namespace(call, kind), &list, &options).await?;
    let presenter = Presenter::new(kind, style.representation.shape, &call.query, server.clock().now())?;
    Ok(respond::pieces(StatusCode::OK, presenter.list(&deleted)?, style))
}

fn wrote(
    server: &ApiServer,
    call: &Call,
    kind: &KindRef,
    sub: &str,
    written: &Written,
    style: Style,
) -> Result<Response> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    // A scale is no object of the kind: it has no columns.
    let style = if sub == "scale" { style.plain() } else { style };
    let mut response = present(server, call, kind, code, &written.entry, style)?;
    respond::add_warnings(&mut response, &written.warnings);
    Ok(response)
}

fn present(
    server: &ApiServer,
    call: &Call,
    kind: &KindRef,
    code: StatusCode,
    entry: &Entry,
    style: Style,
) -> Result<Response> {
    let presenter = Presenter::new(kind, style.representation.shape, &call.query, server.clock().now())?;
    Ok(respond::pieces(code, presenter.object(entry)?, style))
}
