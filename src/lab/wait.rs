use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use super::LabError;

const PAUSE: Duration = Duration::from_millis(10);

/// Looks again and again until `look` succeeds, and returns what it found. Errors that waiting cannot mend end the wait at
/// once; after `timeout` the error says how things stood at the last look.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> Result<T, LabError>,
) -> Result<T, LabError> {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if error.is_final() => return Err(error),
            Err(error) if started.elapsed() >= timeout => {
                return Err(LabError::Timeout { what: what.to_owned(), timeout, last: error.to_string() });
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_cannot_succeed_says_how_things_stood() {
        let error = wait_for("rain", Duration::from_millis(25), || Err::<(), _>(LabError::not_so("sun"))).unwrap_err();
        assert!(error.to_string().contains("rain: not within 25ms (sun)"), "{error}");
    }

    #[test]
    fn a_wait_ends_at_once_where_waiting_cannot_help() {
        let started = Instant::now();
        let error = wait_for("rain", Duration::from_secs(60), || Err::<(), _>(LabError::Interrupted)).unwrap_err();
        assert!(matches!(error, LabError::Interrupted));
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}
