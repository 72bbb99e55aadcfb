//! EndpointSlices of Services with a selector: at most 100 endpoints each, moved as little as possible.

use super::{PodFacts, SERVICE_NAME, ZONE, Zones, families, is_selecting, labels, selected, services_of_pod};
use crate::api::status::Result;
use crate::api::view::meta::Any;
use crate::api::view::service::{Endpoint, EndpointPort, EndpointSlice, Service};
use crate::client::informer::Change;
use crate::client::{DeleteOptions, PatchType};
use crate::client::{ENDPOINTSLICES, Informer, Item, NODES, PODS, SERVICES};
use crate::controllers::runner::{Reconcile, Source};
use crate::controllers::{CATCH_UP_LIMIT, Tools, owners};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const ENDPOINTS_LIMIT: usize = 100;
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Name of the index of our slices by Service.
const BY_SERVICE: &str = "service";

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Create(Value),
    /// A merge patch.
    Update(String, Value),
    Delete(String),
}

/// Address type and ports: endpoints that differ in them need slices of their own.
type Group = (String, Vec<String>);

fn group_key(family: &str, ports: &[EndpointPort]) -> Group {
    let mut ports: Vec<String> =
        ports.iter().map(|port| serde_json::to_string(port).expect("a port is plain data")).collect();
    ports.sort();
    (family.to_owned(), ports)
}

struct Wanted {
    ports: Vec<EndpointPort>,
    endpoints: BTreeMap<String, Endpoint>,
}

fn wanted(service: &Service, pods: &[PodFacts], zones: &Zones) -> BTreeMap<Group, Wanted> {
    let mut groups: BTreeMap<Group, Wanted> = BTreeMap::new();
    for family in families(service) {
        for pod in pods {
            let Some(address) = pod.address(family) else { continue };
            let ports = pod.ports(service);
            let group = groups.entry(group_key(family, &ports));
            let group = group.or_insert_with(|| Wanted { ports, endpoints: BTreeMap::new() });
            group.endpoints.insert(pod.metadata.uid.clone(), pod.endpoint(service, address, zones));
        }
        if !groups.keys().any(|(known, _)| known == family) {
            // One empty slice says that there is nothing, rather than nothing known.
            groups.insert(group_key(family, &[]), Wanted { ports: Vec::new(), endpoints: BTreeMap::new() });
        }
    }
    groups
}

/// `existing`: the slices we manage for this Service.
fn plan(service: &Service, pods: &[PodFacts], zones: &Zones, existing: &[EndpointSlice]) -> Vec<Action> {
    let mut actions = Vec::new();
    let labels = labels(service, &[(SERVICE_NAME, &service.metadata.name), (MANAGED_BY, MANAGER)]);
    let mut groups = wanted(service, pods, zones);
    let mut of_group: BTreeMap<Group, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing.iter().filter(|slice| !slice.metadata.is_deleting()) {
        let key = group_key(&slice.address_type, &slice.ports);
        if groups.contains_key(&key) {
            of_group.entry(key).or_default().push(slice);
        } else {
            actions.push(Action::Delete(slice.metadata.name.clone()));
        }
    }
    for (key, group) in &mut groups {
        let slices = of_group.remove(key).unwrap_or_default();
        actions.extend(fill(service, &key.0, group, &slices, &labels));
    }
    actions
}

/// Keeps endpoints where they are, fills what has room, opens new slices, closes empty ones.
fn fill(
    service: &Service,
    family: &str,
    group: &mut Wanted,
    slices: &[&EndpointSlice],
    labels: &Map<String, Value>,
) -> Vec<Action> {
    let mut filled: Vec<(Option<&EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let kept = slice.endpoints.iter().filter_map(|endpoint| {
            let uid = &endpoint.target_ref.as_ref()?.uid;
            group.endpoints.remove(uid)
        });
        filled.push((Some(*slice), kept.collect()));
    }
    let mut rest = std::mem::take(&mut group.endpoints).into_values();
    // Slices that change anyway take new endpoints first.
    filled.sort_by_key(|(slice, kept)| slice.is_some_and(|slice| slice.endpoints == *kept));
    for (_, endpoints) in &mut filled {
        let room = ENDPOINTS_LIMIT.saturating_sub(endpoints.len());
        endpoints.extend(rest.by_ref().take(room));
    }
    loop {
        let next: Vec<Endpoint> = rest.by_ref().take(ENDPOINTS_LIMIT).collect();
        if next.is_empty() && !filled.is_empty() {
            break;
        }
        filled.push((None, next));
    }
    let mut keep_empty = filled.iter().all(|(_, endpoints)| endpoints.is_empty());
    let mut actions = Vec::new();
    for (slice, endpoints) in filled {
        let keep = !endpoints.is_empty() || std::mem::take(&mut keep_empty);
        match slice {
            Some(slice) if !keep => actions.push(Action::Delete(slice.metadata.name.clone())),
            Some(slice) => actions.extend(update(slice, &endpoints, labels)),
            None if keep => actions.push(Action::Create(create(service, family, &group.ports, &endpoints, labels))),
            None => {}
        }
    }
    actions
}

fn update(slice: &EndpointSlice, endpoints: &[Endpoint], labels: &Map<String, Value>) -> Option<Action> {
    let mut relabelled: Map<String, Value> = labels.clone();
    relabelled.retain(|key, value| slice.metadata.labels.get(key).map(String::as_str) != value.as_str());
    let stale = slice.metadata.labels.keys().filter(|key| !labels.contains_key(*key));
    relabelled.extend(stale.map(|key| (key.clone(), Value::Null)));
    if slice.endpoints == endpoints && relabelled.is_empty() {
        return None;
    }
    let patch = json!({"metadata": {"labels": relabelled}, "endpoints": endpoints});
    Some(Action::Update(slice.metadata.name.clone(), patch))
}

fn create(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: &[Endpoint],
    labels: &Map<String, Value>,
) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"generateName": format!("{}-", service.metadata.name), "namespace": service.metadata.namespace,
            "labels": labels, "ownerReferences": [owners::reference("v1", "Service", &service.metadata)]},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    })
}

pub struct Controller {
    tools: Tools,
    services: Informer,
    pods: Informer,
    nodes: Informer,
    slices: Informer,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let (services, pods) = (tools.informers.all(SERVICES), tools.informers.all(PODS));
        let (nodes, slices) = (tools.informers.all(NODES), tools.informers.all(ENDPOINTSLICES));
        slices.index(BY_SERVICE, service_key);
        let (of_pod, of_node) = (services.clone(), services.clone());
        let sources = vec![
            Source::own(&services),
            Source::new(&pods, move |change| services_of_pod(change, &of_pod)),
            Source::new(&slices, |change| {
                let either = change.new.as_ref().or(change.old.as_ref());
                either.map(service_key).unwrap_or_default()
            }),
            Source::new(&nodes, move |change| services_of_zone(change, &of_node)),
        ];
        (Arc::new(Self { tools: tools.clone(), services, pods, nodes, slices }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        // The slices of a Service that is gone go with their owner.
        let Some(item) = self.services.by_key(key) else { return Ok(None) };
        let service: Service = item.view()?;
        if !is_selecting(&service) {
            return Ok(None);
        }
        let existing: Vec<EndpointSlice> =
            self.slices.by_index(BY_SERVICE, key).iter().map(Item::view).collect::<Result<_>>()?;
        let pods = selected(&self.pods, &service);
        for action in plan(&service, &pods, &self.zones(), &existing) {
            self.apply(&service.metadata.namespace, action).await?;
        }
        Ok(None)
    }

    fn zones(&self) -> Zones {
        let views = self.nodes.list().into_iter().filter_map(|item| item.view::<Any>().ok());
        views.filter_map(|node| Some((node.metadata.name, node.metadata.labels.get(ZONE)?.clone()))).collect()
    }

    async fn apply(&self, namespace: &str, action: Action) -> Result<()> {
        let client = &self.tools.client;
        let written = match action {
            Action::Create(object) => client.create(ENDPOINTSLICES, namespace, object).await?,
            Action::Update(name, patch) => {
                client.patch(ENDPOINTSLICES, namespace, &name, "", PatchType::Merge, patch).await?
            }
            Action::Delete(name) => {
                return match client.delete(ENDPOINTSLICES, namespace, &name, &DeleteOptions::default()).await {
                    Err(error) if !error.is_not_found() => Err(error),
                    _ => Ok(()),
                };
            }
        };
        self.slices.caught_up(&written, CATCH_UP_LIMIT).await;
        Ok(())
    }
}

/// The Service of a slice that we manage.
fn service_key(item: &Item) -> Vec<String> {
    let Ok(slice) = item.view::<Any>() else { return Vec::new() };
    let labels = &slice.metadata.labels;
    let ours = labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER);
    let name = labels.get(SERVICE_NAME).filter(|_| ours);
    name.map(|name| format!("{}/{name}", slice.metadata.namespace)).into_iter().collect()
}

/// All Services when a node's zone changed; every other change of a node leaves endpoints alone.
fn services_of_zone(change: &Change, services: &Informer) -> Vec<String> {
    let zone = |item: &Option<Item>| item.as_ref()?.view::<Any>().ok()?.metadata.labels.remove(ZONE);
    if zone(&change.old) == zone(&change.new) {
        return Vec::new();
    }
    services.list().iter().filter_map(|item| item.identity().ok().map(|identity| identity.key())).collect()
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }

    /// Every node hears of each change: of a large Service they are told together.
    fn rests(&self) -> u32 {
        10
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::endpoints::tests::{pod, service};

    /// What the API would hold after the actions.
    fn applied(mut slices: Vec<EndpointSlice>, actions: Vec<Action>) -> Vec<EndpointSlice> {
        for action in actions {
            match action {
                Action::Create(mut object) => {
                    object["metadata"]["name"] = format!("web-{}", slices.len()).into();
                    slices.push(serde_json::from_value(object).expect("slice"));
                }
                Action::Update(name, patch) => {
                    let slice = slices.iter_mut().find(|slice| slice.metadata.name == name).expect("slice");
                    let mut object = serde_json::to_value(&*slice).expect("slice");
                    json_patch::merge(&mut object, &patch);
                    *slice = serde_json::from_value(object).expect("slice");
                }
                Action::Delete(name) => slices.retain(|slice| slice.metadata.name != name),
            }
        }
        slices
    }

    fn run(service: &Service, pods: &[PodFacts], slices: Vec<EndpointSlice>) -> Vec<EndpointSlice> {
        let actions = plan(service, pods, &Zones::new(), &slices);
        let slices = applied(slices, actions);
        assert_eq!(plan(service, pods, &Zones::new(), &slices), [], "a second pass has nothing to do");
        slices
    }

    fn sizes(slices: &[EndpointSlice]) -> Vec<usize> {
        slices.iter().map(|slice| slice.endpoints.len()).collect()
    }

    #[test]
    fn slices_follow_their_pods_and_hold_a_hundred_each() {
        let service = service(json!({}));
        let pods: Vec<PodFacts> = (0..230).map(|n| pod(&format!("p{n}"), json!({}))).collect();
        let slices = run(&service, &[], Vec::new());
        assert_eq!(sizes(&slices), [0], "one empty slice");
        let slices = run(&service, &pods[..1], slices);
        assert_eq!(sizes(&slices), [1]);
        let (first, port) = (&slices[0], &slices[0].ports[0]);
        assert_eq!((port.name.as_str(), port.port, port.protocol.as_str()), ("http", Some(8080), "TCP"));
        assert_eq!(first.metadata.labels[SERVICE_NAME], "web");
        assert_eq!(first.metadata.labels[MANAGED_BY], MANAGER);
        assert_eq!(first.metadata.labels["team"], "x");
        let slices = run(&service, &pods, slices);
        assert_eq!(sizes(&slices), [100, 100, 30]);
        let slices = run(&service, &pods[50..], slices);
        assert_eq!(sizes(&slices).iter().sum::<usize>(), 180);
        let slices = run(&service, &[], slices);
        assert_eq!(sizes(&slices), [0]);
    }

    #[test]
    fn an_unready_pod_changes_only_its_slice() {
        let service = service(json!({}));
        let mut pods: Vec<PodFacts> = (0..120).map(|n| pod(&format!("p{n}"), json!({}))).collect();
        let slices = run(&service, &pods, Vec::new());
        pods[0] = pod("p0", json!({"status": {"conditions": null}}));
        let actions = plan(&service, &pods, &Zones::new(), &slices);
        assert_eq!(actions.len(), 1);
    }

    #[test]
    fn pods_with_other_port_numbers_get_their_own_slice() {
        let other = json!({"spec": {"containers": [{"ports": [{"name": "web", "containerPort": 9090}]}]}});
        let pods = [pod("p1", json!({})), pod("p2", other)];
        let slices = run(&service(json!({})), &pods, Vec::new());
        assert_eq!(sizes(&slices), [1, 1]);
    }

    #[test]
    fn families_are_kept_apart() {
        let dual = json!({"status": {"podIPs": [{"ip": "10.42.0.1"}, {"ip": "fd00::1"}]}});
        let service = service(json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}}));
        let slices = run(&service, &[pod("p1", dual)], Vec::new());
        let types: Vec<&str> = slices.iter().map(|slice| slice.address_type.as_str()).collect();
        assert_eq!(types, ["IPv4", "IPv6"]);
        assert_eq!(slices[1].endpoints[0].addresses, ["fd00::1"]);
    }

    #[test]
    fn labels_of_the_service_are_taken_over_and_given_up() {
        let pods = [pod("p1", json!({}))];
        let slices = run(&service(json!({})), &pods, Vec::new());
        let headless = service(json!({"metadata": {"labels": null}, "spec": {"clusterIP": "None"}}));
        let slices = run(&headless, &pods, slices);
        let labels = &slices[0].metadata.labels;
        assert!(labels.contains_key(super::super::HEADLESS) && !labels.contains_key("team"));
    }
}
