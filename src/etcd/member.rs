//! A connection to one member, and calls on it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};
use tokio::time::timeout;
use tracing::info;

use super::{
    config::{self, Config, Tls, User},
    error::{Error, Fault},
    list::ranges,
    position::Beat,
};

/// The port of a URL that names none.
const PORT: u16 = 2379;
/// After so long without an answer a connection is begun anew: the kernel itself would try again only after a second, then
/// two, then four, and the way may long be open again.
const CONNECT: Duration = Duration::from_millis(700);

/// Where a member may be: a URL, and one of the addresses that its name has where it has several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Of the URLs in the configuration, this one.
    pub(super) number: usize,
    /// The URL as it was given, with the address where that is not all.
    pub(super) url: String,
    target: String,
    host: String,
}

/// Logging in, which all connections do with one user.
#[derive(Debug, Default)]
pub(super) struct Login {
    /// etcd had no authentication when it was last asked for a token.
    without: AtomicBool,
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) client: Client,
    pub(super) place: Place,
    /// How long an answer may take.
    pub(super) patience: Duration,
    user: Option<User>,
    login: Arc<Login>,
    heartbeat: Duration,
    pub(super) prefix: String,
    /// How many tokens there were on this connection, and whose turn it is to get the next.
    tokens: Arc<(AtomicU64, tokio::sync::Mutex<()>)>,
}

/// The places of a URL.
pub(super) async fn places(number: usize, url: &str, with_tls: bool) -> Result<Vec<Place>, Error> {
    let (tls, host, port) = parts(url, with_tls).map_err(|why| Error::member(url, Fault::Url(why)))?;
    let scheme = if tls { "https" } else { "http" };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let place = |url: String, target: String| Place { number, url, target, host: bare.to_owned() };
    let itself = place(url.to_owned(), format!("{scheme}://{host}:{port}"));
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(vec![itself]);
    }
    let unresolved = |error: &dyn std::fmt::Display| {
        let why = error.to_string().trim_start_matches("failed to lookup address information: ").to_owned();
        Error::member(url, Fault::Unresolved { name: bare.to_owned(), why })
    };
    let found = tokio::net::lookup_host((bare, port)).await.map_err(|error| unresolved(&error))?;
    let found: Vec<SocketAddr> = found.collect();
    match &*found {
        [] => Err(unresolved(&"it has no address")),
        // Behind one name may be several members, of which the client would try the same one again and again.
        [_] => Ok(vec![itself]),
        several => Ok(several
            .iter()
            .map(|address| place(format!("{url} ({address})"), format!("{scheme}://{address}")))
            .collect()),
    }
}

/// Whether a URL means TLS, its host and its port.
fn parts(url: &str, with_tls: bool) -> Result<(bool, &str, u16), String> {
    let (tls, rest) = match url.split_once("://") {
        Some(("http", _)) if with_tls => return Err("TLS needs https://".to_owned()),
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some((other, _)) => return Err(format!("{other:?} is neither http nor https")),
        None => (with_tls, url),
    };
    let authority = rest.trim_end_matches('/');
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon of an IPv6 address without a port is within the brackets.
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| format!("port {port:?}"))?),
        _ => (authority, PORT),
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(['/', '@', '?', '#']) || (host.contains(':') && !bracketed) {
        return Err(format!("host {host:?}"));
    }
    Ok((tls, host, port))
}

/// The addresses of a URL's host.
pub(super) async fn addresses(url: &str) -> Vec<IpAddr> {
    let Ok((_, host, port)) = parts(url, false) else { return Vec::new() };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    tokio::net::lookup_host((bare, port)).await.map(|found| found.map(|found| found.ip()).collect()).unwrap_or_default()
}

impl Member {
    /// Connects, logs in, and makes sure that the member speaks for its cluster.
    pub(super) async fn connect(
        config: &Config,
        login: &Arc<Login>,
        place: &Place,
        patience: Duration,
    ) -> Result<(Self, Beat), Error> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let connect = if left > 2 * CONNECT { CONNECT } else { left };
            let tls = config.tls.as_ref();
            let attempt = async {
                let member = Self::open(config, login, place, patience, connect, tls).await?;
                if member.user.is_some() {
                    member.log_in().await?;
                }
                let beat = member.beat().await?;
                Ok((member, beat))
            };
            match attempt.await {
                Err(Error::Member { fault: Fault::NoConnection, .. }) if connect < left => {}
                outcome => return outcome,
            }
        }
    }

    async fn open(
        config: &Config,
        login: &Arc<Login>,
        place: &Place,
        patience: Duration,
        connect: Duration,
        tls: Option<&Tls>,
    ) -> Result<Self, Error> {
        let options = config::options(tls, &place.host, connect).await?;
        // Nothing is sent yet.
        let client = Client::connect([&place.target], Some(options)).await;
        let client = client.map_err(|error| Error::of(&place.url, &error))?;
        Ok(Self {
            client,
            place: place.clone(),
            patience,
            user: config.user.clone(),
            login: Arc::clone(login),
            heartbeat: config.heartbeat,
            prefix: config.prefix.clone(),
            tokens: Arc::default(),
        })
    }

    /// The same connection, for what stands below another prefix.
    pub(super) fn below(&self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self.clone() }
    }

    pub(super) fn fault(&self, fault: Fault) -> Error {
        Error::member(&self.place.url, fault)
    }

    /// Whether both are the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tokens, &other.tokens)
    }

    /// Gets a token with the password that stands in the file now. Where etcd has no authentication nobody needs one.
    async fn log_in(&self) -> Result<(), Error> {
        let Some(user) = &self.user else {
            let why = "it asks for a user: give --etcd-user and --etcd-password-file";
            return Err(Error::Login(why.to_owned()));
        };
        let password = user.password().await?;
        let mut client = self.client.clone();
        // Checking a password costs the server a tenth of a second, and everybody may come at once.
        let limit = 2 * self.patience;
        let answer = timeout(limit, client.update_user(Some((user.name.clone(), password)))).await;
        self.tokens.0.fetch_add(1, Ordering::AcqRel);
        let without = match answer {
            Ok(Ok(())) => false,
            Ok(Err(error)) if error.to_string().contains("authentication is not enabled") => {
                // A token of before would be refused all the same.
                let _ = client.update_user(None).await;
                true
            }
            Ok(Err(error)) => {
                return Err(match Error::of(&self.place.url, &error) {
                    Error::Login(_) => Error::Login(format!(
                        "user {:?} or the password in {} is wrong",
                        user.name,
                        user.password_file.display()
                    )),
                    other => other,
                });
            }
            Err(_) => return Err(self.fault(Fault::NoLogin(limit))),
        };
        if self.login.without.swap(without, Ordering::AcqRel) != without {
            match without {
                true => {
                    info!(user = user.name, "etcd has no authentication; going on without, and logging in once it has")
                }
                false => info!(user = user.name, "etcd has authentication now; logged in"),
            }
        }
        Ok(())
    }

    /// Gets another token unless somebody did meanwhile.
    async fn log_in_again(&self, tokens: u64) -> Result<(), Error> {
        let _turn = self.tokens.1.lock().await;
        if self.tokens.0.load(Ordering::Acquire) == tokens { self.log_in().await } else { Ok(()) }
    }

    /// A call, which may be made again where the token was not taken.
    pub(super) async fn call<T, F>(&self, limit: Duration, call: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut again = 2;
        loop {
            let tokens = self.tokens.0.load(Ordering::Acquire);
            let error = match timeout(limit, call(self.client.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => Error::of(&self.place.url, &error),
                Err(_) => self.fault(Fault::Silent(limit)),
            };
            if error != Error::Token || again == 0 {
                return Err(error);
            }
            again -= 1;
            self.log_in_again(tokens).await?;
        }
    }

    /// A call that may take long, as long as the member gives signs of life meanwhile.
    pub(super) async fn long_call<T, F>(&self, limit: Duration, call: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let silent = async {
            loop {
                tokio::time::sleep(self.heartbeat).await;
                match self.beat().await {
                    Err(error) if error.is_members() => return error,
                    _ => {}
                }
            }
        };
        tokio::select! {
            answer = self.call(limit, call) => answer,
            error = silent => Err(error),
        }
    }

    /// A sign of life: cluster and revision, agreed upon by a majority. Reads within the prefix, for more may not be allowed.
    pub(super) async fn beat(&self) -> Result<Beat, Error> {
        let get = |client: Client| {
            let key = format!("{}/store", self.prefix);
            async move { client.kv_client().get(key, None).await }
        };
        let answer = self.call(self.patience, get).await?;
        let header = answer.header().ok_or(Error::Headless)?;
        let store = answer.kvs().first().map(|kv| kv.value().to_vec());
        Ok(Beat { cluster: header.cluster_id(), revision: header.revision(), store })
    }

    /// Makes sure that what is followed may still be read, which an open watch does not. Rights are checked for the branch of
    /// a transaction that is not taken as well, so that nothing is read (etcd 3.4, `checkTxnAuth`).
    pub(super) async fn may_read(&self) -> Result<(), Error> {
        let first = |(from, to): (String, String)| {
            TxnOp::get(from, Some(GetOptions::new().with_range(to).with_limit(1).with_keys_only()))
        };
        let read: Vec<TxnOp> = ranges(&self.prefix).into_iter().map(first).collect();
        let key = format!("{}/store", self.prefix);
        let never = Compare::version(key, CompareOp::Less, 0);
        let txn = Txn::new().when([never]).and_then(read);
        let asked = |client: Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        match self.call(self.patience, asked).await {
            Err(Error::Denied) => Err(Error::Denied),
            // The heartbeat judges the member, and a full store refuses every transaction.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_with_and_without_scheme_port_and_brackets() {
        for (url, with_tls, expected) in [
            ("http://10.0.0.1:2379", false, (false, "10.0.0.1", 2379)),
            ("http://10.0.0.1:2379/", false, (false, "10.0.0.1", 2379)),
            ("https://etcd", true, (true, "etcd", 2379)),
            ("etcd:4001", true, (true, "etcd", 4001)),
            ("etcd:4001", false, (false, "etcd", 4001)),
            ("http://[fd00::1]:1", false, (false, "[fd00::1]", 1)),
            ("http://[fd00::1]", false, (false, "[fd00::1]", 2379)),
        ] {
            assert_eq!(parts(url, with_tls), Ok(expected), "{url}");
        }
        for url in ["", "http://", "ftp://a", "http://a:b", "http://fd00::1:2", "http://a/b", "http://u@h", "a:99999"] {
            assert!(parts(url, false).is_err(), "{url}");
        }
        assert!(parts("http://a", true).is_err(), "a certificate that is never used");
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_said_by_name() {
        let error = places(0, "http://no-such-host.invalid:2379", false).await.unwrap_err();
        assert!(error.to_string().contains("cannot resolve no-such-host.invalid"), "{error}");
    }
}
