//! A cluster of real processes in a folder: coordinator, oracle service, mock, workers; killed, stopped and started again
//! by name.
//!
//! Servers listen at ports the system chose; a server that is started again listens where it did. Everything a process
//! says goes to `NAME.log` in the folder, printed when a test fails. Waits have deadlines and go through [`poll_until`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::network::Network;
use crate::{local, program};

/// Waits until something is there, looking often.
///
/// # Panics
/// When the deadline passes.
#[track_caller]
pub fn poll_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < deadline, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns whether a process is stopped, by SIGSTOP or itself.
pub fn is_frozen(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// A cluster's processes.
pub struct Cluster {
    folder: tempfile::TempDir,
    children: BTreeMap<String, Running>,
    /// `--coordinator` of workers and commands.
    pub coordinator: String,
    /// Where the mock of the API listens.
    mock: String,
    /// Interval of workers' heartbeats; one is lost after five without.
    pub heartbeat_ms: u32,
    /// Workers that are its members are started in it; none where all are on loopback.
    pub network: Option<Network>,
    /// Held by a cluster that computes.
    alone: Option<MutexGuard<'static, ()>>,
}

/// Clusters that compute run one after the other: together they would only wait for each other's processors.
static COMPUTING: Mutex<()> = Mutex::new(());

/// Long enough for a busy machine to lose nobody, short enough to wait for a loss.
const HEARTBEAT_MS: u32 = 500;

/// Off loopback the coordinator wants one.
const TOKEN: (&str, &str) = ("TRACE_TOKEN", "of-this-network");

struct Running {
    child: Child,
    program: &'static str,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.children.values_mut() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|ending| ending == "log") {
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(30).collect();
                    eprintln!("---- {}", path.display());
                    tail.iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// Returns a cluster without processes.
    pub fn new() -> Cluster {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (coordinator, mock) = (String::new(), String::new());
        Cluster {
            folder,
            children: BTreeMap::new(),
            coordinator,
            mock,
            heartbeat_ms: HEARTBEAT_MS,
            network: None,
            alone: None,
        }
    }

    /// Returns a path in the cluster's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a process; what it says goes to its log.
    pub fn start(&mut self, name: &str, program_name: &'static str, args: &[&str], env: &[(&str, &str)]) {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let env: Vec<(String, String)> = env.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let child = self.spawn(name, program_name, &args, &env);
        self.children.insert(name.to_owned(), Running { child, program: program_name, args, env });
    }

    fn spawn(&self, name: &str, program_name: &str, args: &[String], env: &[(String, String)]) -> Child {
        let log = |part: &str| {
            File::options()
                .create(true)
                .append(true)
                .open(self.path(&format!("{name}{part}")))
                .expect("a log can be made")
        };
        let entrance = self.network.as_ref().and_then(|network| network.entrance(name)).unwrap_or_default();
        let mut command = match entrance.split_first() {
            None => Command::new(program(program_name)),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program(program_name));
                command
            }
        };
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command
            .env_remove("TRACE_TOKEN")
            .env_remove("TRACE_COORDINATOR")
            .env_remove("TRACE_FAULT")
            .env("TRACE_DEVICE", "cpu")
            .env_remove("RUST_LOG");
        command.envs(env.iter().map(|(key, value)| (key, value)));
        command.stdout(log(".out")).stderr(log(".log")).spawn().expect("the program can be started")
    }

    /// Starts a server on a port of the system's choice and returns where it listens.
    pub fn start_server(
        &mut self,
        name: &str,
        program_name: &'static str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> String {
        let host = match &self.network {
            Some(network) if name == "coordinator" => network.host(),
            _ => "127.0.0.1".to_owned(),
        };
        let mut with_port: Vec<&str> = args.to_vec();
        let listen = format!("{host}:0");
        with_port.extend(["--listen", &listen]);
        self.start(name, program_name, &with_port, env);
        let url = self.listening(name);
        // When it is started again, it is where it was.
        let running = self.children.get_mut(name).expect("it was just started");
        let port = running.args.len() - 1;
        running.args[port] = url.trim_start_matches("http://").to_owned();
        url
    }

    fn listening(&mut self, name: &str) -> String {
        let file = self.path(&format!("{name}.out"));
        poll_until(&format!("{name} listens"), Duration::from_secs(20), || {
            if let Some(status) = self.ended(name) {
                panic!("{name} ended with {status}: {}", self.log(name));
            }
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let last = text.lines().filter_map(|line| line.strip_prefix("listening on ")).next_back();
            last.map(str::to_owned)
        })
    }

    /// Starts the coordinator.
    pub fn start_coordinator(&mut self, args: &[&str], env: &[(&str, &str)]) {
        let heartbeat = self.heartbeat_ms.to_string();
        let all = [&["serve", "--artifacts", "artifacts", "--heartbeat-ms", &heartbeat], args].concat();
        let env = [self.token(), env].concat();
        self.coordinator = self.start_server("coordinator", "coordinator", &all, &env);
    }

    fn token(&self) -> &'static [(&'static str, &'static str)] {
        if self.network.is_some() { &[TOKEN] } else { &[] }
    }

    /// Starts everything a run in the example world of a seed needs: mock, oracle service, coordinator, and so many workers.
    pub fn start_all(&mut self, seed: u64, workers: usize) {
        self.alone = Some(COMPUTING.lock().unwrap_or_else(PoisonError::into_inner));
        let world = self.path("world").display().to_string();
        let made = Command::new(program("coordinator"))
            .args(["data", "policy-shift", "--seed", &seed.to_string(), "--output-dir", &world])
            .output()
            .expect("the program can be started");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let key = [("OPENAI_API_KEY", "any")];
        self.mock = self.start_server("mock", "oracle-service", &["mock", "--rules", "world/rules_new.toml"], &key);
        let oracle = self.start_server("oracle", "oracle-service", &["serve", "--state", "oracle-state"], &key);
        self.start_coordinator(&["--oracle", &oracle, "--mock", &format!("{}/v1", self.mock)], &[]);
        for number in 1..=workers {
            self.start_worker(&format!("w{number}"), &[], &[]);
        }
    }

    /// Starts a worker on one thread.
    pub fn start_worker(&mut self, name: &str, args: &[&str], env: &[(&str, &str)]) {
        let coordinator = self.coordinator.clone();
        let mut all = vec!["serve", "--coordinator", &coordinator, "--name", name, "--threads", "1"];
        let address = self.network.as_ref().and_then(|network| network.address_of(name));
        all.extend(address.iter().flat_map(|address| ["--peer-addr", address]));
        all.extend(args);
        self.start(name, "worker", &all, &[self.token(), env].concat());
    }

    /// Starts a process again as it was started; a server is waited for until it listens.
    pub fn restart(&mut self, name: &str) {
        let Running { program, args, env, .. } = self.children.remove(name).expect("it was started before");
        let child = self.spawn(name, program, &args, &env);
        let address = args.iter().position(|arg| arg == "--listen").map(|at| args[at + 1].clone());
        self.children.insert(name.to_owned(), Running { child, program, args, env });
        if let Some(address) = address {
            poll_until(&format!("{name} listens again"), Duration::from_secs(20), || {
                TcpStream::connect(&address).ok().map(|_| ())
            });
        }
    }

    /// Kills a process with SIGKILL and waits for its end.
    pub fn kill(&mut self, name: &str) {
        let running = self.children.get_mut(name).expect("it was started before");
        let _ = running.child.kill();
        running.child.wait().expect("a child can be waited for");
    }

    /// Plans a process's death for its next start, or none.
    pub fn plan_death(&mut self, name: &str, fault: Option<&str>) {
        let env = &mut self.children.get_mut(name).expect("it was started before").env;
        env.retain(|(key, _)| key != "TRACE_FAULT");
        env.extend(fault.map(|fault| ("TRACE_FAULT".to_owned(), fault.to_owned())));
    }

    /// Sends a signal to a process.
    pub fn signal(&self, name: &str, signal: Signal) {
        local::signal(self.pid(name), signal);
    }

    /// Asks a process to end with SIGTERM.
    pub fn terminate(&mut self, name: &str) {
        self.signal(name, Signal::TERM);
    }

    /// Waits until a process that was to freeze itself has done so.
    #[track_caller]
    pub fn wait_until_frozen(&mut self, name: &str) {
        let pid = self.pid(name);
        poll_until(&format!("{name} is frozen"), Duration::from_secs(120), || {
            assert!(self.ended(name).is_none(), "{name} has ended");
            is_frozen(pid).then_some(())
        });
    }

    /// Returns a process's id.
    pub fn pid(&self, name: &str) -> u32 {
        self.children[name].child.id()
    }

    /// Returns how a process ended, if it has.
    pub fn ended(&mut self, name: &str) -> Option<ExitStatus> {
        let running = self.children.get_mut(name).expect("it was started before");
        running.child.try_wait().expect("a child can be looked at")
    }

    /// Waits for a process to end by itself; returns its exit code.
    #[track_caller]
    pub fn wait(&mut self, name: &str) -> Option<i32> {
        poll_until(&format!("{name} ends"), Duration::from_secs(60), || self.ended(name)).code()
    }

    /// Waits for a planned death; returns the signal that the process died of.
    #[track_caller]
    pub fn wait_for_death(&mut self, name: &str) -> Option<i32> {
        poll_until(&format!("{name} dies"), Duration::from_secs(120), || self.ended(name)).signal()
    }

    /// Returns what the mock of the API has charged, request by request.
    pub fn charged(&self) -> Value {
        let address = self.mock.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the mock listens");
        write!(stream, "GET /bill HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("the mock reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("the mock answers");
        let (_, body) = text.split_once("\r\n\r\n").expect("an answer has a body");
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Returns what a process said on standard error.
    pub fn log(&self, name: &str) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(self.path(&format!("{name}.log"))) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// Waits until a process has said something.
    #[track_caller]
    pub fn wait_for_log(&self, name: &str, words: &str) {
        poll_until(&format!("{name} says {words:?}"), Duration::from_secs(60), || {
            self.log(name).contains(words).then_some(())
        });
    }

    /// Runs a command of the coordinator; returns exit code, standard output and standard error.
    pub fn command(&self, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let mut command = Command::new(program("coordinator"));
        command.args(args).args(["--coordinator", &self.coordinator]).current_dir(self.folder.path());
        command.env_remove("TRACE_TOKEN").envs(self.token().iter().chain(env).copied());
        let output = command.output().expect("the program can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs a command with --json, which must succeed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.command(&[args, &["--json"]].concat(), &[]);
        assert_eq!(code, Some(0), "{args:?}: {err}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }

    /// Waits until a worker is in a state; returns its status.
    #[track_caller]
    pub fn wait_for_worker(&self, name: &str, state: &str) -> Value {
        poll_until(&format!("worker {name} is {state}"), Duration::from_secs(60), || {
            let workers = self.json(&["workers"]);
            workers.as_array()?.iter().find(|worker| worker["name"] == name && worker["state"] == state).cloned()
        })
    }

    /// Lets an idle worker leave, and starts another of its name with these options and variables.
    #[track_caller]
    pub fn replace_worker(&mut self, name: &str, options: &[&str], variables: &[(&str, &str)]) {
        self.terminate(name);
        assert_eq!(self.wait(name), Some(0), "{}", self.log(name));
        self.start_worker(name, options, variables);
        self.wait_for_worker(name, "idle");
    }

    /// Waits until the coordinator has noticed that a worker's connection is gone, so that another of its name may join.
    #[track_caller]
    pub fn wait_until_away(&self, name: &str) {
        poll_until(&format!("worker {name} is away"), Duration::from_secs(60), || {
            let workers = self.json(&["workers"]);
            let worker = workers.as_array()?.iter().find(|worker| worker["name"] == name)?;
            let is_away = worker["state"] == "lost" || worker["note"] == "its connection is away";
            is_away.then_some(())
        });
    }

    /// Returns the cluster's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
