//! Several "hosts" on this machine: network namespaces with addresses and names of their own, joined by a bridge.
//! Needs root and `ip`.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Where the rsh agent finds the hosts' names: the prefix of their namespaces.
pub const PREFIX: &str = "PHALANX_HOSTS";

/// How long a link may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hosts that live as long as this value.
pub struct Hosts {
    prefix: String,
    pub count: usize,
}

impl Hosts {
    /// Why this machine cannot have hosts, if it cannot. Tries it.
    pub fn obstacle() -> Option<String> {
        Hosts::new(1).err().map(|e| format!("{e:#}"))
    }

    /// Makes hosts `10.77.0.1` to `10.77.0.<count>`.
    pub fn new(count: usize) -> Result<Hosts> {
        ensure!((1..=250).contains(&count), "{count} hosts are not possible");
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let prefix = format!("phx{}-{number}-", std::process::id());
        let hosts = Hosts { prefix, count };
        let switch = hosts.namespace("switch");
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add bridge type bridge"))?;
        ip(&format!("-n {switch} link set bridge up"))?;
        for host in 1..=count {
            let name = hosts.namespace(&host.to_string());
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!(
                "link add eth0 netns {name} type veth peer name port{host} netns {switch}"
            ))?;
            ip(&format!("-n {switch} link set port{host} master bridge"))?;
            ip(&format!("-n {name} addr add {}/24 dev eth0", address(host)))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            hosts.join(host)?;
        }
        Ok(hosts)
    }

    /// What `mpirun --host` takes: so many ranks on each.
    pub fn list(&self, ranks: usize) -> String {
        let each = ranks.div_ceil(self.count);
        let hosts: Vec<_> = (1..=self.count)
            .map(|host| format!("{}:{each}", address(host)))
            .collect();
        hosts.join(",")
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Takes the link of a host down, for good: whatever it sends or gets is lost.
    pub fn cut(&self, host: usize) -> Result<()> {
        let switch = self.namespace("switch");
        ip(&format!("-n {switch} link set port{host} down")).map(drop)
    }

    /// Takes the link of a new host up, and waits until the bridge forwards what comes through it: the kernel takes up
    /// to a second to notice.
    fn join(&self, host: usize) -> Result<()> {
        let switch = self.namespace("switch");
        ip(&format!("-n {switch} link set port{host} up"))?;
        let start = Instant::now();
        loop {
            let port = ip(&format!("-n {switch} -d link show port{host}"))?;
            if port.contains("state UP") && port.contains("state forwarding") {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "port{host} stays down: {port}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let names = (1..=self.count).map(|host| host.to_string());
        for name in names.chain(["switch".to_owned()]) {
            // Deleting one that was never made fails, which is as good.
            let _ = ip(&format!("netns del {}", self.namespace(&name)));
        }
    }
}

/// The network that all hosts are in.
pub const NETWORK: &str = "10.77.0.0/24";

pub fn address(host: usize) -> String {
    format!("10.77.0.{host}")
}

/// The command that runs `line` on a host, under that host's name. What mpirun calls as rsh agent.
pub fn on(prefix: &str, address: &str, line: &str) -> Command {
    let name = format!("{prefix}{}", address.rsplit('.').next().unwrap_or_default());
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &name, "unshare", "--uts", "sh", "-c"]);
    command.args(["hostname \"$0\" && exec sh -c \"$1\"", &name, line]);
    command
}

fn ip(args: &str) -> Result<String> {
    let output = Command::new("ip")
        .args(args.split(' '))
        .stdin(Stdio::null())
        .output()
        .context("cannot start ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {args}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
