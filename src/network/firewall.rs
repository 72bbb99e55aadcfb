//! Firewalls of others whose forward chain drops (docker, ufw): an accept in a table of ours cannot help, so
//! one goes into theirs, with a comment that says whose it is.

use super::nftables::expression::{Expression, Verdict, destination_in, is_ipv4, source_in};
use super::nftables::{Batch, BatchError, Chain, Rule, Socket};
use super::plan::Layout;

const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;

/// Base chains that see forwarded IPv4 packets and drop them by default.
pub fn foreign_drops<'a>(chains: &'a [Chain], own_prefix: &'a str) -> impl Iterator<Item = &'a Chain> {
    let seen = |chain: &&Chain| matches!(chain.family, FAMILY_INET | FAMILY_IPV4);
    let drops = chains.iter().filter(|chain| chain.at_forward && chain.drops).filter(seen);
    drops.filter(move |chain| !chain.table.starts_with(own_prefix))
}

/// Both directions are accepted, first of all. Already so is success; else what a person must do.
pub fn open(socket: &Socket, chain: &Chain, layout: &Layout, own_prefix: &str) -> Result<(), String> {
    let comment = comment(own_prefix);
    let failed = |error: &dyn std::fmt::Display| {
        let Chain { name, table, .. } = chain;
        format!("chain {name} of table {table} drops forwarded packets: accept {} there ({error})", layout.cluster)
    };
    let rules = socket.rules(chain, &comment).map_err(|error| failed(&error))?;
    if rules.iter().filter(|rule| rule.has_comment).count() == 2 {
        return Ok(());
    }
    let family = if chain.family == FAMILY_INET { is_ipv4() } else { Vec::new() };
    let mut batch = Batch::default();
    delete_ours(&mut batch, chain, &rules);
    for direction in [source_in(layout.cluster), destination_in(layout.cluster)] {
        batch.insert_rule(chain, &[&family, &direction, &[Expression::Verdict(Verdict::Accept)]], &comment);
    }
    socket.commit(batch).map_err(|error| failed(&error))?;
    tracing::info!(
        table = chain.table,
        chain = chain.name,
        "let pod traffic pass a firewall that drops what is forwarded"
    );
    Ok(())
}

pub fn close(socket: &Socket, chain: &Chain, own_prefix: &str) -> Result<(), BatchError> {
    let rules = socket.rules(chain, &comment(own_prefix))?;
    let mut batch = Batch::default();
    delete_ours(&mut batch, chain, &rules);
    if batch.is_empty() { Ok(()) } else { socket.commit(batch) }
}

fn delete_ours(batch: &mut Batch, chain: &Chain, rules: &[Rule]) {
    for rule in rules.iter().filter(|rule| rule.has_comment) {
        batch.delete_rule(chain, rule.handle);
    }
}

fn comment(own_prefix: &str) -> String {
    format!("{own_prefix}: pod traffic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_chains_that_drop_what_is_forwarded_are_meant() {
        let chain = |family, table: &str, at_forward, drops| Chain {
            family,
            table: table.to_owned(),
            name: "FORWARD".to_owned(),
            at_forward,
            drops,
        };
        let chains = [
            chain(FAMILY_IPV4, "filter", true, true),
            chain(FAMILY_INET, "own firewall", true, true),
            chain(FAMILY_IPV4, "accepts", true, false),
            chain(FAMILY_IPV4, "input", false, true),
            chain(10, "ip6", true, true),
            chain(FAMILY_IPV4, "edgelet-services", true, true),
        ];
        let tables: Vec<&str> = foreign_drops(&chains, "edgelet").map(|chain| chain.table.as_str()).collect();
        assert_eq!(tables, ["filter", "own firewall"]);
    }
}
