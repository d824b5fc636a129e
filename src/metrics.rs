//! The series of DESIGN's contract. Label sets are closed; `network` stands only on the three gauges that are per network.
//!
//! **Invariant:** what documents, dashboard and alerts name exists, and what exists stands in `docs/metrics.md`
//! (`the_table_of_metrics_has_every_series_and_no_other_and_says_what_to_do`,
//! `dashboard_alerts_and_documents_name_only_series_that_exist`).

use std::{collections::BTreeMap, time::Duration};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets, process_collector::ProcessCollector,
};

use crate::engine::{Action, Cause, DriftReason, Kind, Note};

/// All series of one agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `vtepd_in_sync`.
    pub in_sync: IntGaugeVec,
    /// `vtepd_desired_objects`.
    pub desired: IntGaugeVec,
    /// `vtepd_observed_objects`.
    pub observed: IntGaugeVec,
    drift: IntCounterVec,
    /// `vtepd_drift_objects`.
    pub drifting: IntGaugeVec,
    repairs: IntCounterVec,
    repair_duration: Histogram,
    ops: IntCounterVec,
    change_latency: Histogram,
    /// `vtepd_blocked_objects`.
    pub blocked: IntGaugeVec,
    /// `vtepd_damped_objects`.
    pub damped: IntGaugeVec,
    /// `vtepd_pending_records`.
    pub pending: IntGauge,
    /// `vtepd_rejected_records`.
    pub rejected: IntGaugeVec,
    /// `vtepd_conflicts`.
    pub conflicts: IntGauge,
    /// `vtepd_removals_held`.
    pub removals_held: IntGauge,
    resyncs: IntCounterVec,
    resync_duration: Histogram,
    /// `vtepd_last_audit_timestamp_seconds`.
    pub last_audit: Gauge,
    overruns: IntCounter,
    /// `vtepd_etcd_connected`.
    pub etcd_connected: IntGauge,
    /// `vtepd_etcd_last_contact_timestamp_seconds`.
    pub etcd_last_contact: Gauge,
    /// `vtepd_etcd_revision`.
    pub etcd_revision: IntGauge,
    /// `vtepd_applied_revision`.
    pub applied_revision: IntGauge,
    /// `vtepd_etcd_relists_total`.
    pub relists: IntCounterVec,
}

/// Why a series could not be registered: two of one name, which a test would show.
pub type Error = prometheus::Error;

/// Registers series, one line each.
struct Maker(Registry);

impl Maker {
    fn own<C: prometheus::core::Collector + Clone + 'static>(&self, made: Result<C, Error>) -> Result<C, Error> {
        let collector = made?;
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.own(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.own(IntGauge::new(name, help))
    }

    fn time(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.own(Gauge::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.own(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// 50 microseconds to about 13 seconds.
    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, Error> {
        self.own(Histogram::with_opts(HistogramOpts::new(name, help).buckets(exponential_buckets(0.000_05, 2.0, 19)?)))
    }
}

impl Metrics {
    /// Registers all series; counters start at zero for every label that can be, so that a rate can be taken at once.
    ///
    /// # Errors
    /// Two series have one name.
    pub fn new() -> Result<Self, Error> {
        let make = Maker(Registry::new());
        let build: GaugeVec =
            make.own(GaugeVec::new(Opts::new("vtepd_build_info", "The version that runs; always 1."), &["version"]))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        make.0.register(Box::new(ProcessCollector::for_self()))?;
        let metrics = Self {
            in_sync: make.gauges(
                "vtepd_in_sync",
                "1 when the kernel is as desired and was read to be so.",
                &["network"],
            )?,
            desired: make.gauges("vtepd_desired_objects", "Objects that should be there.", &["network", "kind"])?,
            observed: make.gauges(
                "vtepd_observed_objects",
                "Objects that were read or acknowledged to be there.",
                &["network", "kind"],
            )?,
            drift: make.counters(
                "vtepd_drift_total",
                "Objects that somebody else changed, once per object and episode.",
                &["kind", "reason"],
            )?,
            drifting: make.gauges("vtepd_drift_objects", "Drifted objects that are not repaired yet.", &["kind"])?,
            repairs: make.counters(
                "vtepd_repairs_total",
                "Drifts that were repaired, or failed to be.",
                &["kind", "result"],
            )?,
            repair_duration: make.histogram(
                "vtepd_repair_duration_seconds",
                "From the first sign of a foreign change to the acknowledged repair.",
            )?,
            ops: make.counters(
                "vtepd_ops_total",
                "Mutating netlink messages sent.",
                &["kind", "action", "cause", "result"],
            )?,
            change_latency: make.histogram(
                "vtepd_change_latency_seconds",
                "From a received watch event to its being wholly applied.",
            )?,
            blocked: make.gauges(
                "vtepd_blocked_objects",
                "Objects that cannot be made now; they are retried.",
                &["kind", "reason"],
            )?,
            damped: make.gauges(
                "vtepd_damped_objects",
                "Objects that somebody rewrites again and again, repaired at intervals.",
                &["kind"],
            )?,
            pending: make.gauge("vtepd_pending_records", "Records that wait for another record.")?,
            rejected: make.gauges(
                "vtepd_rejected_records",
                "Records that were refused; their last good version is in force.",
                &["reason"],
            )?,
            conflicts: make.gauge("vtepd_conflicts", "Records that lost a claim to an older one.")?,
            removals_held: make
                .gauge("vtepd_removals_held", "Objects that nothing desires and whose removal is held.")?,
            resyncs: make.counters("vtepd_resyncs_total", "Full readings of a network's kernel state.", &["reason"])?,
            resync_duration: make
                .histogram("vtepd_resync_duration_seconds", "How long a full reading and its repairs took.")?,
            last_audit: make
                .time("vtepd_last_audit_timestamp_seconds", "When the store was last compared as a whole.")?,
            overruns: make
                .own(IntCounter::new("vtepd_netlink_overruns_total", "Times that the kernel lost events for us."))?,
            etcd_connected: make
                .gauge("vtepd_etcd_connected", "1 while the watch is open and the heartbeat answers.")?,
            etcd_last_contact: make.time("vtepd_etcd_last_contact_timestamp_seconds", "When etcd last answered.")?,
            etcd_revision: make.gauge("vtepd_etcd_revision", "The newest revision heard of.")?,
            applied_revision: make
                .gauge("vtepd_applied_revision", "The newest revision that every network has applied.")?,
            relists: make.counters("vtepd_etcd_relists_total", "Full listings of the store.", &["reason"])?,
            registry: make.0,
        };
        metrics.start_at_zero();
        Ok(metrics)
    }

    fn start_at_zero(&self) {
        for kind in Kind::ALL.map(Kind::as_str) {
            for reason in DriftReason::ALL {
                self.drift.with_label_values(&[kind, reason.as_str()]);
            }
            for result in ["ok", "error"] {
                self.repairs.with_label_values(&[kind, result]);
                for action in [Action::Add, Action::Replace, Action::Delete] {
                    for cause in [Cause::Change, Cause::Repair] {
                        self.ops.with_label_values(&[kind, action.as_str(), cause.as_str(), result]);
                    }
                }
            }
        }
        for reason in ["periodic", "overrun"] {
            self.resyncs.with_label_values(&[reason]);
        }
    }

    /// Counts what an engine reports.
    pub fn count(&self, note: &Note) {
        match note {
            Note::Drift { kind, reason, .. } => self.drift.with_label_values(&[kind.as_str(), reason.as_str()]).inc(),
            Note::Repaired { kind, took, .. } => {
                self.repairs.with_label_values(&[kind.as_str(), "ok"]).inc();
                self.repair_duration.observe(took.as_secs_f64());
            }
            Note::RepairFailed { kind } => self.repairs.with_label_values(&[kind.as_str(), "error"]).inc(),
            Note::Ops { kind, action, cause, count } => {
                self.ops.with_label_values(&[kind.as_str(), action.as_str(), cause.as_str(), "ok"]).inc_by(*count);
            }
            Note::OpFailed { kind, action, cause, .. } => {
                self.ops.with_label_values(&[kind.as_str(), action.as_str(), cause.as_str(), "error"]).inc();
            }
            Note::Resync { reason } => self.resyncs.with_label_values(&[reason]).inc(),
            Note::Resynced { took } => self.resync_duration.observe(took.as_secs_f64()),
            Note::Overrun => self.overruns.inc(),
            Note::Applied { took, .. } => self.change_latency.observe(took.as_secs_f64()),
            Note::Damped { .. } | Note::ReadFailed { .. } => {}
        }
    }

    /// Sets a gauge per kind, absent kinds to zero.
    pub fn set_by_kind(gauges: &IntGaugeVec, counts: &BTreeMap<Kind, u64>) {
        for kind in Kind::ALL {
            gauges.with_label_values(&[kind.as_str()]).set(as_gauge(counts.get(&kind).copied().unwrap_or(0)));
        }
    }

    /// The exposition in Prometheus' text format.
    ///
    /// # Errors
    /// A series could not be written as text.
    pub fn expose(&self) -> Result<String, Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| Error::Msg(error.to_string()))
    }
}

/// A count as a gauge's value.
pub fn as_gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Seconds since the epoch, for timestamp series.
pub fn unix_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
