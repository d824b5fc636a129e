//! etcd by way of one member at a time: which one, and what happens when it does not answer.
//!
//! The client would spread requests over all the members that it is given, so that one that is dead costs every third call. It
//! is given one. A member that does not answer, or answers without a quorum behind it, is left at once, by everybody.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::{Client, GetOptions, GetResponse, Txn, TxnResponse};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::{sync::Mutex, time::timeout};
use tracing::{info, warn};

use super::{
    config::{Config, MAX_MESSAGE},
    error::{Error, Fault},
    member::{self, Login, Member, Place},
    position::Beat,
};

/// The next member is tried when the one before has not answered for so long; the first that answers is taken.
const HEAD_START: Duration = Duration::from_millis(300);
/// How long names may take to be resolved where a name that was resolved before will do as well.
const RESOLVE: Duration = Duration::from_secs(1);
/// A member that was in use for so long was no mistake: patience begins anew.
const GOOD: Duration = Duration::from_secs(10);

/// etcd. Clones share the member that is in use.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
    pub(super) prefix: String,
}

struct Shared {
    config: Config,
    login: Arc<Login>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    member: Option<Member>,
    since: Option<Instant>,
    /// The cluster that is followed.
    cluster: Option<u64>,
    /// When a place was last found to be of no use.
    faults: BTreeMap<Place, Instant>,
    /// What each URL's name last meant.
    places: BTreeMap<usize, Vec<Place>>,
    /// How many times in a row nobody was of use for long.
    strikes: u32,
    /// Members of other clusters that were named.
    named: BTreeSet<Place>,
}

impl Etcd {
    /// etcd by these members. Nothing is sent yet.
    pub fn new(config: Config) -> Self {
        let prefix = config.prefix.clone();
        let shared = Shared { config, login: Arc::default(), state: Mutex::default() };
        Self { shared: Arc::new(shared), prefix }
    }

    /// Connects, and makes sure that somebody answers.
    ///
    /// # Errors
    /// Nobody answered, or not with consent.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let etcd = Self::new(config.clone());
        etcd.member().await?;
        Ok(etcd)
    }

    /// The same etcd, below another prefix.
    #[must_use]
    pub fn below(&self, prefix: &str) -> Self {
        Self { shared: Arc::clone(&self.shared), prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// The addresses of the members, in the order of their URLs; of a name that cannot be resolved, none.
    pub async fn addresses(&self) -> Vec<IpAddr> {
        join_all(self.config().endpoints.iter().map(|url| member::addresses(url))).await.concat()
    }

    pub(super) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The member in use; where there is none, the first that answers.
    pub(super) async fn member(&self) -> Result<Member, Error> {
        let mut state = self.shared.state.lock().await;
        if let Some(member) = &state.member {
            return Ok(member.below(&self.prefix));
        }
        let member = self.first_that_answers(&mut state).await;
        if member.is_err() {
            state.strikes += 1;
        }
        let member = member?;
        info!(url = member.place.url, "connected to etcd");
        state.since = Some(Instant::now());
        let below = member.below(&self.prefix);
        state.member = Some(member);
        Ok(below)
    }

    /// The member is not used any more, by nobody.
    pub(super) async fn leave(&self, member: &Member) {
        let mut state = self.shared.state.lock().await;
        if !state.member.as_ref().is_some_and(|used| used.is(member)) {
            return;
        }
        state.member = None;
        state.faults.insert(member.place.clone(), Instant::now());
        let good = state.since.is_some_and(|since| since.elapsed() > GOOD);
        state.strikes = if good { 0 } else { state.strikes + 1 };
    }

    /// A call on the member in use, and where that is of no use, on the next one at once.
    pub(super) async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let call = &call;
        self.on_a_member(|member| async move { member.call(member.patience, call).await }).await
    }

    pub(super) async fn get(&self, key: impl Into<Vec<u8>>, options: GetOptions) -> Result<GetResponse, Error> {
        let key = key.into();
        let get = |client: Client| {
            let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let (key, options) = (key.clone(), options.clone());
            async move { kv.get(key, Some(options)).await }
        };
        self.call(get).await
    }

    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let make = |client: Client| {
            let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        };
        self.call(make).await
    }

    /// Does something with the member in use, and where that is of no use, with the next one from the start.
    pub(super) async fn on_a_member<T, F>(&self, work: impl Fn(Member) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut tries = self.config().endpoints.len().max(1) + 1;
        loop {
            let member = self.member().await?;
            match work(member.clone()).await {
                Err(error) if error.is_members() => {
                    warn!(%error, "left this member of etcd");
                    self.leave(&member).await;
                    tries -= 1;
                    if tries == 0 {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// How long a member may take. Where all took too long, they get longer.
    fn patience(&self, strikes: u32) -> Duration {
        let Config { endpoints, patience, timeout, .. } = self.config();
        match u32::try_from(endpoints.len()).unwrap_or(u32::MAX) {
            0 | 1 => *timeout,
            members => (*patience * 2_u32.saturating_pow((strikes / members).min(8))).min(*timeout),
        }
    }

    async fn first_that_answers(&self, state: &mut State) -> Result<Member, Error> {
        let config = self.config();
        let patience = self.patience(state.strikes);
        let (places, mut errors) = self.places(state).await;
        let mut waiting = places.into_iter();
        let mut attempts = FuturesUnordered::new();
        let attempt = |place: Place| async move {
            let connecting = Member::connect(config, &self.shared.login, &place, patience);
            // Each step has its own end; together they may log in and ask twice.
            let outcome = timeout(3 * patience, connecting).await;
            let silent = || Err(Error::member(&place.url, Fault::Silent(3 * patience)));
            (outcome.unwrap_or_else(|_| silent()), place)
        };
        let mut others: BTreeMap<u64, BTreeMap<usize, Member>> = BTreeMap::new();
        attempts.extend(waiting.next().map(attempt));
        while !attempts.is_empty() {
            let done = tokio::select! {
                done = attempts.next() => done,
                () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => None,
            };
            if let Some((outcome, place)) = done {
                let error = match outcome {
                    Ok((member, Beat { cluster, .. })) => match state.cluster {
                        Some(ours) if ours != cluster => {
                            others.entry(cluster).or_default().insert(place.number, member);
                            Error::member(&place.url, Fault::OtherCluster { theirs: cluster, ours })
                        }
                        _ => {
                            state.cluster = Some(cluster);
                            return Ok(member);
                        }
                    },
                    Err(error) => error,
                };
                if matches!(&error, Error::Member { fault: Fault::OtherCluster { .. }, .. })
                    && state.named.insert(place.clone())
                {
                    warn!(%error, "one of the URLs of etcd leads elsewhere");
                }
                state.faults.insert(place, Instant::now());
                errors.push(error);
            }
            attempts.extend(waiting.next().map(attempt));
        }
        // A store that was restored may be another cluster: when most members say so, it is.
        let most = config.endpoints.len() / 2 + 1;
        if let Some((cluster, mut members)) = others.into_iter().find(|(_, members)| members.len() >= most) {
            state.cluster = Some(cluster);
            state.named.clear();
            return members.pop_first().map(|(_, member)| member).ok_or(Error::Nobody(Vec::new()));
        }
        errors.dedup();
        match errors.len() {
            1 => Err(errors.remove(0)),
            _ => Err(Error::Nobody(errors)),
        }
    }

    /// All places, those first that were never of no use, then those of which that is longest ago; and what is wrong with URLs.
    async fn places(&self, state: &mut State) -> (Vec<Place>, Vec<Error>) {
        let config = self.config();
        let mut resolving = Vec::new();
        for (number, url) in config.endpoints.iter().enumerate() {
            let known = state.places.contains_key(&number) || config.endpoints.len() > 1;
            let limit = if known { RESOLVE } else { config.timeout };
            resolving.push(async move {
                let late = Fault::Unresolved { name: url.clone(), why: "the resolver does not answer".to_owned() };
                let found = timeout(limit, member::places(number, url, config.tls.is_some())).await;
                (number, found.unwrap_or_else(|_| Err(Error::member(url, late))))
            });
        }
        let resolved = join_all(resolving).await;
        let mut errors = Vec::new();
        for (number, found) in resolved {
            match found {
                Ok(places) => drop(state.places.insert(number, places)),
                Err(error) if !state.places.contains_key(&number) => errors.push(error),
                Err(_) => {}
            }
        }
        let mut places: Vec<Place> = state.places.values().flatten().cloned().collect();
        places.sort_by_key(|place| state.faults.get(place).copied());
        (places, errors)
    }
}
