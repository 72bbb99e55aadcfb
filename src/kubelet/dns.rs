//! A pod's names: host name, `/etc/resolv.conf` by DNS policy, entries of `/etc/hosts`. Pure.

use crate::api::view::pod::{DnsConfig, Pod};

const NAMESERVERS_LIMIT: usize = 3;
const SEARCHES_LIMIT: usize = 32;
const HOSTNAME_LIMIT: usize = 63;
/// The kernel's limit.
const FQDN_LIMIT: usize = 64;

/// A parsed `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => conf.nameservers.extend(words.next()),
                // The last one wins.
                Some("search" | "domain") => conf.searches = words.filter(|domain| domain != ".").collect(),
                Some("options") => conf.options = words.collect(),
                _ => {}
            }
        }
        conf
    }

    fn render(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }

    fn add(&mut self, config: &DnsConfig) {
        push_new(&mut self.nameservers, &config.nameservers);
        push_new(&mut self.searches, &config.searches);
        for option in &config.options {
            let name = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
            self.options.retain(|known| name(known) != option.name);
            let value = option.value.as_deref().filter(|value| !value.is_empty());
            self.options.push(value.map_or_else(|| option.name.clone(), |value| format!("{}:{value}", option.name)));
        }
    }
}

fn push_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// The cluster's DNS.
#[derive(Clone, Debug)]
pub struct ClusterDns {
    pub servers: Vec<String>,
    /// `cluster.local`.
    pub domain: String,
}

/// The contents of a pod's `/etc/resolv.conf`.
pub fn resolv_conf(pod: &Pod, cluster: &ClusterDns, host: &ResolvConf) -> String {
    let from_cluster = match pod.spec.dns_policy.as_str() {
        "None" => None,
        "Default" => Some(false),
        "ClusterFirstWithHostNet" => Some(true),
        _ => Some(!pod.spec.host_network),
    };
    let mut conf = match from_cluster {
        None => ResolvConf::default(),
        Some(false) => host.clone(),
        Some(true) => cluster_first(&pod.metadata.namespace, cluster, host),
    };
    if let Some(config) = &pod.spec.dns_config {
        conf.add(config);
    }
    conf.nameservers.truncate(NAMESERVERS_LIMIT);
    conf.searches.truncate(SEARCHES_LIMIT);
    conf.render()
}

fn cluster_first(namespace: &str, cluster: &ClusterDns, host: &ResolvConf) -> ResolvConf {
    let domain = &cluster.domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    push_new(&mut searches, &host.searches);
    ResolvConf { nameservers: cluster.servers.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

/// The name inside the pod, and its fully qualified one (empty without a subdomain).
pub fn hostname(pod: &Pod, domain: &str) -> (String, String) {
    let spec = &pod.spec;
    if let Some(name) = spec.hostname_override.as_ref().filter(|name| !name.is_empty()) {
        return (name.clone(), String::new());
    }
    let name = if spec.hostname.is_empty() { &pod.metadata.name } else { &spec.hostname };
    let cut = name.get(..HOSTNAME_LIMIT).unwrap_or(name).trim_end_matches(['-', '.']);
    if spec.subdomain.is_empty() {
        return (cut.to_owned(), String::new());
    }
    let full = format!("{cut}.{}.{}.svc.{domain}", spec.subdomain, pod.metadata.namespace);
    let shown = if spec.set_hostname_as_fqdn == Some(true) && full.len() <= FQDN_LIMIT { &full } else { cut };
    (shown.to_owned(), full.clone())
}

/// The pod's own lines of `/etc/hosts`.
pub fn host_aliases(pod: &Pod) -> Vec<(String, Vec<String>)> {
    pod.spec.host_aliases.iter().map(|alias| (alias.ip.clone(), alias.hostnames.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn policies() {
        let cluster = ClusterDns { servers: vec!["10.43.0.10".into()], domain: "cluster.local".into() };
        let host = ResolvConf::parse("# x\nnameserver 192.0.2.53\nsearch lan\noptions timeout:1\n");
        let inside =
            "search n.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.43.0.10\noptions ndots:5\n";
        let outside = "search lan\nnameserver 192.0.2.53\noptions timeout:1\n";
        for (spec, want) in [
            (json!({"dnsPolicy": "ClusterFirst"}), inside),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), outside),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), inside),
            (json!({"dnsPolicy": "Default"}), outside),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["s"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "search s\nnameserver 1.1.1.1\noptions ndots:2 edns0\n",
            ),
        ] {
            assert_eq!(resolv_conf(&pod(spec.clone()), &cluster, &host), want, "{spec}");
        }
    }

    #[test]
    fn hostnames() {
        let long = "x".repeat(70);
        for (spec, want, full) in [
            (json!({}), "p", ""),
            (json!({"hostname": "h"}), "h", ""),
            (json!({"hostname": "h", "subdomain": "s"}), "h", "h.s.n.svc.cluster.local"),
            (
                json!({"subdomain": "s", "setHostnameAsFQDN": true}),
                "p.s.n.svc.cluster.local",
                "p.s.n.svc.cluster.local",
            ),
            (json!({"hostname": long}), &long[..63], ""),
            (json!({"hostname": "h", "hostnameOverride": "o"}), "o", ""),
        ] {
            let got = hostname(&pod(spec.clone()), "cluster.local");
            assert_eq!(got, (want.to_owned(), full.to_owned()), "{spec}");
        }
    }
}
