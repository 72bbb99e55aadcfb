//! Clocks that are wrong, jump, or are not there: a node neither trusts nor refuses wrongly, and signed time helps.

use super::fleet::{Board, Fleet, seconds};
use edgelet::api::object::ObjectExt;
use edgelet::client::{CERTIFICATESIGNINGREQUESTS, PODS};
use edgelet::node::joining::Step;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::time::Duration;

const TEN_YEARS: SignedDuration = SignedDuration::from_hours(24 * 3652);

async fn pod(fleet: &Fleet, name: &str) -> serde_json::Value {
    let spec = json!({"nodeName": "one", "containers": [{"name": "c", "image": "app:1"}]});
    fleet.create(PODS, "default", json!({"metadata": {"name": name}, "spec": spec})).await;
    fleet.ready_pod(name).await
}

fn off(fleet: &Fleet, board: &Board) -> SignedDuration {
    board.clock.now().duration_since(fleet.clock.now()).abs()
}

/// Time passes without anybody doing anything in it, then all look up: cheaper than to live through it.
async fn sleep_through(duration: Duration) {
    tokio::time::advance(duration.saturating_sub(Duration::from_secs(60))).await;
    seconds(60).await;
}

/// The floor on the board's disk.
fn floor(board: &Board) -> Timestamp {
    let text = std::fs::read_to_string(board.folder.path().join("node/time-floor")).unwrap();
    let statement: serde_json::Value = serde_json::from_str(&text).unwrap();
    statement.str_at(&["time"]).parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_nodes_clock_may_jump_ten_years_either_way() {
    let (fleet, boards) = Fleet::of(&["one"]).await;
    let board = &boards[0];
    let first = pod(&fleet, "first").await;
    for (round, by) in [TEN_YEARS, -TEN_YEARS, -TEN_YEARS, TEN_YEARS].into_iter().enumerate() {
        board.clock.jump(by);
        seconds(30).await;
        // Every connection is made anew, and judged by what the board takes for the time.
        board.line.tear();
        board.connected().await;
        fleet.ready("one").await;
        pod(&fleet, &format!("after-{round}")).await;
        assert!(off(&fleet, board).as_secs() <= 300, "round {round}: off by {:#}", off(&fleet, board));
    }
    assert_eq!(board.starts(&first), 1);
    let requests = fleet.list(CERTIFICATESIGNINGREQUESTS, "").await.len();
    assert!(requests < 20, "{requests} requests for certificates");
}

#[tokio::test(start_paused = true)]
async fn a_board_starts_with_any_clock_and_goes_by_the_servers() {
    let (fleet, mut boards) = Fleet::of(&["one"]).await;
    seconds(2).await;
    let kept = floor(&boards[0]);
    for machine in [Timestamp::UNIX_EPOCH, fleet.clock.now() + TEN_YEARS, fleet.clock.now() - TEN_YEARS] {
        boards[0].power_off().await;
        seconds(60).await;
        boards[0].line.cut();
        // Without the server it is no earlier than what was signed last.
        let boots_at = machine;
        boards[0].clock = edgelet::clock::Clock::simulated(boots_at);
        let identity = boards[0].identity();
        let ca = std::fs::read_to_string(identity.directory().join("ca.crt")).unwrap();
        edgelet::node::time::restore(&identity, &ca, &boards[0].clock);
        assert!(boards[0].clock.now() >= kept && boards[0].clock.now() >= boots_at.max(kept));
        boards[0].line.mend();
        boards[0].power_on(boots_at).await;
        boards[0].connected().await;
        fleet.ready("one").await;
        assert!(off(&fleet, &boards[0]).as_secs() <= 300, "{machine}: off by {:#}", off(&fleet, &boards[0]));
    }
}

#[tokio::test(start_paused = true)]
async fn the_servers_clock_may_jump_ten_years_either_way() {
    let (fleet, boards) = Fleet::of(&["one", "two"]).await;
    let first = pod(&fleet, "first").await;
    for (round, by) in [TEN_YEARS, -TEN_YEARS, -TEN_YEARS, TEN_YEARS].into_iter().enumerate() {
        fleet.clock.jump(by);
        seconds(120).await;
        for board in &boards {
            board.line.tear();
            board.connected().await;
            fleet.ready(&board.name).await;
        }
        pod(&fleet, &format!("after-{round}")).await;
    }
    assert_eq!(boards[0].starts(&first), 1);
    // A day later nobody is off any more, wherever the server's clock has been.
    sleep_through(Duration::from_secs(24 * 3600)).await;
    for board in &boards {
        assert!(off(&fleet, board).as_secs() <= 300, "{}: off by {:#}", board.name, off(&fleet, board));
    }
}

#[tokio::test(start_paused = true)]
async fn the_floor_is_kept_and_rewritten_at_most_daily() {
    let (fleet, mut boards) = Fleet::of(&["one"]).await;
    seconds(2).await;
    let (first, mut writes, mut last) = (floor(&boards[0]), 0, floor(&boards[0]));
    for hour in 1..=50_i64 {
        // A line that breaks every hour asks for no more.
        boards[0].line.tear();
        sleep_through(Duration::from_secs(3600)).await;
        let now = floor(&boards[0]);
        if now != last {
            writes += 1;
            assert!(now.duration_since(last) >= SignedDuration::from_hours(24), "after {hour} h: {last} {now}");
            last = now;
        }
    }
    assert!(last > first && writes == 2, "{writes} writes in two days");
    // Restarts do not write it either.
    for _ in 0..5 {
        boards[0].stop().await;
        boards[0].start().await;
        boards[0].connected().await;
        seconds(60).await;
    }
    assert_eq!(floor(&boards[0]), last);
    fleet.ready("one").await;
}

#[tokio::test(start_paused = true)]
async fn a_board_ten_years_ahead_or_behind_joins() {
    let fleet = Fleet::new().await;
    let token = fleet.token(|_| {}).await;
    for (name, by) in [("ahead", TEN_YEARS), ("behind", -TEN_YEARS)] {
        let mut board = fleet.board_with_clock(name, fleet.clock.now() + by);
        board.join(&token).await.unwrap();
        assert!(board.steps.lock().unwrap().iter().any(|step| matches!(step, Step::ClockCorrected { .. })));
        board.start().await;
        fleet.ready(name).await;
        assert!(off(&fleet, &board).as_secs() <= 300);
        board.stop().await;
    }
}
