//! A way between two boards that goes bad while nothing else changes: only pods' packets without an answer tell.

use crate::bed::{Bed, can_run};
use crate::fleet::{join, server_url};
use crate::relay::{ip, is_ready, page, speaker, way};

/// A way may have been looked at a moment before it went bad, and each end rests a minute between two looks.
const LIMIT_S: u64 = 240;

#[test]
fn a_way_that_drops_packets_silently_is_left_when_pods_get_no_answer() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("silence");
    for (name, address) in [("a", "192.0.2.2"), ("b", "192.0.2.3")] {
        bed.add(name, address);
        join(&mut bed, name, &server_url());
    }
    for name in ["a", "b"] {
        bed.until(&format!("{name} is Ready"), |bed| bed.ready(name) == "True");
        bed.apply(&speaker(&format!("on-{name}"), name, name));
    }
    for name in ["a", "b"] {
        bed.until(&format!("the pod on {name} is ready"), |bed| is_ready(bed, &format!("on-{name}")));
    }
    let ways = |bed: &Bed| [bed.nodes["a"].way("b"), bed.nodes["b"].way("a")];
    let (direct, relayed) =
        ([way("route", "works"), way("route", "works")], [way("relay", "works"), way("relay", "works")]);
    bed.until("both use the direct way", |bed| ways(bed) == direct);
    let (to, answer) = (ip(&bed, "on-b"), format!("b {}", ip(&bed, "on-a")));
    let answers = |bed: &Bed| page(bed, "on-a", &to, 8080) == answer;
    assert!(answers(&bed), "{}", bed.scene());

    bed.part("a", "b");
    bed.part("b", "a");
    let took = bed.until_within(LIMIT_S, "a pod that asks is answered by another way", answers);
    eprintln!("answered {took:?} after the way fell silent both ways");
    bed.until("both have left it", |bed| ways(bed) == relayed);

    bed.heal();
    let took = bed.until_within(LIMIT_S, "the direct way is taken again while packets pass", |bed| {
        answers(bed) && ways(bed) == direct
    });
    eprintln!("back after {took:?}");

    // The question arrives; only who answers it can mend that.
    bed.part("b", "a");
    let took = bed.until_within(LIMIT_S, "a pod whose questions arrive is answered by another way", answers);
    eprintln!("answered {took:?} after the way fell silent one way");
    bed.until("both have left it again", |bed| ways(bed) == relayed);
}
