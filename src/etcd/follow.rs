//! Session after session, for as long as somebody listens.

use tokio::sync::mpsc;

use super::{
    connect::Config,
    session::{End, Memory, Message, Relist, run},
};
use crate::{retry::Retry, schema::Reason, schema::Rejected};

/// Follows the records below the prefix until the receiver is dropped. Whatever breaks, the next session lists everything
/// anew: far behind, a listing is cheaper than the replay of events, and it cannot miss one.
pub async fn follow(config: Config, sender: mpsc::Sender<Message>) {
    let (first, max) = config.retry;
    let mut retry = Retry::new(first, max, u64::from(std::process::id()));
    let mut memory = Memory::default();
    let mut reason = Relist::Start;
    loop {
        let ended = tokio::select! {
            ended = run(&config, &sender, &mut memory, reason) => ended,
            () = sender.closed() => return,
        };
        let Err(End::Again(next, text)) = ended else { return };
        // The start is over only when there was a snapshot.
        if memory.last.is_some() {
            reason = next;
        }
        // A session that broke soon after its listing must not bring the delays back to the first one.
        if memory.watching.is_some_and(|since| since.elapsed() > max) {
            retry.reset();
        }
        let delay = retry.delay();
        let text = Rejected::new(b"", "", Reason::Value, &text).message;
        tracing::warn!(reason = next.as_str(), error = %text, ?delay, "lost etcd's word");
        if next == Relist::Disconnected && sender.send(Message::Disconnected(text)).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = sender.closed() => return,
        }
    }
}
