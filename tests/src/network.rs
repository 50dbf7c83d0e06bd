//! A network that can be cut: each worker has a network namespace of its own, and all of them are on one bridge. What is cut
//! off hears nothing and is heard by nobody, and nothing tells it so, as behind a switch that died.
//!
//! Needs the right to make namespaces (root) and `ip`; where it is not had, the reason is told.

use std::process::Command;

/// A bridge in the present namespace, which is member 0 of the network, and namespaces for the others.
pub struct Network {
    /// Begins all names: they are the whole machine's.
    tag: String,
    /// Third byte of all addresses.
    subnet: u32,
    members: Vec<String>,
}

impl Network {
    /// Makes a network for some members, by name.
    ///
    /// # Errors
    /// It cannot be made here, and why.
    pub fn new(members: &[String]) -> Result<Network, String> {
        let id = std::process::id();
        // What was made of it goes when this does not come to its end.
        let network = Network { tag: format!("tr{}", id % 100_000), subnet: id % 250, members: members.to_vec() };
        let (bridge, host) = (network.bridge(), network.host());
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["address", "add", &format!("{host}/24"), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for (number, member) in members.iter().enumerate() {
            let (namespace, port) = (network.namespace(number), network.port(number));
            ip(&["netns", "add", &namespace])?;
            ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
            ip(&["link", "set", &port, "master", &bridge, "up"])?;
            let address = network.address_of(member).expect("it is a member");
            for words in [
                &["address", "add", &format!("{address}/24"), "dev", "eth0"][..],
                &["link", "set", "eth0", "up"],
                &["link", "set", "lo", "up"],
            ] {
                ip(&[&["-n", &namespace], words].concat())?;
            }
        }
        Ok(network)
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.tag)
    }

    fn port(&self, number: usize) -> String {
        format!("{}v{number}", self.tag)
    }

    /// Returns the address of whoever is in no namespace.
    pub fn host(&self) -> String {
        format!("10.83.{}.1", self.subnet)
    }

    fn number(&self, member: &str) -> Option<usize> {
        self.members.iter().position(|name| name == member)
    }

    /// Returns a member's address.
    pub fn address_of(&self, member: &str) -> Option<String> {
        Some(format!("10.83.{}.{}", self.subnet, self.number(member)? + 2))
    }

    /// Returns the command before a member's own, none for whoever is no member. It becomes the member's process.
    pub fn entrance(&self, member: &str) -> Option<Vec<String>> {
        let namespace = self.namespace(self.number(member)?);
        Some(["ip", "netns", "exec", &namespace].map(str::to_owned).to_vec())
    }

    /// Cuts a member off.
    ///
    /// # Panics
    /// It is no member, or the cut is refused.
    pub fn cut(&self, member: &str) {
        let port = self.port(self.number(member).expect("it is a member"));
        ip(&["link", "set", &port, "nomaster"]).expect("a port can leave its bridge");
    }

    /// Mends a cut.
    ///
    /// # Panics
    /// It is no member, or the bridge does not take it.
    pub fn mend(&self, member: &str) {
        let port = self.port(self.number(member).expect("it is a member"));
        ip(&["link", "set", &port, "master", &self.bridge()]).expect("a port can join its bridge");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            // Its port goes with it.
            let _ = ip(&["netns", "delete", &self.namespace(number)]);
        }
        let _ = ip(&["link", "delete", &self.bridge()]);
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
