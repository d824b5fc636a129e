use std::{
    io::{self, Read},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::lab::LabError;

/// The exit code of a program that was interrupted.
pub(super) const EXIT_CODE: u8 = 130;

/// How long the orderly way down may take.
const GRACE: Duration = Duration::from_secs(10);

/// Calls `action` at the first SIGINT, SIGTERM or SIGHUP; from now on none of them ends the process by itself.
pub(super) fn on_signal(action: impl FnOnce() + Send + 'static) -> Result<(), LabError> {
    let failed = |error: io::Error| LabError::not_so(format!("listening for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    drop(entered);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        action();
    });
    Ok(())
}

/// Whether the demo is to be taken down: by a signal, or because the program that started it is gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt {
    requested: Arc<AtomicBool>,
    orphaned_is_fine: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens for signals and for the end of standard input, which the starting program holds open.
    pub(super) fn listen() -> Result<Self, LabError> {
        let interrupt = Self::default();
        let by_signal = interrupt.clone();
        on_signal(move || by_signal.request())?;
        let by_end = interrupt.clone();
        thread::spawn(move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            if !by_end.orphaned_is_fine.load(Ordering::SeqCst) {
                by_end.request();
            }
        });
        Ok(interrupt)
    }

    /// From now on the starting program may end.
    pub(super) fn outlive_starter(&self) {
        self.orphaned_is_fine.store(true, Ordering::SeqCst);
    }

    /// Asks for the way down. Where that does not come to its end, the process does, and the kernel ends the rest with it.
    pub(super) fn request(&self) {
        if !self.requested.swap(true, Ordering::SeqCst) {
            thread::spawn(|| {
                thread::sleep(GRACE);
                process::exit(EXIT_CODE.into());
            });
        }
    }

    pub(super) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Fails where the way down was asked for.
    pub(super) fn check(&self) -> Result<(), LabError> {
        if self.is_requested() { Err(LabError::Interrupted) } else { Ok(()) }
    }
}
