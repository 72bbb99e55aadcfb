//! A question and the zone → an answer, or where to ask further. Pure.

use super::zone::{Data, Zone};
use crate::network::ipam::Cidr;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;
use std::str::FromStr;

/// Answers of the cluster may change at any moment; CoreDNS' value.
pub const TTL_S: u32 = 5;
const NEGATIVE_TTL_S: u32 = 5;

/// What goes into a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
}

impl Reply {
    pub fn failure(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: Vec::new(), authorities: Vec::new(), additionals: Vec::new() }
    }
}

#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "lives for one question on the stack; a box would cost every question")]
pub enum Answer {
    /// From the zone.
    Local(Reply),
    /// No name of the cluster: ask upstream.
    Forward,
    /// An alias to a name outside: its records follow the alias.
    Follow { alias: Record, target: Name },
    /// A search expansion of a name outside: if that exists upstream, it is the answer, by an alias.
    /// Saves the client three more questions.
    Shortcut { target: Name },
}

/// Networks whose addresses belong to the cluster: nobody upstream knows them.
#[derive(Clone, Debug)]
pub struct Networks(pub Vec<Cidr>);

/// `rotate` varies the order of addresses from question to question.
pub fn answer(zone: &Zone, networks: &Networks, query: &Query, source: IpAddr, rotate: usize) -> Answer {
    let name = lower(query.name());
    if query.query_class() != DNSClass::IN {
        return Answer::Local(Reply::failure(ResponseCode::Refused));
    }
    if let Some(ip) = reversed(query.name()) {
        return match zone.reverse(ip) {
            found if !found.is_empty() => records(zone, query, &found, rotate),
            _ if networks.0.iter().any(|network| matches!(ip, IpAddr::V4(ip) if network.contains(ip))) => {
                Answer::Local(negative(zone, ResponseCode::NXDomain))
            }
            _ => Answer::Forward,
        };
    }
    let Some(inside) = inside(&name, zone.domain()) else { return Answer::Forward };
    match zone.lookup(inside) {
        Some(found) => records(zone, query, &found, rotate),
        None => match shortcut(zone, inside, query.query_type(), source) {
            Some(target) => Answer::Shortcut { target },
            None => Answer::Local(negative(zone, ResponseCode::NXDomain)),
        },
    }
}

/// The records of the wanted type; an alias instead, whatever is wanted.
fn records(zone: &Zone, query: &Query, found: &[Data], rotate: usize) -> Answer {
    if let [Data::Alias(target)] = found
        && query.query_type() != RecordType::CNAME
    {
        return alias(zone, query, target, rotate);
    }
    let mut answers: Vec<Record> = found.iter().filter_map(|data| record(zone, query.name(), data)).collect();
    answers.retain(|record| record.record_type() == query.query_type());
    if answers.is_empty() {
        return Answer::Local(negative(zone, ResponseCode::NoError));
    }
    let middle = rotate % answers.len();
    answers.rotate_left(middle);
    let additionals = answers.iter().flat_map(|answer| addresses_of_target(zone, answer)).collect();
    let code = ResponseCode::NoError;
    Answer::Local(Reply { code, authoritative: true, answers, authorities: Vec::new(), additionals })
}

fn alias(zone: &Zone, query: &Query, target: &str, rotate: usize) -> Answer {
    let Some(target_name) = fqdn(target) else {
        return Answer::Local(negative(zone, ResponseCode::NoError));
    };
    let alias = Record::from_rdata(query.name().clone(), TTL_S, RData::CNAME(CNAME(target_name.clone())));
    let Some(inside) = inside(&target.to_ascii_lowercase(), zone.domain()).map(str::to_owned) else {
        return Answer::Follow { alias, target: target_name };
    };
    // One step within the zone; an alias to an alias ends here.
    let further = Query::query(target_name, query.query_type());
    let found = zone.lookup(&inside).filter(|found| !matches!(found.as_slice(), [Data::Alias(_)]));
    let mut reply = match found.map(|found| records(zone, &further, &found, rotate)) {
        Some(Answer::Local(reply)) => reply,
        _ => negative(zone, ResponseCode::NoError),
    };
    reply.answers.insert(0, alias);
    Answer::Local(reply)
}

/// No such name, or none of that type; for how long, the SOA says.
pub fn negative(zone: &Zone, code: ResponseCode) -> Reply {
    let authorities = start(zone).into_iter().collect();
    Reply { code, authoritative: true, answers: Vec::new(), authorities, additionals: Vec::new() }
}

/// Only for the first search domain of the pod that asks: it would ask the shorter ones next, so those must
/// not exist either.
fn shortcut(zone: &Zone, inside: &str, kind: RecordType, source: IpAddr) -> Option<Name> {
    let namespace = zone.namespace_of(source)?;
    let stem = inside.strip_suffix(&format!(".{namespace}.svc"))?;
    let is_address = matches!(kind, RecordType::A | RecordType::AAAA);
    if !is_address
        || !stem.contains('.')
        || zone.lookup(&format!("{stem}.svc")).is_some()
        || zone.lookup(stem).is_some()
    {
        return None;
    }
    fqdn(stem)
}

fn record(zone: &Zone, name: &Name, data: &Data) -> Option<Record> {
    let data = match data {
        Data::Address(IpAddr::V4(ip)) => RData::A(A(*ip)),
        Data::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
        Data::Alias(target) => RData::CNAME(CNAME(fqdn(target)?)),
        Data::Service { port, target } => RData::SRV(SRV::new(0, 100, *port, fqdn(target)?)),
        Data::Pointer(target) => RData::PTR(PTR(fqdn(target)?)),
        Data::Text(text) => RData::TXT(TXT::new(vec![(*text).to_owned()])),
        Data::NameServer(target) => RData::NS(NS(fqdn(target)?)),
        Data::Start => return start(zone),
    };
    Some(Record::from_rdata(name.clone(), TTL_S, data))
}

fn start(zone: &Zone) -> Option<Record> {
    let domain = zone.domain();
    let (server, mailbox) = (fqdn(&format!("ns.dns.{domain}"))?, fqdn(&format!("hostmaster.{domain}"))?);
    let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86400, NEGATIVE_TTL_S);
    Some(Record::from_rdata(fqdn(domain)?, TTL_S, RData::SOA(soa)))
}

fn addresses_of_target(zone: &Zone, answer: &Record) -> Vec<Record> {
    let RData::SRV(service) = &answer.data else { return Vec::new() };
    let name = lower(&service.target);
    let found = inside(&name, zone.domain()).and_then(|inside| zone.lookup(inside)).unwrap_or_default();
    found.iter().filter_map(|data| record(zone, &service.target, data)).collect()
}

/// The part of a name before the domain; `None` when it is not of the domain.
fn inside<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

pub fn lower(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    text.truncate(text.trim_end_matches('.').len());
    text
}

fn fqdn(name: &str) -> Option<Name> {
    Name::from_str(&format!("{name}.")).ok()
}

/// The address that a whole name under `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(name: &Name) -> Option<IpAddr> {
    let network = name.parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

#[cfg(test)]
mod tests {
    use super::super::zone::tests::example;
    use super::*;

    fn ask(name: &str, kind: RecordType, source: &str) -> Answer {
        let networks = Networks(vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()]);
        let query = Query::query(Name::from_str(name).unwrap(), kind);
        answer(&example(), &networks, &query, source.parse().unwrap(), 0)
    }

    /// Code, records and whether there is an SOA for a negative answer.
    fn shown(answer: &Answer) -> String {
        match answer {
            Answer::Local(reply) => {
                let data: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
                let soa = if reply.authorities.is_empty() { "" } else { " soa" };
                format!("{:?} {}{soa}", reply.code, data.join(", "))
            }
            Answer::Forward => "forward".to_owned(),
            Answer::Follow { target, .. } => format!("follow {target}"),
            Answer::Shortcut { target } => format!("shortcut {target}"),
        }
    }

    #[test]
    fn questions_are_answered_as_kubernetes_says() {
        use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
        let cases = [
            ("web.default.svc.cluster.local.", A, "NoError 10.43.0.7"),
            ("WEB.Default.svc.cluster.LOCAL.", A, "NoError 10.43.0.7"),
            ("web.default.svc.cluster.local.", AAAA, "NoError  soa"),
            ("default.svc.cluster.local.", A, "NoError  soa"),
            ("no.default.svc.cluster.local.", A, "NXDomain  soa"),
            ("db.default.svc.cluster.local.", A, "NoError 10.42.0.2, 10.42.0.3"),
            ("_http._tcp.web.default.svc.cluster.local.", SRV, "NoError 0 100 80 web.default.svc.cluster.local."),
            ("7.0.43.10.in-addr.arpa.", PTR, "NoError web.default.svc.cluster.local."),
            ("9.9.43.10.in-addr.arpa.", PTR, "NXDomain  soa"),
            ("8.8.8.8.in-addr.arpa.", PTR, "forward"),
            ("dns-version.cluster.local.", TXT, "NoError 1.1.0"),
            ("cluster.local.", NS, "NoError ns.dns.cluster.local."),
            ("cluster.local.", SOA, "NoError ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"),
            ("ext.other.svc.cluster.local.", A, "follow www.example.com."),
            ("ext.other.svc.cluster.local.", CNAME, "NoError www.example.com."),
            ("www.example.com.", A, "forward"),
            ("notcluster.local.", A, "forward"),
        ];
        for (name, kind, expected) in cases {
            assert_eq!(shown(&ask(name, kind, "10.42.0.99")), expected, "{name} {kind}");
        }
    }

    #[test]
    fn search_expansions_of_outside_names_are_cut_short_for_pods_of_this_node() {
        let expanded = "www.example.com.default.svc.cluster.local.";
        let cases = [
            (expanded, RecordType::A, "10.42.0.50", "shortcut www.example.com."),
            (expanded, RecordType::AAAA, "10.42.0.50", "shortcut www.example.com."),
            (expanded, RecordType::SRV, "10.42.0.50", "NXDomain  soa"),
            (expanded, RecordType::A, "10.42.0.99", "NXDomain  soa"),
            ("www.example.com.other.svc.cluster.local.", RecordType::A, "10.42.0.50", "NXDomain  soa"),
            ("single.default.svc.cluster.local.", RecordType::A, "10.42.0.50", "NXDomain  soa"),
            ("web.default.default.svc.cluster.local.", RecordType::A, "10.42.0.50", "NXDomain  soa"),
            ("web.default.svc.default.svc.cluster.local.", RecordType::A, "10.42.0.50", "NXDomain  soa"),
        ];
        for (name, kind, source, expected) in cases {
            assert_eq!(shown(&ask(name, kind, source)), expected, "{name} from {source}");
        }
    }

    #[test]
    fn services_bring_their_addresses_along_and_addresses_rotate() {
        let Answer::Local(reply) = ask("_http._tcp.db.default.svc.cluster.local.", RecordType::SRV, "10.42.0.9") else {
            panic!("local")
        };
        let more: Vec<String> = reply.additionals.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(more, ["10.42.0.3", "10.42.0.2"]);
        let query = Query::query(Name::from_str("db.default.svc.cluster.local.").unwrap(), RecordType::A);
        let first = |rotate| match answer(&example(), &Networks(vec![]), &query, [10, 42, 0, 9].into(), rotate) {
            Answer::Local(reply) => reply.answers[0].data.to_string(),
            other => panic!("{other:?}"),
        };
        assert_ne!(first(0), first(1));
    }
}
