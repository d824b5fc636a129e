use netlink_packet_core::NetlinkSerializable as _;
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;

use super::{
    decode,
    encode::{Attributes, Batch, dump_chains, dump_rules, get_table, put},
    monitor, numbers as n,
    tables::Tables,
};
use crate::{
    kernel::{socket::RequestSocket, wire},
    model::nft::{
        Base, Chain, ChainKind, Change, Comparison, Connection, Expression, Family, Hook, HookPoint, Meta, Policy,
        Rule, Ruleset, TableId, Verdict,
    },
};

fn expression() -> impl Strategy<Value = Expression> {
    use Expression::{Compare, Counter, Mask, Masquerade, Payload};
    let bytes = || prop::collection::vec(any::<u8>(), 1..16);
    let comparison = prop::sample::select(vec![Comparison::Equal, Comparison::NotEqual]);
    let base = prop::sample::select(vec![Base::Link, Base::Network, Base::Transport]);
    let meta = vec![Meta::Protocol, Meta::IifName, Meta::OifName, Meta::IifType, Meta::NfProto, Meta::L4Proto];
    let verdict = vec![Verdict::Accept, Verdict::Drop, Verdict::Return];
    prop_oneof![
        prop::sample::select(meta).prop_map(Expression::Meta),
        prop::sample::select(vec![Connection::State, Connection::Status]).prop_map(Expression::Connection),
        (base, any::<u32>(), any::<u32>()).prop_map(|(base, offset, length)| Payload { base, offset, length }),
        bytes().prop_map(Mask),
        (comparison, bytes()).prop_map(|(comparison, bytes)| Compare(comparison, bytes)),
        Just(Counter),
        Just(Masquerade),
        prop::sample::select(verdict).prop_map(Expression::Verdict),
    ]
}

fn hook() -> impl Strategy<Value = (Family, Hook)> {
    let families = prop::sample::select(vec![Family::Inet, Family::Ip, Family::Ip6, Family::Netdev]);
    let kind = prop::sample::select(vec![ChainKind::Filter, ChainKind::Nat, ChainKind::Route]);
    let policy = prop::sample::select(vec![Policy::Accept, Policy::Drop]);
    let device = prop::option::of("[a-z]{1,15}");
    (families, 0..6_u32, kind, any::<i32>(), policy, device).prop_map(|(family, at, kind, priority, policy, device)| {
        let point = n::hook_of(family, at).unwrap_or(HookPoint::Ingress);
        (family, Hook { kind, point, priority, policy, device })
    })
}

/// The bodies of a transaction's messages, without its begin and end.
fn bodies(changes: &[Change]) -> Vec<(u16, Vec<u8>)> {
    let requests = Batch::of(changes).unwrap().requests;
    let inner = &requests[1..requests.len() - 1];
    let body = |message: &super::encode::Message| {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        (message.message_type(), body)
    };
    inner.iter().map(|request| body(&request.message)).collect()
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_as_it_was(
        (family, hook) in hook(),
        expressions in prop::collection::vec(expression(), 0..20),
        names in ("[ -~]{1,40}", "[ -~]{1,40}"),
    ) {
        let (table, rule) = (TableId::new(family, names.0), Rule::of(expressions));
        let chain = Chain::new(hook, vec![rule.clone()]);
        let bodies = bodies(&[Change::PutChain { table: table.clone(), name: names.1.clone(), chain: chain.clone() }]);
        let bare = Chain { rules: Vec::new(), ..chain };
        prop_assert_eq!(decode::chain(&bodies[0].1), Some((table.clone(), names.1.clone(), bare)));
        prop_assert_eq!(decode::rule(&bodies[2].1), Some((table.clone(), names.1, rule)));
        prop_assert!(bodies.iter().all(|(_, body)| decode::table_of(body).as_ref() == Some(&table)));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }
}

fn decode_all(body: &[u8]) {
    let _ = (decode::table(body), decode::chain(body), decode::rule(body), decode::generation(body));
    let _ = (decode::expression(body), monitor::tables(body, 0).count());
}

fn ruleset() -> Ruleset {
    let hook = |kind, point, device: Option<&str>| {
        let device = device.map(str::to_owned);
        Hook { kind, point, priority: -7, policy: Policy::Drop, device }
    };
    let rules = vec![
        Rule::new().saddr_not_in("10.1.0.0/17".parse().unwrap()).counter().drop(),
        Rule::new().ether_saddr("02:42:0a:00:00:02".parse().unwrap()).arp().accept(),
        Rule::new().icmpv6_type(135).nd_target("fd00::1".parse().unwrap()).leave(),
    ];
    let chain = Chain::new(hook(ChainKind::Filter, HookPoint::Ingress, Some("lo")), rules);
    Ruleset::new(TableId::new(Family::Netdev, "t")).with("c", chain)
}

/// What the kernel dumps of a ruleset, in a network namespace that ends with it.
fn dumped(ruleset: &Ruleset) -> Vec<Vec<u8>> {
    std::thread::scope(|scope| scope.spawn(|| dumped_here(ruleset)).join().unwrap())
}

fn dumped_here(ruleset: &Ruleset) -> Vec<Vec<u8>> {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut tables = Tables::open().unwrap();
    tables.apply(&[Change::ReplaceTable(ruleset.clone())]).unwrap();
    assert_eq!(tables.read(&ruleset.table).unwrap().as_ref(), Some(ruleset));
    let mut socket = RequestSocket::open().unwrap();
    let mut bodies = socket.call_one(get_table(&ruleset.table)).unwrap();
    for dump in [dump_chains(ruleset.table.family), dump_rules(&ruleset.table)] {
        socket.dump(dump, |_, body| bodies.push(body.to_vec())).unwrap();
    }
    bodies
}

/// xorshift64*: repeatable, and good enough to choose what to break.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }
}

#[test]
fn a_broken_dump_does_not_make_the_decoder_panic() {
    let bodies = dumped(&ruleset());
    assert_eq!(bodies.len(), 1 + 1 + 3);
    let mut chance = Chance(7);
    for _ in 0..200_000 {
        let mut body = bodies[chance.below(bodies.len())].clone();
        for _ in 0..=chance.below(4) {
            let at = chance.below(body.len());
            match chance.below(4) {
                0 => body[at] ^= 1 << chance.below(8),
                1 => body[at] = [0, 1, 4, 0x7f, 0x80, 0xff][chance.below(6)],
                2 => body.truncate(at.max(1)),
                _ => body.extend_from_within(at..),
            }
        }
        decode_all(&body);
    }
}

#[test]
fn a_dump_cut_anywhere_is_not_taken_for_the_whole() {
    let bodies = dumped(&ruleset());
    for body in &bodies[2..] {
        let whole = decode::rule(body).unwrap();
        let expressions = wire::attribute(&body[4..], n::NFTA_RULE_EXPRESSIONS).unwrap();
        let end = expressions.as_ptr() as usize - body.as_ptr() as usize + expressions.len();
        assert!((0..end).all(|length| decode::rule(&body[..length]).as_ref() != Some(&whole)));
    }
}

fn attributes(fill: impl FnOnce(&mut Attributes)) -> Attributes {
    let mut attributes = Attributes::default();
    fill(&mut attributes);
    attributes
}

/// An element of a rule's list: the expression's own, with its attributes changed.
fn changed(expression: &Expression, change: impl FnOnce(&mut Vec<(u16, Vec<u8>)>)) -> Vec<u8> {
    let list = attributes(|list| put(list, expression)).0;
    let element = wire::attribute(&list, n::NFTA_LIST_ELEM).unwrap();
    let data = wire::attribute(element, n::NFTA_EXPR_DATA).unwrap();
    let mut fields: Vec<_> = wire::attributes(data).map(|(kind, value)| (kind, value.to_vec())).collect();
    change(&mut fields);
    let data = attributes(|data| fields.iter().for_each(|(kind, value)| data.put(*kind, value)));
    attributes(|element_| {
        element_.put(n::NFTA_EXPR_NAME, wire::attribute(element, n::NFTA_EXPR_NAME).unwrap());
        element_.put(n::NFTA_EXPR_DATA, &data.0);
    })
    .0
}

#[test]
fn an_expression_with_anything_that_is_not_written_here_is_foreign() {
    let payload = Expression::Payload { base: Base::Network, offset: 12, length: 4 };
    let mask = Expression::Mask(vec![255, 0]);
    let compare = Expression::Compare(Comparison::Equal, vec![1, 2]);
    let verdict = Expression::Verdict(Verdict::Drop);
    for expression in [&Expression::Meta(Meta::L4Proto), &payload, &mask, &compare, &verdict, &Expression::Masquerade] {
        assert_eq!(decode::expression(&changed(expression, |_| {})), *expression);
        let more = changed(expression, |fields| fields.push((99, vec![0; 4])));
        assert!(matches!(decode::expression(&more), Expression::Foreign(_)), "{expression:?}");
        let fields = if *expression == Expression::Masquerade { 0 } else { 2 };
        for field in 0..fields {
            let twice = changed(expression, |fields| fields.push(fields[field].clone()));
            assert!(matches!(decode::expression(&twice), Expression::Foreign(_)), "{expression:?}");
            let other = changed(expression, |fields| fields[field].1 = 77_u32.to_be_bytes().to_vec());
            assert!(matches!(decode::expression(&other), Expression::Foreign(_)), "{expression:?}, {field}");
            let missing = changed(expression, |fields| drop(fields.remove(field)));
            assert!(matches!(decode::expression(&missing), Expression::Foreign(_)), "{expression:?}, {field}");
        }
    }
    let xor = attributes(|xor| xor.put(n::NFTA_DATA_VALUE, &[0, 1])).0;
    let flips = changed(&mask, |fields| fields[4].1 = xor);
    let shift = changed(&mask, |fields| fields.push((n::NFTA_BITWISE_OP, 1_u32.to_be_bytes().to_vec())));
    let plain = changed(&mask, |fields| fields.push((n::NFTA_BITWISE_OP, 0_u32.to_be_bytes().to_vec())));
    assert!(matches!(decode::expression(&flips), Expression::Foreign(_)));
    assert!(matches!(decode::expression(&shift), Expression::Foreign(_)));
    assert_eq!(decode::expression(&plain), mask);
}

#[test]
fn a_generation_names_no_table_and_what_we_did_is_not_told() {
    let body = &bodies(&[Change::EnsureTable(TableId::new(Family::Ip, "t"))])[0].1;
    let message = |kind: u16, port: u32| {
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend((n::SUBSYSTEM << 8 | kind).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend(body);
        bytes
    };
    let datagram = [message(n::NFT_MSG_NEWTABLE, 5), message(n::NFT_MSG_NEWGEN, 6)].concat();
    assert_eq!(monitor::tables(&datagram, 6).collect::<Vec<_>>(), [TableId::new(Family::Ip, "t")]);
    assert_eq!(monitor::tables(&datagram, 5).count(), 0);
}
