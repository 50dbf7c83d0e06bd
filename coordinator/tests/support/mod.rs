//! A folder, files in it, and the real program run there.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

pub struct Folder(tempfile::TempDir);

/// What a run of the program gave.
pub struct Outcome {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Folder {
    pub fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap()
    }

    /// Names of all files in the folder and below it.
    pub fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(self.0.path()).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        files.sort();
        files
    }

    /// Runs `coordinator` with words separated by spaces, in this folder.
    pub fn run(&self, command: &str) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_coordinator"))
            .args(command.split_whitespace())
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs a command that must succeed; returns its standard output.
    pub fn succeed(&self, command: &str) -> String {
        let outcome = self.run(command);
        assert_eq!(outcome.code, Some(0), "{command}: {}", outcome.err);
        outcome.out
    }

    /// Runs a command that must fail with `message` and leave no file that was not there before.
    pub fn fail(&self, command: &str, message: &str) {
        let before = self.files();
        let outcome = self.run(command);
        assert_eq!(outcome.code, Some(1), "{command}: {}{}", outcome.out, outcome.err);
        assert!(outcome.err.contains(message), "{command}: {:?} instead of {message:?}", outcome.err);
        assert_eq!(self.files(), before, "{command} left a file");
    }
}
