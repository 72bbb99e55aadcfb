//! Requests and limits in the kernel's units: CPU shares, quotas, bytes, OOM scores, QoS classes. Pure.

use super::memory::Role;
use super::memory::init_role;
use crate::api::view::pod::{Container, Pod, ResourceRequirements};
use crate::runtime::{Qos, Resources};
use serde_json::Value;
use std::collections::BTreeMap;

const SHARES_PER_CPU: i128 = 1024;
const SHARES_LOW: u64 = 2;
const SHARES_HIGH: u64 = 262_144;
const PERIOD_US: i64 = 100_000;
/// The kernel refuses less.
const QUOTA_LOW_US: i64 = 1_000;
const OOM_SCORE_GUARANTEED: i32 = -997;
const OOM_SCORE_BEST_EFFORT: i32 = 1000;

/// A quantity in billionths: `100m` = 100 000 000, `1Ki` = 1024 × 10⁹. `None`: not a quantity.
pub fn nanos(quantity: &Value) -> Option<i128> {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let end = text.find(|c: char| c.is_ascii_alphabetic() && !is_exponent(&text, c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        _ => 1_000_000_000 * factor(suffix)?,
    };
    decimal(number, scale)
}

fn is_exponent(text: &str, c: char) -> bool {
    // `1e3` and `1E3` are numbers; `1E` is exa.
    matches!(c, 'e' | 'E')
        && text
            .split(c)
            .nth(1)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-')))
}

fn factor(suffix: &str) -> Option<i128> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|known| *known == suffix);
    let power = |place: usize| u32::try_from(place + 1).unwrap_or(0);
    if let Some(place) = binary {
        return Some(1024_i128.pow(power(place)));
    }
    let place = ["k", "M", "G", "T", "P", "E"].iter().position(|known| *known == suffix)?;
    Some(1000_i128.pow(power(place)))
}

fn decimal(number: &str, scale: i128) -> Option<i128> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent: i32 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = exponent - i32::try_from(fraction.len()).ok()?;
    let power = 10_i128.checked_pow(places.unsigned_abs())?;
    let scaled = digits.checked_mul(scale)?;
    if places >= 0 { scaled.checked_mul(power) } else { Some((scaled + power - 1).div_euclid(power)) }
}

/// Whole units, rounded up, as `Quantity.Value()`.
pub fn units(quantity: &Value) -> Option<i64> {
    ceil_div(nanos(quantity)?, 1_000_000_000)
}

/// Thousandths, rounded up, as `Quantity.MilliValue()`.
pub fn millis(quantity: &Value) -> Option<i64> {
    ceil_div(nanos(quantity)?, 1_000_000)
}

pub fn ceil_div(value: i128, by: i128) -> Option<i64> {
    i64::try_from((value + by - 1).div_euclid(by)).ok()
}

/// A container's request; an absent one is its limit.
fn request<'a>(resources: &'a ResourceRequirements, name: &str) -> Option<&'a Value> {
    resources.requests.get(name).or_else(|| resources.limits.get(name))
}

/// `Guaranteed`, `Burstable` or `BestEffort`, by CPU and memory of every container.
pub fn qos_class(pod: &Pod) -> &'static str {
    match qos(pod) {
        Qos::Guaranteed => "Guaranteed",
        Qos::Burstable => "Burstable",
        Qos::BestEffort => "BestEffort",
    }
}

pub fn qos(pod: &Pod) -> Qos {
    match pod.status.qos_class.as_str() {
        "Guaranteed" => return Qos::Guaranteed,
        "Burstable" => return Qos::Burstable,
        "BestEffort" => return Qos::BestEffort,
        _ => {}
    }
    let positive = |map: &BTreeMap<String, Value>, name: &str| map.get(name).and_then(nanos).filter(|value| *value > 0);
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        for name in ["cpu", "memory"] {
            let limit = positive(&container.resources.limits, name);
            let wanted = positive(&container.resources.requests, name);
            any |= limit.is_some() || wanted.is_some();
            guaranteed &= limit.is_some() && wanted.is_none_or(|wanted| Some(wanted) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// One container's limits. `node_memory_bytes` scales the OOM score of burstable containers.
pub fn container_resources(pod: &Pod, container: &Container, node_memory_bytes: i64) -> Resources {
    let resources = &container.resources;
    let memory = |value: Option<&Value>| value.and_then(units).unwrap_or(0);
    let memory_request_bytes = memory(request(resources, "memory"));
    Resources {
        cpu_shares: shares(request(resources, "cpu").and_then(millis).unwrap_or(0)),
        cpu_quota_us: resources.limits.get("cpu").and_then(millis).map_or(0, quota_us),
        cpu_period_us: PERIOD_US.unsigned_abs(),
        memory_limit_bytes: memory(resources.limits.get("memory")),
        memory_request_bytes,
        pids_limit: 0,
        oom_score_adj: oom_score_adj(qos(pod), memory_request_bytes, node_memory_bytes),
        hugepage_limits: hugepages(resources),
    }
}

fn hugepages(resources: &ResourceRequirements) -> BTreeMap<String, u64> {
    let sized = |(name, value): (&String, &Value)| {
        let size = name.strip_prefix("hugepages-")?;
        Some((size.to_owned(), units(value)?.unsigned_abs()))
    };
    resources.limits.iter().filter_map(sized).collect()
}

/// The pod's own cgroup: the sum of the containers', limits only where each container has one.
pub fn pod_resources(pod: &Pod, node_memory_bytes: i64) -> Resources {
    let long_lived = pod.spec.init_containers.iter().filter(|container| init_role(container) == Role::Sidecar);
    let long_lived: Vec<Resources> = long_lived
        .chain(&pod.spec.containers)
        .map(|container| container_resources(pod, container, node_memory_bytes))
        .collect();
    let passing = pod.spec.init_containers.iter().filter(|container| init_role(container) == Role::Init);
    let passing: Vec<Resources> =
        passing.map(|container| container_resources(pod, container, node_memory_bytes)).collect();
    let limit = |pick: fn(&Resources) -> i64| -> i64 {
        if long_lived.iter().chain(&passing).any(|one| pick(one) == 0) {
            return 0;
        }
        let sum: i64 = long_lived.iter().map(pick).fold(0, i64::saturating_add);
        passing.iter().map(pick).fold(sum, i64::max)
    };
    let requested_cpu: i64 =
        pod.spec.containers.iter().filter_map(|c| request(&c.resources, "cpu").and_then(millis)).sum();
    Resources {
        cpu_shares: shares(requested_cpu),
        cpu_quota_us: limit(|one| one.cpu_quota_us),
        cpu_period_us: PERIOD_US.unsigned_abs(),
        memory_limit_bytes: limit(|one| one.memory_limit_bytes),
        memory_request_bytes: long_lived.iter().map(|one| one.memory_request_bytes).sum(),
        ..Resources::default()
    }
}

fn shares(milli_cpu: i64) -> u64 {
    let shares = i128::from(milli_cpu.max(0)) * SHARES_PER_CPU / 1000;
    u64::try_from(shares).unwrap_or(SHARES_HIGH).clamp(SHARES_LOW, SHARES_HIGH)
}

fn quota_us(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 { 0 } else { (milli_cpu.saturating_mul(PERIOD_US) / 1000).max(QUOTA_LOW_US) }
}

fn oom_score_adj(qos: Qos, memory_request_bytes: i64, node_memory_bytes: i64) -> i32 {
    match qos {
        Qos::Guaranteed => OOM_SCORE_GUARANTEED,
        Qos::BestEffort => OOM_SCORE_BEST_EFFORT,
        Qos::Burstable => {
            let share = i128::from(memory_request_bytes) * 1000 / i128::from(node_memory_bytes.max(1));
            let score = i32::try_from(1000 - share).unwrap_or(0);
            // Never below a guaranteed container, never equal to a best-effort one.
            score.clamp(1000 + OOM_SCORE_GUARANTEED, OOM_SCORE_BEST_EFFORT - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_read_as_upstream() {
        for (text, want) in [
            ("100m", Some(100_000_000)),
            ("1", Some(1_000_000_000)),
            ("0.5", Some(500_000_000)),
            ("1Ki", Some(1_024_000_000_000)),
            ("1e3", Some(1_000_000_000_000)),
            ("2E", Some(2_000_000_000_000_000_000_000_000_000)),
            ("1.5Gi", Some(1_610_612_736_000_000_000)),
            ("x", None),
            ("1Q", None),
        ] {
            assert_eq!(nanos(&json!(text)), want, "{text}");
        }
        assert_eq!(units(&json!("100m")), Some(1));
        assert_eq!(millis(&json!(2)), Some(2000));
    }

    #[test]
    fn kernel_units() {
        for (milli, want_shares, want_quota) in [(0, 2, 0), (1, 2, 1000), (250, 256, 25_000), (2000, 2048, 200_000)] {
            assert_eq!((shares(milli), quota_us(milli)), (want_shares, want_quota), "{milli}m");
        }
        assert_eq!(oom_score_adj(Qos::Burstable, 0, 1 << 30), 999);
        assert_eq!(oom_score_adj(Qos::Burstable, 1 << 29, 1 << 30), 500);
        assert_eq!(oom_score_adj(Qos::Burstable, 1 << 30, 1 << 30), 3);
    }

    #[test]
    fn qos_classes() {
        let class = |resources: Value| {
            let pod = json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
            qos_class(&serde_json::from_value(pod).expect("pod"))
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
    }
}
