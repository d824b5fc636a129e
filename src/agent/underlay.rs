//! The link of the underlay: which one has this node's VTEP address, and with what MTU.

use std::{collections::BTreeSet, io, net::IpAddr, thread, time::Duration};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Error;
use crate::kernel::{HostEvent, HostMonitor, UnderlayLink, underlay_link};

/// Looks at the event socket that the director has not taken yet.
const LOOKS: usize = 16;
/// How long the thread may outlive its receiver.
const IDLE: Duration = Duration::from_secs(1);
/// MTU of an underlay that no link of ours has the address of.
const DEFAULT_MTU: u32 = 1500;

/// The underlay, followed.
#[derive(Debug)]
pub(super) struct Underlay {
    heard: mpsc::Receiver<BTreeSet<HostEvent>>,
    vtep: IpAddr,
    link: Option<UnderlayLink>,
    /// The last look failed.
    unread: bool,
}

impl Underlay {
    /// Looks where this address is, and listens from before that on.
    pub(super) fn new(vtep: IpAddr) -> Result<Self, Error> {
        let heard = listen(HostMonitor::open()?);
        let heard = heard.map_err(|error| Error::System { what: "cannot listen to the host's links", error })?;
        let mut underlay = Self { heard, vtep, link: None, unread: false };
        underlay.link = underlay_link(vtep)?;
        underlay.say();
        Ok(underlay)
    }

    /// Its MTU in bytes.
    pub(super) fn mtu(&self) -> u32 {
        self.link.map_or(DEFAULT_MTU, |link| link.mtu)
    }

    /// This node's VTEP address is this one, perhaps another than before.
    pub(super) fn follow(&mut self, vtep: IpAddr) {
        if std::mem::replace(&mut self.vtep, vtep) != vtep || self.unread {
            self.look();
        }
    }

    /// Waits until the link may have changed, and looks at it. A host may have many other links that change all the time.
    pub(super) async fn changed(&mut self) -> Result<(), Error> {
        loop {
            let events = self.heard.recv().await.ok_or(Error::Deaf("the host's links"))?;
            let concerns = |event: &HostEvent| match event {
                HostEvent::Link(ifindex) => self.link.is_some_and(|link| link.ifindex == *ifindex),
                HostEvent::Address { address, .. } => *address == self.vtep,
                HostEvent::Lost => true,
            };
            if events.iter().any(concerns) {
                self.look();
                return Ok(());
            }
        }
    }

    /// What cannot be read now stays as it was, and is looked at again.
    fn look(&mut self) {
        let found = underlay_link(self.vtep);
        self.unread = found.is_err();
        match found {
            Ok(link) if link == self.link => {}
            Ok(link) => {
                self.link = link;
                self.say();
            }
            Err(error) => warn!(%error, "cannot read the underlay link; trying again"),
        }
    }

    fn say(&self) {
        let vtep = self.vtep;
        match self.link {
            Some(UnderlayLink { ifindex, mtu }) => info!(%vtep, ifindex, mtu, "found the underlay link"),
            None => warn!(
                %vtep,
                "no link of this host has the VTEP address; taking the underlay's MTU for {DEFAULT_MTU} until one does"
            ),
        }
    }
}

/// Waits for events on a thread that ends soon after the receiver is dropped.
fn listen(monitor: HostMonitor) -> io::Result<mpsc::Receiver<BTreeSet<HostEvent>>> {
    let (sender, receiver) = mpsc::channel(LOOKS);
    let run = move || {
        while !sender.is_closed() {
            let events = monitor.wait(IDLE).unwrap_or_else(|error| {
                warn!(%error, "cannot hear of the host's links");
                thread::sleep(IDLE);
                BTreeSet::from([HostEvent::Lost])
            });
            if !events.is_empty() && sender.blocking_send(events).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("host links".to_owned()).spawn(run)?;
    Ok(receiver)
}
