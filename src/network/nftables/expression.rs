//! What rules are made of: expressions over 32-bit registers, as `linux/netfilter/nf_tables.h` numbers them.

use super::attribute::Writer;
use crate::network::ipam::Cidr;
use std::net::Ipv4Addr;

/// The first of sixteen 32-bit registers. A concatenated key takes consecutive ones.
pub const R0: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_PROTOCOL: u32 = 1;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const IFNAMSIZ: usize = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const CT_STATE: u32 = 0;
const CT_STATE_NEW: u32 = 8;
const CT_STATUS: u32 = 2;
const CT_STATUS_CONFIRMED: u32 = 8;
const FIB_DADDR: u32 = 2;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const RTN_LOCAL: u32 = 2;
const NAT_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const MASQUERADE_FULLY_RANDOM: u32 = 16;
const REJECT_ICMP: u32 = 0;
const ICMP_PORT_UNREACHABLE: u8 = 3;
const HASH_JENKINS: u32 = 0;
const NUMGEN_RANDOM: u32 = 1;
const DYNSET_UPDATE: u32 = 1;
const DYNSET_DELETE: u32 = 2;
const RT_TCP_MSS: u32 = 3;
const TO_NETWORK_ORDER: u32 = 1;
const EXTHDR_TCP_OPTION: u32 = 1;
const TCP_OPTION_MAXSEG: u8 = 2;
const LOOKUP_INVERTED: u32 = 1;
const ETHERTYPE_IPV4: u16 = 0x0800;
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u8 = 2;
const TCP_RST: u8 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(&'static str),
    Goto(&'static str),
    Return,
}

const GOTO: i32 = -4;

impl Verdict {
    pub(super) fn write(&self, kind: u16, writer: &mut Writer) {
        match self {
            Self::Drop => write_verdict(kind, writer, 0, None),
            Self::Accept => write_verdict(kind, writer, 1, None),
            Self::Jump(chain) => write_verdict(kind, writer, -3, Some(chain)),
            Self::Goto(chain) => write_goto(kind, writer, chain),
            Self::Return => write_verdict(kind, writer, -5, None),
        }
    }
}

/// To a chain whose name is made while the program runs.
pub(super) fn write_goto(kind: u16, writer: &mut Writer, chain: &str) {
    write_verdict(kind, writer, GOTO, Some(chain));
}

fn write_verdict(kind: u16, writer: &mut Writer, code: i32, chain: Option<&str>) {
    writer.nest(kind, |data| {
        data.nest(2, |verdict| {
            verdict.bytes(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    });
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    Payload {
        to: u32,
        header: u32,
        offset: u32,
        length: u32,
    },
    Meta {
        to: u32,
        key: u32,
    },
    SetMeta {
        from: u32,
        key: u32,
    },
    Ct {
        to: u32,
        key: u32,
    },
    FibDestinationType {
        to: u32,
    },
    Compare {
        from: u32,
        operation: u32,
        value: Vec<u8>,
    },
    Bitwise {
        from: u32,
        to: u32,
        mask: u32,
        xor: u32,
    },
    /// Goes on if the key is in the set.
    InSet {
        set: &'static str,
        from: u32,
    },
    NotInSet {
        set: &'static str,
        from: u32,
    },
    /// The segment size that fits the packet's route, and the one back.
    RouteSegmentSize {
        to: u32,
    },
    /// Two bytes, from the machine's order to the network's.
    NetworkOrder {
        register: u32,
    },
    /// Writes the TCP option, if it is there and larger.
    SetSegmentSize {
        from: u32,
    },
    /// Goes on, with the value, if the key is in the map.
    Map {
        set: &'static str,
        from: u32,
        to: u32,
    },
    /// Takes the verdict the map has for the key.
    VerdictMap {
        set: &'static str,
        from: u32,
    },
    /// Writes what the registers say into a set that packets write, or lets an element live on. Sets without values
    /// have no data.
    Remember {
        set: &'static str,
        key: u32,
        data: Option<u32>,
        timeout_s: u32,
    },
    /// The kernel wants to know registers of the data too.
    Forget {
        set: &'static str,
        key: u32,
        data: u32,
    },
    Value {
        to: u32,
        value: Vec<u8>,
    },
    /// Tells whoever listens to the group of nfnetlink_log.
    Log {
        group: u16,
    },
    Verdict(Verdict),
    Random {
        to: u32,
        modulus: u32,
    },
    Hash {
        from: u32,
        length: u32,
        to: u32,
        modulus: u32,
    },
    Dnat {
        address: u32,
        port: u32,
    },
    Masquerade,
    Reject,
    NoTrack,
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Ct { .. } => "ct",
            Self::FibDestinationType { .. } => "fib",
            Self::Compare { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::RouteSegmentSize { .. } => "rt",
            Self::NetworkOrder { .. } => "byteorder",
            Self::SetSegmentSize { .. } => "exthdr",
            Self::InSet { .. } | Self::NotInSet { .. } | Self::Map { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Remember { .. } | Self::Forget { .. } => "dynset",
            Self::Value { .. } | Self::Verdict(_) => "immediate",
            Self::Log { .. } => "log",
            Self::Random { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Dnat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject => "reject",
            Self::NoTrack => "notrack",
        }
    }

    pub(super) fn write(&self, rule: &mut Writer) {
        rule.nest(1, |expression| {
            expression.text(1, self.name()).nest(2, |data| self.write_data(data));
        });
    }

    fn write_data(&self, data: &mut Writer) {
        match self {
            Self::Payload { to, header, offset, length } => {
                data.number(1, *to).number(2, *header).number(3, *offset).number(4, *length);
            }
            Self::Meta { to, key } | Self::Ct { to, key } => {
                data.number(1, *to).number(2, *key);
            }
            Self::SetMeta { from, key } => {
                data.number(2, *key).number(3, *from);
            }
            Self::FibDestinationType { to } => {
                data.number(1, *to).number(2, FIB_RESULT_ADDRTYPE).number(3, FIB_DADDR);
            }
            Self::Compare { from, operation, value } => {
                data.number(1, *from).number(2, *operation).nest(3, |inner| {
                    inner.bytes(1, value);
                });
            }
            Self::Bitwise { from, to, mask, xor } => {
                data.number(1, *from).number(2, *to).number(3, 4);
                // As they lie in the register: callers give network order for addresses.
                for (kind, value) in [(4, mask), (5, xor)] {
                    data.nest(kind, |inner| {
                        inner.bytes(1, &value.to_ne_bytes());
                    });
                }
            }
            Self::InSet { set, from } => {
                data.text(1, set).number(2, *from);
            }
            Self::NotInSet { set, from } => {
                data.text(1, set).number(2, *from).number(5, LOOKUP_INVERTED);
            }
            Self::RouteSegmentSize { to } => {
                data.number(1, *to).number(2, RT_TCP_MSS);
            }
            Self::NetworkOrder { register } => {
                data.number(1, *register).number(2, *register).number(3, TO_NETWORK_ORDER).number(4, 2).number(5, 2);
            }
            Self::SetSegmentSize { from } => {
                data.bytes(2, &[TCP_OPTION_MAXSEG]).number(3, 2).number(4, 2);
                data.number(6, EXTHDR_TCP_OPTION).number(7, *from);
            }
            Self::Map { set, from, to } => {
                data.text(1, set).number(2, *from).number(3, *to);
            }
            Self::VerdictMap { set, from } => {
                data.text(1, set).number(2, *from).number(3, VERDICT_REGISTER);
            }
            Self::Remember { set, key, data: value, timeout_s } => {
                data.text(1, set).number(3, DYNSET_UPDATE).number(4, *key);
                if let Some(value) = value {
                    data.number(5, *value);
                }
                data.bytes(6, &(u64::from(*timeout_s) * 1000).to_be_bytes());
            }
            Self::Forget { set, key, data: value } => {
                data.text(1, set).number(3, DYNSET_DELETE).number(4, *key).number(5, *value);
            }
            Self::Log { group } => {
                data.bytes(1, &group.to_be_bytes());
            }
            Self::Value { to, value } => {
                data.number(1, *to).nest(2, |inner| {
                    inner.bytes(1, value);
                });
            }
            Self::Verdict(verdict) => {
                data.number(1, VERDICT_REGISTER);
                verdict.write(2, data);
            }
            Self::Random { to, modulus } => {
                data.number(1, *to).number(2, *modulus).number(3, NUMGEN_RANDOM).number(4, 0);
            }
            Self::Hash { from, length, to, modulus } => {
                data.number(1, *from).number(2, *to).number(3, *length).number(4, *modulus);
                data.number(5, 0).number(7, HASH_JENKINS);
            }
            Self::Dnat { address, port } => {
                data.number(1, NAT_DNAT).number(2, NFPROTO_IPV4).number(3, *address).number(5, *port);
            }
            Self::Masquerade => {
                data.number(1, MASQUERADE_FULLY_RANDOM);
            }
            Self::Reject => {
                data.number(1, REJECT_ICMP).bytes(2, &[ICMP_PORT_UNREACHABLE]);
            }
            Self::NoTrack => {}
        }
    }
}

pub fn load_source(to: u32) -> Expression {
    Expression::Payload { to, header: NETWORK_HEADER, offset: 12, length: 4 }
}

pub fn load_destination(to: u32) -> Expression {
    Expression::Payload { to, header: NETWORK_HEADER, offset: 16, length: 4 }
}

pub fn load_protocol(to: u32) -> Expression {
    Expression::Meta { to, key: META_L4PROTO }
}

pub fn load_source_port(to: u32) -> Expression {
    Expression::Payload { to, header: TRANSPORT_HEADER, offset: 0, length: 2 }
}

pub fn load_destination_port(to: u32) -> Expression {
    Expression::Payload { to, header: TRANSPORT_HEADER, offset: 2, length: 2 }
}

pub fn equal(from: u32, value: &[u8]) -> Expression {
    Expression::Compare { from, operation: EQUAL, value: value.to_vec() }
}

pub fn not_equal(from: u32, value: &[u8]) -> Expression {
    Expression::Compare { from, operation: NOT_EQUAL, value: value.to_vec() }
}

fn within(load: Expression, network: Cidr, inside: bool) -> Vec<Expression> {
    let mask = u32::from_ne_bytes(network.mask().octets());
    let compare = if inside { equal } else { not_equal };
    vec![load, Expression::Bitwise { from: R0, to: R0, mask, xor: 0 }, compare(R0, &network.base().octets())]
}

pub fn source_in(network: Cidr) -> Vec<Expression> {
    within(load_source(R0), network, true)
}

pub fn destination_in(network: Cidr) -> Vec<Expression> {
    within(load_destination(R0), network, true)
}

pub fn destination_not_in(network: Cidr) -> Vec<Expression> {
    within(load_destination(R0), network, false)
}

pub fn destination_is(ip: Ipv4Addr) -> Vec<Expression> {
    vec![load_destination(R0), equal(R0, &ip.octets())]
}

pub fn destination_is_not(ip: Ipv4Addr) -> Vec<Expression> {
    vec![load_destination(R0), not_equal(R0, &ip.octets())]
}

/// One of the node's own addresses, but not its loopback network.
pub fn destination_is_local() -> Vec<Expression> {
    let loopback: Cidr = "127.0.0.0/8".parse().expect("a constant");
    let mut expressions = vec![Expression::FibDestinationType { to: R0 }, equal(R0, &RTN_LOCAL.to_ne_bytes())];
    expressions.extend(destination_not_in(loopback));
    expressions
}

pub fn leaves_not_by(link: &str) -> Vec<Expression> {
    vec![Expression::Meta { to: R0, key: META_OIFNAME }, not_equal(R0, &link_name(link))]
}

pub fn leaves_by(link: &str) -> Vec<Expression> {
    vec![Expression::Meta { to: R0, key: META_OIFNAME }, equal(R0, &link_name(link))]
}

/// The link's name, which takes four registers.
pub fn load_input_link(to: u32) -> Expression {
    Expression::Meta { to, key: META_IIFNAME }
}

/// For tables of bridges, which see everything.
pub fn is_ipv4_frame() -> Vec<Expression> {
    vec![Expression::Meta { to: R0, key: META_PROTOCOL }, equal(R0, &ETHERTYPE_IPV4.to_be_bytes())]
}

/// Keeps the first `prefix` bits of an address.
pub fn masked(register: u32, prefix: u8) -> Expression {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Expression::Bitwise { from: register, to: register, mask: u32::from_ne_bytes(mask.to_be_bytes()), xor: 0 }
}

/// The first packet of a TCP connection, either way, gets the segment size of the way it goes.
pub fn clamp_segment_size() -> Vec<Expression> {
    let flags = u32::from_ne_bytes([TCP_SYN | TCP_RST, 0, 0, 0]);
    vec![
        load_protocol(R0),
        equal(R0, &[6]),
        Expression::Payload { to: R0, header: TRANSPORT_HEADER, offset: TCP_FLAGS_OFFSET, length: 1 },
        Expression::Bitwise { from: R0, to: R0, mask: flags, xor: 0 },
        equal(R0, &[TCP_SYN, 0, 0, 0]),
        Expression::RouteSegmentSize { to: R0 },
        Expression::NetworkOrder { register: R0 },
        Expression::SetSegmentSize { from: R0 },
    ]
}

pub fn link_name(link: &str) -> Vec<u8> {
    let mut name = link.as_bytes().to_vec();
    name.resize(IFNAMSIZ, 0);
    name
}

/// For tables that see IPv6 too: the expressions after it read an IPv4 header.
pub fn is_ipv4() -> Vec<Expression> {
    let protocol = u8::try_from(NFPROTO_IPV4).expect("a constant");
    vec![Expression::Meta { to: R0, key: META_NFPROTO }, equal(R0, &[protocol])]
}

pub fn is_new_connection() -> Vec<Expression> {
    vec![
        Expression::Ct { to: R0, key: CT_STATE },
        Expression::Bitwise { from: R0, to: R0, mask: CT_STATE_NEW, xor: 0 },
        not_equal(R0, &[0; 4]),
    ]
}

/// A packet after the first of a connection that nobody has answered yet: the first is not in the kernel's table
/// before it has left.
pub fn is_unanswered_again() -> Vec<Expression> {
    let mut expressions = is_new_connection();
    expressions.extend([
        Expression::Ct { to: R0, key: CT_STATUS },
        Expression::Bitwise { from: R0, to: R0, mask: CT_STATUS_CONFIRMED, xor: 0 },
        not_equal(R0, &[0; 4]),
    ]);
    expressions
}

pub fn is_marked(mark: u32) -> Vec<Expression> {
    vec![
        Expression::Meta { to: R0, key: META_MARK },
        Expression::Bitwise { from: R0, to: R0, mask: mark, xor: 0 },
        not_equal(R0, &[0; 4]),
    ]
}

/// Sets one bit of the packet's mark, or clears it.
pub fn mark(bit: u32, on: bool) -> Vec<Expression> {
    vec![
        Expression::Meta { to: R0, key: META_MARK },
        Expression::Bitwise { from: R0, to: R0, mask: !bit, xor: if on { bit } else { 0 } },
        Expression::SetMeta { from: R0, key: META_MARK },
    ]
}
