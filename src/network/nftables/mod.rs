//! nf_tables by our own netlink batches: a batch is one transaction, applied whole or not at all.
//! Numbers are those of `linux/netfilter/nf_tables.h`.

pub mod attribute;
pub mod expression;
mod socket;

use attribute::Writer;
use expression::{Expression, Verdict};

pub use socket::{BatchError, Chain, Events, Rule, Socket};
pub(super) use socket::{messages, receive};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const GET_GENERATION: u16 = 16;
const GET_TABLE: u16 = 1;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// Packets of which kind a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4 = 2,
    /// Frames that pass a bridge.
    Bridge = 7,
}

const SET_IS_MAP: u32 = 8;
const SET_HAS_TIMEOUTS: u32 = 0x10;
/// Packets add elements.
const SET_IS_DYNAMIC: u32 = 0x20;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// One attribute holds at most 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Only our process may change the table, and it outlives our process: `nft flush ruleset` spares it.
/// Linux 6.9 and later.
pub const OWNED_AND_PERSISTENT: u32 = 0x6;

/// How `nft list` prints a field of a key or value; six bits each.
pub mod kind {
    pub const ADDRESS: u32 = 7;
    pub const PROTOCOL: u32 = 12;
    pub const PORT: u32 = 13;
    pub const MARK: u32 = 19;
    pub const LINK: u32 = 41;

    /// Bytes of a field, padded to registers.
    pub fn width(field: u32) -> u32 {
        if field == LINK { 16 } else { 4 }
    }

    pub fn concatenation(fields: &[u32]) -> u32 {
        fields.iter().fold(0, |all, field| all << 6 | field)
    }
}

/// Where packets pass a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A set of keys, or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetType {
    pub name: &'static str,
    pub key: Vec<u32>,
    pub value: ValueType,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueType {
    None,
    Verdict,
    Fields(Vec<u32>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    None,
    Refuse,
    Drop,
    /// To this chain.
    Goto(String),
    Bytes(Vec<u8>),
}

pub type Element = (Vec<u8>, Value);

/// Messages of one transaction.
#[derive(Debug)]
pub struct Batch {
    family: Family,
    writer: Writer,
    /// What each message does, by sequence number; the first is number 1.
    labels: Vec<String>,
    sets: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::of(Family::Ipv4)
    }
}

impl Batch {
    pub fn of(family: Family) -> Self {
        let mut batch = Self { family, writer: Writer::default(), labels: Vec::new(), sets: 0 };
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, String::new(), |_| {});
        batch
    }

    pub fn is_empty(&self) -> bool {
        self.labels.len() == 1
    }

    pub fn table(&mut self, table: &str, flags: u32) -> &mut Self {
        self.add(NEW_TABLE, CREATE, format!("add table {table}"), |message| {
            message.text(1, table).number(2, flags);
        })
    }

    pub fn delete_table(&mut self, table: &str) -> &mut Self {
        self.add(DELETE_TABLE, 0, format!("delete table {table}"), |message| {
            message.text(1, table);
        })
    }

    /// What `nft flush ruleset` does.
    pub fn flush_ruleset(&mut self) -> &mut Self {
        self.message(SUBSYSTEM << 8 | DELETE_TABLE, REQUEST, 0, 0, "flush ruleset".to_owned(), |_| {});
        self
    }

    pub fn chain(&mut self, table: &str, chain: &str) -> &mut Self {
        self.add(NEW_CHAIN, CREATE, format!("add chain {chain}"), |message| {
            message.text(1, table).text(3, chain);
        })
    }

    /// `kind` is `filter` or `nat`; the policy is accept.
    pub fn base_chain(&mut self, table: &str, chain: &str, kind: &str, hook: Hook, priority: i32) -> &mut Self {
        self.add(NEW_CHAIN, CREATE, format!("add chain {chain}"), |message| {
            message.text(1, table).text(3, chain).nest(4, |at| {
                at.number(1, hook as u32).bytes(2, &priority.to_be_bytes());
            });
            message.number(5, 1).text(7, kind);
        })
    }

    pub fn rule(&mut self, table: &str, chain: &str, parts: &[&[Expression]]) -> &mut Self {
        self.add(NEW_RULE, CREATE | APPEND, format!("add rule to chain {chain}"), |message| {
            message.text(1, table).text(2, chain).nest(4, |rule| {
                parts.iter().copied().flatten().for_each(|expression| expression.write(rule));
            });
        })
    }

    /// First in a chain of somebody else's, with a comment by which it is known again.
    pub fn insert_rule(&mut self, chain: &Chain, parts: &[&[Expression]], comment: &str) -> &mut Self {
        let label = format!("insert rule into chain {} of table {}", chain.name, chain.table);
        self.message(SUBSYSTEM << 8 | NEW_RULE, CREATE, chain.family, 0, label, |message| {
            message.text(1, &chain.table).text(2, &chain.name).nest(4, |rule| {
                parts.iter().copied().flatten().for_each(|expression| expression.write(rule));
            });
            message.bytes(7, &comment_data(comment));
        });
        self
    }

    pub fn delete_rule(&mut self, chain: &Chain, handle: u64) -> &mut Self {
        let label = format!("delete rule from chain {} of table {}", chain.name, chain.table);
        self.message(SUBSYSTEM << 8 | DELETE_RULE, 0, chain.family, 0, label, |message| {
            message.text(1, &chain.table).text(2, &chain.name).bytes(3, &handle.to_be_bytes());
        });
        self
    }

    pub fn set(&mut self, table: &str, set: &SetType) -> &mut Self {
        self.set_of(table, set, 0, None)
    }

    fn set_of(&mut self, table: &str, set: &SetType, flags: u32, limit: Option<u32>) -> &mut Self {
        self.sets += 1;
        let id = self.sets;
        let length = |fields: &[u32]| fields.iter().map(|field| kind::width(*field)).sum();
        self.add(NEW_SET, CREATE, format!("add set {}", set.name), |message| {
            let is_map = set.value != ValueType::None;
            message.text(1, table).text(2, set.name).number(3, flags | if is_map { SET_IS_MAP } else { 0 });
            message.number(4, kind::concatenation(&set.key)).number(5, length(&set.key));
            match &set.value {
                ValueType::None => {}
                ValueType::Verdict => {
                    message.number(6, VERDICT_TYPE);
                }
                ValueType::Fields(fields) => {
                    message.number(6, kind::concatenation(fields)).number(7, length(fields));
                }
            }
            if let Some(limit) = limit {
                message.nest(9, |description| {
                    description.number(1, limit);
                });
            }
            message.number(10, id);
        })
    }

    pub fn add_elements(&mut self, table: &str, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(NEW_ELEMENT, CREATE, table, set, elements)
    }

    /// A set or map whose elements packets write, and which forgets them again; at most `limit` of them.
    pub fn remembering_set(&mut self, table: &str, set: &SetType, limit: u32) -> &mut Self {
        self.set_of(table, set, SET_HAS_TIMEOUTS | SET_IS_DYNAMIC, Some(limit))
    }

    /// Values do not matter.
    pub fn delete_elements(&mut self, table: &str, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(DELETE_ELEMENT, 0, table, set, elements)
    }

    fn elements(&mut self, kind: u16, flags: u16, table: &str, set: &str, elements: &[Element]) -> &mut Self {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.add(kind, flags, format!("change elements of {set}"), |message| {
                message.text(1, table).text(2, set).nest(3, |list| {
                    for (key, value) in chunk {
                        list.nest(1, |element| write_element(element, key, (kind == NEW_ELEMENT).then_some(value)));
                    }
                });
            });
        }
        self
    }

    fn add(&mut self, kind: u16, flags: u16, label: String, write: impl FnOnce(&mut Writer)) -> &mut Self {
        self.message(SUBSYSTEM << 8 | kind, REQUEST | flags, self.family as u8, 0, label, write);
        self
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        label: String,
        write: impl FnOnce(&mut Writer),
    ) {
        self.labels.push(label);
        let sequence = u32::try_from(self.labels.len()).expect("a batch fits a socket buffer");
        write_message(&mut self.writer, kind, flags | REQUEST, sequence, family, resource, write);
    }

    fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        self.message(BATCH_END, 0, 0, SUBSYSTEM, String::new(), |_| {});
        (self.writer.0, self.labels)
    }
}

fn write_element(element: &mut Writer, key: &[u8], value: Option<&Value>) {
    element.nest(1, |inner| {
        inner.bytes(1, key);
    });
    match value {
        None | Some(Value::None) => {}
        Some(Value::Refuse) => Verdict::Goto(REFUSE_CHAIN).write(2, element),
        Some(Value::Drop) => Verdict::Drop.write(2, element),
        Some(Value::Goto(chain)) => expression::write_goto(2, element, chain),
        Some(Value::Bytes(bytes)) => {
            element.nest(2, |inner| {
                inner.bytes(1, bytes);
            });
        }
    }
}

/// A comment as `nft` keeps it beside a rule: type, length, text.
fn comment_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("comments are short");
    [&[0, length], comment.as_bytes(), &[0]].concat()
}

/// The chain that `Value::Refuse` goes to: it rejects.
pub const REFUSE_CHAIN: &str = "refuse";

/// One netlink message with nfnetlink's header.
pub(in crate::network) fn write_message(
    writer: &mut Writer,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    write: impl FnOnce(&mut Writer),
) {
    let start = writer.0.len();
    writer.0.extend_from_slice(&[0; 4]);
    writer.0.extend_from_slice(&kind.to_ne_bytes());
    writer.0.extend_from_slice(&flags.to_ne_bytes());
    writer.0.extend_from_slice(&sequence.to_ne_bytes());
    writer.0.extend_from_slice(&[0; 4]);
    writer.0.extend_from_slice(&[family, 0]);
    writer.0.extend_from_slice(&resource.to_be_bytes());
    write(writer);
    let length = u32::try_from(writer.0.len() - start).expect("a message fits a socket buffer");
    writer.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_chunked_to_fit_attributes() {
        let elements: Vec<Element> =
            (0..1000u32).map(|n| (vec![0; 20], Value::Bytes(n.to_be_bytes().to_vec()))).collect();
        let mut batch = Batch::default();
        batch.add_elements("t", "s", &elements);
        let (bytes, labels) = batch.finish();
        assert_eq!(labels.len(), 2 + 3, "begin, three chunks, end");
        assert!(bytes.len() > 40_000);
    }

    #[test]
    fn an_empty_batch_knows_it() {
        let mut batch = Batch::default();
        assert!(batch.is_empty());
        batch.add_elements("t", "s", &[]);
        assert!(batch.is_empty());
        batch.table("t", 0);
        assert!(!batch.is_empty());
    }
}
