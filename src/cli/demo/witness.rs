//! An independent witness: `bridge monitor` and `ip monitor`, which stamp what the kernel announces with the time.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crate::lab::{Host, LabError, wait_for};

/// How long a monitor may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(2);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One announcement of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    /// The time of day, which goes on counting after midnight.
    pub(super) at: Duration,
    /// What the monitor printed for it.
    pub(super) text: String,
}

impl Announcement {
    /// How long after that time of day it came.
    pub(super) fn since(&self, earlier: Duration) -> Duration {
        self.at.saturating_sub(earlier)
    }

    pub(super) fn is_deletion(&self) -> bool {
        self.text.starts_with("Deleted") || self.text.ends_with("FAILED")
    }

    /// The time and the text, as one line.
    pub(super) fn line(&self) -> String {
        let seconds = self.at.as_secs() % DAY.as_secs();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        format!("[{hours:02}:{minutes:02}:{:02}.{:06}] {}", seconds % 60, self.at.subsec_micros(), self.text)
    }
}

/// Monitors of one network namespace, ended on drop.
#[derive(Debug)]
pub(super) struct Witness {
    monitors: Vec<Child>,
    announced: Arc<Mutex<Vec<Announcement>>>,
}

impl Witness {
    /// Returns once both monitors listen.
    pub(super) fn new(host: &Host, netns: &str) -> Result<Self, LabError> {
        let mut witness = Self { monitors: Vec::new(), announced: Arc::default() };
        witness.monitor(host, &["bridge", "-n", netns, "-timestamp", "monitor", "fdb"])?;
        witness.monitor(host, &["ip", "-n", netns, "-tshort", "monitor", "link", "neigh"])?;
        Ok(witness)
    }

    fn monitor(&mut self, host: &Host, arguments: &[&str]) -> Result<(), LabError> {
        let typed = arguments.join(" ");
        let mut command = host.command(arguments);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = piped.spawn().map_err(|error| LabError::not_so(format!("starting `{typed}`: {error}")))?;
        let (pid, stdout) = (child.id(), child.stdout.take());
        self.monitors.push(child);
        let announced = Arc::clone(&self.announced);
        thread::spawn(move || {
            let mut reader = Reader::default();
            for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()).map_while(Result::ok) {
                if let Some(announcement) = reader.read(&line) {
                    append(&mut announced.lock().unwrap_or_else(PoisonError::into_inner), announcement);
                }
            }
        });
        wait_for(&format!("`{typed}` to listen"), START_TIMEOUT, || {
            let sockets = fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap_or_default();
            if listens(&sockets, pid) { Ok(()) } else { Err(LabError::not_so("it does not listen yet")) }
        })
    }

    /// What was announced since the last call of [`Witness::forget`].
    pub(super) fn announced(&self) -> Vec<Announcement> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins anew.
    pub(super) fn forget(&self) {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        for monitor in &mut self.monitors {
            // Both fail only where the monitor has ended already.
            let _ = monitor.kill();
            let _ = monitor.wait();
        }
    }
}

/// Appends an announcement; what seems to be half a day older than the one before it is of the next day.
fn append(announced: &mut Vec<Announcement>, mut new: Announcement) {
    if announced.last().is_some_and(|last| new.at + DAY / 2 < last.at) {
        new.at += DAY;
    }
    announced.push(new);
}

/// Whether /proc/PID/net/netlink shows a socket of the process that is in a multicast group.
fn listens(sockets: &str, pid: u32) -> bool {
    sockets.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next() == Some(&pid.to_string()) && columns.next().is_some_and(|groups| groups != "00000000")
    })
}

/// Puts time and text together: `ip -tshort` has both on one line, `bridge -timestamp` on two.
#[derive(Debug, Default)]
struct Reader {
    at: Option<Duration>,
}

impl Reader {
    fn read(&mut self, line: &str) -> Option<Announcement> {
        if let Some(stamp) = line.strip_prefix("Timestamp: ") {
            self.at = long_stamp(stamp);
            return None;
        }
        if let Some((stamp, text)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            let at = clock(stamp.split_once('T')?.1)?;
            // FDB rows come a second time here, in a form that looks like neighbours; `bridge` shows them as they are.
            return (!text.contains("NOARP")).then(|| Announcement { at, text: text.trim().to_owned() });
        }
        Some(Announcement { at: self.at.take()?, text: line.trim().to_owned() })
    }
}

/// `Mon Nov 23 20:27:29 2026 234283 usec`.
fn long_stamp(stamp: &str) -> Option<Duration> {
    let words: Vec<&str> = stamp.split_whitespace().collect();
    let micros = words.get(5)?.parse().ok()?;
    Some(clock(words.get(3)?)? + Duration::from_micros(micros))
}

/// `20:27:29.234283`, the fraction being optional.
fn clock(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut seconds = 0;
    for part in whole.split(':') {
        seconds = seconds * 60 + part.parse::<u32>().ok()?;
    }
    Some(Duration::from_secs(seconds.into()) + Duration::from_micros(fraction.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
Timestamp: Mon Nov 23 20:27:29 2026 234283 usec
Deleted 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.11 self permanent
[2026-11-23T20:27:29.238535] 10.0.0.3 dev vxlan1 FAILED 
[2026-11-23T20:27:29.345078] 192.168.1.1 dev vxlan1 lladdr 02:42:0a:00:00:03 NOARP PERMANENT 
    link/ether c6:66:07:82:a9:c8 brd ff:ff:ff:ff:ff:ff
";

    #[test]
    fn what_the_monitors_print_is_read_with_its_time() {
        let mut reader = Reader::default();
        let read: Vec<_> = PAGE.lines().filter_map(|line| reader.read(line)).collect();
        let [row, neighbour] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(
            row.line(),
            "[20:27:29.234283] Deleted 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.11 self permanent"
        );
        assert!(row.is_deletion() && neighbour.is_deletion());
        assert_eq!(neighbour.since(row.at), Duration::from_micros(4252));
    }

    #[test]
    fn a_repair_over_midnight_takes_no_day() {
        let mut announced = Vec::new();
        for text in ["23:59:59.999900", "00:00:00.000100"] {
            append(&mut announced, Announcement { at: clock(text).unwrap(), text: String::new() });
        }
        assert_eq!(announced[1].since(announced[0].at), Duration::from_micros(200));
        assert_eq!(announced[1].line(), "[00:00:00.000100] ");
    }

    #[test]
    fn a_socket_in_no_group_does_not_listen() {
        let head = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n";
        assert!(listens(&format!("{head}0000 0 42 00000004 0 0 0 2 0 1\n"), 42));
        assert!(!listens(&format!("{head}0000 0 42 00000000 0 0 0 2 0 1\n0000 0 43 00000004 0 0 0 2 0 1\n"), 42));
    }
}
