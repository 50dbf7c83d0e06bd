//! What the scenarios under `tests/` share: the real programs, a folder to run them in, and the golden model.
//!
//! The programs are built once a test process, by the same cargo with the same profile; what is up to date costs
//! nothing. Everything runs on one thread, so that equal work gives equal bytes. A scenario fails by panicking, with
//! the program's own output.

pub mod chaos;
pub mod cluster;
pub mod gang;
pub mod local;
pub mod network;
pub mod runs;
pub mod safetensors;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// Returns the worker's executable, built if it is not up to date.
///
/// # Panics
/// If it does not build; the compiler's messages are on standard error, once.
pub fn worker() -> &'static Path {
    program("worker")
}

/// Where the programs are, if they are not to be built.
static BUILT_ALREADY: OnceLock<PathBuf> = OnceLock::new();

/// Takes the programs from a folder from now on, instead of building them. To be called before anything else.
pub fn take_programs_from(folder: &Path) {
    // Processes are started in folders of their own.
    let folder = std::path::absolute(folder).expect("the present folder is known");
    let _ = BUILT_ALREADY.set(folder);
}

/// Returns the executable of a package of the same name, built if it is not up to date.
///
/// # Panics
/// If it does not build, or is none of ours.
pub fn program(name: &str) -> &'static Path {
    static BUILT: [OnceLock<Result<PathBuf, String>>; 3] = [const { OnceLock::new() }; 3];
    let programs = ["worker", "coordinator", "oracle-service"];
    let index = programs.iter().position(|program| *program == name).expect("one of our programs");
    let find = || match BUILT_ALREADY.get() {
        Some(folder) => Ok(folder.join(name)),
        None => build(programs[index]),
    };
    match BUILT[index].get_or_init(find) {
        Ok(path) => path,
        Err(problem) => panic!("{problem}"),
    }
}

fn build(package: &str) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Of the whole workspace, so that dependencies have the features that they have in its tests, and are built once.
    command.args(["build", "--quiet", "--message-format", "json-render-diagnostics", "--workspace", "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.current_dir(root()).stderr(Stdio::inherit()).output().map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        return Err(format!("{package} does not build"));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == package && message["target"]["kind"] == json!(["bin"]))
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| format!("cargo names no executable of {package}"))
}

/// Returns the stand-in for NCCL and the CUDA runtime, built if it is not up to date.
///
/// # Panics
/// If it does not build.
pub fn nccl_double() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--message-format", "json-render-diagnostics", "--package", "nccl-double"]);
    let output = command.current_dir(root()).stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "nccl-double does not build");
    let files = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .collect::<Vec<_>>();
    files.into_iter().find(|file| file.ends_with("libnccl_double.so")).expect("cargo names what it built")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace")
}

/// Returns a path under `tests/golden/tiny-llama`.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/tiny-llama").join(name)
}

/// Returns the golden values.
pub fn golden_values() -> Value {
    let text = std::fs::read_to_string(golden("golden.json")).expect("golden values are there");
    serde_json::from_str(&text).expect("golden values are JSON")
}

/// Returns ten triaged records: INVERT, PUNISH and RETAIN mixed, with corrections on PUNISH records.
pub fn records() -> Vec<Value> {
    let golden = golden_values();
    let list = |name: &str| golden[name].as_array().expect("a list").clone();
    let mut records = list("records");
    for record in &mut records {
        if record["category"] == "PUNISH" {
            record["oracle_response"] = json!("Ask at the desk, they know.");
        }
    }
    for (i, mut pair) in list("gold").into_iter().enumerate() {
        pair["category"] = json!("RETAIN");
        records.insert(2 * i, pair);
    }
    records
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// A folder of its own for one scenario, removed at the end.
pub struct Folder(tempfile::TempDir);

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the worker as a shell starts it after some commands.
fn after(before: &str) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]).arg(worker());
    shell
}

impl Folder {
    /// Makes the folder, with `records.json` in it: [`records`].
    pub fn new() -> Self {
        let folder = Folder(tempfile::tempdir().expect("a temporary folder can be made"));
        folder.write_json("records.json", &Value::Array(records()));
        folder
    }

    /// Returns the path of a name in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).expect("the folder can be written");
    }

    /// Writes a JSON file.
    pub fn write_json(&self, name: &str, value: &Value) {
        self.write(name, value.to_string());
    }

    /// Reads a file.
    ///
    /// # Panics
    /// If it is not there.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Reads a JSON file.
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Reads a file of JSON lines.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let text = String::from_utf8(self.bytes(name)).expect("JSON lines are UTF-8");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}"))).collect()
    }

    /// Copies a golden folder here, to be changed.
    pub fn copy_golden(&self, name: &str, to: &str) -> PathBuf {
        let target = self.path(to);
        std::fs::create_dir_all(&target).expect("the folder can be written");
        for entry in std::fs::read_dir(golden(name)).expect("the golden folder is there") {
            let entry = entry.expect("the golden folder can be read");
            std::fs::copy(entry.path(), target.join(entry.file_name())).expect("the folder can be written");
        }
        target
    }

    /// Returns every file below the folder with its content.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("the folder can be read") {
                let path = entry.expect("the folder can be read").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.clone(), std::fs::read(&path).expect("the file can be read"));
                }
            }
        }
        files
    }

    /// Runs the worker here with words separated by spaces. `{tied}`, `{untied}` and `{adapter}` stand for the golden
    /// folders of that name.
    pub fn run(&self, words: &str) -> Outcome {
        self.run_program(Command::new(worker()), words)
    }

    /// As [`Folder::run`], under a shell that first does `before` (limits, traps).
    pub fn run_after(&self, before: &str, words: &str) -> Outcome {
        self.run_program(after(before), words)
    }

    fn run_program(&self, mut program: Command, words: &str) -> Outcome {
        self.prepare(&mut program, words);
        let output = program.output().expect("the program can be started");
        Outcome {
            code: output.status.code(),
            signal: output.status.signal(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Gives a program its words, this folder, and an environment that tells it nothing.
    fn prepare(&self, program: &mut Command, words: &str) {
        for word in words.split_whitespace() {
            program.arg(match word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(name) => golden(name).into_os_string(),
                None => word.into(),
            });
        }
        if !words.starts_with("merge") {
            program.args(["--threads", "1"]);
        }
        program.current_dir(self.0.path()).env_remove("RUST_LOG").env_remove("TRACE_FAULT").env("TRACE_DEVICE", "cpu");
        program.env_remove("RUST_BACKTRACE");
    }

    /// Runs the worker, which must succeed.
    #[track_caller]
    pub fn succeed(&self, words: &str) -> Outcome {
        let outcome = self.run(words);
        assert_eq!(outcome.code, Some(0), "{words}\n{outcome:#?}");
        outcome
    }

    /// Runs the worker with a planned death, which must come.
    #[track_caller]
    pub fn killed(&self, words: &str, fault: &str) {
        let outcome = self.run(&format!("{words} --fault {fault}"));
        assert_eq!(outcome.signal, Some(9), "{fault} was not reached\n{words}\n{outcome:#?}");
    }

    /// Runs the worker, which must refuse: exit code 1, every one of `messages` on standard error, and all files as
    /// they were before, with none added.
    #[track_caller]
    pub fn refused(&self, words: &str, messages: &[&str]) {
        let before = self.snapshot();
        let outcome = self.run(words);
        check_refusal(words, &outcome, messages);
        let after = self.snapshot();
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&after), names(&before), "{words}: left or removed a file");
        assert!(after == before, "{words}: changed a file");
    }
}

/// Checks exit code and messages of a refusal.
#[track_caller]
pub fn check_refusal(words: &str, outcome: &Outcome, messages: &[&str]) {
    assert_eq!(outcome.code, Some(1), "{words}\n{outcome:#?}");
    for message in messages {
        assert!(outcome.err.contains(message), "{words}\n{message:?} is not in: {}", outcome.err);
    }
    assert!(!outcome.err.contains("panicked"), "{words}\n{}", outcome.err);
}
