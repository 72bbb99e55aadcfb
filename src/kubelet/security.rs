//! Pod and container security contexts merged into what the runtime sets. Pure.

use super::plan::full_name;
use crate::api::view::pod::{Container, Pod, SeccompProfile};
use crate::runtime::{Seccomp, Security};

/// `image_user` is the user of the image's config; an error is a `CreateContainerConfigError`.
pub fn security(pod: &Pod, container: &Container, image_user: &str) -> Result<Security, String> {
    let (outer, inner) = (&pod.spec.security_context, &container.security_context);
    let privileged = inner.privileged.unwrap_or(false);
    let capabilities = inner.capabilities.clone().unwrap_or_default();
    let profile = inner.seccomp_profile.as_ref().or(outer.seccomp_profile.as_ref()).filter(|_| !privileged);
    let merged = Security {
        run_as_user: inner.run_as_user.or(outer.run_as_user),
        run_as_group: inner.run_as_group.or(outer.run_as_group),
        run_as_non_root: inner.run_as_non_root.or(outer.run_as_non_root).unwrap_or(false),
        supplemental_groups: outer.supplemental_groups.iter().copied().chain(outer.fs_group).collect(),
        strict_supplemental_groups: outer.supplemental_groups_policy == "Strict",
        privileged,
        read_only_root: inner.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: inner.allow_privilege_escalation == Some(false),
        capabilities_add: capabilities.add,
        capabilities_drop: capabilities.drop,
        seccomp: profile.map(seccomp).unwrap_or_default(),
        // In a user namespace alone: elsewhere root in the container would write the host's kernel parameters.
        unmasked_proc: privileged || (inner.proc_mount == "Unmasked" && pod.spec.host_users == Some(false)),
    };
    if merged.run_as_non_root {
        check_non_root(pod, container, merged.run_as_user, image_user)?;
    }
    Ok(merged)
}

fn seccomp(profile: &SeccompProfile) -> Seccomp {
    match profile.r#type.as_str() {
        "RuntimeDefault" => Seccomp::RuntimeDefault,
        "Localhost" => Seccomp::Localhost(profile.localhost_profile.clone()),
        _ => Seccomp::Unconfined,
    }
}

fn check_non_root(pod: &Pod, container: &Container, user: Option<i64>, image_user: &str) -> Result<(), String> {
    let who = format!("(pod: \"{}\", container: {})", full_name(pod), container.name);
    let named = image_user.split(':').next().unwrap_or_default();
    match (user, named.parse::<i64>()) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {who}")),
        (Some(_), _) => Ok(()),
        (None, _) if named.is_empty() => Err(format!("container has runAsNonRoot and image will run as root {who}")),
        (None, Ok(0)) => Err(format!("container has runAsNonRoot and image will run as root {who}")),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({named}), cannot verify user is non-root {who}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn merge(outer: Value, inner: Value, image_user: &str) -> Result<Security, String> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": outer, "containers": [{"name": "c", "securityContext": inner}]},
        });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        security(&pod, &pod.spec.containers[0], image_user)
    }

    #[test]
    fn the_container_goes_before_the_pod() {
        let outer = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
            "seccompProfile": {"type": "RuntimeDefault"}});
        let merged =
            merge(outer.clone(), json!({"runAsUser": 5, "allowPrivilegeEscalation": false}), "").expect("fine");
        assert_eq!((merged.run_as_user, merged.run_as_group), (Some(5), Some(2)));
        assert_eq!((merged.supplemental_groups.as_slice(), merged.no_new_privileges), ([4, 3].as_slice(), true));
        assert_eq!(merged.seccomp, Seccomp::RuntimeDefault);
        let privileged = merge(outer, json!({"privileged": true}), "").expect("fine");
        assert_eq!((privileged.seccomp, privileged.unmasked_proc), (Seccomp::Unconfined, true));
    }

    #[test]
    fn proc_stays_masked_for_a_container_that_is_root_on_the_host() {
        let unmasked = json!({"procMount": "Unmasked"});
        assert!(!merge(json!({}), unmasked, "").expect("fine").unmasked_proc);
        assert!(merge(json!({}), json!({"privileged": true}), "").expect("fine").unmasked_proc);
    }

    #[test]
    fn non_root_is_checked() {
        let outer = json!({"runAsNonRoot": true});
        for (inner, user, want) in [
            (json!({"runAsUser": 7}), "", None),
            (
                json!({"runAsUser": 0}),
                "",
                Some("container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)"),
            ),
            (json!({}), "1000:1000", None),
            (
                json!({}),
                "",
                Some("container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"),
            ),
            (
                json!({}),
                "www",
                Some(
                    "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (pod: \"p_n(u)\", container: c)",
                ),
            ),
            (json!({"runAsNonRoot": false}), "0", None),
        ] {
            let got = merge(outer.clone(), inner.clone(), user).err();
            assert_eq!(got.as_deref(), want, "{inner} {user}");
        }
    }
}
