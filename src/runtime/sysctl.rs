//! Which kernel parameters a pod may set: those that its own namespaces hold and that harm no other pod.
//! All others are the host's, whoever writes them. Pure.
//! Source: upstream's pkg/kubelet/sysctl (safe sysctls and the words of a refusal).

/// The namespace that holds a parameter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Network,
}

const SAFE: [(&str, Namespace); 12] = [
    ("kernel.shm_rmid_forced", Namespace::Ipc),
    ("net.ipv4.ip_local_port_range", Namespace::Network),
    ("net.ipv4.tcp_syncookies", Namespace::Network),
    ("net.ipv4.ping_group_range", Namespace::Network),
    ("net.ipv4.ip_unprivileged_port_start", Namespace::Network),
    ("net.ipv4.ip_local_reserved_ports", Namespace::Network),
    ("net.ipv4.tcp_keepalive_time", Namespace::Network),
    ("net.ipv4.tcp_fin_timeout", Namespace::Network),
    ("net.ipv4.tcp_keepalive_intvl", Namespace::Network),
    ("net.ipv4.tcp_keepalive_probes", Namespace::Network),
    ("net.ipv4.tcp_rmem", Namespace::Network),
    ("net.ipv4.tcp_wmem", Namespace::Network),
];

/// Why a pod may not set this parameter; its name may be spelt with dots or with slashes.
pub fn check(name: &str, host_network: bool, host_ipc: bool) -> Result<(), String> {
    let dotted = name.replace('/', ".");
    let Some((_, namespace)) = SAFE.iter().find(|(safe, _)| *safe == dotted) else {
        return Err(format!("{dotted:?} not allowlisted"));
    };
    match namespace {
        Namespace::Ipc if host_ipc => Err(format!("{dotted:?} not allowed with host ipc enabled")),
        Namespace::Network if host_network => Err(format!("{dotted:?} not allowed with host net enabled")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_sets_no_parameter_of_the_host() {
        for name in ["kernel.core_pattern", "kernel/core_pattern", "kernel.modprobe", "vm.overcommit_memory", ""] {
            let why = format!("{:?} not allowlisted", name.replace('/', "."));
            assert_eq!(check(name, false, false), Err(why));
        }
        let port = "net.ipv4.ip_unprivileged_port_start";
        assert_eq!(check(port, false, false), Ok(()));
        assert_eq!(check("net/ipv4/ip_unprivileged_port_start", false, false), Ok(()));
        assert_eq!(check(port, true, false), Err(format!("{port:?} not allowed with host net enabled")));
        let shared = "kernel.shm_rmid_forced";
        assert_eq!(check(shared, false, true), Err(format!("{shared:?} not allowed with host ipc enabled")));
    }
}
