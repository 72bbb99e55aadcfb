//! What an idle board says, and that nothing on the way makes it deaf: the economy and the liveness of the two
//! connections it keeps.

use crate::bed::{Bed, can_run, pod};
use crate::fleet::{join, phase, server_url};
use std::time::Duration;

/// Frames of an idle board in a minute, both ways and of all causes: six or seven pings of three frames each at the
/// first interval, two questions to the idle connection, and the address resolution that goes with them.
const FRAMES_A_MINUTE: u64 = 45;

#[test]
fn an_idle_board_is_quiet() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("idle");
    for (name, address) in [("a", "192.0.2.2"), ("b", "192.0.2.3")] {
        bed.add(name, address);
        join(&mut bed, name, &server_url());
    }
    bed.until("both are Ready", |bed| bed.ready("a") == "True" && bed.ready("b") == "True");
    bed.apply(&pod("on-a", "a"));
    bed.until("the pod runs", |bed| phase(bed, "on-a") == "Running");
    // Bookmarks of what has just changed come after a minute.
    std::thread::sleep(Duration::from_secs(70));
    bed.count("a");
    std::thread::sleep(Duration::from_secs(60));
    let counted = bed.counted("a");
    eprintln!("{counted:?}");
    let frames =
        |cause: &str| counted.iter().filter(|(name, _)| name.contains(cause)).map(|(_, n)| n.frames).sum::<u64>();
    assert!(frames("") <= FRAMES_A_MINUTE, "{counted:#?}");
    assert!(frames("API") >= 1, "the idle connection is kept alive: {counted:#?}");
    assert_eq!(frames("other"), 0, "{counted:#?}");
    assert!(frames("probe") <= 4, "a peer that answered is left alone: {counted:#?}");
}

#[test]
fn a_board_behind_a_router_that_forgets_idle_connections_hears_of_its_pods() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("forgets");
    // Less than the API connection is silent, more than the tunnel is: whoever sends to a forgotten one is refused.
    bed.router.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", "25");
    bed.add_behind_router("n");
    join(&mut bed, "n", &server_url());
    bed.until("the board is Ready", |bed| bed.ready("n") == "True");
    std::thread::sleep(Duration::from_secs(75));
    bed.apply(&pod("on-n", "n"));
    let waited = bed.until("the pod runs", |bed| phase(bed, "on-n") == "Running");
    eprintln!("heard of and Running after {waited:?}");
}
