//! Many networks on one host: built, at rest, and removed, beside the bare netlink calls that build as many.

use std::{
    fs,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use vtepd::lab::{Agent, Host, Lab, LabError, Write, wait_for};

use super::{
    Scale,
    bare::{self, Network},
    bench::{cpu, memory, words},
    figures::{Figure, Samples, short, title},
    rows::{Writer, within},
};

const VTEPD: &str = env!("CARGO_BIN_EXE_vtepd");
const PATIENCE: Duration = Duration::from_secs(300);
/// Writes that etcd takes in one transaction.
const TRANSACTION: usize = 120;
/// How long the agent is watched at rest.
const REST: Duration = Duration::from_secs(20);
/// Between two writes of the other netlink writer.
const PACE: Duration = Duration::from_millis(2);

/// One local and one remote endpoint in each network, without and with the way outside.
pub(crate) fn many(scale: Scale) {
    for internal in [true, false] {
        Many::new(scale.of(1000), internal).run();
    }
}

struct Many {
    lab: Lab,
    networks: u32,
    internal: bool,
}

impl Many {
    fn new(networks: u32, internal: bool) -> Self {
        let what = if internal { "internal" } else { "with the gateway bridge" };
        title(format!("many: {networks} networks, one local and one remote endpoint each, {what}"));
        let many = Self { lab: Lab::with_hosts(2).unwrap(), networks, internal };
        let namespaces: Vec<String> = (0..networks).map(|n| format!("netns add c{n}")).collect();
        for host in &many.lab.hosts {
            host.run_with_input(&["ip", "-batch", "-"], &namespaces.join("\n")).unwrap();
        }
        many.lab.etcd.put("/vtepd/v1/nodes/remote", r#"{"vtep":"192.168.205.99"}"#).unwrap();
        many
    }

    fn host(&self) -> &Host {
        &self.lab.hosts[0]
    }

    /// The bare calls, on the other host.
    fn bare(&self) -> (Duration, Duration) {
        let pid = self.lab.hosts[1].pid();
        let network = |n| Network { n, subnet: subnet(n), container: format!("/proc/{pid}/root/run/netns/c{n}") };
        let networks: Vec<Network> = (0..self.networks).map(network).collect();
        bare::build(format!("/proc/{pid}/ns/net").as_ref(), &networks, self.internal)
    }

    fn write(&self, there: bool) {
        let node = self.host().name();
        let records = (0..self.networks).flat_map(|n| {
            let [a, b, c, _] = subnet(n).octets();
            let net = format!("{a}.{b}.{c}");
            let (vni, internal) = (1000 + n, self.internal);
            let subnets = format!(r#"[{{"cidr":"{net}.0/24","gateway":"{net}.1","vni":{vni}}}]"#);
            [
                (format!("networks/n{n}"), format!(r#"{{"subnets":{subnets},"internal":{internal}}}"#)),
                (format!("endpoints/n{n}/{node}/here"), format!(r#"{{"ip":["{net}.2"],"netns":"/run/netns/c{n}"}}"#)),
                (format!("endpoints/n{n}/remote/there"), format!(r#"{{"ip":["{net}.3"]}}"#)),
            ]
        });
        let write = |(key, value)| match there {
            true => Write::Put(format!("/vtepd/v1/{key}"), value),
            false => Write::Delete(format!("/vtepd/v1/{key}")),
        };
        let writes: Vec<Write> = records.map(write).collect();
        writes.chunks(TRANSACTION).for_each(|some| self.lab.etcd.transaction(some).unwrap());
    }

    fn wait(&self, agent: &mut Agent, networks: u32) {
        let waited = wait_for("all networks", PATIENCE, || {
            // Who asks all the time would be measured as well.
            thread::sleep(Duration::from_millis(100));
            let metrics = agent.metrics()?;
            let synced = metrics.count("vtepd_in_sync", &[]);
            let standing = metrics.count("vtepd_observed_objects", &[("kind", "netns")]);
            let ready = agent.http_status("/readyz")? == 200;
            let host = f64::from(u8::from(!self.internal && networks > 0));
            let all = f64::from(networks);
            if ready && standing == all && synced >= all + host && metrics.count("vtepd_pending_records", &[]) == 0.0 {
                return Ok(());
            }
            Err(LabError::not_so(format!("{synced} of {networks} in sync, {standing} stand, ready: {ready}")))
        });
        waited.unwrap_or_else(|error| panic!("{error}\n{}", agent.log_tail(40)));
    }

    fn run(&self) {
        let (bare, bare_cpu) = self.bare();
        self.write(true);
        let mut options = self.lab.agent_options(VTEPD);
        options.log_level = "info".to_owned();
        let mut agent = self.host().spawn_agent(&options).unwrap();
        agent.metrics().map(drop).unwrap_or_default();
        let started = Instant::now();
        let (others, ()) = beside(self.host(), || self.wait(&mut agent, self.networks));
        let took = started.elapsed();
        let (own, kernel) = cpu(&agent);
        Figure::time("built", took).against("the bare calls", bare).goal("5 s for 1,000").done();
        let parts = format!("{} in its own code, {} in the kernel", short(own), short(kernel));
        let processor = Figure::time("  processor time", own + kernel).against("the bare calls", bare_cpu);
        processor.note(parts).goal("3x").done();
        writer(&others, "  another netlink writer meanwhile");
        let each = |all: f64| all / f64::from(self.networks);
        let (resident, _) = memory(&agent);
        Figure::quantity("  memory a network", each(resident * 1024.0), "KiB").goal("64 KiB").done();
        Figure::quantity("  descriptors a network", each(entries(&agent, "fd")), "").goal("4").done();
        Figure::quantity("  threads", entries(&agent, "task"), "").goal("by processors").done();

        thread::sleep(Duration::from_secs(3));
        let before = cpu(&agent);
        thread::sleep(REST);
        let after = cpu(&agent);
        let minute = (after.0 + after.1).saturating_sub(before.0 + before.1).mul_f64(60.0 / REST.as_secs_f64());
        Figure::time("at rest, processor time in a minute", minute).goal("300 ms").done();

        let started = Instant::now();
        let (others, ()) = beside(self.host(), || {
            self.write(false);
            self.wait(&mut agent, 0);
        });
        Figure::time("removed", started.elapsed()).goal("25 s for 1,000").done();
        writer(&others, "  another netlink writer meanwhile");
        let left = self.host().run(&words("ip netns list")).unwrap();
        assert!(!left.contains("vtepd-"), "{left}");
    }
}

fn subnet(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + (n << 8))
}

fn entries(agent: &Agent, of: &str) -> f64 {
    fs::read_dir(format!("/proc/{}/{of}", agent.pid())).unwrap().count() as f64
}

fn writer(samples: &Samples, what: &str) {
    Figure::samples(what, samples).goal("50 ms at most").done();
}

/// What another netlink writer of the host waits for each of its writes while `work` goes on.
pub(crate) fn beside<T>(host: &Host, work: impl FnOnce() -> T) -> (Samples, T) {
    let done = AtomicBool::new(false);
    let netns = format!("/proc/{}/ns/net", host.pid());
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut samples = Samples::default();
            let other = Writer::open(netns.as_ref(), 1);
            within(netns.as_ref(), || {
                while !done.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    other.touch();
                    samples.push(started.elapsed());
                    thread::sleep(PACE);
                }
            });
            samples
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (other.join().unwrap(), result)
    })
}
