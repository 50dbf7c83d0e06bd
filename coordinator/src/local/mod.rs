//! `coordinator run FILE --local N`: everything on this machine, for one run.
//!
//! Starts the mock of the API (if the run asks for one), the oracle service, a coordinator and N workers as child processes;
//! starts those again that die; stops all when the run has ended. Other runs in the folder stay as they are: they may want
//! another mock or cost money. State and logs lie in the artifact folder:
//!
//! ```text
//! ARTIFACTS/.local/lock             held while a local run is on
//! ARTIFACTS/.local/processes.json   what was started: a later run ends what outlived this one
//! ARTIFACTS/.local/logs/NAME.log    what each of them said
//! ARTIFACTS/.local/oracle/          the ledger
//! ARTIFACTS/.local/mock/            the rules of the example world
//! ```

mod child;
mod processes;

use std::fs::File;
use std::path::{Path, PathBuf};

use proto::coordinator::{RunStatus, SubmitRequest};
use shared::net::Token;
use shared::{Error, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, watch};
use crate::run_file::{Mock, RunFile};
use child::{Program, Restarted};
use processes::Book;

/// A local run knows sooner than a cluster that a worker is gone: there is no network between.
const HEARTBEAT_MS: &str = "1000";

/// How a local run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Run(RunStatus),
    /// Stopped by Ctrl-C or SIGTERM.
    Stopped,
}

/// What is run where.
#[derive(Debug)]
pub(crate) struct Local<'a> {
    pub(crate) artifacts: &'a Path,
    pub(crate) workers: u32,
    pub(crate) file: &'a RunFile,
    pub(crate) request: SubmitRequest,
    pub(crate) json: bool,
}

/// Runs a run file here, to its end or until stopped.
///
/// # Errors
/// A program is missing or does not start, another local run uses the folder, or the run is refused.
pub(crate) async fn run(local: Local<'_>) -> Result<Ended> {
    std::fs::create_dir_all(local.artifacts).map_err(|source| Error::io("make", local.artifacts, source))?;
    let artifacts = local.artifacts.canonicalize().map_err(|source| Error::io("find", local.artifacts, source))?;
    let home = artifacts.join(".local");
    let logs = home.join("logs");
    std::fs::create_dir_all(&logs).map_err(|source| Error::io("make", &logs, source))?;
    let lock_file = home.join("lock");
    let lock = File::options().create(true).append(true).open(&lock_file);
    let lock = lock.map_err(|source| Error::io("open", &lock_file, source))?;
    shared::lock::take(&lock, &artifacts, "choose another --artifacts folder")?;

    let signals = shared::shutdown::on_signals(false);
    let stop = signals.map_err(|error| Error::Config(format!("signals cannot be received: {error}")))?;
    let programs = Programs::find(&artifacts, local.file)?;
    let (book, orphans) = Book::open(&home.join("processes.json"));
    if !orphans.is_empty() {
        tracing::warn!("ended what was left of an earlier run: {}", orphans.join(", "));
    }
    let mut children = Children::new(book);
    let ended = tokio::select! {
        ended = children.work(&programs, &local) => ended,
        () = stop.cancelled() => Ok(Ended::Stopped),
    };
    if matches!(ended, Ok(Ended::Stopped)) {
        eprintln!("stopping; a second Ctrl-C does not wait for checkpoints");
    }
    children.stop().await?;
    ended
}

fn own() -> Result<PathBuf> {
    std::env::current_exe().map_err(|source| Error::io("find", Path::new("this program"), source))
}

/// Returns the program of a name that lies beside this one.
///
/// # Errors
/// There is none.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let own = own()?;
    let path = own.with_file_name(name);
    let problem = format!("is missing; it belongs beside {} (cargo build --release)", own.display());
    if path.is_file() { Ok(path) } else { Err(Error::file(&path, problem)) }
}

/// The programs of a local run, found beside this one.
struct Programs {
    artifacts: PathBuf,
    worker: PathBuf,
    coordinator: PathBuf,
    oracle: PathBuf,
    /// Rules and model of the mock, where one is to be started.
    mock: Option<(PathBuf, String)>,
    /// The run's oracle is a mock, of whomever: no real key goes there.
    mocked: bool,
}

impl Programs {
    fn find(artifacts: &Path, file: &RunFile) -> Result<Programs> {
        let mocked = file.oracle.mock.is_some();
        let mock = match &file.oracle.mock {
            Some(_) if file.oracle.base_url.is_some() => None,
            Some(Mock::Rules(rules)) => Some((rules.clone(), file.oracle.model.clone())),
            Some(Mock::World) => {
                // The world is a function of the seed, so its rules are here before its stage is.
                let folder = artifacts.join(".local/mock");
                let world = shared::policy_shift::World::new(file.run.seed);
                crate::data::policy_shift::write_rules(&world, &folder)?;
                Some((folder.join("rules_new.toml"), file.oracle.model.clone()))
            }
            None => None,
        };
        if !mocked && std::env::var("OPENAI_API_KEY").map_or(true, |key| key.trim().is_empty()) {
            return Err(Error::Config(
                "OPENAI_API_KEY is not set and the run asks a real API; set it, or set oracle.mock".into(),
            ));
        }
        let (worker, oracle) = (beside("worker")?, beside("oracle-service")?);
        Ok(Programs { artifacts: artifacts.to_owned(), worker, coordinator: own()?, oracle, mock, mocked })
    }

    fn program(&self, name: &str, executable: &Path, args: &[&str]) -> Program {
        Program {
            name: name.to_owned(),
            executable: executable.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).chain(["--with-parent".to_owned()]).collect(),
            env: Vec::new(),
            listens: args.contains(&"--listen"),
            log: self.artifacts.join(format!(".local/logs/{name}.log")),
        }
    }

    fn mock(&self) -> Option<Program> {
        let (rules, model) = self.mock.as_ref()?;
        let rules = rules.display().to_string();
        Some(self.program("mock", &self.oracle, &["mock", "--rules", &rules, "--model", model, "--listen", ANY_PORT]))
    }

    fn oracle(&self) -> Program {
        let state = self.artifacts.join(".local/oracle").display().to_string();
        let mut program = self.program("oracle", &self.oracle, &["serve", "--state", &state, "--listen", ANY_PORT]);
        if self.mocked {
            program.env.push(("OPENAI_API_KEY", "mock".to_owned()));
        }
        program
    }

    fn coordinator(&self, run: &str, oracle: &str, mock: Option<&str>) -> Program {
        let artifacts = self.artifacts.display().to_string();
        let mut args = vec!["serve", "--artifacts", &artifacts, "--oracle", oracle, "--listen", ANY_PORT];
        args.extend(["--only", run]);
        args.extend(["--heartbeat-ms", HEARTBEAT_MS]);
        let api = mock.map(|mock| format!("{mock}/v1"));
        if let Some(api) = &api {
            args.extend(["--mock", api]);
        }
        self.program("coordinator", &self.coordinator, &args)
    }

    fn worker(&self, number: u32, of: u32, coordinator: &str) -> Program {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let (name, threads) = (format!("local-{number}"), threads(cores, of).to_string());
        let args = ["serve", "--coordinator", coordinator, "--name", &name, "--threads", &threads, "--device", "cpu"];
        self.program(&format!("worker-{number}"), &self.worker, &args)
    }
}

/// Says how other commands reach the coordinator of a local run.
fn meanwhile(coordinator: &str) -> String {
    format!("meanwhile: coordinator status|logs|workers … --coordinator {coordinator}")
}

const ANY_PORT: &str = "127.0.0.1:0";

/// Returns how many threads each worker gets.
fn threads(cores: u32, workers: u32) -> u32 {
    (cores / workers.max(1)).max(1)
}

/// The children that run, servers and workers apart: workers stop first, while there is a coordinator to tell.
struct Children {
    book: Book,
    servers: JoinSet<Result<()>>,
    workers: JoinSet<Result<()>>,
    stop_servers: CancellationToken,
    stop_workers: CancellationToken,
    told: mpsc::Sender<Restarted>,
    hears: mpsc::Receiver<Restarted>,
}

impl Children {
    fn new(book: Book) -> Children {
        let (told, hears) = mpsc::channel(16);
        Children {
            book,
            servers: JoinSet::new(),
            workers: JoinSet::new(),
            stop_servers: CancellationToken::new(),
            stop_workers: CancellationToken::new(),
            told,
            hears,
        }
    }

    /// Starts all, submits the run and watches it to its end.
    async fn work(&mut self, programs: &Programs, local: &Local<'_>) -> Result<Ended> {
        let mock = match programs.mock() {
            Some(mock) => Some(self.serve(mock).await?),
            None => None,
        };
        let oracle = self.serve(programs.oracle()).await?;
        let coordinator = self.serve(programs.coordinator(&local.file.run.name, &oracle, mock.as_deref())).await?;
        eprintln!("{}", meanwhile(&coordinator));
        for number in 1..=local.workers {
            let program = programs.worker(number, local.workers, &coordinator);
            let running = program.start().await?;
            self.book.started(&program.name, running.pid, None)?;
            self.workers.spawn(program.keep(running, self.stop_workers.clone(), self.told.clone()));
        }
        let token = Token::load(std::env::var("TRACE_TOKEN").ok().as_deref(), None)?;
        let mut client = Client::new(&coordinator, token)?;
        let run = client.submit_over(local.request.clone(), &local.file.run.name).await?.run;
        let watched = watch::until_end(&mut client, &run, local.json);
        tokio::pin!(watched);
        loop {
            tokio::select! {
                status = &mut watched => return status.map(Ended::Run),
                Some(restarted) = self.hears.recv() => {
                    self.book.started(&restarted.name, restarted.pid, restarted.address)?;
                }
                Some(kept) = self.servers.join_next() => lost(kept)?,
                Some(kept) = self.workers.join_next() => lost(kept)?,
            }
        }
    }

    /// Starts a server and keeps it; returns its address.
    async fn serve(&mut self, mut program: Program) -> Result<String> {
        let running = program.start().await?;
        let address = running.address.clone().unwrap_or_default();
        self.book.started(&program.name, running.pid, Some(address.clone()))?;
        program.stays_at(&address);
        self.servers.spawn(program.keep(running, self.stop_servers.clone(), self.told.clone()));
        Ok(address)
    }

    /// Stops all, workers first.
    async fn stop(mut self) -> Result<()> {
        drop(self.hears);
        self.stop_workers.cancel();
        while self.workers.join_next().await.is_some() {}
        self.stop_servers.cancel();
        while self.servers.join_next().await.is_some() {}
        self.book.all_ended()
    }
}

/// A keeper that ended by itself has given up.
fn lost(kept: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    kept.map_err(|error| Error::Config(format!("a keeper broke off: {error}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        Programs {
            artifacts: "/a".into(),
            worker: "/bin/worker".into(),
            coordinator: "/bin/coordinator".into(),
            oracle: "/bin/oracle-service".into(),
            mock: Some(("/a/rules.toml".into(), "mock-oracle".into())),
            mocked: true,
        }
    }

    #[test]
    fn programs_are_told_of_each_other() {
        let programs = programs();
        let args = |program: &Program| program.args.join(" ");
        let mock = programs.mock().unwrap();
        assert_eq!(args(&mock), "mock --rules /a/rules.toml --model mock-oracle --listen 127.0.0.1:0 --with-parent");
        let oracle = programs.oracle();
        assert_eq!(args(&oracle), "serve --state /a/.local/oracle --listen 127.0.0.1:0 --with-parent");
        assert_eq!(oracle.env, [("OPENAI_API_KEY", "mock".to_owned())]);
        let coordinator = programs.coordinator("small", "http://o:1", Some("http://m:2"));
        assert_eq!(
            args(&coordinator),
            "serve --artifacts /a --oracle http://o:1 --listen 127.0.0.1:0 --only small --heartbeat-ms 1000 --mock \
             http://m:2/v1 --with-parent"
        );
        assert!(mock.listens && oracle.listens && coordinator.listens && coordinator.env.is_empty());
        let worker = programs.worker(2, 1000, "http://c:3");
        assert_eq!(
            args(&worker),
            "serve --coordinator http://c:3 --name local-2 --threads 1 --device cpu --with-parent"
        );
        assert!(!worker.listens);
        assert_eq!(worker.log, Path::new("/a/.local/logs/worker-2.log"));
    }

    #[test]
    fn the_coordinators_address_is_told() {
        let says = meanwhile("http://127.0.0.1:4321");
        assert!(says.ends_with("--coordinator http://127.0.0.1:4321"), "{says}");
    }

    #[test]
    fn cores_are_shared_out() {
        assert_eq!([threads(8, 2), threads(2, 2), threads(2, 3), threads(7, 2)], [4, 1, 1, 3]);
    }
}
