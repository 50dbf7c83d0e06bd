//! What the scenarios share: the program, a mock beside it, a folder, and the example world's data.
#![allow(dead_code, clippy::unwrap_used)]

pub mod jobs;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use shared::policy_shift::World;
use shared::policy_shift::data_sets::DataSets;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_oracle-service");

/// A server of ours as a child process, killed at the end.
pub struct Server {
    pub child: Child,
    pub url: String,
}

impl Server {
    /// Starts a server and waits until it listens.
    pub fn start(folder: &Path, args: &[&str]) -> Server {
        let mut command = Command::new(PROGRAM);
        command.args(args).current_dir(folder).env("OPENAI_API_KEY", "test-key").env_remove("TRACE_TOKEN");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("it said {line:?}")).to_owned();
        Server { child, url }
    }

    pub fn mock(folder: &Path, more: &[&str]) -> Server {
        let mut args = vec!["mock", "--listen", "127.0.0.1:0", "--rules", "rules_new.toml"];
        args.extend(more);
        Server::start(folder, &args)
    }

    pub fn api(&self) -> String {
        format!("{}/v1", self.url)
    }

    /// Fetches a path by plain HTTP.
    pub fn get(&self, path: &str) -> Value {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub fn bill(&self) -> Value {
        self.get("/bill")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a small world with its rules, `n` of its pairs, and a policy.
pub fn world(folder: &Path, n: usize) {
    let world = World::new(7);
    shared::output::write_json(&folder.join("world.json"), &world.to_file()).unwrap();
    let pairs = DataSets::of(&world).pairs;
    shared::output::write_json(&folder.join("pairs.json"), &pairs[..n]).unwrap();
    let rules = "world = \"policy-shift\"\nworld_file = \"world.json\"\npolicy = \"new\"\n";
    std::fs::write(folder.join("rules_new.toml"), rules).unwrap();
    std::fs::write(folder.join("policy.md"), "Answer as the world's new policy says.\n").unwrap();
}

pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).current_dir(folder).env("OPENAI_API_KEY", "test-key").env_remove("OPENAI_BASE_URL");
    command
}

pub fn run(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

#[track_caller]
pub fn succeed(folder: &Path, args: &[&str]) -> Output {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn read(path: PathBuf) -> Value {
    shared::input::read_json(&path).unwrap()
}

/// The options that judge by the model behind a mock.
pub fn by_model(api: &str) -> Vec<&str> {
    vec!["--policy", "policy.md", "--oracle-model", "mock-oracle", "--base-url", api, "--state", "state"]
}
