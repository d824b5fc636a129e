//! What goes wrong at the edge, said once, in words that help.

use std::{error::Error as StdError, io, path::PathBuf, time::Duration};

use thiserror::Error;

use crate::schema::Rejected;

/// What went wrong at the edge.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// A member cannot be used; another one may.
    #[error("{url}: {fault}")]
    Member {
        /// Its URL.
        url: String,
        /// Why.
        fault: Fault,
    },
    /// None of several members can be used.
    #[error("{}", .0.iter().map(Error::to_string).collect::<Vec<_>>().join("; "))]
    Nobody(Vec<Error>),
    /// etcd does not let this user in.
    #[error("etcd does not let us in: {0}")]
    Login(String),
    /// The token of the last login is not taken, or not any more.
    #[error("etcd does not take our token")]
    Token,
    /// The user may not do this.
    #[error("etcd: permission denied")]
    Denied,
    /// The store is full and takes no writes.
    #[error("etcd's database is full (NOSPACE): it takes no writes before it was compacted, defragmented and disarmed")]
    NoSpace,
    /// This part of history is gone.
    #[error("etcd has compacted this part of its history")]
    Compacted,
    /// A file with a password or TLS material cannot be used.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, String),
    /// Something else, in etcd's own words.
    #[error("etcd: {0}")]
    Said(String),
    /// Somebody else kept writing the record meanwhile.
    #[error("{0} kept changing while it was being written")]
    Contended(String),
    /// The record that stands there is bad.
    #[error("{0}")]
    Rejected(#[from] Rejected),
    /// An answer lacks what every answer has.
    #[error("etcd's answer has no header")]
    Headless,
}

/// Why a member cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// The URL is none.
    #[error("is no URL of etcd: {0}")]
    Url(String),
    /// Nobody knows the name.
    #[error("cannot resolve {name}: {why}")]
    Unresolved {
        /// The name.
        name: String,
        /// The resolver's words.
        why: String,
    },
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// There is no way there.
    #[error("{0}")]
    Unreachable(String),
    /// Nothing answers the attempt to connect.
    #[error("nothing answers the attempt to connect")]
    NoConnection,
    /// No token in time. Checking a password is work for the server.
    #[error("did not log us in within {0:?}")]
    NoLogin(Duration),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The watch says nothing although reads are answered.
    #[error("its watch is silent")]
    SilentWatch,
    /// It has no leader, and so speaks for nobody.
    #[error("has lost its quorum: {0}")]
    NoLeader(String),
    /// Something about TLS.
    #[error("{0}")]
    Tls(String),
    /// It belongs to another cluster.
    #[error("is a member of cluster {theirs:x}, not of {ours:x} that is followed; refused")]
    OtherCluster {
        /// Its cluster's identity.
        theirs: u64,
        /// That of the cluster that is followed.
        ours: u64,
    },
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
}

impl Error {
    pub(super) fn member(url: &str, fault: Fault) -> Self {
        Self::Member { url: url.to_owned(), fault }
    }

    /// Whether another member may do better.
    pub(super) const fn is_members(&self) -> bool {
        matches!(self, Self::Member { .. })
    }

    /// Whether nobody did any work for us, so that a next attempt costs nobody anything.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Member { fault, .. } => matches!(
                fault,
                Fault::Unresolved { .. }
                    | Fault::Refused
                    | Fault::Unreachable(_)
                    | Fault::NoConnection
                    | Fault::Silent(_)
            ),
            Self::Nobody(all) => all.iter().all(Self::is_unreachable),
            _ => false,
        }
    }

    /// What the client says of a call to the member with this URL.
    pub(super) fn of(url: &str, error: &etcd_client::Error) -> Self {
        let status = match error {
            etcd_client::Error::GRpcStatus(status) => status,
            etcd_client::Error::InvalidArgs(why) => return Self::member(url, Fault::Url(why.clone())),
            etcd_client::Error::InvalidUri(why) => return Self::member(url, Fault::Url(why.to_string())),
            other => return Self::member(url, fault(other)),
        };
        let said = status.message();
        let words = said.trim_start_matches("etcdserver: ").to_owned();
        let says = |part: &str| said.contains(part);
        match i32::from(status.code()) {
            _ if is_about_token(said) => Self::Token,
            _ if says("authentication failed") => Self::Login("user or password is wrong".to_owned()),
            _ if says("required revision has been compacted") => Self::Compacted,
            _ if says("database space exceeded") => Self::NoSpace,
            _ if ["no leader", "leader changed", "request timed out", "not capable", "server stopped"]
                .into_iter()
                .any(says) =>
            {
                Self::member(url, Fault::NoLeader(words))
            }
            PERMISSION_DENIED => Self::Denied,
            CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE => match fault(status) {
                Fault::Lost(_) if StdError::source(status).is_none() => Self::member(url, Fault::Lost(words)),
                fault => Self::member(url, fault),
            },
            _ => Self::Said(words),
        }
    }
}

/// Whether etcd's words ask for a token, or for another one.
pub(super) fn is_about_token(said: &str) -> bool {
    ["invalid auth token", "user name is empty", "revision of auth store is old"].iter().any(|part| said.contains(part))
}

// The codes of gRPC (google.rpc.Code).
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const DEADLINE_EXCEEDED: i32 = 4;
const PERMISSION_DENIED: i32 = 7;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;

/// What lies at the bottom of a failed transport. The layers above only say that it failed.
fn fault(error: &(dyn StdError + 'static)) -> Fault {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    let said = last.to_string();
    if let Some(fault) = tls(&said) {
        return fault;
    }
    // An error inside an I/O error is its source only at the very end, so that kinds are found on the way down.
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return Fault::Refused,
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    return Fault::Unreachable(io.to_string());
                }
                io::ErrorKind::TimedOut => return Fault::NoConnection,
                _ => {}
            }
        }
        at = error.source();
    }
    Fault::Lost(said)
}

/// What rustls says, in an operator's words.
fn tls(said: &str) -> Option<Fault> {
    let says = |part: &str| said.contains(part);
    let text = match () {
        () if says("UnknownIssuer") => {
            "the server's certificate is signed by an authority that --etcd-ca does not have"
        }
        () if says("not valid for") || says("NotValidForName") => {
            return Some(Fault::Tls(format!("the server's certificate is for another name: {said}")));
        }
        () if says("Expired") || says("expired") => "the server's certificate has expired",
        () if says("NotValidYet") || says("not valid yet") => "the server's certificate is not valid yet",
        () if says("CertificateRequired") => "the server wants a client's certificate: give --etcd-cert and --etcd-key",
        () if says("UnknownCA") || says("BadCertificate") || says("DecryptError") => {
            "the server does not take the client's certificate (--etcd-cert)"
        }
        () if says("KeyMismatch") || says("keys may not be consistent") => {
            "certificate and key (--etcd-cert, --etcd-key) do not belong together"
        }
        () if says("parsing TLS private key") || says("parsing TLS certificate") => {
            "certificate or key (--etcd-cert, --etcd-key) is not whole"
        }
        () if says("InvalidContentType") => "the server does not speak TLS: the URL begins with http:// then",
        () if says("invalid peer certificate") || says("fatal alert") => said,
        () => return None,
    };
    Some(Fault::Tls(text.to_owned()))
}
