//! One break: somebody else's hand in the kernel, and how long it takes until everything is back, by the witness's clock.

use std::time::Duration;

use super::{
    session::Session,
    witness::{Announcement, Witness},
};
use crate::lab::{Host, LabError};

/// How long the demo looks for the repair before it gives up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A foreign change, and what its repair looks like in the announcements of the kernel.
#[derive(Debug)]
pub(super) struct Break<'a> {
    /// What is broken.
    pub(super) what: &'a str,
    /// The command that breaks it.
    pub(super) command: &'a [&'a str],
    /// The object that is deleted.
    pub(super) lost: &'a str,
    /// The objects that are back in the end.
    pub(super) back: &'a [&'a str],
    /// How soon that has to be.
    pub(super) within: Duration,
}

/// Breaks it, waits for its repair, and shows both. Returns what took how long, or fails where it took longer than it may.
pub(super) fn play(session: &Session, host: &Host, witness: &Witness, is: &Break<'_>) -> Result<Duration, LabError> {
    witness.forget();
    session.run(host, is.command)?;
    let outcome =
        session.wait_for(&format!("the repair of {}", is.what), PATIENCE, || repair(&witness.announced(), is));
    session.say(&told(&witness.announced(), is));
    let took = outcome?;
    if took <= is.within {
        Ok(took)
    } else {
        Err(LabError::not_so(format!("took {}, more than {:?}", milliseconds(took), is.within)))
    }
}

/// From the first announcement of the loss to the last of the objects that came back after it.
fn repair(announced: &[Announcement], is: &Break<'_>) -> Result<Duration, LabError> {
    let loss = loss(announced, is.lost).ok_or_else(|| LabError::not_so("the kernel has announced no loss"))?;
    // A device takes its rows along, and they are announced first.
    let first = is.back.iter().filter_map(|object| self::loss(announced, object)).map(|one| one.at).min();
    let mut took = Duration::ZERO;
    for object in is.back {
        let returned =
            returned(announced, object, loss).ok_or_else(|| LabError::not_so(format!("`{object}` is not back")))?;
        took = took.max(returned.since(first.unwrap_or(loss.at)));
    }
    Ok(took)
}

fn loss<'a>(announced: &'a [Announcement], object: &str) -> Option<&'a Announcement> {
    announced.iter().find(|one| one.is_deletion() && one.text.contains(object))
}

fn returned<'a>(announced: &'a [Announcement], object: &str, loss: &Announcement) -> Option<&'a Announcement> {
    announced.iter().find(|one| one.at >= loss.at && !one.is_deletion() && one.text.contains(object))
}

/// How the witness has heard each object go and come back, in the order of time.
fn told(announced: &[Announcement], is: &Break<'_>) -> String {
    let mut heard: Vec<_> = is.back.iter().filter_map(|object| loss(announced, object)).collect();
    if let Some(loss) = loss(announced, is.lost) {
        heard.extend(is.back.iter().filter_map(|object| returned(announced, object, loss)));
    }
    heard.sort_by_key(|one| one.at);
    let lines: Vec<_> = heard.iter().map(|one| format!("    {}\n", one.line())).collect();
    format!("  what `bridge monitor` and `ip monitor` heard:\n{}", lines.concat())
}

pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Break<'_> = Break {
        what: "the row",
        command: &[],
        lost: "02:42:0a:00:00:03 dev vxlan1",
        back: &["02:42:0a:00:00:03 dev vxlan1"],
        within: PATIENCE,
    };

    fn heard(micros: u64, text: &str) -> Announcement {
        Announcement { at: Duration::from_micros(micros), text: text.to_owned() }
    }

    #[test]
    fn a_repair_lasts_from_the_loss_to_the_last_object_that_is_back() {
        let mut announced = vec![
            heard(100, "02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.11 self permanent"),
            heard(200, "Deleted 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.11 self permanent"),
        ];
        assert!(repair(&announced, &ROW).unwrap_err().to_string().contains("is not back"));
        announced.push(heard(950, "02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.11 self permanent"));
        assert_eq!(repair(&announced, &ROW).unwrap(), Duration::from_micros(750));
    }

    #[test]
    fn a_device_is_back_with_its_last_row_and_is_gone_with_its_first() {
        let device = Break { lost: ": vxlan1", back: &[": vxlan1", "02:42:0a:00:00:03 dev vxlan1"], ..ROW };
        let mut announced = vec![
            heard(100, "Deleted 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.11 self permanent"),
            heard(190, "3: vxlan1: <BROADCAST,MULTICAST> mtu 1450 state DOWN"),
            heard(200, "Deleted 3: vxlan1: <BROADCAST,MULTICAST> mtu 1450 state DOWN"),
            heard(500, "4: vxlan1: <BROADCAST,MULTICAST> mtu 1450 state DOWN"),
        ];
        assert!(repair(&announced, &device).is_err());
        announced.push(heard(700, "02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.11 self permanent"));
        assert_eq!(repair(&announced, &device).unwrap(), Duration::from_micros(600));
        assert_eq!(told(&announced, &device).lines().count(), 5);
    }
}
