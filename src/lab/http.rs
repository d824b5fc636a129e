use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{LabError, namespace::Namespace};

const TIMEOUT: Duration = Duration::from_secs(2);

/// Fetches a page of a server inside the namespace: the status code and the body.
pub(crate) fn get(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<(u16, String), LabError> {
    let what = format!("GET http://{server}{path}");
    let reply = namespace.within(|| {
        let fetch = || {
            let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            // HTTP/1.0 keeps the body free of chunks and ends it with the connection.
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").as_bytes())?;
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply)?;
            Ok(reply)
        };
        fetch().map_err(LabError::io(what.clone()))
    })?;
    parse(&String::from_utf8_lossy(&reply)).ok_or_else(|| LabError::not_so(format!("{what}: not an HTTP reply")))
}

fn parse(reply: &str) -> Option<(u16, String)> {
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split_ascii_whitespace().nth(1)?;
    Some((status.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_its_status_and_its_body() {
        let reply = "HTTP/1.0 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nno\n\n";
        assert_eq!(parse(reply), Some((503, "no\n\n".to_owned())));
        assert_eq!(parse("SSH-2.0-OpenSSH_9.2\r\n\r\n"), None);
        assert_eq!(parse(""), None);
    }
}
