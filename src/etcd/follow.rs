//! Session after session, for as long as somebody listens.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::warn;

use super::{
    error::Error,
    members::Etcd,
    session::{End, Memory, Message, Relist, run},
};
use crate::{
    retry::Retry,
    schema::{Reason, Rejected},
};

/// The longest delay while nobody is reached: an attempt costs nobody anything then, and the way may be open again.
const UNREACHED: Duration = Duration::from_millis(500);
/// Another member is found sooner than this, or none is there.
const SOON: Duration = Duration::from_millis(250);

/// Follows the records below the prefix until the receiver is dropped. A session that breaks is followed by another one, with
/// whichever member answers, which goes on from where the one before was. Only where that cannot be is everything listed anew.
pub async fn follow(etcd: Etcd, sender: mpsc::Sender<Message>) {
    tokio::select! {
        () = sessions(&etcd, &sender) => {}
        () = sender.closed() => {}
    }
}

async fn sessions(etcd: &Etcd, sender: &mpsc::Sender<Message>) {
    let config = super::Config { prefix: etcd.prefix.clone(), ..etcd.config().clone() };
    let (first, longest) = config.retry;
    let salt = u64::from(std::process::id());
    let (mut retry, mut unreached) =
        (Retry::new(first, longest, salt), Retry::new(first, UNREACHED.min(longest), salt));
    let mut memory = Memory::default();
    let mut reason = Relist::Start;
    let mut outage = Outage::default();
    loop {
        let member = match outage.member(etcd, sender).await {
            Ok(member) => member,
            Err(error) => {
                let delay = if error.is_unreachable() { unreached.delay() } else { retry.delay() };
                if outage.say(sender, &error).await.is_err() {
                    return;
                }
                tokio::time::sleep(delay).await;
                continue;
            }
        };
        let ended = run(&config, member.clone(), sender, &mut memory, reason).await;
        // A session that broke soon after it began must not bring the delays back to the first one.
        if memory.proved {
            retry.reset();
            unreached.reset();
            outage = Outage::default();
        }
        // The start is over only when there was a listing.
        if memory.position.is_some() {
            reason = Relist::Disconnected;
        }
        match ended {
            End::Closed => return,
            End::Lost(error) => {
                warn!(%error, "lost this member of etcd");
                etcd.leave(&member).await;
                // The next session logs in anew.
                let leave_at_once = error.is_members() || error == Error::Token;
                outage.error = Some(error.clone());
                if !leave_at_once && outage.say(sender, &error).await.is_err() {
                    return;
                }
                if memory.proved && leave_at_once {
                    continue;
                }
            }
            End::Relist(why, text) => {
                let text = Rejected::new(b"", "", Reason::Value, &text).message;
                warn!(reason = why.as_str(), text, "everything is listed anew");
                memory.position = None;
                reason = why;
                if memory.proved {
                    continue;
                }
            }
        }
        tokio::time::sleep(retry.delay()).await;
    }
}

/// A time without any member.
#[derive(Default)]
struct Outage {
    /// Why the last member was left.
    error: Option<Error>,
    /// What was said of it last.
    said: Option<String>,
}

impl Outage {
    /// A member. Where none is found soon, it is said why the last one was left.
    async fn member(&mut self, etcd: &Etcd, sender: &mpsc::Sender<Message>) -> Result<super::member::Member, Error> {
        let found = etcd.member();
        tokio::pin!(found);
        if let Ok(found) = tokio::time::timeout(SOON, &mut found).await {
            return found;
        }
        if let Some(error) = self.error.take() {
            // Whoever does not listen any more ends all of this.
            let _ = self.say(sender, &error).await;
        }
        found.await
    }

    /// Says, once, that nobody is there, and why.
    async fn say(&mut self, sender: &mpsc::Sender<Message>, error: &Error) -> Result<(), ()> {
        // What etcd says may be of any length, and of any characters.
        let text = Rejected::new(b"", "", Reason::Value, &error.to_string()).message;
        if self.said.as_ref() == Some(&text) {
            return Ok(());
        }
        self.said = Some(text.clone());
        sender.send(Message::Disconnected(text)).await.map_err(drop)
    }
}
