//! Processes on machines of their own, as far as the network goes: each node is a network namespace, and all are on one bridge, which has a
//! namespace too. Nothing reaches them but what runs there, and nothing else of this machine is touched.
//!
//! Dropped, it is gone with all its rules; processes have to end before. What a killed test has left goes when the next one begins.

use std::path::Path;
use std::process::Command;

/// The beginning of the names of namespaces; then come the number of the process that made them, and the node.
const PREFIX: &str = "stable-interfaces";
const BRIDGE: &str = "bridge";

/// Nodes on a bridge.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<String>,
}

impl Network {
    /// Makes a namespace for each node, in which `lo` is up and the others are reached.
    ///
    /// # Panics
    /// If this is not root, or `ip` and `iptables` are not there or fail.
    #[must_use]
    pub fn build(nodes: &[&str]) -> Network {
        remove_left_over();
        let network = Network { nodes: nodes.iter().map(|node| (*node).to_owned()).collect() };
        let bridge = network.namespace(BRIDGE);
        ip(&["netns", "add", &bridge]);
        ip(&["-n", &bridge, "link", "add", BRIDGE, "type", "bridge"]);
        ip(&["-n", &bridge, "link", "set", BRIDGE, "up"]);
        for node in nodes {
            let (namespace, port) = (network.namespace(node), network.port(node));
            ip(&["netns", "add", &namespace]);
            ip(&["-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            ip(&["-n", &bridge, "link", "set", &port, "master", BRIDGE, "up"]);
            ip(&["-n", &namespace, "address", "add", &format!("{}/24", network.address(node)), "dev", "eth0"]);
            ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        }
        network
    }

    fn namespace(&self, node: &str) -> String {
        format!("{PREFIX}-{}-{node}", std::process::id())
    }

    /// The bridge's end of a node's link.
    fn port(&self, node: &str) -> String {
        format!("port-{}", self.number(node))
    }

    fn number(&self, node: &str) -> usize {
        1 + self.nodes.iter().position(|known| known == node).expect("it is a node of this network")
    }

    /// The address of a node.
    #[must_use]
    pub fn address(&self, node: &str) -> String {
        format!("10.213.0.{}", self.number(node))
    }

    /// The words before the command line of a process that is to run on a node.
    #[must_use]
    pub fn within(&self, node: &str) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace(node)].map(str::to_owned).to_vec()
    }

    /// Drops what one node sends to another, without a word to either.
    pub fn cut(&self, from: &str, to: &str) {
        self.iptables(from, &["-A", "OUTPUT", "-d", &self.address(to), "-j", "DROP"]);
    }

    /// Takes the cable of a node out.
    pub fn unplug(&self, node: &str) {
        ip(&["-n", &self.namespace(BRIDGE), "link", "set", &self.port(node), "down"]);
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        for node in &self.nodes {
            self.iptables(node, &["-F", "OUTPUT"]);
            ip(&["-n", &self.namespace(BRIDGE), "link", "set", &self.port(node), "up"]);
        }
    }

    fn iptables(&self, node: &str, args: &[&str]) {
        let within = self.within(node);
        let line: Vec<_> = within[1..].iter().map(String::as_str).chain(["iptables", "-w"]).collect();
        ip(&[&line, args].concat());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(|owner| owner == std::process::id());
    }
}

/// Removes what tests have left whose processes are no more.
fn remove_left_over() {
    remove(|owner| !Path::new(&format!("/proc/{owner}")).exists());
}

/// Removes the namespaces of some processes, with all that is in them.
fn remove(is_of: impl Fn(u32) -> bool) {
    // Each line is a name, and perhaps more.
    let listed = Command::new("ip").args(["netns", "list"]).output().map(|output| output.stdout).unwrap_or_default();
    for name in String::from_utf8_lossy(&listed).lines().filter_map(|line| line.split(' ').next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1)?.parse().ok());
        if owner.is_some_and(&is_of) {
            // It is run also when a test fails; what cannot be removed is tried again by the next.
            drop(Command::new("ip").args(["netns", "delete", name]).status());
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip can be run: apt-get install -y iproute2 iptables");
    assert!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
}
