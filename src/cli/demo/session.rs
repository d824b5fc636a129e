//! What the demo prints: commands with their output as in a terminal session, progress, and checks.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use super::interrupt::Interrupt;
use crate::lab::{Host, LabError, wait_for};

#[derive(Debug)]
pub(super) struct Session {
    started: Instant,
    passed: usize,
    failed: usize,
    interrupt: Interrupt,
}

impl Session {
    pub(super) fn new(interrupt: Interrupt) -> Self {
        Self { started: Instant::now(), passed: 0, failed: 0, interrupt }
    }

    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Prints a text. Where nobody reads it any more, the demo is taken down.
    pub(super) fn say(&self, text: &str) {
        let mut out = io::stdout().lock();
        if writeln!(out, "{}", text.strip_suffix('\n').unwrap_or(text)).and_then(|()| out.flush()).is_err() {
            self.interrupt.request();
        }
    }

    /// Begins a part.
    pub(super) fn heading(&self, text: &str) -> Result<(), LabError> {
        self.say(&format!("\n## {text}  [{:.1} s]\n", self.started.elapsed().as_secs_f64()));
        self.interrupt.check()
    }

    /// Runs a command on a host, printed before its output.
    pub(super) fn run(&self, host: &Host, arguments: &[&str]) -> Result<String, LabError> {
        self.say(&format!("{}$ {}", host.name(), typed(arguments)));
        let output = host.run(arguments)?;
        if !output.trim().is_empty() {
            self.say(&output);
        }
        self.interrupt.check()?;
        Ok(output)
    }

    /// As [`Session::run`], with an empty line behind it.
    pub(super) fn show(&self, host: &Host, arguments: &[&str]) -> Result<String, LabError> {
        let output = self.run(host, arguments)?;
        self.say("");
        Ok(output)
    }

    /// Records whether something held.
    pub(super) fn check(&mut self, what: &str, outcome: Result<(), LabError>) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                self.say(&format!("PASS  {what}"));
            }
            // Nothing is known of what an interrupt has cut short.
            Err(LabError::Interrupted) => {}
            Err(error) => {
                self.failed += 1;
                self.say(&format!("FAIL  {what}: {error}"));
            }
        }
    }

    /// As [`wait_for`], which an interrupt ends.
    pub(super) fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut() -> Result<T, LabError>,
    ) -> Result<T, LabError> {
        wait_for(what, timeout, || self.interrupt.check().and_then(|()| look()))
    }

    pub(super) fn all_held(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Prints how it went.
    pub(super) fn sum_up(&self) {
        let verdict = if self.all_held() { "All held" } else { "Not all held" };
        let seconds = self.started.elapsed().as_secs_f64();
        self.say(&format!("\n{verdict}: {} passed, {} failed, in {seconds:.1} s.", self.passed, self.failed));
    }
}

/// The words as they would be typed into a shell.
pub(super) fn typed<S: AsRef<str>>(arguments: &[S]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    let word = |word: &S| match word.as_ref() {
        word if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    };
    arguments.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_printed_so_that_a_shell_reads_them_back() {
        assert_eq!(typed(&["etcdctl", "put", "/a", r#"{"b":"c d"}"#]), r#"etcdctl put /a '{"b":"c d"}'"#);
        assert_eq!(typed(&["echo", "it's", ""]), r"echo 'it'\''s' ''");
    }
}
