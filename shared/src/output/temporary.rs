//! The file beside a target that is written first: one for each writer, and what a killed one left is used again.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Opens the first of `NAME.tmp`, `NAME.2.tmp`, … that no other writer has, empty. It is this writer's until it is closed.
pub(super) fn create(target: &Path) -> Result<(PathBuf, File)> {
    let mut number = 1;
    loop {
        let path = beside(target, number);
        let io = |source| Error::io("create", &path, source);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        // A file system without locks has no other writer that could be told apart.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            number += 1;
        } else if is_named(&path, &file).map_err(io)? {
            if file.metadata().map_err(io)?.len() > 0 {
                file.set_len(0).map_err(io)?;
            }
            return Ok((path, file));
        }
        // Else its writer has finished meanwhile: it is the target now.
    }
}

fn beside(target: &Path, number: u32) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(if number == 1 { ".tmp".to_owned() } else { format!(".{number}.tmp") });
    target.with_file_name(name)
}

/// Returns whether a path still leads to this open file.
fn is_named(path: &Path, file: &File) -> std::io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
