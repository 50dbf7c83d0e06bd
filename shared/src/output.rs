//! Output files that are either whole or absent.
//!
//! Everything is written to `<name>.tmp` beside its target, synced, and renamed when finished: a crash, a full disk or
//! an error leaves an earlier file of that name as it was, and the temporary file is removed when the writer is dropped.
//! Two writers of one target have a temporary file each (`<name>.2.tmp`); the last to finish is kept.
//! JSON is indented by 2, keeps non-ASCII characters and ends without a newline, as the reference's files do (spec 1).
//! A path that is not a regular file (a device, a folder) is refused; a link is followed.

mod spool;
mod temporary;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use spool::{ListWriter, Spool};

use crate::error::{Error, Result};

/// A file that appears under its name only when finished.
pub struct AtomicFile {
    named: PathBuf,
    target: PathBuf,
    /// Empty once it has the target's name.
    temporary: PathBuf,
    /// Closed last: until then no other writer uses the temporary file.
    file: BufWriter<File>,
}

impl AtomicFile {
    /// Creates the temporary file, and the folders above it where they are missing.
    pub fn create(path: &Path) -> Result<Self> {
        let target = resolve(path)?;
        if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|source| Error::io("create the folder of this file", path, source))?;
        }
        let (temporary, file) = temporary::create(&target)?;
        Ok(Self { named: path.to_owned(), target, temporary, file: BufWriter::with_capacity(1 << 18, file) })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| Error::io("write", &self.named, source))
    }

    /// Returns the temporary file's path, for a library that writes files by their name. What it writes there replaces
    /// what was appended.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the content, then gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|source| Error::io("write", &self.named, source))?;
        self.file.get_ref().sync_all().map_err(|source| Error::io("sync", &self.named, source))?;
        fs::rename(&self.temporary, &self.target).map_err(|source| Error::io("rename", &self.named, source))?;
        self.temporary.clear();
        sync_folder(&self.target)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After the rename there is nothing to remove; a failure to remove has no one left to tell.
        if !self.temporary.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes the rename itself durable. Some file systems cannot sync a folder; the rename stands all the same.
fn sync_folder(target: &Path) -> Result<()> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Checks before a long computation that a file can be written under a name: no folder, no device.
///
/// # Errors
/// It cannot; the option is named.
pub fn check_target(option: &str, output: &Path) -> Result<()> {
    resolve(output).map(|_| ()).map_err(|error| Error::Config(format!("{option} {error}")))
}

/// Follows a link to the file it names, and refuses what a rename must not replace.
fn resolve(path: &Path) -> Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(Error::Config(format!("{}: an output path needs a file name", path.display())));
    }
    let target = match fs::symlink_metadata(path) {
        Ok(data) if data.is_symlink() => {
            fs::canonicalize(path).map_err(|source| Error::io("follow the link", path, source))?
        }
        _ => path.to_owned(),
    };
    match fs::metadata(&target) {
        Ok(data) if !data.is_file() => {
            Err(Error::Config(format!("{}: is not a regular file; choose another output path", path.display())))
        }
        _ => Ok(target),
    }
}

/// Returns whether two paths name one file: by device and inode where both exist, else by the path that links lead to.
pub fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        (Err(_), Err(_)) => whole_path(a) == whole_path(b),
        _ => false,
    }
}

/// Returns the path of a file that need not exist yet, with the links above it followed.
fn whole_path(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// Checks that an output is none of the inputs of its command, under whatever name.
///
/// # Errors
/// It is: both options are named.
pub fn check_spared(option: &str, output: &Path, inputs: &[(&str, Option<&Path>)]) -> Result<()> {
    for (input_option, input) in inputs {
        if input.is_some_and(|input| same_file(output, input)) {
            return Err(Error::Config(format!(
                "{option} {} is the file given by {input_option}, which would be overwritten; choose another output",
                output.display()
            )));
        }
    }
    Ok(())
}

/// Checks that none of the files a command writes is one of those it reads, under whatever name.
///
/// # Errors
/// One is: both are named.
pub fn check_all_spared(outputs: &[PathBuf], inputs: &[(&str, &Path)]) -> Result<()> {
    for output in outputs {
        if let Some((option, input)) = inputs.iter().find(|(_, input)| same_file(output, input)) {
            return Err(Error::Config(format!(
                "{option} {} would be overwritten: this command writes {}; choose another output",
                input.display(),
                output.display()
            )));
        }
    }
    Ok(())
}

/// Writes a JSON array record by record.
pub struct ArrayWriter {
    file: AtomicFile,
    buffer: Vec<u8>,
    count: usize,
}

impl ArrayWriter {
    /// Creates the array's temporary file.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: AtomicFile::create(path)?, buffer: Vec::new(), count: 0 })
    }

    /// Appends one element.
    pub fn push<T: Serialize + ?Sized>(&mut self, element: &T) -> Result<()> {
        self.buffer.clear();
        to_pretty(&mut self.buffer, element, &self.file.named)?;
        self.file.write(if self.count == 0 { b"[\n  " } else { b",\n  " })?;
        // Strings hold no raw newline in JSON, so every newline is one of the layout.
        let mut lines = self.buffer.split(|byte| *byte == b'\n');
        self.file.write(lines.next().unwrap_or_default())?;
        for line in lines {
            self.file.write(b"\n  ")?;
            self.file.write(line)?;
        }
        self.count += 1;
        Ok(())
    }

    /// Returns how many elements were written.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Closes the array and gives the file its name; returns the number of elements.
    pub fn finish(mut self) -> Result<usize> {
        self.file.write(if self.count == 0 { b"[]" } else { b"\n]" })?;
        self.file.finish()?;
        Ok(self.count)
    }
}

/// Writes JSON lines, one record a line.
pub struct LinesWriter {
    file: AtomicFile,
    buffer: Vec<u8>,
    count: usize,
}

impl LinesWriter {
    /// Creates the temporary file.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: AtomicFile::create(path)?, buffer: Vec::new(), count: 0 })
    }

    /// Appends one line.
    pub fn push<T: Serialize + ?Sized>(&mut self, record: &T) -> Result<()> {
        self.buffer.clear();
        serde_json::to_writer(&mut self.buffer, record).map_err(|error| unserialisable(&self.file.named, &error))?;
        self.buffer.push(b'\n');
        self.file.write(&self.buffer)?;
        self.count += 1;
        Ok(())
    }

    /// Returns how many lines were written.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Gives the file its name; returns the number of lines.
    pub fn finish(self) -> Result<usize> {
        self.file.finish()?;
        Ok(self.count)
    }
}

/// Writes one JSON document.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    let mut bytes = Vec::new();
    to_pretty(&mut bytes, value, path)?;
    write_atomic(path, &bytes)
}

/// Writes a file of the given bytes.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

/// Returns the path beside `path` whose stem has `suffix` appended: `a/pairs.json` + `_unused` = `a/pairs_unused.json`.
///
/// Endings `.gz` and `.xz` are dropped, and the new file is always `.json`.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!("{}{suffix}.json", stem(path)))
}

/// Returns the file name without its data endings: `pairs.jsonl.gz` gives `pairs`.
pub fn stem(path: &Path) -> String {
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for endings in [&[".gz", ".xz"][..], &[".jsonl", ".ndjson", ".json", ".parquet"][..]] {
        for ending in endings {
            if name.len() > ending.len() && name.ends_with(ending) {
                name.truncate(name.len() - ending.len());
                break;
            }
        }
    }
    name
}

fn to_pretty<T: Serialize + ?Sized>(buffer: &mut Vec<u8>, value: &T, path: &Path) -> Result<()> {
    serde_json::to_writer_pretty(buffer, value).map_err(|error| unserialisable(path, &error))
}

fn unserialisable(path: &Path, error: &serde_json::Error) -> Error {
    Error::file(path, format!("a value has no form in JSON: {error}"))
}

#[cfg(test)]
mod tests;
