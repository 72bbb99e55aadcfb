//! How far a rollout may go beyond and below the wanted number of pods.

use crate::api::view::workload::Deployment;
use crate::controllers::portion::portion;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub replicas: i64,
    pub max_surge: i64,
    pub max_unavailable: i64,
}

impl Bounds {
    pub fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1).max(0);
        let strategy = &deployment.spec.strategy;
        if strategy.r#type == "Recreate" {
            return Self { replicas, max_surge: 0, max_unavailable: 0 };
        }
        let quarter = Value::from("25%");
        let (surge, unavailable) = match &strategy.rolling_update {
            Some(update) => (&update.max_surge, &update.max_unavailable),
            None => (&quarter, &quarter),
        };
        let max_surge = portion(surge, replicas, true);
        let mut max_unavailable = portion(unavailable, replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            // Otherwise nothing could ever move.
            max_unavailable = 1;
        }
        Self { replicas, max_surge, max_unavailable: max_unavailable.min(replicas) }
    }

    pub fn min_available(self) -> i64 {
        self.replicas - self.max_unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        for (replicas, surge, unavailable, expected) in [
            (4, json!("25%"), json!("25%"), (1, 1)),
            (10, json!("25%"), json!("25%"), (3, 2)),
            (3, json!("25%"), json!("25%"), (1, 0)),
            (10, json!(2), json!(3), (2, 3)),
            (2, json!(0), json!("10%"), (0, 1)),
            (2, json!(0), json!(5), (0, 2)),
            (0, json!("25%"), json!("25%"), (0, 0)),
        ] {
            let object = json!({"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
            let bounds = Bounds::of(&serde_json::from_value(object).expect("deployment"));
            assert_eq!((bounds.max_surge, bounds.max_unavailable), expected, "{replicas} {surge} {unavailable}");
        }
    }
}
