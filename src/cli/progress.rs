//! How far something is that takes long: one line on a terminal, nothing in a pipe.

use std::io::{self, IsTerminal as _, Write as _};

/// The line; it is gone when this is dropped.
pub(super) struct Progress {
    shown: bool,
    terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { shown: false, terminal: io::stderr().is_terminal() }
    }

    /// Shows how far it is.
    pub(super) fn say(&mut self, text: &str) {
        if self.terminal {
            self.shown = true;
            // Whether anybody sees it makes no difference.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
            let _ = io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
