//! A VXLAN device of ours that somebody moved out of its overlay namespace holds its VNI, wherever it is: the kernel looks for
//! the VNI in the namespace of the tunnel's socket, which does not move (vxlan_exists, drivers/net/vxlan). It is looked for in
//! the host's namespace and in those that can be found by their path, and told by group, name, VNI and port.

use std::{fs, path::Path};

use super::{
    Config, decode, encode,
    error::Error,
    netns::{self, Found},
    socket::RouteSocket,
};
use crate::engine::{Link, LinkKind};

/// What the device is known by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) group: u32,
}

impl Lost {
    fn is(self, link: &Link) -> bool {
        let numbered = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
        let ours = link.group == self.group && link.name.strip_prefix("vxlan").is_some_and(numbered);
        ours && matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.vni == self.vni && vxlan.port == self.port)
    }

    fn remove_from(self, socket: &mut RouteSocket) -> Result<bool, Error> {
        let mut found = None;
        socket.dump(encode::dump_links(), |_, body| {
            let link = decode::link(body).filter(|link| self.is(link));
            found = found.or(link.map(|link| link.ifindex));
        })?;
        match found {
            Some(ifindex) => socket.call_one(encode::delete_link(ifindex)).map(|_| true),
            None => Ok(false),
        }
    }
}

/// Removes the device if it is found. A namespace that cannot be entered hides no other.
pub(super) fn remove(config: &Config, lost: Lost) -> Result<(), Error> {
    if lost.remove_from(&mut RouteSocket::open()?)? {
        return Ok(());
    }
    for dir in [&config.netns_dir].into_iter().chain(&config.netns_roots) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries {
            if matches!(remove_at(&entry.path(), lost), Ok(true)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn remove_at(path: &Path, lost: Lost) -> Result<bool, Error> {
    let Found::Namespace(held) = netns::find(path)? else { return Ok(false) };
    held.enter(|| {
        let mut socket = RouteSocket::open()?;
        // An overlay namespace has an agent of its own.
        if netns::alias_of_lo(&mut socket)?.is_some_and(|alias| alias.starts_with("vtepd:")) {
            return Ok(false);
        }
        lost.remove_from(&mut socket)
    })
}
