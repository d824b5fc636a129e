//! Settings of links that somebody else changes.

use std::time::Duration;

use vtepd::engine::{DriftReason, Kind, LinkChange, Of, Op, Place, Setting, outer_name};

use crate::lab::{Lab, TEST1, id};

const CHANGED: (Kind, DriftReason) = (Kind::Link, DriftReason::Changed);

fn inner(lab: &Lab) -> u32 {
    let links = &lab.kernel.containers[&TEST1.into()].links;
    links.values().find(|link| link.link.name == "eth0").unwrap().link.ifindex
}

/// The links of a network, by what they are.
fn links(lab: &Lab) -> Vec<(Place, u32, Vec<Of>)> {
    let outer = outer_name(&id("n1", "test1"));
    let inner = inner(lab);
    vec![
        (Place::Overlay, lab.index("br0"), vec![Of::Link, Of::OwnLink, Of::Bridge]),
        (Place::Overlay, lab.index("vxlan1"), vec![Of::Link, Of::OwnLink, Of::Port, Of::Vxlan]),
        (Place::Overlay, lab.index(&outer), vec![Of::Link, Of::OwnLink, Of::Port]),
        (Place::Inner(TEST1.into()), inner, vec![Of::Link]),
    ]
}

#[test]
fn every_setting_of_every_link_is_put_right_by_one_operation_and_counted_once() {
    let mut lab = Lab::converged();
    for (place, ifindex, of) in links(&lab) {
        for setting in Setting::ALL.iter().filter(|setting| of.contains(&setting.of())) {
            lab.kernel.log.clear();
            lab.kernel.set_off(&place, ifindex, *setting);
            lab.settle();
            assert_eq!(lab.drift(), [CHANGED], "{setting:?} of {ifindex} at {place:?}");
            let change = LinkChange { settings: [*setting].into(), ..LinkChange::default() };
            let op = Op::SetLink { place: place.clone(), ifindex, change };
            assert_eq!(lab.kernel.log.first(), Some(&op), "{setting:?}");
            // With the answer to whether it has neighbours, a link loses those that it had.
            let lost = |op: &Op| *setting == Setting::Arp && matches!(op, Op::PutNeighbour { .. });
            assert!(lab.kernel.log.iter().skip(1).all(lost), "{setting:?}: {:?}", lab.kernel.log);
            lab.forget();
            // More than ten times in ten seconds would be a fight.
            lab.now.set(lab.now.get() + Duration::from_secs(11));
        }
    }
    lab.quiet();
}

#[test]
fn a_vxlan_device_with_what_cannot_be_changed_is_made_anew_with_its_rows() {
    let mut lab = Lab::converged();
    let before = lab.kernel.link("vxlan1").unwrap().fdb.len();
    for setting in Setting::ALL.iter().filter(|setting| setting.of() == Of::VxlanForGood) {
        lab.kernel.set_off(&Place::Overlay, lab.index("vxlan1"), *setting);
        lab.settle();
        assert_eq!(lab.drift(), [CHANGED], "{setting:?}");
        assert_eq!(lab.kernel.link("vxlan1").unwrap().fdb.len(), before, "{setting:?}");
        lab.forget();
    }
    lab.quiet();
}

#[test]
fn an_agent_without_memory_puts_settings_right_that_were_changed_while_there_was_none() {
    let mut lab = Lab::converged();
    lab.kernel.set_off(&Place::Overlay, lab.index("vxlan1"), Setting::BroadcastFlood);
    lab.forget();
    lab.settle();
    assert!(lab.kernel.link("vxlan1").unwrap().link.off.is_empty());
    lab.quiet();
}

#[test]
fn what_an_endpoint_queues_and_filters_in_its_own_namespace_is_its_own_affair() {
    let mut lab = Lab::converged();
    let inner = inner(&lab);
    for setting in [Setting::Qdisc, Setting::Xdp] {
        lab.kernel.log.clear();
        lab.kernel.set_off(&Place::Inner(TEST1.into()), inner, setting);
        lab.settle();
        assert_eq!(lab.kernel.log, [], "{setting:?}");
    }
    assert!(lab.network.in_sync());
}

#[test]
fn routes_that_came_with_an_address_are_made_again_and_counted_once() {
    let mut lab = Lab::converged();
    let (br, eth) = (lab.index("br0"), inner(&lab));
    for (place, ifindex, net) in [
        (Place::Overlay, br, "10.0.0.1/24"),
        (Place::Inner(TEST1.into()), eth, "10.0.0.2/24"),
        (Place::Inner(TEST1.into()), eth, "fd00::2/64"),
    ] {
        let net = net.parse().unwrap();
        lab.kernel.unroute(&place, ifindex, net);
        lab.settle();
        assert_eq!(lab.drift(), [(Kind::Address, DriftReason::Changed)], "{net}");
        assert_eq!(lab.kernel.log, [Op::RestoreRoutes { place, ifindex, net }]);
        lab.forget();
    }
    lab.quiet();
}

#[test]
fn an_endpoint_whose_namespace_refuses_ipv6_has_no_ipv6_addresses_until_it_takes_them() {
    let mut lab = Lab::converged();
    let (place, eth) = (Place::Inner(TEST1.into()), inner(&lab));
    let has =
        |lab: &Lab| lab.kernel.containers[&TEST1.into()].links[&eth].addresses.keys().any(|net| net.addr().is_ipv6());
    lab.kernel.set_off(&place, eth, Setting::Ipv6Disabled);
    lab.settle();
    assert_eq!(lab.drift(), []);
    lab.kernel.set_on(&place, eth, Setting::Ipv6Disabled);
    lab.settle();
    assert!(has(&lab));
    lab.quiet();
}
