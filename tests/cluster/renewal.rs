//! Certificates are renewed in place, authorities are rotated, and boards that were away for years come back.

use super::fleet::{Board, Fleet, deployment, seconds};
use edgelet::api::object::ObjectExt;
use edgelet::client::{CERTIFICATESIGNINGREQUESTS, DAEMONSETS, DEPLOYMENTS, NODES, PODS, SECRETS};
use edgelet::pki::certificate;
use edgelet::registry::DeleteOptions;
use jiff::Timestamp;
use serde_json::{Value, json};

const YEARS: i64 = 365;

/// When the certificate on the board's disk ends.
fn ends(board: &Board) -> Timestamp {
    board.identity().load().unwrap().unwrap().credentials.not_after
}

fn days_left(board: &Board) -> i64 {
    ends(board).duration_since(board.clock.now()).as_hours() / 24
}

async fn until(what: &str, limit_s: u64, mut condition: impl FnMut() -> bool) {
    for _ in 0..limit_s {
        if condition() {
            return;
        }
        seconds(1).await;
    }
    assert!(condition(), "{what}: not within {limit_s} s");
}

fn daemon(name: &str) -> Value {
    let mut object = deployment(name, 0);
    object["spec"].as_object_mut().unwrap().remove("replicas");
    object
}

async fn ready_pods(fleet: &Fleet, count: usize) -> Vec<Value> {
    let ready = |pod: &&Value| super::fleet::condition(pod, "Ready") == "True";
    fleet.until("pods are ready", PODS, |pods| pods.iter().filter(ready).count() == count).await
}

async fn denials(fleet: &Fleet) -> Vec<String> {
    let requests = fleet.list(CERTIFICATESIGNINGREQUESTS, "").await;
    let conditions = requests.iter().flat_map(|one| one.at(&["status", "conditions"]).and_then(Value::as_array));
    let denied = conditions.flatten().filter(|one| one["type"] == "Denied");
    denied.map(|one| one.str_at(&["message"]).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_before_its_end_without_a_break() {
    let (fleet, boards) = Fleet::of(&["one", "two"]).await;
    fleet.create(DEPLOYMENTS, "default", deployment("web", 4)).await;
    let pods = ready_pods(&fleet, 4).await;
    let before: Vec<Timestamp> = boards.iter().map(ends).collect();
    let calls: Vec<u64> = boards.iter().map(|board| board.line.calls()).collect();

    fleet.days(&boards, 200);
    seconds(5).await;
    assert_eq!(boards.iter().map(ends).collect::<Vec<_>>(), before, "not before its last third");
    fleet.days(&boards, 60);
    seconds(5).await;
    until("renewed", 60, || boards.iter().zip(&before).all(|(board, before)| ends(board) > *before)).await;
    assert!(boards.iter().all(|board| days_left(board) >= 364));

    // Nothing was given up for it: tunnels and watches went on, and events arrive.
    for (board, calls) in boards.iter().zip(calls) {
        assert!(board.is_connected());
        assert!(board.line.calls() <= calls + 6, "{} connections for a renewal", board.line.calls() - calls);
    }
    let names: Vec<&str> = pods.iter().map(Value::uid).collect();
    let after = ready_pods(&fleet, 4).await;
    assert_eq!(after.iter().map(Value::uid).collect::<Vec<_>>(), names);
    assert!(boards.iter().flat_map(|board| after.iter().map(|pod| board.starts(pod))).all(|starts| starts <= 1));
    fleet.create(DEPLOYMENTS, "default", deployment("more", 2)).await;
    ready_pods(&fleet, 6).await;

    // The old certificate ends; nobody notices but the tunnels, which show the new one from then on.
    fleet.days(&boards, 110);
    seconds(5).await;
    for board in &boards {
        board.connected().await;
        fleet.ready(&board.name).await;
    }
    assert_eq!(fleet.list(PODS, "").await.len(), 6);
    assert!(denials(&fleet).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again_by_itself() {
    let (fleet, boards) = Fleet::of(&["one"]).await;
    let (board, before) = (&boards[0], ends(&boards[0]));
    // The key's record says another key: the server denies, for a while.
    let record = fleet.get(SECRETS, "kube-system", "one.node-key").await.unwrap();
    let key = record.at(&["data", "spki-sha256"]).cloned().unwrap();
    let (calls, begun) = (board.line.calls(), tokio::time::Instant::now());
    let other = json!({"data": {"spki-sha256": base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD, "00".repeat(32))}});
    fleet.patch(SECRETS, "kube-system", "one.node-key", "", other).await;
    fleet.days(&boards, 300);
    seconds(5).await;
    seconds(600).await;
    assert_eq!(ends(board), before);
    // Then it is right again, and no connection tells the board so.
    fleet.patch(SECRETS, "kube-system", "one.node-key", "", json!({"data": {"spki-sha256": key}})).await;
    until("renewed by itself", 4000, || ends(board) > before).await;
    // The tunnel and the API each try twice a minute; how many minutes it takes is up to chance.
    let (more, minutes) = (board.line.calls() - calls, begun.elapsed().as_secs() / 60);
    assert!(more <= 10 + 6 * minutes, "{more} connections in {minutes} minutes");
}

#[tokio::test(start_paused = true)]
async fn after_five_years_away_a_board_is_known_by_its_key_and_its_pods_run_on() {
    let (fleet, mut boards) = Fleet::of(&["one", "two"]).await;
    fleet.create(DAEMONSETS, "default", daemon("agent")).await;
    let pods = ready_pods(&fleet, 2).await;
    let own = pods.iter().find(|pod| pod.str_at(&["spec", "nodeName"]) == "one").unwrap().clone();
    boards[0].line.cut();
    boards[0].line.tear();
    seconds(120).await;
    for _ in 0..5 {
        fleet.days(&boards, YEARS);
        seconds(5).await;
        seconds(600).await;
    }
    assert!(days_left(&boards[0]) < -4 * YEARS + 10, "{}", days_left(&boards[0]));
    assert!(days_left(&boards[1]) > 200, "who was there has renewed: {}", days_left(&boards[1]));
    assert_eq!(boards[0].pods().await, [own.uid()], "pods run on without the server");

    // A stranger that calls itself the same does not get in, whatever token it has.
    let token = fleet.token(|_| {}).await;
    let refused = fleet.board("one").join(&token).await.unwrap_err().to_string();
    assert!(refused.contains("edgelet node forget one"), "{refused}");

    boards[0].line.mend();
    boards[0].connected().await;
    fleet.ready("one").await;
    let pods = ready_pods(&fleet, 2).await;
    assert!(pods.iter().any(|pod| pod.uid() == own.uid()), "the same pod");
    assert_eq!(boards[0].starts(&own), 1, "never restarted");
    assert!(days_left(&boards[0]) >= 364);

    // The same after five years in a drawer, without a battery: the floor is what it knows of the time.
    boards[1].power_off().await;
    seconds(120).await;
    let rest = &boards[..1];
    for _ in 0..5 {
        fleet.days(rest, YEARS);
        seconds(5).await;
        seconds(600).await;
    }
    boards[1].power_on(Timestamp::UNIX_EPOCH).await;
    boards[1].connected().await;
    fleet.ready("two").await;
    let off = boards[1].clock.now().duration_since(fleet.clock.now());
    assert!(off.abs().as_secs() <= 300, "{off}");
    ready_pods(&fleet, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_board_that_was_away_during_a_rotation_returns_and_renewals_go_on() {
    let (fleet, boards) = Fleet::of(&["here", "away"]).await;
    fleet.create(DAEMONSETS, "default", daemon("agent")).await;
    let pods = ready_pods(&fleet, 2).await;
    let away = &boards[1];
    away.line.cut();
    away.line.tear();
    seconds(120).await;
    let old = edgelet::pki::hex(fleet.pki.trust().current.key_hash());
    let rotate = format!("/edgelet/v1/authorities/rotate?from={old}");
    fleet.remote.raw(http::Method::POST, &rotate, None).await.unwrap();
    let signed_by_current = |board: &Board| {
        let own = board.identity().load().unwrap().unwrap().credentials.der().unwrap().0;
        certificate::is_signed_by(&own, fleet.pki.trust().current.der())
    };
    until("who is there follows", 300, || signed_by_current(&boards[0])).await;
    fleet.ready("here").await;
    let admin = fleet.pki.issue_client("admin", Some("system:masters")).unwrap();
    let mut access = (*fleet.remote.access()).clone();
    access.ca_pem = fleet.pki.ca_pem().into_bytes();
    access.client_certificate_pem = admin.certificate_pem.into_bytes();
    access.client_key_pem = admin.key_pem.into_bytes();
    fleet.remote.reload(access).unwrap();
    fleet.remote.raw(http::Method::POST, "/edgelet/v1/authorities/finish", None).await.unwrap();
    seconds(60).await;
    assert!(!signed_by_current(away));

    away.line.mend();
    away.connected().await;
    until("it follows too", 300, || signed_by_current(away)).await;
    fleet.ready("away").await;
    fleet.ready("here").await;
    let known = std::fs::read_to_string(away.folder.path().join("node/ca.crt")).unwrap();
    assert!(known.contains(fleet.pki.trust().current.pem()), "and trusts the new authority");

    // A renewal after it, by date; not within an hour of the last.
    let before: Vec<Timestamp> = boards.iter().map(ends).collect();
    fleet.days(&boards, 300);
    seconds(5).await;
    until("renewed", 3700, || boards.iter().zip(&before).all(|(board, before)| ends(board) > *before)).await;
    assert!(boards.iter().all(signed_by_current));
    let after = ready_pods(&fleet, 2).await;
    assert_eq!(after.iter().map(Value::uid).collect::<Vec<_>>(), pods.iter().map(Value::uid).collect::<Vec<_>>());
    assert!(pods.iter().all(|pod| boards.iter().map(|board| board.starts(pod)).sum::<u32>() == 1), "none restarted");
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_board_is_out_at_once_and_asks_no_more_than_it_may() {
    let (fleet, boards) = Fleet::of(&["one"]).await;
    let options = DeleteOptions::default();
    fleet.delete(SECRETS, "kube-system", "one.node-key", options.clone()).await;
    fleet.delete(NODES, "", "one", options).await;
    seconds(30).await;
    assert!(!boards[0].is_connected() && !fleet.tunnels.is_connected("one"), "its tunnel has ended");
    let calls = boards[0].line.calls();
    seconds(3600).await;
    let more = boards[0].line.calls() - calls;
    assert!(more <= 400, "{more} connections in an hour");
    assert!(fleet.get(NODES, "", "one").await.is_none());
}
