use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output},
};

use super::LabError;

/// Every program that the lab runs, with the Debian package that has it.
const PROGRAMS: [(&str, &str); 7] = [
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
];

/// Where system programs are, though they often do not stand in the PATH of an ordinary user.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Fails with the name and the package of the first program that is not installed.
pub fn require_programs() -> Result<(), LabError> {
    let path = search_path();
    for (program, package) in PROGRAMS {
        if !is_in(&path, program) {
            return Err(LabError::Missing { program, package });
        }
    }
    Ok(())
}

/// The caller's PATH, with the directories of system programs behind it.
pub(crate) fn search_path() -> OsString {
    let own = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let directories = env::split_paths(&own).chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from));
    env::join_paths(directories).unwrap_or(own)
}

fn is_in(path: &OsStr, program: &str) -> bool {
    env::split_paths(path).any(|directory| {
        directory
            .join(program)
            .metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// A command found through [`search_path`].
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C");
    command
}

/// The command as it would be typed.
pub(crate) fn typed(command: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// The standard output of a command that has succeeded; otherwise an error with the command and what it said.
pub(crate) fn checked(typed: &str, output: Output) -> Result<String, LabError> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
    Err(LabError::Command { command: typed.to_owned(), status: output.status.to_string(), stderr: said.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_programs_are_found_without_their_directory_in_path() {
        assert!(is_in(&search_path(), "sh"));
        assert!(SYSTEM_DIRECTORIES.iter().all(|d| env::split_paths(&search_path()).any(|p| p.as_os_str() == *d)));
    }

    #[test]
    fn a_failed_command_is_reported_with_what_it_said() {
        let mut failing = command("sh");
        failing.args(["-c", "echo no such device >&2; exit 3"]);
        let error = checked(&typed(&failing), failing.output().unwrap()).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("no such device") && error.contains('3'), "{error}");
    }
}
