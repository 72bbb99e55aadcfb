//! `Impersonate-*` headers: acting as somebody else needs the right to impersonate each part of them.

use super::rbac::Attributes;
use super::{ANONYMOUS, AUTHENTICATED, Auth, UNAUTHENTICATED, authenticate, refusal};
use crate::api::status::{Result, Status};
use crate::apiserver::request_info::{RequestInfo, percent_decode};
use crate::registry::User;
use http::HeaderMap;

const EXTRA: &str = "impersonate-extra-";

impl Auth {
    /// The user to act as: the one the headers name, or the one that asks.
    pub async fn impersonate(&self, user: User, headers: &HeaderMap, info: &RequestInfo) -> Result<User> {
        let Some(wanted) = wanted(headers)? else { return Ok(user) };
        for need in needs(&wanted) {
            let access = self.access(&user, &need.attributes()).await;
            if !access.allowed {
                let verb = format!("impersonate-on:user-info:{}", info.verb);
                return Err(refusal(&user, &Attributes { verb: &verb, ..info.attributes() }, &access.reason));
            }
        }
        Ok(complete(wanted))
    }
}

/// The user in the headers, without the groups that come by themselves.
fn wanted(headers: &HeaderMap) -> Result<Option<User>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let groups = headers.get_all("impersonate-group").iter();
    let groups: Vec<String> = groups.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
    let mut user = User { name: text("impersonate-user"), uid: text("impersonate-uid"), groups, extra: Vec::new() };
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(EXTRA) else { continue };
        let (key, value) = (percent_decode(key), value.to_str().unwrap_or_default().to_owned());
        match user.extra.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => user.extra.push((key, vec![value])),
        }
    }
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user == User::default() {
        return Ok(None);
    }
    Err(Status::internal("requested impersonation of groups, a uid or extra fields without impersonating a user"))
}

struct Need {
    group: &'static str,
    resource: &'static str,
    subresource: String,
    namespace: String,
    name: String,
}

impl Need {
    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            is_resource: true,
            verb: "impersonate",
            group: self.group,
            resource: self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            ..Attributes::default()
        }
    }
}

/// What one must be allowed to impersonate to become this user.
fn needs(user: &User) -> Vec<Need> {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let need = |group, resource, name: &str| Need {
        group,
        resource,
        subresource: String::new(),
        namespace: String::new(),
        name: name.to_owned(),
    };
    let mut needs = vec![match service_account(&user.name) {
        Some((namespace, name)) => Need { namespace: namespace.to_owned(), ..need("", "serviceaccounts", name) },
        None => need("", "users", &user.name),
    }];
    needs.extend(user.groups.iter().map(|group| need("", "groups", group)));
    if !user.uid.is_empty() {
        needs.push(need(AUTHENTICATION, "uids", &user.uid));
    }
    for (key, values) in &user.extra {
        let one = |value: &String| Need { subresource: key.clone(), ..need(AUTHENTICATION, "userextras", value) };
        needs.extend(values.iter().map(one));
    }
    needs
}

fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// Adds the groups that everybody of this sort is in.
fn complete(mut user: User) -> User {
    if user.groups.is_empty()
        && let Some((namespace, _)) = service_account(&user.name)
    {
        user.groups.extend(authenticate::service_account_groups(namespace));
    }
    let known = |group: &str| user.groups.iter().any(|one| one == group);
    if user.name == ANONYMOUS {
        if !known(UNAUTHENTICATED) {
            user.groups.push(UNAUTHENTICATED.to_owned());
        }
    } else if !known(AUTHENTICATED) && !known(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_user_is_a_need() {
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-user", "system:serviceaccount:g4:sa".parse().unwrap());
        headers.append("impersonate-group", "dev".parse().unwrap());
        headers.append("impersonate-extra-scopes", "view".parse().unwrap());
        let user = wanted(&headers).unwrap().unwrap();
        let needs: Vec<String> = needs(&user)
            .iter()
            .map(|need| format!("{}/{}/{} {}", need.resource, need.subresource, need.namespace, need.name))
            .collect();
        assert_eq!(needs, ["serviceaccounts//g4 sa", "groups// dev", "userextras/scopes/ view"]);
        assert_eq!(complete(user).groups, ["dev", "system:authenticated"]);
        assert_eq!(wanted(&HeaderMap::new()).unwrap(), None);
        headers.remove("impersonate-user");
        assert_eq!(wanted(&headers).unwrap_err().code, 500);
    }
}
