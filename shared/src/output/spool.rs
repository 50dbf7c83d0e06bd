//! A list that grows on the disk instead of in memory, in a file without a name: it goes with the process, however that
//! ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AtomicFile, unserialisable};
use crate::error::{Error, Result};

/// A growing list of values, one a line.
pub struct Spool {
    folder: PathBuf,
    file: BufWriter<File>,
    count: usize,
}

impl Spool {
    /// Creates the nameless file in a folder, which is made where it is missing.
    pub fn create(folder: &Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(folder).map_err(|source| Error::io("make", folder, source))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".spool-{}-{number}", std::process::id()));
        let file = File::options().create_new(true).read(true).write(true).open(&path);
        let file = file.map_err(|source| Error::io("create", &path, source))?;
        fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
        Ok(Self { folder: folder.to_owned(), file: BufWriter::with_capacity(1 << 16, file), count: 0 })
    }

    /// Appends a value.
    pub fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        serde_json::to_writer(&mut self.file, value).map_err(|error| match error.io_error_kind() {
            Some(kind) => Error::io("write", &self.folder, kind.into()),
            None => unserialisable(&self.folder, &error),
        })?;
        self.count += 1;
        self.file.write_all(b"\n").map_err(|source| Error::io("write", &self.folder, source))
    }

    /// Returns how many values it holds.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Appends all values to a file, with `between` between them.
    pub fn copy_to(&mut self, between: &[u8], to: &mut AtomicFile) -> Result<()> {
        let mut index = 0;
        self.lines(|line| {
            if index > 0 {
                to.write(between)?;
            }
            index += 1;
            to.write(line)
        })
    }

    /// Calls `visit` for every value, in order, one in memory at a time.
    pub fn for_each<T: DeserializeOwned>(&mut self, mut visit: impl FnMut(T) -> Result<()>) -> Result<()> {
        let folder = self.folder.clone();
        self.lines(|line| visit(serde_json::from_slice(line).map_err(|error| Error::file(&folder, error.to_string()))?))
    }

    fn lines(&mut self, mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let folder = self.folder.clone();
        let io = |source| Error::io("read back from", &folder, source);
        self.file.flush().map_err(io)?;
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut reader = BufReader::with_capacity(1 << 16, &mut *file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(io)? > 0 {
            visit(line.strip_suffix(b"\n").unwrap_or(&line))?;
            line.clear();
        }
        self.file.get_mut().seek(SeekFrom::End(0)).map_err(io)?;
        Ok(())
    }
}

/// A JSON array that is only there when something is in it; otherwise an earlier file of that name goes.
pub struct ListWriter {
    path: PathBuf,
    array: Option<super::ArrayWriter>,
}

impl ListWriter {
    /// Names the file; nothing is created yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), array: None }
    }

    /// Appends one element.
    pub fn push<T: Serialize + ?Sized>(&mut self, element: &T) -> Result<()> {
        let array = match &mut self.array {
            Some(array) => array,
            None => self.array.insert(super::ArrayWriter::create(&self.path)?),
        };
        array.push(element)
    }

    /// Returns how many elements were written.
    pub fn count(&self) -> usize {
        self.array.as_ref().map_or(0, super::ArrayWriter::count)
    }

    /// Gives the file its name, or removes an earlier one; returns the number of elements.
    pub fn finish(self) -> Result<usize> {
        if let Some(array) = self.array {
            return array.finish();
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &self.path, error)),
            _ => Ok(0),
        }
    }
}
