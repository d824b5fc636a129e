//! The process that the user started: it starts the demo in private namespaces, shows what it says, and takes it down.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{ChildStdin, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{DemoOptions, interrupt};
use crate::lab::{LabError, private_command, require_programs};

/// Begins the line in which the demo in the private namespaces says that it stays up.
const REPORT: &str = "\u{1}vtepd-demo ";

/// What stays up, with pids as they are in the private namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) passed: bool,
    pub(super) hosts: Vec<(String, u32)>,
    pub(super) directory: PathBuf,
}

impl Report {
    pub(super) fn line(&self) -> String {
        format!("{REPORT}{}", serde_json::json!(self))
    }
}

pub(super) fn run(options: &DemoOptions) -> ExitCode {
    start(options).unwrap_or_else(|error| {
        eprintln!("vtepd demo: {error}");
        ExitCode::FAILURE
    })
}

fn start(options: &DemoOptions) -> Result<ExitCode, LabError> {
    require_programs()?;
    let io_failed = |what: &'static str| move |error: io::Error| LabError::not_so(format!("{what}: {error}"));
    let vtepd = options.vtepd.canonicalize().map_err(io_failed("finding this program"))?;
    let (said, saying) = io::pipe().map_err(io_failed("making a pipe"))?;
    let mut command = private_command(&vtepd)?;
    command.arg("demo").args(options.keep.then_some("--keep")).current_dir("/").stdin(Stdio::piped());
    command.stdout(saying.try_clone().map_err(io_failed("making a pipe"))?).stderr(saying);
    // A Ctrl-C reaches only this process, which then takes the other down by closing its standard input.
    let mut child = command.process_group(0).spawn().map_err(io_failed("starting `unshare`"))?;
    drop(command);
    let lifeline = Arc::new(Mutex::new(child.stdin.take()));
    let cut = Arc::clone(&lifeline);
    interrupt::on_signal(move || close(&cut))?;

    let mut said = BufReader::new(said);
    let mut line = Vec::new();
    loop {
        line.clear();
        if said.read_until(b'\n', &mut line).map_err(io_failed("reading from the demo"))? == 0 {
            break;
        }
        if let Some(report) = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix(REPORT)) {
            let report: Report = serde_json::from_str(report)
                .map_err(|error| LabError::not_so(format!("the demo's report: {error}")))?;
            return how_to_go_on(child.id(), &report);
        }
        let mut out = io::stdout().lock();
        if out.write_all(&line).and_then(|()| out.flush()).is_err() {
            close(&lifeline);
        }
    }
    let status = child.wait().map_err(io_failed("waiting for `unshare`"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn close(lifeline: &Mutex<Option<ChildStdin>>) {
    lifeline.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// Says how to look around in what stays up, and how to end it.
fn how_to_go_on(unshare: u32, report: &Report) -> Result<ExitCode, LabError> {
    let processes = processes()?;
    let first = processes
        .iter()
        .find(|process| process.parent == unshare)
        .ok_or_else(|| LabError::not_so("the demo's first process is gone"))?;
    let same = |process: &&Process, kind: &str| namespace(process.pid, kind) == namespace(first.pid, kind);
    let foreign_user = namespace(first.pid, "user") != fs::read_link("/proc/self/ns/user").ok();
    let user = if foreign_user { " -U --preserve-credentials" } else { "" };
    let mut text = "\nEverything stays up. To look around on a host:\n".to_owned();
    for (name, inner) in &report.hosts {
        let outer = processes.iter().find(|process| process.innermost == *inner && same(process, "pid"));
        if let Some(outer) = outer {
            text.push_str(&format!("  {name}:  nsenter -t {}{user} -n -m\n", outer.pid));
        }
    }
    text.push_str(&format!("The logs are in {},\n", report.directory.display()));
    text.push_str(&format!("and this ends it all:\n  kill {}\n", first.pid));
    // Nobody is left to read it where this fails.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Process {
    pid: u32,
    parent: u32,
    /// Its pid in its own pid namespace.
    innermost: u32,
}

fn processes() -> Result<Vec<Process>, LabError> {
    let entries = fs::read_dir("/proc").map_err(|error| LabError::not_so(format!("reading /proc: {error}")))?;
    let status = |entry: io::Result<fs::DirEntry>| fs::read_to_string(entry.ok()?.path().join("status")).ok();
    Ok(entries.filter_map(status).filter_map(|status| parse_status(&status)).collect())
}

fn parse_status(status: &str) -> Option<Process> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    Some(Process {
        pid: field("Pid:")?.trim().parse().ok()?,
        parent: field("PPid:")?.trim().parse().ok()?,
        innermost: field("NSpid:")?.split_whitespace().last()?.parse().ok()?,
    })
}

fn namespace(pid: u32, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_pid_here_and_in_its_own_namespace() {
        let process = parse_status("Name:\tcat\nPid:\t812\nPPid:\t800\nNSpid:\t812\t7\n").unwrap();
        assert_eq!((process.pid, process.parent, process.innermost), (812, 800, 7));
        assert!(parse_status("Name:\tcat\n").is_none());
    }
}
