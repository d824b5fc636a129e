//! Whether this process may do what the agent and the clean-up do.

use std::fs;

/// What nothing works without, by its bit in a set of capabilities (include/uapi/linux/capability.h).
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Fails with the words that help where a capability is missing.
pub(super) fn check() -> Result<(), String> {
    let status = fs::read_to_string("/proc/thread-self/status").map_err(|error| format!("/proc: {error}"))?;
    let missing = missing(&status);
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("needs root: {} is missing; run it as the service, or by sudo", missing.join(" and ")))
}

/// Which are missing of the effective set that `/proc/<pid>/status` shows.
fn missing(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default();
    NEEDED.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing("Name:\tvtepd\nCapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(missing("CapEff:\t0000000000000000\n"), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
        assert_eq!(missing("CapEff:\t0000000000001000\n"), ["CAP_SYS_ADMIN"]);
    }
}
