//! Questions about access, asked as objects that are never stored: access reviews, rules, tokens, "who am I".

use super::rbac::{Attributes, Rule};
use crate::api::kinds::Kind;
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{FieldError, Result, Status, Subject};
use crate::apiserver::negotiate::Shapes;
use crate::apiserver::{ApiServer, Call, body, query, respond};
use crate::registry::User;
use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};

pub fn is_review(kind: &Kind) -> bool {
    matches!(&*kind.group, "authentication.k8s.io" | "authorization.k8s.io")
}

pub(crate) async fn answer(server: &ApiServer, call: &Call, kind: &Kind, body: Body) -> Result<Response> {
    let style = call.style(Shapes::Plain)?;
    let options = query::write_options(&call.query, "CreateOptions")?;
    let decoded = body::object(call, body, kind, None, options.field_validation).await?;
    let mut review = decoded.object;
    let user = &call.user;
    let status = match &*kind.kind {
        "SelfSubjectReview" => {
            let now = server.clock().now_rfc3339();
            review.set(&["metadata", "creationTimestamp"], now.into());
            json!({ "userInfo": user_info(user) })
        }
        "TokenReview" => token_review(server, &review).await?,
        "SelfSubjectRulesReview" => rules_review(server, user, &mut review).await?,
        "SelfSubjectAccessReview" => access_review(server, kind, user, &review, "").await?,
        "LocalSubjectAccessReview" => {
            let asked = asked_user(kind, &review)?;
            access_review(server, kind, &asked, &review, &call.info.namespace).await?
        }
        "SubjectAccessReview" => access_review(server, kind, &asked_user(kind, &review)?, &review, "").await?,
        _ => return Err(Status::page_not_found()),
    };
    review.metadata_mut();
    review.set(&["status"], status);
    let mut response = respond::object(StatusCode::CREATED, &review, style);
    respond::add_warnings(&mut response, &decoded.warnings);
    Ok(response)
}

fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    let mut put = |name: &str, value: Value, empty: bool| {
        if !empty {
            info.insert(name.to_owned(), value);
        }
    };
    put("username", json!(user.name), user.name.is_empty());
    put("uid", json!(user.uid), user.uid.is_empty());
    put("groups", json!(user.groups), user.groups.is_empty());
    let extra: Map<String, Value> = user.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
    put("extra", Value::Object(extra.clone()), extra.is_empty());
    Value::Object(info)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn invalid(kind: &Kind, errors: Vec<FieldError>) -> Status {
    Status::invalid(Subject { group: &kind.group, kind: &kind.kind, name: "" }, errors)
}

/// The user a review asks about.
fn asked_user(kind: &Kind, review: &Object) -> Result<User> {
    let name = review.str_at(&["spec", "user"]).to_owned();
    let groups = strings(review.at(&["spec", "groups"]));
    if name.is_empty() && groups.is_empty() {
        let detail = "at least one of user or group must be specified";
        return Err(invalid(kind, vec![FieldError::invalid("spec.user", "", detail)]));
    }
    Ok(User { name, groups, uid: review.str_at(&["spec", "uid"]).to_owned(), extra: Vec::new() })
}

async fn access_review(
    server: &ApiServer,
    kind: &Kind,
    user: &User,
    review: &Object,
    namespace: &str,
) -> Result<Value> {
    let resource = review.at(&["spec", "resourceAttributes"]).filter(|value| !value.is_null());
    let path = review.at(&["spec", "nonResourceAttributes"]).filter(|value| !value.is_null());
    let wrong =
        |detail: &str| Err(invalid(kind, vec![FieldError::invalid("spec.resourceAttributes", Value::Null, detail)]));
    let attributes = match (resource, path) {
        (Some(_), Some(_)) => return wrong("cannot be specified in combination with nonResourceAttributes"),
        (None, None) => return wrong("exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        (Some(resource), None) => Attributes {
            is_resource: true,
            verb: resource.str_at(&["verb"]),
            group: resource.str_at(&["group"]),
            resource: resource.str_at(&["resource"]),
            subresource: resource.str_at(&["subresource"]),
            namespace: resource.str_at(&["namespace"]),
            name: resource.str_at(&["name"]),
            ..Attributes::default()
        },
        (None, Some(path)) => {
            Attributes { verb: path.str_at(&["verb"]), path: path.str_at(&["path"]), ..Attributes::default() }
        }
    };
    if !namespace.is_empty() && attributes.namespace != namespace {
        let field = "spec.resourceAttributes.namespace";
        return Err(invalid(
            kind,
            vec![FieldError::invalid(field, attributes.namespace, "must match metadata.namespace")],
        ));
    }
    let access = server.auth().access(user, &attributes).await;
    let mut status = json!({ "allowed": access.allowed });
    if !access.reason.is_empty() {
        status["reason"] = access.reason.into();
    }
    Ok(status)
}

async fn rules_review(server: &ApiServer, user: &User, review: &mut Object) -> Result<Value> {
    let namespace = review.str_at(&["spec", "namespace"]).to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let list = server.auth().rules_of(user, &namespace).await;
    let of = |resource: bool| -> Vec<&Rule> {
        list.rules.iter().filter(|rule| rule.non_resource_urls.is_empty() == resource).collect()
    };
    let mut status =
        json!({ "resourceRules": of(true), "nonResourceRules": of(false), "incomplete": !list.missing.is_empty() });
    if !list.missing.is_empty() {
        status["evaluationError"] = list.missing.join(", ").into();
    }
    review.set(&["spec"], json!({}));
    Ok(status)
}

async fn token_review(server: &ApiServer, review: &Object) -> Result<Value> {
    let token = review.str_at(&["spec", "token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let wanted = strings(review.at(&["spec", "audiences"]));
    let issuer = server.pki().token_key().issuer().to_owned();
    let audiences = if wanted.is_empty() { vec![issuer] } else { wanted };
    let audiences: Vec<&str> = audiences.iter().map(String::as_str).collect();
    match server.auth().user_of_token(token, &audiences).await {
        Ok(user) => Ok(json!({ "authenticated": true, "user": user_info(&user), "audiences": audiences })),
        Err(_) => Ok(json!({ "user": {}, "error": "invalid bearer token" })),
    }
}
