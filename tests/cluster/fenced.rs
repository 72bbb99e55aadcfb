//! Fenced pods: the node ends them in time, and the server gives their names away only after that, whatever clocks say.

use super::fleet::{Board, Fleet, seconds};
use edgelet::api::object::ObjectExt;
use edgelet::client::{CERTIFICATESIGNINGREQUESTS, PODS};
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

fn pod(name: &str, node: &str, tolerates_s: i64, grace_s: i64) -> Value {
    let toleration = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": tolerates_s});
    json!({"metadata": {"name": name, "annotations": {"edgelet.io/fenced": "true",
            "fake.edgelet.dev/ignore-stop-signal": "true"}},
        "spec": {"nodeName": node, "tolerations": [toleration], "terminationGracePeriodSeconds": grace_s,
            "containers": [{"name": "c", "image": "app:1"}]}})
}

fn reason(pod: &Value) -> &str {
    let conditions = pod.at(&["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    let mut fenced = conditions.filter(|one| one["type"] == "edgelet.io/Fenced");
    fenced.next().map_or("", |one| one.str_at(&["reason"]))
}

/// When the pod ended on its board and when the server gave its name away, after now.
async fn race(fleet: &Fleet, board: &Board, uid: &str, limit_s: u64) -> (Option<Duration>, Option<Duration>) {
    let begun = Instant::now();
    let (mut ended, mut freed) = (None, None);
    while begun.elapsed().as_secs() < limit_s && (ended.is_none() || freed.is_none()) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let runs = board.pods().await.iter().any(|one| one == uid);
        let held = fleet.list(PODS, "").await.iter().any(|pod| pod.uid() == uid);
        assert!(held || !runs, "the name was given away after {:?} while the pod runs", begun.elapsed());
        ended = ended.or((!runs).then(|| begun.elapsed()));
        freed = freed.or((!held).then(|| begun.elapsed()));
    }
    (ended, freed)
}

#[tokio::test(start_paused = true)]
async fn a_fenced_pods_name_is_free_once_it_has_ended_on_its_silent_node() {
    // What it tolerates, its grace, what the node promises.
    for (tolerates_s, grace_s, promised_s) in [(60, 10, 100_u64), (0, 30, 70), (300, 30, 340)] {
        let (fleet, boards) = Fleet::of(&["one", "two", "three"]).await;
        fleet.create(PODS, "default", pod("db", "one", tolerates_s, grace_s)).await;
        let first = fleet.ready_pod("db").await;
        assert_eq!(reason(&first), format!("EndsWithin{promised_s}s"));
        boards[0].line.cut();
        let (ended, freed) = race(&fleet, &boards[0], first.uid(), 1000).await;
        let (ended, freed) = (ended.expect("it ends"), freed.expect("its name is free"));
        assert!(ended.as_secs() <= promised_s, "{ended:?}");
        // Hundredths for the clocks' rates, the server's margin, and what a Lease may lag behind a ping.
        let latest = promised_s + promised_s / 100 + 15 + 12;
        assert!(ended < freed && freed.as_secs() <= latest, "{ended:?} {freed:?} {latest}");
        fleet.create(PODS, "default", pod("db", "two", tolerates_s, grace_s)).await;
        let second = fleet.ready_pod("db").await;

        boards[0].line.mend();
        boards[0].connected().await;
        seconds(60).await;
        assert!(boards[0].pods().await.is_empty(), "it has given up what was replaced");
        assert_eq!(boards[1].pods().await, [second.uid()]);
    }
}

#[tokio::test(start_paused = true)]
async fn clocks_that_jump_and_cuts_at_any_moment_give_no_name_twice() {
    let (fleet, boards) = Fleet::of(&["one", "two", "three"]).await;
    let ten_years = SignedDuration::from_hours(24 * 3652);
    let none = SignedDuration::ZERO;
    let jumps = [(none, none), (ten_years, none), (-ten_years, none), (none, ten_years), (none, -ten_years)];
    for (round, (board_jump, server_jump)) in jumps.into_iter().enumerate() {
        fleet.create(PODS, "default", pod("db", "one", 10, 20)).await;
        let first = fleet.ready_pod("db").await;
        seconds(20).await;
        tokio::time::sleep(Duration::from_millis(3700 * u64::try_from(round).unwrap())).await;
        boards[0].line.cut();
        boards[0].clock.jump(board_jump);
        fleet.clock.jump(server_jump);
        let (ended, freed) = race(&fleet, &boards[0], first.uid(), 600).await;
        // A server whose clock is behind takes the pod for one of tomorrow, and evicts it then: late, never twice.
        let is_freed = freed.is_some() || server_jump.is_negative();
        assert!(ended.is_some() && is_freed, "round {round}: {ended:?} {freed:?}");
        boards[0].clock.jump(-board_jump);
        fleet.clock.jump(-server_jump);
        boards[0].line.mend();
        boards[0].connected().await;
        fleet.ready("one").await;
    }
    let requests = fleet.list(CERTIFICATESIGNINGREQUESTS, "").await.len();
    assert!(requests < 100, "{requests} requests for certificates");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_promised_is_not_given_away() {
    let (fleet, boards) = Fleet::of(&["one", "two", "three"]).await;
    let mut unfenced = pod("plain", "one", 10, 10);
    unfenced["metadata"]["annotations"].as_object_mut().unwrap().remove("edgelet.io/fenced");
    fleet.create(PODS, "default", unfenced).await;
    let plain = fleet.ready_pod("plain").await;
    boards[0].line.cut();
    seconds(60).await;
    // Too late: the node does not hear of it.
    let asked = json!({"metadata": {"annotations": {"edgelet.io/fenced": "true"}}});
    fleet.patch(PODS, "default", "plain", "", asked).await;
    let (ended, freed) = race(&fleet, &boards[0], plain.uid(), 3600).await;
    assert_eq!((ended, freed), (None, None), "it runs on, and keeps its name");
    boards[0].line.mend();
    boards[0].connected().await;
    fleet.until("it ends, as it was evicted", PODS, |pods| pods.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_short_absence_stops_nothing_and_a_restart_without_the_server_starts_nothing() {
    let (fleet, mut boards) = Fleet::of(&["one", "two", "three"]).await;
    fleet.create(PODS, "default", pod("db", "one", 0, 10)).await;
    let first = fleet.ready_pod("db").await;
    seconds(3600).await;
    assert_eq!(boards[0].starts(&first), 1, "it runs on from ping to ping");
    for _ in 0..5 {
        boards[0].line.cut();
        seconds(8).await;
        boards[0].line.mend();
        seconds(60).await;
    }
    assert_eq!((boards[0].starts(&first), boards[0].pods().await.len()), (1, 1));
    // edgelet is restarted while the server is there: nothing stops.
    boards[0].stop().await;
    boards[0].start().await;
    boards[0].connected().await;
    seconds(60).await;
    assert_eq!((boards[0].starts(&first), boards[0].pods().await.len()), (1, 1));
    // And while the server is away: it cannot know for how long.
    boards[0].line.cut();
    boards[0].stop().await;
    boards[0].start().await;
    seconds(20).await;
    assert!(boards[0].pods().await.is_empty());
    boards[0].line.mend();
    boards[0].connected().await;
    fleet.ready_pod("db").await;
    assert_eq!(boards[0].pods().await, [first.uid()]);
}
