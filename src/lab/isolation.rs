use std::{
    env, fs,
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use nix::unistd::geteuid;

use super::{LabError, programs};

/// Set for a process that was started in private namespaces.
const MARK: &str = "VTEPD_LAB_PRIVATE";

/// Whether this process was started in private namespaces.
pub fn is_private() -> bool {
    env::var_os(MARK).is_some()
}

/// A command that runs `program` as the first process of private user (unless root), mount, network and pid namespaces, so
/// that it cannot touch the host's network, and all that it starts dies with it. Fails where the system forbids that.
pub fn private_command(program: &Path) -> Result<Command, LabError> {
    let as_root: &[&str] = &["-nmpf", "--kill-child", "--mount-proc"];
    let as_user: &[&str] = &["-Ur", "-nmpf", "--kill-child", "--mount-proc"];
    // Root in a container may lack the capability and yet be allowed a user namespace.
    let ways: &[&[&str]] = if geteuid().is_root() { &[as_root, as_user] } else { &[as_user] };
    let mut complaint = String::new();
    for way in ways {
        let mut probe = programs::command("unshare");
        match probe.args(*way).arg("true").stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {
                let mut command = programs::command("unshare");
                command.args(*way).arg("--").arg(program).env(MARK, "1");
                return Ok(command);
            }
            Ok(output) => complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LabError::Missing { program: "unshare", package: "util-linux" });
            }
            Err(error) => return Err(LabError::io("starting `unshare`")(error)),
        }
    }
    Err(LabError::Forbidden(match obstacle() {
        Some(obstacle) => format!("{complaint}; {obstacle}"),
        None => format!("{complaint}; be root, or allow user namespaces"),
    }))
}

/// Whether the caller, the test of this name, is to go on: it is then alone in private namespaces, free to do what it likes,
/// and nothing outlives it. Otherwise this test program has just run it there, and its failure is the error.
pub fn in_private_namespaces(test: &str) -> Result<bool, LabError> {
    if is_private() {
        end_with_standard_input();
        return Ok(true);
    }
    let program = env::current_exe().map_err(LabError::io("finding this program"))?;
    let mut command = private_command(&program)?;
    command.args(["--exact", test, "--nocapture", "--include-ignored"]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(LabError::io("starting `unshare`"))?;
    // The pipe closes with this process, however it ends; waiting would close it at once.
    let lifeline = child.stdin.take();
    let output = child.wait_with_output().map_err(LabError::io("waiting for `unshare`"))?;
    drop(lifeline);
    if output.status.success() {
        return Ok(false);
    }
    let said = [output.stdout, output.stderr].concat();
    Err(LabError::Command {
        command: format!("{test}, in private namespaces"),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&said).into_owned(),
    })
}

fn end_with_standard_input() {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(125);
    });
}

/// The setting that forbids user namespaces, where one is known to.
fn obstacle() -> Option<String> {
    let settings = [
        ("user.max_user_namespaces", "0", "a number above 0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    settings.into_iter().find_map(|(setting, forbids, allows)| {
        let value = fs::read_to_string(format!("/proc/sys/{}", setting.replace('.', "/"))).ok()?;
        (value.trim() == forbids).then(|| format!("{setting} is {forbids}: set it to {allows}, or be root"))
    })
}
