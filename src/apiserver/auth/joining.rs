//! Boards on their way in: those with a join token, and nodes whose certificate has expired. Each may ask for a
//! certificate and read its own request; nothing else of the API is theirs.

use super::Auth;
use super::rbac::{Access, Attributes};
use crate::api::object::{Object, ObjectExt};
use crate::pki::bootstrap::{self, BootstrapToken, Refusal};
use crate::pki::node_key::EXPIRED_GROUP;
use crate::registry::User;

const CSR_GROUP: &str = "certificates.k8s.io";
const CSRS: &str = "certificatesigningrequests";

/// What a board on its way in may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Ask, and read what it has asked.
    Joining,
    /// Its token is used up: read what it has asked.
    Used,
}

fn standing(user: &User) -> Option<Standing> {
    let is_in = |group: &str| user.groups.iter().any(|one| one == group);
    if is_in(bootstrap::USED_GROUP) {
        return Some(Standing::Used);
    }
    (is_in(bootstrap::GROUP) || is_in(EXPIRED_GROUP)).then_some(Standing::Joining)
}

/// Whether it may; `None` when that depends on whose request it is.
fn decide(standing: Standing, attributes: &Attributes) -> Option<Access> {
    let refused = |why: &str| Some(Access { allowed: false, reason: why.to_owned() });
    let is_request = attributes.group == CSR_GROUP && attributes.resource == CSRS && attributes.subresource.is_empty();
    if !is_request {
        return refused("a board that has not joined may only ask for its certificate");
    }
    match (attributes.verb, standing) {
        ("create", Standing::Joining) => Some(Access::allowed()),
        ("create", Standing::Used) => refused("the join token has no uses left"),
        ("get" | "list" | "watch", _) if !attributes.name.is_empty() => None,
        ("list" | "watch", _) => refused("a board may only read its own request: select it by metadata.name"),
        _ => refused("a board that has not joined may only create and read certificate signing requests"),
    }
}

impl Auth {
    /// The verdict on a board on its way in; `None` for everybody else.
    pub(super) async fn joining(&self, user: &User, attributes: &Attributes<'_>) -> Option<Access> {
        let standing = standing(user)?;
        // What everybody may read (versions, health) is for the roles to say.
        if !attributes.is_resource {
            return None;
        }
        let access = match decide(standing, attributes) {
            Some(access) => access,
            None => self.own_request(user, attributes.name).await,
        };
        if !access.allowed {
            let what = format!("{} {} {}", attributes.verb, attributes.resource, attributes.name);
            self.refusals.log("joining board", &user.name, &format!("{what}: {}", access.reason));
        }
        Some(access)
    }

    async fn own_request(&self, user: &User, name: &str) -> Access {
        let request = self.object(CSR_GROUP, CSRS, "", name).await;
        let is_own = request.is_some_and(|request| request.str_at(&["spec", "username"]) == user.name);
        let reason = if is_own { String::new() } else { "the request is not this board's".to_owned() };
        Access { allowed: is_own, reason }
    }

    /// An object that a decision depends on.
    pub(super) async fn object(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Object> {
        let kind = self.registry.kinds.resource(group, "v1", resource)?;
        let entry = self.registry.get(&kind, namespace, name).await.ok()?;
        serde_json::from_slice(&entry.bytes).ok()
    }

    /// The user of a bootstrap token.
    pub(super) async fn user_of_bootstrap_token(&self, id: &str, secret: &str) -> Result<User, Refusal> {
        let object = self.object("", "secrets", bootstrap::NAMESPACE, &bootstrap::secret_name(id)).await;
        let object = object.filter(|object| object.deletion_timestamp().is_none()).ok_or(Refusal::Unknown)?;
        let token = BootstrapToken::of(&object)?;
        token.check(secret, self.clock.now())?;
        let mut groups = token.user_groups();
        groups.push(super::AUTHENTICATED.to_owned());
        Ok(User { name: token.user_name(), groups, ..User::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_board_on_its_way_in_may_do() {
        let csr = Attributes { is_resource: true, group: CSR_GROUP, resource: CSRS, ..Attributes::default() };
        let secrets =
            Attributes { is_resource: true, verb: "get", resource: "secrets", name: "a", ..Attributes::default() };
        let cases = [
            (Standing::Joining, Attributes { verb: "create", ..csr }, Some(true)),
            (Standing::Used, Attributes { verb: "create", ..csr }, Some(false)),
            (Standing::Used, Attributes { verb: "get", name: "a", ..csr }, None),
            (Standing::Joining, Attributes { verb: "watch", name: "a", ..csr }, None),
            (Standing::Joining, Attributes { verb: "watch", ..csr }, Some(false)),
            (Standing::Joining, Attributes { verb: "update", name: "a", subresource: "approval", ..csr }, Some(false)),
            (Standing::Joining, Attributes { verb: "delete", name: "a", ..csr }, Some(false)),
            (Standing::Joining, secrets, Some(false)),
        ];
        for (standing, attributes, expected) in cases {
            assert_eq!(decide(standing, &attributes).map(|access| access.allowed), expected, "{attributes:?}");
        }
    }
}
