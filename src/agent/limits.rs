//! How much of the system the agent may use.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Raises the number of descriptors as far as it may be raised: each network takes four, and most systems give 1,024 to programs that
/// do not ask.
pub(super) fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok((soft, hard))
    });
    match raised {
        Ok((soft, hard)) => debug!(soft, hard, "descriptors"),
        Err(error) => warn!(%error, "cannot raise the number of descriptors; each network takes four"),
    }
}
