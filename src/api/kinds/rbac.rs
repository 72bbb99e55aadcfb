//! Rows of rbac.authorization.k8s.io/v1.

mod grant;

use super::print;
use super::row::{Row, names};
use super::{Kind, NameRule};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("rbac.authorization.k8s.io" "v1" "io.k8s.api.rbac.v1", $($name)*)
    };
}

pub(super) static CLUSTER_ROLE_BINDING: Kind = Row {
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    printer: print::ROLE_BINDING,
    strategy: &grant::BindingStrategy { cluster: true },
    ..Row::cluster(kind!("ClusterRoleBinding" "clusterrolebindings" "clusterrolebinding"))
}
.build();

pub(super) static CLUSTER_ROLE: Kind = Row {
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    strategy: &grant::RoleStrategy { cluster: true },
    ..Row::cluster(kind!("ClusterRole" "clusterroles" "clusterrole"))
}
.build();

pub(super) static ROLE_BINDING: Kind = Row {
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    printer: print::ROLE_BINDING,
    strategy: &grant::BindingStrategy { cluster: false },
    ..Row::namespaced(kind!("RoleBinding" "rolebindings" "rolebinding"))
}
.build();

pub(super) static ROLE: Kind = Row {
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    strategy: &grant::RoleStrategy { cluster: false },
    ..Row::namespaced(kind!("Role" "roles" "role"))
}
.build();
