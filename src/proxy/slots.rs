//! Spreads backends over a fixed number of slots: a random slot is a random backend. Pure.
//! When backends change, few slots do, so few map elements are rewritten and sticky clients stay.

use std::net::SocketAddrV4;

/// Each backend gets ⌊count/n⌋ or one more. `backends` is sorted and not empty.
pub fn fill(previous: &[SocketAddrV4], backends: &[SocketAddrV4], count: usize) -> Vec<SocketAddrV4> {
    let floor = count / backends.len();
    let mut extra = count % backends.len();
    let mut used = vec![0; backends.len()];
    let mut slots: Vec<Option<usize>> = vec![None; count];
    if previous.len() == count {
        for (slot, old) in slots.iter_mut().zip(previous) {
            let Ok(index) = backends.binary_search(old) else { continue };
            let is_extra = used[index] == floor;
            if used[index] < floor || (is_extra && extra > 0) {
                extra -= usize::from(is_extra);
                used[index] += 1;
                *slot = Some(index);
            }
        }
    }
    let mut next = 0;
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        let fits = |index: &usize, extra: usize| used[*index] < floor || (extra > 0 && used[*index] == floor);
        let turn = (0..backends.len()).map(|step| (next + step) % backends.len());
        // First those below their share, then those that get one more.
        let index = turn.clone().find(|index| fits(index, 0)).or_else(|| turn.clone().find(|index| fits(index, extra)));
        let index = index.expect("shares add up to the number of slots");
        extra -= usize::from(used[index] == floor);
        used[index] += 1;
        next = index + 1;
        *slot = Some(index);
    }
    slots.into_iter().flatten().map(|index| backends[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn backends(hosts: &[u8]) -> Vec<SocketAddrV4> {
        hosts.iter().map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 42, 0, *host), 80)).collect()
    }

    fn shares(slots: &[SocketAddrV4], backends: &[SocketAddrV4]) -> Vec<usize> {
        backends.iter().map(|backend| slots.iter().filter(|slot| *slot == backend).count()).collect()
    }

    #[test]
    fn shares_differ_by_one_at_most() {
        for n in 1..40u8 {
            let list = backends(&(1..=n).collect::<Vec<_>>());
            let slots = fill(&[], &list, 16);
            let shares = shares(&slots, &list);
            assert_eq!(slots.len(), 16);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }

    #[test]
    fn few_slots_move() {
        let three = backends(&[1, 2, 3]);
        let before = fill(&[], &three, 16);
        let moved = |after: &[SocketAddrV4]| before.iter().zip(after).filter(|(old, new)| old != new).count();
        // One replaced, one gone, one more.
        for (list, most) in
            [(backends(&[1, 2, 9]), 6), (backends(&[1, 2]), 6), (backends(&[1, 2, 3, 4]), 4), (three.clone(), 0)]
        {
            let after = fill(&before, &list, 16);
            assert!(moved(&after) <= most, "{list:?}: {}", moved(&after));
            let shares = shares(&after, &list);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }
}
