//! A container's environment: literals, references, `$(VAR)` expansion, service variables. Pure.

use super::downward::{Downward, field, resource};
use crate::api::view::pod::{Container, EnvFrom, EnvVar, KeyRef, OptionalRef};
use crate::api::view::service::Service;
use std::collections::BTreeMap;

/// Key to value; `None`: the object is not there.
pub type Data = Option<BTreeMap<String, String>>;

/// What variables may refer to.
pub struct Sources<'a> {
    pub config_maps: BTreeMap<String, Data>,
    pub secrets: BTreeMap<String, Data>,
    pub services: Vec<(String, String)>,
    pub downward: Downward<'a>,
}

/// The variables in order; an error is the message of `CreateContainerConfigError`.
pub fn environment(container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, String> {
    let mut result = Variables::default();
    for from in &container.env_from {
        for (name, value) in imported(from, sources)? {
            result.set(name, value);
        }
    }
    for variable in &container.env {
        if let Some(value) = value(variable, container, sources, &result)? {
            result.set(variable.name.clone(), value);
        }
    }
    for (name, value) in &sources.services {
        if result.get(name).is_none() {
            result.set(name.clone(), value.clone());
        }
    }
    Ok(result.0)
}

/// In the order of their first mention; later values win.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

fn imported(from: &EnvFrom, sources: &Sources) -> Result<Vec<(String, String)>, String> {
    let all = |reference: &OptionalRef, held: &BTreeMap<String, Data>, kind: &str| match held
        .get(&reference.name)
        .and_then(Option::as_ref)
    {
        Some(data) => Ok(data.clone()),
        None if reference.optional == Some(true) => Ok(BTreeMap::new()),
        None => Err(format!("{kind} \"{}\" not found", reference.name)),
    };
    let data = match (&from.config_map_ref, &from.secret_ref) {
        (Some(reference), _) => all(reference, &sources.config_maps, "configmap")?,
        (_, Some(reference)) => all(reference, &sources.secrets, "secret")?,
        _ => BTreeMap::new(),
    };
    let named = data.into_iter().map(|(key, value)| (format!("{}{key}", from.prefix), value));
    Ok(named.filter(|(name, _)| is_name(name)).collect())
}

/// Any printable ASCII character but `=`, as validated since Kubernetes 1.34.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
}

/// `None`: an optional reference that leads nowhere.
fn value(
    variable: &EnvVar,
    container: &Container,
    sources: &Sources,
    known: &Variables,
) -> Result<Option<String>, String> {
    let Some(from) = &variable.value_from else {
        let service =
            |name: &str| sources.services.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        return Ok(Some(expand(&variable.value, |name| known.get(name).or_else(|| service(name)))));
    };
    if let Some(reference) = &from.field_ref {
        return field(&sources.downward, &reference.field_path).map(Some);
    }
    if let Some(reference) = &from.resource_field_ref {
        return resource(&sources.downward, reference, &container.name).map(Some);
    }
    if let Some(reference) = &from.config_map_key_ref {
        return key(reference, &sources.config_maps, ("configmap", "ConfigMap"), sources);
    }
    if let Some(reference) = &from.secret_key_ref {
        return key(reference, &sources.secrets, ("secret", "Secret"), sources);
    }
    Ok(None)
}

fn key(
    reference: &KeyRef,
    held: &BTreeMap<String, Data>,
    (resource, kind): (&str, &str),
    sources: &Sources,
) -> Result<Option<String>, String> {
    let optional = reference.optional == Some(true);
    let KeyRef { name, key, .. } = reference;
    let Some(data) = held.get(name).and_then(Option::as_ref) else {
        return if optional { Ok(None) } else { Err(format!("{resource} \"{name}\" not found")) };
    };
    match data.get(key) {
        Some(value) => Ok(Some(value.clone())),
        None if optional => Ok(None),
        None => {
            let namespace = &sources.downward.pod.metadata.namespace;
            Err(format!("couldn't find key {key} in {kind} {namespace}/{name}"))
        }
    }
}

/// Replaces `$(NAME)`; `$$` is a dollar; what is unknown stays as it is.
pub fn expand<'a>(text: &str, value: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.chars().next() {
            Some('$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some('(') if rest.contains(')') => {
                let end = rest.find(')').unwrap_or(rest.len());
                let name = &rest[1..end];
                match value(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = &rest[end + 1..];
            }
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

/// The variables that describe services: those of the pod's namespace, if it wants them, and `kubernetes`.
pub fn service_variables<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut by_name: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let own = meta.namespace == namespace && (links || is_master(service));
        let master = is_master(service) && !by_name.contains_key(meta.name.as_str());
        if has_address(service) && (own || master) {
            by_name.insert(&meta.name, service);
        }
    }
    by_name.into_values().flat_map(variables_of).collect()
}

fn is_master(service: &Service) -> bool {
    service.metadata.namespace == "default" && service.metadata.name == "kubernetes"
}

fn has_address(service: &Service) -> bool {
    !matches!(service.spec.cluster_ip.as_str(), "" | "None")
}

fn variables_of(service: &Service) -> Vec<(String, String)> {
    let prefix = upper(&service.metadata.name);
    let ip = &service.spec.cluster_ip;
    let mut out = vec![(format!("{prefix}_SERVICE_HOST"), ip.clone())];
    let Some(first) = service.spec.ports.first() else { return out };
    out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
    for port in service.spec.ports.iter().filter(|port| !port.name.is_empty()) {
        out.push((format!("{prefix}_SERVICE_PORT_{}", upper(&port.name)), port.port.to_string()));
    }
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
    for (index, port) in service.spec.ports.iter().enumerate() {
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        let one = format!("{prefix}_PORT_{}_{protocol}", port.port);
        out.push((format!("{one}_PROTO"), protocol.to_lowercase()));
        out.push((format!("{one}_PORT"), port.port.to_string()));
        out.push((format!("{one}_ADDR"), ip.clone()));
        out.push((one, url));
    }
    out
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::super::downward::tests::downward;
    use super::*;
    use crate::api::view::pod::Pod;
    use serde_json::{Value, json};

    fn pod(container: Value) -> Pod {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}});
        serde_json::from_value(pod).expect("a pod")
    }

    fn run(container: Value) -> Result<Vec<String>, String> {
        let pod = pod(container);
        let held = |pairs: &[(&str, &str)]| -> BTreeMap<String, Data> {
            let data = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            BTreeMap::from([("here".to_owned(), Some(data)), ("gone".to_owned(), None)])
        };
        let sources = Sources {
            config_maps: held(&[("k", "v"), ("x.y", "z")]),
            secrets: held(&[("s", "t")]),
            services: vec![("WEB_SERVICE_HOST".into(), "10.43.0.9".into())],
            downward: downward(&pod),
        };
        let all = environment(&pod.spec.containers[0], &sources)?;
        Ok(all.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn variables_come_from_all_sources_in_order() {
        let container = json!({
            "name": "a",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "here"}}, {"secretRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "ONE", "value": "1"},
                {"name": "TWO", "value": "$(ONE)-$(WEB_SERVICE_HOST)-$(NONE)-$$(ONE)"},
                {"name": "P_k", "value": "over"},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "here", "key": "s"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "here", "key": "no", "optional": true}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
        });
        let want = [
            "P_k=over",
            "P_x.y=z",
            "ONE=1",
            "TWO=1-10.43.0.9-$(NONE)-$(ONE)",
            "S=t",
            "N=p",
            "WEB_SERVICE_HOST=10.43.0.9",
        ];
        assert_eq!(run(container).expect("variables"), want);
    }

    #[test]
    fn what_is_missing_is_named_as_upstream() {
        let from = |source: Value| {
            run(json!({"name": "a", "env": [{"name": "X", "valueFrom": source}]})).expect_err("missing")
        };
        let key = json!({"name": "gone", "key": "k"});
        assert_eq!(from(json!({"configMapKeyRef": key})), "configmap \"gone\" not found");
        assert_eq!(from(json!({"secretKeyRef": key})), "secret \"gone\" not found");
        let key = json!({"name": "here", "key": "no"});
        assert_eq!(from(json!({"configMapKeyRef": key})), "couldn't find key no in ConfigMap n/here");
        let all = run(json!({"name": "a", "envFrom": [{"secretRef": {"name": "gone"}}]}));
        assert_eq!(all.expect_err("missing"), "secret \"gone\" not found");
    }

    #[test]
    fn expansion_follows_upstream() {
        let value = |name: &str| if name == "A" { Some("1") } else { None };
        for (text, want) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("a$", "a$"),
            ("$(A)$(A)", "11"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, value), want, "{text}");
        }
    }

    #[test]
    fn services_become_variables() {
        let service = |namespace: &str, name: &str, ip: &str| -> Service {
            let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
            let value =
                json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": ip, "ports": ports}});
            serde_json::from_value(value).expect("a service")
        };
        let all = [
            service("default", "kubernetes", "10.43.0.1"),
            service("n", "my-web", "10.43.0.2"),
            service("n", "headless", "None"),
            service("o", "other", "10.43.0.3"),
        ];
        let names = |links| -> Vec<String> {
            service_variables(all.iter(), "n", links)
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect()
        };
        assert!(names(false).iter().all(|name| name.starts_with("KUBERNETES_")));
        let linked = names(true);
        for want in [
            "MY_WEB_SERVICE_HOST=10.43.0.2",
            "MY_WEB_SERVICE_PORT=80",
            "MY_WEB_SERVICE_PORT_HTTP=80",
            "MY_WEB_PORT=tcp://10.43.0.2:80",
            "MY_WEB_PORT_80_TCP=tcp://10.43.0.2:80",
            "MY_WEB_PORT_80_TCP_ADDR=10.43.0.2",
        ] {
            assert!(linked.iter().any(|line| line == want), "{want} in {linked:?}");
        }
        assert!(!linked.iter().any(|line| line.starts_with("OTHER") || line.starts_with("HEADLESS")));
    }
}
