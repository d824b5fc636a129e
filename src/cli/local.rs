//! Asks the agent of this host for one of its pages, over the socket in its run directory.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a page.
pub(super) fn get(socket: &Path, page: &str) -> Result<String, String> {
    let reply = fetch(socket, page).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no agent of this instance runs on this host ({}: {error})", socket.display())
        }
        _ => format!("{}: {error}", socket.display()),
    })?;
    let Some((head, body)) = reply.split_once("\r\n\r\n") else {
        return Err(format!("{}: no HTTP reply", socket.display()));
    };
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("{}{page}: {}: {}", socket.display(), head.lines().next().unwrap_or_default(), body.trim())),
    }
}

fn fetch(socket: &Path, page: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // HTTP/1.0 keeps the body free of chunks and ends it with the connection.
    stream.write_all(format!("GET {page} HTTP/1.0\r\nHost: vtepd\r\n\r\n").as_bytes())?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    String::from_utf8(reply).map_err(io::Error::other)
}
