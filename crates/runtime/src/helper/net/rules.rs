//! The packet filter's rules, as one nftables table of our own, sent in one transaction.
//!
//! ```text
//! table ip evoke-<tag> {
//!   chain nat     { type nat hook postrouting;  ip saddr NET oifname != BRIDGE masquerade }
//!   chain forward { type filter hook forward;
//!     iifname BRIDGE oifname BRIDGE drop                          # containers do not reach each other
//!     oifname BRIDGE ct state != established,related drop         # nor does the outside reach them
//!     iifname BRIDGE ip daddr 169.254.0.0/16 th dport != 53 drop  # nor they the cloud's metadata
//!   }
//!   chain input   { type filter hook input; iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//! }
//! ```
//! And one in the network of each container, by which web functions are reached there as they are outside:
//!
//! ```text
//! table ip evoke {
//!   chain web { type nat hook output; ip daddr 127.0.0.1 tcp dport WEB redirect to CONTAINER }
//! }
//! ```
//! A table of its own cannot let through what another one drops (Docker's, ufw's, firewalld's FORWARD policy),
//! so [`super::firewall`] talks to those.

use super::netlink::{ACK, APPEND, CREATE, Message, Netlink};
use evoke_core::ports;
use std::io;
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

const REGISTER: u32 = 1;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const META_PROTOCOL: u32 = 16;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const SOURCE_AT: u32 = 12;
const DESTINATION_AT: u32 = 16;
const PORT_AT: u32 = 2;
const CT_STATE: u32 = 0;
/// Established and related, as the kernel's bits for connection states.
const CT_KNOWN: u32 = 0b110;
const VERDICT_REGISTER: u32 = 0;

/// `NF_NAT_RANGE_PROTO_SPECIFIED` of the kernel's `nf_nat.h`: the register holds a port.
const PORT_SPECIFIED: u32 = 2;

/// `struct nfgenmsg`: IPv4, version 0, resource id 0 (for batches: the subsystem).
const IPV4: [u8; 4] = [2, 0, 0, 0];
const BATCH: [u8; 4] = [0, 0, 0, 10];

fn big(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

/// One transaction of changes.
struct Batch<'a> {
    message: Message,
    table: &'a str,
    acks: usize,
}

impl<'a> Batch<'a> {
    fn begin(table: &'a str) -> Self {
        let mut message = Message::default();
        message.next(BATCH_BEGIN, 0, 0, &BATCH);
        Self { message, table, acks: 0 }
    }

    fn add(&mut self, kind: u16, flags: u16) -> &mut Message {
        self.acks += 1;
        self.message.next(kind, ACK | flags, self.acks as u32, &IPV4);
        &mut self.message
    }

    fn chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32) {
        let table = self.table;
        let message = self.add(NEW_CHAIN, CREATE);
        message.text(CHAIN_TABLE, table).text(CHAIN_NAME, name).text(CHAIN_TYPE, kind);
        message.nest(CHAIN_HOOK, |inner| {
            inner.attr(HOOK_NUMBER, &big(hook)).attr(HOOK_PRIORITY, &priority.to_be_bytes());
        });
    }

    fn rule(&mut self, chain: &str, expressions: impl FnOnce(&mut Message)) {
        let table = self.table;
        let message = self.add(NEW_RULE, CREATE | APPEND);
        message.text(RULE_TABLE, table).text(RULE_CHAIN, chain).nest(RULE_EXPRESSIONS, expressions);
    }

    fn commit(mut self, netlink: &Netlink) -> io::Result<()> {
        self.message.next(BATCH_END, 0, 0, &BATCH);
        netlink.batch(&self.message, self.acks)
    }
}

fn expression(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nest(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data);
    });
}

fn compare(list: &mut Message, operator: u32, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.attr(1, &big(REGISTER)).attr(2, &big(operator)).nest(3, |value_of| {
            value_of.attr(1, value);
        });
    });
}

fn interface(list: &mut Message, key: u32, operator: u32, name: &str) {
    expression(list, "meta", |data| {
        data.attr(2, &big(key)).attr(1, &big(REGISTER));
    });
    let mut padded = [0u8; 16];
    padded[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    compare(list, operator, &padded);
}

fn load(list: &mut Message, header: u32, at: u32, length: u32) {
    expression(list, "payload", |data| {
        data.attr(1, &big(REGISTER)).attr(2, &big(header)).attr(3, &big(at)).attr(4, &big(length));
    });
}

fn mask(list: &mut Message, mask: &[u8; 4]) {
    expression(list, "bitwise", |data| {
        data.attr(1, &big(REGISTER)).attr(2, &big(REGISTER)).attr(3, &big(4));
        data.nest(4, |value| {
            value.attr(1, mask);
        })
        .nest(5, |value| {
            value.attr(1, &[0; 4]);
        });
    });
}

fn network(list: &mut Message, at: u32, network: Ipv4Addr, prefix: u8) {
    load(list, NETWORK_HEADER, at, 4);
    let bits = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    mask(list, &bits.to_be_bytes());
    compare(list, EQUAL, &network.octets());
}

fn drop_packet(list: &mut Message) {
    expression(list, "immediate", |data| {
        data.attr(1, &big(VERDICT_REGISTER));
        // Verdict 0 is to drop.
        data.nest(2, |value| {
            value.nest(2, |verdict| {
                verdict.attr(1, &big(0));
            });
        });
    });
}

/// Installs the table, replacing one of the same name.
pub(super) fn install(table: &str, bridge: &str, subnet: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let netlink = Netlink::netfilter()?;
    let mut batch = Batch::begin(table);
    // Making it first lets the deletion succeed whether it existed or not.
    batch.add(NEW_TABLE, CREATE).text(NAME, table);
    batch.add(DELETE_TABLE, 0).text(NAME, table);
    batch.add(NEW_TABLE, CREATE).text(NAME, table);
    batch.chain("nat", "nat", libc::NF_INET_POST_ROUTING as u32, libc::NF_IP_PRI_NAT_SRC);
    batch.chain("forward", "filter", libc::NF_INET_FORWARD as u32, -1);
    batch.chain("input", "filter", libc::NF_INET_LOCAL_IN as u32, -1);
    batch.rule("nat", |list| {
        network(list, SOURCE_AT, subnet, prefix);
        interface(list, META_OUTPUT_NAME, UNEQUAL, bridge);
        expression(list, "masq", |_| {});
    });
    batch.rule("forward", |list| {
        interface(list, META_INPUT_NAME, EQUAL, bridge);
        interface(list, META_OUTPUT_NAME, EQUAL, bridge);
        drop_packet(list);
    });
    batch.rule("forward", |list| {
        interface(list, META_OUTPUT_NAME, EQUAL, bridge);
        expression(list, "ct", |data| {
            data.attr(1, &big(REGISTER)).attr(2, &big(CT_STATE));
        });
        mask(list, &CT_KNOWN.to_ne_bytes());
        compare(list, EQUAL, &[0; 4]);
        drop_packet(list);
    });
    batch.rule("forward", |list| {
        interface(list, META_INPUT_NAME, EQUAL, bridge);
        network(list, DESTINATION_AT, Ipv4Addr::new(169, 254, 0, 0), 16);
        load(list, TRANSPORT_HEADER, PORT_AT, 2);
        compare(list, UNEQUAL, &53u16.to_be_bytes());
        drop_packet(list);
    });
    batch.rule("input", |list| {
        interface(list, META_INPUT_NAME, EQUAL, bridge);
        network(list, DESTINATION_AT, Ipv4Addr::new(127, 0, 0, 0), 8);
        drop_packet(list);
    });
    batch.commit(&netlink)
}

/// Leads the ports of web functions on the loopback of the network that this process is in to the service that is
/// there.
pub(super) fn lead_home() -> io::Result<()> {
    let netlink = Netlink::netfilter()?;
    let mut batch = Batch::begin("evoke");
    batch.add(NEW_TABLE, CREATE).text(NAME, "evoke");
    batch.chain("web", "nat", libc::NF_INET_LOCAL_OUT as u32, libc::NF_IP_PRI_NAT_DST);
    batch.rule("web", |list| {
        network(list, DESTINATION_AT, Ipv4Addr::LOCALHOST, 32);
        expression(list, "meta", |data| {
            data.attr(2, &big(META_PROTOCOL)).attr(1, &big(REGISTER));
        });
        compare(list, EQUAL, &[libc::IPPROTO_TCP as u8]);
        load(list, TRANSPORT_HEADER, PORT_AT, 2);
        compare(list, AT_LEAST, &ports::WEB.start().to_be_bytes());
        compare(list, AT_MOST, &ports::WEB.end().to_be_bytes());
        expression(list, "immediate", |data| {
            data.attr(1, &big(REGISTER)).nest(2, |value| {
                value.attr(1, &ports::CONTAINER.to_be_bytes());
            });
        });
        expression(list, "redir", |data| {
            data.attr(1, &big(REGISTER)).attr(3, &big(PORT_SPECIFIED));
        });
    });
    batch.commit(&netlink)
}

/// Removes the table.
pub(super) fn remove(table: &str) -> io::Result<()> {
    let netlink = Netlink::netfilter()?;
    let mut batch = Batch::begin(table);
    batch.add(DELETE_TABLE, 0).text(NAME, table);
    batch.commit(&netlink)
}
