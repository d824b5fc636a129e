//! A connection and its calls, each with a timeout.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use thiserror::Error;

use crate::schema::Rejected;

/// The longest answer that is taken: a page of the largest values that a cluster of sane size holds.
pub(super) const MAX_MESSAGE: usize = 1 << 30;

/// How to reach etcd and how to follow it. It holds a password, and so cannot be shown.
#[derive(Clone)]
pub struct Config {
    /// URLs of the members.
    pub endpoints: Vec<String>,
    /// The prefix of all keys, without a slash at its end.
    pub prefix: String,
    /// User and password.
    pub user: Option<(String, String)>,
    /// TLS material; an `https` URL without it is checked against no authority at all and fails.
    pub tls: Option<Tls>,
    /// Keys per page of a listing. A few pages are in memory at once.
    pub page: i64,
    /// How often the server is asked for a sign of life.
    pub heartbeat: Duration,
    /// How long a call may take.
    pub timeout: Duration,
    /// How long one page of a listing may take.
    pub page_timeout: Duration,
    /// How often everything is listed anew although nothing seems to be wrong.
    pub audit: Duration,
    /// How long an audit's listing is held back, so that events which were under way to us when it was made can arrive.
    pub audit_settle: Duration,
    /// The shortest and the longest delay between attempts.
    pub retry: (Duration, Duration),
}

/// Files with TLS material, in PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authority that signs the servers' certificates.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What went wrong at the edge.
#[derive(Debug, Error)]
pub enum Error {
    /// No answer in time.
    #[error("etcd did not answer in {0:?}")]
    Timeout(Duration),
    /// The client or the server refused.
    #[error("etcd: {0}")]
    Etcd(#[from] etcd_client::Error),
    /// A file with TLS material cannot be read.
    #[error("cannot read {0}: {1}")]
    Tls(PathBuf, io::Error),
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

/// A connection to etcd.
#[derive(Clone)]
pub struct Etcd {
    pub(super) client: Client,
    pub(super) prefix: String,
    pub(super) timeout: Duration,
}

impl Config {
    /// The defaults for these members.
    pub fn new(endpoints: Vec<String>, prefix: &str) -> Self {
        Self {
            endpoints,
            prefix: prefix.trim_end_matches('/').to_owned(),
            user: None,
            tls: None,
            page: 16_384,
            heartbeat: Duration::from_secs(3),
            timeout: Duration::from_secs(5),
            page_timeout: Duration::from_secs(30),
            audit: Duration::from_secs(600),
            audit_settle: Duration::from_secs(1),
            retry: (Duration::from_millis(100), Duration::from_secs(10)),
        }
    }

    async fn options(&self) -> Result<ConnectOptions, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.timeout)
            .with_keep_alive(self.heartbeat, self.timeout)
            .with_require_leader(true);
        if let Some((user, password)) = &self.user {
            options = options.with_user(user, password);
        }
        if let Some(tls) = &self.tls {
            let mut tls_options = TlsOptions::new();
            if let Some(ca) = &tls.ca {
                tls_options = tls_options.ca_certificate(Certificate::from_pem(read(ca).await?));
            }
            if let Some((cert, key)) = &tls.identity {
                tls_options = tls_options.identity(Identity::from_pem(read(cert).await?, read(key).await?));
            }
            options = options.with_tls(tls_options);
        }
        Ok(options)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || std::fs::read(&path).map_err(|e| Error::Tls(path, e)));
    reading.await.map_err(|e| Error::Tls(PathBuf::new(), io::Error::other(e)))?
}

/// Waits for an answer, but not for ever.
pub(super) async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::Timeout(timeout)),
    }
}

impl Etcd {
    /// Connects, and makes sure that somebody answers.
    ///
    /// # Errors
    /// Nobody answered, or not with consent.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let options = config.options().await?;
        let client = within(config.timeout, Client::connect(&config.endpoints, Some(options))).await?;
        let etcd = Self { client, prefix: config.prefix.clone(), timeout: config.timeout };
        etcd.beat().await?;
        Ok(etcd)
    }

    /// A sign of life: cluster and revision, agreed upon by a majority. Reads within the prefix, for more may not be allowed.
    pub(super) async fn beat(&self) -> Result<(u64, i64), Error> {
        let options = GetOptions::new().with_keys_only().with_limit(1);
        let mut kv = self.client.kv_client();
        let answer = within(self.timeout, kv.get(format!("{}/store", self.prefix), Some(options))).await?;
        let header = answer.header().ok_or(Error::Headless)?;
        Ok((header.cluster_id(), header.revision()))
    }
}
