//! How to reach etcd, and the files that say more.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use super::error::Error;

/// The longest answer that is taken: a page of the largest values that a cluster of sane size holds.
pub(super) const MAX_MESSAGE: usize = 1 << 30;

/// How to reach etcd and how to follow it.
#[derive(Clone, Debug)]
pub struct Config {
    /// URLs of the members, those first that are to be tried first.
    pub endpoints: Vec<String>,
    /// The prefix of all keys, without a slash at its end.
    pub prefix: String,
    /// Who we are.
    pub user: Option<User>,
    /// TLS material; an `https` URL without it is checked against no authority at all and fails.
    pub tls: Option<Tls>,
    /// Keys per page of a listing. Small pages are quadratic.
    pub page: i64,
    /// How often the server is asked for a sign of life.
    pub heartbeat: Duration,
    /// How long a member may take to answer where another one may be asked instead.
    pub patience: Duration,
    /// How long the only member may take to answer.
    pub timeout: Duration,
    /// How long one page of a listing may take from a member that gives signs of life.
    pub page_timeout: Duration,
    /// How often everything is listed anew although nothing seems to be wrong.
    pub audit: Duration,
    /// How long an audit's listing is held back, so that events which were under way to us when it was made can arrive.
    pub audit_settle: Duration,
    /// The shortest and the longest delay between attempts.
    pub retry: (Duration, Duration),
}

/// A user of etcd's. The password stays in its file, which is read at every login: it may change at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The file with the password; a line break at its end does not belong to it.
    pub password_file: PathBuf,
}

/// Files with TLS material, in PEM, read at every connection.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authority that signs the servers' certificates.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Config {
    /// The defaults for these members.
    pub fn new(endpoints: Vec<String>, prefix: &str) -> Self {
        Self {
            endpoints,
            prefix: prefix.trim_end_matches('/').to_owned(),
            user: None,
            tls: None,
            page: 50_000,
            heartbeat: Duration::from_secs(1),
            patience: Duration::from_millis(1500),
            timeout: Duration::from_secs(4),
            page_timeout: Duration::from_secs(30),
            audit: Duration::from_secs(600),
            audit_settle: Duration::from_secs(1),
            retry: (Duration::from_millis(100), Duration::from_secs(10)),
        }
    }
}

impl User {
    pub(super) async fn password(&self) -> Result<String, Error> {
        let text = String::from_utf8(read(&self.password_file).await?);
        let text = text.map_err(|_| Error::File(self.password_file.clone(), "is no text".to_owned()))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(Error::File(self.password_file.clone(), "is empty".to_owned())),
            password => Ok(password.to_owned()),
        }
    }
}

impl Tls {
    /// The options for a server that is to have a certificate for this name.
    async fn options(&self, name: &str) -> Result<TlsOptions, Error> {
        let mut options = TlsOptions::new().domain_name(name);
        if let Some(ca) = &self.ca {
            options = options.ca_certificate(Certificate::from_pem(pem(ca, "CERTIFICATE").await?));
        }
        if let Some((cert, key)) = &self.identity {
            let identity = Identity::from_pem(pem(cert, "CERTIFICATE").await?, pem(key, "PRIVATE KEY").await?);
            options = options.identity(identity);
        }
        Ok(options)
    }
}

/// The options of a connection to a server of this name that may take so long to come about.
pub(super) async fn options(tls: Option<&Tls>, name: &str, connect_timeout: Duration) -> Result<ConnectOptions, Error> {
    let options = ConnectOptions::new().with_connect_timeout(connect_timeout).with_require_leader(true);
    Ok(match tls {
        Some(tls) => options.with_tls(tls.options(name).await?),
        None => options,
    })
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let path = path.to_owned();
    let failed = |path: &Path, error: &dyn std::fmt::Display| Error::File(path.to_owned(), error.to_string());
    let reading = tokio::task::spawn_blocking(move || std::fs::read(&path).map_err(|e| failed(&path, &e)));
    reading.await.map_err(|error| Error::File(PathBuf::new(), error.to_string()))?
}

/// A file in PEM with something of this kind in it. One that is being written ends before that does.
async fn pem(path: &Path, kind: &str) -> Result<Vec<u8>, Error> {
    let text = read(path).await?;
    match incomplete(&text, kind) {
        Some(why) => Err(Error::File(path.to_owned(), why)),
        None => Ok(text),
    }
}

/// Why a text in PEM is not whole.
fn incomplete(text: &[u8], kind: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let lines = |mark: &'static str| {
        text.lines().filter(move |line| line.starts_with(mark) && line.trim_end().ends_with("-----"))
    };
    let [begun, ended] =
        ["-----BEGIN ", "-----END "].map(|mark| lines(mark).filter(|line| line.contains(kind)).count());
    match (begun, ended) {
        (0, _) => Some(format!("has no {kind} in PEM, or not yet")),
        (begun, ended) if begun > ended => Some(format!("ends in the middle of a {kind}; taken when it is whole")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::incomplete;

    #[test]
    fn a_file_that_is_being_written_is_not_taken_for_whole() {
        let whole = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIBs0\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(incomplete(whole.as_bytes(), "PRIVATE KEY"), None);
        for cut in [0, 5, 31, 40, 50, whole.len() - 3] {
            assert!(incomplete(&whole.as_bytes()[..cut], "PRIVATE KEY").is_some(), "{cut}");
        }
        assert!(incomplete(whole.as_bytes(), "CERTIFICATE").is_some());
    }
}
